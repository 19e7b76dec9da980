"""The data sets of the field: where to get them, what is in them, how papers use them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from mkdext.data.contents import Contents


@dataclasses.dataclass(frozen=True)
class Part:
    """One folder of a data set."""

    folders: tuple[str, ...]
    """What it may be called below the data set's folder; `.` is that folder itself."""
    count: int
    """Number of photographs."""
    names: tuple[str, int] | None = None
    """How they are named, as a format of a number without suffix, and the first number."""
    sides: tuple[int, ...] | None = None
    """Lengths that the longer side may have, in pixels."""
    scale: int | None = None
    """The factor of low-resolution photographs, which may be missing: they can be made."""


@dataclasses.dataclass(frozen=True)
class KnownSet:
    """A data set that papers on super-resolution train or test on."""

    name: str
    use: str
    parts: tuple[Part, ...]
    source: str
    """Where users get it; nothing is downloaded from there."""
    protocol: str
    """What papers do with it."""

    @property
    def count(self) -> int:
        """Number of high-resolution photographs."""
        return sum(part.count for part in self.parts if part.scale is None)


@dataclasses.dataclass(frozen=True)
class PartReport:
    """How a folder compares with a part of a data set."""

    folder: str
    expected: int
    found: int
    problems: list[str]


def compare_with_known(contents: Contents, known: KnownSet) -> list[PartReport]:
    """Compare what is in a folder with what a data set holds: counts, names, sizes.

    Args:
        contents: Of the data set's folder, of a folder of several data sets, or of one of the
            data set's parts alone, which is told by its name.
        known: The data set.

    Returns:
        A report on each part, without those of low-resolution photographs that are not there.

    Example:
        >>> from collections import Counter
        >>> empty = Contents(Path("Set5"), [], Counter(), [], [])
        >>> compare_with_known(empty, KNOWN_SETS[3])[0].problems
        ['5 photographs missing']
    """
    folder = contents.folder
    files: dict[Path, dict[str, tuple[int, int] | None]] = {}
    for mark, size in zip(contents.fingerprints, contents.sizes, strict=True):
        files.setdefault(mark.path.parent, {})[mark.path.stem] = size
    for image in contents.bad:
        files.setdefault(image.path.parent, {})[image.path.stem] = None
    own_name = folder.resolve().name
    own = [p for p in known.parts if own_name in p.folders and "." not in p.folders]
    reports = []
    for part in own or known.parts:
        places = [folder] if own else [folder / name for name in part.folders]
        place = next((place for place in places if place in files), places[0])
        found = files.get(place, {})
        if found or part.scale is None:
            problems = list(_problems(part, found))
            reports.append(PartReport(str(place), part.count, len(found), problems))
    return reports


_BSDS = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/bsds/"
_SELF_EXEMPLARS = "https://sites.google.com/site/jbhuang0604/publications/struct_sr"
_BENCHMARK = "https://cv.snu.ac.kr/research/EDSR/benchmark.tar"
_Y_CHANNEL = (
    "HR cut to a multiple of the scale, LR by MATLAB's bicubic; PSNR and SSIM on Y of 8-bit RGB, "
    "without a border as wide as the scale"
)


def _low(stem: str, count: int, names: str, first: int) -> tuple[Part, ...]:
    return tuple(
        Part((f"{stem}/X{scale}",), count, (f"{names}x{scale}", first), scale=scale)
        for scale in (2, 3, 4)
    )


def _test_set(name: str, count: int, source: str, *others: str) -> KnownSet:
    folders = (name, *others)
    layouts = (*(f"{folder}/HR" for folder in folders), *folders, "HR", ".")
    return KnownSet(name, "test", (Part(layouts, count),), source, _Y_CHANNEL)


KNOWN_SETS = (
    KnownSet(
        "DIV2K",
        "training, validation",
        (
            Part(("DIV2K_train_HR",), 800, ("{:04}", 1), (2040,)),
            Part(("DIV2K_valid_HR",), 100, ("{:04}", 801), (2040,)),
            *_low("DIV2K_train_LR_bicubic", 800, "{:04}", 1),
            *_low("DIV2K_valid_LR_bicubic", 100, "{:04}", 801),
        ),
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/",
        "MKD trains on 0001 to 0800: patches of 48x48 LR pixels, random flips and quarter turns, "
        "LR by MATLAB's bicubic; EDSR's validation is PSNR on RGB of 0801 to 0900",
    ),
    KnownSet(
        "Flickr2K",
        "training",
        (
            Part(("Flickr2K_HR", "Flickr2K/Flickr2K_HR"), 2650, ("{:06}", 1)),
            *_low("Flickr2K_LR_bicubic", 2650, "{:06}", 1),
        ),
        "https://cv.snu.ac.kr/research/EDSR/Flickr2K.tar",
        "together with the 800 of DIV2K it is DF2K; not used by MKD",
    ),
    KnownSet(
        "291",
        "training",
        (Part(("T91",), 91), Part(("BSD200", "BSDS200"), 200, sides=(480, 481))),
        "http://vllab.ucmerced.edu/wlai24/LapSRN/results/SR_training_datasets.zip",
        "VDSR and the data-free method's teacher train on it, on Y, at x2, x3 and x4 together; "
        "BSD200 is the training part of BSDS300",
    ),
    _test_set("Set5", 5, _BENCHMARK),
    _test_set("Set14", 14, _BENCHMARK),
    KnownSet(
        "BSD100",
        "test",
        (
            Part(
                ("BSD100/HR", "B100/HR", "BSD100", "B100", "BSDS100", "HR", "."),
                100,
                sides=(480, 481),
            ),
        ),
        f"{_BENCHMARK} (its B100), {_BSDS} (the test part of BSDS300)",
        f"{_Y_CHANNEL}; BSDS500 has these 100 in its validation part: do not train on them",
    ),
    _test_set("Urban100", 100, f"{_BENCHMARK}, {_SELF_EXEMPLARS}"),
    _test_set("Manga109", 109, "http://www.manga109.org, on request"),
)
"""Every data set with a name, in the order in which they are listed."""


def _problems(part: Part, found: dict[str, tuple[int, int] | None]) -> Iterator[str]:
    if part.names is None:
        if difference := len(found) - part.count:
            photographs = f"{abs(difference)} photograph{'s' * (abs(difference) > 1)}"
            yield f"{photographs} {'missing' if difference < 0 else 'too many'}"
    else:
        pattern, first = part.names
        expected = [pattern.format(number) for number in range(first, first + part.count)]
        if missing := [name for name in expected if name not in found]:
            yield f"missing: {_listed(missing)}"
        if others := sorted(found.keys() - set(expected)):
            yield f"not of this set: {_listed(others)}"
    if part.sides is not None:
        sizes = {name: size for name, size in sorted(found.items()) if size is not None}
        if odd := [name for name, size in sizes.items() if max(size) not in part.sides]:
            sides = " or ".join(map(str, part.sides))
            yield f"longer side is not {sides} pixels: {_listed(odd)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
