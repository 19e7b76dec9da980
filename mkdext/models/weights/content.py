"""What weights files hold, read without executing anything."""

from __future__ import annotations

import contextlib
import pickle
import re
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mkdext._system.reading import require_file
from mkdext.models.weights.archives import check_archive
from mkdext.models.weights.metadata import METADATA_KEY, WeightsMetadata
from mkdext.models.weights.pickled_modules import read_pickled_modules
from mkdext.models.weights.state_tensors import from_tensors

# Tied weights and expanded tensors are in a file once.
_MOST_REPEATED = 64 << 20  # bytes
_MOST_REPETITIONS = 64
_LONGEST_REASON = 200


def read_content(path: Path) -> Any:
    """All that a weights file holds: a state dict, or what `torch.save` was given.

    The format is told from the content, not from the name.

    Raises:
        ValueError: The file is missing, no regular file, unreadable, empty, damaged, of another
            format, asks for code, or holds what is no plain tensor.
    """
    what = f"weights file {path}"
    start = _beginning(path, what)
    if _is_safetensors(start):
        metadata = file_metadata(path)
        try:
            with _named_in_utf8(path) as named:
                tensors = load_file(named)
        except Exception as error:  # Also of kinds of numbers that this PyTorch has not.
            raise _damaged(what, error) from None
        if not tensors:
            raise ValueError(f"{what} holds no tensor; name a file with weights")
        return from_tensors(tensors, metadata.state if metadata else {}, f"{what}: its metadata")
    if start.startswith(b"PK\3\4"):
        check_archive(path, what)
    elif not start.startswith(b"\x80"):
        raise ValueError(
            f"{what} is neither a safetensors file nor one made by torch.save: "
            f"it begins with {start!r}; fetch or copy it again"
        )
    content = _read_pickle(path, what)
    _check_tensors(content, path.stat().st_size, what)
    return content


def file_metadata(path: Path) -> WeightsMetadata | None:
    """What a weights file says of itself; none if it says nothing.

    Raises:
        ValueError: The file cannot be read, is damaged, or says what cannot be.
    """
    what = f"weights file {path}"
    if not _is_safetensors(_beginning(path, what)):
        return None
    try:
        with _named_in_utf8(path) as named, safe_open(named, framework="pt") as content:
            text = (content.metadata() or {}).get(METADATA_KEY)
    except SafetensorError as error:
        raise _damaged(what, error) from None
    try:
        return None if text is None else WeightsMetadata.from_json(text)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


@contextlib.contextmanager
def _named_in_utf8(path: Path) -> Iterator[Path]:
    """A path to a file that safetensors opens, which knows no other names."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield Path(f"/dev/fd/{file.fileno()}")
    else:
        yield path


def _beginning(path: Path, what: str) -> bytes:
    require_file(path, what)
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ValueError(f"{what} cannot be read: {error.strerror}") from None
    if not start:
        raise ValueError(f"{what} is empty; fetch or copy it again")
    return start


def _is_safetensors(start: bytes) -> bool:
    # The length of the header in 8 bytes, then the header, which is JSON.
    return start[4:9] == b"\0\0\0\0{"


def _read_pickle(path: Path, what: str) -> Any:
    try:
        # Given a path, torch.load judges the format by the suffix.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with torch.serialization.safe_globals(_harmless()):
                    return torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                file.seek(0)
                return read_pickled_modules(file)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        elsewhere = (
            ", or where it was written, and only if you trust it: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)"
        )
        raise ValueError(
            f"{what} is a pickle that asks for "
            f"{asked[1][:_LONGEST_REASON] if asked else 'more than tensors'}, which could execute "
            "code, so it was not loaded; save the tensors alone: "
            f"torch.save(model.state_dict(), FILE){elsewhere if asked else ''}"
        ) from None
    except Exception as error:  # A damaged pickle can raise nearly anything.
        raise _damaged(what, error) from None


def _harmless() -> list[Any]:
    """Classes that training programs leave in files, and that only hold values."""
    arrays = [
        (like.__reduce__()[0], f"{module}.multiarray.{name}")
        for module in ("numpy.core", "numpy._core")
        for name, like in (("scalar", np.float64()), ("_reconstruct", np.empty(0)))
    ]
    dtypes = [getattr(np.dtypes, name) for name in np.dtypes.__all__]
    paths = [
        (kind, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for kind, name in ((PurePosixPath, "PosixPath"), (PureWindowsPath, "WindowsPath"))
    ]
    times = [datetime, timedelta, timezone]
    return [Namespace, np.dtype, np.ndarray, *arrays, *dtypes, *paths, *times]


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors in containers, by the name that is nearest to them."""
    seen: set[int] = set()
    left = [("", content)]
    while left:
        name, value = left.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))  # It may hold itself.
            if isinstance(value, Mapping):
                left.extend((str(key)[:80], inner) for key, inner in value.items())
            else:
                left.extend((name, inner) for inner in value)


def _check_tensors(content: Any, size: int, what: str) -> None:
    """Check that tensors of a file of `size` bytes have numbers, and no more than it can hold."""
    claimed = 0
    for name, tensor in _tensors(content):
        kind = "nested" if tensor.is_nested else "meta" if tensor.is_meta else None
        if kind is not None:
            raise ValueError(
                f"{what}: {name} is a {kind} tensor, which has no numbers in rows and columns; "
                "save plain tensors: torch.save(model.state_dict(), FILE)"
            )
        claimed += tensor.numel() * tensor.element_size()
        if claimed > _MOST_REPEATED + _MOST_REPETITIONS * size:
            raise ValueError(
                f"{what} has {size / 1e6:.1f} MB and tensors of {claimed / 1e6:,.0f} MB and more, "
                f"{name} of {list(tensor.shape)}; fetch or copy it again"
            )


def _damaged(what: str, error: Exception) -> ValueError:
    reason = re.split(r"\. |\n", str(error))[0][:_LONGEST_REASON] or type(error).__name__
    return ValueError(f"{what} is damaged or cut off ({reason}); fetch or copy it again")
