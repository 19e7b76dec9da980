from __future__ import annotations

import pytest
import torch

from mkdext.synthesis import mean_pairwise_distance


def test_the_distance_is_that_of_the_formula():
    torch.manual_seed(0)
    images = torch.rand(4, 3, 5, 5)
    gaps = [
        (images[i] - images[j]).square().mean().sqrt() for i in range(4) for j in range(4) if i != j
    ]
    torch.testing.assert_close(mean_pairwise_distance(images), torch.stack(gaps).mean())


def test_samples_that_are_all_the_same_have_none():
    assert mean_pairwise_distance(torch.rand(1, 7).expand(3, 7)).item() == 0


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="at least two, got 1"):
        mean_pairwise_distance(torch.rand(1, 7))
