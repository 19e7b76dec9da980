from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mkdext.models import (
    RCAN,
    WHOLE,
    RCANConfig,
    adapt,
    check_points,
    create_model,
    default_points,
    features_at,
    forward_with_features,
    resized,
    select_points,
)

TINY = RCANConfig(groups=2, blocks=1, features=4, reduction=2)
# The second is followed by an in-place ReLU.
POINTS = ["body.0", "body.1.body.0.body.0", "tail.0"]


class TwoWays(nn.Module):
    """Has a module that runs twice, one that never runs, one that gives a tuple."""

    def __init__(self) -> None:
        """Make the modules."""
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 1)
        self.never = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.flat = nn.Flatten()
        self.pair = nn.LSTM(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.flat(x)
        self.pair(x.mean(dim=(2, 3)))
        return self.norm(self.twice(self.twice(x)))


def tiny_rcan(dtype: torch.dtype = torch.float32) -> RCAN:
    torch.manual_seed(0)
    return RCAN(TINY, scale=2).to(dtype)


def count_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_features_are_the_outputs_of_the_named_modules_in_the_order_given() -> None:
    model, lr = tiny_rcan(), torch.rand(2, 3, 5, 7)
    with torch.no_grad():
        sr, (late, early) = forward_with_features(model, ["body.1", "body.0"], lr)
        expected = model.body[0](model.head(model.sub_mean(lr * 255)))
    assert torch.equal(sr, model(lr))
    assert torch.equal(early, expected)
    assert torch.equal(late, model.body[1](expected))


def test_an_in_place_operation_after_the_point_does_not_change_the_feature() -> None:
    model, lr = tiny_rcan(), torch.rand(2, 3, 5, 7)
    _, (feature,) = forward_with_features(model, ["body.0.body.0.body.0"], lr)
    assert (feature < 0).any()
    shallow = model.head(model.sub_mean(lr * 255))
    expected = model.body[0].body[0].body[0](shallow)
    assert torch.equal(feature, expected)
    gradient, expected_gradient = (
        torch.autograd.grad(x.square().mean(), model.head[0].weight) for x in (feature, expected)
    )
    torch.testing.assert_close(gradient, expected_gradient)


def test_given_parameters_stand_in_for_those_of_the_network_and_get_the_gradient() -> None:
    model, other, lr = tiny_rcan(), RCAN(TINY, scale=2), torch.rand(1, 3, 4, 4)
    parameters = dict(other.named_parameters())
    sr, features = forward_with_features(model, POINTS, lr, parameters)
    expected_sr, expected = forward_with_features(other, POINTS, lr)
    assert torch.equal(sr, expected_sr)
    assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))
    features[0].sum().backward()
    assert other.head[0].weight.grad is not None
    assert model.head[0].weight.grad is None


@pytest.mark.parametrize("functional", [False, True])
def test_hooks_are_removed_also_after_an_error(functional: bool) -> None:
    model = tiny_rcan()
    parameters = dict(model.named_parameters()) if functional else None
    forward_with_features(model, POINTS, torch.rand(1, 3, 4, 4), parameters)
    assert count_hooks(model) == 0
    with pytest.raises(RuntimeError):
        forward_with_features(model, POINTS, torch.rand(1, 5, 4, 4), parameters)
    with pytest.raises(ValueError, match="nowhere"):
        forward_with_features(model, [*POINTS, "nowhere"], torch.rand(1, 3, 4, 4), parameters)
    assert count_hooks(model) == 0


def test_features_and_output_differentiate_twice_through_given_parameters() -> None:
    model = tiny_rcan(torch.float64)
    names = ["head.0.weight", "body.0.body.0.body.0.bias", "tail.1.weight"]
    lr = torch.rand(1, 3, 2, 3, dtype=torch.float64)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        parameters = dict(zip(names, tensors, strict=True))
        sr, features = forward_with_features(model, POINTS, lr, parameters)
        return sr, *features

    tensors = [model.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


def test_works_under_inference_mode() -> None:
    model, lr = tiny_rcan(), torch.rand(1, 3, 4, 4)
    with torch.inference_mode():
        _, features = forward_with_features(model, POINTS, lr)
    assert [list(f.shape) for f in features] == [[1, 4, 4, 4], [1, 4, 4, 4], [1, 4, 8, 8]]


def test_features_keep_channels_last() -> None:
    model = tiny_rcan().to(memory_format=torch.channels_last)
    lr = torch.rand(2, 3, 5, 6).contiguous(memory_format=torch.channels_last)
    _, features = forward_with_features(model, ["body.0"], lr)
    assert features[0].is_contiguous(memory_format=torch.channels_last)


def test_the_whole_network_is_a_point_that_gives_the_picture() -> None:
    model, lr = tiny_rcan(), torch.rand(1, 3, 8, 8)
    sr, (feature,) = forward_with_features(model, [WHOLE], lr)
    assert torch.equal(sr, feature)
    assert torch.equal(features_at(model, [WHOLE], lr)[0], sr)


def test_an_unknown_point_is_refused_with_near_names() -> None:
    with pytest.raises(
        ValueError, match=r"'bdy\.0' is not a sub-module of RCAN; did you mean body\.0"
    ):
        check_points(tiny_rcan(), ["bdy.0"])
    with pytest.raises(
        ValueError, match=r"'groups' is not a sub-module of RCAN; it has sub_mean, "
    ):
        check_points(tiny_rcan(), ["groups"])


def test_an_unknown_parameter_is_refused_with_near_names() -> None:
    with pytest.raises(ValueError, match=r"'head\.0\.weigth'.* did you mean head\.0\.weight"):
        forward_with_features(
            tiny_rcan(), POINTS, torch.rand(1, 3, 4, 4), {"head.0.weigth": torch.rand(4, 3, 3, 3)}
        )


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        ("twice", "'twice' must run once in a forward pass, it ran 2 times"),
        ("never", "'never' must run once in a forward pass, it ran 0 times"),
        ("flat", r"'flat' must give a tensor \[B, C, H, W\], or tokens .*, got \[2, 768\]"),
        ("pair", r"'pair' must give a tensor \[B, C, H, W\], or tokens .*, got tuple"),
    ],
)
def test_a_point_that_gives_no_feature_map_is_refused(point: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_points(TwoWays(), [point])


def test_no_point_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        check_points(tiny_rcan(), [])


def test_check_points_gives_the_shape_of_each_map() -> None:
    shapes = check_points(create_model("rcan-c", scale=4), ["body.1", "tail.1"], size=5)
    assert shapes == [(32, 5, 5), (3, 20, 20)]


def test_check_points_takes_the_dtype_and_device_of_the_network() -> None:
    assert check_points(tiny_rcan(torch.float64), ["body.1"]) == [(4, 16, 16)]
    with torch.device("meta"):
        model = RCAN(TINY, scale=2)
    assert check_points(model, ["body.1"]) == [(4, 16, 16)]


def test_check_points_leaves_running_statistics_and_modes_alone() -> None:
    model = TwoWays().train()
    model.pair.eval()
    assert check_points(model, ["norm"]) == [(3, 16, 16)]
    assert model.training and model.norm.training and not model.pair.training
    assert model.norm.num_batches_tracked == 0


def test_default_points_are_those_the_network_declares() -> None:
    assert default_points(create_model("rcan-a", scale=4)) == [f"body.{g}" for g in range(4)]
    with torch.device("meta"):
        teacher = create_model("rcan-t", scale=4)
    assert default_points(teacher) == ["body.2", "body.4", "body.7", "body.9"]
    assert default_points(teacher, count=1) == ["body.9"]


@pytest.mark.parametrize("count", [0, -1, 5])
def test_more_points_than_groups_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"count must be 1\.\.4, got {count}"):
        default_points(create_model("rcan-a", scale=4), count)


def test_points_of_a_network_that_declares_none_are_found() -> None:
    # The other modules run twice, never, or give no map.
    assert default_points(TwoWays()) == ["norm"]


def test_features_alone_equal_those_of_a_whole_pass_and_end_it_early():
    torch.manual_seed(0)
    model = create_model("rcan-a", scale=4)
    lr = torch.rand(2, 3, 9, 8)
    points = ["body.2", "body.0"]
    _, expected = forward_with_features(model, points, lr)
    passed = []
    hook = model.get_submodule("body.3").register_forward_hook(lambda *_: passed.append(True))
    actual = features_at(model, points, lr)
    hook.remove()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert not passed
    assert not any(module._forward_hooks for module in model.modules())


def test_points_are_named_by_patterns_that_do_not_cross_dots():
    model = tiny_rcan()
    assert select_points(model, ["body.*"]) == ["body.0", "body.1", "body.2"]
    assert select_points(model, ["tail.1", "body.[01]"]) == ["tail.1", "body.0", "body.1"]
    assert select_points(model, ["body.0", "body.*"]) == ["body.0", "body.1", "body.2"]
    assert select_points(model, []) == []
    with pytest.raises(
        ValueError, match=r"'bdy\.\*' is not a sub-module of RCAN; did you mean body\.\*"
    ):
        select_points(model, ["bdy.*"])
    with pytest.raises(
        ValueError, match=r"'body\.9' is not a sub-module of RCAN; did you mean body\.2"
    ):
        select_points(model, ["body.9"])


def test_points_of_an_adapted_network_are_those_of_the_network_in_it():
    luma = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1))
    model = adapt(luma, 2, "student")
    points = select_points(model, ["0"])
    assert points == ["network.0"]
    assert check_points(model, points, size=6) == [(4, 12, 12)]
    assert default_points(model) == ["network.0", "network.1"]


class Windows(nn.Module):
    """Cuts each image into four, as attention in windows does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat(x.split(8, 2)))


def test_a_map_of_parts_of_images_is_refused():
    with pytest.raises(ValueError, match=r"'conv' must give one map for each image, got \[4, 3, 8"):
        check_points(Windows(), ["conv"])


def test_a_network_that_fails_on_the_patch_is_told():
    with pytest.raises(ValueError, match=r"Sequential fails on images \[2, 3, 4, 4\]: "):
        check_points(nn.Sequential(nn.Conv2d(3, 3, 5)), ["0"], size=4)


def test_maps_are_averaged_to_a_smaller_and_interpolated_to_a_larger_size():
    feature = torch.rand(2, 3, 12, 8)
    same, small, large = resized([feature] * 3, [(12, 8), (6, 4), (24, 16)])
    assert same is feature
    torch.testing.assert_close(small.mean(), feature.mean(), rtol=0.05, atol=0)
    assert small.var() < feature.var()
    torch.testing.assert_close(
        large,
        nn.functional.interpolate(feature, (24, 16), mode="bilinear"),
        rtol=1e-5,
        atol=1e-6,
    )
    flat = torch.full((1, 1, 7, 5), 0.25)
    for size in ((3, 4), (20, 11), (3, 11)):
        torch.testing.assert_close(resized([flat], [size])[0], torch.full((1, 1, *size), 0.25))
