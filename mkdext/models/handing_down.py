"""A small network that begins with layers and channels of a large one of its family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mkdext.models.blocks import SRNetwork, counterpart
from mkdext.models.channels import Slots, space_of
from mkdext.models.handling import unwrapped
from mkdext.models.registry import create_model, names_of

_LEAST = torch.finfo(torch.float32).tiny


def hand_down(teacher: nn.Module, student: nn.Module) -> None:
    """Give a student the parts and channels of its teacher that count most.

    Of equal parts it takes evenly spaced ones, those that are distillation points by default. Of
    each space of channels (`mkdext.models.channels`) it takes those with the largest sum of the L1
    norms of the weights that write and read them, as shares of their layers; the same ones in all
    layers. The weights of a layer that then reads fewer channels are multiplied so that their norm
    stays, and with it about the variance of what it makes.

    Args:
        teacher: A network of this package, at the student's scale.
        student: One of the same class that has no more of anything; all its weights are changed.

    Raises:
        ValueError: They are of different classes, or the student has more of something; the
            students that would do are named.

    Example:
        >>> teacher, student = create_model("rcan-c", scale=4), create_model("rcan-a", scale=4)
        >>> hand_down(teacher, student)
        >>> torch.equal(student.tail[1].bias, teacher.tail[1].bias)
        True
    """
    if not isinstance(teacher, SRNetwork) or not _can_take(student, teacher):
        raise _no_pair(student, teacher)
    assert isinstance(student, SRNetwork)
    given = teacher.state_dict()
    state = {n: given[counterpart(student, teacher.config, n)] for n in student.state_dict()}
    layers = {
        name.removesuffix(".weight"): weight
        for name, weight in state.items()
        if name.endswith(".weight") and weight.ndim > 1
    }
    sides = {layer: _sides(layer, student, teacher) for layer in layers}
    kept = _most_important((weight, sides[layer]) for layer, weight in layers.items())
    for layer, weight in layers.items():
        writes, reads = sides[layer]
        read = reads.taken(weight, 1, kept)
        read = read * (weight.norm() / read.norm().clamp(min=_LEAST))
        state[f"{layer}.weight"] = writes.taken(read, 0, kept)
        bias = f"{layer}.bias"
        if bias in state:
            state[bias] = writes.taken(state[bias], 0, kept)
    student.load_state_dict(
        {name: student.handed(name, weight, teacher.config) for name, weight in state.items()}
    )


class _Side(NamedTuple):
    """What a layer writes or reads."""

    own: Slots
    """The student's layer, by slots of the teacher."""
    given: Slots
    """The teacher's layer."""

    def taken(self, tensor: Tensor, dim: int, kept: Mapping[str, Tensor]) -> Tensor:
        """The part of the teacher's tensor that belongs to what the student has.

        Args:
            tensor: Of the teacher's layer.
            dim: In which its channels are.
            kept: Numbers of the channels that are kept of each space.
        """
        begins = dict(zip(self.given, accumulate(self.given.values(), initial=0), strict=False))
        chosen = torch.cat([begins[slot] + kept[space_of(slot)] for slot in self.own])
        each = tensor.shape[dim] // sum(self.given.values())  # several before a pixel shuffle
        return tensor.index_select(dim, (each * chosen[:, None] + torch.arange(each)).flatten())


def _sides(layer: str, student: SRNetwork, teacher: SRNetwork) -> tuple[_Side, _Side]:
    """What a layer of the student writes and reads, and the same layer of the teacher."""

    def theirs(name: str) -> str:
        return counterpart(student, teacher.config, name)

    own, given = student.channels(layer), teacher.channels(theirs(layer))
    writes, reads = (
        _Side({":".join(map(theirs, slot.split(":"))): n for slot, n in side.items()}, there)
        for side, there in zip(own, given, strict=True)
    )
    return writes, reads


def _most_important(layers: Iterable[tuple[Tensor, tuple[_Side, _Side]]]) -> dict[str, Tensor]:
    """Numbers of the channels that are kept of each space, in order."""
    norms: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for weight, sides in layers:
        for dim, (own, given) in enumerate(sides):
            sums = weight.abs().transpose(0, dim).flatten(1).sum(dim=1)
            # Layers differ in size: those of the colours' end see 255 levels.
            shares = (sums / sums.sum().clamp(min=_LEAST)).view(sum(given.values()), -1).sum(dim=1)
            for slot, part in zip(given, torch.split(shares, [*given.values()]), strict=True):
                space = space_of(slot)
                norms[space] = norms.get(space, torch.zeros_like(part)) + part
            counts |= {space_of(slot): count for slot, count in own.items()}
    return {name: norms[name].topk(count).indices.sort().values for name, count in counts.items()}


def _can_take(student: nn.Module, teacher: SRNetwork) -> bool:
    """Whether all that a student has is there in the teacher."""
    if not isinstance(student, SRNetwork) or type(student) is not type(teacher):
        return False
    for count in teacher.rows.values():
        if getattr(student.config, count) > getattr(teacher.config, count):
            return False
    return all(
        count <= side.given.get(slot, 0)
        for name, module in student.named_modules()
        if hasattr(module, "weight")
        for side in _sides(name, student, teacher)
        for slot, count in side.own.items()
    )


def _no_pair(student: nn.Module, teacher: nn.Module) -> ValueError:
    kinds = [_described(network) for network in (student, teacher)]
    said = f"`student_init` teacher: {kinds[0]} cannot begin with weights of {kinds[1]}"
    if not isinstance(teacher, SRNetwork):
        return ValueError(
            f"{said}, which is no network of this package; take `student_init` random"
        )
    with torch.device("meta"):
        students = {name: create_model(name, teacher.scale) for name in names_of(type(teacher))}
    names = [f"`student` {n}" for n, network in students.items() if _can_take(network, teacher)]
    instead = [*names, "a larger teacher of the student's family", "`student_init` random"]
    return ValueError(
        f"{said}: it must be of the teacher's family and have no more of anything; take "
        f"{' or '.join(instead)}"
    )


def _described(network: nn.Module) -> str:
    if isinstance(network, SRNetwork):
        return str(network.config).replace("Config", "", 1)
    return type(unwrapped(network)).__name__
