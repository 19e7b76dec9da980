"""Files of users: each is alone with the modules of its folder."""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from pathlib import Path

import pytest
import torch

from mkdext.models import make_own

NET = """
from torch import nn
{imports}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = {features}

    def forward(self, x):
        return x

    def later(self):
        {later}
"""


def write(folder: Path, name: str, imports: str, features: str = "0", later: str = "pass") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(NET.format(imports=imports, features=features, later=later))
    return f"{path}:Net"


def helper(path: Path, features: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"FEATURES = {features}\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("imports", "features"),
    [
        ("import block", "block.FEATURES"),
        ("import block as B", "B.FEATURES"),
        ("from block import FEATURES", "FEATURES"),
        ("from block import *", "FEATURES"),
        ("from . import block", "block.FEATURES"),
        ("from .block import FEATURES", "FEATURES"),
        ("import importlib\nblock = importlib.import_module('block')", "block.FEATURES"),
        ("def read():\n    import block\n    return block.FEATURES", "read()"),
    ],
)
def test_two_files_have_helpers_of_the_same_name_each_its_own(imports, features, tmp_path):
    names = []
    for index, folder in enumerate(("one", "two")):
        helper(tmp_path / folder / "block.py", index + 4)
        later = "import block; return block.FEATURES"
        names.append(write(tmp_path / folder, f"net_{folder}.py", imports, features, later))
    networks = [make_own(name, "`student`") for name in names]
    assert [network.features for network in networks] == [4, 5]
    assert [network.later() for network in networks] == [4, 5]  # Also what is imported later.
    assert "block" not in sys.modules
    assert not {str(tmp_path / "one"), str(tmp_path / "two")} & set(sys.path)


def test_two_files_of_the_same_name_are_two_modules(tmp_path):
    names = [write(tmp_path / f, "net.py", "", str(n)) for n, f in enumerate(("one", "two"))]
    networks = [make_own(name, "`student`") for name in names]
    assert [network.features for network in networks] == [0, 1]
    for network in networks:
        # What looks a class's module up finds it: torch.compile, dataclasses, inspect.
        assert getattr(sys.modules[type(network).__module__], "Net") is type(network)  # noqa: B009
        assert "self.features" in inspect.getsource(type(network))


@pytest.mark.parametrize("has_init", [False, True])
@pytest.mark.parametrize(
    ("imports", "features"),
    [
        ("from . import block", "block.FEATURES"),
        ("from model import block", "block.FEATURES"),
        ("import model.block", "model.block.FEATURES"),
        ("import model.block as B", "B.FEATURES"),
        ("from model.block import FEATURES", "FEATURES"),
        ("from utils.misc import FEATURES", "FEATURES - 1"),
        ("import utils.misc", "utils.misc.FEATURES - 1"),
        ("from ..utils import misc", "misc.FEATURES - 1"),
        ("from ..utils.misc import FEATURES", "FEATURES - 1"),
    ],
)
def test_a_file_in_a_package_imports_from_it_and_from_beside_it(
    imports, features, has_init, tmp_path
):
    helper(tmp_path / "repo-1.0/model/block.py", 7)
    helper(tmp_path / "repo-1.0/utils/misc.py", 8)
    if has_init:
        (tmp_path / "repo-1.0/model/__init__.py").touch()
    name = write(tmp_path / "repo-1.0/model", "architecture.py", imports, features)
    assert make_own(name, "`student`").features == 7


def test_deep_packages_and_names_with_dots_are_found(tmp_path):
    for folder in ("top", "top/middle", "top/middle/low"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    helper(tmp_path / "top/common.py", 3)
    name = write(tmp_path / "top/middle/low", "net.v2.py", "from ...common import *", "FEATURES")
    assert make_own(name, "`student`").features == 3
    name = write(
        tmp_path / "top/middle/low", "other.py", "from top import common", "common.FEATURES"
    )
    assert make_own(name, "`student`").features == 3


def test_names_of_the_standard_library_and_of_packages_mean_these(tmp_path):
    helper(tmp_path / "torch/types.py", 1)
    name = write(tmp_path / "torch", "net.py", "import types, json, torch", "int(torch.ones(1)[0])")
    assert make_own(name, "`student`").features == 1


def test_a_file_that_was_changed_is_run_again_with_its_helpers(tmp_path):
    helper(tmp_path / "block.py", 4)
    name = write(tmp_path, "net.py", "import block", "block.FEATURES")
    first, again = (type(make_own(name, "`student`")) for _ in range(2))
    assert first is again
    helper(tmp_path / "block.py", 5)
    os.utime(tmp_path / "block.py", ns=(0, 0))
    assert make_own(name, "`student`").features == 5


def test_what_fails_is_told_and_can_be_mended(tmp_path):
    name = write(tmp_path, "net.py", "import missing_helper")
    with pytest.raises(ValueError, match="cannot be imported: ModuleNotFoundError: No module name"):
        make_own(name, "`student`")
    helper(tmp_path / "missing_helper.py", 1)
    make_own(name, "`student`")
    (tmp_path / "net.py").write_text("def broken(:")
    with pytest.raises(ValueError, match="cannot be imported: SyntaxError"):
        make_own(name, "`student`")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import sys\nsys.exit(0)", "cannot be imported: SystemExit: 0"),
        ("def Net():\n    raise SystemExit", "failed: SystemExit: no reason given"),
        (
            "from abc import *\nclass Net(ABC):\n    @abstractmethod\n    def f(self): ...",
            "abstract",
        ),
        ("def Net():\n    yield 1", "must return a torch.nn.Module, got generator"),
        ("async def Net(): ...", "must return a torch.nn.Module, got coroutine"),
        ("from torch import nn\nclass Net: ...", "must return a torch.nn.Module, got Net"),
        ("from torch import nn\ndef Net(): return nn.Identity", "must return .*, got type"),
    ],
)
def test_a_factory_that_makes_no_network_ends_in_one_sentence(body, message, tmp_path):
    (tmp_path / "net.py").write_text(body)
    with pytest.raises(ValueError, match=message) as refused:
        make_own(f"{tmp_path / 'net.py'}:Net", "`student`")
    assert "\n" not in str(refused.value)


def test_dataclasses_and_compiled_code_in_a_file_work(tmp_path):
    (tmp_path / "net.py").write_text(
        "from __future__ import annotations\n"
        "import dataclasses\nimport torch\nfrom torch import nn\n"
        "@dataclasses.dataclass\nclass Config:\n    features: int = 3\n"
        "@torch.jit.ignore\ndef double(x): return 2 * x\n"
        "class Net(nn.Module):\n"
        "    def forward(self, x): return double(x) * Config().features\n"
    )
    network = make_own(f"{tmp_path / 'net.py'}:Net", "`student`")
    assert dataclasses.is_dataclass(sys.modules[type(network).__module__].Config)
    assert torch.equal(network(torch.ones(1)), torch.full((1,), 6.0))
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(1)), torch.full((1,), 6.0))
