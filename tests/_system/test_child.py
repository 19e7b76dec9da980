from __future__ import annotations

import os
import subprocess
import sys

import pytest

PRINTING = "import sys\nprint(__name__, sys.argv[1:])\nsys.exit(3)\n"


@pytest.mark.parametrize("whose", ["its parent's", "another"])
def test_a_module_runs_as_a_command_only_for_its_parent(whose, tmp_path):
    (tmp_path / "printing.py").write_text(PRINTING)
    parent = os.getpid() if whose == "its parent's" else os.getppid()
    command = ["mkdext._system.child", str(parent), "printing", "--steps", "2"]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stderr == ""
    expected = (3, "__main__ ['--steps', '2']\n") if whose == "its parent's" else (1, "")
    assert (done.returncode, done.stdout) == expected
