"""How training images are varied: by each one's own numbers, the same for the same seed."""

import torch

from graphc.tools.zoo.augmentation import augmented


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
