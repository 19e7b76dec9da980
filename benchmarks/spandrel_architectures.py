"""Which architectures of the package spandrel can be teacher or student here, tried one by one.

    python benchmarks/spandrel_architectures.py
    python benchmarks/spandrel_architectures.py --only HAT SPAN

Each is made small, with random weights, and saved as .pth and .safetensors. Both files must be
recognised and give the same picture of a size that no network asks for. It then teaches a student
for one step of `response` and one of `mkd` at points that are found, and is taught itself. Needs
`pip install 'mkdext[spandrel]'`.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from mkdext.models import load_recognised
from mkdext.models.proposed_points import proposed_points
from mkdext.models.user import spandrel
from mkdext.training import TrainOptions
from mkdext.training.setup import prepare
from mkdext.training.step import Batch

_WINDOWS = {"embed_dim": 24, "num_heads": [2, 2], "depths": [2, 2], "window_size": 8}
_DIRECT = {"upsampler": "pixelshuffledirect"}
SMALL: Mapping[str, Mapping[str, Any]] = {
    "ATD": {**_WINDOWS, **_DIRECT, "category_size": 64, "num_tokens": 16},
    "AuraSR": {
        "dim": 8,
        "image_size": 256,
        "input_image_size": 64,
        "style_network": {"dim_in": 16, "dim_out": 64, "depth": 2, "dim_text_latent": 0},
        "num_conv_kernels": 2,
    },
    "CRAFT": {"embed_dim": 24, "depths": [1, 1], "num_heads": [3, 3]},
    "Compact": {"num_feat": 8, "num_conv": 4},
    "DAT": {"embed_dim": 24, "depth": [1, 1], "split_size": [4, 8], **_DIRECT},
    "DCTLSA": {"nf": 20},
    "DITN": {"dim": 24, "ITL_blocks": 1, "SAL_blocks": 1, "UFONE_blocks": 4},
    "DRCT": {
        **_WINDOWS,
        "depths": [1, 1],
        "upsampler": "pixelshuffle",
        "gc": 8,
    },
    "DRUNet": {"in_nc": 3, "out_nc": 3, "nc": [8, 8, 8, 8]},
    "DnCNN": {"nc": 8, "nb": 5},
    "ESRGAN": {"num_filters": 8, "num_blocks": 4},
    "FBCNN": {"nc": [8, 8, 8, 8]},
    "FDAT": {"embed_dim": 24, "num_groups": 2, "depth_per_group": 2, "num_heads": 2},
    "FFTformer": {"dim": 8, "num_blocks": [1, 1, 1], "num_refinement_blocks": 1},
    "GRL": {
        "embed_dim": 24,
        "depths": [1, 1],
        "num_heads_window": [2, 2],
        "num_heads_stripe": [2, 2],
        **_DIRECT,
    },
    "HAT": {**_WINDOWS, "num_feat": 16, "squeeze_factor": 6},
    "HVICIDNet": {"channels": [8, 8, 16, 32]},
    "IPT": {"n_feats": 16, "num_layers": 1, "num_heads": 4, "scale": [4], "patch_size": 24},
    "KBNet_s": {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
    "LaMa": {},
    "MMRealSR": {"num_feat": 16, "num_block": 4, "num_grow_ch": 8},
    "MixDehazeNet": {"embed_dims": [8, 16, 32, 16, 8]},
    "MoESR": {"dim": 16, "n_blocks": 4, "n_block": 1},
    "MoSR": {"dim": 16, "n_block": 4},
    "NAFNet": {"width": 8, "enc_blk_nums": [1], "dec_blk_nums": [1]},
    "OmniSR": {"num_feat": 16, "res_num": 2},
    "PLKSR": {"dim": 16, "n_blocks": 4},
    "RealPLKSR": {"dim": 16, "n_blocks": 4},
    "RCAN": {"n_resgroups": 4, "n_resblocks": 1, "n_feats": 16, "reduction": 4, "norm": False},
    "RGT": {"embed_dim": 24, "depth": [1, 1], "num_heads": [2, 2]},
    "UpCunet2x": {},
    "UpCunet3x": {},
    "UpCunet4x": {},
    "UpCunet2x_fast": {},
    "RetinexFormer": {"n_feat": 8},
    "SAFMN": {"dim": 16, "n_blocks": 4},
    "SAFMNBCIE": {"dim": 16, "n_blocks": 2, "num_layers": 2},
    "SCUNet": {"config": [1] * 7, "dim": 16},
    "SPAN": {"feature_channels": 8},
    "SeemoRe": {"num_experts": 2, "num_layers": 4, "embedding_dim": 16},
    "SwiftSRGAN": {"num_channels": 16, "num_blocks": 4},
    "Swin2SR": {**_WINDOWS, **_DIRECT},
    "SwinIR": {**_WINDOWS, **_DIRECT},
    "Uformer": {"embed_dim": 8, "depths": [1] * 9},
}
"""Options that make each class small; GFPGAN and RestoreFormer are large, and for faces alone."""

_SIDE = 24  # of a patch
_ODD = (21, 26)


class Tried(NamedTuple):
    """What became of one architecture."""

    name: str
    teacher: str
    """Empty: it can be one; otherwise the reason why not, as a user reads it."""
    points: str = ""
    mkd: str = ""
    student: str = ""


def scale_of(name: str) -> int:
    """The scale at which a class is tried."""
    return int(name.removeprefix("UpCunet")[0]) if name.startswith("UpCunet") else 4


def weights_of(name: str, folder: Path) -> tuple[Path, Path]:
    """Random weights of a small network of a class, in the two kinds of files."""
    torch.manual_seed(0)
    network = spandrel.instance(name, scale_of(name), f"benchmark {name}", SMALL[name])
    weights = network.state_dict()
    torch.save({"params_ema": weights}, folder / f"{name}.pth")
    tensors = {key: tensor.clone().contiguous() for key, tensor in weights.items()}
    save_file(tensors, folder / f"{name}.safetensors")
    return folder / f"{name}.pth", folder / f"{name}.safetensors"


def require_recognised(name: str, files: tuple[Path, Path]) -> None:
    """Load both files and compare what they make of a picture.

    Raises:
        ValueError: They cannot be loaded, or make something else.
    """
    low = torch.rand(1, 3, *_ODD)
    pictures = []
    for file in files:
        network = load_recognised(file)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)  # of the noise that some add
            pictures.append(network(low))
    wanted = tuple(side * scale_of(name) for side in _ODD)
    if pictures[0].shape[2:] != wanted or not torch.equal(*pictures):
        raise ValueError(f"{name} gives other pictures from .pth and from .safetensors")


def step(scale: int, **options: Any) -> None:
    """Prepare a training and take one step of it.

    Raises:
        ValueError: It would be refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = TrainOptions(
            iterations=1,
            batch_size=2,
            patch_size=_SIDE,
            scale=scale,
            out=Path(folder) / "run",
            **options,
        )
        training = prepare(given.resolved())
        stage = training.student_stages[0]
        stage.begin(None)
        low, high = (torch.rand(2, 3, side, side) for side in (_SIDE, _SIDE * scale))
        stage.take(0, Batch(low, high, scale=scale))


def tried(name: str) -> Tried:
    """Try one class."""
    scale = scale_of(name)
    points = mkd = student = ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = weights_of(name, Path(folder))
            require_recognised(name, files)
            step(scale, student="edsr-s", method="response", teacher_weights=files[0])
        except (Exception, SystemExit) as error:
            reason = str(error).replace(f"weights file {folder}/{name}.pth of ", "")
            return Tried(name, reason)
        network = load_recognised(files[0])
        try:
            points = ", ".join(proposed_points(network, 4))
            step(scale, student="edsr-s", method="mkd", teacher_weights=files[0])
        except (Exception, SystemExit) as error:
            mkd = str(error)
        named = f"{spandrel.PREFIX}{name}"
        own: dict[str, Any] = {
            "student": named,
            "student_options": tuple(f"{key}={value}" for key, value in SMALL[name].items()),
            "optimizer": "adam",
        }
        # The built-in teacher is for x4.
        own["method"] = "vanilla" if scale != 4 else "response" if mkd else "mkd"
        try:
            step(scale, **own)
        except (Exception, SystemExit) as error:
            student = str(error).replace(f"`student` {named}", name)
    return Tried(name, "", points, mkd, student)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SMALL,
        default=list(SMALL),
        metavar="CLASS",
        help="classes of spandrel to try (default: all)",
    )
    warnings.simplefilter("ignore")
    print("| class | teacher | its points | with `mkd` | student |\n|---|---|---|---|---|")
    for name in parser.parse_args().only:
        row = tried(name)
        rest = ["", "", ""] if row.teacher else [row.points, row.mkd or "yes", row.student or "yes"]
        print(f"| {' | '.join([row.name, row.teacher or 'yes', *rest])} |", flush=True)


if __name__ == "__main__":
    main()
