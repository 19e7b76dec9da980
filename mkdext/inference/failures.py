"""What a picture of a batch may fail by, while the others go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mkdext._system.errors import is_out_of_memory, out_of_memory_message
from mkdext.data import BadImage, BadImageError
from mkdext.inference.networks import EnlargementError


@contextlib.contextmanager
def noted(failed: list[BadImage], path: Path, advice: str) -> Iterator[None]:
    """Add a picture that cannot be used, or that takes too much memory, to those that failed.

    Args:
        failed: Those before.
        path: The picture.
        advice: What to do where memory is exhausted.
    """
    try:
        yield
    except (BadImageError, EnlargementError) as error:
        failed.append(BadImage(path, str(error)))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failed.append(BadImage(path, f"{out_of_memory_message(error)}; {advice}"))
