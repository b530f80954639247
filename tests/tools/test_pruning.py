"""Training what was pruned, on a network small enough for a test: it learns from its teacher, the same each time."""

import torch
from torch import nn

import graphc
from graphc.progress import silent
from graphc.tools.pruning import BATCH, augment, recover


def test_a_pruned_network_learns_from_its_original():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 9, 4)
    )
    images = torch.randn(4 * BATCH, 3, 1, 1) + torch.randn(4 * BATCH, 3, 8, 8) / 4  # so that moving keeps the sense
    teacher = graphc.trace(model.eval(), (images[:BATCH],))
    labels = torch.cat([teacher.run(x) for x in images.split(BATCH)]).argmax(-1)
    pruned = graphc.Pipeline("prune_channels{share=0.5}").run(teacher)

    def agreement(graph):
        return float((torch.cat([graph.run(x) for x in images.split(BATCH)]).argmax(-1) == labels).float().mean())

    trained = recover(pruned, teacher, images, labels, 8, 0, silent)
    assert agreement(trained) > agreement(pruned)
    again = recover(pruned, teacher, images, labels, 8, 0, silent)
    assert graphc.dump(again) == graphc.dump(trained)


def test_augmented_images_are_moved_and_mirrored():
    images = torch.arange(2 * 8 * 8).float().reshape(2, 1, 8, 8) + 1
    seen = [augment(images, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert all(each.shape == images.shape for each in seen)
    centre = torch.stack([each[0, 0, 4, 4:6] for each in seen])
    steps = centre[:, 1] - centre[:, 0]
    assert {1.0, -1.0} <= set(steps[(centre > 0).all(1)].tolist())
    assert torch.equal(seen[3], augment(images, torch.Generator().manual_seed(3)))
