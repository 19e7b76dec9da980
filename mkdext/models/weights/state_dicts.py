"""The state dicts in what a training program saved, and which of them is the network's.

Programs put weights under names of their own, beside optimizers and other networks, and wrappers
put a prefix before every name. Of several that serve, one of averaged weights (`ema`, `swa`) is
preferred, then the first of `PREFERRED`; which of two others is meant nobody can tell.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

PREFERRED = (
    *("params", "state_dict", "model_state_dict", "model", "net", "network"),
    *("generator", "net_g", "netG", "g", "gen", "weights"),
)
"""Names that weights are found under, in this order."""

_TRANSPARENT = ("module", "_orig_mod")  # of DataParallel and of torch.compile
_AVERAGED = {"ema", "swa", "averaged", "avg", "shadow"}
_WRAPPING = _AVERAGED | {name.lower() for name in PREFERRED if "_" not in name}
_WRAPPING |= {"student", "teacher", "sr", "srnet"}
_FOREIGN = {
    *("criterion", "criteria", "loss", "losses", "metric", "metrics", "psnr", "ssim", "lpips"),
    *("discriminator", "disc", "critic", "netd", "d", "vgg", "perceptual", "optimizer", "optim"),
    *("averaged", "ema", "step", "epoch", "initted", "lr"),
}
_MOST_LEVELS = 8
_MOST_PREFIXES = 64


class StateDict(NamedTuple):
    """Weights by name, and where they were."""

    keys: tuple[str, ...]
    """Names of the dictionaries that they are in, from the outermost."""
    prefix: str
    """What was before every name."""
    weights: Mapping[str, Any]

    @property
    def where(self) -> str:
        """In words; empty if they were all that there is."""
        names = [repr(key) for key in self.keys] + [repr(self.prefix)] * bool(self.prefix)
        return " > ".join(name[:80] for name in names)

    @property
    def rank(self) -> tuple[bool, bool, tuple[int, ...]]:
        """Smaller is preferred."""
        mixed = any(isinstance(value, Mapping) for value in self.weights.values())
        parts = [*self.keys, *self.prefix.split(".")[:-1]]
        parts = [part for part in parts if part not in _TRANSPARENT]
        averaged = any(_AVERAGED & _words(part) for part in parts)
        return mixed, not averaged, tuple(map(_rank, parts))


def state_dicts(content: Any) -> list[StateDict]:
    """The dictionaries in `content` that hold tensors by name, preferred ones first.

    Example:
        >>> one, other = {"conv.weight": torch.ones(1)}, {"conv.weight": torch.zeros(1)}
        >>> [found.keys for found in state_dicts({"epoch": 3, "params": one, "ema": other})]
        [('ema',), ('params',)]
    """
    found: list[StateDict] = []
    seen: set[int] = set()
    left: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    while left:
        keys, value = left.popleft()
        if not isinstance(value, Mapping) or id(value) in seen or len(keys) > _MOST_LEVELS:
            continue
        seen.add(id(value))  # It may hold itself.
        texts = [key for key in value if isinstance(key, str)]
        if len(texts) == len(value) and any(isinstance(v, Tensor) for v in value.values()):
            found.append(StateDict(keys, "", value))
        left.extend(((*keys, key), value[key]) for key in texts)
    return sorted(found, key=lambda state: state.rank)


def plainly_named(state: StateDict) -> StateDict:
    """Without the prefixes of DataParallel and `torch.compile`, if all names have them."""
    for prefix in (f"{name}." for name in _TRANSPARENT):
        if all(name.startswith(prefix) for name in state.weights):
            return plainly_named(_inside(state, prefix, lambda name, value: True))
    return state


def candidates(
    states: Iterable[StateDict], layers: Collection[str], kept: Collection[str] = ()
) -> Iterator[StateDict]:
    """State dicts of a network in `states`, under every prefix that it can have.

    Args:
        states: Where to look.
        layers: Names of weights, one of which the network has.
        kept: Names that are the network's even if they look like those of a loss.

    Yields:
        State dicts without the prefix, and without what belongs to the training: losses, metrics,
        discriminators and values that are no tensors. Outside of a prefix that is no usual one
        must be nothing else.
    """

    def is_wanted(name: str, value: Any) -> bool:
        return name in kept or (isinstance(value, Tensor) and not _is_foreign(name))

    for state in states:
        names = state.weights
        ends = {
            name.removesuffix(layer) for layer in layers for name in names if name.endswith(layer)
        }
        prefixes = [end for end in sorted(ends) if end == "" or end.endswith(".")]
        for prefix in prefixes[:_MOST_PREFIXES]:
            if all(_is_apart(name, prefix) for name in names):
                yield _inside(state, prefix, is_wanted)


def preferred(found: Sequence[StateDict]) -> StateDict:
    """The one that is meant.

    Args:
        found: At least one.

    Raises:
        ValueError: Two that differ could be.
    """
    first, *others = sorted(found, key=lambda state: state.rank)
    for other in others:
        if other.rank == first.rank and not _same(first.weights, other.weights):
            raise ValueError(
                f"it holds several networks that fit, under {first.where} and under "
                f"{other.where}; save the one that is meant alone: {extraction(first)}"
            )
    return first


def extraction(state: StateDict) -> str:
    """A line of Python that saves a state dict alone."""
    part = "torch.load(FILE)" + "".join(f"[{key[:80]!r}]" for key in state.keys)
    if not state.prefix:
        return f"torch.save({part}, NEW)"
    prefix = repr(state.prefix[:80])
    return (
        f"torch.save({{n.removeprefix({prefix}): t for n, t in {part}.items() "
        f"if n.startswith({prefix})}}, NEW)"
    )


def _words(part: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", part.lower()))


def _rank(part: str) -> int:
    kept = [w for w in re.split(r"[^a-z0-9]+", part.lower()) if w not in _AVERAGED]
    names = [name.lower() for name in PREFERRED]
    name = "_".join(kept)
    return names.index(name) if name in names else len(names)


def _inside(state: StateDict, prefix: str, is_wanted: Callable[[str, Any], bool]) -> StateDict:
    weights: OrderedDict[str, Any] = OrderedDict(
        (name.removeprefix(prefix), value)
        for name, value in state.weights.items()
        if name.startswith(prefix) and is_wanted(name.removeprefix(prefix), value)
    )
    # Versions of modules, which tell them how to read what older ones wrote.
    versions = getattr(state.weights, "_metadata", None)
    if isinstance(versions, Mapping):
        weights._metadata = OrderedDict(  # type: ignore[attr-defined]
            (f"{module}.".removeprefix(prefix)[:-1], said)
            for module, said in versions.items()
            if f"{module}.".startswith(prefix)
        )
    return StateDict(state.keys, state.prefix + prefix, weights)


def _is_foreign(name: str) -> bool:
    return bool(_FOREIGN & _words(name.partition(".")[0]))


def _is_apart(name: str, prefix: str) -> bool:
    """Whether a name is under a prefix, or of something else than the network that it is of."""
    if name.startswith(prefix):
        return True
    wrapper = True
    for outer in prefix.split("."):
        inner, _, rest = name.partition(".")
        if inner != outer:
            # Beside a usual wrapper of the whole network anything may stand.
            return (wrapper and bool(_WRAPPING & _words(outer))) or _is_foreign(name)
        wrapper, name = wrapper and inner in _TRANSPARENT, rest
    return False


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    def equal(name: str) -> bool:
        a, b = one[name], other[name]
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return a is b
        plain = a.layout == b.layout == torch.strided and a.dtype == b.dtype
        return a is b or (plain and torch.equal(a, b))

    return one.keys() == other.keys() and all(map(equal, one))
