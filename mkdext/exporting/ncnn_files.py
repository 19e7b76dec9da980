"""Networks in ncnn's format, made by pnnx from TorchScript."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mkdext._system.alone import Failed, one_line
from mkdext.exporting.comparing import Runner
from mkdext.exporting.onnx_file import EXAMPLE

_OTHER_EXAMPLE = (30, 36)  # By it pnnx knows that a picture may have any size.
_HEADER = 2  # lines of a .param file before those of the layers


def write_ncnn(
    script: Path, param: Path, binary: Path, size: tuple[int, int] | None, half: bool
) -> None:
    """Convert a TorchScript file.

    Args:
        script: What to convert; pnnx writes files beside it.
        param: File to write: the layers.
        binary: File to write: their weights.
        size: Height and width of the pictures that it is for; none: any.
        half: Whether weights are kept in half precision.

    Raises:
        Failed: pnnx fails, or ncnn has no such layers, which are named.
    """
    import ncnn
    import pnnx

    height, width = size or EXAMPLE
    command = [
        pnnx.EXEC_PATH,
        str(script.absolute()),
        f"inputshape=[1,3,{height},{width}]",
        f"fp16={int(half)}",
        f"ncnnparam={param.absolute()}",
        f"ncnnbin={binary.absolute()}",
    ]
    if size is None:
        command.append("inputshape2=[1,3,{},{}]".format(*_OTHER_EXAMPLE))
    done = subprocess.run(command, capture_output=True, cwd=script.parent, check=False)
    if done.returncode or not param.exists():
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = f": {one_line(said[-1])}" if said else ""
        raise Failed(f"pnnx ends with status {done.returncode}{reason}")
    layers = {line.split()[0] for line in param.read_text(encoding="utf-8").splitlines()[_HEADER:]}
    if lacking := sorted(name for name in layers if ncnn.layer_to_index(name) < 0):
        raise Failed(f"ncnn lacks the operators {', '.join(lacking)}")


def run_ncnn(param: Path, binary: Path, half: bool) -> Runner:
    """Files in ncnn, on as many threads as PyTorch has.

    Raises:
        Failed: ncnn cannot load them.
    """
    import ncnn

    network = ncnn.Net()
    options = network.opt
    options.num_threads = torch.get_num_threads()
    options.use_bf16_storage = False
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = half
    if network.load_param(str(param)) or network.load_model(str(binary)):
        raise Failed("ncnn cannot load the files")

    def run(low: Tensor) -> Tensor:
        extractor = network.create_extractor()
        picture = np.ascontiguousarray(low[0].numpy())  # Mat does not keep it.
        extractor.input("in0", ncnn.Mat(picture).clone())
        status, sr = extractor.extract("out0")
        if status:
            raise Failed(f"ncnn ends with status {status}")
        return torch.from_numpy(np.array(sr))[None]

    return run
