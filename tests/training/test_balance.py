"""How large gradients usually are, and what follows from it."""

from __future__ import annotations

import pytest
import torch

from mkdext.training.balance import Balance


def gradients(*numbers: float) -> list[torch.Tensor]:
    """Of two parameters, the first of one number."""
    return [torch.tensor(numbers[0]), torch.tensor(numbers[1:])]


def test_ratio_and_cosine_are_those_computed_by_hand():
    balance = Balance(follows=False)
    values = balance.measure(gradients(3.0, 4.0, 0.0), gradients(0.0, 6.0, 8.0), 0.1)
    assert float(values["gradient_ratio"]) == pytest.approx(0.1 * 10 / 5)
    assert float(values["gradient_cosine"]) == pytest.approx(24 / 50)
    assert float(balance.weight(0.1)) == pytest.approx(0.1)


def test_a_weight_that_follows_is_the_ratio_of_usual_norms():
    balance = Balance(follows=True)
    first = balance.measure(gradients(3.0, 4.0), gradients(0.0, 10.0), 2.0)
    assert float(first["gradient_ratio"]) == pytest.approx(2.0)
    assert float(balance.weight(2.0)) == pytest.approx(2.0 * 5 / 10)
    second = balance.measure(gradients(0.0, 1.0), gradients(0.0, 30.0), 2.0)
    assert float(balance.weight(2.0)) == pytest.approx(2.0 * 3 / 20)
    assert float(second["gradient_ratio"]) == pytest.approx(2.0 * 3 / 20 * 30 / 1)


def test_the_sum_for_a_method_has_parts_of_their_usual_sizes():
    balance = Balance(follows=False)
    moved, told = balance.of_method(gradients(3e-6, 4e-6), gradients(0.0, 50.0), 0.5)
    torch.testing.assert_close(moved, (torch.tensor(0.6), torch.tensor([0.8 + 0.5])))
    assert float(told["meta_distillation_gradient"]) == pytest.approx(50.0)
    assert float(told["meta_cosine"]) == pytest.approx(0.8)
    # One of a tenth of the size counts by so much less: the mean is 0.55 of the former.
    moved, _ = balance.of_method(gradients(3e-7, 4e-7), gradients(0.0, 50.0), 0.5)
    expected = (torch.tensor(0.06 / 0.55), torch.tensor([0.08 / 0.55 + 0.5]))
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize("follows", [False, True])
def test_gradients_of_nothing_make_no_infinite_number(follows):
    balance = Balance(follows)
    for reconstruction, distillation in ((0.0, 0.0), (0.0, 1e12), (1.0, 0.0)):
        fresh = Balance(follows)
        for one in (balance, fresh):
            given = gradients(reconstruction, 0.0), gradients(0.0, distillation)
            values = one.measure(*given, 1.0) | one.of_method(*given, 1.0)[1]
            moved = one.of_method(*given, 1.0)[0]
            assert all(torch.isfinite(v).all() for v in (*values.values(), *moved))
            assert torch.isfinite(one.weight(1.0))
    assert float(Balance(follows=True).weight(1.0)) == 0.0


def test_all_is_kept_in_a_state():
    balance, other = Balance(follows=True), Balance(follows=True)
    for size in (1.0, 2.0, 5.0):
        balance.measure(gradients(size, 0.0), gradients(0.0, 1 / size), 1.0)
        balance.of_method(gradients(size, 0.0), gradients(0.0, 1 / size), 1.0)
    other.load_state_dict(balance.state_dict())
    assert float(other.weight(1.0)) == float(balance.weight(1.0)) != 0
    given = gradients(1.0, 2.0), gradients(3.0, 4.0), 1.0
    torch.testing.assert_close(other.of_method(*given), balance.of_method(*given), rtol=0, atol=0)
