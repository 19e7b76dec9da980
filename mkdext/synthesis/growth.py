"""Students that grow: parts of the body are added one after another (eq. 5, Algorithm 1)."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from mkdext.models import HAN, RDN, SRNetwork
from mkdext.models.own import unwrapped


def part_counts(student: nn.Module, stages: int) -> list[int]:
    """How many parts of its body a student has in each stage, in the last one all.

    Args:
        student: The whole student.
        stages: P, how many.

    Raises:
        ValueError: The student cannot grow in as many stages.

    Example:
        >>> from mkdext.models import create_model
        >>> part_counts(create_model("vdsr-half", scale=2), stages=4)
        [5, 9, 14, 18]
    """
    if stages < 1:
        raise ValueError(f"`stages` must be at least 1, got {stages}")
    if not isinstance(student, SRNetwork):
        if stages == 1:
            return [1]
        raise ValueError(
            f"`stages` {stages}: {type(unwrapped(student)).__name__} is a network of yours, of "
            "which it is not known how it grows; take `stages` 1"
        )
    parts = len(student.stages())
    if stages > parts:
        raise ValueError(
            f"`stages` {stages}: {type(student).__name__} has {parts} "
            f"{_size_name(student)}, it can grow in at most as many stages; take `stages` {parts}"
        )
    return [math.ceil(stage * parts / stages) for stage in range(1, stages + 1)]


def with_parts(student: SRNetwork, parts: int) -> SRNetwork:
    """A network like `student` with a body of `parts` parts, with new random weights.

    Example:
        >>> from mkdext.models import create_model
        >>> with_parts(create_model("edsr-s", scale=4), parts=2).stages()
        ['body.0', 'body.1']
    """
    config = dataclasses.replace(student.config, **{_size_name(student): parts})
    return type(student)(config, student.scale)


def carry_over(trained: SRNetwork, student: SRNetwork) -> None:
    """Give a student the weights of the smaller one that it has grown from.

    Parts are appended at the end of the body. What follows the body keeps its weights; where it
    sees the outputs of all parts (RDN's global feature fusion, HAN's layer attention), the weights
    for the new parts stay as they are.

    Args:
        trained: What `with_parts` made, after training.
        student: The same network with as many parts or more, which is changed.
    """
    state = student.state_dict()
    for name, weight in trained.state_dict().items():
        own_name = name_in(student, trained, name)
        assert own_name is not None  # A grown student has all that it had.
        state[own_name] = _widened(student, own_name, weight, state[own_name])
    student.load_state_dict(state)


def name_in(other: SRNetwork, network: SRNetwork, name: str) -> str | None:
    """What a sub-module or weight of a network is called in the same network of another size.

    Args:
        other: The network of other size.
        network: The network that has `name`.
        name: Name of a sub-module, parameter or buffer.

    Returns:
        The name; none if it belongs to a part that `other` has not.

    Example:
        >>> from mkdext.models import create_model
        >>> whole = create_model("rcan-a", scale=4)
        >>> half = with_parts(whole, parts=2)
        >>> [name_in(half, whole, name) for name in ("body.1.body.0", "body.2", "body.4", "tail.0")]
        ['body.1.body.0', None, 'body.2', 'tail.0']
    """
    parts, others = network.stages(), other.stages()
    # The convolution that ends the body of RCAN, EDSR and HAN comes after the last part.
    end, number = f"body.{len(parts)}", f"body.{len(others)}"
    if name == end or name.startswith(f"{end}."):
        return number + name.removeprefix(end)
    missing = parts[len(others) :]
    return None if any(name == p or name.startswith(f"{p}.") for p in missing) else name


def _widened(student: SRNetwork, name: str, trained: Tensor, new: Tensor) -> Tensor:
    """A trained weight, with the new numbers for the outputs of parts that were added."""
    if trained.shape == new.shape:
        return trained
    features, channels = student.config.features, trained.shape[1]
    if isinstance(student, RDN) and name == "GFF.0.weight":
        return torch.cat((trained, new[:, channels:]), dim=1)
    assert isinstance(student, HAN) and name == "last_conv.weight"
    # The output of the whole body comes first, then those of the parts, the last one first.
    added = new[:, features : features + new.shape[1] - channels]
    return torch.cat((trained[:, :features], added, trained[:, features:]), dim=1)


def _size_name(student: SRNetwork) -> str:
    """What the parts of the body are called in the configuration."""
    return "groups" if hasattr(student.config, "groups") else "blocks"
