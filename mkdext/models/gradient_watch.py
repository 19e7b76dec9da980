"""Parameters that no gradient reaches, which a training would leave as they are without a word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

STEPS = 20
"""Steps that are looked at: what is zero at first mostly moves after one."""

_LISTED = 5
_LEAST = 0.01  # share of the numbers; fewer have a gradient of zero where a ReLU is shut at first


class GradientWatch:
    """Sees which of the trained parameters of a network have had a gradient so far."""

    def __init__(self, network: nn.Module) -> None:
        """Take a network with its parameters."""
        named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
        self.sizes = {name: parameter.numel() for name, parameter in named}
        self.steps = 0
        """Steps seen."""
        self._apart = set(self.sizes)
        self._reached: Tensor | None = None

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Look at the gradients of a step, in the order of the parameters; only at first ones.

        None: the result was not computed with the parameter.
        """
        self.steps += 1
        if self.steps > STEPS:
            return
        named = list(zip(self.sizes, gradients, strict=True))
        self._apart -= {name for name, gradient in named if gradient is not None}
        device = next((g.device for g in gradients if g is not None), None)
        none = torch.zeros((), dtype=torch.bool, device=device)
        # Not read here, where a GPU would be waited for.
        reached = torch.stack([none if g is None else g.any() for g in gradients])
        self._reached = reached if self._reached is None else self._reached | reached

    def silent(self) -> set[str]:
        """Names of the parameters that no gradient has reached; waits for a GPU.

        Those that were computed with, but only had a gradient of zero, count where they are more
        than a few.
        """
        if self._reached is None:
            return set()
        reached = self._reached.tolist()
        zero = {name for name, has in zip(self.sizes, reached, strict=True) if not has}
        share = sum(self.sizes[name] for name in zero) / sum(self.sizes.values())
        return zero if share > _LEAST else self._apart


def silence_in_words(watches: Iterable[GradientWatch], is_last: bool) -> str | None:
    """What to tell of parameters without a gradient, once enough steps were seen.

    Args:
        watches: Of one network, which may be trained at several scales.
        is_last: Whether no step follows.

    Returns:
        A sentence; none if it is not the time, or there is nothing to tell.
    """
    seen = [watch for watch in watches if watch.steps]
    steps = sum(watch.steps for watch in seen)
    if not seen or not (steps == STEPS or (is_last and steps < STEPS)):
        return None
    sizes, silent = seen[0].sizes, set.intersection(*(watch.silent() for watch in seen))
    if not silent:
        return None
    names = [name.removeprefix("network.") for name in sizes if name in silent]
    share = sum(sizes[name] for name in silent) / sum(sizes.values())
    listed = ", ".join(names[:_LISTED]) + ", ..." * (len(names) > _LISTED)
    most = "; this is most of the student, which is hardly trained" * (share > 0.5)
    return (
        f"no gradient has reached {len(names)} of the student's {len(sizes)} parameters in "
        f"{steps} step{'s' * (steps > 1)}, {share:.0%} of its numbers: {listed}{most}"
    )
