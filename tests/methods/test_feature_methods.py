"""Each method against its formula, written out plainly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mkdext.methods import method_class


def maps(channels: int, seed: int = 0) -> Tensor:
    return torch.randn(2, channels, 4, 5, generator=torch.Generator().manual_seed(seed))


def made(name: str, student: int = 3, teacher: int = 4):
    torch.manual_seed(2)
    return method_class(name)([student], [teacher])


def identity_(convolution: nn.Conv2d) -> None:
    nn.init.dirac_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


def test_fitnet_is_the_squared_gap_after_the_regressor():
    method = made("fitnet")
    (regressor,) = method.regressors
    mixed = torch.einsum("oi,bihw->bohw", regressor.weight[..., 0, 0], maps(3))
    expected = (mixed + regressor.bias[:, None, None] - maps(4, 1)).pow(2).mean()
    torch.testing.assert_close(method([maps(3)], [maps(4, 1)]), expected)


def test_at_compares_normalised_energies():
    energies = [m.pow(2).sum(1).reshape(2, -1) for m in (maps(3), maps(4, 1))]
    student, teacher = (e / e.norm(dim=1, keepdim=True) for e in energies)
    expected = (student - teacher).pow(2).mean()
    torch.testing.assert_close(made("at")([maps(3)], [maps(4, 1)]), expected)


def test_vid_is_the_gaussian_negative_log_likelihood():
    method = made("vid")
    variance = functional.softplus(method.raw_variances[0]) + 1e-5
    torch.testing.assert_close(variance, torch.ones(4, 1, 1))
    mean = method.means[0](maps(3))
    expected = functional.gaussian_nll_loss(mean, maps(4, 1), variance.expand_as(mean))
    torch.testing.assert_close(method([maps(3)], [maps(4, 1)]), expected)


def test_ickd_compares_rows_of_channel_products():
    method = made("ickd")
    student = method.embeddings[0](maps(3))
    gap = 0.0
    for sample in range(2):
        grams = []
        for features in (student[sample], maps(4, 1)[sample]):
            rows = features.reshape(4, -1)
            gram = torch.stack([torch.stack([(a * b).sum() for b in rows]) for a in rows])
            grams.append(gram / gram.norm(dim=1, keepdim=True))
        gap += (grams[0] - grams[1]).pow(2).sum() / (4 * 2)
    torch.testing.assert_close(method([maps(3)], [maps(4, 1)]), gap)


def test_l2t_weights_channels_by_the_teachers_means_and_halves_the_loss_as_its_authors_do():
    method = made("l2t-ww")
    nn.init.normal_(method.weights[0].weight)
    nn.init.normal_(method.weights[0].bias)
    matched, teacher = method.matches[0](maps(3)), maps(4, 1)
    expected = 0.0
    for b in range(2):
        scores = method.weights[0].weight @ teacher[b].mean((1, 2)) + method.weights[0].bias
        weights = scores.exp() / scores.exp().sum()
        for c in range(4):
            expected += 0.5 * weights[c] * (teacher[b, c] - matched[b, c]).pow(2).mean() / 2
    torch.testing.assert_close(method([maps(3)], [teacher]), expected)
    before = made("l2t-ww")([maps(3)], [teacher])
    torch.testing.assert_close(
        before, 0.5 * functional.mse_loss(made("l2t-ww").matches[0](maps(3)), teacher)
    )


def test_l2t_gives_its_weights_to_the_meta_gradient_and_its_convolutions_to_the_student():
    method = made("l2t-ww")
    assert set(method.meta_parameters()) == set(method.weights.parameters())
    assert method.published_meta == (2, "adam", None, True, 0.0)


@pytest.mark.parametrize(("name", "width"), [("mkd-case1", 1), ("mkd-case2", 3)])
def test_a_case_is_the_relative_gap_of_convolved_maps(name, width):
    method = made(name)
    (own,), (teachers,) = method.of_student, method.of_teacher
    assert own.kernel_size == (width, width)
    knowledge = functional.conv2d(maps(3), own.weight, own.bias, padding=width // 2)
    hint = maps(4, 1)
    if name == "mkd-case2":
        hint = functional.conv2d(hint, teachers.weight, teachers.bias, padding=1)
    expected = (knowledge - hint).abs().mean() / hint.abs().mean()
    torch.testing.assert_close(method([maps(3)], [maps(4, 1)]), expected)
    assert method.meta_parameters() == list(method.parameters())


def test_case_3_is_mkd_without_the_meta_gradient():
    case, mkd = made("mkd-case3", 3, 3), made("mkd", 3, 3)
    case.load_state_dict(mkd.state_dict())
    torch.testing.assert_close(case([maps(3)], [maps(3, 1)]), mkd([maps(3)], [maps(3, 1)]))
    assert case.meta_parameters() == []
    assert mkd.meta_parameters() == list(mkd.parameters())


@pytest.mark.parametrize("name", ["fitnet", "ickd", "l2t-ww", "mkd-case1"])
def test_the_loss_is_zero_where_the_students_knowledge_is_the_teachers(name):
    method, same = made(name, 4, 4), maps(4)
    for module in method.modules():
        if isinstance(module, nn.Conv2d):
            identity_(module)
    if name == "ickd":  # the embedding normalises; the teacher's map is taken as it is
        same = functional.batch_norm(same, None, None, training=True)
    torch.testing.assert_close(method([same], [same]), torch.tensor(0.0), atol=1e-9, rtol=0)
