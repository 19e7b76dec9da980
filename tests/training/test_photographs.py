from dataclasses import replace

import pytest
import torch

from mkdext.data import PatchSampler, prepare_store
from mkdext.training.options import TrainOptions
from mkdext.training.photographs import training_photographs, validation_sets


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
