"""`python -m mkdext.evaluate`: measure networks on photographs."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro
from torch import Tensor

from mkdext import __version__
from mkdext._cli.flags import parse_flags
from mkdext._cli.status import exit_status
from mkdext._cli.terminal import CommandTerminal
from mkdext._system.errors import WorkFailed
from mkdext._system.files import (
    check_apart,
    check_replaceable,
    check_writable,
    fitting,
    write_csv,
    write_json,
)
from mkdext._system.memory import available_bytes
from mkdext._system.terminal import Terminal, text_table, track
from mkdext.data import (
    BICUBIC as MATLAB,
)
from mkdext.data import (
    BadImage,
    BadImageError,
    Degradation,
    StoredPair,
    bad_images_message,
    degradation_of,
    find_photographs,
    fitted,
    imresize,
    match_low_resolution,
    read_image,
    require_degradation,
    require_made,
)
from mkdext.data.degradation import drawn_for
from mkdext.inference import (
    Network,
    PeakMemory,
    Tiling,
    enlarge_in_tiles,
    load_networks,
    plan_tiles,
)
from mkdext.inference.contact_sheet import ContactSheet
from mkdext.inference.failures import noted
from mkdext.metrics import exact_note, mean_psnr, psnr_y, ssim_y, ssim_y_uniform, to_uint8
from mkdext.models import accelerate
from mkdext.models.convolutions import stock_if
from mkdext.page import Gallery, Page, Sheet, write_page
from mkdext.training.options import DegradationName

Protocol = Literal["8bit", "float"]

BICUBIC = "bicubic"
_FAILED = "failed"
_FILES = ("report.html", "scores.csv", "scores.json")
_WINDOW = 11  # of SSIM
_METRIC_BYTES = 64  # of a pixel: both pictures and their luma in float64, with what SSIM makes


@dataclasses.dataclass(frozen=True)
class EvaluateCommand:
    """Measure networks on photographs: PSNR-Y (dB), SSIM-Y, speed and memory.

    Y is MATLAB's, not rounded; PSNR's peak is 255; SSIM has the Gaussian window of Wang et
    al. (2004). MATLAB's bicubic makes low-resolution versions unless --lr-dir has them, after the
    photograph is cut to a multiple of the scale. Bicubic enlargement is measured too. A photograph
    that does not fit into the free memory is enlarged in tiles, and the report says so. Photographs
    that cannot be measured are named, and the others are measured. One that is met exactly has an
    infinite PSNR: it is named, and the mean is of the others.
    """

    data: tuple[Path, ...]
    """Folders of high-resolution photographs, or stores that mkdext.data prepare made of them, each
    reported by its name."""
    weights: tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]] = ()
    """Weights of the networks to compare; default: the built-in networks that --model names, rcan-c
    or rcan-a, both for x4, or the first of them."""
    model: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Networks that the weights must be of, one for all of --weights or one for each; or your own,
    as package.module:factory or file.py:factory, which may bring their weights. Default: the
    networks that the weights are of."""
    scale: int | None = None
    """Enlargement factor; default: the weights', or the one found by running your network."""
    lr_dir: tuple[Path, ...] = ()
    """Folders of low-resolution photographs, one for each folder of --data, or the same; 0001.png
    belongs to 0001.png, 0001x4.png or 0001_x4.png, and 1_HR.png to 1_LR.png too. Default: a store's
    own, or made by bicubic."""
    degradation: DegradationName = "bicubic"
    """What makes low-resolution versions that are not given: 'bicubic' is MATLAB's; 'bilinear',
    'area' and 'lanczos' are other kernels; 'realesrgan' draws blur, size, noise and JPEG at random,
    from a fixed seed and the photograph's name; a YAML file has its parameters."""
    protocol: Protocol | None = None
    """'8bit' rounds low-resolution photographs and results to 8-bit levels, as files hold them; MKD
    and most papers measure so. 'float' rounds nothing, like VDSR and data-free contrastive
    distillation, and adds their SSIM, of 7x7 windows at a range of 2. Default: that of the first
    network's paper, 'float' for VDSR, else '8bit'."""
    crop: bool = False
    """Cut photographs and those of --lr-dir whose sizes do not fit, such as those that MATLAB
    rounds up, at the right and the bottom to what they share, as EDSR's code does."""
    border: int | None = None
    """High-resolution pixels left out at each side; default: the scale, as in the papers."""
    out: Path = Path("runs/evaluate")
    """Folder for report.html, scores.csv, scores.json and a contact sheet of each set; they replace
    files of the same name."""
    device: str = "cpu"
    """Where to compute: 'cpu', 'cuda' or 'cuda:N'."""
    stock_convolutions: bool = False
    """Compute all 3x3 convolutions by PyTorch. On a CPU Winograd kernels are faster, and differ by
    rounding."""

    def __post_init__(self) -> None:
        """Check what can be checked without files."""
        if not self.data:
            raise ValueError("--data must name at least one folder")
        if self.lr_dir and len(self.lr_dir) != len(self.data):
            raise ValueError(
                f"--lr-dir must name one folder for each of the {len(self.data)} of --data, "
                f"got {len(self.lr_dir)}"
            )
        require_degradation(self.degradation)
        is_usual = self.degradation == BICUBIC
        if self.lr_dir and not is_usual:
            raise ValueError(
                f"--degradation {self.degradation}: --lr-dir has low-resolution versions; leave "
                "one of them out"
            )
        if self.protocol == "float" and not is_usual:
            raise ValueError(
                f"--protocol must be 8bit with --degradation {self.degradation}, which makes 8-bit "
                "levels, got float"
            )
        if self.border is not None and self.border < 0:
            raise ValueError(f"--border must be at least 0, got {self.border}")


class Photograph(NamedTuple):
    """What to measure on."""

    set: str
    """Name of its folder or store."""
    high: Path | StoredPair
    """High resolution."""
    low: Path | None
    """File of the low-resolution version; none: that of a store, or to be made."""
    crop: bool = False
    """Whether both may be cut to what they share where their sizes do not fit."""
    degradation: Degradation = MATLAB
    """What makes a low-resolution version that is not given."""

    @property
    def path(self) -> Path:
        """The file, or the store and the name in it."""
        return self.high.path if isinstance(self.high, StoredPair) else self.high


@dataclasses.dataclass(frozen=True)
class Score:
    """What one way of enlarging makes of one photograph."""

    set: str
    """Name of the folder."""
    image: str
    """Name of the file."""
    way: str
    """bicubic, or the network's name."""
    psnr_y: float
    """dB; infinite for a photograph that is met exactly, which is null in JSON."""
    ssim_y: float
    """At most 1."""
    ssim_y_uniform: float | None
    """As data-free contrastive distillation has it; only with the protocol 'float'."""
    seconds: float
    """For the enlargement alone."""
    pixels: int
    """Of the result."""
    peak_bytes: int
    """Most memory of the process meanwhile, or of tensors on a CUDA device."""
    tiles: int
    """Parts in which the photograph was enlarged; 1 unless memory was short."""

    @property
    def is_exact(self) -> bool:
        """Whether the photograph is met exactly, and has no finite PSNR."""
        return math.isinf(self.psnr_y)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Flags; default: those of the process.

    Returns:
        The exit status: 2 for what cannot be done as asked; 1 if photographs could not be
        measured, with all others done, or if results cannot be written.
    """
    console = CommandTerminal()

    def run() -> None:
        command = parse_flags(EvaluateCommand, arguments, prog="python -m mkdext.evaluate")
        check_writable(command.out)
        networks = load_networks(
            [file for group in command.weights for file in group],
            command.scale,
            [name for group in command.model for name in group],
            command.device,
            reserved=(BICUBIC,),
        )
        for network in networks:
            if network.remark:
                console.say(network.remark)
            accelerate(network.model)
        scale = networks[0].scale
        photographs = photographs_of(command, scale)
        sheets = [sheet_of(command, name) for name in {p.set: None for p in photographs}]
        for path in (*(command.out / name for name in _FILES), *sheets):
            check_replaceable(path)
        protocol = command.protocol or default_protocol(networks[0])
        if command.degradation != BICUBIC:
            protocol = "8bit"
        border = scale if command.border is None else command.border
        usable, failed = check_photographs(track(photographs, "reading", console), scale, border)
        scores: list[Score] = []
        gallery = Gallery(BICUBIC, networks[-1].name)
        given = usable, protocol, console, failed, gallery
        try:
            with stock_if(command.stock_convolutions):
                for score in evaluate(command, networks, *given):
                    scores.append(score)
        finally:  # What was measured is kept, whatever ends it.
            if scores:
                save_scores(command, networks, protocol, photographs, scores, failed)
                words = sys.argv[1:] if arguments is None else arguments
                save_page(command, networks, protocol, scores, gallery, words)
        show(scores, scale, protocol, console)
        tell_of_tiles(scores, networks, console)
        if scores:
            console.say(f"written to {command.out}: {', '.join(_FILES)}, contact sheets")
        if failed:
            raise WorkFailed(bad_images_message(failed, lines=len(failed)))

    interrupted = "interrupted; the scores of what was measured are written"
    memory = "close other programs, or measure smaller networks on smaller photographs"
    return exit_status("mkdext.evaluate", run, interrupted, memory)


def default_protocol(network: Network) -> Protocol:
    """How the paper of a network measures."""
    return network.model.protocol


def photographs_of(command: EvaluateCommand, scale: int) -> list[Photograph]:
    """The photographs of --data, with those of --lr-dir.

    Raises:
        ValueError: A folder is missing or empty or --out lies in it, a store is damaged or of
            another scale, two have the same name, or a low-resolution photograph is missing.
    """
    photographs: list[Photograph] = []
    degradation = degradation_of(command.degradation)
    folders = itertools.zip_longest(command.data, command.lr_dir)
    for folder, low_folder in folders:
        found = find_photographs(folder, scale, low_folder, "--lr-dir")
        check_apart(command.out, folder)
        name = folder.resolve().name
        if degradation is not MATLAB:
            require_made(found, folder, degradation.name)
            name = f"{name} ({degradation.label})"
        if any(photograph.set == name for photograph in photographs):
            raise ValueError(
                f"--data has two folders called {folder.resolve().name!r}; rename one of them"
            )
        group = [Photograph(name, high, None, command.crop, degradation) for high in found]
        if low_folder is not None:
            names = [photograph.path.relative_to(folder) for photograph in group]
            versions = match_low_resolution(names, folder, low_folder, scale)
            group = [
                photograph._replace(low=version)
                for photograph, version in zip(group, versions, strict=True)
            ]
        photographs += group
    return photographs


def read_levels(photograph: Photograph, scale: int) -> tuple[Tensor | None, Tensor]:
    """A photograph as it is in files or store, cut to a multiple of the scale.

    Returns:
        The low-resolution version if it is given, uint8 `[3, h, w]`, and the photograph, uint8
        `[3, scale*h, scale*w]`.

    Raises:
        BadImageError: A file cannot be used, a stored photograph has changed since it was written,
            or the sizes do not fit.
    """
    low = None
    if isinstance(photograph.high, StoredPair):
        photograph.high.require_intact()
        stored, high = photograph.high.pair()
        low = stored if photograph.high.low_is_given else None
    else:
        high = read_image(photograph.high)
    height, width = (side // scale for side in high.shape[1:])
    if min(height, width) < 1:
        raise BadImageError(f"has {high.shape[2]}x{high.shape[1]} pixels, too few for x{scale}")
    if photograph.low is None:
        return low, high[:, : height * scale, : width * scale]
    try:
        return fitted(read_image(photograph.low), high, scale, photograph.crop)
    except BadImageError as error:
        raise BadImageError(f"its low-resolution version {photograph.low} {error}") from None


def read_pair(photograph: Photograph, scale: int, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """A photograph in low and high resolution.

    Returns:
        `[3, h, w]`, float32 in [0, 1], and uint8 `[3, scale*h, scale*w]`.

    Raises:
        BadImageError: As `read_levels`.
    """
    low, high = read_levels(photograph, scale)
    if low is not None:
        return low / 255, high
    if protocol == "8bit":
        levels = photograph.degradation.low(high.numpy(), scale, drawn_for(photograph.path.name))
        return torch.from_numpy(levels) / 255, high
    return imresize(high.double() / 255, 1 / scale).float(), high


def check_photographs(
    photographs: Iterable[Photograph], scale: int, border: int
) -> tuple[list[Photograph], list[BadImage]]:
    """Check which photographs can be measured on, before the first one is.

    Returns:
        Those that can and the others.

    Raises:
        ValueError: None can.
    """
    usable: list[Photograph] = []
    bad: list[BadImage] = []
    for photograph in photographs:
        with noted(bad, photograph.path, "cut it into smaller photographs"):
            _, high = read_levels(photograph, scale)
            if min(high.shape[1:]) < 2 * border + _WINDOW:
                raise BadImageError(f"is too small for SSIM inside a border of {border} pixels")
            usable.append(photograph)
    if not usable:
        raise ValueError(bad_images_message(bad, lines=len(bad)))
    return usable, bad


def sheet_of(command: EvaluateCommand, name: str) -> Path:
    """The contact sheet of a set."""
    return command.out / fitting(f"contact_sheet_{name}", ".png")


def evaluate(
    command: EvaluateCommand,
    networks: Sequence[Network],
    photographs: Sequence[Photograph],
    protocol: Protocol,
    console: Terminal,
    failed: list[BadImage],
    gallery: Gallery,
) -> Iterator[Score]:
    """Measure bicubic and every network on every photograph, and write the contact sheets.

    Args:
        command: How.
        networks: The networks.
        photographs: What to measure on.
        protocol: Whether levels are rounded.
        console: Where progress is shown.
        failed: Photographs that could not be measured, with the reason; those found here are added.
        gallery: Where the pictures of those are added that all can be measured on.

    Raises:
        OSError: A contact sheet cannot be written.
    """
    scale = networks[0].scale
    command.out.mkdir(parents=True, exist_ok=True)
    ways = [BICUBIC, *(network.name for network in networks)]
    measured = track(photographs, "measuring", console)
    for name, group in itertools.groupby(measured, lambda photograph: photograph.set):
        sheet = ContactSheet(["HR", *ways])
        for photograph in group:
            with noted(failed, photograph.path, "cut it into smaller photographs"):
                low, high = read_pair(photograph, scale, protocol)
                pictures = {}
                for way, network in zip(ways, [None, *networks], strict=True):
                    with noted(failed, photograph.path, f"measure a smaller network than {way}"):
                        score, sr = measure(
                            command, photograph, low, high, scale, network, protocol
                        )
                        pictures[way] = (sr, score.psnr_y)
                        yield score
                sheet.add(photograph.path.name, high, pictures)
                if len(pictures) == len(ways):
                    _add(gallery, photograph, low, pictures, high)
        if sheet.rows:
            sheet.save(sheet_of(command, name))
        if sheet.left_out:
            console.say(
                f"{sheet_of(command, name).name} shows the first {sheet.rows} photographs, "
                f"{sheet.left_out} more were measured"
            )


def _add(
    gallery: Gallery,
    photograph: Photograph,
    low: Tensor,
    pictures: Mapping[str, tuple[Tensor, float]],
    high: Tensor,
) -> None:
    shown = {way: sr for way, (sr, _) in pictures.items()}
    gallery.add(
        f"{photograph.set}, {photograph.path.name}",
        {"low resolution": to_uint8(low), **shown, "photograph": high},
        {way: f"{psnr:.2f} dB" for way, (_, psnr) in pictures.items()},
    )


def measure(
    command: EvaluateCommand,
    photograph: Photograph,
    low: Tensor,
    high: Tensor,
    scale: int,
    network: Network | None,
    protocol: Protocol,
) -> tuple[Score, Tensor]:
    """Measure a network, or bicubic, on a photograph.

    Returns:
        The score and the enlarged picture, uint8 `[3, H, W]`.

    Raises:
        BadImageError: There is too little memory for it.
        EnlargementError: The network cannot enlarge it.
    """
    border = scale if command.border is None else command.border
    tiling = _tiling(low, network)
    sr, seconds, peak = _enlarged(low, scale, network, tiling)
    if protocol == "8bit":
        sr = to_uint8(sr)
    score = Score(
        photograph.set,
        photograph.path.name,
        network.name if network else BICUBIC,
        psnr_y(sr, high, border),
        ssim_y(sr, high, border),
        ssim_y_uniform(sr, high, border) if protocol == "float" else None,
        seconds,
        high.shape[1] * high.shape[2],
        peak,
        tiling.count(*low.shape[1:]),
    )
    return score, sr if protocol == "8bit" else to_uint8(sr)


def _tiling(low: Tensor, network: Network | None) -> Tiling:
    """How a photograph is cut for a network: not at all if there is the memory."""
    height, width = low.shape[1:]
    whole = Tiling(height, width, overlap=0)
    available = available_bytes()
    if network is None or network.device.type != "cpu":
        return whole
    free = available - height * width * network.scale**2 * _METRIC_BYTES
    if network.costs.of(height, width) <= free:
        return whole
    try:
        return plan_tiles((height, width), network.costs, network.overlap, network.scale, 0, free)
    except ValueError as error:
        raise BadImageError(
            f"does not fit into memory in {network.name}: {error}; leave it out or measure a "
            "smaller network"
        ) from None


def _enlarged(
    low: Tensor, scale: int, network: Network | None, tiling: Tiling
) -> tuple[Tensor, float, int]:
    """The picture `[3, H, W]`, seconds and peak memory of a network, or of bicubic."""
    memory = PeakMemory(network.device if network else torch.device("cpu"))
    memory.start()
    begin = time.perf_counter()
    sr = enlarge_in_tiles(network, low, tiling, scale) if network else imresize(low, scale)
    seconds = time.perf_counter() - begin
    return sr, seconds, memory.bytes()


class Mean(NamedTuple):
    """One way of enlarging on the photographs of one set."""

    psnr_y: float
    """Of the photographs that are not met exactly; infinite if all are."""
    ssim_y: float
    ssim_y_uniform: float | None
    photographs: int
    """How many were measured."""
    exact: int
    """How many of them are met exactly."""
    seconds: float
    """Of all photographs together."""
    pixels_per_second: float
    """Of the results."""
    peak_bytes: int
    """The most."""


def means(scores: Sequence[Score]) -> dict[str, dict[str, Mean]]:
    """Means by set and way, in the order in which they come."""
    groups: dict[str, dict[str, list[Score]]] = {}
    for score in scores:
        groups.setdefault(score.set, {}).setdefault(score.way, []).append(score)
    return {
        name: {way: _mean(group) for way, group in ways.items()} for name, ways in groups.items()
    }


def _mean(group: Sequence[Score]) -> Mean:
    seconds = sum(score.seconds for score in group)
    uniform = [s.ssim_y_uniform for s in group if s.ssim_y_uniform is not None]
    psnr, exact = mean_psnr([score.psnr_y for score in group])
    return Mean(
        psnr,
        sum(score.ssim_y for score in group) / len(group),
        sum(uniform) / len(uniform) if uniform else None,
        len(group),
        exact,
        seconds,
        sum(score.pixels for score in group) / seconds if seconds else math.inf,
        max(score.peak_bytes for score in group),
    )


def save_scores(
    command: EvaluateCommand,
    networks: Sequence[Network],
    protocol: Protocol,
    photographs: Sequence[Photograph],
    scores: Sequence[Score],
    failed: Sequence[BadImage],
) -> None:
    """Write scores.csv, a line for each photograph and way, and scores.json, with the means too."""
    write_csv(command.out / "scores.csv", [dataclasses.asdict(score) for score in scores])
    scale = networks[0].scale
    report: dict[str, Any] = {
        "version": __version__,
        "scale": scale,
        "protocol": protocol,
        "border": scale if command.border is None else command.border,
        "degradation": command.degradation,
        "networks": {network.name: network.parameters for network in networks},
        "photographs": Counter(photograph.set for photograph in photographs),
        "validation": {
            name: {way: mean._asdict() for way, mean in ways.items()}
            for name, ways in means(scores).items()
        },
        "images": [dataclasses.asdict(score) for score in scores],
        "failed": [{"image": str(image.path), "reason": image.reason} for image in failed],
    }
    write_json(command.out / "scores.json", report)


def save_page(
    command: EvaluateCommand,
    networks: Sequence[Network],
    protocol: Protocol,
    scores: Sequence[Score],
    gallery: Gallery,
    words: Sequence[str],
) -> None:
    """Write report.html: pictures to compare, and the means and all scores as tables."""
    tables = []
    for name, ways in means(scores).items():
        rows = [["mean", *(f"{m.psnr_y:.2f} dB / {m.ssim_y:.4f}" for m in ways.values())]]
        mine = [score for score in scores if score.set == name]
        for image, group in itertools.groupby(mine, lambda score: score.image):
            cells = {s.way: f"{s.psnr_y:.2f} dB / {s.ssim_y:.4f}" for s in group}
            rows.append([image, *(cells.get(way, _FAILED) for way in ways)])
        tables.append(Sheet(f"{name}: PSNR-Y / SSIM-Y", ["photograph", *ways], rows))
    page = Page(
        title=f"{', '.join(network.name for network in networks)}, x{networks[0].scale}",
        facts={
            **{f"parameters of {n.name}": f"{n.parameters:,}" for n in networks},
            "protocol": protocol,
            "versions": f"mkdext {__version__}, torch {torch.__version__}",
        },
        command=shlex.join(["python", "-m", "mkdext.evaluate", *words]),
        tables=tables,
        gallery=gallery,
    )
    write_page(command.out / "report.html", page)


def show(scores: Sequence[Score], scale: int, protocol: Protocol, console: Terminal) -> None:
    """Print a table for each set: a row for each photograph and one for the means."""
    for name, ways in means(scores).items():
        mine = [score for score in scores if score.set == name]
        title = f"{name}, x{scale}, protocol {protocol}: PSNR-Y (dB) / SSIM-Y"
        table = text_table(title, "photograph", *ways)
        for image, group in itertools.groupby(mine, lambda score: score.image):
            cells = {s.way: f"{s.psnr_y:.2f} / {s.ssim_y:.4f}" for s in group}
            table.add_row(image, *(cells.get(way, _FAILED) for way in ways))
        table.add_section()
        for label, summary in _summary(list(ways.values())):
            table.add_row(label, *summary, style="bold" if label == "mean" else None)
        console.show(table)
        for way, mean in ways.items():
            if mean.exact:
                names = [score.image for score in mine if score.way == way and score.is_exact]
                console.say(exact_note(way, names))
            if mean.photographs < max(other.photographs for other in ways.values()):
                console.say(f"{way}: the means are of {mean.photographs} photographs only")


def tell_of_tiles(scores: Sequence[Score], networks: Sequence[Network], console: Terminal) -> None:
    """Print which networks had too little memory for whole photographs, and what it means."""
    for network in networks:
        cut = [score for score in scores if score.way == network.name and score.tiles > 1]
        if cut:
            effect = (
                f"which changes the numbers a little, as {network.architecture} looks at the whole "
                "picture"
                if network.reach is None
                else f"which changes nothing, as {network.architecture} sees no further"
            )
            console.say(
                f"{network.name}: {len(cut)} photographs, such as {cut[0].image}, were enlarged in "
                f"tiles with a margin of {network.overlap} pixels, because memory was short, "
                f"{effect}"
            )


def _summary(columns: Sequence[Mean]) -> Iterator[tuple[str, list[str]]]:
    yield "mean", [f"{mean.psnr_y:.2f} / {mean.ssim_y:.4f}" for mean in columns]
    uniform = [mean.ssim_y_uniform for mean in columns]
    if None not in uniform:
        yield "SSIM-Y, 7x7, range 2", [f"{value:.4f}" for value in uniform]
    yield "seconds", [f"{mean.seconds:.2f}" for mean in columns]
    yield "megapixels/s", [f"{mean.pixels_per_second / 1e6:.2f}" for mean in columns]
    yield "peak memory, MB", [f"{mean.peak_bytes / 1e6:.0f}" for mean in columns]


if __name__ == "__main__":
    sys.exit(main())
