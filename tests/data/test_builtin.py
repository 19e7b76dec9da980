import pytest
import skimage
import torch

from mkdext.data import builtin_photographs, check_images, read_image


def test_all_built_in_photographs_decode_and_fit_the_usual_patches():
    train, validation = builtin_photographs("train"), builtin_photographs("validation")
    good, bad = check_images(train + validation, minimum_side=48 * 4)
    assert not bad
    assert len(good) == 13


def test_no_photograph_is_in_both_splits():
    names = [
        path.stem.removesuffix("_left").removesuffix("_right")
        for split in ("train", "validation")
        for path in sorted(builtin_photographs(split))
    ]
    assert set(names[:10]).isdisjoint(names[10:])


def test_validation_photographs_are_in_colour():
    for path in builtin_photographs("validation"):
        red, green, _ = read_image(path)
        assert not torch.equal(red, green)


def test_a_scikit_image_without_them_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(skimage, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match=r"scikit-image .* has no astronaut\.png, chelsea"):
        builtin_photographs("validation")


def test_another_split_is_refused():
    with pytest.raises(ValueError, match="must be 'train' or 'validation', got test"):
        builtin_photographs("test")
