"""Checks of a zip archive, as `torch.save` writes it, before PyTorch opens it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from mkdext._system.reading import damaged_entry

_MOST_INFLATED = 64 << 20
_MOST_INFLATION = 16  # times the size of the file; torch.save does not compress
_SHOWN = 3


def check_archive(path: Path, what: str) -> None:
    """Check that an archive of `torch.save` is whole and becomes no larger than it can be.

    Args:
        path: A file that begins like a zip archive.
        what: Begins the sentence of an error: the kind of file and its path.

    Raises:
        ValueError: It is damaged, packs much more than weights can be packed, or is of another
            program than `torch.save`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_size(sum(entry.file_size for entry in entries), path.stat().st_size, what)
            _check_maker([entry.filename for entry in entries], what)
            broken = damaged_entry(archive)
    except ValueError:
        raise
    except Exception as error:  # A damaged archive can raise nearly anything.
        raise ValueError(
            f"{what} is damaged or cut off ({str(error)[:200] or type(error).__name__}); "
            "fetch or copy it again"
        ) from None
    if broken is not None:
        raise ValueError(
            f"{what} is damaged (the checksum of {broken[:80]} is wrong); fetch or copy it again"
        )


def _check_size(unpacked: int, size: int, what: str) -> None:
    if unpacked > _MOST_INFLATED + _MOST_INFLATION * size:
        raise ValueError(
            f"{what} has {size / 1e6:.1f} MB and would unpack to {unpacked / 1e6:,.0f} MB, more "
            "than weights can be packed; fetch or copy it again"
        )


def _check_maker(names: list[str], what: str) -> None:
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(
            f"{what} is a compiled program of TorchScript, which is not run; save its weights "
            "alone: torch.save(torch.jit.load(FILE).state_dict(), NEW)"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        held = ", ".join(name[:80] for name in names[:_SHOWN]) or "nothing"
        raise ValueError(
            f"{what} is a zip archive that torch.save did not make: it holds {held}; unpack it if "
            "there are weights in it, or save them with torch.save(model.state_dict(), FILE)"
        )
