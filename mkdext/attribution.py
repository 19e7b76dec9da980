"""`python -m mkdext.attribution`: which pixels networks make their details from."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mkdext import __version__
from mkdext._cli.flags import parse_flags
from mkdext._cli.status import exit_status
from mkdext._cli.terminal import CommandTerminal
from mkdext._system.errors import is_out_of_memory
from mkdext._system.figures import figure_file, label
from mkdext._system.files import check_replaceable, check_writable, write_csv, write_json
from mkdext._system.memory import LiveBytes, available_bytes
from mkdext._system.plugins import error_in_words
from mkdext._system.terminal import Terminal, progress_bar, text_table
from mkdext.data import (
    BadImage,
    BadImageError,
    bad_images_message,
    builtin_photographs,
    imresize,
    read_image,
)
from mkdext.inference import EnlargementError, Network, load_network, load_networks
from mkdext.metrics import (
    Window,
    attribution_map,
    diffusion_index,
    luma,
    path_attribution,
    psnr_y,
    strongest_window,
    to_uint8,
)
from mkdext.metrics.attribution import SIDE_MIN, STEPS, detail
from mkdext.models import SRNetwork
from mkdext.models.builtin import BUILTIN_SCALE
from mkdext.models.handling import copy_with_tensors

_BICUBIC = "bicubic"
_BUILTIN = "built-in"
_AROUND = 4  # windows that the enlarged cutting is wide
_INCHES = 2.2
_LONGEST = 24  # letters of a title
_FILES = ("attribution.png", "attribution.csv", "attribution.json")


@dataclasses.dataclass(frozen=True)
class AttributionCommand:
    """Show which pixels networks make their details from.

    Local attribution maps (Gu and Dong, CVPR 2021) show what each low-resolution pixel contributes
    to the detail in a window of the result: the more, the darker red (by its square root, so that
    small contributions show). The diffusion index is 100 if all pixels contribute equally, and 0 if
    a single one does (Figure 5 of the MKD paper). Bicubic enlargement is shown too, and the
    built-in network if the scale is 4.
    """

    weights: tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]] = ()
    """Weights of the networks to compare."""
    model: str | None = None
    """Network that the weights must be of, or your own network, as package.module:factory or
    file.py:factory; default: the network that the weights are of."""
    scale: int | None = None
    """Enlargement factor; default: the weights'."""
    image: Path | None = None
    """High-resolution photograph, which MATLAB's bicubic reduces; default: the built-in
    astronaut.png."""
    window: tuple[int, int] | None = None
    """Left and top of the window, in pixels of the photograph; default: where the photograph has
    the largest sum of gradient magnitudes."""
    window_size: int = 16
    """Width and height of the window, in pixels of the photograph."""
    size: int = 256
    """Width and height of the part of the photograph around the window that the networks are given.
    The larger it is, the smaller the diffusion index; 256 is usual."""
    steps: int = STEPS
    """Images on the path from blurred to sharp along which gradients are integrated."""
    batch_size: int = 1
    """How many of them at a time; more is faster on a GPU and takes more memory."""
    out: Path = Path("runs/attribution")
    """Folder for attribution.png, attribution.csv and attribution.json, which replace older
    ones."""
    device: str = "cpu"
    """Where to compute: 'cpu', 'cuda' or 'cuda:N'."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("window_size", "steps", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.size <= self.window_size:
            raise ValueError(
                f"--size must be more than --window-size {self.window_size}, got {self.size}"
            )


class Scene(NamedTuple):
    """What all networks are shown."""

    path: Path
    """The photograph."""
    left: int
    """Column of the photograph where the part begins."""
    top: int
    """Row of the photograph where the part begins."""
    high: Tensor
    """The part: uint8 `[3, scale*h, scale*w]`."""
    low: Tensor
    """`[3, h, w]`, float32 in [0, 1]."""
    window: Window
    """In pixels of the part."""


class Way(NamedTuple):
    """One way of enlarging."""

    name: str
    enlarge: Callable[[Tensor], Tensor]
    """Maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, differentiably."""
    parameters: int
    device: torch.device


@dataclasses.dataclass(frozen=True)
class Attribution:
    """What one way of enlarging makes of the scene."""

    network: str
    """bicubic, or the network's name."""
    parameters: int
    """Number of trained parameters."""
    diffusion_index: float
    """0 to 100."""
    psnr_y: float
    """dB, of the part of the photograph; infinite where it is met exactly, null in JSON."""
    pixels: Tensor = dataclasses.field(repr=False)
    """Attribution map `[h, w]`, at most 1."""
    sr: Tensor = dataclasses.field(repr=False)
    """Super-resolved part, uint8 `[3, scale*h, scale*w]`."""

    def numbers(self) -> dict[str, str | int | float]:
        """What is written to files."""
        names = ("network", "parameters", "diffusion_index", "psnr_y")
        return {name: getattr(self, name) for name in names}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Flags; default: those of the process.

    Returns:
        The exit status: 2 for what cannot be done as asked, 1 if results cannot be written.
    """
    console = CommandTerminal()

    def run() -> None:
        command = parse_flags(AttributionCommand, arguments, prog="python -m mkdext.attribution")
        check_writable(command.out)
        for name in _FILES:
            check_replaceable(command.out / name)
        networks = find_networks(command)
        scene = make_scene(command, networks[0].scale)
        _check_memory(command, networks, scene)
        command.out.mkdir(parents=True, exist_ok=True)
        attributions = attribute(command, networks, scene, console)
        save(command, networks[0].scale, scene, attributions)
        show(scene, networks[0].scale, attributions, console)
        console.say(f"written to {command.out}: {', '.join(_FILES)}")

    return exit_status("mkdext.attribution", run, memory="lower --size or --batch-size")


def find_networks(command: AttributionCommand) -> list[Network]:
    """The networks of --weights, and the built-in one if it has their scale.

    Raises:
        ValueError: One cannot be used, or they are for different scales.
    """
    files = [file for group in command.weights for file in group]
    networks = load_networks(
        files,
        command.scale,
        [command.model] if command.model else [],
        command.device,
        reserved=(_BICUBIC, _BUILTIN),
    )
    if (files or command.model) and networks[0].scale == BUILTIN_SCALE:
        networks.insert(0, load_network(None, device=command.device))
    return networks


def make_scene(command: AttributionCommand, scale: int) -> Scene:
    """Cut the part of the photograph around the window, and make it smaller.

    Raises:
        ValueError: The photograph cannot be used or is too small, the window is not inside, or
            there is nothing to be seen.
    """
    path = command.image or builtin_photographs("validation")[0]
    try:
        photograph = read_image(path)
    except BadImageError as error:
        raise ValueError(bad_images_message([BadImage(path, str(error))])) from None
    size = command.window_size
    height, width = photograph.shape[1:]
    # Gradients in the window need a pixel more, and the border is left out of PSNR.
    least = max(-(-(size + 1) // scale), SIDE_MIN) * scale
    if command.size < least:
        raise ValueError(
            f"--size must be at least {least} for x{scale} and a window of {size}, "
            f"got {command.size}"
        )
    if min(height, width) < least:
        reason = f"is {width}x{height} pixels, needs at least {least} on each side"
        raise ValueError(bad_images_message([BadImage(path, reason)]))
    left, top = command.window or most_detailed(photograph, size)
    if min(left, top) < 0 or left + size >= width or top + size >= height:
        raise ValueError(
            f"--window must be 0 to {width - size - 1} from the left and 0 to {height - size - 1} "
            f"from the top, so that {size}x{size} pixels fit inside {path}, got {left} {top}"
        )
    begin_x, side_x = _cut(left, size, width, command.size // scale * scale, scale)
    begin_y, side_y = _cut(top, size, height, command.size // scale * scale, scale)
    high = photograph[:, begin_y : begin_y + side_y, begin_x : begin_x + side_x]
    if bool((high == high[:, :1, :1]).all()):
        raise ValueError(f"{path} has a single colour around the window; choose another --window")
    window = Window(left - begin_x, top - begin_y, size)
    return Scene(path, begin_x, begin_y, high, imresize(high, 1 / scale) / 255, window)


def _cut(first: int, window: int, whole: int, wanted: int, scale: int) -> tuple[int, int]:
    """Where a part around a window begins, and its length, in one direction."""
    length = min(wanted, whole // scale * scale)
    return min(max(first + window // 2 - length // 2, 0), whole - length), length


def most_detailed(photograph: Tensor, size: int) -> tuple[int, int]:
    """Left and top of the window with the largest sum of gradient magnitudes.

    Example:
        >>> photograph = torch.zeros(3, 32, 32, dtype=torch.uint8)
        >>> photograph[:, 12:20, 8:16] = torch.randint(0, 256, (3, 8, 8))
        >>> most_detailed(photograph, 9)
        (7, 11)
    """
    window, _ = strongest_window(detail(photograph.double()).sum(dim=0), size, stride=1)
    return window.left, window.top


def _check_memory(command: AttributionCommand, networks: Sequence[Network], scene: Scene) -> None:
    available = available_bytes()
    for network in networks:
        if network.device.type != "cpu":
            return
        low = torch.empty(command.batch_size, *scene.low.shape, device="meta", requires_grad=True)
        try:
            meta = copy_with_tensors(network.model, lambda tensor: tensor.to("meta"))
            with LiveBytes() as memory:
                torch.autograd.grad(meta(low).sum(), low)
        except (Exception, SystemExit):
            if isinstance(network.model, SRNetwork):
                raise
            continue  # A user's code need not run on tensors without numbers.
        if memory.peak > available:
            raise ValueError(
                f"{network.name} needs about {memory.peak / 1e9:.1f} GB of memory, "
                f"{available / 1e9:.1f} GB are available: lower --size or --batch-size"
            )


def attribute(
    command: AttributionCommand, networks: Sequence[Network], scene: Scene, console: Terminal
) -> list[Attribution]:
    """The attributions of bicubic and of every network.

    Raises:
        ValueError: A network's result does not depend on the photograph, or is not finite.
    """
    scale = networks[0].scale
    ways = [
        Way(_BICUBIC, lambda low: imresize(low, scale), 0, torch.device("cpu")),
        *(Way(n.name, n.enlarge, n.parameters, n.device) for n in networks),
    ]
    attributions = []
    with progress_bar(console, transient=True) as progress:
        task = progress.add_task("", total=command.steps * len(ways))

        def advancing(batches: range) -> Iterator[int]:
            for first in batches:
                yield first
                progress.advance(task, min(command.batch_size, command.steps - first))

        for way in ways:
            progress.update(task, description=way.name)
            low = scene.low.to(way.device)
            try:
                pixels = attribution_map(
                    path_attribution(
                        way.enlarge,
                        low,
                        scene.window,
                        steps=command.steps,
                        batch_size=command.batch_size,
                        progress=advancing,
                    )
                )
            except EnlargementError:
                raise
            except ValueError as error:
                raise ValueError(f"{way.name}: {error}") from None
            except RuntimeError as error:  # Whatever derivatives of a user's network may raise.
                if is_out_of_memory(error):
                    raise
                raise ValueError(
                    f"{way.name} has no derivatives: {error_in_words(error)}"
                ) from error
            with torch.no_grad():
                sr = to_uint8(way.enlarge(low[None])[0]).cpu()
            attributions.append(
                Attribution(
                    way.name,
                    way.parameters,
                    diffusion_index(pixels),
                    psnr_y(sr, scene.high, border=scale),
                    pixels.cpu(),
                    sr,
                )
            )
    return attributions


def save(
    command: AttributionCommand, scale: int, scene: Scene, attributions: Sequence[Attribution]
) -> None:
    """Write attribution.csv, attribution.json and attribution.png.

    Raises:
        OSError: One cannot be written.
    """
    rows = [attribution.numbers() for attribution in attributions]
    write_csv(command.out / "attribution.csv", rows)
    height, width = scene.high.shape[1:]
    window = scene.window
    report: dict[str, Any] = {
        "version": __version__,
        "image": str(scene.path),
        "scale": scale,
        "steps": command.steps,
        "window": {
            "left": scene.left + window.left,
            "top": scene.top + window.top,
            "size": window.size,
        },
        "part": {"left": scene.left, "top": scene.top, "width": width, "height": height},
        "networks": rows,
    }
    write_json(command.out / "attribution.json", report)
    size = (_INCHES * (len(attributions) + 1), 2 * _INCHES + 0.5)
    with figure_file(command.out / "attribution.png", size) as figure:
        draw(figure, scene, attributions)


def draw(figure: Figure, scene: Scene, attributions: Sequence[Attribution]) -> None:
    """The photograph, then for each network its map over the photograph and what it makes."""
    above, below = figure.subplots(2, len(attributions) + 1)
    for axis in (*above, *below):
        axis.set(xticks=[], yticks=[])
    height, width = scene.high.shape[1:]
    _show_picture(above[0], scene.high)
    above[0].set_title("HR", fontsize=8)
    _show_around(below[0], scene.high, scene.window)
    for axis, close, attribution in zip(above[1:], below[1:], attributions, strict=True):
        axis.imshow(luma(scene.high).numpy(), cmap="gray")
        axis.imshow(
            attribution.pixels.sqrt().numpy(),
            cmap="Reds",
            vmin=0,
            vmax=1,
            alpha=0.7,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="nearest",
        )
        name = label(attribution.network, _LONGEST)
        axis.set_title(f"{name}\nDI {attribution.diffusion_index:.2f}", fontsize=8)
        _show_around(close, attribution.sr, scene.window)
        close.set_xlabel(f"{attribution.psnr_y:.2f} dB", fontsize=8)
    for axis in (*above, *below):
        left, top, size = scene.window
        axis.add_patch(
            Rectangle((left - 0.5, top - 0.5), size, size, fill=False, color="lime", linewidth=1)
        )


def _show_picture(axis: Axes, picture: Tensor) -> None:
    axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")


def _show_around(axis: Axes, picture: Tensor, window: Window) -> None:
    _show_picture(axis, picture)
    height, width = picture.shape[1:]
    side = min(_AROUND * window.size, height, width)
    left = min(max(window.left + (window.size - side) // 2, 0), width - side)
    top = min(max(window.top + (window.size - side) // 2, 0), height - side)
    axis.set(xlim=(left - 0.5, left + side - 0.5), ylim=(top + side - 0.5, top - 0.5))


def show(scene: Scene, scale: int, attributions: Sequence[Attribution], console: Terminal) -> None:
    """Print a table with a row for each network."""
    left, top, size = scene.window
    place = f"{size}x{size} pixels at {scene.left + left}, {scene.top + top}"
    title = f"{scene.path.name}, x{scale}, window of {place}"
    table = text_table(title, "network", "parameters", "diffusion index", "PSNR-Y (dB)")
    for attribution in attributions:
        table.add_row(
            attribution.network,
            f"{attribution.parameters:,}",
            f"{attribution.diffusion_index:.2f}",
            f"{attribution.psnr_y:.2f}",
        )
    console.show(table)


if __name__ == "__main__":
    sys.exit(main())
