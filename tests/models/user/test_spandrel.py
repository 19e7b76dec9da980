"""Networks of the package spandrel, recognised by their weights or made by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mkdext.data import builtin_photographs
from mkdext.models import (
    RCAN,
    AdaptedNetwork,
    create_model,
    load_model,
    load_recognised,
    resolve_student,
    resolve_teacher,
    save_model,
)
from mkdext.models.handling import count_parameters
from mkdext.models.proposed_points import proposed_points
from mkdext.models.user import spandrel
from mkdext.models.user.trial import check_trains

missing = pytest.mark.skipif(spandrel.is_installed(), reason="spandrel is installed")
needed = pytest.mark.skipif(not spandrel.is_installed(), reason="needs mkdext[spandrel]")
# Its code calls what torch wants called otherwise.
quiet = pytest.mark.filterwarnings("ignore")
pytestmark = quiet


@missing
def test_without_spandrel_the_message_says_what_to_install(tmp_path: Path) -> None:
    torch.save({"conv_1.sk.weight": torch.ones(4, 3, 1, 1)}, tmp_path / "span.pth")
    with pytest.raises(ValueError, match=r"no architecture that.*'mkdext\[spandrel\]'"):
        load_recognised(tmp_path / "span.pth")
    for name in ("span-s", "spandrel:SPAN"):
        with pytest.raises(ValueError, match=r"is not installed: pip install 'mkdext\[spandrel\]'"):
            resolve_student(name, 4)


@missing
def test_without_spandrel_damaged_weights_of_ours_are_still_ours(tmp_path: Path) -> None:
    weights = create_model("rcan-a", 2).state_dict()
    del weights["tail.1.weight"]
    torch.save(weights, tmp_path / "rcan.pt")
    with pytest.raises(ValueError, match=r"tail\.1\.weight") as refused:
        load_recognised(tmp_path / "rcan.pt")
    assert "pip install" not in str(refused.value)


@needed
def test_every_small_student_can_be_differentiated_twice_and_is_small() -> None:
    for name in spandrel.SMALL:
        network = resolve_student(name, 2)
        network.train()
        check_trains(network, [], twice=True, size=(16, 16))
        assert count_parameters(network) < 1_000_000, name


@needed
@pytest.mark.parametrize("wrapped", ["params_ema", "state_dict"])
def test_weights_are_recognised_wherever_they_are_and_ours_are_read_first(
    tmp_path: Path, wrapped: str
) -> None:
    network = spandrel.instance("spandrel:SPAN", 2, "test", {"feature_channels": 8})
    weights = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({wrapped: weights, "epoch": 3}, tmp_path / "span.pth")
    teacher = resolve_teacher(None, tmp_path / "span.pth", 2)
    assert isinstance(teacher, AdaptedNetwork) and type(teacher.unwrapped).__name__ == "SPAN"
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    network.eval()
    low = torch.rand(2, 3, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(teacher(low), network(low.clone()))
    save_file(create_model("rcan-a", 2).state_dict(), tmp_path / "rcan.safetensors")
    assert isinstance(load_recognised(tmp_path / "rcan.safetensors"), RCAN)


@needed
def test_pictures_of_any_size_are_padded_and_its_result_is_not_clamped(tmp_path: Path) -> None:
    network = spandrel.instance("spandrel:SAFMN", 2, "test", {"dim": 8, "n_blocks": 2})
    with torch.no_grad():
        network.to_img[0].bias += 2
    save_file(network.state_dict(), tmp_path / "safmn.safetensors")
    teacher = load_recognised(tmp_path / "safmn.safetensors", 2)
    assert teacher.interface.sizes.multiple_of == 8
    low = torch.rand(1, 3, 11, 13)
    assert teacher(low).shape == (1, 3, 22, 26) and teacher(low).max() > 2
    whole = torch.rand(1, 3, 16, 8)
    torch.testing.assert_close(teacher(whole), network.eval()(whole.clone()))


@needed
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("DnCNN", {"nc": 8, "nb": 5}, "DnCNN restores pictures at their own size"),
        ("SPAN", {"feature_channels": 8}, "of spandrel's SPAN is for x4, asked for is x2"),
    ],
)
def test_what_cannot_teach_is_refused_in_one_sentence(tmp_path, name, options, message) -> None:
    network = spandrel.instance(f"spandrel:{name}", 4, "test", options)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        resolve_teacher(None, tmp_path / "weights.pth", 2)


@needed
def test_weights_that_it_only_seems_to_know_are_refused_in_one_sentence(tmp_path: Path) -> None:
    weights = {f"body.{n}.weight": torch.ones(2, 2) for n in range(2)}
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="takes it for RealESRGAN Compact, but cannot") as refused:
        load_recognised(tmp_path / "weights.pth")
    assert "\n" not in str(refused.value)


@needed
def test_a_class_and_its_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"spandrel has no 'SPAM'; did you mean SPAN or SAFMN"):
        resolve_student("spandrel:SPAM", 2)
    with pytest.raises(ValueError, match="has no option 'feature_chanels'; did you mean feature_c"):
        resolve_student("spandrel:SPAN", 2, {"feature_chanels": 8})
    with pytest.raises(ValueError, match="`teacher` span-s needs `teacher_weights` FILE"):
        resolve_teacher("span-s", None, 2)


@needed
def test_a_students_file_remembers_what_it_is_of(tmp_path: Path) -> None:
    network = resolve_student("span-s", 3, {"feature_channels": 8})
    origin = {"student": "span-s", "student_options": ["feature_channels=8"], "scale": 3}
    save_model(tmp_path / "student.safetensors", network.unwrapped, origin)
    loaded = load_recognised(tmp_path / "student.safetensors")
    low = torch.rand(1, 3, 8, 9)
    assert loaded.scale == 3 and torch.equal(loaded(low), network.eval()(low))
    # Others recognise it by its weights.
    tensors = load_file(tmp_path / "student.safetensors")
    from spandrel import MAIN_REGISTRY

    assert MAIN_REGISTRY.load(tensors).architecture.name == "SPAN"


@needed
@pytest.mark.parametrize("name", ["rcan-a", "rcan-b"])
def test_spandrel_recognises_the_rcan_that_is_trained_here(tmp_path: Path, name: str) -> None:
    from spandrel import MAIN_REGISTRY

    network = create_model(name, 2)
    save_model(tmp_path / "student.safetensors", network, {})
    described = MAIN_REGISTRY.load(load_file(tmp_path / "student.safetensors"))
    assert described.architecture.name == "RCAN" and described.scale == 2
    low = torch.rand(1, 3, 9, 8)
    with torch.no_grad():
        theirs, ours = (
            described.model.eval()(low.clone()),
            load_model(tmp_path / "student.safetensors")(low),
        )
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@needed
@pytest.mark.slow
@pytest.mark.parametrize("name", ["SPAN", "HAT", "MMRealSR", "SwinIR"])
def test_architectures_teach_and_are_taught(name: str) -> None:
    from benchmarks.spandrel_architectures import tried

    assert tried(name)._replace(points="") == (name, "", "", "", "")


@needed
@pytest.mark.slow
def test_a_training_with_a_teacher_and_a_student_of_spandrel(tmp_path: Path) -> None:
    from mkdext.evaluate import main as evaluate
    from mkdext.train import main as train

    network = spandrel.instance("spandrel:Compact", 4, "test", {"num_feat": 8, "num_conv": 4})
    torch.save({"params": network.state_dict()}, tmp_path / "teacher.pth")
    run = tmp_path / "run"
    given = ["--teacher-weights", str(tmp_path / "teacher.pth"), "--student", "span-s"]
    given += ["--student-options", "feature_channels=8", "--method", "mkd", "--mkd.grid", "2"]
    given += ["--iterations", "2", "--batch-size", "2", "--patch-size", "12", "--out", str(run)]
    assert train([*given, "--allow-weak-teacher"]) == 0
    scores = json.loads((run / "summary.json").read_text())["validation"]
    assert all(set(ways) == {"bicubic", "student", "teacher"} for ways in scores.values())
    weights = str(run / "checkpoints" / "student.safetensors")
    assert proposed_points(load_recognised(weights), 4)[0] == "block_2"
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    shutil.copy(builtin_photographs("validation")[0], photographs)
    out = str(tmp_path / "out")
    assert evaluate(["--data", str(photographs), "--weights", weights, "--out", out]) == 0
