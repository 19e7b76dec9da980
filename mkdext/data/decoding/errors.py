"""What a file that cannot be used is told as, whatever a decoder makes of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mkdext._system.streams import printable

_LONGEST_REASON = 200


class BadImageError(ValueError):
    """A file that cannot be used as a photograph; the message says why."""


@contextlib.contextmanager
def told_as_bad_image() -> Iterator[None]:
    """Make every failure of reading and decoding a `BadImageError` of one line."""
    try:
        yield
    except BadImageError:
        raise
    except MemoryError:
        raise BadImageError("needs more memory to decode than there is") from None
    except OSError as error:
        if error.strerror:
            raise BadImageError(f"cannot be read ({error.strerror})") from None
        raise _cannot_be_decoded(error) from None
    # Decoders raise whatever a damaged file makes them stumble over.
    except Exception as error:
        raise _cannot_be_decoded(error) from None


def _cannot_be_decoded(error: Exception) -> BadImageError:
    reason = printable(" ".join(str(error).split()))[:_LONGEST_REASON]
    return BadImageError(f"cannot be decoded ({reason or type(error).__name__})")
