from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mkdext.models import SAN, SANConfig
from mkdext.models.san import SOCA, NonLocal, RegionNonLocal, covariance, matrix_square_root
from tests.models.textbook import Weights, channel_weights, conv, frame, with_random_weights

TINY = SANConfig(groups=2, blocks=1, features=8, reduction=4, non_local_reduction=4)


def eigenvalue_root(matrix: Tensor) -> Tensor:
    """The Newton-Schulz steps on each eigenvalue alone."""
    values, vectors = torch.linalg.eigh(matrix)
    y, z = values / values.sum(), torch.ones_like(values)
    for _ in range(5):
        y, z = y * (3 - z * y) / 2, z * (3 - z * y) / 2
    return vectors @ torch.diag(y * values.sum().sqrt()) @ vectors.T


def textbook_attention(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Second-order channel attention, sample by sample."""
    roots = torch.stack([eigenvalue_root(torch.cov(s.flatten(1), correction=0)) for s in x])
    return x * channel_weights(weights, f"{name}.conv_du", roots.mean(1)[..., None, None])


def textbook_non_local(weights: Weights, x: Tensor) -> Tensor:
    """Each pixel of each quarter compared with every other of it."""
    result = x.clone()
    h, w = x.shape[2] // 2, x.shape[3] // 2
    for rows in (slice(None, h), slice(h, None)):
        for columns in (slice(None, w), slice(w, None)):
            theta, phi, g = (
                conv(weights, f"non_local.non_local.{n}", x[..., rows, columns]).flatten(2)
                for n in ("theta", "phi", "g")
            )
            y = torch.zeros_like(g)
            for pixel in range(g.shape[2]):
                likeness = (theta[..., pixel, None] * phi).sum(1)
                y[..., pixel] = (torch.softmax(likeness, -1)[:, None] * g).sum(-1)
            y = y.view(*y.shape[:2], *x[..., rows, columns].shape[2:])
            result[..., rows, columns] += conv(weights, "non_local.non_local.W", y)
    return result


def textbook_body(weights: Weights, x: Tensor) -> Tensor:
    x = source = textbook_non_local(weights, x)
    for group in range(TINY.groups):
        name = f"RG.{group}"
        y = conv(weights, f"{name}.rcab.0.conv_first.0", x).clamp(min=0)
        y = x + conv(weights, f"{name}.rcab.0.conv_first.2", y)
        y = conv(weights, f"{name}.conv_last", textbook_attention(weights, f"{name}.soca", y))
        x = x + y + weights["gamma"] * source
    return textbook_non_local(weights, x)


@pytest.mark.parametrize(("scale", "size"), [(2, (4, 6)), (3, (5, 3))])
def test_san_is_what_the_paper_says(scale: int, size: tuple[int, int]) -> None:
    model = with_random_weights(SAN(TINY, scale))
    # Near the mean colour, where the softmax does not saturate.
    lr = 0.44 + 0.01 * torch.randn(2, 3, *size, dtype=torch.float64)
    weights = model.state_dict()
    expected = frame(weights, scale, lr, lambda x: textbook_body(weights, x))
    torch.testing.assert_close(model(lr), expected, rtol=1e-10, atol=1e-10)


def test_the_names_and_shapes_are_those_of_the_official_code() -> None:
    layers = {"sub_mean": (3, 3, 1), "add_mean": (3, 3, 1), "head.0": (8, 3, 3)}
    for g in (0, 1):
        layers |= {f"RG.{g}.rcab.0.conv_first.{i}": (8, 8, 3) for i in (0, 2)}
        layers |= {f"RG.{g}.soca.conv_du.0": (2, 8, 1), f"RG.{g}.soca.conv_du.2": (8, 2, 1)}
        layers[f"RG.{g}.conv_last"] = (8, 8, 3)
    layers |= {"conv_last": (8, 8, 3), "non_local.non_local.W": (8, 2, 1)}
    layers |= {f"non_local.non_local.{n}": (2, 8, 1) for n in ("g", "theta", "phi")}
    layers |= {"non_local.soca.conv_du.0": (1, 8, 1), "non_local.soca.conv_du.2": (8, 1, 1)}
    layers |= {"tail.0.0": (32, 8, 3), "tail.0.2": (32, 8, 3), "tail.1": (3, 8, 3)}
    expected = {f"{name}.weight": (o, i, k, k) for name, (o, i, k) in layers.items()}
    expected |= {f"{name}.bias": (o,) for name, (o, _, _) in layers.items()}
    expected |= {"gamma": (1,), "RG.0.gamma": (1,), "RG.1.gamma": (1,)}
    state = SAN(TINY, scale=4).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


def test_a_non_local_block_of_another_width_is_inferred() -> None:
    config = SANConfig(groups=1, blocks=2, features=16, reduction=2, non_local_reduction=4)
    assert SAN.infer(SAN(config, scale=3).state_dict()) == (config, 3)


def test_the_root_times_itself_is_the_matrix() -> None:
    torch.manual_seed(0)
    factor = torch.randn(3, 4, 40, dtype=torch.float64)
    matrices = 100 * factor @ factor.transpose(1, 2)  # well conditioned: five steps suffice
    root = matrix_square_root(matrices)
    torch.testing.assert_close(root @ root, matrices, rtol=0.01, atol=0.01 * matrices.abs().max())
    assert torch.equal(matrix_square_root(torch.zeros(2, 3, 3)), torch.zeros(2, 3, 3))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(2, 3), (1, 3), (1, 1)])
def test_covariances_roots_and_attention_differentiate_twice(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, *size, dtype=torch.float64, requires_grad=True)
    attention = with_random_weights(SOCA(4, 2), spread=0.5)
    checks = [covariance]
    if size != (1, 1):  # There the root of zero has no derivative.
        checks += [lambda x: matrix_square_root(covariance(x)), attention]
    for check in checks:
        assert torch.autograd.gradcheck(check, x)
        assert torch.autograd.gradgradcheck(check, x)


def test_the_second_derivative_of_the_root_is_not_that_of_a_constant_backward() -> None:
    # For 1x1 matrices the steps are exact: the root of a, whose second derivative is known.
    a = torch.tensor([[[4.0]]], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(matrix_square_root(a).sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), a)
    torch.testing.assert_close(first.item(), 1 / 4)
    torch.testing.assert_close(second.item(), -1 / 32)


def test_the_attention_looks_at_the_inner_1000_pixels_only() -> None:
    torch.manual_seed(0)
    attention, x = SOCA(4, 2), torch.randn(1, 4, 1, 1007)
    expected = attention(x[..., 3:1003])
    torch.testing.assert_close(attention(x)[..., 3:1003], expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(2, 3), (1, 4), (1, 1)])
def test_non_local_blocks_differentiate_twice(size: tuple[int, int]) -> None:
    block = with_random_weights(RegionNonLocal(TINY), spread=0.5)
    x = torch.randn(1, 8, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, x)
    assert torch.autograd.gradgradcheck(block, x)


class LargestTensor(TorchDispatchMode):
    """Keeps the most elements that a tensor made inside of it has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in self._tensors(result))])
        return result

    def _tensors(self, result: object) -> Iterator[Tensor]:
        if isinstance(result, Tensor):
            yield result
        elif isinstance(result, (tuple, list)):
            for part in result:
                yield from self._tensors(part)


def test_without_gradients_no_memory_is_taken_for_pairs_of_pixels() -> None:
    block, x = NonLocal(16, 2), torch.randn(1, 16, 20, 20)
    with LargestTensor() as largest:
        block(x)
    assert largest.elements == 400 * 400
    with torch.no_grad(), LargestTensor() as largest:
        block(x)
    assert largest.elements == x.numel()
