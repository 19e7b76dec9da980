"""The images of one scale that a student learns from, and the generator that learns to make them.

Algorithm 1 of the data-free paper has two alternating stages. Imitation, the student's steps on
images as they are, needs `images`; generation, a step of the generator, is `improve`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mkdext._system.device import sent
from mkdext._system.processes import processes
from mkdext._system.saved_state import SavedState
from mkdext.models import check_points, features_at, forward_with_features
from mkdext.models.handling import evaluation_mode, loss_of
from mkdext.synthesis import (
    FeatureStatistics,
    Generator,
    InstanceDiscriminator,
    MemoryBank,
    adversarial_loss,
    global_views,
    local_views,
    mean_pairwise_distance,
    procedural_images,
    reconstruction_loss,
)
from mkdext.synthesis.contrastive import discrimination_loss, pooled
from mkdext.synthesis.generator import LATENT
from mkdext.synthesis.randomness import Draw, random_for
from mkdext.training.data_free_options import DataFreeOptions
from mkdext.training.schedule import cosine
from mkdext.training.step import (
    TrainingFailed,
    apply,
    gradient_norm,
    require_finite,
    together,
)

_LEAST_CONTRAST = 1 / 255  # below which a student learns nothing
_LEAST_SHARE = 0.2  # of the diversity that images have before the generator is trained

_USUAL = 64  # images that tell the scale of features


class CollapseError(TrainingFailed):
    """The generator makes images that are constant or all the same."""


class ImageMaker:
    """What makes the images of one scale."""

    def __init__(
        self,
        options: DataFreeOptions,
        scale: int,
        teacher: nn.Module,
        points: Sequence[str],
        device: torch.device,
    ) -> None:
        """Make generator and discriminator, with weights from torch's global generator.

        Args:
            options: What to make.
            scale: Enlargement factor that the images are for.
            teacher: Network of that scale.
            points: Its sub-modules whose features the discriminator sees.
            device: Where to compute.

        Raises:
            ValueError: The bank is smaller than a batch.
        """
        self.options = options
        self.size = options.sizes[scale]
        self.teacher = teacher
        self.points = list(points)
        self.device = device
        self.generator: Generator | None = None
        self.discriminator: InstanceDiscriminator | None = None
        self.noise: Tensor | None = None
        self.least_diversity = 0.0
        """Mean distance of two images below which the generator has collapsed."""
        if not options.has_generator:
            return
        self.generator = Generator(self.size, options.generator.channels).to(device)
        self.trained: list[Tensor] = [*self.generator.parameters()]
        if options.generator.noise == "persistent":
            self.noise = torch.randn(options.batch_size, LATENT).to(device).requires_grad_()
            self.trained.append(self.noise)
        if options.is_contrastive:
            features = sum(m.channels for m in check_points(teacher, points, self.size))
            self.discriminator = InstanceDiscriminator(features).to(device)
            if device.type != "meta":
                self.discriminator.standardise(self._usual_features())
            self.trained += self.discriminator.parameters()
            self.bank = make_bank(options, features, device)
            self._waiting = torch.empty(0, 2 * features)
        self.optimizer = torch.optim.Adam(self.trained, options.generator.lr)
        if device.type != "meta":
            diversity = measured(self.samples(_USUAL))["image_diversity"].item()
            self.least_diversity = _LEAST_SHARE * diversity

    @torch.no_grad()
    def _usual_features(self) -> Tensor:
        """Features of images that vary about as much as photographs do, `[B, F]`."""
        random = random_for(self.options.seed, Draw.USUAL)
        images = procedural_images(_USUAL, self.size, self.size, random).to(self.device)
        return pooled(features_at(self.teacher, self.points, images))

    @torch.no_grad()
    def images(self, step: int) -> Tensor:
        """The batch of a student step, the same whenever it is asked for with the same generator.

        Args:
            step: Which one.

        Returns:
            `[B, 3, h, w]` in [0, 1], the rows of this process where several share the batch.
        """
        options = self.options
        random = random_for(options.seed, Draw.IMAGES, step)
        procedural = options.procedural_count
        rows = processes().rows(options.batch_size)
        return self._made(procedural, options.batch_size - procedural, random, rows)

    @torch.no_grad()
    def samples(self, count: int) -> Tensor:
        """Images to look at, `[count, 3, h, w]`, of the generator if there is one.

        They are made of the same noise whenever they are asked for.
        """
        random = random_for(self.options.seed, Draw.SAMPLES)
        return self._made(0, count, random) if self.generator else self._made(count, 0, random)

    def _made(
        self,
        procedural: int,
        generated: int,
        random: torch.Generator,
        rows: slice = slice(None),
    ) -> Tensor:
        parts, wanted = [], range(procedural + generated)[rows]
        if procedural:
            images = procedural_images(procedural, self.size, self.size, random)
            parts.append(sent(images[wanted.start : wanted.stop], self.device))
        if self.generator and generated:
            noise = torch.randn(generated, LATENT, generator=random)
            first, end = (max(place - procedural, 0) for place in (wanted.start, wanted.stop))
            if first < end:
                parts.append(self.generator(sent(noise[first:end], self.device)))
        return torch.cat(parts).contiguous(memory_format=torch.channels_last)

    def improve(self, step: int, student: nn.Module) -> dict[str, Tensor]:
        """Take one step of generator and discriminator (eq. 13; lines 17 to 22 of Algorithm 1).

        Args:
            step: The student step before it.
            student: The network that is to fail on what is made.

        Returns:
            Losses, gradient norm and diversity by name, scalars.

        Raises:
            NonFiniteError: One of them is NaN or infinite; nothing was changed by it.
        """
        assert self.generator is not None
        options, shared = self.options, processes()
        count = options.batch_size
        random, rows = random_for(options.seed, Draw.GENERATION, step), shared.rows(count)
        noise = self.noise
        if noise is None:
            noise = sent(torch.randn(count, LATENT, generator=random), self.device)
        images = self.generator(noise[rows])
        diversity = measured(shared.gathered(images.detach()))
        # As in the code of CMI, the other losses are of the views that serve as positives.
        seen = global_views(images, random, count, rows) if self.discriminator else images
        seen = seen.contiguous(memory_format=torch.channels_last)
        with FeatureStatistics(self.teacher) as statistics:
            enlarged, maps = forward_with_features(self.teacher, self.points, seen)
        with evaluation_mode(student):
            failed = student(seen)
        of_student, of_teacher = (loss_of(n, options.criterion) for n in (student, self.teacher))
        values = {"adversarial": adversarial_loss(enlarged, failed, of_student)}
        values["consistency"] = reconstruction_loss(seen, enlarged, of_teacher)
        if self.discriminator:
            whole = shared.gathered(pooled(maps).detach())
            values |= self._contrastive(self.discriminator, images, whole, random)
        if statistics.layers:
            values["statistics"] = statistics.loss()
        loss = options.weights.total(
            values["adversarial"],
            values["consistency"],
            values.get("contrastive"),
            values.get("statistics"),
        )
        gradients = torch.autograd.grad(loss, self.trained)
        losses = tuple(value.detach() for value in values.values())
        losses, gradients = together(losses, gradients)
        values = diversity | dict(zip(values, losses, strict=True))
        values["generator_gradient"] = gradient_norm(gradients)
        require_finite(values)
        rate = cosine(step, options.iterations, options.lr, options.lr_min) / options.lr
        for group in self.optimizer.param_groups:
            group["lr"] = options.generator.lr * rate
        apply(self.optimizer, self.trained, gradients)
        if self.discriminator and options.contrastive.bank_every == "round":
            self.bank.add(self._waiting)
        return values

    def end_stage(self) -> None:
        """Put the last batch into the bank, where that is done once in a stage."""
        if self.discriminator and self.options.contrastive.bank_every == "stage":
            self.bank.add(self._waiting)

    def _contrastive(
        self,
        discriminator: InstanceDiscriminator,
        images: Tensor,
        whole: Tensor,
        random: torch.Generator,
    ) -> dict[str, Tensor]:
        """The contrastive loss of images, given the features of all global views.

        Every process has it whole, for every image is compared with all others.
        """
        options, shared, count = self.options.contrastive, processes(), self.options.batch_size
        views = local_views(images, random, count, shared.rows(count))
        views = views.contiguous(memory_format=torch.channels_last)
        local = shared.gathered(pooled(features_at(self.teacher, self.points, views)))
        loss = discrimination_loss(
            discriminator,
            local,
            whole,
            self.bank.sample(options.negatives, random),
            options.temperature,
            options.positive_in_denominator,
        )
        with torch.no_grad():
            embeddings = discriminator(whole)
            distance = mean_pairwise_distance(embeddings) * math.sqrt(embeddings.shape[1])
        self._waiting = torch.cat((local, whole), dim=1).detach()
        return {"contrastive": loss, "embedding_diversity": distance}

    def state_dict(self) -> dict[str, Any]:
        """What `load` needs."""
        if self.generator is None:
            return {}
        state: dict[str, Any] = {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.noise is not None:
            state["noise"] = self.noise.detach()
        if self.discriminator is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["bank"] = self.bank.state_dict()
            state["waiting"] = self._waiting
        return state

    def load(self, state: SavedState) -> None:
        """Put everything back to what it was.

        Raises:
            ValueError: The state is of something else.
        """
        if self.generator is None:
            return
        state.load_module("generator", self.generator)
        state.load_optimizer("optimizer", self.optimizer)
        if self.noise is not None:
            noise = state.part("noise").tensor(self.noise, "noise")
            with torch.no_grad():
                self.noise.copy_(noise)
        if self.discriminator is not None:
            state.load_module("discriminator", self.discriminator)
            self._load_bank(state.part("bank"))
            waiting = state.part("waiting").tensor(self._waiting, "waiting", rows=True)
            self._waiting = waiting.to(self.device)

    def _load_bank(self, state: SavedState) -> None:
        empty = self.bank.state_dict()
        rows = state.part("rows").tensor(empty["rows"], "rows", rows=True)
        written = state.part("written").tensor(empty["written"], "written")
        if not written >= 0 or len(rows) != min(int(written), self.bank.capacity):
            raise state.unfit(f"does not fit (the bank holds {len(rows)} rows of {int(written)})")
        self.bank.load_state_dict({"rows": rows, "written": written})


def make_bank(options: DataFreeOptions, features: int, device: torch.device) -> MemoryBank:
    """An empty memory bank for two views of `features` numbers each.

    Raises:
        ValueError: It would be smaller than a batch.
    """
    least, given = options.batch_size * 2 * features * 4, options.contrastive.bank_bytes
    if given < least:
        raise ValueError(
            f"`contrastive.bank_bytes` must be at least {least}, {8 * features} bytes for each of "
            f"the {options.batch_size} images of a batch, got {given}"
        )
    return MemoryBank(2 * features, given, device)


@torch.no_grad()
def measured(images: Tensor) -> dict[str, Tensor]:
    """How different images are from each other, and how much contrast they have."""
    return {
        "image_diversity": mean_pairwise_distance(images),
        "image_contrast": images.flatten(2).std(dim=2).mean(),
    }


def require_different(values: Mapping[str, float], least_diversity: float) -> None:
    """Check what was `measured`, if it was.

    Raises:
        CollapseError: Images have hardly any contrast, or differ hardly at all.
    """
    for name, least, what in (
        ("image_contrast", _LEAST_CONTRAST, "images are of one colour, the deviation within them"),
        ("image_diversity", least_diversity, "images are all alike, their mean distance"),
    ):
        if values.get(name, math.inf) < least:
            raise CollapseError(
                f"the generator has collapsed: {what} is {values[name]:.2g}, below {least:.2g}"
            )
