"""One step of a training: the meta step of the method, then the student's own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mkdext._system.errors import WorkFailed
from mkdext._system.processes import averaged
from mkdext.meta import InnerAdam, InnerOptimizer, InnerSGD, gradient_of, meta_gradient
from mkdext.meta.meta_gradient import Descent, Parameters
from mkdext.methods import DistillationMethod
from mkdext.methods.base import MetaDefaults
from mkdext.metrics.losses import Loss
from mkdext.models import WHOLE, features_at, forward_with_features
from mkdext.models.gradient_watch import GradientWatch
from mkdext.models.handling import evaluation_mode
from mkdext.models.stand_ins import call_with
from mkdext.training.balance import EVERY, Balance
from mkdext.training.options import ResolvedMeta
from mkdext.training.schedule import Phase
from mkdext.training.teacher import Teacher, computing_in

_T = TypeVar("_T")


class Batch(NamedTuple):
    """What a student learns from in one step."""

    low: Tensor
    """`[B, 3, p, p]` in [0, 1]."""
    high: Tensor | None = None
    """`[N, 3, scale*p, scale*p]` in [0, 1] of the first N images; of the others, and of all where
    it is none, there is no truth."""
    maps: list[Tensor] | None = None
    """The teacher's feature maps; none: not known yet."""
    picture: Tensor | None = None
    """The teacher's enlarged picture; none: not known yet, or not needed."""
    scale: int = 0
    """Enlargement factor, where a student is trained at several."""


class Distillation(NamedTuple):
    """What is compared, and where."""

    points: list[str]
    """Sub-modules of the student."""
    method: DistillationMethod
    optimizer: torch.optim.Optimizer | None
    """Of those of the method's parameters that the meta-gradient trains; none: of no one's."""
    balance: Balance
    """How large the gradients usually are."""

    @property
    def meta_parameters(self) -> list[nn.Parameter]:
        """What the meta-gradient trains."""
        groups = self.optimizer.param_groups if self.optimizer else []
        return [parameter for group in groups for parameter in group["params"]]

    @property
    def adapters(self) -> dict[str, nn.Parameter]:
        """The method's other parameters, which are trained together with the student."""
        meta = set(map(id, self.meta_parameters))
        return {n: p for n, p in self.method.named_parameters() if id(p) not in meta}


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a step is computed."""

    meta: ResolvedMeta = dataclasses.field(
        default_factory=lambda: ResolvedMeta(**MetaDefaults()._asdict())
    )
    """The meta-gradient."""
    dtype: torch.dtype = torch.float32
    """What the student computes in, in its own steps."""
    criterion: Loss = functional.l1_loss
    """How far pictures are apart."""
    largest_gradient: float = math.inf
    """Norm to which the student's gradient is cut, and that of the adapters."""


class TrainingStep:
    """The computation of one student step, with a meta step before it when one is due."""

    def __init__(
        self,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        teacher: Teacher | None = None,
        distillation: Distillation | None = None,
        options: StepOptions | None = None,
    ) -> None:
        """Take what is trained.

        Args:
            student: Who.
            optimizer: Of the student's parameters and the method's adapters.
            teacher: Who teaches; none: no one.
            distillation: What is compared beside the pictures; none: nothing.
            options: How; none: by the defaults.
        """
        self.student = student
        self.optimizer = optimizer
        self.teacher = teacher
        self.distillation = distillation
        self.options = options or StepOptions()
        self.watch = GradientWatch(student)

    @property
    def takes_meta_gradient(self) -> bool:
        """Whether gradients are taken through gradients of the student."""
        return self.distillation is not None and self.distillation.optimizer is not None

    def __call__(self, step: int, batch: Batch, now: Phase) -> dict[str, Tensor]:
        """Compute all gradients of one step, then change the parameters.

        Args:
            step: Which one, from 0.
            batch: What to learn from.
            now: Learning rate and weights.

        Returns:
            Losses and gradient norms by name, scalars.

        Raises:
            NonFiniteError: One of them is NaN or infinite; no parameter was changed by it. On a GPU
                nothing waits for them here, see `mkdext.training.run.live`.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = now.lr
        distillation = self.distillation if now.distillation > 0 else None
        batch = self.taught(batch, distillation is not None, now.imitation > 0)
        reconstruction = self.reconstruction(batch, now.imitation)
        points = distillation.points if distillation else []
        values: dict[str, Tensor] = {}
        computed = None
        meta = self.options.meta
        if distillation and distillation.optimizer and step % meta.every == 0:
            if meta.rollback:
                computed = self.forward(points, batch.low)
            shared = computed[1] if computed and self.options.dtype == torch.float32 else None
            values |= self.meta_step(distillation, batch, reconstruction, shared)
        elif distillation:
            computed = self.forward(points, batch.low)
            distillation.method.observe(computed[1], batch.maps or [])
        sr, features = computed or self.forward(points, batch.low)
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        outputs, slopes, adapters = [], [], []
        adapter_gradients: tuple[Tensor, ...] = ()
        values["reconstruction"] = reconstruction(sr)
        if distillation:
            adapters = list(distillation.adapters.values())
            descent = distillation.method.gradient(features, batch.maps or [], parameters=adapters)
            values["distillation"] = descent.loss
            weight: Tensor | float = now.distillation
            if now.reconstruction > 0:
                if step % EVERY == 0:
                    both = averaged(
                        *_gradients(values["reconstruction"], parameters),
                        *_gradients(features, parameters, descent.maps),
                    )
                    count = len(parameters)
                    values |= distillation.balance.measure(
                        both[:count], both[count:], now.distillation
                    )
                weight = distillation.balance.weight(now.distillation)
            outputs += features
            slopes += [weight * slope for slope in descent.maps]
            adapter_gradients = tuple(weight * g for g in descent.parameters)
        if now.reconstruction > 0:
            outputs.append(values["reconstruction"])
            slopes.append(torch.full_like(values["reconstruction"], now.reconstruction))
        found = torch.autograd.grad(outputs, parameters, slopes, allow_unused=True)
        gradients = tuple(
            torch.zeros_like(p) if gradient is None else gradient
            for p, gradient in zip(parameters, found, strict=True)
        )
        # All in one message: what is known so far of this process's rows alone.
        own = {n: values[n].detach() for n in ("reconstruction", "distillation") if n in values}
        losses, gradients, adapter_gradients = together(
            tuple(own.values()), gradients, adapter_gradients
        )
        values |= zip(own, losses, strict=True)
        if now.reconstruction > 0:
            pairs = zip(found, gradients, strict=True)
            self.watch.add([None if own is None else whole for own, whole in pairs])
        values["student_gradient"] = gradient_norm(gradients)
        if self.options.largest_gradient < math.inf:
            gradients = self._cut(gradients)
            adapter_gradients = self._cut(adapter_gradients)
        values = {name: value.detach() for name, value in values.items()}
        require_finite(values)
        apply(self.optimizer, [*parameters, *adapters], gradients + adapter_gradients)
        return values

    def taught(self, batch: Batch, with_maps: bool, with_picture: bool = False) -> Batch:
        """A batch with what the teacher makes of it, as far as it is needed and not known yet.

        Args:
            batch: The batch.
            with_maps: Whether feature maps are needed.
            with_picture: Whether the enlarged picture is, where there is a larger one too.
        """
        if self.teacher is None:
            return batch
        maps, shown = batch.maps, batch.picture
        if maps is None and shown is not None and self.teacher.points == [WHOLE]:
            batch = batch._replace(maps=[shown])
        with_picture |= batch.high is None or len(batch.high) < len(batch.low)
        if not (with_maps and batch.maps is None) and not (with_picture and batch.picture is None):
            return batch
        if batch.high is None:
            taught = self.teacher.enlarged(batch.low)
        else:
            taught = self.teacher(batch.low, batch.high)
        return batch._replace(maps=taught.maps, picture=taught.picture if shown is None else shown)

    def statistics(self, batch: Batch) -> dict[str, float]:
        """What the method tells of itself on a batch; nothing where there is none."""
        if self.distillation is None:
            return {}
        if type(self.distillation.method).statistics is DistillationMethod.statistics:
            return {}  # It tells nothing, and the teacher need not run for it.
        with torch.no_grad(), evaluation_mode(self.student):
            features = features_at(self.student, self.distillation.points, batch.low)
        maps = self.taught(batch, with_maps=True).maps or []
        return self.distillation.method.statistics(features, maps)

    def forward(self, points: Sequence[str], low: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The student's picture and its feature maps, float32 whatever they are computed in.

        Args:
            points: Names of sub-modules.
            low: `[B, 3, p, p]` in [0, 1].
        """
        with computing_in(self.options.dtype, low):
            sr, features = forward_with_features(self.student, points, low)
        if self.options.dtype == torch.float32:  # or float64, if the parameters are
            return sr, features
        return sr.float(), [f.float() for f in features]

    def _cut(self, gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
        shorter = (self.options.largest_gradient / gradient_norm(gradients)).clamp(max=1)
        return tuple(gradient * shorter for gradient in gradients)

    def reconstruction(self, batch: Batch, share: float = 0.0) -> Callable[[Tensor], Tensor]:
        """The loss of a super-resolved batch: to the photograph, the teacher's picture, or both.

        Every image counts the same, and without a photograph the teacher's picture is the target.

        Args:
            batch: With the teacher's picture, where that is imitated.
            share: That of the teacher's picture, where there is a photograph too.
        """
        criterion = self.options.criterion
        high, picture = batch.high, batch.picture

        def loss(sr: Tensor) -> Tensor:
            if high is None:
                assert picture is not None
                return criterion(sr, picture)
            known = len(high)
            if not known:
                assert picture is not None
                return criterion(sr, picture)
            if known < len(sr):
                assert picture is not None
                weight = known / len(sr)
                others = criterion(sr[known:], picture[known:])
                return weight * to_both(sr[:known], high) + (1 - weight) * others
            return to_both(sr, high)

        def to_both(sr: Tensor, high: Tensor) -> Tensor:
            if not share:
                return criterion(sr, high)
            assert picture is not None
            imitated = criterion(sr, picture[: len(sr)])
            return (1 - share) * criterion(sr, high) + share * imitated

        return loss

    def meta_step(
        self,
        distillation: Distillation,
        batch: Batch,
        loss: Callable[[Tensor], Tensor],
        features: Sequence[Tensor] | None,
    ) -> dict[str, Tensor]:
        """Improve the method by the meta-gradient (MKD eq. 3), in float32.

        Args:
            distillation: The method, and where it looks.
            batch: With the teacher's feature maps.
            loss: Of what the student makes of it, `[B, 3, scale*p, scale*p]`.
            features: The student's in float32, with their graph, from which the inner loop begins;
                none: they are computed.
        """
        options = self.options.meta
        method, points = distillation.method, distillation.points
        low, maps_of_teacher = batch.low, batch.maps or []
        named = self.student.named_parameters()
        theta: dict[str, Tensor] = {f"student.{n}": p for n, p in named if p.requires_grad}
        theta |= {f"method.{name}": p for name, p in distillation.adapters.items()}
        # Batch normalisation keeps statistics of all that it has seen; of what the student only
        # tries here it shall keep none.
        buffers = {name: buffer.clone() for name, buffer in self.student.named_buffers()}
        if features is None:
            with torch.no_grad():
                _, seen = forward_with_features(self.student, points, low, buffers)
        else:
            seen = [feature.detach() for feature in features]
        method.observe(seen, maps_of_teacher)

        def inner(parameters: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
            student, adapters = split(parameters)
            at_first = all(parameters[name] is parameter for name, parameter in theta.items())
            maps = features if at_first else None
            if maps is None:
                _, maps = forward_with_features(self.student, points, low, student | buffers)
            own = list(adapters.values())
            descent = with_parameters(
                method, adapters, lambda: method.gradient(maps, maps_of_teacher, True, own)
            )
            gradients = torch.autograd.grad(
                maps,
                tuple(student.values()),
                descent.maps,
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            return descent.loss, gradients + descent.parameters

        def reconstruction(parameters: dict[str, Tensor]) -> Tensor:
            return loss(call_with(self.student, split(parameters)[0] | buffers, low))

        exact = _on_all_rows if not options.local else _on_own_rows
        phi = distillation.meta_parameters
        optimizer, state = self.inner_optimizer(theta)
        result = meta_gradient(
            exact(inner),
            reconstruction,
            theta,
            phi,
            optimizer,
            options.steps,
            options.mode,
            exact(gradient_of(reconstruction)) if options.closing_step else None,
            state,
        )
        ends = result.inner_losses[0], result.inner_losses[-1]
        (objective, first, last), gradients = together((result.objective, *ends), result.gradients)
        values = {
            "meta_objective": objective,
            "inner_first": first,
            "inner_last": last,
            "meta_gradient": gradient_norm(gradients),
        }
        if options.kappa:
            kept = method.once_differentiable(seen, maps_of_teacher)
            of_kept = averaged(
                *torch.autograd.grad(kept, phi, allow_unused=True, materialize_grads=True)
            )
            gradients, told = distillation.balance.of_method(gradients, of_kept, options.kappa)
            values |= told
        require_finite(values)
        if distillation.optimizer:
            apply(distillation.optimizer, phi, gradients)
        if not options.rollback:
            with torch.no_grad():
                for name, parameter in theta.items():
                    parameter.copy_(result.parameters[name])
        return values

    def inner_optimizer(
        self, theta: Mapping[str, Tensor]
    ) -> tuple[InnerOptimizer, tuple[Tensor, ...] | None]:
        """The update rule of the inner loop and its state, Adam's being the student's own."""
        options = self.options.meta
        rate = options.inner_lr or self.optimizer.param_groups[0]["lr"]
        if options.inner_optimizer != "adam":
            return InnerSGD(rate), None
        states = [self.optimizer.state[parameter] for parameter in theta.values()]
        if not all("exp_avg" in state for state in states):
            return InnerAdam(rate), None
        count = states[0]["step"].double()
        moments = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")]
        return InnerAdam(rate), (count, *moments[0], *moments[1])


def together(*parts: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], ...]:
    """The averages over all processes of several tuples of tensors, by one message."""
    whole = iter(averaged(*(tensor for part in parts for tensor in part)))
    return tuple(tuple(next(whole) for _ in part) for part in parts)


def _on_all_rows(descent: Descent) -> Descent:
    """A descent along the gradient of all processes' rows, given that of one's own."""

    def whole(parameters: Parameters) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss, gradients = descent(parameters)
        return loss, averaged(*gradients)

    return whole


def _on_own_rows(descent: Descent) -> Descent:
    return descent


def _gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    slopes: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of what another gradient is still to be taken of; zeros where there are none."""
    return torch.autograd.grad(
        outputs, inputs, slopes, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def split(parameters: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Those of the student and those of the method, by their names in these."""
    of: dict[str, dict[str, Tensor]] = {"student": {}, "method": {}}
    for name, parameter in parameters.items():
        owner, _, own_name = name.partition(".")
        of[owner][own_name] = parameter
    return of["student"], of["method"]


def with_parameters(
    module: nn.Module, parameters: Mapping[str, Tensor], function: Callable[[], _T]
) -> _T:
    """What a function gives while tensors stand in for parameters of a module."""
    replaced = {f"module.{name}": tensor for name, tensor in parameters.items()}
    result: _T = call_with(_Caller(module), replaced, function)
    return result


class _Caller(nn.Module):
    """Calls a function by its forward, the only method that `call_with` knows."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[[], _T]) -> _T:
        return function()


class TrainingFailed(WorkFailed):
    """Going on would lead nowhere."""


class NonFiniteError(TrainingFailed):
    """A loss, a gradient or a picture is NaN or infinite."""


class LifelessError(TrainingFailed):
    """The student has no gradient left."""


def require_finite(values: dict[str, Tensor]) -> None:
    """Raise `NonFiniteError` naming the first value that is NaN or infinite.

    Only on a CPU: a meta tensor has no value, and a GPU's are looked at by `Readings` later.
    """
    together = torch.stack(list(values.values()))
    if together.device.type != "cpu" or bool(torch.isfinite(together).all()):
        return
    name, value = next((n, v) for n, v in values.items() if not torch.isfinite(v))
    raise NonFiniteError(f"{name.replace('_', ' ')} is {value.item()}")


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together."""
    return torch.nn.utils.get_total_norm(gradients)


def apply(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor]
) -> None:
    """One step of a torch optimizer along given gradients.

    Raises:
        NonFiniteError: The learning rate makes it larger than a number can be.
    """
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    try:
        optimizer.step()
    except RuntimeError as error:
        if "without overflow" not in str(error):
            raise
        raise NonFiniteError("the optimizer's step is infinite") from None
    optimizer.zero_grad()
