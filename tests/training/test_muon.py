"""Orthogonal momentum, against singular values and PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mkdext._system.saved_state import SavedState, write_state
from mkdext.training.muon import Muon, orthogonalised


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(3, 16, 144), (2, 48, 16), (1, 9, 9)])
@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_matrices_keep_their_singular_vectors_and_have_singular_values_near_1(shape, size):
    matrices = size * drawn(*shape)
    made = orthogonalised(matrices)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    diagonal = left.mT @ made @ right.mT
    found = diagonal.diagonal(dim1=1, dim2=2)
    usual = values > 0.05 * values.amax()  # five steps do not raise the least ones all the way
    assert found[usual].min() > 0.6 and found.max() < 1.25
    torch.testing.assert_close(diagonal, torch.diag_embed(found), atol=1e-4, rtol=0)


def test_a_matrix_of_zeros_stays_one():
    assert torch.equal(orthogonalised(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (48, 16, 1, 1)])
def test_it_is_the_muon_of_pytorch_within_the_digits_of_bfloat16(shape):
    kernel = nn.Parameter(drawn(*shape))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    ours = Muon([kernel], lr=0.01)
    theirs = torch.optim.Muon([matrix], lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        before = kernel.detach().flatten(1).clone()
        kernel.grad, matrix.grad = gradient, gradient.flatten(1).clone()
        ours.step()
        theirs.step()
        ours_moved, theirs_moved = kernel.detach().flatten(1) - before, matrix.detach() - before
        assert (ours_moved - theirs_moved).norm() < 0.03 * ours_moved.norm()
        matrix.data.copy_(kernel.detach().flatten(1))  # Roundings shall not add up.
    torch.testing.assert_close(
        ours.state[kernel]["momentum_buffer"].flatten(1), theirs.state[matrix]["momentum_buffer"]
    )


def test_a_step_is_about_as_large_as_one_of_adam():
    """Adam's are 0.2 to 0.4 of the rate, root mean square, once gradients vary in sign."""
    kernels = [nn.Parameter(drawn(*shape)) for shape in ((16, 16, 3, 3), (48, 16, 3, 3))]
    optimizer = Muon(kernels, lr=0.01)
    for _ in range(3):
        before = [kernel.detach().clone() for kernel in kernels]
        for kernel in kernels:
            kernel.grad = torch.randn_like(kernel)
        optimizer.step()
        for kernel, was in zip(kernels, before, strict=True):
            size = (kernel.detach() - was).square().mean().sqrt()
            assert 0.1 * 0.01 < size < 0.4 * 0.01


def test_all_but_kernels_move_by_adam():
    linear, kernel = nn.Parameter(drawn(4, 5)), nn.Parameter(drawn(4, 5, 3, 3))
    other = nn.Parameter(linear.detach().clone())
    ours, adam = Muon([kernel, linear], lr=0.01), torch.optim.Adam([other], lr=0.01)
    for step in range(3):
        linear.grad = torch.full_like(linear, step - 0.5)
        other.grad = linear.grad.clone()
        kernel.grad = torch.ones_like(kernel) if step else None
        ours.step()
        adam.step()
    assert torch.equal(linear, other)


def steps(network: nn.Module, optimizer: Muon, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        network(drawn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()


def made() -> tuple[nn.Module, Muon]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(), nn.Conv2d(4, 4, 3))
    return network, Muon(network.parameters(), lr=0.01)


def test_its_state_is_kept_and_taken_back(tmp_path):
    network, optimizer = made()
    steps(network, optimizer, 2)
    kept = {"optimizer": optimizer.state_dict()}
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    write_state(tmp_path / "state.pt", kept)
    steps(network, optimizer, 2)
    other, restored = made()
    other.load_state_dict(weights)
    SavedState.read(tmp_path / "state.pt", "").load_optimizer("optimizer", restored)
    steps(other, restored, 2)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[0].pop("momentum_buffer"), "optimizer is of another optimizer"),
        (lambda s: s[0].update(exp_avg=torch.zeros(1)), "optimizer is of another optimizer"),
        (lambda s: s[1].pop("exp_avg"), "optimizer is of another optimizer"),
        (
            lambda s: s[0].update(momentum_buffer=torch.zeros(2)),
            r"momentum_buffer is float32 \[2\], must be",
        ),
        (lambda s: s[0].update(momentum_buffer="x"), "momentum_buffer is a str"),
    ],
)
def test_a_damaged_state_is_refused(change, message):
    network, optimizer = made()
    steps(network, optimizer, 1)
    state = optimizer.state_dict()
    change(state["state"])
    _, other = made()
    with pytest.raises(ValueError, match=message):
        SavedState({"optimizer": state}, "state.pt", "").load_optimizer("optimizer", other)
