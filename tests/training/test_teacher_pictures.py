"""The teacher's pictures of whole images: what is kept, what survives, what is refused."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mkdext.data import ImagePairs, PatchSampler
from mkdext.training.teacher import Teacher
from mkdext.training.teacher_pictures import PicturedPairs, Pool, TeacherPictures
from mkdext.training.validation import picture

CPU = torch.device("cpu")


class Net(nn.Module):
    """Enlarges twice, and counts what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Upsample(scale_factor=2)
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.seen = 0
        self.offset = 0.0

    def forward(self, low: Tensor) -> Tensor:
        self.seen += 1
        large: Tensor = self.large(low) * self.gain + self.offset
        return large


@pytest.fixture
def pairs(photographs: Path) -> ImagePairs:
    return ImagePairs(sorted(photographs.iterdir()), scale=2)


def make(folder: Path, net: Net | None = None, **settings) -> TeacherPictures:
    return TeacherPictures(folder, Teacher((net or Net()).eval()), 2, CPU, **settings)


def pool_of(pairs: ImagePairs) -> Pool:
    return Pool("photographs", [p.name for p in pairs.paths], lambda index: pairs[index][0])


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.suffix in (".u8", ".json")}


def test_patches_of_all_three_are_of_the_same_place_turned_alike(tmp_path, pairs):
    net = Net()
    shown = PicturedPairs(pairs, make(tmp_path, net).of(pool_of(pairs)))
    seen = net.seen
    low, high, taught = PatchSampler(shown, 2, 8, 6, seed=1).batch(5)
    plain = PatchSampler(pairs, 2, 8, 6, seed=1).batch(5)
    assert torch.equal(low, plain[0]) and torch.equal(high, plain[1])
    with torch.no_grad():
        expected = net(low)
    torch.testing.assert_close(taught, expected, rtol=0, atol=0.51 / 255)
    assert net.seen == seen + 1  # by the line above


def test_what_is_complete_is_not_computed_again(tmp_path, pairs):
    make(tmp_path).of(pool_of(pairs))
    before, net = content(tmp_path), Net()
    kept = make(tmp_path, net).of(pool_of(pairs))
    assert net.seen == 1  # to see that the code of the network is still the same
    assert content(tmp_path) == before
    assert torch.equal(kept[1][1], picture(net, pairs[1][0]))


def test_an_interrupted_computation_goes_on_where_it_was(tmp_path, pairs):
    def interrupted(title, missing):
        yield missing[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cache", progress=interrupted).of(pool_of(pairs))
    with (tmp_path / "cache/pictures/photographs/pixels.u8").open("ab") as file:
        file.write(b"part of a picture")
    missing = []
    make(tmp_path / "cache", progress=lambda title, left: missing.extend(left) or left).of(
        pool_of(pairs)
    )
    assert missing == [1]
    make(tmp_path / "whole").of(pool_of(pairs))
    assert content(tmp_path / "cache") == content(tmp_path / "whole")


def test_what_does_not_fit_is_refused_and_left_as_it_is(tmp_path, pairs):
    make(tmp_path).of(pool_of(pairs))
    before = content(tmp_path)

    def refusal(net: Net, pool: Pool) -> str:
        with pytest.raises(ValueError, match=r"`teacher_cache` .* does not fit: ") as refused:
            make(tmp_path, net).of(pool)
        assert content(tmp_path) == before
        return str(refused.value)

    other, rewritten = Net(), Net()
    with torch.no_grad():
        other.gain.fill_(0.7)
    rewritten.offset = 0.1
    usual = pool_of(pairs)
    assert "teacher was Net of weights" in refusal(other, usual)
    assert "computes something else now" in refusal(rewritten, usual)
    fewer = usual._replace(images=usual.images[:1])
    assert "photographs have changed (photographs was 2, now 1)" in refusal(Net(), fewer)
    renamed = usual._replace(images=["a", "b"])
    assert "have changed (0/sharp.png was one of them)" in refusal(Net(), renamed)
    (tmp_path / "pictures/teacher.json").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"it is damaged \(teacher\.json is missing\)"):
        make(tmp_path).of(usual)
    (tmp_path / "elsewhere").rename(tmp_path / "pictures/teacher.json")
    darker = usual._replace(image=lambda index: pairs[index][0] // 2)
    assert "have changed (sharp.png is another)" in refusal(Net(), darker)


def test_a_photograph_that_the_teacher_never_saw_is_noticed(tmp_path, pairs):
    kept = make(tmp_path).of(pool_of(pairs))
    low, high = pairs[0]
    pairs._cache[pairs.paths[0]] = ((low // 2).numpy(), high.numpy())
    with pytest.raises(ValueError, match=r"sharp\.png has changed since the teacher enlarged it"):
        PicturedPairs(pairs, kept).patch(0, 8, (0.5, 0.5))


def test_a_folder_in_use_or_of_something_else_is_refused(tmp_path, pairs):
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(ValueError, match="cannot be written"):
        make(tmp_path / "letter.txt").of(pool_of(pairs))
    (tmp_path / "pictures").mkdir()
    with (tmp_path / "pictures/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="is in use by another training"):
            make(tmp_path).of(pool_of(pairs))
    (tmp_path / "pictures/teacher.json").write_text("[")
    with pytest.raises(ValueError, match=r"does not fit: it is damaged \(teacher\.json"):
        make(tmp_path).of(pool_of(pairs))
