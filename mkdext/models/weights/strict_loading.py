"""Weights are copied into a network as PyTorch's own strict loading does it, all or none."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

_LISTED = 10
_LONGEST_NAME = 80
_LONGEST_REASON = 300
_MADE_UP = "num_batches_tracked"  # missing in files of old versions
_CUT_OFF = "of a wrong kind of number"  # PyTorch would leave out imaginary parts

Causes = Callable[[], Sequence[str]]
"""Tells in words why weights do not fit."""


def load_strictly(
    model: nn.Module, weights: Mapping[str, Any], causes: Causes, buffers_finite: bool
) -> None:
    """Copy weights into a network.

    Whether they fit is for PyTorch to say, and for the network's modules, which may rename, convert
    or leave out what they read.

    Args:
        model: Network that takes the weights, in its own dtype and on its own device.
        weights: Its state dict.
        causes: Tells why they may not fit, in words.
        buffers_finite: Whether buffers must be finite, as parameters must.

    Raises:
        ValueError: PyTorch does not take them, they have another kind of number that it would cut
            off, or a number is NaN or infinite. The network is not changed.
    """
    misfits = _misfits(model.state_dict(), weights)
    if _CUT_OFF in misfits:
        raise _refusal(causes(), misfits)
    with _unchanged_on_error(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model.load_state_dict(weights)
        except Exception as error:  # Modules of another code base raise whatever they like.
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
            raise _refusal([*causes(), *([] if misfits else [reason])], misfits) from None
        broken = [name for name, tensor in _checked(model, buffers_finite) if not _finite(tensor)]
        if broken:
            raise ValueError(
                f"{len(broken)} weights hold NaN or infinite numbers ({listing(broken)}); "
                "the training that wrote them diverged, take an earlier checkpoint"
            )


def check_fit(model: nn.Module, weights: Mapping[str, Any], causes: Causes) -> None:
    """Check names, shapes and kinds of the weights of a network that takes them as they are.

    Raises:
        ValueError: They do not fit.
    """
    misfits = _misfits(model.state_dict(), weights)
    if misfits:
        raise _refusal(causes(), misfits)


def have_same_names(own: Mapping[str, Any], weights: Mapping[str, Any]) -> bool:
    """Whether the names are those of the state dict `own`, but for what PyTorch makes up itself."""
    missing = own.keys() - weights.keys()
    return weights.keys() <= own.keys() and all(name.endswith(_MADE_UP) for name in missing)


def have_same_shapes(own: Mapping[str, Any], weights: Mapping[str, Any]) -> bool:
    """Whether all tensors have the shapes of the state dict `own`."""
    return "of a wrong shape" not in _misfits(own, weights)


def fits(wanted: Any, found: Any) -> bool:
    """Whether a tensor can stand for that of a network: its shape, form and kind of number."""
    return isinstance(found, Tensor) and not _misfits({"": wanted}, {"": found})


def completed(model: nn.Module, weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """Weights with those that are missing because they are tied to others that are there."""
    missing = model.state_dict().keys() - weights.keys()
    if not missing:
        return weights
    together: dict[int, list[str]] = {}
    named = chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    for name, tensor in named:
        together.setdefault(id(tensor), []).append(name)
    result = OrderedDict(weights)
    if hasattr(weights, "_metadata"):
        result._metadata = weights._metadata  # type: ignore[attr-defined]
    for names in together.values():
        there = next((name for name in names if name in weights), None)
        if there is not None:
            result.update((name, weights[there]) for name in names if name in missing)
    return result


def _refusal(causes: Sequence[str], misfits: Mapping[str, Sequence[str]]) -> ValueError:
    details = [f"{len(names)} {kind} ({listing(names)})" for kind, names in misfits.items()]
    return ValueError(
        f"the weights do not fit the network: {'; '.join([*causes, *details])}; give weights of "
        "this network, or name the network that they are of"
    )


def listing(names: Sequence[str]) -> str:
    """Names in words, the first ones of many."""
    more = f", ... {len(names)} in all" if len(names) > _LISTED else ""
    return ", ".join(shortened(name) for name in names[:_LISTED]) + more


def shortened(name: str) -> str:
    """A name of a length that can be read."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."


def _misfits(own: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, list[str]]:
    """What speaks against the weights, by kind; PyTorch may take them all the same."""
    common = [
        (shortened(name), own[name], weights[name])
        for name in own
        if isinstance(own[name], Tensor) and name in weights
    ]
    tensors = [(name, a, b) for name, a, b in common if isinstance(b, Tensor)]
    kinds = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of a wrong shape": [
            f"{name} is {list(found.shape)}, must be {list(wanted.shape)}"
            for name, wanted, found in tensors
            if not nn.parameter.is_lazy(wanted) and found.shape != wanted.shape
        ],
        _CUT_OFF: [
            f"{name} is {found.dtype}, must be {wanted.dtype}"
            for name, wanted, found in tensors
            if found.is_complex() and not wanted.is_complex()
        ],
        "of another form": [
            f"{name} is {_form(found)}, must be {_form(wanted)}"
            for name, wanted, found in common
            if _form(found) != _form(wanted)
        ],
    }
    return {kind: names for kind, names in kinds.items() if names}


def _form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    layout = str(value.layout).removeprefix("torch.").replace("strided", "dense")
    return f"quantised {layout}" if value.is_quantized else layout


def _checked(model: nn.Module, buffers: bool) -> Iterator[tuple[str, Tensor]]:
    # In the dtype of the network: a float64 can overflow a float32.
    return chain(model.named_parameters(), model.named_buffers() if buffers else ())


def _finite(tensor: Tensor) -> bool:
    if tensor.is_quantized or nn.parameter.is_lazy(tensor) or tensor.is_meta:
        return True
    if tensor.layout != torch.strided:
        tensor = tensor.detach().to_dense()
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.float()  # float8 knows no isfinite
    return bool(tensor.isfinite().all())


@contextlib.contextmanager
def _unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Put a network back to what it was if an error passes."""
    attributes = [(vars(module), _as_it_is(vars(module))) for module in model.modules()]
    tensors = [
        tensor
        for tensor in chain(model.parameters(), model.buffers())
        if not nn.parameter.is_lazy(tensor) and not tensor.is_meta
    ]
    numbers = [(tensor, tensor.detach().clone()) for tensor in tensors]
    repeated = [(tensor, tensor.data) for tensor in tensors if _is_repeated(tensor)]
    for tensor, _ in repeated:
        tensor.data = tensor.data.contiguous()  # Nothing can be copied into an expanded tensor.
    try:
        yield
    except BaseException:
        for container, (before, inner) in attributes:
            _put_back(container, before)
            for value, content in inner:
                _put_back(value, content)
        for tensor, values in numbers:
            with torch.no_grad():
                if tensor.shape == values.shape:
                    tensor.copy_(values)  # in place, for others that are views of it
                else:
                    tensor.data = values
        for tensor, data in repeated:
            tensor.data = data
        raise


_Content = dict[str, Any] | list[Any] | set[Any]


def _as_it_is(attributes: dict[str, Any]) -> tuple[_Content, list[tuple[_Content, _Content]]]:
    """Attributes of a module, and the containers among them with what they hold."""
    inner: list[tuple[_Content, _Content]] = []
    for value in attributes.values():
        if isinstance(value, dict):
            # Loading makes a lazy tensor one of another class.
            kept = {n: copy.deepcopy(v) if _is_lazy(v) else v for n, v in value.items()}
            inner.append((value, kept))
        elif isinstance(value, list | set):
            inner.append((value, copy.copy(value)))
    return dict(attributes), inner


def _put_back(container: _Content, content: _Content) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


def _is_lazy(value: Any) -> bool:
    return isinstance(value, Tensor) and nn.parameter.is_lazy(value)


def _is_repeated(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and any(
        size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
