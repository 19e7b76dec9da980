"""Contrastive model inversion (Fang et al., CMI, IJCAI 2021): eq. 10 to 12.

An instance discriminator learns to tell every made image from all others, also from those made
before, whose features a memory bank keeps; the generator learns to make it easy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mkdext._system.device import sent

EMBEDDING = 256
"""Numbers of an embedding."""


class InstanceDiscriminator(nn.Module):
    """h of eq. 11: from features of a view to its embedding, `[B, F]` -> `[B, 256]`, of norm 1.

    The inner product of two embeddings is the similarity of eq. 11. The features are brought to
    mean 0 and deviation 1 first: those of networks that work on 8-bit levels are large numbers with
    a large mean, which would make all embeddings alike.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: int) -> None:
        """Make a perceptron of one hidden layer for `features` numbers a view."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.layers = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, EMBEDDING)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Embed the features of views."""
        standard = (features - self.mean) / self.deviation
        return functional.normalize(self.layers(standard), dim=1)

    def standardise(self, features: Tensor) -> None:
        """Take mean and deviation of each feature from those of some images, `[B, F]`."""
        deviation, mean = torch.std_mean(features.detach(), dim=0)
        # A feature that is the same everywhere tells nothing, however small it is.
        self.deviation.copy_(deviation.clamp(min=1e-3 * deviation.mean().clamp(min=1e-6)))
        self.mean.copy_(mean)


def pooled(maps: Sequence[Tensor]) -> Tensor:
    """Features of a view: the spatial means of feature maps `[B, C_i, h, w]`, `[B, sum C_i]`."""
    return torch.cat([m.mean(dim=(2, 3)) for m in maps], dim=1)


def contrastive_loss(
    views: Tensor, others: Tensor, temperature: float = 0.1, positive_in_denominator: bool = True
) -> Tensor:
    """How badly each view finds the other view of its image among those of all: L_cr, eq. 12.

    Args:
        views: Embeddings `[N, E]` of norm 1.
        others: Embeddings of another view of the same images in the same order.
        temperature: tau.
        positive_in_denominator: Count the other view of the same image below the line too, as the
            code of CMI does: a cross-entropy, at least 0. Without, as eq. 12 is printed, the sum is
            over other images alone.

    Returns:
        `[N]`; their mean is the expectation of eq. 12.

    Example:
        >>> embeddings = torch.eye(3)
        >>> contrastive_loss(embeddings, embeddings, temperature=1.0).round(decimals=3)
        tensor([0.5510, 0.5510, 0.5510])
    """
    logits = views @ others.T / temperature
    positive = logits.diagonal()
    if not positive_in_denominator:
        same = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same, -torch.inf)
    return logits.logsumexp(dim=1) - positive


def discrimination_loss(
    discriminator: InstanceDiscriminator,
    local: Tensor,
    whole: Tensor,
    cached: Tensor,
    temperature: float = 0.1,
    positive_in_denominator: bool = True,
) -> Tensor:
    """The contrastive loss of a batch among itself and what a memory bank holds.

    Local views look for the global view of their image; no gradient flows through the latter. The
    mean over the batch and that over the cached images are added, so that what the batch counts
    does not depend on how full the bank is.

    Args:
        discriminator: h.
        local: Features of local views, `[B, F]`, with their graph.
        whole: Features of global views, `[B, F]`.
        cached: Features of earlier images, `[N, 2 * F]`: of the local and of the global view.
        temperature: As for `contrastive_loss`.
        positive_in_denominator: As for `contrastive_loss`.

    Returns:
        A scalar.
    """
    cached_local, cached_whole = cached.chunk(2, dim=1)
    views = discriminator(torch.cat((local, cached_local)))
    others = discriminator(torch.cat((whole, cached_whole))).detach()
    losses = contrastive_loss(views, others, temperature, positive_in_denominator)
    now, before = losses[: len(local)], losses[len(local) :]
    return now.mean() + before.mean() if len(cached) else now.mean()


class MemoryBank:
    """The features of the last images, in float32; the oldest leave first.

    It holds features, not images, because the discriminator sees those alone and goes on learning
    from them; and they take less room.

    Attributes:
        width: Numbers an image.
        capacity: Most images that it holds.

    Example:
        >>> bank = MemoryBank(width=4, max_bytes=48)
        >>> for image in torch.arange(20.0).view(5, 1, 4):
        ...     bank.add(image)
        >>> bank.capacity, bank.rows()[:, 0].tolist()
        (3, [8.0, 12.0, 16.0])
    """

    def __init__(self, width: int, max_bytes: int, device: torch.device | None = None) -> None:
        """Make an empty bank that takes at most `max_bytes` of memory.

        Raises:
            ValueError: That is not enough for one image.
        """
        self.width = width
        self.capacity = max_bytes // (4 * width)
        if not self.capacity:
            raise ValueError(f"MemoryBank: max_bytes must be at least {4 * width}, got {max_bytes}")
        self._rows = torch.zeros(self.capacity, width, device=device)
        self._written = 0

    def __len__(self) -> int:
        """Number of images in it."""
        return min(self._written, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes up."""
        return self._rows.nbytes

    def add(self, features: Tensor) -> None:
        """Take in images, `[B, width]`, in the place of the oldest.

        Raises:
            ValueError: The shape is another, or they are more than the bank can hold.
        """
        if features.shape[1:] != (self.width,) or len(features) > self.capacity:
            raise ValueError(
                f"MemoryBank: features must be [B, {self.width}] with B at most {self.capacity}, "
                f"got {list(features.shape)}"
            )
        places = (torch.arange(len(features)) + self._written) % self.capacity
        self._rows[sent(places, self._rows.device)] = features.detach().to(self._rows)
        self._written += len(features)

    def sample(self, count: int, random: torch.Generator) -> Tensor:
        """Different images drawn at random, `[min(count, len), width]`.

        Args:
            count: How many, if there are as many.
            random: Where the choice comes from, on the CPU.
        """
        chosen = torch.randperm(len(self), generator=random)[:count]
        return self._rows[sent(chosen, self._rows.device)]

    def rows(self) -> Tensor:
        """All images, the oldest first, `[len, width]`."""
        return self._rows[: len(self)].roll(-(self._written % max(len(self), 1)), 0)

    def state_dict(self) -> dict[str, Tensor]:
        """What `load_state_dict` needs."""
        return {"rows": self._rows[: len(self)].clone(), "written": torch.tensor(self._written)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put the bank back to what it was."""
        self._rows[: len(state["rows"])] = state["rows"].to(self._rows)
        self._written = int(state["written"])
