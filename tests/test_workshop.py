"""The hub for a workshop: its configuration, started as The Littlest JupyterHub would load it.

JupyterHub and its proxy are real. Beside the configuration itself stands only what The Littlest
JupyterHub brings along elsewhere: how people log in, and by which spawner their servers start.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT, missing

from underhood.stage.cells import run_cell
from underhood.stage.hub import find_proxy
from underhood.stage.processes import free_ports
from underhood.stage.replay import MissingActor

CONFIGURATION = ROOT / "book/_lab/workshop/jupyterhub_config.py"

#: A start of a server, on a busy machine.
PATIENCE_S = 150

AROUND = """
c = get_config()
c.JupyterHub.bind_url = "http://127.0.0.1:{public}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{hub}"
c.JupyterHub.db_url = "sqlite:///:memory:"
c.JupyterHub.cookie_secret_file = {secret!r}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api}"
c.ConfigurableHTTPProxy.auth_token = {token!r}
c.ConfigurableHTTPProxy.command = {proxy!r}
c.ConfigurableHTTPProxy.pid_file = {pid!r}
c.JupyterHub.services = [{{"name": "test", "api_token": {token!r}}}]
c.JupyterHub.load_roles = [
    {{"name": "test", "services": ["test"],
      "scopes": ["admin:users", "admin:servers", "access:servers"]}},
]
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = {token!r}
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = {homes!r}
c.Spawner.args = {arguments!r}
load_subconfig({configuration!r})
"""


class Hub:
    """The hub that runs, and how to ask it."""

    def __init__(self, url: str, token: str, homes: Path) -> None:
        self.url, self.token, self.homes = url, token, homes

    def ask(self, method: str, path: str) -> Any:
        """Ask the hub's API; return its answer, None if that is empty."""
        asked = urllib.request.Request(
            self.url + path, method=method, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None


def until(what: Any) -> Any:
    """Wait until ``what()`` is true; return what it gave."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            if found := what():
                return found
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.3)
    raise TimeoutError(f"not within {PATIENCE_S} s")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The workshop's hub, with its proxy, and nobody there yet."""
    try:
        proxy = list(find_proxy())
    except MissingActor as error:
        missing(str(error))
    folder = tmp_path_factory.mktemp("workshop")
    # The learners' servers run in .venv; the tests may run elsewhere.
    if not (ROOT / ".venv/bin/jupyterhub-singleuser").exists():
        missing("there is no .venv: run make book")
    public, api, at = free_ports(3)
    token = secrets.token_hex(16)
    configuration = folder / "around.py"
    configuration.write_text(
        AROUND.format(
            public=public,
            hub=at,
            api=api,
            token=token,
            proxy=proxy,
            secret=str(folder / "secret"),
            pid=str(folder / "proxy.pid"),
            homes=str(folder / "{username}"),
            arguments=["--allow-root"] if os.geteuid() == 0 else [],
            configuration=str(CONFIGURATION),
        )
    )
    log = folder / "hub.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "-f", str(configuration)],
            cwd=folder,
            env={**os.environ, "HOME": str(folder)},
            stdout=written,
            stderr=written,
            start_new_session=True,
        )
    hub = Hub(f"http://127.0.0.1:{public}", token, folder)
    try:
        try:
            until(lambda: process.poll() is None and hub.ask("GET", "/hub/api/"))
        except TimeoutError as error:
            error.add_note(log.read_text()[-3000:])
            raise
        yield hub
    finally:
        process.send_signal(signal.SIGTERM)  # it stops servers and proxy
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def enter(hub: Hub, learner: str) -> dict[str, Any]:
    """Have a learner's server started; return what the hub says of it when it is ready."""
    with contextlib.suppress(urllib.error.HTTPError):  # they have been here before
        hub.ask("POST", f"/hub/api/users/{learner}")
    hub.ask("POST", f"/hub/api/users/{learner}/server")

    def ready() -> Any:
        servers = hub.ask("GET", f"/hub/api/users/{learner}?include_stopped_servers")["servers"]
        return servers.get("") if servers.get("", {}).get("ready") else None

    found: dict[str, Any] = until(ready)
    return found


@pytest.mark.timeout(400)
def test_two_learners_come_and_each_runs_a_chapters_code_in_a_copy_of_their_own(hub):
    for learner in ("ada", "grace"):
        server = enter(hub, learner)
        assert server["url"] == f"/user/{learner}/"
        listed = hub.ask("GET", f"/user/{learner}/api/contents/book/meet")["content"]
        assert {"kernel.md", "cloud.md"} <= {file["name"] for file in listed}
        code = "import os, underhood; print(os.getcwd()); print(underhood.record('x'))"
        said = asyncio.run(run_cell(f"{hub.url}/user/{learner}", code, token=hub.token))
        assert str(hub.homes / learner / "jupyter-under-the-hood") in said, said
    mine, hers = (
        hub.homes / name / "jupyter-under-the-hood/book/index.md" for name in ("ada", "grace")
    )
    assert mine.read_bytes() == hers.read_bytes() == (ROOT / "book/index.md").read_bytes()
    assert not mine.samefile(hers)


@pytest.mark.timeout(400)
def test_a_learner_who_comes_back_finds_what_they_have_written(hub):
    mine = hub.homes / "ada/jupyter-under-the-hood/book/index.md"
    if not mine.exists():
        enter(hub, "ada")
    mine.write_text("mine")
    hub.ask("DELETE", "/hub/api/users/ada/server")
    until(lambda: not hub.ask("GET", "/hub/api/users/ada").get("servers"))
    enter(hub, "ada")
    assert mine.read_text() == "mine"
    shown = hub.ask("GET", "/user/ada/api/contents/book/index.md?type=file&format=text")
    assert shown["content"] == "mine"


def test_the_copy_is_made_whole_or_not_at_all(tmp_path):
    """Of a start that was cut short, a learner keeps no half of a course."""
    start = CONFIGURATION.parent / "start-server"
    stub = tmp_path / "bin"
    stub.mkdir()
    (stub / "mv").write_text("#!/bin/sh\nexit 1\n")  # as if the disk were full just then
    (stub / "mv").chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{stub}:{os.environ['PATH']}"}
    done = subprocess.run([start], env=environment, capture_output=True, check=False)
    assert done.returncode != 0
    assert not (tmp_path / "jupyter-under-the-hood").exists()


def test_the_page_for_speakers_names_the_files_that_there_are():
    text = (ROOT / "book/appendix/speakers.md").read_text("utf-8")
    for name in ("jupyterhub_config.py", "start-server"):
        path = f"book/_lab/workshop/{name}"
        assert path in text
        assert (ROOT / path).is_file()
    assert os.access(CONFIGURATION.parent / "start-server", os.X_OK)
    assert shutil.which("bash")
    assert re.search(r"ln -s /opt/course/book/_lab/workshop/jupyterhub_config\.py", text)
