"""Samples that are no ordinary patches, their target, and runs that use them."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from mkdext._system.terminal import Terminal
from mkdext.data import ImagePairs, imresize
from mkdext.data.zoom import Zoomed
from mkdext.training import TrainOptions, train
from mkdext.training.mixture import MadeImages
from mkdext.training.schedule import Phase
from mkdext.training.setup import open_photographs, prepare
from mkdext.training.step import Batch

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def options(photographs: Path) -> TrainOptions:
    """A training of four steps in which each batch has a sample of each kind and two patches."""
    return TrainOptions(
        train_dir=(photographs,),
        val_dir=(photographs,),
        method="response",
        kd_weight=0.0,
        imitation=1.0,
        imitation_end=0.2,
        zoom_in_share=0.2,
        zoom_out_share=0.2,
        made_share=0.2,
        scale=4,
        iterations=4,
        batch_size=5,
        patch_size=8,
        validate_every=4,
        checkpoint_every=2,
        log_every=1,
        teacher_cache_crops=3,
    )


def batches_of(options: TrainOptions, count: int = 3) -> list[Batch]:
    training = prepare(options.resolved())
    source = open_photographs(training, None, Terminal(quiet=True))
    return list(itertools.islice(source.batches(0, count), count))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_zoomed_patches_are_parts_of_zoomed_photographs(photographs, scale):
    pairs = ImagePairs(sorted(photographs.iterdir()), scale)
    low, high = pairs[0]
    nearer, farther = Zoomed(pairs, "in"), Zoomed(pairs, "out")
    assert torch.equal(farther.image(0), imresize(low, 1 / 2))
    assert torch.equal(nearer.image(0), imresize(high, 1 / 2) if scale == 4 else high)
    for size, zoomed in itertools.product((4, 5), (nearer, farther)):
        (patch,) = zoomed.patch(0, size, (0.0, 0.0))
        inside = (slice(None), slice(0, size - 2), slice(0, size - 2))  # its other edges are cut
        assert patch.shape == (3, size, size)
        assert torch.equal(patch[inside], zoomed.image(0)[inside])


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_batch_has_so_many_samples_of_each_kind_and_depends_on_the_step_alone(
    options, is_kept, tmp_path
):
    if is_kept:
        options = dataclasses.replace(options, teacher_cache=tmp_path / "cache")
    batches = batches_of(options)
    for batch in batches:
        assert batch.low.shape == (5, 3, 8, 8)
        assert batch.high is not None and batch.high.shape == (2, 3, 32, 32)
        assert (batch.picture is not None) == is_kept
        assert torch.equal((batch.low * 255).round() / 255, batch.low)
    if is_kept:
        shown = batches[1].picture
        teacher = prepare(options.resolved()).teacher
        with torch.no_grad():
            assert torch.isfinite(shown).all() and shown.shape == (5, 3, 32, 32)
            # The network sees beyond the patch, so only the rough picture is the same.
            assert (teacher.network(batches[1].low) - shown).abs().mean() < 0.05
        made = torch.stack([MadeImages(8).image(i) for i in range(3)]).float() / 255
        turned = [torch.rot90(image, k, (1, 2)) for image in made for k in range(4)]
        turned += [image.flip(2) for image in turned]
        assert any(torch.equal(batches[0].low[4], image) for image in turned)
        again = (tmp_path / "cache/pictures/made-3-of-8/pixels.u8").stat().st_mtime_ns
    for batch, same in zip(batches, batches_of(options), strict=True):
        assert torch.equal(batch.low, same.low)
    if is_kept:
        pool = tmp_path / "cache/pictures/made-3-of-8/pixels.u8"
        assert pool.stat().st_mtime_ns == again
    assert not torch.equal(batches[0].low[2:], batches[1].low[2:])


def test_every_sample_counts_the_same_and_has_the_target_that_there_is(options):
    step = prepare(options.resolved()).student_stages[0]
    step.begin(None)
    step = step.step
    (batch,) = batches_of(options, 1)
    with torch.no_grad():
        sr, taught = step.student(batch.low), step.teacher.network(batch.low)
    to_truth = (sr[:2] - batch.high).abs().mean()
    to_teacher = (sr - taught).abs().flatten(1).mean(1)
    expected = (2 * (0.75 * to_truth + 0.25 * to_teacher[:2].mean()) + to_teacher[2:].sum()) / 5
    values = step(0, batch, Phase(1e-3, 1.0, 0.0, imitation=0.25))
    torch.testing.assert_close(values["reconstruction"], expected)


def test_maps_of_all_samples_are_compared(options):
    stage = prepare(
        dataclasses.replace(options, method="fitnet", kd_weight=1.0).resolved()
    ).student_stages[0]
    stage.begin(None)
    (batch,) = batches_of(options, 1)
    taught = stage.step.taught(batch, with_maps=True)
    assert {len(maps) for maps in taught.maps} == {5}
    assert taught.picture.shape == (5, 3, 32, 32)


@pytest.mark.parametrize("is_kept", [False, True])
def test_all_versions_of_a_sample_have_the_same_other_colours(options, is_kept, tmp_path):
    if is_kept:
        options = dataclasses.replace(options, teacher_cache=tmp_path / "cache")
    plain = batches_of(options)
    changed = batches_of(dataclasses.replace(options, augment_colours=True))
    orders = list(itertools.permutations(range(3)))
    found = set()
    for before, after in zip(plain, changed, strict=True):
        for i in range(5):
            sides = [(before.low[i], after.low[i])]
            sides += [(before.high[i], after.high[i])] if i < 2 else []
            sides += [(before.picture[i], after.picture[i])] if is_kept else []
            fits = [
                (order, inverted)
                for order in orders
                for inverted in (False, True)
                if all(
                    torch.equal(1 - old[list(order)] if inverted else old[list(order)], new)
                    for old, new in sides
                )
            ]
            assert fits
            found.add(fits[0])
    assert len(found) > 5


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_run_that_was_stopped_ends_with_the_same_bits(options, is_kept, tmp_path):
    if is_kept:
        options = dataclasses.replace(options, teacher_cache=tmp_path / "cache")
    options = dataclasses.replace(options, augment_colours=True)
    train(dataclasses.replace(options, out=tmp_path / "whole"), QUIET)
    stopped = dataclasses.replace(options, out=tmp_path / "stopped")
    calls = []

    def stop(step, values, student):
        calls.append(values["imitation"])
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, QUIET, callback=stop)
    assert calls == pytest.approx([1.0, 0.8, 0.6])
    train(stopped, QUIET)
    names = [tmp_path / run / "checkpoints/student.safetensors" for run in ("whole", "stopped")]
    whole, resumed = map(load_file, names)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"made_share": 1.0}, r"`made_share` must be at least 0 and below 1, got 1\.0"),
        ({"zoom_in_share": -0.1}, r"`zoom_in_share` must be at least 0 and below 1, got -0\.1"),
        ({"zoom_in_share": 0.9}, r"must leave an ordinary patch of `batch_size` 5, they take 6"),
        ({"made_share": 0.05}, r"`made_share` 0\.05 of `batch_size` 5 rounds to no sample:"),
        (
            {"method": "vanilla", "imitation": 0.0, "imitation_end": None},
            r"`zoom_in_share` must be 0 with `method` vanilla, which has no teacher",
        ),
        ({"method": "pisr"}, "`zoom_in_share` must be 0 with `method` pisr"),
    ],
)
def test_shares_that_cannot_be_are_refused(options, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(options, **changes)


def test_a_cache_of_maps_holds_none_of_other_samples(options):
    options = dataclasses.replace(options, method="fitnet", kd_weight=1.0, teacher_cache=Path("c"))
    with pytest.raises(ValueError, match=r"`zoom_in_share`: `teacher_cache` keeps feature maps of"):
        options.resolved()
    assert dataclasses.replace(options, teacher_cache_keeps="pictures").resolved().mixture
    assert dataclasses.replace(options, kd_weight=0.0).resolved().teacher_cache_keeps == "pictures"


def test_photographs_too_small_to_be_reduced_again_are_named(options):
    with pytest.raises(ValueError, match=r"smaller `patch_size` \(now 12\), or `zoom_out_share` 0"):
        batches_of(dataclasses.replace(options, patch_size=12))
