"""This very Python, by paths that tell nothing of this machine.

Strategy: Python takes its prefix from the path by which it was called, and everything that it
and its packages say of themselves (tracebacks, a debugger's events, templates, settings) begins
there. So the stage makes a virtual environment in a neutral folder in which everything is a link
to what is installed: the packages, the data, and the Python under them. The programs in its
``bin`` are copies, because a script names its Python in its first line. Whatever is started from
there, and whatever that starts in its turn, knows no other paths.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import underhood

_HEAD: Final = 1024
"""Within how many bytes a script names its Python (pip writes up to three lines for that)."""


def neutral_folder() -> str:
    """Return a temporary folder whose path names neither the user nor the host."""
    usual = tempfile.gettempdir()
    names = {Path.home().name, socket.gethostname()}
    with contextlib.suppress(KeyError, OSError):  # a user without a name is fine
        names.add(getpass.getuser())
    for folder in (usual, "/tmp", "/var/tmp"):
        if not names & set(Path(folder).resolve().parts) and os.access(folder, os.W_OK):
            return folder
    return usual


class NeutralPython:
    """A virtual environment of links, in a folder that somebody else removes.

    Parameters
    ----------
    folder
        Where to make it; its path should be neutral.

    Attributes
    ----------
    prefix : Path
        What ``sys.prefix`` is in there.
    executable : str
        Its Python.
    """

    def __init__(self, folder: Path) -> None:
        self.prefix = folder / "env"
        self._base = folder / "python"
        self._moves = {Path(sys.prefix): self.prefix, Path(sys.base_prefix): self._base}
        self._base.symlink_to(sys.base_prefix, target_is_directory=True)
        programs = self.prefix / "bin"
        programs.mkdir(parents=True)
        base_executable = Path(getattr(sys, "_base_executable", "") or sys.executable)
        (self.prefix / "pyvenv.cfg").write_text(
            # The standard library is found from here, so this too has to be neutral.
            f"home = {self.path(base_executable).parent}\ninclude-system-site-packages = false\n"
        )
        names = {"python", "python3", Path(sys.executable).name}
        for name in names:
            (programs / name).symlink_to(self.path(base_executable))
        self.executable = str(programs / Path(sys.executable).name)
        _link(Path(sys.prefix), self.prefix, leave={"bin", "lib", "lib64", "pyvenv.cfg"})
        self._copy_programs(Path(sys.prefix) / "bin", programs, leave=names)
        self._link_packages()

    def path(self, path: Path) -> Path:
        """Return what a path within this Python is called in the neutral one; others stay."""
        for old, new in self._moves.items():
            if path.is_relative_to(old):
                return new / path.relative_to(old)
        return path

    def _copy_programs(self, source: Path, target: Path, leave: set[str]) -> None:
        old, new = os.fsencode(source) + b"/", os.fsencode(target) + b"/"
        for program in source.iterdir():
            copy = target / program.name
            if program.name in leave or program.is_dir():
                continue
            with contextlib.suppress(OSError), program.open("rb") as file:
                head = file.read(_HEAD)
                if head.startswith(b"#!") and old in head:
                    copy.write_bytes(head.replace(old, new) + file.read())
                    copy.chmod(0o755)
                    continue
            copy.symlink_to(program)

    def _link_packages(self) -> None:
        """Link the packages, and this library, which may lie elsewhere (``pip install -e``)."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        library = self.prefix / "lib" / version
        library.mkdir(parents=True)
        (self.prefix / "lib64").symlink_to("lib")
        real = Path(sys.prefix) / "lib"
        _link(real, self.prefix / "lib", leave={version})
        _link(real / version, library, leave={"site-packages"})
        packages = library / "site-packages"
        packages.mkdir()
        _link(real / version / "site-packages", packages, leave={"__pycache__", "underhood"})
        (packages / "underhood").symlink_to(Path(underhood.__file__).parent)


def _link(source: Path, target: Path, leave: set[str]) -> None:
    for entry in _entries(source):
        if entry.name not in leave:
            (target / entry.name).symlink_to(entry.path)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        yield from entries
