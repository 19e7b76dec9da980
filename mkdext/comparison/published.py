"""The numbers of the MKD paper: its Tables 2, 4 and 5, as printed."""

from __future__ import annotations

import re
from typing import NamedTuple

SOURCE = "Meta Knowledge Distillation paper, Tables 2, 4 and 5"
SCALE = 4
SETS = ("Set5", "Set14", "BSD100", "Urban100")

_TABLES = """
rcan-a vanilla   30.71 .8658 27.67 .7562 26.96 .7162 24.58 .7300
rcan-a fitnet    30.70 .8665 27.68 .7568 26.97 .7168 24.60 .7313
rcan-a at        30.67 .8648 27.65 .7557 26.95 .7156 24.56 .7289
rcan-a vid       30.77 .8673 27.70 .7571 26.98 .7169 24.63 .7323
rcan-a fakd      30.72 .8660 27.66 .7563 26.96 .7165 24.59 .7303
rcan-a ickd      30.77 .8665 27.69 .7566 26.97 .7165 24.63 .7315
rcan-a l2t-ww    30.87 .8690 27.75 .7582 27.02 .7182 24.68 .7340
rcan-a pisr      30.86 .8688 27.78 .7589 27.00 .7178 24.68 .7347
rcan-a mkd       30.94 .8701 27.82 .7597 27.04 .7186 24.73 .7364
rcan-a mkd-case1 30.80 .8676 27.73 .7579 27.00 .7172 24.65 .7330
rcan-a mkd-case2 30.80 .8681 27.75 .7583 27.01 .7178 24.67 .7339
rcan-a mkd-case3 30.81 .8681 27.75 .7583 27.01 .7178 24.67 .7343
rcan-b vanilla   31.24 .8752 27.99 .7640 24.17 .7231 24.94 .7459
rcan-b fitnet    31.35 .8775 28.07 .7669 24.22 .7248 25.06 .7507
rcan-b at        31.26 .8758 28.02 .7648 27.20 .7237 25.01 .7490
rcan-b vid       31.32 .8764 28.07 .7657 27.21 .7241 25.04 .7501
rcan-b fakd      31.31 .8767 28.03 .7651 27.19 .7241 25.00 .7485
rcan-b ickd      31.27 .8760 28.02 .7650 27.19 .7237 25.01 .7489
rcan-b l2t-ww    31.39 .8784 28.08 .7664 27.22 .7248 25.09 .7516
rcan-b pisr      31.40 .8785 20.10 .7664 27.23 .7250 25.11 .7528
rcan-b mkd       31.47 .8798 28.16 .7680 27.27 .7264 25.19 .7562
rcan-b mkd-case1 31.34 .8772 28.06 .7660 27.21 .7244 25.04 .7501
rcan-b mkd-case2 31.48 .8798 28.14 .7676 27.25 .7258 25.14 .7541
rcan-b mkd-case3 31.36 .8778 28.08 .7665 27.23 .7250 25.07 .7518
rcan-c vanilla   31.77 .8841 28.31 .7724 27.39 .7305 25.51 .7674
rcan-c fitnet    31.94 .8870 28.38 .7740 27.43 .7319 25.61 .7710
rcan-c at        31.85 .8860 28.36 .7737 27.41 .7312 25.58 .7696
rcan-c vid       31.89 .8861 28.38 .7740 27.42 .7314 25.59 .7701
rcan-c fakd      31.89 .8865 28.38 .7741 27.43 .7319 25.57 .7696
rcan-c ickd      31.85 .8854 28.34 .7732 27.40 .7309 25.55 .7690
rcan-c l2t-ww    31.91 .8862 28.37 .7739 27.42 .7316 25.61 .7704
rcan-c pisr      31.96 .8873 28.40 .7749 27.45 .7321 25.65 .7720
rcan-c mkd       31.96 .8871 28.40 .7746 27.45 .7325 25.71 .7742
rcan-c mkd-case1 31.84 .8854 28.34 .7733 27.41 .7313 25.56 .7695
rcan-c mkd-case2 31.90 .8863 28.38 .7739 27.43 .7317 25.62 .7713
rcan-c mkd-case3 31.90 .8859 28.39 .7741 27.43 .7317 25.61 .7706
edsr-s vanilla   30.61 .8632 27.59 .7542 26.92 .7143 24.49 .7264
edsr-s mkd       30.84 .8681 27.74 .7575 27.01 .7172 24.65 .7332
rdn-s  vanilla   31.12 .8741 27.94 .7632 27.13 .7220 24.90 .7440
rdn-s  mkd       31.38 .8787 28.11 .7674 27.24 .7252 25.12 .7527
san-s  vanilla   30.65 .8648 27.61 .7549 26.95 .7156 24.54 .7285
san-s  mkd       30.94 .8697 27.83 .7592 27.07 .7193 24.77 .7379
han-s  vanilla   31.32 .8768 28.02 .7650 27.20 .7244 25.04 .7499
han-s  mkd       31.51 .8802 28.14 .7676 23.27 .7264 25.18 .7555
"""

# Each is 3 to 8 dB away from its neighbours, which are within 0.1 dB of each other.
_MISPRINTS = {
    ("rcan-b", "vanilla", "BSD100"),
    ("rcan-b", "fitnet", "BSD100"),
    ("rcan-b", "pisr", "Set14"),
    ("han-s", "mkd", "BSD100"),
}
_OTHER_NAMES = {"b100": "bsd100", "bsds100": "bsd100"}


class Published(NamedTuple):
    """What the paper reports of one student, method and set, at x4."""

    psnr_y: float
    """dB."""
    ssim_y: float
    """At most 1."""
    misprint: bool
    """Whether the PSNR is printed wrongly, to judge by the numbers around it."""


def published(student: str, method: str, photographs: str, scale: int) -> Published | None:
    """The paper's number.

    Args:
        student: Name of the network.
        method: Name of the method.
        photographs: Name of a set, in any spelling such as `set5` or `B100`.
        scale: Enlargement factor.

    Returns:
        None where the paper has none.

    Example:
        >>> published("rcan-a", "mkd", "set5", scale=4)
        Published(psnr_y=30.94, ssim_y=0.8701, misprint=False)
    """
    name = re.sub(r"[\W_]", "", photographs).lower()
    known = {data.lower(): data for data in SETS}
    data = known.get(_OTHER_NAMES.get(name, name))
    return _NUMBERS.get((student, method, data)) if data and scale == SCALE else None


def _read() -> dict[tuple[str, str, str], Published]:
    numbers = {}
    for line in _TABLES.split("\n")[1:-1]:
        student, method, *values = line.split()
        pairs = zip(map(float, values[::2]), map(float, values[1::2]), strict=True)
        for data, (psnr, ssim) in zip(SETS, pairs, strict=True):
            key = (student, method, data)
            numbers[key] = Published(psnr, ssim, key in _MISPRINTS)
    return numbers


_NUMBERS = _read()
