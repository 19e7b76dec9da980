"""Python files of users, each alone with the modules of its folder.

A file runs in a world of its own, whose modules are those of its folder: what it imports, at once
or later, is found there first, and another file's helper of the same name is another module. They
are registered under names that begin with `PREFIX`, so that code that looks a module up by the name
of a class finds the right one.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

PREFIX = "_mkdext_user_"
"""Begins the names of all modules of files."""


@contextlib.contextmanager
def searched(folder: Path, alone: bool) -> Iterator[None]:
    """Let `importlib.import_module` find what is in a folder; `alone`: nobody else later."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # The user's code may have changed it.
            sys.path.remove(str(folder))
        for name in set(sys.modules) - before if alone else ():
            if _was_found_in(folder, name):
                del sys.modules[name]


def _was_found_in(folder: Path, name: str) -> bool:
    file, top = getattr(sys.modules[name], "__file__", None), name.partition(".")[0]
    if not isinstance(file, str) or not Path(file).is_relative_to(folder):
        return False
    # An environment with all that is installed may lie in the folder as well.
    return Path(file).relative_to(folder).parts[0].partition(".")[0] == top


def module_of_file(path: Path) -> ModuleType:
    """Run a file, or give the module that it was run as if neither it nor a helper has changed.

    Raises:
        Exception: Whatever the code of the file raises.
    """
    path = path.resolve()
    root = _root_of(path)
    world = _worlds.get(root)
    if world is None or world.has_changed():
        world = _worlds[root] = _World(root)
    return importlib.import_module(world.module_of(path))


def _root_of(path: Path) -> Path:
    """The folder above all packages that a file's imports can name."""
    root = path.parent
    while (root / "__init__.py").exists() and root != root.parent:
        root = root.parent
    # Folders without an __init__.py are packages too.
    above = max(1, _relative_levels(path)) - len(path.parent.relative_to(root).parts)
    for _ in range(above):
        root = root.parent
    return root


def _relative_levels(path: Path) -> int:
    """The most dots that a relative import of a file begins with."""
    with contextlib.suppress(SyntaxError, ValueError):  # Its import will tell.
        tree = ast.parse(path.read_bytes())
        return max((n.level for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)), default=0)
    return 0


class _World:
    """The modules below a folder, apart from those of all others."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = f"{PREFIX}{len(_known)}"
        self.sources: dict[Path, tuple[int, int]] = {}
        """Size and time of change of every file that was run."""
        self.files: dict[str, Path] = {}
        """Files by the names of their modules, of those whose own names may have dots."""
        _known[self.name] = self
        self._register(self.name, root)

    def module_of(self, path: Path) -> str:
        """The name of the module in a file."""
        name = f"{self.package_of(path.parent)}.{_escaped(path.stem)}"
        self.files[name] = path
        return name

    def package_of(self, folder: Path) -> str:
        """The name of a folder as a package, which need have no __init__.py."""
        if folder == self.root:
            return self.name
        name = f"{self.package_of(folder.parent)}.{_escaped(folder.name)}"
        if name not in sys.modules and not (folder / "__init__.py").exists():
            self._register(name, folder)
        return name

    def has_changed(self) -> bool:
        """Whether a file is another now than when it was run."""
        return any(_state_of(path) != state for path, state in self.sources.items())

    def import_(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        """What `import` does in the files of this world."""
        fromlist = fromlist or ()
        if level:
            return builtins.__import__(name, globals, locals, fromlist, level)
        top, _, below = name.partition(".")
        importing = (globals or {}).get("__package__") or self.name
        folder = Path(sys.modules[importing].__path__[0])
        wanted = [below.partition(".")[0]] if below else fromlist
        place = self._place(top, wanted, folder)
        if place is None:
            try:
                return builtins.__import__(name, globals, locals, fromlist)
            except ModuleNotFoundError as error:
                place = self._place_above(top, folder) if error.name == top else None
                if place is None:
                    raise
        package = self.package_of(place)
        if fromlist:
            return builtins.__import__(f"{package}.{name}", globals, locals, fromlist)
        importlib.import_module(f"{package}.{name}")
        return sys.modules[f"{package}.{top}"]

    def _place(self, top: str, wanted: Sequence[str], folder: Path) -> Path | None:
        """The folder that holds what an import means rather than what is installed."""
        if top in sys.stdlib_module_names:
            return None
        if _is_module(folder / top):
            return folder
        # `from model import block` in model/architecture.py means this very folder.
        for above in (folder, *folder.parents):
            if above == self.root or self.root not in above.parents:
                break
            if above.name == top and any(_is_module(above / name) for name in ("", *wanted)):
                return above.parent
        return None

    def _place_above(self, top: str, folder: Path) -> Path | None:
        """The folder above that holds what is not installed, as the root of a repository does."""
        for above in (folder, *folder.parents):
            if _is_module(above / top) or (above / top).is_dir():
                return above
            if above == self.root:
                break
        return None

    def _register(self, name: str, folder: Path) -> None:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        package.__spec__ = ModuleSpec(name, None, is_package=True)
        sys.modules[name] = package


_worlds: dict[Path, _World] = {}
_known: dict[str, _World] = {}


def _escaped(name: str) -> str:
    """The name of a file or folder as a part of a module's name."""
    return name.replace(".", "%2E")


def _is_module(path: Path) -> bool:
    return path.with_name(f"{path.name}.py").is_file() or (path / "__init__.py").is_file()


def _state_of(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    return None


class _Finder:
    """Finds the modules of worlds."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        world = _known.get(name.partition(".")[0])
        if world is None or path is None:
            return None
        if name in world.files:
            file = world.files[name]
            loader = _Loader(world, name, str(file))
            return importlib.util.spec_from_file_location(name, file, loader=loader)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(world, name, spec.loader.path)
            spec.cached = None
        return spec


class _Loader(SourceFileLoader):
    """Runs a file of a world."""

    def __init__(self, world: _World, name: str, path: str) -> None:
        super().__init__(name, path)
        self._world = world

    def get_code(self, fullname: str) -> Any:
        # Never from a cache, which takes a file of the same second and size for the same.
        path = self.get_filename(fullname)
        state = _state_of(Path(path))
        if state is not None:
            self._world.sources[Path(path)] = state
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module: ModuleType) -> None:
        own = {**vars(builtins), "__import__": self._world.import_}
        module.__dict__["__builtins__"] = own
        super().exec_module(module)


sys.meta_path.insert(0, _Finder)
