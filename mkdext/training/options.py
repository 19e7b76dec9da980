"""The options of a training; each docstring is the help of the flag."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro

from mkdext._system.field_types import check_types
from mkdext._system.near_names import did_you_mean
from mkdext.data import DEGRADATIONS, is_random_degradation, require_degradation
from mkdext.methods import MKDOptions, known_method, method_class, method_names
from mkdext.methods.base import MetaDefaults
from mkdext.metrics.losses import require_known_loss
from mkdext.models.user.interface import ColoursName
from mkdext.training import recipes
from mkdext.training.recipes import Recipes, TrainingRecipe, check_recipe


def known_methods() -> tuple[str, ...]:
    """What `method` may be: training without a teacher, and every method registered so far."""
    return ("vanilla", *method_names())


DegradationName = Annotated[
    str,
    tyro.conf.arg(metavar=f"{{{','.join(DEGRADATIONS)}}}|FILE.yaml"),
    pydantic.WithJsonSchema(
        {"anyOf": [{"enum": list(DEGRADATIONS)}, {"type": "string", "pattern": r"\.ya?ml$"}]}
    ),
]

MIXED_IN = ("zoom_in_share", "zoom_out_share", "made_share")
"""Shares of a batch that are no ordinary patches."""

MethodName = Annotated[
    str,
    tyro.conf.arg(metavar=f"{{{','.join(known_methods())}}}"),
    pydantic.WithJsonSchema(
        # The other form is that of a class of the user's.
        {"anyOf": [{"enum": list(known_methods())}, {"type": "string", "pattern": ":"}]}
    ),
]


@dataclasses.dataclass(frozen=True)
class MetaOptions:
    """How the distillation method is trained by the meta-gradient (MKD eq. 2 and 3)."""

    steps: int | None = None
    """Inner steps T on the distillation loss; default: as published with the method."""
    every: int = 1
    """Student steps from one meta step to the next; a larger number costs less."""
    inner_optimizer: Literal["sgd", "adam"] | None = None
    """Update rule of the inner loop; adam begins with the student's own moments, or with none where
    --optimizer muon moves the student; default: the method's."""
    inner_lr: float | None = None
    """Step length of the inner loop; default: 0.001, and with l2t-ww the student's own."""
    mode: Literal["unrolled", "replayed"] = "unrolled"
    """Keep the graph of all inner steps, or replay each step: the memory of one."""
    rollback: bool = True
    """Put the student back after the inner loop; otherwise it continues from there."""
    local: bool = False
    """With several processes: let each take the inner steps on its own part of the batch, which
    sends less and is no longer exactly what one process computes."""
    closing_step: bool | None = None
    """End the inner loop with one step on the reconstruction loss; default: as published (L2T-ww
    does)."""
    kappa: float | None = None
    """Weight of the gradient of the distillation loss beside the meta-gradient of the
    reconstruction loss, each brought to its own usual size; default: the method's. With 0, the MKD
    paper's formula, the student hardly approaches the teacher."""
    lr: float = 1e-4
    """Learning rate of Adam for the method's parameters."""
    weight_decay: float = 1e-4
    """Weight decay of the method's parameters."""

    def __post_init__(self) -> None:
        """Check types and numbers."""
        check_types(self, "meta.")
        at_least(1, self, "steps", "every", prefix="meta.")
        positive(self, "inner_lr", "lr", prefix="meta.")
        at_least(0, self, "kappa", "weight_decay", prefix="meta.")
        if self.local and not self.rollback:
            raise ValueError(
                "`meta.local` needs `meta.rollback`: without it the student would go on from "
                "another place in every process"
            )


@dataclasses.dataclass(frozen=True)
class SharedOptions:
    """What every training has. Defaults are those of the MKD paper, section 4.1."""

    student: str = "rcan-a"
    """Network to train: rcan-a, rcan-b, rcan-c, rcan-t, edsr-s, edsr-t, rdn-s, rdn-t, san-s, san-t,
    han-s, han-t, imdn-s, imdn-t, vdsr or vdsr-half; span-s, compact-s, plksr-s, safmn-s, mosr-s,
    swinir-s or spandrel:CLASS, of the package spandrel; or your own, package.module:factory or
    file.py:factory, a function or class that gives a torch.nn.Module. It takes RGB or Y images in
    [0, 1]. Whether it enlarges them, or sharpens images that are already enlarged, and which sizes
    it takes, is detected by running it."""
    student_options: tuple[str, ...] = ()
    """Arguments of your student's factory, as name=value; values are read as YAML, such as 64, 0.5,
    true, relu or [6, 6]."""
    student_weights: Path | None = None
    """Weights that the student begins with (.safetensors or .pt); of a file that fits in part, with
    other blocks or another scale, those that fit by name and shape."""
    student_init: Literal["random", "teacher"] = "random"
    """What the student begins as: random weights, or blocks and channels of its teacher, those that
    count most; the teacher must then be a network of the same family, as large or larger. With
    --method vanilla that is all that it takes of a teacher."""
    freeze: tuple[str, ...] = ()
    """Parameters of the student that are not trained, or sub-modules of which none is, such as head
    or body.*.weight (a * stands for characters other than dots)."""
    teacher: str | None = None
    """Network to learn from: 'builtin' (comes with the package, x4); the name of the network that
    the teacher's weights must fit, as for --student; or your own, named like a student; default:
    the network that the weights belong to, one of this package or of the package spandrel."""
    teacher_options: tuple[str, ...] = ()
    """Arguments of your teacher's factory, in the form of --student-options."""
    teacher_weights: Path | None = None
    """Weights of the teacher (.safetensors or .pt); default: the built-in teacher's, or those that
    your factory loads."""
    teacher_range: ColoursName | None = None
    """Colours that your teacher takes and gives: 1 or 255, which is white; '-1..1'; '1-bgr' and
    '255-bgr', blue before green and red; '1-mean' and '255-mean', less the mean of DIV2K; or
    '1-to-255', which gives others than it takes. Default: those with which it enlarges photographs
    best."""
    allow_weak_teacher: bool = False
    """Accept a teacher that enlarges photographs worse than bicubic does."""
    student_points: tuple[str, ...] = ()
    """Sub-modules of the student whose feature maps are distilled, such as body.0 body.2 or body.*
    (a * stands for characters other than dots); default: evenly spaced ones that the network
    names."""
    teacher_points: tuple[str, ...] = ()
    """Sub-modules of the teacher, as many as of the student. Maps of another size are resized to
    the student's by bilinear interpolation."""
    method: MethodName = "mkd"
    """Method: 'mkd' is meta knowledge distillation, 'vanilla' has no teacher; or your own class
    derived from mkdext.methods.DistillationMethod, as package.module:Class or file.py:Class."""
    method_options: tuple[str, ...] = ()
    """Options of the method, in the form of --student-options; they override those under --mkd."""
    method_training: Literal["published", "plain", "meta"] = "published"
    """How the method's own parameters are trained: 'plain', together with the student; 'meta', by
    the meta-gradient; 'published', as published with the method."""

    iterations: int = 300_000
    """Student steps."""
    batch_size: int = 16
    """Patches a step."""
    patch_size: int = 48
    """Width and height of a patch in low-resolution pixels."""
    lr: float = 1e-4
    """Learning rate of Adam at the beginning."""
    lr_min: float = 5e-6
    """Learning rate at the end of the cosine."""
    warmup: int = 0
    """Steps over which the learning rate first rises to its value."""

    kd_weight: float | None = None
    """Weight of the distillation loss beside the reconstruction loss; default: 0 for response with
    --imitation 1, which is the same loss, else as published with the method, and 0.01 for mkd."""
    kd_ratio: float | None = None
    """Instead of a weight: how many times the gradient of the reconstruction loss that of the
    distillation loss shall be; the weight follows both."""
    kd_maps: Literal["whitened", "raw"] = "whitened"
    """What methods compare: feature maps on a common scale, the teacher's with mean 0 and variance
    1 in each channel, or as the networks have them."""
    kd_fade: bool = True
    """Let the weight of the distillation loss fall to 0 along half a cosine."""
    hint_share: float = 0.0
    """Share of the steps that train on the distillation loss alone, before those on reconstruction
    alone, each with a cosine of its own (FitNet's stage-wise training); 0 trains on both losses
    together."""

    mkd: MKDOptions = dataclasses.field(default_factory=MKDOptions)
    """The knowledge representation networks."""
    meta: MetaOptions = dataclasses.field(default_factory=MetaOptions)
    """The meta-gradient."""

    validate_every: int = 1000
    """Steps from one validation to the next."""
    checkpoint_every: int = 500
    """Steps from one checkpoint to the next."""
    log_every: int = 50
    """Steps from one line of metrics to the next."""
    seed: int = 0
    """Seed of the weights and of the order of the patches."""
    device: str = "cpu"
    """Where to compute: 'cpu', 'cuda' or 'cuda:N'."""
    stock_convolutions: bool = False
    """Compute all 3x3 convolutions by PyTorch. On a CPU Winograd kernels are faster, and differ by
    rounding; a run keeps those that it was begun with."""
    out: Path = Path("runs/train")
    """Run directory; the same command continues the run that it finds there."""

    def __post_init__(self) -> None:
        """Check types and numbers."""
        check_types(self)
        at_least(
            1,
            self,
            "iterations",
            "batch_size",
            "patch_size",
            "validate_every",
            "checkpoint_every",
            "log_every",
        )
        positive(self, "lr")
        at_least(0, self, "lr_min", "warmup", "kd_weight")
        positive(self, "kd_ratio")
        if self.kd_ratio is not None and self.kd_weight not in (None, self.kd_ratio):
            raise ValueError(
                f"`kd_ratio` {self.kd_ratio:g} sets the weight that `kd_weight` {self.kd_weight:g} "
                "would fix; leave one of them out"
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"`seed` must be at least 0 and below 2^63, got {self.seed}")
        if self.student_weights is not None and self.student_init == "teacher":
            raise ValueError(
                f"`student_init` must be random with `student_weights` {self.student_weights}, got "
                "teacher"
            )
        if self.lr_min > self.lr:
            raise ValueError(f"`lr_min` must be at most `lr` {self.lr}, got {self.lr_min}")
        if not 0 <= self.hint_share < 1:
            raise ValueError(f"`hint_share` must be at least 0 and below 1, got {self.hint_share}")
        known = known_methods()
        if self.method != "vanilla" and not known_method(self.method):
            raise ValueError(
                f"`method` must be one of {', '.join(known)}, got {self.method!r}"
                f"{did_you_mean(self.method, known)}"
            )

    @property
    def privileged(self) -> bool:
        """Whether the method trains a teacher of its own, which sees high resolution."""
        return self.method != "vanilla" and method_class(self.method).privileged


@dataclasses.dataclass(frozen=True)
class TrainOptions(SharedOptions):
    """What to train, on what, how long. Defaults are those of the MKD paper, section 4.1."""

    recipe: TrainingRecipe | None = None
    """Options that go together: 'best' is what measures best, 'mkd-paper' the MKD paper's method,
    'plain' training without a teacher; default: 'best', of which other flags may change any."""
    scale: int = 4
    """Enlargement factor: 2, 3, 4 or 8."""
    train_dir: tuple[Path, ...] = ()
    """Folders of photographs to train on; default: the built-in photographs."""
    val_dir: tuple[Path, ...] = ()
    """Folders of photographs to measure on, each reported by its name; default: the held-out
    built-in ones."""
    train_low_dir: tuple[Path, ...] = ()
    """Folders of low-resolution pictures. With --train-dir, one for each of its folders: 0001.png
    there belongs to 0001.png, 0001x4.png, 0001_x4.png or 0001x4m.png here. Without --train-dir
    nobody knows larger versions: the teacher's pictures are learned from, and without --val-dir
    some pictures are held out, on which the student is compared with its teacher."""
    crop: bool = False
    """Cut photographs and those of --train-low-dir whose sizes do not fit, such as those that
    MATLAB rounds up, at the right and the bottom to what they share."""
    degradation: DegradationName = "bicubic"
    """What makes low-resolution versions of photographs, to measure on too: 'bicubic' is MATLAB's;
    'bilinear', 'area' and 'lanczos' are other kernels; 'realesrgan' draws blur, size, noise and
    JPEG at random in two orders; a YAML file has its parameters."""
    bad_images: Literal["refuse", "skip"] = "refuse"
    """What to do with training photographs that are broken or too small; all are listed first."""
    small_images: Literal["refuse", "skip", "pad"] | None = None
    """What to do with those that are smaller than a patch: 'pad' continues them by their mirror
    image, 'skip' leaves them out; default: as --bad-images."""

    optimizer: Literal["adam", "muon"] = "adam"
    """The student's optimizer. 'muon' orthogonalises the momentum of convolution kernels and moves
    all else by Adam; small networks get much better with it in as many steps. Its --lr is 0.004 by
    default, 0.001 for vdsr and vdsr-half."""

    teacher_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the teacher computes, and of its cache. bfloat16 halves the cache, and is fast
    only where the hardware supports it."""
    student_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the student computes its own steps; weights, losses and the whole meta-gradient
    are float32. bfloat16 is fast only where the hardware supports it."""
    teacher_compile: bool = False
    """Compile the teacher with torch.compile, which takes a minute or more before the first
    step."""
    teacher_cache: Path | None = None
    """Folder for what the teacher makes of the photographs, computed once and read in every later
    step and training."""
    teacher_cache_keeps: Literal["maps", "pictures"] | None = None
    """What is in --teacher-cache: 'maps', the teacher's feature maps of a fixed set of crops, from
    which all patches are taken then; or 'pictures', its enlarged versions of whole photographs, so
    that patches are new in every step; default: maps for a method that compares feature maps."""
    teacher_cache_crops: int = 4096
    """Number of crops in --teacher-cache, to which more can be added later; and of made images that
    it keeps pictures of."""

    loss: str = "l1"
    """Loss between the student's picture and the photograph: l1, charbonnier, l2 or fft; or your
    own function, as package.module:function or file.py:function, which takes two batches of
    pictures [B, 3, H, W] in [0, 1], the student's first, and returns a scalar."""
    imitation: float = 0.0
    """Share of the reconstruction loss that is taken against the teacher's picture instead of the
    photograph, with any method; at the first step, where it changes."""
    imitation_end: float | None = None
    """The same share at the end, to which it goes along a straight line; default: it stays."""

    zoom_in_share: float = 0.0
    """Share of each batch in which photographs are shown twice as large as usual. Nobody knows a
    larger version of these, so the teacher's picture is the target."""
    zoom_out_share: float = 0.0
    """The same for photographs half as large as usual."""
    made_share: float = 0.0
    """The same for images that are made by rules."""
    augment_colours: bool = False
    """Permute the channels of each sample at random and invert them in half of the samples, in all
    its versions alike."""

    privileged_iterations: int | None = None
    """Steps before the student's in which --method pisr trains its teacher, which sees the
    high-resolution patches; default: as many as the student's."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        check_recipe(self)
        at_least(1, self, "scale", "teacher_cache_crops", "privileged_iterations")
        require_known_loss(self.loss)
        for name in ("imitation", "imitation_end"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"`{name}` must be from 0 to 1, got {share}")
            if share and self.method == "vanilla":
                raise ValueError(
                    f"`{name}` must be 0 with `method` vanilla, which has no teacher, got {share}"
                )
        self._check_pictures()
        self._check_mixture()

    def _check_pictures(self) -> None:
        require_degradation(self.degradation)
        folders, low = len(self.train_dir), len(self.train_low_dir)
        if folders and low and folders != low:
            raise ValueError(
                f"`train_low_dir` must name one folder for each of the {folders} of `train_dir`, "
                f"got {low}"
            )
        if low and self.degradation != "bicubic":
            raise ValueError(
                f"`degradation` {self.degradation}: `train_low_dir` has the low-resolution "
                "versions; leave one of them out"
            )
        if self.crop and not (folders and low):
            raise ValueError(
                "`crop` cuts photographs of `train_dir` to those of `train_low_dir`; give both, or "
                "leave `crop` out"
            )
        if self.low_only:
            self._check_needs_no_truth()
        name = next((n for n in ("zoom_in_share", "zoom_out_share") if getattr(self, n)), None)
        if name and (self.low_only or is_random_degradation(self.degradation)):
            why = (
                "`train_low_dir` has no photographs"
                if self.low_only
                else f"it would show them without `degradation` {self.degradation}"
            )
            raise ValueError(f"`{name}` must be 0, for {why}, got {getattr(self, name)}")

    def _check_needs_no_truth(self) -> None:
        fix = "give photographs by `train_dir` too, or "
        if self.method == "vanilla" or self.privileged:
            raise ValueError(
                f"`method` {self.method} learns from photographs, and `train_low_dir` alone has "
                f"none: {fix}take a `method` that learns from a teacher"
            )
        for name in ("imitation", "imitation_end"):
            if getattr(self, name) not in (None, 1):
                raise ValueError(
                    f"`{name}` must be 1 with `train_low_dir` alone, for only the teacher knows "
                    f"larger versions, got {getattr(self, name):g}: {fix}take 1"
                )

    def _check_mixture(self) -> None:
        for name in MIXED_IN:
            share = getattr(self, name)
            if not 0 <= share < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, got {share}")
            if share and (self.method == "vanilla" or self.privileged):
                raise ValueError(
                    f"`{name}` must be 0 with `method` {self.method}, which has no teacher that "
                    f"enlarges such images, got {share}"
                )
            if share and not self.mixture[name]:
                raise ValueError(
                    f"`{name}` {share} of `batch_size` {self.batch_size} rounds to no sample: give "
                    f"{1 / self.batch_size:.3g} or more, or a larger batch"
                )
        taken = sum(self.mixture.values())
        if taken >= self.batch_size:
            raise ValueError(
                f"`zoom_in_share`, `zoom_out_share` and `made_share` must leave an ordinary patch "
                f"of `batch_size` {self.batch_size}, they take {taken}"
            )

    @classmethod
    def by_recipe(cls, recipe: TrainingRecipe | None = None, **options: Any) -> TrainOptions:
        """Options of a recipe, as the command makes them.

        Args:
            recipe: Which one; none: the best, of which `options` may change any.
            options: All that it leaves open.

        Example:
            >>> TrainOptions.by_recipe(train_dir=(Path("photographs"),), seed=1).optimizer
            'muon'
        """
        given = (options.get(name) for name in ("method", "optimizer", "student"))
        folders = options.get("train_dir") or options.get("train_low_dir", ())
        usual = usual_training(folders, recipe, *given)
        return dataclasses.replace(usual, **options)

    @property
    def low_only(self) -> bool:
        """Whether there are low-resolution pictures to train on, and nothing else."""
        return bool(self.train_low_dir) and not self.train_dir

    @property
    def recipes(self) -> Recipes:
        """Those of such trainings."""
        return recipes.TRAINING

    @property
    def mixture(self) -> dict[str, int]:
        """How many samples of a batch are none of the usual, by the option that asks for them."""
        shares = {name: getattr(self, name) for name in MIXED_IN}
        return {name: round(share * self.batch_size) for name, share in shares.items() if share}

    @property
    def scales(self) -> tuple[int, ...]:
        """All enlargement factors."""
        return (self.scale,)

    @property
    def smallest_photograph(self) -> int:
        """Width and height that a photograph must have, or a low-resolution picture alone."""
        scale = 1 if self.low_only else self.scale
        return self.patch_size * scale * (2 if self.zoom_out_share else 1)

    @property
    def sizes(self) -> dict[int, int]:
        """Width and height of a patch by scale, in low-resolution pixels."""
        return {self.scale: self.patch_size}

    def resolved(self) -> ResolvedTraining:
        """The same options, with the method's own values where none were given."""
        values = values_of(self) | values_of_method(self)
        if self.imitation_end is None:
            values["imitation_end"] = self.imitation
        if self.teacher_cache_keeps is None:
            values["teacher_cache_keeps"] = _usually_kept(self, values["kd_weight"])
        if self.privileged_iterations is None:
            values["privileged_iterations"] = self.iterations
        return ResolvedTraining(**values)


@dataclasses.dataclass(frozen=True)
class ResolvedMeta(MetaOptions):
    """How the method is trained by the meta-gradient, nothing left open.

    Without `inner_lr` the inner steps are as long as the student's own.
    """

    steps: int = dataclasses.field(kw_only=True)
    inner_optimizer: Literal["sgd", "adam"] = dataclasses.field(kw_only=True)
    closing_step: bool = dataclasses.field(kw_only=True)
    kappa: float = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class ResolvedShared(SharedOptions, ABC):
    """What every training has, nothing left open."""

    kd_weight: float = dataclasses.field(kw_only=True)
    meta: ResolvedMeta = dataclasses.field(kw_only=True)

    @abstractmethod
    def given(self) -> SharedOptions:
        """Options that resolve to these, in which all is open that this training does not use."""


@dataclasses.dataclass(frozen=True)
class ResolvedTraining(ResolvedShared, TrainOptions):
    """Options of a training in which nothing is left open; `TrainOptions.resolved` makes them."""

    teacher_cache_keeps: Literal["maps", "pictures"] = dataclasses.field(kw_only=True)
    imitation_end: float = dataclasses.field(kw_only=True)
    privileged_iterations: int = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        """Check what depends on the method's own values."""
        super().__post_init__()
        asks = [*self.mixture, *["augment_colours"] * self.augment_colours]
        keeps_maps = self.teacher_cache is not None and self.teacher_cache_keeps == "maps"
        if asks and keeps_maps and self.method != "vanilla" and not self.privileged:
            raise ValueError(
                f"`{asks[0]}`: `teacher_cache` keeps feature maps of ordinary patches only; leave "
                "one of them out, or let the teacher compute the maps by `teacher_cache_keeps` "
                "pictures"
            )
        is_kept = self.teacher_cache is not None and self.method != "vanilla"
        keeps_pictures = is_kept and not self.privileged and not keeps_maps
        if keeps_pictures and is_random_degradation(self.degradation):
            raise ValueError(
                f"`teacher_cache_keeps` pictures: `degradation` {self.degradation} shows another "
                "version of each photograph in every step, of which no picture can be kept; take "
                "`teacher_cache_keeps` maps, of a fixed set of crops, or leave `teacher_cache` out"
            )

    @property
    def imitates(self) -> bool:
        """Whether the teacher's picture is looked at."""
        return self.imitation > 0 or self.imitation_end > 0 or bool(self.mixture)

    def given(self) -> TrainOptions:
        """Options that resolve to these, in which all is open that this training does not use."""
        values = values_of(self) | unused_of_method(self)
        if self.imitation_end == self.imitation:
            values["imitation_end"] = None
        if self.teacher_cache_keeps == _usually_kept(self, self.kd_weight):
            values["teacher_cache_keeps"] = None
        if not self.privileged and self.privileged_iterations == self.iterations:
            values["privileged_iterations"] = None
        return TrainOptions(**values)


def values_of(options: Any) -> dict[str, Any]:
    """The fields of a dataclass by their names."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


def values_of_method(options: SharedOptions) -> dict[str, Any]:
    """`kd_weight` and `meta`, with the method's own values where none were given.

    Without a teacher there is no distillation loss: its weight is 0. With `kd_ratio` the weight is
    that ratio, of gradients that are brought to one size.
    """
    weight, published = _of_method(options.method)
    if _is_imitation_alone(options):
        weight = 0.0
    if options.kd_ratio is not None:
        weight = options.kd_ratio
    open_ = {n: v for n, v in published._asdict().items() if getattr(options.meta, n) is None}
    return {
        "kd_weight": weight if options.kd_weight is None else options.kd_weight,
        "meta": ResolvedMeta(**values_of(options.meta) | open_),
    }


def unused_of_method(options: ResolvedShared) -> dict[str, Any]:
    """`kd_weight` and `meta` as they can have been given; open what a method without teacher had.

    So another method has values of its own where it takes over the options of such a training.
    """
    weight, published = _of_method("vanilla")
    meta = values_of(options.meta)
    is_open = not options.kd_weight and _is_imitation_alone(options)
    given = None if is_open or options.kd_ratio is not None else options.kd_weight
    if options.method != "vanilla":
        return {"kd_weight": given, "meta": MetaOptions(**meta)}
    unused = {name: None for name, value in published._asdict().items() if meta[name] == value}
    return {
        "kd_weight": None if given == weight else given,
        "meta": MetaOptions(**meta | unused),
    }


def _usually_kept(options: SharedOptions, kd_weight: float) -> Literal["maps", "pictures"]:
    """What a cache of the teacher keeps where that was not given."""
    if isinstance(options, TrainOptions) and is_random_degradation(options.degradation):
        return "maps"  # Of whole photographs there are as many versions as steps.
    if options.method == "vanilla" or method_class(options.method).compares == "pictures":
        return "pictures"
    return "maps" if options.privileged or kd_weight or options.hint_share else "pictures"


def _is_imitation_alone(options: SharedOptions) -> bool:
    """Whether the loss of the method would be that of the pictures once more."""
    return (
        options.method == "response"
        and isinstance(options, TrainOptions)
        and options.imitation == 1
        and options.imitation_end in (None, 1)
    )


def _of_method(name: str) -> tuple[float, MetaDefaults]:
    if name == "vanilla":
        return 0.0, MetaDefaults()
    method = method_class(name)
    return method.published_weight, method.published_meta


def at_least(least: float, options: object, *names: str, prefix: str = "") -> None:
    """Check that options, where they are given, are finite and not smaller than `least`.

    Integers must also be below 2^53, so that PyTorch can count what they make.

    Raises:
        ValueError: One is not.
    """
    for name in names:
        value = getattr(options, name)
        if isinstance(value, int) and value >= 2**53:
            raise ValueError(f"`{prefix}{name}` must be below 2^53, got {value}")
        if value is not None and not (value >= least and math.isfinite(value)):
            raise ValueError(f"`{prefix}{name}` must be at least {least}, got {value}")


def positive(options: object, *names: str, prefix: str = "") -> None:
    """Check that options are positive and finite.

    Raises:
        ValueError: One is not.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"`{prefix}{name}` must be positive, got {value}")


BUILTIN_DEMO = TrainOptions(
    iterations=1500,
    batch_size=8,
    patch_size=24,
    lr=1e-3,
    lr_min=1e-5,
    warmup=20,
    mkd=MKDOptions(grid=4),
    meta=MetaOptions(every=4, lr=2e-3),
    validate_every=250,
    checkpoint_every=100,
    log_every=10,
    out=Path("runs/demo"),
)
"""A training of minutes on two cores, on the built-in photographs."""


def usual_training(
    train_dir: Collection[Path],
    recipe: TrainingRecipe | None = None,
    method: str | None = None,
    optimizer: str | None = None,
    student: str | None = None,
) -> TrainOptions:
    """The options that hold where none are given: lengths of the MKD paper, or short ones.

    Args:
        train_dir: Folders to train on; none: a training on the built-in photographs.
        recipe: As in the options; none: the best one, with what follows in its place.
        method: As in the options, if it is given.
        optimizer: Likewise.
        student: Likewise; networks differ in the rate that they are trained well at.

    Raises:
        ValueError: There is no such recipe.

    Example:
        >>> usual_training((), method="vanilla").imitation
        0.0
    """
    recipes.require_known(recipe, recipes.TRAINING)
    options = TrainOptions() if train_dir else BUILTIN_DEMO
    values = dict(recipes.TRAINING[recipe or recipes.BEST])
    if recipe is None:
        given = {"method": method, "optimizer": optimizer}
        values |= {name: value for name, value in given.items() if value is not None}
        if not _has_teacher_of_pictures(values["method"]):
            values["imitation"] = 0.0
    if values["optimizer"] == "muon":
        values |= recipes.muon_rates(student)
    kappa = values.pop("meta.kappa", options.meta.kappa)
    meta = dataclasses.replace(options.meta, kappa=kappa)
    return dataclasses.replace(options, recipe=recipe, meta=meta, **values)


def _has_teacher_of_pictures(method: str) -> bool:
    if method == "vanilla" or not known_method(method):
        return False
    return not method_class(method).privileged
