"""What a checkpoint holds for an exact resume, checked before it counts."""

from __future__ import annotations

import dataclasses
import io
import math
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import Tensor, nn

from mkdext._system.errors import first_line, is_out_of_memory
from mkdext._system.files import atomic_write
from mkdext._system.reading import damaged_entry, entry, require_file

_Kind = TypeVar("_Kind")

_MOST_CHARACTERS = 300  # of what PyTorch says, which lists every name

_OF_A_PARAMETER: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
}
"""What optimizers keep of each parameter, but for those that tell it by a method `kept`."""


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replace a file by plain values and tensors."""
    # By way of memory, because torch.save does not tell what the system said of a full disk.
    content = serialized(state)
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(content.getbuffer())


def serialized(state: Mapping[str, Any]) -> io.BytesIO:
    """Plain values and tensors as a file in memory."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    content.seek(0)
    return content


@dataclasses.dataclass(frozen=True)
class SavedState:
    """Plain values and tensors by name, that are taken out only where they fit.

    Every method raises a `ValueError` that names the file, what is wrong, and what to do.
    """

    content: Any
    where: str
    """The file."""
    remedy: str
    """What to do about one that is of no use."""

    @classmethod
    def read(cls, path: Path, remedy: str) -> SavedState:
        """Read what `write_state` wrote; nothing of the file is run.

        Raises:
            ValueError: The file is damaged.
        """
        what = f"checkpoint {path}"
        require_file(path, what)
        with path.open("rb") as file:
            return cls.of(file, what, remedy)

    @classmethod
    def of(cls, file: IO[bytes], where: str, remedy: str) -> SavedState:
        """Read what `serialized` made.

        Raises:
            ValueError: It is damaged.
        """
        state = cls(None, where, remedy)
        try:
            with zipfile.ZipFile(file) as archive:
                packed = [i for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED]
                damaged = packed[0].filename if packed else damaged_entry(archive)
            if damaged:
                raise ValueError(f"in {damaged}")
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # A damaged archive or pickle fails in every way there is.
            if is_out_of_memory(error):
                raise
            raise state.unfit(f"is damaged ({first_line(error)})") from None
        return dataclasses.replace(state, content=content)

    def unfit(self, reason: str) -> ValueError:
        """An error to be raised."""
        return ValueError(f"{self.where} {reason}: {self.remedy}")

    def entry(self, name: str, kind: type[_Kind]) -> _Kind:
        """A value of a type."""
        try:
            return entry(self.content, name, kind, "it")
        except ValueError as error:
            raise self.unfit(f"does not fit ({error})") from None

    def number(self, name: str, least: int, most: float = math.inf) -> int:
        """A number from `least` to `most`."""
        value = self.entry(name, int)
        if not least <= value <= most:
            range_ = f"from {least} to {most}" if most < math.inf else f"at least {least}"
            raise self.unfit(f"does not fit ({name!r} must be {range_}, got {value})")
        return value

    def numbers(self, name: str) -> dict[str, float]:
        """Finite numbers by name."""
        values = self.entry(name, dict)
        for key, value in values.items():
            right = isinstance(key, str) and isinstance(value, int | float)
            if not right or isinstance(value, bool) or not math.isfinite(value):
                raise self.unfit(f"does not fit ({name!r} has {key!r}: {value!r})")
        return values

    def part(self, name: Any) -> SavedState:
        """What is there under a name, to be looked into."""
        if not isinstance(self.content, Mapping) or name not in self.content:
            raise self.unfit(f"does not fit (it has no {name!r})")
        return dataclasses.replace(self, content=self.content[name])

    def tensor(self, like: Tensor, what: str, rows: bool = False) -> Tensor:
        """A tensor of the same shape, but for the number of its `rows`, and of the same type."""
        there, skip = self.content, int(rows)
        if not isinstance(there, Tensor):
            raise self.unfit(f"does not fit ({what} is a {type(there).__name__})")
        same = there.layout == like.layout and there.dtype == like.dtype
        if not same or there.ndim != like.ndim or there.shape[skip:] != like.shape[skip:]:
            raise self.unfit(
                f"does not fit ({what} is {_in_words(there)}, must be {_in_words(like)})"
            )
        return there

    def load_module(self, name: str, module: nn.Module) -> None:
        """Give a module the weights that are there under a name.

        A module may decide about its buffers, which observers of ranges let grow.
        """
        there = self.part(name)
        trained = {parameter for parameter, _ in module.named_parameters()}
        if isinstance(there.content, Mapping):
            for key, own in module.state_dict().items():
                value = there.content.get(key)
                if not isinstance(own, Tensor) or not isinstance(value, Tensor):
                    continue
                if key in trained or value.shape == own.shape:
                    there.part(key).tensor(own, f"{name}, {key}")
        try:
            module.load_state_dict(there.content)
        except Exception as error:  # Whatever a module of the user's may raise.
            reason = textwrap.shorten(str(error), _MOST_CHARACTERS, placeholder=" ...")
            raise self.unfit(f"does not fit ({name}: {reason})") from None

    def load_optimizer(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimizer what is there under a name."""
        there, own = self.part(name), optimizer.state_dict()
        groups = there.entry("param_groups", list)
        if len(groups) != len(own["param_groups"]):
            raise self.unfit(f"does not fit ({name} is of other parameters)")
        for group, own_group in zip(groups, own["param_groups"], strict=True):
            inner = dataclasses.replace(there, content=group)
            if not math.isfinite(inner.entry("lr", float)):
                raise self.unfit(f"does not fit ({name} has a learning rate of {group['lr']})")
            inner.entry("params", list)
            for key in group.keys() & own_group.keys() - {"lr"}:
                if group[key] != own_group[key]:
                    raise self.unfit(f"does not fit ({name} differs in {key!r})")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        kept = there.entry("state", dict)
        for index in kept:
            if index not in range(len(parameters)):
                raise self.unfit(f"does not fit ({name} is of other parameters)")
            there._check_kept(name, optimizer, index, parameters[index])
        optimizer.load_state_dict(there.content)

    def _check_kept(
        self, name: str, optimizer: torch.optim.Optimizer, index: int, parameter: Tensor
    ) -> None:
        of_one = self.part("state").part(index)
        kept = getattr(optimizer, "kept", None)
        names = kept(parameter) if kept else _OF_A_PARAMETER[type(optimizer)]
        if not isinstance(of_one.content, Mapping) or set(of_one.content) != names:
            raise self.unfit(f"does not fit ({name} is of another optimizer)")
        for key in names:
            if of_one.content[key] is None:  # no step so far
                continue
            like = torch.zeros(()) if key == "step" else parameter
            value = of_one.part(key).tensor(like, f"{name}, {key}")
            if key == "step" and not value >= 0:
                raise self.unfit(f"does not fit ({name} has a step of {value.item()})")


def _in_words(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
