from __future__ import annotations

import pytest
import torch

from mkdext._system.joining import launched
from mkdext._system.processes import Processes, averaged, processes, var_mean

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(("size", "count"), [(1, 5), (3, 7), (4, 4), (4, 11)])
def test_rows_are_divided_evenly_and_in_order(size, count):
    parts = [range(count)[Processes(rank, size).rows(count)] for rank in range(size)]
    assert [row for part in parts for row in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_rows_of_parts_of_a_batch_are_those_of_the_batch():
    for rank in range(3):
        together = Processes(rank, 3)
        together.divide(7)
        whole = torch.arange(7)
        parts = [whole[:3][together.part(0, 3)], whole[3:5][together.part(3, 2)]]
        parts.append(whole[5:][together.part(5, 2)])
        assert torch.equal(torch.cat(parts), whole[together.rows(7)])


def test_shares_add_up():
    shares = []
    for rank in range(3):
        together = Processes(rank, 3)
        together.divide(7)
        shares.append(together.share)
    assert sum(shares) == pytest.approx(1)


def test_more_processes_than_rows_are_refused():
    with pytest.raises(ValueError, match="`batch_size` must be at least the number of processes"):
        Processes(0, 3).divide(2)


def test_one_process_gets_back_what_it_gives():
    assert processes().size == 1
    given = torch.rand(3), torch.rand(())
    assert all(a is b for a, b in zip(averaged(*given), given, strict=True))
    assert processes().agreed(2) == 2
    assert processes().all_of("value") == ["value"]
    x = torch.rand(2, 3, 4, 4)
    variance, mean = var_mean(x, (0, 2, 3))
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(variance, x.var((0, 2, 3), correction=0))


def test_a_launcher_is_known_by_its_environment():
    assert launched({}) == (0, 1)
    assert launched({"WORLD_SIZE": "1"}) == (0, 1)
    assert launched(LAUNCHED) == (1, 4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RANK": ""}, "WORLD_SIZE is 4, but RANK of the environment is not set"),
        ({"RANK": "4"}, "RANK must be below WORLD_SIZE 4, got 4"),
        ({"MASTER_PORT": "high"}, "MASTER_PORT must be a number, got 'high'"),
    ],
)
def test_a_launcher_that_says_half_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        launched(LAUNCHED | changes)
