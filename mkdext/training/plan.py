"""From options to a training that is ready to run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from mkdext.distill import MKD
from mkdext.models import check_points, create_model, default_points, resolve_teacher
from mkdext.training.memory import LiveBytes, available_bytes
from mkdext.training.options import TrainOptions
from mkdext.training.steps import Distillation, TrainingStep


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training ready to run: all that the options name was found and fits."""

    options: TrainOptions
    student: nn.Module
    step: TrainingStep
    memory: int
    """Bytes that a step needs, by estimate."""

    @property
    def student_parameters(self) -> int:
        """Number of trained parameters of the student."""
        return count_parameters(self.student)

    @property
    def teacher(self) -> nn.Module | None:
        """Who teaches, if anyone does."""
        return self.step.distillation.teacher if self.step.distillation else None


def prepare(options: TrainOptions) -> Plan:
    """Make the networks and check that everything fits, before any work is done.

    Raises:
        ValueError: The options do not go together, weights are not usable, or the memory does not
            suffice.
    """
    _check_device(options.device)
    memory = estimate_memory(options)
    available = available_bytes()
    if options.device == "cpu" and available is not None and memory > available:
        raise ValueError(
            f"a step needs about {memory / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are "
            "available: lower --batch-size or --patch-size, or take a smaller --student"
        )
    step = _make_step(options, torch.device(options.device))
    return Plan(options, step.student, step, memory)


def estimate_memory(options: TrainOptions) -> int:
    """Bytes that networks, optimizers and one step take up together, by a dry computation.

    It is done with few samples: PyTorch's own second derivative of a per-sample convolution, which
    stands for the operators there, takes its time for every sample.
    """
    meta, samples = torch.device("meta"), 2
    low, high = options.patch_size, options.patch_size * options.scale
    try:
        with LiveBytes() as memory:
            step = _make_step(options, meta)
            networks: int = memory.live
            lr = torch.empty(samples, 3, low, low, device=meta)
            step(0, lr, torch.empty(samples, 3, high, high, device=meta))
    except RuntimeError as error:
        raise ValueError(f"the sizes asked for are impossible: {error}") from None
    work: int = memory.peak - networks
    return networks + work * options.batch_size // samples


def count_parameters(model: nn.Module) -> int:
    """Number of trained parameters of a network."""
    return sum(p.numel() for p in model.parameters())


def _make_step(options: TrainOptions, device: torch.device) -> TrainingStep:
    with _seeded(options.seed, device):
        student = create_model(options.student, options.scale)
    teacher = None
    if options.method != "vanilla":
        teacher = resolve_teacher(options.teacher, options.teacher_weights, options.scale)
    student = _placed(student, device)
    optimizer = torch.optim.Adam(student.parameters(), options.lr, betas=(0.9, 0.999))
    if teacher is None:
        return TrainingStep(options, student, optimizer, None)
    teacher = _placed(teacher, device)
    student_points, teacher_points = default_points(student), default_points(teacher)
    channels = check_points(student, student_points), check_points(teacher, teacher_points)
    with _seeded(options.seed, device):
        method = MKD(*channels, options.mkd).to(device)
    method_optimizer = torch.optim.Adam(
        method.parameters(), options.meta.lr, weight_decay=options.meta.weight_decay
    )
    distillation = Distillation(teacher, teacher_points, student_points, method, method_optimizer)
    return TrainingStep(options, student, optimizer, distillation)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    # Weights are drawn on the CPU, so that they are the same on every device; on the meta device
    # there are none.
    with (
        torch.random.fork_rng(devices=[]),
        device if device.type == "meta" else torch.device("cpu"),
    ):
        torch.manual_seed(seed)
        yield


def _placed(model: nn.Module, device: torch.device) -> nn.Module:
    # Convolutions are faster in this layout, on CPUs as on GPUs.
    placed: nn.Module = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name} is not there ({torch.cuda.device_count()} CUDA devices); "
            "use --device cpu"
        )
