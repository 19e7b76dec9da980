from __future__ import annotations

import pytest
import torch

from mkdext.synthesis import global_views, local_views

VIEWS = {"global": global_views, "local": local_views}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_global_view_is_the_image_shifted_and_perhaps_mirrored():
    images = torch.rand(16, 3, 12, 10)
    views = global_views(images, seeded())
    mirrored_images = torch.nn.functional.pad(images, (5, 5, 5, 5), mode="replicate")
    # The edge pixel is repeated at the border, as in every mirroring between two pixels.
    for axis in (2, 3):
        size = images.shape[axis]
        positions = (torch.arange(-5, size + 5)) % (2 * size)
        positions = torch.minimum(positions, 2 * size - 1 - positions)
        padded = images if axis == 2 else mirrored_images
        mirrored_images = padded.index_select(axis, positions)
    kinds = set()
    for view, large in zip(views, mirrored_images, strict=True):
        found = [
            (down, right, flip)
            for down in range(-4, 5)
            for right in range(-4, 5)
            for flip in (False, True)
            if torch.allclose(
                cut(large, down, right, (12, 10)), view.flip(-1) if flip else view, atol=1e-5
            )
        ]
        assert len(found) == 1
        kinds.add(found[0])
    assert len(kinds) > 10
    assert {flip for *_, flip in kinds} == {False, True}


def cut(large: torch.Tensor, down: int, right: int, size: tuple[int, int]) -> torch.Tensor:
    return large[:, 5 + down : 5 + down + size[0], 5 + right : 5 + right + size[1]]


def test_a_local_view_is_a_part_of_a_quarter_or_more_enlarged():
    # Where an image holds its own coordinates, a view tells where it was taken.
    rows = torch.linspace(0.5, 47.5, 48).view(48, 1).expand(48, 48)
    images = torch.stack((rows, rows.T)).expand(200, 2, 48, 48).contiguous()
    views = local_views(images, seeded())
    steps = views[:, 0, 24, 24] - views[:, 0, 23, 24], views[:, 1, 24, 24] - views[:, 1, 24, 23]
    heights, widths = steps[0], steps[1].abs()
    areas, ratios = heights * widths, widths / heights
    assert 0.24 < areas.min() < 0.3 and 0.9 < areas.max() < 1.01
    assert 0.74 < ratios.min() < 0.8 and 1.25 < ratios.max() < 1.34
    assert 60 < (steps[1] < 0).sum() < 140
    # A part never reaches beyond the image, or its mirroring would turn the order around.
    inner = views[:, 0, 1:-1]
    assert (inner.diff(dim=1) >= -1e-3).all()


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_views_are_those_of_the_seed(views):
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(views(images, seeded(1)), views(images, seeded(1)))
    assert not torch.equal(views(images, seeded(1)), views(images, seeded(2)))


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_views_are_differentiable(views):
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: views(x, seeded()), images)
