"""A teacher that sees the high-resolution picture, trained in the run before its student (PISR)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mkdext._system.terminal import Terminal
from mkdext.data import PatchSampler
from mkdext.methods.pisr import PrivilegedEncoder, privileged_loss
from mkdext.models.own import copy_with_tensors, layout
from mkdext.training.loop import Done, Loop
from mkdext.training.options import ResolvedTraining
from mkdext.training.origin import origin
from mkdext.training.run_directory import RunDirectory
from mkdext.training.schedule import cosine
from mkdext.training.steps import TrainingFailed, apply, gradient_norm, require_finite
from mkdext.training.teacher import Teacher
from mkdext.training.transfer import transferred

_REFUSED = {
    "teacher": "made of an encoder and the student's network",
    "teacher_weights": "made of an encoder and the student's network",
    "teacher_points": "whose points are the student's",
}


class PrivilegedNetwork(nn.Module):
    """An encoder and a decoder: `[B, 3, scale*h, scale*w]` to the same shape, in [0, 1]."""

    def __init__(self, student: nn.Module, scale: int) -> None:
        """Make an encoder with random weights; the decoder begins as a copy of `student`."""
        super().__init__()
        self.encoder = PrivilegedEncoder(scale)
        self.decoder = copy_with_tensors(student, lambda tensor: tensor.detach().clone())

    def forward(self, hr: Tensor) -> Tensor:
        """Restore `hr` from what the encoder makes of it."""
        sr: Tensor = self.decoder(self.encoder(hr))
        return sr


class PrivilegedTeacher(Teacher):
    """A `PrivilegedNetwork` at work."""

    name = "privileged_teacher"
    network: PrivilegedNetwork

    def source(self, lr: Tensor, hr: Tensor) -> Tensor:
        """The high-resolution image."""
        return hr


class PrivilegedStep:
    """The computation of one step of the teacher's own training."""

    def __init__(self, options: ResolvedTraining, network: PrivilegedNetwork) -> None:
        """Take resolved options and what is trained."""
        self.options = options
        self.network = network
        self.steps = options.privileged_iterations
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, options.lr, betas=(0.9, 0.999))

    def __call__(self, step: int, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        """Compute the gradient of one step, then change the parameters.

        Args:
            step: Which one, from 0.
            lr: `[B, 3, p, p]` in [0, 1].
            hr: `[B, 3, scale*p, scale*p]` in [0, 1].

        Returns:
            Losses and gradient norm by name, scalars.

        Raises:
            NonFiniteError: One of them is NaN or infinite; no parameter was changed.
        """
        options = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(step, self.steps, options.lr, options.lr_min, options.warmup)
        encoded = self.network.encoder(hr)
        loss, reconstruction, imitation = privileged_loss(
            self.network.decoder(encoded), hr, encoded, lr
        )
        gradients = torch.autograd.grad(
            loss, self.parameters, allow_unused=True, materialize_grads=True
        )
        values = {
            "privileged_reconstruction": reconstruction.detach(),
            "privileged_imitation": imitation.detach(),
            "privileged_gradient": gradient_norm(gradients),
        }
        require_finite(values)
        apply(self.optimizer, self.parameters, gradients)
        return values


def refuse_teacher_options(options: ResolvedTraining) -> None:
    """Check that no option speaks of a teacher that is given.

    Raises:
        ValueError: One does; it is named.
    """
    for name, reason in _REFUSED.items():
        value = getattr(options, name)
        if value:
            flag = "--" + name.replace("_", "-")
            given = " ".join(value) if isinstance(value, tuple) else value
            raise ValueError(
                f"{flag}: `method` {options.method} trains a teacher of its own, {reason}; leave "
                f"out {flag} {given}"
            )


def train_privileged_teacher(
    options: ResolvedTraining,
    network: PrivilegedNetwork,
    student: nn.Module,
    run: RunDirectory,
    sampler: PatchSampler,
    console: Terminal,
) -> float:
    """Train the teacher, or go on with it, and start the student from its decoder.

    Args:
        options: Resolved ones.
        network: The teacher; it is left in evaluation mode.
        student: Takes over the decoder's weights.
        run: Where to write; it is opened.
        sampler: Makes the batches, the same ones that the student learns from.
        console: Where progress is shown.

    Returns:
        Seconds spent on the teacher's steps.

    Raises:
        NonFiniteError: A loss or gradient became NaN or infinite; the last checkpoint is kept.
        TrainingStopped: Ctrl-C, SIGTERM or SIGHUP; the checkpoint of the last step is written.
    """
    step = PrivilegedStep(options, network)
    done = Done(0, 0.0, {})
    if run.privileged_checkpoint.state.exists():
        state = run.privileged_checkpoint.load()
        done = Done.of(state, options, step.steps)
        state.load_module("network", network)
        state.load_optimizer("optimizer", step.optimizer)
    seconds = done.seconds
    if done.step < step.steps:
        run.keep_metrics_until(done.step, of="privileged_step")
        if done.step:
            after = f"step {done.step} of {step.steps} of the privileged teacher"
            console.say(f"going on after {after}")
        seconds = _Loop(step, run, sampler, done, console).run()
    network.eval()
    student.load_state_dict(network.decoder.state_dict())
    return seconds


class _Loop(Loop):
    """The steps of the teacher."""

    title = "privileged teacher"
    whose = " of the privileged teacher"
    shown = ("privileged_reconstruction", "privileged_imitation", "lr")

    def __init__(
        self,
        step: PrivilegedStep,
        run: RunDirectory,
        sampler: PatchSampler,
        done: Done,
        console: Terminal,
    ) -> None:
        super().__init__(step.options, step.steps, run, done, console)
        self.step = step
        device = torch.device(step.options.device)
        batches = sampler.batches(done.step, step.steps)
        self.batches = transferred(batches, device, layout(step.network.decoder))

    @property
    def events(self) -> Path:
        # Not among the student's: its events are purged when it begins or goes on.
        return super().events / "privileged_teacher"

    @property
    def lr(self) -> float:
        rate: float = self.step.optimizer.param_groups[0]["lr"]
        return rate

    def compute(self, step: int) -> dict[str, Tensor]:
        return self.step(step, *next(self.batches))

    def record(self, values: Mapping[str, Any]) -> None:
        own = {"privileged_lr" if name == "lr" else name: v for name, v in values.items()}
        # All before the student's first step.
        super().record({**own, "step": 0, "privileged_step": values["step"]})

    def save(self, done: Done) -> None:
        state = {
            **self.state(done),
            "network": self.step.network.state_dict(),
            "optimizer": self.step.optimizer.state_dict(),
        }
        made_by = origin(self.step.options, done.step, self.history)
        self.run_directory.privileged_checkpoint.save(state, self.step.network, made_by)

    def explained(self, error: TrainingFailed, step: int) -> str:
        return (
            f"step {step}{self.whose}: {error}. Lower `lr` (now {self.step.options.lr:g}) and give "
            "another `out`"
        )
