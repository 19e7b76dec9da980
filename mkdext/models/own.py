"""A user's own network: found by its name, behind the interface of the networks here."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mkdext._near_names import did_you_mean
from mkdext.data import imresize
from mkdext.metrics import luma

# Neither square nor even: what is measured are whole photographs.
_PROBE = (17, 19)
_WHITE, _BLACK = 235, 16  # levels of Y


class AdaptedNetwork(nn.Module):
    """A network of the Y channel, or of an enlarged image, as one of colour images.

    Maps `[B, 3, h, w]` to `[B, 3, scale*h, scale*w]`, colours in [0, 1]. What is to be enlarged is
    enlarged by MATLAB's bicubic. Y is MATLAB's (16-235) divided by 255; the other channels of
    YCbCr are those of the enlarged image.
    """

    def __init__(self, network: nn.Module, scale: int, channels: int, enlarged: bool) -> None:
        """Take a network of `channels` (1: Y, 3: RGB) that wants its input `enlarged` or not."""
        super().__init__()
        self.network = network
        self.scale = scale
        self.channels = channels
        self.enlarged = enlarged

    def forward(self, lr: Tensor) -> Tensor:
        """Super-resolve `lr`."""
        large = imresize(lr, self.scale)
        source = large if self.enlarged else lr
        if self.channels == 3:
            sr: Tensor = self.network(source)
            return sr
        change = self.network(_y(source)) - _y(large)
        # In YCbCr a change of Y alone is the same change of red, green and blue.
        colours: Tensor = large + change * (255 / (_WHITE - _BLACK))
        return colours


def _y(image: Tensor) -> Tensor:
    return (luma(image) / 255).to(image.dtype).unsqueeze(1)


def adapt(
    network: nn.Module, scale: int, what: str, size: tuple[int, int] | None = None
) -> nn.Module:
    """Find out, by running it on a small image, what a network takes, and give it that.

    Args:
        network: A network of RGB or of Y images, that enlarges them `scale` times or sharpens
            images enlarged before, of any size, in [0, 1].
        scale: Enlargement factor.
        what: Names the network in error messages.
        size: Height and width of the only images that it must take; none: any.

    Returns:
        `network` itself, or within an `AdaptedNetwork`: a map from `[B, 3, h, w]` to
        `[B, 3, scale*h, scale*w]`.

    Raises:
        ValueError: The network fails on such images, or gives another size.

    Example:
        >>> adapt(nn.Conv2d(1, 1, 3, padding=1), scale=2, what="--student")(
        ...     torch.rand(1, 3, 8, 7)
        ... ).shape
        torch.Size([1, 3, 16, 14])
    """
    probe = size or _PROBE
    large = tuple(side * scale for side in probe)
    given: dict[int, tuple[int, ...] | type | str] = {}
    for channels in (3, 1):
        result = given[channels] = _run(network, channels, probe)
        for enlarged, sides in ((False, large), (True, probe)):
            if result == (1, channels, *sides):
                adapted = channels == 1 or enlarged
                return AdaptedNetwork(network, scale, channels, enlarged) if adapted else network
    # What it makes of an image that it does not fail on tells more.
    channels = 1 if isinstance(given[3], str) and not isinstance(given[1], str) else 3
    image, result = [1, channels, *probe], given[channels]
    if isinstance(result, str):
        rule = "" if size else ", it must take any size"
        raise ValueError(f"{what} fails on an image {image}{rule}: {result}")
    got = list(result) if isinstance(result, tuple) else result.__name__
    raise ValueError(
        f"{what} must turn an image {image} into {[1, channels, *large]}, or into its own size if "
        f"it sharpens enlarged images, at scale {scale}; got {got}"
    )


def _run(network: nn.Module, channels: int, size: tuple[int, int]) -> tuple[int, ...] | type | str:
    """Shape of the result, the type of one that is no tensor, or the error in words."""
    like = next(network.parameters(), torch.empty(0))
    try:
        with evaluation_mode(network), torch.no_grad():
            result = network(torch.zeros(1, channels, *size, device=like.device))
    except Exception as error:  # Whatever a network of another code base may raise.
        return in_words(error)
    return tuple(result.shape) if isinstance(result, Tensor) else type(result)


def check_twice_differentiable(network: nn.Module) -> None:
    """Check that the meta-gradient can be taken through a student.

    Raises:
        ValueError: It has no parameter to train, or an operator without a second derivative.
    """
    what = f"student {type(unwrapped(network)).__name__}"
    if not any(p.requires_grad for p in network.parameters()):
        raise ValueError(f"{what} has no parameter to train")
    trial = copy_with_tensors(network, lambda tensor: tensor.detach().clone()).eval()
    parameters = [p for p in trial.parameters() if p.requires_grad]
    image = torch.linspace(0, 1, 3 * math.prod(_PROBE), device=parameters[0].device)
    try:
        first = torch.autograd.grad(
            trial(image.view(1, 3, *_PROBE)).square().mean(),
            parameters,
            create_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
        size = torch.stack([gradient.square().sum() for gradient in first]).sum()
        # Not torch.autograd.grad: it passes by a function that is differentiable once only, and
        # gives a part of the second derivative without a word.
        torch.autograd.backward(size)
    except RuntimeError as error:
        raise ValueError(
            f"{what} cannot be differentiated twice, which the meta-gradient needs: "
            f"{in_words(error)}"
        ) from error


def check_passes_gradient(network: nn.Module, whose: str, trained: str) -> None:
    """Check that a network can be differentiated with respect to its image.

    Args:
        network: The network.
        whose: What it is, as in "student".
        trained: What is to be trained through it, as in "an encoder".

    Raises:
        ValueError: It cannot, or no gradient arrives.
    """

    def moved(tensor: Tensor) -> Tensor:
        # Weights that are zero at first would let nothing pass.
        return tensor.detach() + 0.01 if tensor.is_floating_point() else tensor.detach().clone()

    # In an AdaptedNetwork a gradient passes beside the user's network, too.
    trial = copy_with_tensors(unwrapped(network), moved).eval()
    like = next(trial.parameters(), torch.empty(0))
    shape = 1, network.channels if isinstance(network, AdaptedNetwork) else 3, *_PROBE
    image = torch.linspace(0, 1, math.prod(shape), device=like.device).requires_grad_()
    reason = "no gradient arrives"
    try:
        sr = trial(image.view(shape))
        (gradient,) = torch.autograd.grad(sr.square().mean(), image, allow_unused=True)
    except RuntimeError as error:
        gradient, reason = None, in_words(error)
    if gradient is None or not gradient.any():
        raise ValueError(
            f"{whose} {type(unwrapped(network)).__name__} must pass a gradient to its image, for "
            f"{trained} to be trained through it, and not detach or round it: {reason}"
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's network in an `AdaptedNetwork`; any other network itself."""
    return model.network if isinstance(model, AdaptedNetwork) else model


def is_own(name: str) -> bool:
    """Whether `name` is that of a user's network, `package.module:factory` or `file.py:factory`."""
    return ":" in name


def absolute(name: str) -> str:
    """`name` with the path of its file made absolute, if it is that of a user's network in a file.

    Example:
        >>> absolute("/nets/own.py:make"), absolute("nets.own:make"), absolute("rcan-a")
        ('/nets/own.py:make', 'nets.own:make', 'rcan-a')
    """
    where, _, attribute = name.rpartition(":")
    return f"{Path(where).absolute()}:{attribute}" if _is_file(where) else name


def _is_file(where: str) -> bool:
    return where.endswith(".py") or "/" in where


def make_own(name: str, flag: str) -> nn.Module:
    """Call the factory called `name`.

    Args:
        name: `package.module:factory` or `file.py:factory`: a function or class without required
            arguments that gives a `torch.nn.Module`. The file may import from its own folder.
        flag: The option that `name` was given to, for error messages.

    Raises:
        ValueError: The module cannot be imported, has no such factory, or the factory needs
            arguments, fails, or gives no module.

    Example:
        >>> make_own("torch.nn:Identity", "--student")
        Identity()
    """
    where, _, attribute = name.rpartition(":")
    what = f"{flag} {name}"
    if not where or not attribute:
        raise ValueError(f"{what} must be package.module:factory or file.py:factory")
    with _importable(Path(where).parent if _is_file(where) else Path()):
        try:
            module = (
                _import_file(Path(where), what)
                if _is_file(where)
                else importlib.import_module(where)
            )
        except _Refused as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # Whatever the user's code may raise.
            raise ValueError(f"{what} cannot be imported: {in_words(error)}") from error
        factory = _factory(module, attribute, what)
        try:
            made = factory()
        except Exception as error:
            raise ValueError(f"{what} failed: {in_words(error)}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"{what} must return a torch.nn.Module, got {type(made).__name__}")
    return made


class _Refused(Exception):
    """A file that is not there."""


def _import_file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise _Refused(f"{what}: there is no file {path}")
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise _Refused(f"{what}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    # Dataclasses and pickle look for a class's module there.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def _factory(module: ModuleType, attribute: str, what: str) -> Callable[[], Any]:
    factory = getattr(module, attribute, None)
    if factory is None:
        names = [
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        hint = did_you_mean(attribute, names)
        if not hint and names:
            hint = f"; it has {', '.join(names[:8])}"
        raise ValueError(f"{what}: {module.__name__} has no {attribute!r}{hint}")
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ValueError(
            f"{what} must be a function or class that makes a network, "
            f"got an object {type(factory).__name__}"
        )
    try:
        inspect.signature(factory).bind()
    except ValueError:
        pass  # Some classes of C++ have no signature.
    except TypeError as error:
        raise ValueError(
            f"{what} must need no arguments, but: {error}; name a function that gives them"
        ) from None
    made: Callable[[], Any] = factory
    return made


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    path = str(folder.absolute())
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)


def in_words(error: BaseException) -> str:
    """Type and first line of an error.

    Example:
        >>> in_words(KeyError("name"))
        "KeyError: 'name'"
    """
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every sub-module has the mode that it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def copy_with_tensors(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of a network whose parameters and buffers are what `change` makes of its own.

    With the identity the copy shares them, and has hooks and modes of its own.

    Example:
        >>> network = nn.Conv2d(3, 3, 1)
        >>> copy_with_tensors(network, lambda tensor: tensor.to("meta")).weight.device
        device(type='meta')
    """

    def changed(tensor: Tensor) -> Tensor:
        result = change(tensor)
        if isinstance(tensor, nn.Parameter) and not isinstance(result, nn.Parameter):
            return nn.Parameter(result, tensor.requires_grad)
        return result

    return copy.deepcopy(
        model, {id(t): changed(t) for t in chain(model.parameters(), model.buffers())}
    )
