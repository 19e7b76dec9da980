import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from mkdext.data import PatchSampler, make_pair, prepare_store, read_image
from mkdext.metrics import psnr_y, to_uint8
from mkdext.models import builtin_teacher, load_model
from mkdext.training import train
from mkdext.training.options import TrainOptions
from mkdext.training.photographs import (
    find_to_train,
    held_out_pictures,
    training_photographs,
    validation_sets,
)


def silent(title):
    return iter


@pytest.fixture(scope="module")
def store(photographs, tmp_path_factory):
    out = tmp_path_factory.mktemp("stores") / "store"
    return prepare_store(photographs, out, scale=4, workers=1).folder


def test_a_training_sees_the_same_patches_from_a_folder_and_from_its_store(photographs, store):
    def batches(*folders):
        options = TrainOptions(train_dir=folders, patch_size=8, batch_size=4)
        pairs, bad = training_photographs(options, silent)
        assert not bad
        sampler = PatchSampler(pairs, 4, 8, 4, options.seed)
        return [torch.cat([side.flatten() for side in sampler.batch(step)]) for step in range(5)]

    assert all(map(torch.equal, batches(photographs), batches(store)))
    both, mixed = batches(photographs, photographs), batches(photographs, store)
    assert all(map(torch.equal, both, mixed))


def test_validation_takes_stores_too(photographs, store):
    options = TrainOptions(val_dir=(photographs, store))
    folder, stored = validation_sets(options, silent).values()
    for a, b in zip(folder.pairs, stored.pairs, strict=True):
        assert all(map(torch.equal, a, b))


def test_a_store_of_another_scale_or_with_too_small_photographs_is_refused(store):
    options = TrainOptions(train_dir=(store,), patch_size=8)
    with pytest.raises(ValueError, match="is for scale 4, not 2"):
        training_photographs(replace(options, scale=2), silent)
    with pytest.raises(ValueError, match=r"sharp\.png: is 72x64 pixels, needs at least 68"):
        training_photographs(replace(options, patch_size=17), silent)


@pytest.fixture(scope="module")
def low_pictures(photographs, tmp_path_factory):
    """Low-resolution versions of the photographs, named as in DIV2K's mild track."""
    folder = tmp_path_factory.mktemp("low") / "LR"
    folder.mkdir()
    for path in photographs.iterdir():
        low = make_pair(read_image(path), 4)[0].permute(1, 2, 0).numpy()
        Image.fromarray(low).save(folder / f"{path.stem}x4m.png")
    return folder


def test_given_versions_are_found_by_name_and_trained_on(photographs, low_pictures):
    options = TrainOptions(train_dir=photographs, train_low_dir=low_pictures, patch_size=8)
    images, remarks = training_photographs(options, silent)
    assert not remarks
    assert images.made_by == "given"
    plain, _ = training_photographs(replace(options, train_low_dir=()), silent)
    for index in range(2):
        assert all(map(torch.equal, images[index], plain[index]))
    with pytest.raises(ValueError, match=r"has no low-resolution version of sharp\.png and 1 more"):
        training_photographs(replace(options, scale=2), silent)


def test_a_store_takes_no_other_low_resolution_versions(store, photographs, low_pictures, tmp_path):
    options = TrainOptions(train_dir=store, train_low_dir=low_pictures)
    with pytest.raises(ValueError, match=r"is a store, which has low-resolution versions of its"):
        find_to_train(options)
    given = prepare_store(photographs, tmp_path / "given", 4, low_pictures, workers=1).folder
    options = TrainOptions(train_dir=given, degradation="area", patch_size=8)
    with pytest.raises(ValueError, match=r"`degradation` area: store .* versions that were given"):
        training_photographs(options, silent)
    (name,) = validation_sets(TrainOptions(val_dir=given, degradation="area"), silent)
    assert name == "given"  # as they are


def test_low_resolution_pictures_alone_are_parted_into_trained_and_held_out(tmp_path):
    for index in range(50):
        Image.new("RGB", (12, 9), (index, 0, 0)).save(tmp_path / f"{index:02}.png")
    options = TrainOptions.by_recipe(train_low_dir=(tmp_path,), patch_size=8)
    trained, held_out = training_photographs(options, silent)[0], held_out_pictures(options, silent)
    assert [path.name for path in held_out.paths] == ["12.png", "37.png"]
    assert len(trained) == 48
    assert not set(trained.paths) & set(held_out.paths)
    assert validation_sets(options, silent) == {}
    measured = replace(options, val_dir=(tmp_path,))
    assert len(training_photographs(measured, silent)[0]) == 50
    (tmp_path / "one").mkdir()
    (tmp_path / "12.png").rename(tmp_path / "one" / "12.png")
    with pytest.raises(ValueError, match="must hold two pictures or more, one of them to measure"):
        training_photographs(replace(options, train_low_dir=(tmp_path / "one",)), silent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "vanilla", "imitation": 0.0}, "`method` vanilla learns from photographs"),
        ({"method": "pisr", "imitation": 0.0}, "`method` pisr learns from photographs"),
        ({"imitation": 0.5}, r"`imitation` must be 1 with `train_low_dir` alone.*got 0\.5"),
        ({"imitation_end": 0.0}, r"`imitation_end` must be 1 .*got 0"),
        ({"zoom_in_share": 0.25}, r"`zoom_in_share` must be 0, for `train_low_dir` has no"),
        ({"degradation": "area"}, "`degradation` area: `train_low_dir` has the low-resolution"),
        ({"crop": True}, "`crop` cuts photographs of `train_dir` to those of `train_low_dir`"),
        ({"train_dir": ("a", "b")}, "must name one folder for each of the 2 of `train_dir`, got 1"),
    ],
)
def test_what_needs_photographs_is_refused_without_any(changes, message):
    options = TrainOptions.by_recipe(train_low_dir=(Path("low"),))
    with pytest.raises(ValueError, match=message):
        replace(options, **changes)


def test_sets_are_named_by_their_degradation_and_always_the_same(photographs):
    options = TrainOptions(val_dir=photographs, degradation="realesrgan")
    (name,), (first,) = zip(*validation_sets(options, silent).items(), strict=True)
    assert name == "photographs (realesrgan, fixed seed)"
    again = validation_sets(replace(options, seed=7), silent)[name]
    bicubic = validation_sets(TrainOptions(val_dir=photographs), silent)["photographs"]
    for a, b, plain in zip(first.pairs, again.pairs, bicubic.pairs, strict=True):
        assert all(map(torch.equal, a, b))
        assert torch.equal(a[1], plain[1])
        assert not torch.equal(a[0], plain[0])


def test_small_photographs_are_told_once_with_their_number(photographs):
    options = TrainOptions(train_dir=photographs, patch_size=17, small_images="pad")
    images, (remark,) = training_photographs(options, silent)
    assert remark.startswith(
        "continued by their mirror image: 2 of 2 photographs, smaller than 68x68 pixels, such as"
    )
    assert images.patch(0, 17, (0, 0.5))[1].shape == (3, 68, 68)
    with pytest.raises(ValueError, match="holds no usable photograph"):
        training_photographs(replace(options, small_images="skip"), silent)
    with pytest.raises(ValueError, match=r"`small_images` pad, .*`small_images` skip, or take a"):
        training_photographs(replace(options, small_images="refuse", bad_images="skip"), silent)
    one = replace(options, patch_size=16, small_images="skip")
    assert len(training_photographs(one, silent)[0]) == 2


def test_of_versions_at_random_no_pictures_are_kept():
    options = TrainOptions(
        method="response", degradation="mine.yaml", teacher_cache=Path("c"), imitation=1.0
    )
    assert options.resolved().teacher_cache_keeps == "maps"
    assert replace(options, method="vanilla", imitation=0.0).resolved()
    pictures = replace(options, teacher_cache_keeps="pictures")
    with pytest.raises(ValueError, match="another version of each photograph in every step"):
        pictures.resolved()
    with pytest.raises(ValueError, match="it would show them without `degradation` mine"):
        replace(options, zoom_out_share=0.25)
    with pytest.raises(ValueError, match=r"or a YAML file, got 'realesrgn'; did you mean"):
        replace(options, degradation="realesrgn")


@pytest.mark.parametrize(
    "keeps", [None, *(pytest.param(k, marks=pytest.mark.slow) for k in ("maps", "pictures"))]
)
def test_a_student_learns_from_low_resolution_pictures_alone(tmp_path, low_pictures, keeps):
    options = TrainOptions.by_recipe(
        train_low_dir=(low_pictures,),
        iterations=4,
        batch_size=2,
        patch_size=8,
        validate_every=2,
        log_every=1,
        teacher_cache=tmp_path / "cache" if keeps else None,
        teacher_cache_keeps=keeps,
        teacher_cache_crops=4,
        out=tmp_path / "run",
    )
    first = train(options, Console(quiet=True))
    scores = first["validation"]["held-out pictures, to the teacher"]
    assert scores.keys() == {"bicubic", "student"}
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    measured = [r["validation"] for r in records if "validation" in r]
    assert measured[-1] == {"held-out pictures, to the teacher": scores["student"]}
    student = load_model(tmp_path / "run" / "checkpoints" / "student.safetensors")
    (path,) = held_out_pictures(options, silent).paths
    low = read_image(path)[None].float() / 255
    with torch.no_grad():
        expected = psnr_y(to_uint8(student(low))[0], to_uint8(builtin_teacher()(low))[0], 4)
    assert scores["student"]["psnr_y"] == pytest.approx(expected, abs=1e-3)
