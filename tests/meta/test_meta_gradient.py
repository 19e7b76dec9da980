"""The meta-gradient against finite differences of the whole bilevel objective."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mkdext.meta import InnerAdam, InnerSGD, gradient_of, meta_gradient
from mkdext.methods import MKD, MKDOptions

OPTIMIZERS = {
    "sgd": InnerSGD(lr=0.05),
    "sgd-momentum": InnerSGD(lr=0.05, momentum=0.9),
    "adam": InnerAdam(lr=0.02),
}


class TinyStudent(nn.Module):
    """Two convolutions; the output of the first one is the distillation point."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        feature = torch.tanh(self.first(x))
        return self.second(feature), feature


class Bilevel:
    """A student, a teacher's feature and an MKD, small enough for finite differences."""

    def __init__(self, options: MKDOptions) -> None:
        torch.manual_seed(0)
        self.student = TinyStudent().double()
        self.method = MKD([4], [5], options).double()
        self.lr = torch.rand(2, 3, 6, 7, dtype=torch.float64)
        self.hr = torch.rand(2, 3, 6, 7, dtype=torch.float64)
        self.teacher = [torch.rand(2, 5, 6, 7, dtype=torch.float64)]
        self.theta = dict(self.student.named_parameters())
        self.phi = list(self.method.parameters())

    def distillation(self, theta: dict[str, Tensor]) -> Tensor:
        _, feature = functional_call(self.student, theta, (self.lr,))
        return self.method([feature], self.teacher)

    def descent(self, theta: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        _, feature = functional_call(self.student, theta, (self.lr,))
        loss, slopes, _ = self.method.gradient([feature], self.teacher, create_graph=True)
        gradients = torch.autograd.grad(
            feature,
            tuple(theta.values()),
            slopes,
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return loss, gradients

    def reconstruction(self, theta: dict[str, Tensor]) -> Tensor:
        sr, _ = functional_call(self.student, theta, (self.lr,))
        return (sr - self.hr).abs().mean()

    def meta_gradient(self, **arguments):
        return meta_gradient(self.descent, self.reconstruction, self.theta, self.phi, **arguments)

    def objective_after_shift(self, direction: list[Tensor], length: float, **arguments) -> float:
        with torch.no_grad():
            for p, d in zip(self.phi, direction, strict=True):
                p += length * d
        value = self.meta_gradient(**arguments).objective.item()
        with torch.no_grad():
            for p, d in zip(self.phi, direction, strict=True):
                p -= length * d
        return value

    def slope(self, direction: list[Tensor], **arguments) -> float:
        eps = 1e-7  # short, so that no term of the L1 losses changes its sign on the way
        ahead = self.objective_after_shift(direction, eps, **arguments)
        behind = self.objective_after_shift(direction, -eps, **arguments)
        return (ahead - behind) / (2 * eps)


FORMS = {
    "default": MKDOptions(grid=2),
    "attached": MKDOptions(grid=2, detach_kernels=False),
    "literal": MKDOptions.literal(grid=2),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_meta_gradient_agrees_with_finite_differences(form, optimizer, steps):
    bilevel = Bilevel(FORMS[form])
    arguments = {"optimizer": OPTIMIZERS[optimizer], "steps": steps}
    if optimizer == "adam":
        # The first Adam step is a sign, whose gradient is too small to tell right from wrong.
        arguments["state"] = warm_adam_state(bilevel)
    result = bilevel.meta_gradient(**arguments)
    for seed in range(3):
        torch.manual_seed(seed)
        direction = [torch.randn_like(p) for p in bilevel.phi]
        expected = bilevel.slope(direction, **arguments)
        actual = sum(float((g * d).sum()) for g, d in zip(result.gradients, direction, strict=True))
        assert abs(expected) > 1e-8
        assert actual == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_replayed_gradient_equals_unrolled(optimizer, steps, closing):
    bilevel = Bilevel(FORMS["default"])
    arguments = {
        "optimizer": OPTIMIZERS[optimizer],
        "steps": steps,
        "closing": gradient_of(bilevel.reconstruction) if closing else None,
        "state": warm_adam_state(bilevel) if optimizer == "adam" else None,
    }
    unrolled = bilevel.meta_gradient(**arguments, mode="unrolled")
    replayed = bilevel.meta_gradient(**arguments, mode="replayed")
    torch.testing.assert_close(replayed.objective, unrolled.objective)
    torch.testing.assert_close(replayed.inner_losses, unrolled.inner_losses)
    torch.testing.assert_close(replayed.parameters, unrolled.parameters)
    torch.testing.assert_close(replayed.gradients, unrolled.gradients, rtol=1e-9, atol=1e-14)
    assert max(float(g.abs().max()) for g in unrolled.gradients) > 0


def test_closing_step_on_reconstruction_agrees_with_finite_differences():
    bilevel = Bilevel(FORMS["default"])
    arguments = {
        "optimizer": OPTIMIZERS["sgd"],
        "steps": 2,
        "closing": gradient_of(bilevel.reconstruction),
    }
    result = bilevel.meta_gradient(**arguments)
    direction = [torch.ones_like(p) for p in bilevel.phi]
    actual = sum(float(g.sum()) for g in result.gradients)
    assert actual == pytest.approx(bilevel.slope(direction, **arguments), rel=1e-4)


def test_an_objective_that_holds_the_distillation_loss_counts_its_direct_gradient():
    bilevel = Bilevel(FORMS["default"])

    def objective(theta):
        return bilevel.reconstruction(theta) + 0.3 * bilevel.distillation(theta)

    def run(mode):
        return meta_gradient(
            bilevel.descent, objective, bilevel.theta, bilevel.phi, InnerSGD(0.05), 2, mode
        )

    torch.testing.assert_close(run("replayed").gradients, run("unrolled").gradients)
    without = bilevel.meta_gradient(optimizer=InnerSGD(0.05), steps=2)
    assert not torch.allclose(run("unrolled").gradients[0], without.gradients[0])


@pytest.mark.parametrize("optimizer", [InnerSGD(0.1, momentum=0.9), InnerAdam(0.1)])
def test_inner_optimizers_step_like_those_of_torch(optimizer):
    torch.manual_seed(0)
    parameter = torch.randn(5)
    trained = nn.Parameter(parameter.clone())
    if isinstance(optimizer, InnerSGD):
        stock = torch.optim.SGD([trained], lr=optimizer.lr, momentum=optimizer.momentum)
    else:
        stock = torch.optim.Adam([trained], lr=optimizer.lr, eps=optimizer.eps)
    state = optimizer.initial_state([parameter])
    ours = (parameter,)
    for _ in range(5):
        gradient = torch.randn(5)
        trained.grad = gradient.clone()
        stock.step()
        ours, state = optimizer.step(ours, [gradient], state)
        torch.testing.assert_close(ours[0], trained.data)


@pytest.mark.parametrize("mode", ["unrolled", "replayed"])
def test_adam_is_differentiable_where_gradients_are_exactly_zero(mode):
    phi = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    theta = {
        "alive": torch.tensor([1.0], dtype=torch.float64),
        "dead": torch.tensor([1.0], dtype=torch.float64),
    }

    def loss(theta):
        return phi[0] * theta["alive"].pow(3).sum() + phi[1] * torch.relu(-theta["dead"]).sum()

    result = meta_gradient(
        gradient_of(loss),
        lambda t: t["alive"].sum() + t["dead"].sum(),
        theta,
        [phi],
        InnerAdam(0.1),
        3,
        mode,
    )
    assert torch.isfinite(result.gradients[0]).all()
    torch.testing.assert_close(result.parameters["dead"], theta["dead"])


def test_the_student_is_not_changed():
    bilevel = Bilevel(FORMS["default"])
    before = {n: p.detach().clone() for n, p in bilevel.theta.items()}
    result = bilevel.meta_gradient(optimizer=InnerSGD(0.1), steps=2)
    for name, parameter in bilevel.student.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert not torch.equal(result.parameters[name], before[name]) or "second" in name


def test_no_inner_step_is_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Bilevel(FORMS["default"]).meta_gradient(optimizer=InnerSGD(0.1), steps=0)


def warm_adam_state(bilevel: Bilevel) -> tuple[Tensor, ...]:
    theta = tuple(bilevel.theta.values())
    adam = OPTIMIZERS["adam"]
    state = adam.initial_state(theta)
    torch.manual_seed(5)
    for _ in range(3):
        noise = [0.05 * torch.randn_like(p) for p in theta]
        _, state = adam.step(theta, noise, state)
    return state
