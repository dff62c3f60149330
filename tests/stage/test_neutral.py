"""Python by neutral paths: it runs, has everything, and says nothing of where it really lies."""

from __future__ import annotations

import getpass
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jupyter_client
import pytest

from underhood.stage.neutral import NeutralPython, neutral_folder

SPEAK = """
import json, pathlib, re, sys, traceback
import ipykernel, underhood, zmq

try:
    json.loads("{")
except ValueError:
    where = traceback.format_exc()
print(json.dumps([sys.executable, sys.prefix, sys.base_prefix, *sys.path, where,
                  *(str(getattr(m, "__file__", "")) for m in list(sys.modules.values()))]))
"""


@pytest.fixture
def python() -> Iterator[NeutralPython]:
    with tempfile.TemporaryDirectory(prefix="underhood-", dir=neutral_folder()) as folder:
        yield NeutralPython(Path(folder))


def run(python: NeutralPython, *command: str) -> str:
    folder = python.prefix.parent  # no checkout: there, `import underhood` would find its sources
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_python_and_its_packages_tell_no_path_of_this_machine(python: NeutralPython) -> None:
    said = json.loads(run(python, python.executable, "-c", SPEAK))
    folder = str(python.prefix.parent)
    paths = [text for text in said if text.startswith("/")]
    assert len(paths) > 300
    assert {path for path in paths if not path.startswith(folder)} == set()
    (trace,) = (text for text in said if text.startswith("Traceback"))
    assert f'File "{folder}/python/lib/' in trace
    assert sys.prefix not in "".join(said)


def test_a_program_and_what_it_starts_run_on_the_same_python(python: NeutralPython) -> None:
    program = str(python.prefix / "bin" / "jupyter")
    version = run(python, program, "kernelspec", "--version")
    assert version.strip() == jupyter_client.__version__
    specs = json.loads(run(python, program, "kernelspec", "list", "--json"))["kernelspecs"]
    place = Path(specs["python3"]["resource_dir"])
    assert place == python.prefix / "share" / "jupyter" / "kernels" / "python3"


def test_paths_elsewhere_stay_as_they_are(python: NeutralPython) -> None:
    assert python.path(Path("/etc/hosts")) == Path("/etc/hosts")
    assert python.path(Path(sys.prefix, "share")) == python.prefix / "share"


def test_the_folder_for_homes_avoids_the_users_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named = tmp_path / "xochipilli" / "tmp"
    named.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(named))
    assert neutral_folder() == str(named)
    monkeypatch.setattr(getpass, "getuser", lambda: "xochipilli")
    assert neutral_folder() == "/tmp"
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(named))
    monkeypatch.setattr(socket, "gethostname", lambda: "xochipilli")
    assert neutral_folder() == "/tmp"
