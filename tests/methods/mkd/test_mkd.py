"""KRNets and the distillation loss against the paper's equations written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mkdext.methods import MKD, KRNet, MKDOptions
from mkdext.methods.mkd import extract
from mkdext.ops import reference

LITERAL = MKDOptions.literal(grid=2)


def features(channels: int, seed: int, size: tuple[int, int] = (8, 6)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, channels, *size, generator=generator, dtype=torch.float64)


def krnet(options: MKDOptions, student: int = 4, teacher: int = 5) -> KRNet:
    torch.manual_seed(0)
    return KRNet(student, teacher, options).double()


def match_nothing(net: KRNet) -> None:
    """Positive features, of as many channels as the teacher's, are matched to themselves."""
    for convolution in (net.match[0], net.match[2]):
        nn.init.dirac_(convolution.weight)


def kernels_by_equation_4(net: KRNet, reorganize: nn.Conv2d, student: Tensor, teacher: Tensor):
    """One sample, one patch and one channel at a time."""
    grid, k = net.options.grid, net.options.kernel_size
    samples = []
    for fs, ft in zip(student, teacher, strict=True):
        product = fs.flatten(1) @ ft.flatten(1).T
        corrected = product.softmax(0).T @ fs.flatten(1)
        mixed = (reorganize.weight.flatten(1) @ corrected).view(-1, *fs.shape[1:])
        h, w = fs.shape[1] // grid, fs.shape[2] // grid
        patches = [
            functional.adaptive_avg_pool2d(mixed[:, i * h : (i + 1) * h, j * w : (j + 1) * w], k)
            for i in range(grid)
            for j in range(grid)
        ]
        samples.append(torch.stack(patches))
    return torch.stack(samples)


def knowledge_by_equation_5(maps: Tensor, first: Tensor, second: Tensor) -> Tensor:
    outputs = []
    for x, w1, w2 in zip(maps, first, second, strict=True):
        hidden = functional.leaky_relu(functional.conv2d(x[None], w1, padding=1), 0.2)
        outputs.append(functional.conv2d(hidden, w2, padding=1)[0])
    return torch.stack(outputs)


def test_the_literal_form_computes_equations_4_to_7():
    student, teacher = features(4, 1), features(5, 2)
    net = krnet(LITERAL)
    point = net(student, teacher, student)
    first = kernels_by_equation_4(net, net.kernel1, student, teacher)
    second = kernels_by_equation_4(net, net.kernel2, student, teacher)
    torch.testing.assert_close(point.kernels, (first, second))
    torch.testing.assert_close(point.teacher, knowledge_by_equation_5(teacher, first, second))
    matched = net.match(student)
    torch.testing.assert_close(point.student, knowledge_by_equation_5(matched, first, second))
    method = MKD([4], [5], LITERAL).double()
    method.krnets[0] = net
    gap = (point.student - point.teacher).abs().mean()
    torch.testing.assert_close(method([student], [teacher]), gap)


def test_the_loss_sums_over_the_points():
    torch.manual_seed(0)
    method = MKD([4, 4], [5, 5], LITERAL).double()
    maps = [features(4, 1), features(4, 2)], [features(5, 3), features(5, 4)]
    single = [MKD([4], [5], LITERAL).double() for _ in range(2)]
    for one, net in zip(single, method.krnets, strict=True):
        one.krnets[0] = net
    parts = [one([s], [t]) for one, s, t in zip(single, *maps, strict=True)]
    torch.testing.assert_close(method(*maps), parts[0] + parts[1])


@pytest.mark.parametrize("grid", [2, 4, 8, 12])
def test_every_patch_gives_one_kernel(grid):
    net = KRNet(16, 32, MKDOptions(grid=grid))
    student, teacher = torch.rand(2, 16, 48, 48), torch.rand(2, 32, 48, 48)
    point = net(student, teacher, student)
    assert point.kernels[0].shape == (2, grid**2, 32, 3, 3)
    assert point.kernels[1].shape == (2, grid**2, grid**2, 3, 3)
    assert point.student.shape == point.teacher.shape == (2, grid**2, 48, 48)


def test_normalized_kernels_have_norm_one_whatever_the_features():
    student, teacher = 1e3 * features(4, 1), features(5, 2)
    for kernel in krnet(MKDOptions(grid=2))(student, teacher, student).kernels:
        torch.testing.assert_close(kernel.flatten(2).norm(dim=2), torch.ones(3, 4).double())


def test_centred_kernels_have_mean_0_and_see_nothing_in_a_flat_area():
    options = MKDOptions(grid=2, centred=True)
    student, teacher = features(4, 1), features(5, 2)
    first, second = krnet(options)(student, teacher, student).kernels
    zeros = torch.zeros(3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(first.mean((3, 4)), zeros, atol=1e-12, rtol=0)
    torch.testing.assert_close(first.flatten(2).norm(dim=2), torch.ones(3, 4).double())
    assert second.mean((3, 4)).abs().min() > 0.01
    flat = torch.ones(3, 1, 8, 6, dtype=torch.float64) * torch.arange(1.0, 6.0).view(5, 1, 1)
    knowledge = krnet(options)(student, flat, student).teacher
    # Beyond two pixels from the border, where zeros surround the map.
    assert knowledge[..., 2:-2, 2:-2].abs().max() < 1e-12 < 0.01 < knowledge.abs().max()


def test_the_relative_gap_does_not_depend_on_the_scale_of_the_teacher():
    torch.manual_seed(0)
    method = MKD([5], [5], MKDOptions(grid=2)).double()
    match_nothing(method.krnets[0])
    student, teacher = features(5, 1), features(5, 2)
    loss = method([student], [teacher])
    assert loss > 0
    torch.testing.assert_close(method([10 * student], [10 * teacher]), loss)


def test_equal_features_have_no_gap():
    method = MKD([5], [5], MKDOptions(grid=2)).double()
    match_nothing(method.krnets[0])
    assert method([features(5, 1)], [features(5, 1)]).item() == 0


@pytest.mark.parametrize("over", ["student", "teacher"])
@pytest.mark.parametrize("correlation", ["cosine", "scaled", "raw"])
def test_the_correlation_is_a_weighted_choice_of_channels(correlation, over):
    net = krnet(MKDOptions(grid=2, correlation=correlation, softmax_over=over))
    student, teacher = features(4, 1), features(5, 2)
    weights = net.correlate(student, teacher)
    sums = weights.sum(1 if over == "student" else 2)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    product = torch.einsum("bchw,bdhw->bcd", student, teacher)
    sizes = student.flatten(2).norm(dim=2)[:, :, None] * teacher.flatten(2).norm(dim=2)[:, None]
    scaled = {
        "raw": product,
        "scaled": product / math.sqrt(48),
        "cosine": product / sizes * math.sqrt(48),
    }
    expected = scaled[correlation].softmax(1 if over == "student" else 2)
    torch.testing.assert_close(weights, expected)


def test_the_student_descends_with_constant_kernels_unless_told_otherwise():
    student, teacher = features(4, 1).requires_grad_(), features(5, 2)
    for detach in (True, False):
        torch.manual_seed(0)
        method = MKD([4], [5], MKDOptions(grid=2, detach_kernels=detach)).double()
        loss, (gradient,), _ = method.gradient([student], [teacher])
        source = student.detach() if detach else student
        (point,) = method.knowledge([student], [teacher], [source])
        gap = (point.student - point.teacher).abs().mean() / point.teacher.abs().mean()
        torch.testing.assert_close(loss, gap)
        torch.testing.assert_close(gradient, *torch.autograd.grad(gap, student))


@pytest.mark.parametrize("detach", [True, False])
def test_what_the_student_descends_is_differentiable_through_the_kernels(detach):
    """Against finite differences; the kernels move with the student also when held constant."""
    torch.manual_seed(0)
    method = MKD([4], [5], MKDOptions(grid=2, detach_kernels=detach)).double()
    student, teacher = features(4, 1).requires_grad_(), features(5, 2)
    weights = features(4, 3)

    def directional(maps: Tensor, create_graph: bool = False) -> Tensor:
        _, (gradient,), _ = method.gradient([maps], [teacher], create_graph)
        return (gradient * weights).sum()

    (second,) = torch.autograd.grad(directional(student, create_graph=True), student)
    direction, eps = features(4, 4), 1e-7
    ahead = directional((student + eps * direction).detach().requires_grad_())
    behind = directional((student - eps * direction).detach().requires_grad_())
    expected = float(ahead - behind) / (2 * eps)
    assert float((second * direction).sum()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        MKDOptions(grid=2),
        MKDOptions(grid=3, hidden=7, correlation="scaled", softmax_over="teacher"),
        MKDOptions(grid=2, relative=False),
        MKDOptions(grid=2, detach_kernels=False),
        LITERAL,
    ],
)
def test_pooled_and_folded_is_the_same_function_as_in_the_order_of_the_paper(options):
    """Knowledge, loss, what is descended, and the gradients of both, in float64."""
    torch.manual_seed(0)
    method = MKD([4], [5], options).double()
    net = method.krnets[0]
    teacher = features(5, 2)
    student = features(4, 1).requires_grad_()
    first, second = (
        texture_kernels_in_order(net, layer, student, teacher)
        for layer in (net.kernel1, net.kernel2)
    )
    moved = student.detach().requires_grad_() if options.detach_kernels else student
    of_student = extract(net.match(moved), first, second)
    of_teacher = extract(teacher, first, second)
    point = net(student, teacher, source=student)
    torch.testing.assert_close(point.kernels, (first, second))
    torch.testing.assert_close((point.student, point.teacher), (of_student, of_teacher))
    loss = functional.l1_loss(of_student, of_teacher)
    if options.relative:
        loss = loss / of_teacher.abs().mean()
    (slope,) = torch.autograd.grad(loss, moved, create_graph=True)
    actual_loss, (actual_slope,), _ = method.gradient([student], [teacher], create_graph=True)
    torch.testing.assert_close((actual_loss, actual_slope), (loss.detach(), slope))
    phi = list(net.parameters())
    weights = features(4, 3)
    expected = torch.autograd.grad((slope * weights).sum(), phi)
    actual = torch.autograd.grad((actual_slope * weights).sum(), phi)
    torch.testing.assert_close(actual, expected)


def texture_kernels_in_order(net: KRNet, layer: nn.Conv2d, student: Tensor, teacher: Tensor):
    """Correct, reorganise, pool: MKD eq. 4 on whole maps."""
    weights = net.correlate(student, teacher)
    mixed = layer(torch.einsum("bst,bshw->bthw", weights, student))
    kernels = reference.texture_kernels(mixed, net.options.grid, net.options.kernel_size)
    if not net.options.normalize_kernels:
        return kernels
    return functional.normalize(kernels.flatten(2), dim=2).view_as(kernels)


@pytest.mark.parametrize("options", [MKDOptions(grid=2), LITERAL])
def test_the_once_differentiable_loss_has_the_same_value_and_gradients(options):
    torch.manual_seed(0)
    method = MKD([4, 4], [5, 5], options).double()
    student = [features(4, seed).requires_grad_() for seed in (1, 2)]
    teacher = [features(5, seed) for seed in (3, 4)]
    inputs = [*student, *method.parameters()]
    whole, lean = method(student, teacher), method.once_differentiable(student, teacher)
    torch.testing.assert_close(lean, whole)
    expected = torch.autograd.grad(3 * whole, inputs)
    torch.testing.assert_close(torch.autograd.grad(3 * lean, inputs), expected)


def test_the_correlation_of_a_channel_of_zeros_has_finite_derivatives_to_second_order():
    net = krnet(MKDOptions(grid=2))
    student = features(4, 1)
    student[:, 0] = 0
    student.requires_grad_()
    value = net.correlate(student, features(5, 2)).pow(2).sum()
    (slope,) = torch.autograd.grad(value, student, create_graph=True)
    (second,) = torch.autograd.grad(slope[:, 1:].pow(2).sum(), student)
    assert torch.isfinite(slope).all()
    assert torch.isfinite(second).all()


def test_every_parameter_of_a_krnet_gets_a_meta_gradient():
    torch.manual_seed(0)
    method = MKD([4], [5], MKDOptions(grid=2)).double()
    student = features(4, 1).requires_grad_()
    _, (gradient,), _ = method.gradient([student], [features(5, 2)], create_graph=True)
    gradients = torch.autograd.grad(gradient.pow(2).sum(), list(method.parameters()))
    assert all(g.abs().max() > 0 for g in gradients)


def test_statistics_tell_a_collapse():
    torch.manual_seed(0)
    method = MKD([5], [5], MKDOptions(grid=2)).double()
    match_nothing(method.krnets[0])
    alive = method.statistics([features(5, 1)], [features(5, 2)])
    assert alive["kernel_norm"] == pytest.approx(1)
    assert alive["gap"] > 0.1 and alive["kernel_spread"] > 0.01
    assert 0 < alive["correlation_entropy"] <= 1
    flat = torch.ones(3, 5, 8, 6, dtype=torch.float64)
    collapsed = method.statistics([flat], [flat])
    assert collapsed["gap"] == 0
    assert collapsed["kernel_spread"] == pytest.approx(0, abs=1e-9)


def test_statistics_tell_how_much_of_maps_and_knowledge_is_detail():
    torch.manual_seed(0)
    method = MKD([5], [5], MKDOptions(grid=2)).double()
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    board = ((rows + columns) % 2 - 0.5).double().expand(3, 5, 24, 24)
    slope = rows.double().expand(3, 5, 24, 24)
    seen = [method.statistics([board], [maps])["detail_maps"] for maps in (board, slope)]
    # Of a board a mean over 5x5 leaves a 25th, hence 24 / 25 of the variance is taken, squared;
    # more at the border. Of a slope only the border's mean differs.
    assert seen[0] == pytest.approx((24 / 25) ** 2, abs=0.02) and seen[1] < 0.01
    shares = method.statistics([features(5, 1)], [features(5, 2)])
    assert 0 < shares["detail_knowledge"] < shares["detail_maps"] < 1
    assert method.statistics([board], [torch.ones_like(board)])["detail_maps"] == 0


def test_other_numbers_of_points_are_refused():
    with pytest.raises(ValueError, match="same number of distillation points, got 1 and 2"):
        MKD([4], [5, 5])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grid": 0}, "`mkd.grid` must be from 1 to 1024, got 0"),
        ({"grid": 10**12}, "`mkd.grid` must be from 1 to 1024, got 1000000000000"),
        ({"kernel_size": 2}, "`mkd.kernel_size` must be odd, got 2"),
        ({"kernel_size": 1025}, "`mkd.kernel_size` must be from 1 to 1023, got 1025"),
        ({"hidden": 0}, "`mkd.hidden` must be from 1 to 65536, got 0"),
        ({"hidden": 10**30}, "`mkd.hidden` must be from 1 to 65536, got 10{30}"),
    ],
)
def test_impossible_options_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        MKDOptions(**values)
