"""What all operators share between the checks and the kernel: precision, choice, shapes, `vmap`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from mkdext._system import cuda, extension

try:
    from torch._functorch import utils as functorch
except ImportError:  # not in this PyTorch
    functorch = None  # type: ignore[assignment]

if torch.version.cuda:  # loaded before a compiler traces the question
    cuda.status()


def has_kernel(tensor: Tensor) -> bool:
    """Tell whether compiled kernels can take tensors of this device.

    Raises:
        RuntimeError: The device is a GPU that the CUDA operators were not built for.
    """
    # A compiler can trace neither a lock nor a warning nor a look at the device.
    compiling = torch.compiler.is_compiling()
    if tensor.device.type == "cuda":
        return cuda.is_loaded() if compiling else cuda.available(tensor.device)
    return tensor.device.type == "cpu" and extension.available(warn=not compiling)


def is_autocast(tensor: Tensor) -> bool:
    """Tell whether automatic mixed precision is on for this tensor's device."""
    device = tensor.device.type
    # PyTorch 2.11 cannot trace the question whether a device has autocast.
    if torch.compiler.is_compiling():
        return device in ("cpu", "cuda", "xpu", "mps") and torch.is_autocast_enabled(device)
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def to_kernel_dtype(tensor: Tensor) -> Tensor:
    """Return the tensor in a dtype that its device's kernels take; differentiable.

    On a CPU that is float32, or float64 for float64; CUDA kernels take every floating dtype.
    """
    if tensor.device.type == "cuda" or tensor.dtype in (torch.float32, torch.float64):
        return tensor
    return tensor.to(torch.float32)


def to_product_dtype(tensor: Tensor) -> Tensor:
    """As `to_kernel_dtype`, and under autocast on CUDA in the dtype of autocast, unless float64."""
    if tensor.device.type == "cuda" and is_autocast(tensor) and tensor.dtype != torch.float64:
        return tensor.to(torch.get_autocast_dtype("cuda"))
    return to_kernel_dtype(tensor)


_Result = TypeVar("_Result")


def call(operator: Callable[..., _Result], device: torch.device, *inputs: object) -> _Result:
    """Call an operator.

    Raises:
        torch.OutOfMemoryError: The GPU's memory does not suffice. The stable ABI, through which
            the operator allocates, turns PyTorch's own error into one that tells nothing.
    """
    if device.type != "cuda":
        return operator(*inputs)
    try:
        return operator(*inputs)
    except RuntimeError as error:
        if "new_empty" not in str(error) and "contiguous" not in str(error):
            raise
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        raise torch.OutOfMemoryError(
            f"CUDA out of memory in {operator} on {device}: {free:.2f} of {total:.2f} GiB are free"
        ) from error


_Function = TypeVar("_Function", bound=Callable[..., object])


def register_fake(operator: str) -> Callable[[_Function], _Function]:
    """Register a function that only makes the result's shape; nothing without the extension."""
    if extension.status().state != "loaded":
        return lambda function: function
    register: Callable[[_Function], _Function] = torch.library.register_fake(f"mkdext::{operator}")
    return register


def apply(function: type[Function], *inputs: object) -> Any:
    """Call an autograd function as `function.apply` does, in a third of the time.

    Where neither `torch.func` nor a compiler looks on, `function.apply` only binds the arguments to
    the signature of `forward`, which takes longer than all the rest, and goes on to the `apply` of
    its base. And where nothing is recorded, `forward` is all that is left to do. That takes private
    functions of PyTorch; without one of them, all is left to `function.apply`.
    """
    if (
        torch.compiler.is_compiling()
        or not _HAS_PRIVATE_FUNCTIONS
        or torch._C._are_functorch_transforms_active()
    ):
        return function.apply(*inputs)  # type: ignore[no-untyped-call]
    inputs = functorch.unwrap_dead_wrappers(inputs)
    if not _is_recorded(inputs):
        return function.forward(*inputs)
    return super(Function, function).apply(*inputs)  # type: ignore[misc]


def _has_private_functions() -> bool:
    used = (
        (torch._C, "_are_functorch_transforms_active"),
        (functorch, "unwrap_dead_wrappers"),
        (forward_ad, "_current_level"),
        (super(Function, Function), "apply"),
    )
    return all(hasattr(owner, name) for owner, name in used)


_HAS_PRIVATE_FUNCTIONS = _has_private_functions()


def _is_recorded(inputs: tuple[object, ...]) -> bool:
    if forward_ad._current_level >= 0:
        return True
    tensors = (value for value in inputs if isinstance(value, Tensor))
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def remember(ctx: Any, inputs: tuple[Any, ...]) -> None:
    """Save the tensors among the inputs of an autograd function; absent gradients stay None."""
    ctx.set_materialize_grads(False)
    ctx.is_tensor = tuple(isinstance(value, Tensor) for value in inputs)
    ctx.save_for_backward(*(t for t in inputs if t is None or isinstance(t, Tensor)))


def wanted_gradients(ctx: Any) -> tuple[bool, ...]:
    """Tell for each input of a function that was remembered whether its gradient must be computed.

    ``ctx.needs_input_grad`` says whether an input requires a gradient at all; what leads to none of
    the tensors that `torch.autograd.grad` was asked about can be left out too. Only the engine
    knows, and it answers for inner nodes alone: a leaf counts as wanted.
    """
    needed: tuple[bool, ...] = ctx.needs_input_grad
    if torch.compiler.is_compiling():
        return needed
    nodes = (node for node, _ in ctx.next_functions)  # one for each tensor
    reached = [_is_executed(next(nodes)) if is_tensor else False for is_tensor in ctx.is_tensor]
    return tuple(need and reach for need, reach in zip(needed, reached, strict=True))


def _is_executed(node: Any) -> bool:
    if node is None:
        return False
    if type(node).__name__ == "AccumulateGrad":  # a leaf's; to ask about it is a slow error
        return True
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except (AttributeError, RuntimeError):  # not in this PyTorch, or not in this backward
        return True


def fold(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """Merge the mapped dimension of `vmap` into the batch, which comes first."""
    if tensor is None:
        return None
    mapped = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return mapped.flatten(0, 1)


def unfold(tensor: Tensor | None, size: int) -> Tensor | None:
    """Undo `fold`: the mapped dimension comes first."""
    if tensor is None:
        return None
    return tensor.reshape(size, tensor.shape[0] // size, *tensor.shape[1:])


def map_each(
    function: type[Function],
    size: int,
    in_dims: tuple[int | None, ...],
    inputs: tuple[Any, ...],
) -> tuple[Any, Any]:
    """What `vmap` asks of an autograd function: the results, stacked, of one call for each."""
    calls = []
    for i in range(size):
        one = (v if d is None else v.select(d, i) for v, d in zip(inputs, in_dims, strict=True))
        calls.append(apply(function, *one))
    if isinstance(calls[0], Tensor):
        return torch.stack(calls), 0
    stacked = tuple(
        None if results[0] is None else torch.stack(results) for results in zip(*calls, strict=True)
    )
    return stacked, tuple(None if result is None else 0 for result in stacked)
