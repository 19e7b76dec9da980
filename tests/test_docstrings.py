import doctest
import importlib
import pkgutil

import pytest

import mkdext

MODULES = sorted(module.name for module in pkgutil.walk_packages(mkdext.__path__, "mkdext."))


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("._C")])
def test_the_examples_in_docstrings_run(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert not results.failed
