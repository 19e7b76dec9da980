"""The options of a data-free training; each docstring is the help of the flag."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mkdext._system.field_types import check_types
from mkdext.methods import MKDOptions
from mkdext.synthesis import Criterion
from mkdext.synthesis.losses import LossWeights
from mkdext.training import recipes
from mkdext.training.options import (
    MetaOptions,
    MethodName,
    ResolvedShared,
    ResolvedTraining,
    SharedOptions,
    TrainOptions,
    at_least,
    positive,
    unused_of_method,
    values_of,
    values_of_method,
)
from mkdext.training.recipes import DataFreeRecipe, Recipes, check_recipe


@dataclasses.dataclass(frozen=True)
class GeneratorOptions:
    """How the generators are trained."""

    every: int = 10
    """Student steps from one step of a generator to the next (k of Algorithm 1; 50 in the code of
    DFSR); with 0 generators are never trained and stay the random networks that they begin as."""
    lr: float = 1e-4
    """Learning rate of Adam for generator, discriminator and persistent noise at the beginning; it
    falls like the student's (1e-5 in the data-free paper, 1e-3 in the code of CMI)."""
    channels: Literal[1, 3] = 3
    """3 makes images in colour, 1 grey ones for networks that see Y alone."""
    noise: Literal["fresh", "persistent"] = "fresh"
    """Noise that a generator is trained on: new in every step, or one lasting batch that is trained
    with it, as in Algorithm 1."""

    def __post_init__(self) -> None:
        """Check types and numbers."""
        check_types(self, "generator.")
        at_least(0, self, "every", prefix="generator.")
        positive(self, "lr", prefix="generator.")


@dataclasses.dataclass(frozen=True)
class ContrastiveOptions:
    """Contrastive model inversion."""

    temperature: float = 0.1
    """tau of eq. 12."""
    positive_in_denominator: bool = True
    """Count the other view of the same image in the denominator too, as the code of CMI does and
    eq. 12 does not."""
    bank_bytes: int = 4 << 20
    """Memory for the features of earlier images, for each scale."""
    bank_every: Literal["round", "stage"] = "round"
    """When images enter the bank: after each step of the generator, as in the code of CMI, or once
    at the end of each stage, as Algorithm 1 is printed."""
    negatives: int = 256
    """Most earlier images that a batch is told apart from (4096 in the code of CMI)."""

    def __post_init__(self) -> None:
        """Check types and numbers."""
        check_types(self, "contrastive.")
        positive(self, "temperature", prefix="contrastive.")
        at_least(1, self, "bank_bytes", prefix="contrastive.")
        at_least(0, self, "negatives", prefix="contrastive.")


@dataclasses.dataclass(frozen=True)
class DataFreeOptions(SharedOptions):
    """What to train without photographs, how long. Defaults make a training of minutes."""

    recipe: DataFreeRecipe | None = None
    """Options that go together: 'best' is what measures best, 'plain' has no more than the papers;
    default: 'best', of which other flags may change any."""
    scale: tuple[int, ...] = (4,)
    """Enlargement factors: 2, 3, 4 or 8. Of several, one is drawn at random in each step; student
    and teacher must then be networks whose weights serve for every scale, such as vdsr."""
    source: Literal["generator", "procedural", "mixed"] = "mixed"
    """Where images come from: generators, which are trained along with the student; random shapes
    and textures that follow rules; or both."""
    procedural_share: float = 0.5
    """Share of procedural images in each batch of --source mixed."""
    val_dir: tuple[Path, ...] = ()
    """Folders of photographs to measure on during the training and at its end, each reported by its
    name; default: the held-out built-in ones, at the end only."""
    stages: int = 1
    """Stages P in which the student grows: it begins with the first of P parts of its body, and
    each stage adds one."""
    error: Literal["l1", "squared"] = "l1"
    """Distance of pictures: absolute errors, as the papers print it, or squared ones, as in the
    code of DFSR."""
    reduction: Literal["mean", "sum"] = "mean"
    """How the errors of all pixels of a batch become one number; the code of DFSR sums."""
    optimizer: Literal["adam", "muon", "sgd"] = "adam"
    """The student's optimizer: 'adam' or 'muon', as for mkdext.train, or 'sgd', which is that of
    DFSR's code: momentum 0.9, weight decay 1e-4, gradients cut to the norm 0.4. By default its --lr
    is 0.1 and its --lr-min 1e-4; the --lr of muon is 0.004, and 0.001 for vdsr and vdsr-half."""
    weights: LossWeights = dataclasses.field(default_factory=LossWeights)
    """What the generators descend."""
    generator: GeneratorOptions = dataclasses.field(default_factory=GeneratorOptions)
    """The generators."""
    contrastive: ContrastiveOptions = dataclasses.field(default_factory=ContrastiveOptions)
    """Contrastive model inversion."""

    method: MethodName = "vanilla"
    """Method: 'vanilla' compares the enlarged pictures of student and teacher; every other
    name is a method of mkdext.train, used in addition."""
    iterations: int = 2000
    """Student steps in all stages together."""
    batch_size: int = 8
    """Images a step."""
    patch_size: int = 24
    """Width and height of an image in low-resolution pixels, a multiple of 4; of several scales at
    the smallest, and at the others such that the enlarged pictures have one size."""
    lr: float = 1e-3
    """Learning rate of the student at the beginning of each stage."""
    lr_min: float = 1e-5
    """Learning rate at the end of the cosine of each stage."""
    warmup: int = 20
    """Steps of each stage over which the learning rate first rises to its value."""
    mkd: MKDOptions = dataclasses.field(default_factory=lambda: MKDOptions(grid=4))
    """The knowledge representation networks."""
    meta: MetaOptions = dataclasses.field(default_factory=lambda: MetaOptions(every=4, lr=2e-3))
    """The meta-gradient."""
    validate_every: int = 500
    """Steps from one validation and one sheet of made images to the next."""
    checkpoint_every: int = 100
    """Steps from one checkpoint to the next."""
    log_every: int = 20
    """Steps from one line of metrics to the next."""
    out: Path = Path("runs/data-free")
    """Run directory; the same command continues the run that it finds there."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if self.privileged:
            raise ValueError(
                f"`method` {self.method} trains a teacher of its own on high-resolution "
                "photographs; take another `method`, or mkdext.train"
            )
        check_recipe(self)
        at_least(1, self, "stages")
        at_least(0, self.weights, "reconstruction", "contrastive", "statistics", prefix="weights.")
        if not self.scale or len(set(self.scale)) < len(self.scale):
            raise ValueError(f"`scale` must name scales, each once, got {self.scale}")
        if not 0 < self.procedural_share < 1:
            raise ValueError(
                f"`procedural_share` must be between 0 and 1, got {self.procedural_share}; for all "
                "or nothing there is `source`"
            )
        if self.is_contrastive and self.contrastive.bank_every == "stage" and self.stages == 1:
            raise ValueError(
                "`contrastive.bank_every` stage fills the bank when the student grows, which it "
                "does not in `stages` 1; take more stages, or `contrastive.bank_every` round"
            )
        if self.stages > 1 and (self.student_weights or self.student_init == "teacher"):
            what = "student_weights" if self.student_weights else "student_init"
            raise ValueError(
                f"`stages` must be 1 with `{what}` {getattr(self, what)}, got {self.stages}: the "
                "parts that a student grows by begin at random"
            )
        if self.stages > 1 and self.freeze:
            raise ValueError(
                f"`stages` must be 1 with `freeze` {' '.join(self.freeze)}, got {self.stages}"
            )
        if self.stages > self.iterations:
            raise ValueError(
                f"`stages` must be at most `iterations` {self.iterations}, got {self.stages}"
            )
        unit = self._unit()
        least = math.ceil(8 * max(self.scale) / min(self.scale) / unit) * unit
        if self.patch_size % unit or (self.has_generator and self.patch_size < least):
            raise ValueError(
                f"`patch_size` must be a multiple of {unit}, {least} or more with a generator, for "
                f"`scale` {' '.join(map(str, self.scale))}, got {self.patch_size}"
            )
        if self.optimizer == "sgd" and self.meta.inner_optimizer == "adam":
            raise ValueError(
                "`meta.inner_optimizer` adam begins with the student's own moments, which "
                "`optimizer` sgd has not; take `meta.inner_optimizer` sgd"
            )
        if self.trains_generator and self.batch_size < 2:
            raise ValueError(
                "`batch_size` must be at least 2, or there is nothing to tell an image apart from; "
                "or take `source` procedural or `generator.every` 0"
            )
        if self.source == "mixed" and not 0 < self.procedural_count < self.batch_size:
            raise ValueError(
                f"`procedural_share` {self.procedural_share} of `batch_size` {self.batch_size} is "
                f"{self.procedural_count} procedural and "
                f"{self.batch_size - self.procedural_count} generated images; there must be at "
                "least one of each"
            )

    @classmethod
    def by_recipe(cls, recipe: DataFreeRecipe | None = None, **options: Any) -> DataFreeOptions:
        """Options of a recipe, as the command makes them.

        Args:
            recipe: Which one; none: the best, of which `options` may change any.
            options: All that it leaves open.
        """
        usual = usual_data_free(recipe, options.get("optimizer"), options.get("student"))
        return dataclasses.replace(usual, **options)

    @property
    def recipes(self) -> Recipes:
        """Those of such trainings."""
        return recipes.DATA_FREE

    @property
    def procedural_count(self) -> int:
        """Procedural images in a batch."""
        share = {"generator": 0.0, "procedural": 1.0, "mixed": self.procedural_share}
        return round(share[self.source] * self.batch_size)

    @property
    def has_generator(self) -> bool:
        """Whether generators make images."""
        return self.source != "procedural"

    @property
    def trains_generator(self) -> bool:
        """Whether generators are trained."""
        return self.has_generator and self.generator.every > 0

    @property
    def is_contrastive(self) -> bool:
        """Whether there are discriminators and memory banks."""
        return self.trains_generator and self.weights.contrastive > 0

    @property
    def criterion(self) -> Criterion:
        """The distance of pictures."""
        return Criterion(self.error, self.reduction)

    @property
    def scales(self) -> tuple[int, ...]:
        """All enlargement factors."""
        return self.scale

    @property
    def sizes(self) -> dict[int, int]:
        """Width and height of an image by scale, in low-resolution pixels."""
        return {scale: self.patch_size * min(self.scale) // scale for scale in self.scale}

    def resolved(self) -> ResolvedDataFree:
        """The same options, with the method's own values where none were given."""
        return ResolvedDataFree(**values_of(self) | values_of_method(self))

    def _unit(self) -> int:
        """What the patch size must be a multiple of, so that a generator has its sizes."""
        multiple = 4 if self.has_generator else 1
        return math.lcm(
            *(s * multiple // math.gcd(s * multiple, min(self.scale)) for s in self.scale)
        )


@dataclasses.dataclass(frozen=True)
class ResolvedDataFree(ResolvedShared, DataFreeOptions):
    """Options of a data-free training in which nothing is left open.

    `DataFreeOptions.resolved` makes them.
    """

    def given(self) -> DataFreeOptions:
        """Options that resolve to these, in which all is open that this training does not use."""
        return DataFreeOptions(**values_of(self) | unused_of_method(self))


Options = TrainOptions | DataFreeOptions
"""What any training is given."""
Resolved = ResolvedTraining | ResolvedDataFree
"""What any training goes by."""


def usual_data_free(
    recipe: DataFreeRecipe | None = None,
    optimizer: str | None = None,
    student: str | None = None,
) -> DataFreeOptions:
    """The options that hold where none are given.

    Args:
        recipe: As in the options; none: the best one, but for the optimizer.
        optimizer: As in the options; each has learning rates of its own.
        student: As in the options; with muon so have networks.

    Raises:
        ValueError: There is no such recipe.

    Example:
        >>> usual_data_free(optimizer="sgd").lr
        0.1
    """
    recipes.require_known(recipe, recipes.DATA_FREE)
    values = dict(recipes.DATA_FREE[recipe or recipes.BEST])
    if recipe is None and optimizer is not None:
        values["optimizer"] = optimizer
    rates: dict[str, Mapping[str, Any]] = {
        # Each stage of a student that grows warms up anew.
        "muon": {n: rate for n, rate in recipes.muon_rates(student).items() if n != "warmup"},
        "sgd": {"lr": 0.1, "lr_min": 1e-4},
    }
    values |= rates.get(values["optimizer"], {})
    return DataFreeOptions(recipe=recipe, **values)
