"""A network's state dict as what a safetensors file can hold, and back.

That are plain tensors by name, no two of which share memory, and texts. What else PyTorch keeps in
a state dict is kept by them: versions of modules, by which they read what older ones wrote, and
values of other kinds, as bytes that `torch.save` makes.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mkdext._system.errors import first_line
from mkdext._system.reading import entry

_FIRST_VERSION = 1  # of a module; whoever reads no version takes it for this one
_PLAIN = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8}
    | {torch.int8, torch.int16, torch.int32, torch.int64}
)


def to_tensors(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state dict as plain tensors on the CPU, and what is to be known of them beside.

    Returns:
        The tensors by name; names and plain values for JSON, mostly none.

    Raises:
        ValueError: Something in it has no numbers yet, or is no plain value.
    """
    tensors: dict[str, Tensor] = {}
    packed: list[str] = []
    storages: set[int] = set()
    for name, value in state.items():
        if isinstance(value, Tensor):
            _check_has_numbers(name, value)
        if _is_plain(value):
            # Tied weights and views are written for each of their names.
            tensor = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
            storage = tensor.untyped_storage().data_ptr()
            tensors[name] = tensor.clone() if storage in storages else tensor
            storages.add(storage)
        else:
            tensors[name] = _packed(name, value)
            packed.append(name)
    found = getattr(state, "_metadata", {})
    versions = {
        module: said["version"]
        for module, said in found.items()
        if said.get("version", _FIRST_VERSION) != _FIRST_VERSION
    }
    about = {"packed": packed, "versions": versions}
    return tensors, {name: value for name, value in about.items() if value}


def from_tensors(
    tensors: Mapping[str, Tensor], about: Mapping[str, Any], what: str
) -> OrderedDict[str, Any]:
    """The state dict that `to_tensors` was given.

    Args:
        tensors: The tensors by name.
        about: What is to be known of them, as it came from JSON.
        what: Begins the sentence of an error.

    Raises:
        ValueError: `about` is not as `to_tensors` writes it.
    """
    state: OrderedDict[str, Any] = OrderedDict(tensors)
    for name in entry({"packed": [], **about}, "packed", list, what):
        if not isinstance(name, str) or name not in tensors:
            raise ValueError(f"{what} tell of {str(name)[:80]!r}, which is not there")
        state[name] = _unpacked(tensors[name], f"{what}: {name[:80]!r}")
    versions = entry({"versions": {}, **about}, "versions", dict, what)
    if versions:
        modules = {name.rpartition(".")[0] for name in tensors} | versions.keys()
        # PyTorch's own name for it.
        state._metadata = OrderedDict(  # type: ignore[attr-defined]
            (module, {"version": versions.get(module, _FIRST_VERSION)}) for module in modules
        )
    return state


def _check_has_numbers(name: str, tensor: Tensor) -> None:
    if nn.parameter.is_lazy(tensor):
        raise ValueError(
            f"{name} has no size yet, because its module is a lazy one; run the network on one "
            "picture before"
        )
    if tensor.is_meta:
        raise ValueError(
            f"{name} has no numbers, it is on the meta device; move the network to a real one "
            "and give it weights before"
        )


def _is_plain(value: Any) -> bool:
    return (
        type(value) in (Tensor, nn.Parameter, nn.Buffer)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_nested)
        and value.dtype in _PLAIN
    )


def _packed(name: str, value: Any) -> Tensor:
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # Whatever a value of another code base may raise.
        raise ValueError(
            f"{name}, of type {type(value).__name__}, cannot be kept as plain values: "
            f"{first_line(error)[:200]}"
        ) from None
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _unpacked(tensor: Tensor, what: str) -> Any:
    try:
        file = io.BytesIO(tensor.numpy().tobytes())
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged pickle can raise nearly anything.
        raise ValueError(f"{what} is damaged ({type(error).__name__})") from None
