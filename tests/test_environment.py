"""Setting up: the pins, and what the set-up says when it cannot go on."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from checkout import ROOT
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), flags=re.M
    )
}


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, str]]) -> Iterator[str]:
    """Yield every package that ``name`` with these extras needs on this Python, itself included."""
    yield name
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        marker: Marker | None = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        found = canonicalize_name(requirement.name)
        key = (found, ",".join(sorted(requirement.extras)))
        if key not in seen:
            seen.add(key)
            yield from needed(found, frozenset(requirement.extras), seen)


def test_whatever_the_library_the_book_and_the_tests_need_is_pinned():
    wanted = set(needed("underhood", frozenset({"test"}), set())) - {
        "underhood",
        "setuptools",
        "wheel",
    }
    assert sorted(wanted - set(PINS)) == []


def test_what_is_installed_is_what_is_pinned():
    installed = {
        canonicalize_name(dist.metadata["Name"]): dist.version for dist in metadata.distributions()
    }
    differing = {n: (v, installed.get(n)) for n, v in PINS.items() if installed.get(n) != v}
    assert not differing, "pinned and installed versions differ: run make book"


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_the_pins_suit_every_python_that_we_promise(python):
    refused = [
        name
        for name in PINS
        if (needs := metadata.metadata(name).get("Requires-Python"))
        and not Requirement(f"x{needs}" if needs[0] in "<>=!~" else "x").specifier.contains(python)
    ]
    assert refused == []


def test_the_npm_lock_names_no_registry():
    lock = json.loads((ROOT / "package-lock.json").read_text())
    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []
    assert all("integrity" in p for name, p in lock["packages"].items() if name)


def test_the_oldest_node_that_will_do_is_the_one_that_package_json_names():
    engines = json.loads((ROOT / "package.json").read_text())["engines"]
    assert engines == {"node": f">={load(ROOT).NODE_OLDEST}"}


# ---- the set-up itself, in a project with nothing to install


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "a project"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/environment.py", folder / ".ci")
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "requirements.txt").write_text("# nothing\n")
    (folder / "pyproject.toml").write_text("")
    return folder


def set_up(project: Path, what: str = "book", **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ".ci/environment.py", what],
        cwd=project,
        env={**os.environ, **extra},
        capture_output=True,
        text=True,
    )


def load(project: Path) -> ModuleType:
    """Import the set-up of a project as a module."""
    spec = importlib.util.spec_from_file_location("environment", project / ".ci/environment.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_second_set_up_has_nothing_to_do_and_a_moved_project_starts_anew(project, tmp_path):
    first = set_up(project)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Creating .venv" in first.stdout
    assert set_up(project).stdout == ""
    (project / "requirements.txt").write_text("# still nothing\n")
    changed = set_up(project).stdout
    assert "Installing requirements.txt" in changed
    assert "Creating" not in changed
    moved = project.rename(tmp_path / "elsewhere")
    assert "Creating .venv" in set_up(moved).stdout


def test_a_set_up_that_was_cut_short_goes_on(project):
    (project / ".venv/bin").mkdir(parents=True)
    assert set_up(project).returncode == 0
    assert (project / ".venv/bin/python").exists()


def test_without_a_network_the_set_up_says_so(project):
    (project / "requirements.txt").write_text("a-package-that-is-nowhere==1\n")
    result = set_up(
        project,
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_FIND_LINKS="",
        PIP_RETRIES="0",
    )
    assert result.returncode == 1
    assert "does not reach the\nPython Package Index" in result.stderr


def test_without_python_make_says_what_to_install(project):
    result = subprocess.run(
        ["make", "PYTHON=no-such-python", "book"], cwd=project, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "No no-such-python was found. Install Python 3.11 or newer" in result.stderr


def test_a_python_that_is_too_old_is_named(project, monkeypatch):
    environment = load(project)
    monkeypatch.setattr(environment.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer; .* is 3\.9"):
        environment.suitable_python()


def test_an_old_python_gives_way_to_a_newer_one_beside_it(project, monkeypatch):
    environment = load(project)
    monkeypatch.setattr(environment.sys, "version_info", (3, 9, 2))
    there = {"python3.12": "/opt/python3.12", "python3.11": "/opt/python3.11"}
    monkeypatch.setattr(environment.shutil, "which", there.get)
    assert environment.suitable_python() == "/opt/python3.12"


def test_a_python_without_ensurepip_gets_advice_when_nothing_else_helps(
    project, monkeypatch, tmp_path
):
    environment = load(project)
    crippled = tmp_path / "python"
    crippled.write_text(
        '#!/bin/sh\ncase "$*" in *ensurepip*|*virtualenv*) exit 1;; esac\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    crippled.chmod(0o755)
    monkeypatch.setattr(environment, "is_root_on_debian", lambda: False)
    with pytest.raises(SystemExit, match=r"sudo apt-get install python3\.\d+-venv"):
        environment.create_venv(str(crippled))
    assert not (project / ".venv").exists()
