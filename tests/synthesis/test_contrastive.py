from __future__ import annotations

import math

import pytest
import torch

from mkdext.synthesis import InstanceDiscriminator, MemoryBank, contrastive_loss
from mkdext.synthesis.contrastive import discrimination_loss, pooled


def similarity(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


@pytest.mark.parametrize("positive", [True, False])
def test_the_loss_is_that_of_the_formula(positive: bool):
    torch.manual_seed(0)
    views, others = torch.nn.functional.normalize(torch.randn(2, 4, 5, dtype=torch.float64), dim=2)
    losses = contrastive_loss(views, others, 0.2, positive)
    for i in range(4):
        terms = [math.exp(similarity(views[i], others[j]) / 0.2) for j in range(4)]
        below = sum(term for j, term in enumerate(terms) if positive or j != i)
        assert losses[i].item() == pytest.approx(-math.log(terms[i] / below))
    assert positive == bool((losses >= 0).all())


def test_embeddings_have_norm_one_and_come_from_one_hidden_layer():
    torch.manual_seed(0)
    discriminator = InstanceDiscriminator(6).double()
    features = torch.randn(3, 6, dtype=torch.float64)
    weights = discriminator.state_dict()
    hidden = (features @ weights["layers.0.weight"].T + weights["layers.0.bias"]).clamp(min=0)
    embedding = hidden @ weights["layers.2.weight"].T + weights["layers.2.bias"]
    expected = embedding / embedding.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(discriminator(features), expected)


def test_features_of_a_view_are_the_means_of_all_maps():
    maps = [torch.rand(2, 3, 4, 5), torch.rand(2, 1, 2, 2)]
    expected = [[float(m[b, c].mean()) for m in maps for c in range(m.shape[1])] for b in range(2)]
    torch.testing.assert_close(pooled(maps), torch.tensor(expected))


@pytest.mark.parametrize("cached", [0, 3])
def test_batch_and_bank_count_by_their_own_means(cached: int):
    torch.manual_seed(0)
    discriminator = InstanceDiscriminator(4)
    local, whole, old = torch.randn(2, 4), torch.randn(2, 4), torch.randn(cached, 8)
    loss = discrimination_loss(discriminator, local, whole, old)
    views = discriminator(torch.cat((local, old[:, :4])))
    others = discriminator(torch.cat((whole, old[:, 4:])))
    losses = contrastive_loss(views, others)
    expected = losses[:2].mean() + (losses[2:].mean() if cached else 0)
    torch.testing.assert_close(loss, expected)


def test_the_gradient_flows_through_the_local_view_alone():
    discriminator = InstanceDiscriminator(4)
    local, whole = torch.randn(2, 2, 4).requires_grad_().unbind()
    loss = discrimination_loss(discriminator, local, whole, torch.randn(3, 8))
    gradients = torch.autograd.grad(
        loss, (local, whole, *discriminator.parameters()), allow_unused=True
    )
    assert gradients[1] is None
    assert all(g.abs().max() > 0 for g in (gradients[0], *gradients[2:]))


def test_the_discriminator_learns_to_tell_images_apart():
    torch.manual_seed(0)
    images = torch.randn(16, 8)
    discriminator = InstanceDiscriminator(8)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        local, whole = images + 0.3 * torch.randn(2, 16, 8)
        loss = discrimination_loss(discriminator, local, whole, torch.empty(0, 16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_the_bank_keeps_the_last_images_in_order():
    bank = MemoryBank(width=2, max_bytes=5 * 2 * 4 + 7)
    assert (bank.capacity, len(bank), bank.nbytes) == (5, 0, 40)
    everything = torch.arange(26.0).view(13, 2)
    taken = 0
    for count in (2, 2, 3, 5, 1):
        bank.add(everything[taken : taken + count])
        taken += count
        torch.testing.assert_close(bank.rows(), everything[max(0, taken - 5) : taken])
    assert len(bank) == 5 and bank.nbytes == 40


def test_a_sample_holds_different_images_and_never_more_than_there_are():
    bank = MemoryBank(width=1, max_bytes=400)
    assert bank.sample(3, torch.Generator()).shape == (0, 1)
    bank.add(torch.arange(50.0).view(50, 1))
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    first, again, other = (bank.sample(20, seed).flatten().tolist() for seed in seeds)
    assert len(set(first)) == 20 and set(first) <= set(range(50))
    assert first == again != other
    assert bank.sample(99, torch.Generator()).shape == (50, 1)


def test_a_bank_goes_on_from_its_state():
    bank, other = (MemoryBank(width=1, max_bytes=12) for _ in range(2))
    bank.add(torch.tensor([[1.0], [2.0]]))
    bank.add(torch.tensor([[3.0], [4.0]]))
    other.load_state_dict(bank.state_dict())
    for each in (bank, other):
        each.add(torch.tensor([[5.0]]))
        assert each.rows().flatten().tolist() == [3.0, 4.0, 5.0]


def test_what_does_not_fit_a_bank_is_told():
    bank = MemoryBank(width=2, max_bytes=16)
    with pytest.raises(ValueError, match=r"must be \[B, 2\] with B at most 2, got \[3, 2\]"):
        bank.add(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"got \[1, 3\]"):
        bank.add(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="max_bytes must be at least 8, got 7"):
        MemoryBank(width=2, max_bytes=7)


def test_features_are_brought_to_mean_zero_and_deviation_one():
    torch.manual_seed(0)
    deviations, means = 10 ** torch.linspace(-2, 2, 32), torch.linspace(-90, 90, 32)
    usual = deviations * torch.randn(200, 32) + means
    usual[:, 0] = 7  # A feature that is the same everywhere.
    discriminator = InstanceDiscriminator(32)
    before = discriminator(usual)
    discriminator.standardise(usual)
    seen = []
    discriminator.layers.register_forward_pre_hook(lambda layers, inputs: seen.append(inputs[0]))
    after = discriminator(usual)
    torch.testing.assert_close(seen[0].mean(dim=0), torch.zeros(32), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen[0].std(dim=0)[8:], torch.ones(24), atol=1e-3, rtol=0)
    assert torch.isfinite(after).all()
    # A few features of large numbers decide no longer alone, and embeddings fill more dimensions.
    assert effective_dimensions(after) > 2 * effective_dimensions(before)


def effective_dimensions(embeddings: torch.Tensor) -> float:
    embeddings = embeddings.detach()
    spectrum = torch.linalg.svdvals(embeddings - embeddings.mean(dim=0)).square()
    return float(spectrum.sum().square() / spectrum.square().sum())
