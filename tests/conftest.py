"""What several test modules share: the book as it was built from this very checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT


@pytest.fixture(scope="session")
def build() -> Path:
    """The build folder, after a build that read every page anew and gave no warning.

    Chapters whose result is fresh are not executed again; ``make test`` executes them before, with
    a line for each.
    """
    command = [Path(sys.executable).parent / "jupyter-book", "build", ".", "--all"]
    result = subprocess.run(
        [*map(str, command), "-W", "-n", "--keep-going"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return ROOT / "_build"
