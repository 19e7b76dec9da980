"""Tests of the allocator's settings."""

import subprocess
import sys

import pytest

_PROGRAM = """
import resource
import torch
from mkdext._system.allocator import keep_freed_memory
if {keep}:
    if not keep_freed_memory():
        print("unsupported")
        raise SystemExit
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(12):
        torch.ones(10 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def _faults(keep: bool) -> int:
    command = [sys.executable, "-c", _PROGRAM.format(keep=keep)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if output == "unsupported":
        pytest.skip("this C library has no mallopt")
    return int(output)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc is the allocator that gives back")
def test_kept_memory_is_used_again_without_page_faults():
    given_back = _faults(keep=False)
    assert given_back > 10000  # or there would be nothing to gain
    # a small block that comes to lie behind a large one can cost the room of one or two more
    assert _faults(keep=True) < given_back / 4
