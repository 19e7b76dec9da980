from __future__ import annotations

import pytest

from mkdext.datafree import parse
from mkdext.synthesis.losses import LossWeights
from mkdext.training import ContrastiveOptions, DataFreeOptions, GeneratorOptions, MetaOptions
from mkdext.training.options_file import origin


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataFreeOptions(iterations=1, stages=2), "`stages` must be at most `iterations`"),
        (lambda: DataFreeOptions(scale=(2, 2)), "`scale` must name scales, each once"),
        (lambda: DataFreeOptions(scale=()), "`scale` must name scales"),
        (lambda: DataFreeOptions(patch_size=10), "multiple of 4, 8 or more with a generator"),
        (lambda: DataFreeOptions(patch_size=36, scale=(2, 3, 4)), "multiple of 24, 24 or more"),
        (lambda: DataFreeOptions(patch_size=4), "multiple of 4, 8 or more with a generator"),
        (lambda: DataFreeOptions(batch_size=1), "`batch_size` must be at least 2"),
        (lambda: DataFreeOptions(procedural_share=1), "`procedural_share` must be between 0 and 1"),
        (lambda: DataFreeOptions(procedural_share=0.99), "is 8 procedural and 0 generated images"),
        (
            lambda: DataFreeOptions(contrastive=ContrastiveOptions(bank_every="stage")),
            "take more stages, or `contrastive.bank_every` round",
        ),
        (lambda: DataFreeOptions(method="fitnett"), "did you mean fitnet"),
        (lambda: DataFreeOptions(method="pisr"), "trains a teacher of its own on high-resolution"),
        (lambda: DataFreeOptions(lr=0), "`lr` must be positive"),
        (
            lambda: DataFreeOptions(weights=LossWeights(contrastive=-1)),
            "`weights.contrastive` must be at least 0, got -1",
        ),
        (
            lambda: DataFreeOptions(optimizer="sgd", meta=MetaOptions(inner_optimizer="adam")),
            "take `meta.inner_optimizer` sgd",
        ),
        (lambda: GeneratorOptions(every=-1), "`generator.every` must be at least 0, got -1"),
        (lambda: GeneratorOptions(lr=-1), "`generator.lr` must be positive"),
        (lambda: ContrastiveOptions(temperature=0), "`contrastive.temperature` must be positive"),
        (lambda: ContrastiveOptions(bank_bytes=0), "`contrastive.bank_bytes` must be at least 1"),
    ],
)
def test_a_wrong_value_is_told_with_its_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_pictures_of_all_scales_have_one_size():
    options = DataFreeOptions(scale=(2, 3, 4), patch_size=24)
    assert options.sizes == {2: 24, 3: 16, 4: 12}


def test_without_a_generator_any_size_will_do():
    assert DataFreeOptions(source="procedural", patch_size=9, batch_size=1).sizes == {4: 9}


def test_a_generator_that_is_never_trained_needs_no_second_image():
    options = DataFreeOptions(source="generator", batch_size=1, generator=GeneratorOptions(every=0))
    assert options.has_generator and not options.is_contrastive


def test_a_run_can_be_made_from_the_configuration_of_another(tmp_path):
    flags = ["--scale", "2", "3", "--patch-size", "24", "--contrastive.bank-every", "stage"]
    flags += ["--contrastive.no-positive-in-denominator", "--weights.contrastive", "0"]
    command = origin(parse(flags).options().resolved(), steps=5)["command"].split()
    assert command[:3] == ["python", "-m", "mkdext.datafree"]
    assert parse(command[3:]) == parse(flags)


def test_the_command_of_a_run_keeps_learning_rates_that_are_unusual_for_its_optimizer():
    flags = ["--optimizer", "sgd", "--lr", "1e-3"]
    command = origin(parse(flags).options().resolved(), steps=5)["command"].split()
    assert parse(command[3:]) == parse(flags)
    usual = origin(parse(["--optimizer", "sgd"]).options().resolved(), steps=5)["command"]
    assert usual == "python -m mkdext.datafree --optimizer sgd"
