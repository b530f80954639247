"""Training what was pruned, on a network small enough for a test: it learns from its teacher, the same each time."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.export import Dim

import graphc
from graphc.tools import pruning
from graphc.tools.pruning import TOWARDS, of_size, total_macs
from graphc.tools.zoo.augmentation import augmented
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


def test_a_graph_of_one_size_computes_what_that_of_any_size_does():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 2)).eval()
    x = torch.randn(2, 3, 5, 5)
    graph = graphc.trace(model, (x,), dynamic_shapes=({0: Dim("batch", min=1, max=8)},))
    single = of_size(graph, 1)
    verify(single)
    assert not single.symbols and graph.symbols
    assert single.output.args[0][0].meta["type"].shape == (1, 2)
    torch.testing.assert_close(single.run(x[:1]), graph.run(x[:1]))


def test_the_program_writes_its_figures(data, tmp_path, monkeypatch):
    """On a few images; a run without the first one's figures finds its checkpoint and gives the same."""
    output = tmp_path / "figures.json"
    arguments = f"resnet20_jpeg --images 128 --limit 50 --original --folder {tmp_path} --output {output} --epochs"
    assert pruning.main([*arguments.split(), "1"]) == 0
    written = json.loads(output.read_text())
    figures = written["resnet20_jpeg, limit 50, images 128"]
    trained = [f"{kind}, 1 epochs, seed 0" for kind in ("pruned", "original")]
    assert list(figures) == ["pass", "pruned", "original", *trained]
    before, after = figures["original"], figures[trained[0]]
    assert after["MACs"] * 2.1 <= before["MACs"] and after["bytes"] < before["bytes"]
    assert (tmp_path / "resnet20_jpeg-pruned-2.1-magnitude-16-1.0-0.txt").exists()
    kept = {key: row for key, row in figures.items() if key not in trained}
    output.write_text(json.dumps({"resnet20_jpeg, limit 50, images 128": kept}))
    assert pruning.main([*arguments.split(), "1"]) == 0
    (again,) = json.loads(output.read_text()).values()
    assert [again[key]["top-1 %"] for key in trained] == [figures[key]["top-1 %"] for key in trained]
    monkeypatch.setattr(pruning, "trained", None)
    assert pruning.main([*arguments.split(), "1"]) == 0, "all of it is known"
    with pytest.raises(TypeError):
        pruning.main([*arguments.split(), "2"])


def test_speed_is_of_both_graphs(monkeypatch):
    graph, times = object(), [[1000, 1000], [400, 600]]
    monkeypatch.setattr(pruning.graphc, "compile", lambda *given, **options: Saved())
    monkeypatch.setattr(pruning, "step_times", lambda files, threads, rounds: times)
    options = SimpleNamespace(threads=1, limit=None)
    figures = pruning.timed([graph, graph], "float", None, options)
    assert (figures["ns, original"], figures["ns, pruned"], figures["times faster"]) == (2000, 1000, 2)


class Saved:
    def save(self, file):
        file.write_bytes(b"file")
