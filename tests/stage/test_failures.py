"""Whatever goes wrong in a notebook, nothing that it put on the stage is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import psutil
import pytest
from places import Place

pytestmark = pytest.mark.usefixtures("chromium_is_here")

Eventually = Callable[[Callable[[], bool]], None]

SERVER = """
from underhood import record
from underhood.stage import jupyter_server

capture = await record("failing").__aenter__()
stage = jupyter_server()
server = await stage.__aenter__()
await server.request("POST", "/api/kernels", {"name": "python3"})
"""

LAB = """
from underhood import record
from underhood.stage import jupyterlab

capture = await record("failing").__aenter__()
stage = jupyterlab()
lab = await stage.__aenter__()
await lab.open("demo.ipynb")
await lab.type("6 * 7")
assert (await lab.run()).output == "42"
"""

HUB = """
from underhood import record
from underhood.stage import jupyterhub

capture = await record("failing").__aenter__()
stage = jupyterhub(users=["alice"], browser=False)
hub = await stage.__aenter__()
await hub.start_server("alice")
token = (await hub.request("POST", "/hub/api/users/alice/tokens", {})).json()["token"]
await hub.request("POST", "/user/alice/api/kernels", {"name": "python3"}, token=token)
"""

SCENES = {"server": SERVER, "lab": LAB, "hub": HUB}

EXECUTE = """
import sys, nbformat, nbclient
document = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(document, timeout=120, kernel_name="python3").execute()
"""

# Tells the test who is who, then waits to be killed.
SAY = """
import json, os, pathlib, time
pathlib.Path(os.environ["SAID"]).write_text(json.dumps({"kernel": os.getpid()}))
time.sleep(300)
"""


def perform(
    place: Place, tmp_path: Path, *cells: str, script: str = EXECUTE
) -> subprocess.Popen[str]:
    """Execute a notebook with these cells by nbclient, in a process of its own."""
    document = nbformat.v4.new_notebook()
    document.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(document, tmp_path / "chapter.ipynb")
    place.environment["SAID"] = str(tmp_path / "said.json")
    return place.owner(script, str(tmp_path / "chapter.ipynb"))


def heard(tmp_path: Path, owner: subprocess.Popen[str]) -> dict[str, int]:
    said = tmp_path / "said.json"
    end = time.monotonic() + 90
    while not (said.exists() and said.read_text()):
        assert owner.poll() is None, owner.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.1)
    return dict(json.loads(said.read_text()))


def ports(place: Place) -> set[int]:
    found: set[int] = set()
    for process in place.processes():
        try:
            found |= {
                c.laddr.port
                for c in process.net_connections("tcp")
                if c.status == psutil.CONN_LISTEN
            }
        except psutil.Error:
            continue
    return found


def still_held(wanted: set[int]) -> set[int]:
    return wanted & {
        c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN
    }


def left(place: Place) -> str:
    """Say what is left after five seconds, but for files of others in the temporary folder.

    A killed kernel cannot remove its recording's folder, and Playwright's driver not its own.
    """
    return place.left(only="underhood-stage-")


@pytest.mark.parametrize("scene", SCENES)
def test_after_a_cell_that_raised(place: Place, tmp_path: Path, scene: str) -> None:
    owner = perform(place, tmp_path, SCENES[scene], "raise ValueError('too hot')")
    _, errors = owner.communicate(timeout=120)
    assert "too hot" in errors
    assert left(place) == ""


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("victim", ["kernel", "nbclient"])
def test_after_a_murder(place: Place, tmp_path: Path, scene: str, victim: str) -> None:
    owner = perform(place, tmp_path, SCENES[scene], SAY)
    kernel = heard(tmp_path, owner)["kernel"]
    doors = ports(place)
    assert len(doors) >= 5
    os.kill({"kernel": kernel, "nbclient": owner.pid}[victim], signal.SIGKILL)
    if victim == "kernel":
        _, errors = owner.communicate(timeout=30)
        assert "DeadKernelError" in errors
    assert left(place) == ""
    assert still_held(doors) == set()


def test_after_the_browser_was_killed(place: Place, tmp_path: Path) -> None:
    murder = """
import contextlib, psutil
for process in psutil.Process().children(recursive=True):
    with contextlib.suppress(psutil.NoSuchProcess):  # its kin may be gone with the first
        if "chrom" in process.name():
            process.kill()
"""
    ask = """
try:
    await lab.screenshot()
except Exception as error:
    print(type(error).__name__)
    assert "closed" in str(error), error
else:
    raise AssertionError("the browser lives")
await stage.__aexit__(None, None, None)
await capture.__aexit__(None, None, None)
assert capture.trace().types("execute_request")
"""
    owner = perform(place, tmp_path, LAB, murder, ask)
    _, errors = owner.communicate(timeout=120)
    assert owner.returncode == 0, errors
    assert place.left() == ""


def test_an_actor_that_is_not_left_ends_with_the_notebook(place: Place, tmp_path: Path) -> None:
    owner = perform(place, tmp_path, LAB)
    _, errors = owner.communicate(timeout=120)
    assert owner.returncode == 0, errors
    assert left(place) == ""


def test_a_notebook_shows_nothing_of_the_stage(place: Place, tmp_path: Path) -> None:
    cells = [
        """
from underhood import record
from underhood.stage import jupyterhub, jupyterlab

async with record("quiet") as capture, jupyterlab() as lab:
    await lab.open("demo.ipynb")
    await lab.type("print('loud')")
    await lab.run()

async with record("quieter") as capture, jupyterhub(users=["alice"]) as hub:
    await hub.log_in("alice")
""",
        "import gc; gc.collect();",
    ]
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    place.environment["HOME"] = str(home)
    owner = perform(
        place, work, *cells, script=EXECUTE + "print([cell.outputs for cell in document.cells])"
    )
    said, errors = owner.communicate(timeout=150)
    assert owner.returncode == 0, errors
    assert said == "[[], []]\n"
    assert "Warning" not in errors
    assert place.left() == ""
    # Outside the temporary folder: the notebook itself, and what its own kernel always writes.
    assert [path.name for path in work.iterdir()] == ["chapter.ipynb"]
    assert {path.name for path in home.iterdir()} <= {".ipython", ".cache", ".local", ".jupyter"}
