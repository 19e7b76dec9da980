"""A teacher that sees the high-resolution picture, trained in the run before its student (PISR)."""

from __future__ import annotations

import time

import torch
from rich.console import Console
from torch import Tensor, nn

from mkdext.data import PatchSampler
from mkdext.distill.pisr import PrivilegedEncoder, privileged_loss
from mkdext.models.own import copy_with_tensors
from mkdext.training.options import TrainOptions
from mkdext.training.origin import origin
from mkdext.training.progress import TrainingProgress
from mkdext.training.run_directory import RunDirectory
from mkdext.training.schedule import cosine
from mkdext.training.signals import StopSignals, TrainingStopped
from mkdext.training.steps import NonFiniteError, apply, gradient_norm, require_finite
from mkdext.training.teacher import Teacher
from mkdext.training.tensorboard import tensorboard

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

    def __init__(self, options: TrainOptions, network: PrivilegedNetwork) -> None:
        """Take resolved options and what is trained."""
        self.options = options
        self.network = network
        self.steps = options.privileged_iterations or options.iterations
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


def refuse_teacher_options(options: TrainOptions) -> None:
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
                f"{flag}: --method {options.method} trains a teacher of its own, {reason}; leave "
                f"out {flag} {given}"
            )


def train_privileged_teacher(
    options: TrainOptions,
    network: PrivilegedNetwork,
    student: nn.Module,
    run: RunDirectory,
    sampler: PatchSampler,
    console: Console,
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
        TrainingStopped: Ctrl-C or SIGTERM; the checkpoint of the last step is written.
    """
    step = PrivilegedStep(options, network)
    first, seconds = 0, 0.0
    if run.privileged_checkpoint.state.exists():
        state = run.privileged_checkpoint.load()
        network.load_state_dict(state["network"])
        step.optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
    if first < step.steps:
        run.keep_metrics_until(first, of="privileged_step")
        if first:
            console.print(f"going on after step {first} of {step.steps} of the privileged teacher")
        seconds = _run_steps(step, run, sampler, first, seconds, console)
    network.eval()
    student.load_state_dict(network.decoder.state_dict())
    return seconds


def _run_steps(
    step: PrivilegedStep,
    run: RunDirectory,
    sampler: PatchSampler,
    first: int,
    before: float,
    console: Console,
) -> float:
    options, title = step.options, "privileged teacher"
    begin = time.monotonic() - before

    def save(done: int) -> None:
        state = {
            "step": done,
            "seconds": time.monotonic() - begin,
            "network": step.network.state_dict(),
            "optimizer": step.optimizer.state_dict(),
        }
        run.privileged_checkpoint.save(state, step.network, origin(options, done))

    with (
        StopSignals() as stop,
        # Not among the student's: its events are purged when it begins or goes on.
        tensorboard(run.root / "tensorboard" / "privileged_teacher", first) as add_events,
        TrainingProgress(console, first, step.steps, options.batch_size, title) as progress,
    ):
        for index, pair in enumerate(sampler.batches(first, step.steps), first):
            lr, hr = (side.to(options.device, memory_format=torch.channels_last) for side in pair)
            try:
                results = step(index, lr, hr)
            except NonFiniteError as error:
                raise NonFiniteError(
                    f"step {index + 1} of the privileged teacher: {error}. "
                    f"Lower --lr (now {options.lr:g}) and give another --out"
                ) from None
            values = {name: value.item() for name, value in results.items()}
            values["privileged_lr"] = step.optimizer.param_groups[0]["lr"]
            done = index + 1
            last = done == step.steps
            shown = ("reconstruction", "imitation", "lr")
            progress.update(done, {name: values[f"privileged_{name}"] for name in shown})
            if done % options.log_every == 0 or last:
                values["patches_per_second"] = round(progress.patches_per_second, 1)
                # All before the student's first step.
                run.add_metrics({"step": 0, "privileged_step": done, **values})
                add_events({"step": done, **values})
            if done % options.checkpoint_every == 0 or last or stop.received:
                save(done)
            if stop.received:
                after = f"step {done} of the privileged teacher"
                raise TrainingStopped(stop.received, after, run.root)
    return time.monotonic() - begin
