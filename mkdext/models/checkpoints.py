"""Weights in files: read without executing anything, loaded strictly or not at all, and written."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mkdext._files import atomic_write
from mkdext.models.blocks import SRNetwork
from mkdext.models.pickled_modules import read_pickled_modules
from mkdext.models.registry import Recognised, create_model, nearest_network, recognise
from mkdext.models.weights_metadata import METADATA_KEY, WeightsMetadata

_WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "model")
_NAME_PREFIXES = ("module.", "_orig_mod.")
_LISTED = 10


def load_model(path: str | Path, scale: int | None = None, name: str | None = None) -> nn.Module:
    """Make the network that a file holds the weights of.

    Architecture, size and scale are those of the file's metadata (`save_model`), and where it has
    none, those that names and shapes of the weights tell. The official files of EDSR, RCAN, RDN
    (EDSR-PyTorch's), SAN, HAN and VDSR (pytorch-vdsr's) are understood, those of BasicSR's EDSR and
    RCAN, and those of this package. Torch's random generator is not touched.

    Args:
        path: A file that `read_weights` can read.
        scale: Scale that the network must have; none: that of the file.
        name: One of `MODEL_NAMES` that the network must be; none: any.

    Returns:
        A network in float32 on the CPU that maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`,
        colours in [0, 1].

    Raises:
        ValueError: The file cannot be read, or the weights are of an unknown architecture, of
            another scale or name than asked for, incomplete, not finite, or not what the metadata
            say; or they serve for every scale and none is given.

    Example:
        >>> import tempfile
        >>> from mkdext.models import create_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(create_model("rcan-b", scale=2).state_dict(), f"{folder}/weights.pt")
        ...     model = load_model(f"{folder}/weights.pt")
        >>> model.config
        RCANConfig(groups=4, blocks=4, features=16, reduction=16)
        >>> model.scale
        2
    """
    weights = read_weights(path)
    metadata = read_metadata(path)
    if name is None and metadata is not None and metadata.factory is not None:
        raise ValueError(
            f"weights file {path} is of a network of yours at x{metadata.scale}; name what makes "
            f"it: --model {metadata.factory} (in a training: --teacher)"
        )
    found = recognise(weights)
    if found is None:
        raise ValueError(
            f"weights file {path} is of no architecture that is known here"
            f"{nearest_network(weights)}; it holds {_listing(list(weights))}"
        )
    try:
        if metadata is not None:
            found = _as_described(found, metadata)
        with torch.random.fork_rng(devices=[]):
            model = _network(found, scale, name)
        load_weights(model, weights)
        if model.config != found.config:
            raise ValueError(f"the weights are of {found.config}, {name} is {model.config}")
    except ValueError as error:
        raise ValueError(f"weights file {path}: {error}") from None
    return model


def _network(found: Recognised, scale: int | None, name: str | None) -> SRNetwork:
    scale = found.scale if scale is None else scale
    if scale is None:
        raise ValueError(
            f"the weights are of {found.network.__name__} and serve for every scale; "
            "say for which one"
        )
    if name is None:
        return found.network(found.config, scale)
    model = create_model(name, scale)
    assert isinstance(model, SRNetwork)  # Every one with a name is.
    return model


def _as_described(found: Recognised, metadata: WeightsMetadata) -> Recognised:
    """What weights are of: shapes do not tell everything, metadata do."""
    if metadata.architecture is None or metadata.scale is None:
        return found
    told, seen = metadata.architecture, found.network.__name__
    if told != seen:
        raise ValueError(f"the metadata say {told}, the weights are of {seen}")
    if found.scale not in (metadata.scale, None):
        raise ValueError(f"the metadata say x{metadata.scale}, the weights are for x{found.scale}")
    try:
        config = type(found.config)(**metadata.config)
        with torch.device("meta"):
            described = found.network(config, metadata.scale)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metadata tell of an impossible {told}: {error}") from None
    if found.network.infer(described.state_dict()) != (found.config, found.scale):
        raise ValueError(f"the metadata say {config}, the weights are of {found.config}")
    return Recognised(found.network, config, metadata.scale)


def save_model(path: str | Path, model: nn.Module, origin: Mapping[str, Any]) -> None:
    """Write a network as a safetensors file, atomically, with all that `load_model` must know.

    The same network and origin give the same bytes.

    Args:
        path: File to write, in a folder that exists.
        model: The network. One that is not of this package is written without its architecture.
        origin: How the weights came about, as plain values for JSON.

    Raises:
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> from mkdext.models import create_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/weights.safetensors"
        ...     save_model(file, create_model("vdsr-half", scale=3), {"steps": 20_000})
        ...     load_model(file).scale, read_metadata(file).origin
        (3, {'steps': 20000})
    """
    metadata = {METADATA_KEY: WeightsMetadata.of(model, origin).to_json()}
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    with atomic_write(Path(path)) as unfinished:
        unfinished.write_bytes(save(weights, metadata))


def read_metadata(path: str | Path) -> WeightsMetadata | None:
    """Read what a weights file says of itself; none if it says nothing, as others' files.

    Raises:
        ValueError: The file cannot be read, is damaged, or its metadata are not as `save_model`
            writes them.
    """
    path = Path(path)
    if not _is_safetensors(_beginning(path)):
        return None
    try:
        with safe_open(path, framework="pt") as content:
            text = (content.metadata() or {}).get(METADATA_KEY)
    except SafetensorError as error:
        raise _damaged(path, error) from None
    try:
        return None if text is None else WeightsMetadata.from_json(text)
    except ValueError as error:
        raise ValueError(f"weights file {path}: {error}") from None


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a network, all of them or none.

    Args:
        model: Network that takes the weights, in its own dtype and on its own device.
        weights: Weights by name, as `read_weights` gives them; a network of this package also takes
            those of other code bases that `load_model` understands.

    Raises:
        ValueError: A name is missing or unexpected, a shape or a kind of number is wrong, or a
            number is NaN or infinite. The network is not changed.

    Example:
        >>> from mkdext.models import create_model
        >>> trained, model = create_model("rcan-a", scale=4), create_model("rcan-a", scale=4)
        >>> load_weights(model, trained.state_dict())
    """
    if isinstance(model, SRNetwork):
        weights = model.own_names(weights)
    _check_fit(model, weights)
    model.load_state_dict(weights)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or from one that `torch.save` made.

    The format is told from the content, not from the name. Of a pickle only tensors and plain
    containers are read, and the weights of a whole network of pytorch-vdsr; it is refused when it
    asks for anything else, and never executed. Weights
    under `params_ema`, `params`, `state_dict`, `model_state_dict` or `model` are found, in this
    order, and the `module.` that DataParallel puts before every name is removed, as is the
    `_orig_mod.` of `torch.compile`.

    Returns:
        Tensors by name, on the CPU, of the dtype that they have in the file.

    Raises:
        ValueError: The file is missing, a directory, unreadable, empty, damaged, of another format,
            asks for code, or holds no state dict.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"params": {"module.bias": torch.ones(2)}}, f"{folder}/weights.pt")
        ...     read_weights(f"{folder}/weights.pt")
        {'bias': tensor([1., 1.])}
    """
    path = Path(path)
    start = _beginning(path)
    if _is_safetensors(start):
        return _plain_names(_read_safetensors(path))
    if start.startswith((b"PK\3\4", b"\x80")):
        return _plain_names(_state_dict(_read_pickle(path), path))
    raise ValueError(
        f"weights file {path} is neither a safetensors file nor one made by torch.save: "
        f"it begins with {start!r}; fetch or copy it again"
    )


def _beginning(path: Path) -> bytes:
    if not path.exists():
        raise ValueError(f"weights file {path} does not exist; check the path")
    if path.is_dir():
        raise ValueError(f"weights file {path} is a directory; name a file in it")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ValueError(f"weights file {path} cannot be read: {error.strerror}") from None
    if not start:
        raise ValueError(f"weights file {path} is empty; fetch or copy it again")
    return start


def _is_safetensors(start: bytes) -> bool:
    # The length of the header in 8 bytes, then the header, which is JSON.
    return start[4:9] == b"\0\0\0\0{"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from None
    if not weights:
        raise ValueError(f"weights file {path} holds no tensor; name a file with weights")
    return weights


def _read_pickle(path: Path) -> Any:
    try:
        # Given a path, torch.load judges the format by the suffix.
        with path.open("rb") as file, warnings.catch_warnings():
            # For a TorchScript archive torch warns before it raises.
            warnings.simplefilter("ignore")
            try:
                return torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                file.seek(0)
                return read_pickled_modules(file)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"weights file {path} is a pickle that asks for "
            f"{asked[1] if asked else 'more than tensors'}, which could execute code, so it was "
            "not loaded; save the tensors alone: torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # A damaged pickle can raise nearly anything.
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = re.split(r"\. |\n", str(error))[0] or type(error).__name__
    return ValueError(
        f"weights file {path} is damaged or cut off ({reason}); fetch or copy it again"
    )


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights in what a pickle held."""
    while isinstance(content, Mapping):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if (
        isinstance(content, Mapping)
        and content
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    ):
        return {name: tensor.detach() for name, tensor in content.items()}
    if isinstance(content, Mapping):
        what = f"a dictionary of {_listing([str(key) for key in content])}"
    else:
        what = f"a {type(content).__name__}"
    raise ValueError(
        f"weights file {path} must hold a state dict, tensors by name, alone or under one of "
        f"{', '.join(_WRAPPERS)}, got {what}; save it with torch.save(model.state_dict(), FILE)"
    )


def _plain_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that wrappers of a network put before every name."""
    for prefix in _NAME_PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            return _plain_names({n.removeprefix(prefix): w for n, w in weights.items()})
    return weights


def _check_fit(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    misfits = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of a wrong shape": [
            f"{name} is {list(weights[name].shape)}, must be {list(tensor.shape)}"
            for name, tensor in own.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
        "of a wrong kind of number": [
            f"{name} is {weights[name].dtype}, must be {tensor.dtype}"
            for name, tensor in own.items()
            if name in weights and weights[name].is_floating_point() != tensor.is_floating_point()
        ],
    }
    parts = [f"{len(names)} {what} ({_listing(names)})" for what, names in misfits.items() if names]
    if parts:
        raise ValueError(
            f"the weights do not fit the network: {'; '.join([*_causes(model, weights), *parts])}"
        )
    # In the dtype of the network: a float64 can overflow a float32.
    broken = [n for n, t in own.items() if not weights[n].to(t.dtype).isfinite().all()]
    if broken:
        raise ValueError(
            f"{len(broken)} weights hold NaN or infinite numbers ({_listing(broken)}); "
            "the training that wrote them diverged, take an earlier checkpoint"
        )


def _causes(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Why weights do not fit `model`, where that can be told."""
    found = recognise(weights)
    if found is not None and isinstance(model, SRNetwork):
        if found.network is not type(model):
            return [
                f"the checkpoint is of {found.network.__name__}, "
                f"the network is {type(model).__name__}"
            ]
        causes = []
        if found.config != model.config:
            causes.append(f"the checkpoint is {found.config}, the network is {model.config}")
        if found.scale not in (model.scale, None):
            causes.append(f"the checkpoint is for x{found.scale}, the network is x{model.scale}")
        return causes
    own = model.state_dict().keys()
    common = len(own & weights.keys())
    if 2 * common < len(own):
        return [f"they are of another architecture, {common} of {len(own)} names are the same"]
    return []


def _listing(names: Sequence[str]) -> str:
    more = f", ... {len(names)} in all" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
