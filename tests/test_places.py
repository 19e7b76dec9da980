"""Commands where systems, containers and clusters lack what a workstation has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

EVERY_MODULE = """
import importlib, pkgutil, sys
import filelock, matplotlib.pyplot, psutil, scipy.stats, torch  # which use what their system has
for name in ("fcntl", "resource"):
    sys.modules[name] = None
import mkdext
for module in pkgutil.walk_packages(mkdext.__path__, "mkdext."):
    if not module.name.endswith("__main__") and module.name.split(".")[1] not in ("_C", "_C_cuda"):
        importlib.import_module(module.name)
print(sum(name.startswith("mkdext.") for name in sys.modules))
"""

NOBODY = """
import getpass, os, pwd
def unknown(*given):
    raise KeyError("getpwuid(): uid not found: 4242")
pwd.getpwuid = pwd.getpwnam = unknown
os.environ.pop("HOME", None)
"""


UNNAMED = dict.fromkeys(("LOGNAME", "USER", "LNAME", "USERNAME"), "")


def python(
    *arguments: str, first: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (first, str(ROOT), os.environ.get("PYTHONPATH"))))
    given = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, encoding="utf-8", env=given, check=False
    )


@pytest.mark.slow
def test_every_module_can_be_imported_without_what_unix_alone_has() -> None:
    done = python("-c", EVERY_MODULE)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150


@pytest.mark.slow
@pytest.mark.parametrize("home", [None, "/nonexistent"])
def test_commands_run_for_a_user_without_name_and_home(
    home: str | None, tmp_path: Path, photographs: Path
) -> None:
    names = tmp_path / "names"
    names.mkdir()
    ending = "" if home is None else f'os.environ["HOME"] = {home!r}\n'
    (names / "sitecustomize.py").write_text(NOBODY + ending, encoding="utf-8")
    user = python("-c", "import getpass; getpass.getuser()", first=str(names), **UNNAMED)
    assert user.returncode and "getpwuid" in user.stderr
    evaluated = ["--data", str(photographs), "--out", str(tmp_path / "out")]
    done = python(
        "-m", "mkdext.evaluate", *evaluated, first=str(names), **UNNAMED
    )  # with figures by matplotlib
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_processes_need_no_shared_memory(tmp_path: Path, photographs: Path) -> None:
    mount = "mount -t tmpfs -o size=4k tmpfs /dev/shm"
    if (
        not shutil.which("unshare")
        or subprocess.run(
            ["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("/dev/shm cannot be replaced here")
    prepare = [sys.executable, "-m", "mkdext.data", "prepare", str(photographs), "--workers", "2"]
    command = f'{mount} && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, "sh", *prepare, "--out", str(tmp_path / "store")],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 photographs" in done.stdout
