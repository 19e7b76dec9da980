import math
import sys

import pytest
import torch

from mkdext.data import IMAGE_SUFFIXES, builtin_photographs, read_image
from mkdext.synthesis import procedural
from mkdext.synthesis.procedural import (
    MIXTURE,
    PROCEDURAL_KINDS,
    coloured_noise,
    dead_leaves,
    procedural_images,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", PROCEDURAL_KINDS)
@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 17, 40), (1, 1, 1), (1, 5, 2)])
def test_every_kind_makes_colours_of_the_asked_shape(kind, shape):
    count, height, width = shape
    images = PROCEDURAL_KINDS[kind](count, height, width, seeded())
    assert images.shape == (count, 3, height, width)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize("kind", PROCEDURAL_KINDS)
def test_images_of_a_kind_differ_and_none_is_flat(kind):
    images = PROCEDURAL_KINDS[kind](12, 24, 24, seeded()).flatten(1)
    assert images.std(1).min() > 0.01
    assert torch.pdist(images).min() > 1


def test_the_seed_decides_the_images():
    first = procedural_images(20, 12, 16, seeded(3))
    assert torch.equal(procedural_images(20, 12, 16, seeded(3)), first)
    assert not torch.equal(procedural_images(20, 12, 16, seeded(4)), first)


def test_a_larger_count_begins_with_the_same_whole_blocks():
    few, many = (procedural_images(count, 8, 8, seeded()) for count in (16, 20))
    assert torch.equal(many[:16], few)


def test_images_go_on_where_the_generator_stands():
    generator = seeded()
    first, second = (procedural_images(2, 8, 8, generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_a_mixture_of_one_kind_is_that_kind():
    generator = seeded()
    torch.multinomial(torch.ones(1), 5, replacement=True, generator=generator)
    expected = coloured_noise(5, 9, 9, generator)
    assert torch.equal(procedural_images(5, 9, 9, seeded(), {"noise": 0.3}), expected)
    images = procedural_images(5, 9, 9, seeded(), {"noise": 2, "leaves": 0})
    assert images.shape == (5, 3, 9, 9)


def test_kinds_come_in_the_asked_shares(monkeypatch):
    def flat(level):
        return lambda count, height, width, generator: torch.full((count, 3, 1, 1), level)

    kinds = {"dark": flat(0.0), "light": flat(1.0)}
    monkeypatch.setattr(procedural, "PROCEDURAL_KINDS", kinds)
    images = procedural_images(2000, 1, 1, seeded(), {"dark": 1, "light": 3})
    assert abs(images.mean() - 0.75) < 0.04


def test_a_mixture_is_taken_if_none_is_given():
    images = procedural_images(6, 8, 8, seeded())
    assert torch.equal(images, procedural_images(6, 8, 8, seeded(), MIXTURE))


@pytest.mark.parametrize("exponent", [0.8, 1.2, 1.6])
def test_the_amplitude_of_noise_falls_with_the_asked_exponent(exponent):
    noise = procedural._noise(24, 3, 64, 64, seeded(), (exponent, exponent))
    assert abs(spectral_exponent(noise) - exponent) < 0.08


def test_the_noise_in_images_has_the_asked_exponent_too():
    slopes = [
        spectral_exponent(coloured_noise(32, 64, 64, seeded(), (exponent, exponent)))
        for exponent in (0.8, 1.6)
    ]
    # Colours cut off at 0 and 1 are edges, whose spectrum is in between.
    assert slopes == pytest.approx([0.8, 1.6], abs=0.15)
    usual = [spectral_exponent(coloured_noise(1, 64, 64, seeded(seed))) for seed in range(24)]
    assert sum(usual) / 24 == pytest.approx(1.2, abs=0.15)
    assert min(usual) < 1.05 and max(usual) > 1.35


def spectral_exponent(images):
    """Minus the slope of log amplitude over log frequency, without the ends of the spectrum."""
    side = images.shape[-1]
    # A window, because the image does not end as it begins.
    window = torch.hann_window(side)
    images = (images - images.mean((2, 3), keepdim=True)) * window * window[:, None]
    power = torch.fft.fft2(images).abs().square().mean((0, 1))
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.fftfreq(side))
    used = (frequency > 4 / side) & (frequency < 0.4)
    x, y = frequency[used].log(), power[used].log() / 2
    x, y = x - x.mean(), y - y.mean()
    return -float((x * y).sum() / (x * x).sum())


def test_noise_of_a_small_window_has_the_variance_of_the_endless_one():
    noise = procedural._noise(400, 1, 24, 24, seeded(), (1.0, 1.0))
    assert abs(float(noise.square().mean()) - 1) < 0.1
    assert abs(float(noise.mean())) < 0.1


def test_noise_does_not_end_as_it_begins():
    noise = procedural._noise(200, 1, 16, 16, seeded(), (1.5, 1.5))
    seam = (noise[..., 0] - noise[..., -1]).square().mean()
    neighbours = (noise[..., 0] - noise[..., 1]).square().mean()
    assert seam > 4 * neighbours


@pytest.mark.parametrize("kind", PROCEDURAL_KINDS)
def test_colour_channels_are_correlated_but_not_equal(kind):
    images = PROCEDURAL_KINDS[kind](40, 24, 24, seeded()).flatten(2)
    correlations = torch.stack([torch.corrcoef(image)[[0, 0, 1], [1, 2, 2]] for image in images])
    assert 0.5 < correlations.mean() < 0.98
    assert correlations.min(1).values.median() < 0.97


def test_leaves_have_edges_where_noise_has_none():
    # Edges make the differences of neighbours heavy-tailed, as in photographs; noise is Gaussian.
    leaves, noise = (
        (images[..., 1:] - images[..., :-1]).flatten(1)
        for images in (dead_leaves(24, 32, 32, seeded()), coloured_noise(24, 32, 32, seeded()))
    )
    assert kurtosis(leaves).median() > 5
    assert kurtosis(noise).median() < 4


def kurtosis(values):
    values = values - values.mean(1, keepdim=True)
    return values.pow(4).mean(1) / values.square().mean(1).square()


def test_leaves_are_drawn_as_a_painter_does_from_back_to_front():
    count, height, width, smallest, largest = 2, 20, 33, 1.5, 24.0
    leaves = procedural._scatter(count, height, width, smallest, largest, seeded())
    top = procedural._topmost(leaves, height, width, smallest, largest)
    number = leaves.radius.shape[1]
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    for image in range(count):
        painted = torch.full((height, width), image * (number + 1))
        for leaf in range(number):
            row, column, radius, angle, aspect, is_box = (
                quantity[image, leaf] for quantity in leaves
            )
            # Turned so that the longer axis lies along u.
            u = (x - column) * math.cos(angle) + (y - row) * math.sin(angle)
            v = (y - row) * math.cos(angle) - (x - column) * math.sin(angle)
            if is_box:
                half_length = radius / math.hypot(1, aspect)
                inside = (u.abs() < half_length) & (v.abs() < aspect * half_length)
            else:
                inside = (u / radius) ** 2 + (v / (aspect * radius)) ** 2 < 1
            painted[inside] = image * (number + 1) + 1 + leaf
        # Rounding may decide a pixel that lies on an edge.
        assert (top[image] != painted).sum() <= 1
        assert len(painted.unique()) > 10


def test_there_are_as_many_leaves_of_a_size_as_the_power_law_says():
    height, width = 32, 48
    radius = procedural._scatter(300, height, width, 1.0, 32.0, seeded()).radius.flatten()
    assert radius.min() >= 1
    assert radius.max() <= 32
    # Large leaves are seen more often than they are: from farther away.
    on_the_plane = 1 / ((height + 2 * radius) * (width + 2 * radius))
    octaves = torch.zeros(5).index_add_(0, radius.log2().long().clamp(max=4), on_the_plane)
    assert (octaves[1:] / octaves[:-1]).tolist() == pytest.approx([0.25] * 4, rel=0.15)


def test_leaves_cover_every_part_of_an_image_alike():
    leaves = procedural._scatter(200, 16, 16, 1.0, 16.0, seeded())
    top = procedural._topmost(leaves, 16, 16, 1.0, 16.0)
    number = leaves.radius.shape[1] + 1
    covered = (top % number != 0).float().mean(0)
    assert covered.mean() > 0.7
    border = torch.cat([covered[0], covered[-1], covered[:, 0], covered[:, -1]]).mean()
    assert abs(border - covered[4:-4, 4:-4].mean()) < 0.03


def test_edges_of_leaves_are_nearly_those_of_a_drawing_eight_times_as_large(monkeypatch):
    def drawn(oversampling):
        monkeypatch.setattr(procedural, "_OVERSAMPLING", oversampling)
        return dead_leaves(12, 24, 24, seeded())

    used, fine, jagged = map(drawn, (procedural._OVERSAMPLING, 8, 1))
    assert (used - fine).abs().mean() < 0.02
    assert (jagged - fine).abs().mean() > 0.035


_opened: list[str] = []


def _record(event, arguments):
    if event == "open":
        _opened.append(str(arguments[0]))


def photographs_opened():
    photographs = {
        str(path) for split in ("train", "validation") for path in builtin_photographs(split)
    }
    return [
        name
        for name in _opened
        if name in photographs or name.lower().endswith((*IMAGE_SUFFIXES, ".u8"))
    ]


def test_no_photograph_is_opened():
    sys.addaudithook(_record)
    _opened.clear()
    procedural_images(16, 16, 16, seeded(), dict.fromkeys(PROCEDURAL_KINDS, 1))
    assert not photographs_opened()
    read_image(builtin_photographs("validation")[0])
    assert photographs_opened()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 8), "count, height and width must be positive, got 0, 8 and 8"),
        ((1, 8, -3), "count, height and width must be positive, got 1, 8 and -3"),
        ((1, 8, 8, {"leafs": 1}), "'leafs', which is none of .*; did you mean leaves"),
        ((1, 8, 8, {"noise": -1}), "share of noise must be finite and not negative, got -1"),
        ((1, 8, 8, {"noise": math.nan}), "share of noise must be finite and not negative, got nan"),
        ((1, 8, 8, {"noise": math.inf}), "share of noise must be finite and not negative, got inf"),
        ((1, 8, 8, {"noise": 0}), "must have a share above 0"),
        ((1, 8, 8, {}), "must have a share above 0"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        procedural_images(*arguments[:3], seeded(), *arguments[3:])
