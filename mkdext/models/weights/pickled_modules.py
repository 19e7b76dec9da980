"""Weights of networks that were pickled as a whole, such as the file of pytorch-vdsr.

A pickle is a program that may call whatever it names. Here it is given nothing but tensors and
stand-ins that only keep what they are called with, made anew for every file.
"""

from __future__ import annotations

import pickle
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, Any

import torch
from torch import Tensor

_PACKAGES = ("torch.nn.", "vdsr.")
_REBUILD: dict[str, Callable[..., Any]] = {
    "_rebuild_tensor": torch._utils._rebuild_tensor,
    "_rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
}


def read_pickled_modules(file: IO[bytes]) -> Any:
    """Read a file of `torch.save` that holds networks, each as its weights by name.

    Args:
        file: Open at its beginning.

    Returns:
        What was saved: a network as its state dict, a dictionary with its networks as theirs.

    Raises:
        pickle.UnpicklingError: The pickle asks for anything but tensors, plain containers and
            classes of torch.nn and of pytorch-vdsr, which are never imported.
        Exception: The file is damaged; torch and pickle raise nearly anything.
    """
    # torch opens both of its formats, and asks this module to unpickle.
    restricted = types.SimpleNamespace(__name__=__name__, Unpickler=_Unpickler, load=_load)
    content = torch.load(file, "cpu", restricted, weights_only=False)
    if isinstance(content, Mapping):
        return {name: _plain(value) for name, value in content.items()}
    return _plain(content)


class _StandIn:
    """Object of a class that is not here."""

    dump_patches = False  # torch asks a network's class for it
    arguments: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *arguments: Any) -> _StandIn:
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return type(name, (OrderedDict,), {})
        if module in ("builtins", "__builtin__") and name == "set":
            return set
        if module == "torch._utils" and name in _REBUILD:
            rebuild = _REBUILD[name]
            return lambda *arguments: rebuild(*arguments)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, *arguments: tensor
        if f"{module}.".startswith(_PACKAGES):
            return type(name, (_StandIn,), {})
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def _load(file: IO[bytes], **options: Any) -> Any:
    return _Unpickler(file, **options).load()


def _plain(value: Any) -> Any:
    return _weights(value, "") if isinstance(value, _StandIn) else value


def _weights(module: _StandIn, prefix: str) -> dict[str, Tensor]:
    """Weights of a network and of its parts, by name."""
    weights: dict[str, Tensor] = {}
    unsaved = module.state.get("_non_persistent_buffers_set", ())
    for name, value in (*module.state["_parameters"].items(), *module.state["_buffers"].items()):
        # Parameters of old versions are objects made of a tensor.
        tensor = value.arguments[0] if isinstance(value, _StandIn) else value
        if tensor is not None and name not in unsaved:
            weights[prefix + name] = tensor
    for name, part in module.state["_modules"].items():
        if part is not None:
            weights |= _weights(part, f"{prefix}{name}.")
    return weights
