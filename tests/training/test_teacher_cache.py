"""What a cache keeps, when it is refused, and what survives."""

from __future__ import annotations

import fcntl
import json
import os
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mkdext.data import ImagePairs, PatchSampler
from mkdext.training.teacher import Teacher
from mkdext.training.teacher_cache import FixedCrops, TeacherCache, row_bytes, stored_shapes

CPU = torch.device("cpu")


class Net(nn.Module):
    """Counts the batches that it sees."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.large = nn.Upsample(scale_factor=2)
        self.seen = 0
        self.gain = 1.0

    def forward(self, lr: Tensor) -> Tensor:
        self.seen += 1
        return self.large(self.first(lr) * self.gain)[:, :3]


@pytest.fixture
def pairs(photographs: Path) -> ImagePairs:
    return ImagePairs(sorted(photographs.iterdir()), scale=2)


def make(
    folder: Path,
    pairs: ImagePairs,
    net: Net | None = None,
    crops: int = 10,
    dtype: torch.dtype = torch.float32,
    **changes: int,
) -> TeacherCache:
    numbers = {"patch_size": 8, "batch_size": 4, "seed": 3} | changes
    sizes = [(numbers["patch_size"],) * 2, (2 * numbers["patch_size"],) * 2]
    teacher = Teacher((net or Net()).eval(), ["first", "large"], sizes, dtype)
    return TeacherCache(folder, teacher, FixedCrops(pairs, 2, **numbers, crops=crops), CPU)


def test_crops_are_drawn_by_the_seed_and_do_not_depend_on_the_batch_size(pairs):
    crops = FixedCrops(pairs, 2, 8, 4, seed=3, crops=10)
    lr, hr = crops.take([7, 0])
    for row, index in enumerate((7, 0)):
        one = PatchSampler(pairs, 2, 8, 1, seed=3).batch(index)
        assert torch.equal(lr[row], one[0][0]) and torch.equal(hr[row], one[1][0])
    assert set(crops.indices(5)) <= set(range(10))
    assert list(crops.indices(5)) == list(FixedCrops(pairs, 2, 8, 4, 3, 10).indices(5))
    drawn = {int(i) for step in range(40) for i in crops.indices(step)}
    assert drawn == set(range(10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_from_the_cache_are_those_of_the_teacher_in_any_order(tmp_path, pairs, dtype):
    cache = make(tmp_path / "cache", pairs, dtype=dtype)
    cache.fill()
    for step, (lr, hr) in enumerate(cache.crops.batches(0, 6)):
        assert hr.shape == (4, 3, 16, 16)
        for kept, computed in zip(
            cache.taught(cache.rows(step, lr)).maps, cache.teacher(lr, hr).maps, strict=True
        ):
            # A convolution of another batch may round otherwise.
            tolerance = 1e-6 if dtype == torch.float32 else 1e-2
            torch.testing.assert_close(kept, computed, rtol=tolerance, atol=tolerance)


def test_a_filled_cache_is_not_computed_again_and_can_grow(tmp_path, pairs):
    make(tmp_path / "cache", pairs).fill()
    before = (tmp_path / "cache/maps.bin").read_bytes()
    net = Net()
    again = make(tmp_path / "cache", pairs, net)
    asked = net.seen
    again.fill()
    assert net.seen - asked == 1  # to see that the code of the network is still the same
    assert (tmp_path / "cache/maps.bin").read_bytes() == before
    make(tmp_path / "cache", pairs, crops=6).fill()
    larger = make(tmp_path / "cache", pairs, crops=13)
    larger.fill()
    after = (tmp_path / "cache/maps.bin").read_bytes()
    assert after.startswith(before) and len(after) == 13 * larger.row_bytes
    whole = make(tmp_path / "whole", pairs, crops=13)
    whole.fill()
    assert (tmp_path / "whole/maps.bin").read_bytes() == after


def test_an_interrupted_computation_goes_on_where_it_was(tmp_path, pairs):
    def interrupted(batches):
        for number, first in enumerate(batches):
            if number == 2:
                raise KeyboardInterrupt
            yield first

    cache = make(tmp_path / "cache", pairs)
    with pytest.raises(KeyboardInterrupt):
        cache.fill(interrupted)
    with (tmp_path / "cache/maps.bin").open("ab") as file:
        file.write(b"half a row")
    firsts = []
    make(tmp_path / "cache", pairs).fill(lambda batches: firsts.extend(batches) or batches)
    assert firsts == [8]
    make(tmp_path / "whole", pairs).fill()
    names = ("maps.bin", "cache.json")
    for name in names:
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"net": 1}, r"teacher was Net of weights \w+, now Net of weights \w+"),
        ({"seed": 4}, "seed was 3, now 4"),
        ({"patch_size": 6}, r"maps was .*, patch_size was 8, now 6"),
        ({"dtype": torch.bfloat16}, "dtype was float32, now bfloat16"),
        ({"photographs": True}, "photographs have changed"),
        ({"code": True}, "the teacher computes something else now"),
        ({"truncated": True}, r"it is damaged \(maps\.bin is too short\)"),
        ({"text": True}, r"it is damaged \(cache\.json is not JSON"),
    ],
)
def test_a_cache_of_something_else_is_refused_and_left_as_it_is(
    tmp_path, pairs, photographs, change, reason
):
    folder = tmp_path / "cache"
    make(folder, pairs).fill()
    net = Net(change.pop("net", 0))
    if change.pop("photographs", False):
        pairs = ImagePairs(sorted(photographs.iterdir())[:1], scale=2)
    if change.pop("code", False):
        net.gain = 1.1
    if change.pop("truncated", False):
        os.truncate(folder / "maps.bin", 100)
    if change.pop("text", False):
        (folder / "cache.json").write_text("{")
    before = [(folder / name).read_bytes() for name in ("maps.bin", "cache.json")]
    with pytest.raises(ValueError, match=reason) as refused:
        make(folder, pairs, net, **change).fill()
    message = str(refused.value)
    assert message.startswith(f"`teacher_cache` {folder} does not fit: ")
    assert message.endswith("name another folder, or delete this one to compute it again")
    assert before == [(folder / name).read_bytes() for name in ("maps.bin", "cache.json")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"crops": "10"}, "'crops' must be of type int, got str"),
        ({"crops": 10.0}, "'crops' must be of type int, got float"),
        ({"crops": True}, "'crops' must be of type int, got bool"),
        ({"crops": -1}, "maps.bin is too short"),
        ({"made_from": []}, "'made_from' must be of type dict, got list"),
        ({"made_from": {}}, "teacher was None, now Net"),
    ],
)
def test_an_edited_index_is_told(change, reason, tmp_path, pairs):
    make(tmp_path, pairs).fill()
    index = tmp_path / "cache.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(ValueError, match=r"`teacher_cache` .* does not fit") as told:
        make(tmp_path, pairs).fill()
    assert reason in str(told.value)


def test_a_pipe_in_place_of_a_file_is_told(tmp_path, pairs):
    make(tmp_path, pairs).fill()
    (tmp_path / "maps.bin").unlink()
    os.mkfifo(tmp_path / "maps.bin")
    with pytest.raises(ValueError, match=r"maps\.bin is no regular file"):
        make(tmp_path, pairs).fill()


def test_a_batch_that_the_teacher_never_saw_is_noticed(tmp_path, pairs):
    cache = make(tmp_path / "cache", pairs)
    cache.fill()
    lr, _ = cache.crops.batch(0)
    lr[2, 1, 3, 3] += 1 / 255
    with pytest.raises(ValueError, match="photographs have changed"):
        cache.rows(0, lr)


def test_too_small_a_disk_is_told_before_anything_is_computed(tmp_path, pairs, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**6, 10**6, 1000))
    cache = make(tmp_path / "cache", pairs)
    with pytest.raises(ValueError, match=r"needs 0\.00 GB for 10 crops, 0\.00 GB are free; lower"):
        cache.fill()
    assert not (tmp_path / "cache/cache.json").exists()


def test_a_disk_that_fills_up_loses_nothing(tmp_path, pairs, monkeypatch):
    cache = make(tmp_path / "cache", pairs)
    real, calls = os.fsync, []

    def full(descriptor):
        # Two of them for every batch: the rows, then the index.
        calls.append(descriptor)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        cache.fill()
    monkeypatch.undo()
    assert json.loads((tmp_path / "cache/cache.json").read_text())["crops"] == 8
    cache.fill()
    make(tmp_path / "whole", pairs).fill()
    read = [(tmp_path / name / "maps.bin").read_bytes() for name in ("cache", "whole")]
    assert read[0] == read[1]


def test_a_folder_of_other_things_or_in_use_is_refused(tmp_path, pairs):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/letter.txt").write_text("dear reader")
    with pytest.raises(ValueError, match=r"holds something else \(letter\.txt\); name a new fold"):
        make(tmp_path / "letters", pairs).fill()
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["letter.txt"]
    with pytest.raises(ValueError, match="cannot be written: "):
        make(tmp_path / "letters/letter.txt", pairs).fill()
    cache = make(tmp_path / "cache", pairs)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/.cache.json.unfinished").touch()
    with (tmp_path / "cache/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="is in use by another training"):
            cache.fill()


def test_the_smaller_of_both_maps_is_kept():
    teacher = Teacher(Net().eval(), ["first", "large"], [(16, 16), (8, 8)])
    shapes = stored_shapes(teacher, 8)
    assert [tuple(shape) for shape in shapes] == [(5, 8, 8), (5, 8, 8)]
    assert row_bytes(shapes, torch.float32) == 2 * 5 * 64 * 4 + 4
    assert row_bytes(shapes, torch.bfloat16) == 2 * 5 * 64 * 2 + 4
