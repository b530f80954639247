"""Training what was pruned, on a network small enough for a test: it learns from its teacher, the same each time."""

import json
import sys

import torch
from torch import nn
from torch.export import Dim

import graphc
from graphc.tools import pruning
from graphc.tools.pruning import TOWARDS, augmented, of_size, total_macs
from graphc.training.distillation import distill
from graphc.training.loop import Samples, Training
from graphc.verifier import verify


def test_a_pruned_network_learns_from_its_original(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 9, 4)
    )
    images = torch.randn(400, 3, 1, 1) + torch.randn(400, 3, 8, 8) / 4  # so that moving keeps the sense
    teacher = graphc.trace(model.eval(), (images[:4],), dynamic_shapes=({0: Dim("batch", min=1, max=1024)},))
    labels = teacher.run(images).argmax(-1)
    pruned = graphc.Pipeline("prune_channels{share=0.5}").run(teacher)

    def agreement(graph):
        return float((graph.run(images).argmax(-1) == labels).float().mean())

    samples = Samples((images, labels), 100, 0, augmented)
    training = Training(32, 0.05, "sgd", checkpoint=tmp_path / "kept.safetensors", interval=16)
    trained = distill(pruned, teacher, samples, TOWARDS, training)
    assert agreement(trained) > agreement(pruned)
    assert total_macs(trained) == total_macs(pruned) <= total_macs(teacher) / 2
    again = distill(pruned, teacher, samples, TOWARDS, Training(32, 0.05, "sgd"))
    assert graphc.dump(again) == graphc.dump(trained)


def test_augmented_images_are_moved_and_mirrored():
    images, labels = torch.arange(2 * 8 * 8).float().reshape(2, 1, 8, 8) + 1, torch.tensor([3, 4])
    results = [augmented([images, labels], torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert all(torch.equal(kept, labels) for _, kept in results)
    seen = [moved for moved, _ in results]
    assert all(each.shape == images.shape for each in seen)
    centre = torch.stack([each[0, 0, 4, 4:6] for each in seen])
    steps = centre[:, 1] - centre[:, 0]
    assert {1.0, -1.0} <= set(steps[(centre > 0).all(1)].tolist())
    assert torch.equal(seen[3], augmented([images, labels], torch.Generator().manual_seed(3))[0])


def test_a_graph_of_one_size_computes_what_that_of_any_size_does():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 2)).eval()
    x = torch.randn(2, 3, 5, 5)
    graph = graphc.trace(model, (x,), dynamic_shapes=({0: Dim("batch", min=1, max=8)},))
    single = of_size(graph, 1)
    verify(single)
    assert not single.symbols and graph.symbols
    assert single.output.args[0][0].meta["type"].shape == (1, 2)
    torch.testing.assert_close(single.run(x[:1]), graph.run(x[:1]))


def test_the_program_writes_its_figures(data, tmp_path, monkeypatch, capsys):
    """On a few images; a second run finds the first one's checkpoint and gives the same."""
    output = tmp_path / "figures.json"
    command = "pruning --images 128 --limit 50 --epochs 1 --original --folder"
    monkeypatch.setattr(sys, "argv", [*command.split(), str(tmp_path), "--output", str(output)])
    pruning.main()
    found = json.loads(output.read_text())
    assert [each["graph"] for each in found["trained"]] == ["pruned", "original"]
    before, after = found["original"], found["trained"][0]
    assert after["MACs"] * 2.1 <= before["MACs"] and after["bytes"] < before["bytes"]
    assert found["training"]["images"] == 128 and found["test images"] == 50
    pruning.main()
    again = json.loads(output.read_text())
    assert [each["top-1 %"] for each in again["trained"]] == [each["top-1 %"] for each in found["trained"]]
