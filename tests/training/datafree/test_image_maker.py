from __future__ import annotations

import dataclasses

import pytest
import torch

from mkdext._system.saved_state import SavedState
from mkdext._system.terminal import Terminal
from mkdext.data import imresize
from mkdext.models import features_at
from mkdext.synthesis import global_views, local_views, procedural_images
from mkdext.synthesis.contrastive import discrimination_loss, pooled
from mkdext.synthesis.generator import LATENT
from mkdext.synthesis.losses import LossWeights
from mkdext.synthesis.randomness import Draw, random_for
from mkdext.training import ContrastiveOptions, DataFreeOptions, GeneratorOptions
from mkdext.training.assembly import Training
from mkdext.training.image_maker import (
    CollapseError,
    ImageMaker,
    measured,
    require_different,
)
from mkdext.training.run.directory import RunDirectory
from mkdext.training.run.going_on import Done
from mkdext.training.setup import prepare
from mkdext.training.step import Batch
from mkdext.training.trainer import Trainer


@pytest.fixture
def options(teachers) -> DataFreeOptions:
    return DataFreeOptions(
        teacher_weights=teachers["rcan"],
        scale=(2,),
        patch_size=8,
        batch_size=3,
        source="generator",
        contrastive=ContrastiveOptions(bank_bytes=2000),
    )


def changed(before: list[torch.Tensor], after: list[torch.Tensor]) -> list[bool]:
    return [not torch.equal(b, a) for b, a in zip(before, after, strict=True)]


def numbers(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def begun(options: DataFreeOptions) -> tuple[Training, ImageMaker, torch.nn.Module]:
    training = prepare(options.resolved())
    stage = training.student_stages[0]
    stage.begin(None)
    return training, training.made.makers[2], stage.network


def test_a_step_of_the_generator_changes_what_makes_images_and_nothing_else(options):
    _, maker, student = begun(options)
    fixed = [*numbers(student), *numbers(maker.teacher)]
    trained = [p.detach().clone() for p in maker.trained]
    maker.improve(0, student)
    assert not any(changed(fixed, [*numbers(student), *numbers(maker.teacher)]))
    assert all(p.grad is None for p in student.parameters())
    assert all(changed(trained, maker.trained))
    assert len(maker.bank) == 3


def test_without_contrast_the_losses_are_those_of_dfsr(options):
    options = dataclasses.replace(options, weights=LossWeights(contrastive=0))
    _, maker, student = begun(options)
    seen: list[torch.Tensor] = []
    maker.generator.register_forward_hook(lambda module, inputs, images: seen.append(images))
    values = maker.improve(0, student)
    images = seen[0].detach()
    enlarged, guess = maker.teacher(images), student(images)
    gap = (enlarged - guess).abs().mean()
    torch.testing.assert_close(values["adversarial"], -(1 + gap).log())
    expected = (imresize(enlarged, 1 / 2) - images).abs().mean()
    torch.testing.assert_close(values["consistency"], expected)
    assert "contrastive" not in values


@pytest.mark.parametrize(
    ("teacher", "student"), [("vdsr", "vdsr-half"), ("rcan", "vdsr-half"), ("vdsr", "rcan-a")]
)
def test_each_loss_is_over_y_where_the_network_that_it_judges_is_of_y(
    teacher, student, options, teachers
):
    options = dataclasses.replace(
        options,
        teacher_weights=teachers[teacher],
        student=student,
        weights=LossWeights(contrastive=0),
        error="squared",
        reduction="sum",
    )
    _, maker, network = begun(options)
    with torch.no_grad():
        noise = torch.randn(3, LATENT, generator=random_for(0, Draw.GENERATION, 0))
        images = maker.generator(noise)
        enlarged = maker.teacher(images)
        gaps = enlarged - network(images), imresize(enlarged, 1 / 2) - images
    weights = torch.tensor([65.481, 128.553, 24.966]) / 255
    failed, inconsistent = (
        (torch.einsum("bchw,c->bhw", gap, weights) if name.startswith("vdsr") else gap)
        for gap, name in zip(gaps, (student, teacher), strict=True)
    )
    values = maker.improve(0, network)
    torch.testing.assert_close(values["adversarial"], -failed.square().sum().log1p())
    torch.testing.assert_close(values["consistency"], inconsistent.square().sum())


def test_with_contrast_the_losses_are_those_of_the_views(options):
    contrastive = ContrastiveOptions(
        temperature=0.3, positive_in_denominator=False, bank_bytes=2000, negatives=2
    )
    options = dataclasses.replace(
        options, contrastive=contrastive, error="squared", reduction="sum"
    )
    _, maker, student = begun(options)
    maker.improve(0, student)  # The bank holds a batch from now on.
    random = random_for(options.seed, Draw.GENERATION, 1)
    with torch.no_grad():
        images = maker.generator(torch.randn(3, LATENT, generator=random))
        seen = global_views(images, random)
        local = local_views(images, random)
        whole, part = (
            pooled(features_at(maker.teacher, maker.points, views)) for views in (seen, local)
        )
        kept = maker.bank.sample(2, random)
        enlarged, guess = maker.teacher(seen), student(seen)
        expected = {
            "contrastive": discrimination_loss(maker.discriminator, part, whole, kept, 0.3, False),
            "adversarial": -(enlarged - guess).square().sum().log1p(),
            "consistency": (imresize(enlarged, 1 / 2) - seen).square().sum(),
        }
    values = maker.improve(1, student)
    torch.testing.assert_close({name: values[name] for name in expected}, expected)
    # What is kept of an image: its local view, then its global one.
    torch.testing.assert_close(maker.bank.rows()[-3:], torch.cat((part, whole), dim=1))


def test_the_student_is_measured_as_it_will_be_used_and_goes_on_as_it_was(options):
    _, maker, student = begun(options)
    ways: list[bool] = []
    student.register_forward_hook(lambda module, *_: ways.append(module.training))
    assert student.training
    maker.improve(0, student)
    assert ways == [False] and student.training


def test_the_rate_of_a_generator_falls_like_that_of_the_student(options):
    _, maker, student = begun(options)
    maker.improve(options.iterations // 2, student)
    assert maker.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * 0.505)


def test_a_discriminator_knows_the_scale_of_features_of_usual_images(options):
    _, maker, _ = begun(options)
    images = procedural_images(64, 8, 8, random_for(options.seed, Draw.USUAL))
    features = pooled(features_at(maker.teacher, maker.points, images))
    torch.testing.assert_close(maker.discriminator.mean, features.mean(dim=0))


def test_the_generator_learns_where_the_student_fails(options):
    options = dataclasses.replace(
        options,
        weights=LossWeights(reconstruction=0, contrastive=0),
        generator=GeneratorOptions(lr=1e-2),
    )
    _, maker, student = begun(options)
    losses = [maker.improve(0, student)["adversarial"].item() for _ in range(15)]
    assert losses[-1] < losses[0]


def test_persistent_noise_is_trained_and_fresh_noise_is_not_kept(options):
    for noise in ("fresh", "persistent"):
        generator = GeneratorOptions(noise=noise)
        _, maker, student = begun(dataclasses.replace(options, generator=generator))
        before = None if maker.noise is None else maker.noise.detach().clone()
        maker.improve(0, student)
        if noise == "fresh":
            assert maker.noise is None
        else:
            assert (maker.noise != before).any(dim=1).all()


@pytest.mark.parametrize("every", ["round", "stage"])
def test_the_bank_is_filled_after_rounds_or_stages(every, options):
    contrastive = ContrastiveOptions(bank_every=every, bank_bytes=2000)
    _, maker, student = begun(dataclasses.replace(options, contrastive=contrastive, stages=2))
    for step in range(2):
        maker.improve(step, student)
    assert len(maker.bank) == (6 if every == "round" else 0)
    maker.end_stage()
    assert len(maker.bank) == (6 if every == "round" else 3)


def test_what_waits_for_the_bank_is_there_after_a_resume(options):
    contrastive = ContrastiveOptions(bank_every="stage", bank_bytes=2000)
    options = dataclasses.replace(options, contrastive=contrastive, stages=2)
    (_, maker, student), (_, resumed, _) = begun(options), begun(options)
    maker.improve(0, student)
    resumed.load(SavedState(maker.state_dict(), "it", "delete it"))
    for each in (maker, resumed):
        each.end_stage()
    torch.testing.assert_close(resumed.bank.rows(), maker.bank.rows())
    assert len(maker.bank) == 3


def test_the_bank_is_filled_when_the_student_grows(options, tmp_path):
    contrastive = ContrastiveOptions(bank_every="stage", bank_bytes=2000)
    generator = GeneratorOptions(every=1)
    options = dataclasses.replace(
        options, contrastive=contrastive, generator=generator, stages=2, iterations=4
    )
    training, maker, _ = begun(options)
    run = RunDirectory(tmp_path)
    run.samples.mkdir()
    run.state.parent.mkdir()
    sizes = []

    def callback(step, values, student):
        sizes.append(len(maker.bank))

    quiet = Terminal(quiet=True)
    trainer = Trainer(training, training.stages, training.made, run, {}, quiet, callback)
    trainer.run(None, Done())
    assert sizes == [0, 0, 3, 3]


def test_a_teacher_with_normalisation_layers_counts_their_statistics(options, tmp_path):
    file = tmp_path / "network.py"
    file.write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential("
        "nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.PixelShuffle(2))\n"
    )
    options = dataclasses.replace(
        options, teacher=f"{file}:net", teacher_weights=None, teacher_points=("0",)
    )
    norms = []
    for weight in (0.0, 1.0):
        weights = LossWeights(statistics=weight)
        _, maker, student = begun(dataclasses.replace(options, weights=weights))
        values = maker.improve(0, student)
        assert values["statistics"] > 0
        norms.append(values["generator_gradient"])
    assert norms[0] != norms[1]


@pytest.mark.parametrize("source", ["generator", "procedural", "mixed"])
def test_images_of_a_step_are_the_same_whenever_asked_for(source, options):
    options = dataclasses.replace(options, source=source)
    _, maker, _ = begun(options)
    images = maker.images(7)
    assert images.shape == (3, 3, 8, 8) and images.min() >= 0 and images.max() <= 1
    assert torch.equal(images, maker.images(7))
    assert not torch.equal(images, maker.images(8))
    other = prepare(dataclasses.replace(options, seed=1).resolved()).made.makers[2]
    assert not torch.equal(images, other.images(7))


def test_a_mixed_batch_has_its_share_of_procedural_images(options):
    options = dataclasses.replace(options, source="mixed", batch_size=8, procedural_share=0.25)
    _, maker, _ = begun(options)
    counts = []
    maker.generator.register_forward_hook(lambda module, noise, images: counts.append(len(images)))
    assert len(maker.images(0)) == 8
    assert counts == [6]


def require_different_images(images):
    require_different({name: value.item() for name, value in measured(images).items()}, 0.06)


def test_constant_and_equal_images_are_a_collapse():
    grey = torch.full((4, 3, 8, 8), 0.5)
    with pytest.raises(CollapseError, match=r"the deviation within them is 0, below 0.0039"):
        require_different_images(grey + torch.linspace(-0.2, 0.2, 4).view(4, 1, 1, 1))
    with pytest.raises(CollapseError, match=r"all alike, their mean distance is 0, below 0.06"):
        require_different_images(torch.rand(1, 3, 8, 8).expand(4, 3, 8, 8))
    require_different_images(torch.rand(4, 3, 8, 8))


def test_a_collapse_is_measured_against_the_untrained_generator(options):
    _, maker, _ = begun(options)
    diversity = measured(maker.samples(64))["image_diversity"].item()
    assert maker.least_diversity == pytest.approx(diversity / 5)
    assert 0.01 < maker.least_diversity < diversity


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("teacher", ["rcan", "vdsr"])
def test_the_steps_of_student_and_generator_wait_for_nothing(options, teachers, teacher):
    device, weights = "cuda", teachers[teacher]
    training = prepare(
        dataclasses.replace(options, teacher_weights=weights, device=device).resolved()
    )
    maker, stage = training.made.makers[2], training.student_stages[0]
    stage.begin(None)

    def take(step):
        stage.take(step, Batch(maker.images(step), None, scale=2))
        return maker.improve(step, stage.network)

    take(0)
    try:
        torch.cuda.set_sync_debug_mode("error")
        values = [take(step) for step in (1, 2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert values[-1]["generator_gradient"] > 0
