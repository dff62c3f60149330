"""A home is neutral, and nothing of it outlives its owner."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from places import Place, command

from underhood.capture.provisioner import PORTS, _find_ports
from underhood.stage import StartError
from underhood.stage.processes import USER, Home, free_ports

pytestmark = pytest.mark.anyio

# A child with a child in a session of its own, and one that nobody is the parent of any more.
FAMILY = """
sleep 300 &
setsid sleep 301 &
(setsid sh -c 'sleep 302 & exit') &
echo ready
exec sleep 303
"""

OWNER = f"""
import asyncio, json, os, sys
from underhood.stage.processes import Home

async def main():
    async with Home() as home:
        child = await home.start(["sh", "-c", {FAMILY!r}], name="family")
        while "ready" not in child.log:
            await asyncio.sleep(0.01)
        print(json.dumps(dict(folder=str(home.folder), guardian=home._guardian.pid)), flush=True)
        await asyncio.sleep(float(sys.argv[1]))
        if sys.argv[2:]:
            raise ValueError(sys.argv[2])

asyncio.run(main())
"""


def told(owner: subprocess.Popen[str]) -> dict[str, str]:
    assert owner.stdout is not None
    line = owner.stdout.readline()
    if not line:
        pytest.fail(f"the owner ended at once: {owner.communicate()[1]}")
    return dict(json.loads(line))


def sleepers(place: Place) -> list[str]:
    """Return how long each living ``sleep`` sleeps."""
    commands = [command(process) for process in place.processes()]
    return sorted(arguments[1] for arguments in commands if arguments[:1] == ["sleep"])


def test_what_a_child_knows_names_neither_user_nor_host_nor_folder(place: Place) -> None:
    home = place.folder / "Zoë's höme"
    home.mkdir()
    script = """
import asyncio
from underhood.stage.processes import Home

ask = '''
import getpass, os, pathlib, sys, sysconfig, jupyter_core.paths as p, jupyterlab.commands as lab
print(dict(os.environ), pathlib.Path.home(), getpass.getuser(), os.getcwd(), sys.prefix)
print(sys.executable, sysconfig.get_paths()["purelib"], p.jupyter_path()[:2])
print(p.jupyter_config_dir(), p.jupyter_runtime_dir(), lab.get_app_dir(), lab.__file__)
'''

async def main():
    async with Home() as home:
        child = await home.start([home.python, "-c", ask], name="curious")
        assert await child.wait(30) == 0, child.log
        print(child.log)

asyncio.run(main())
"""
    names = ("USER", "LOGNAME", "USERNAME")
    place.environment.update(dict.fromkeys(names, "zoë-of-the-host"), HOME=str(home))
    owner = place.owner(script)
    said, errors = owner.communicate(timeout=60)
    assert owner.returncode == 0, errors
    assert f"'USER': '{USER}'" in said
    for secret in ("Zoë", "zoë", os.uname().nodename, sys.prefix, str(Path.cwd())):
        assert secret not in said


async def test_a_home_is_gone_with_everything_in_it() -> None:
    async with Home() as home:
        child = await home.start(["sh", "-c", FAMILY], name="family")
        while "ready" not in child.log:
            await asyncio.sleep(0.01)
        processes = psutil.Process(child.pid).children(recursive=True)
        assert home.folder.is_dir()
        assert child.returncode is None
    assert not home.folder.exists()
    assert child.returncode == -signal.SIGTERM
    assert not [p for p in processes if p.is_running()]
    assert "ready" in child.log  # kept


async def test_a_program_that_does_not_exist_is_named() -> None:
    async with Home() as home:
        with pytest.raises(StartError, match=r"the thing did not start: .*No such file.*no-such"):
            await home.start(["/no-such-program"], name="the thing")


async def test_a_program_that_ends_at_once_shows_its_last_words() -> None:
    async def never() -> bool:
        return False

    async with Home() as home:
        child = await home.start(["sh", "-c", "echo 'no sugar left'; exit 3"], name="the thing")
        with pytest.raises(StartError, match=r"(?s)exit code 3.*no sugar left"):
            await child.until(never)


async def test_a_program_that_gets_nowhere_is_given_up() -> None:
    async def never() -> bool:
        return False

    async with Home() as home:
        child = await home.start(["sleep", "300"], name="the thing")
        with pytest.raises(StartError, match=r"not ready after 0.1 s"):
            await child.until(never, timeout=0.1)


async def test_a_child_that_does_not_listen_is_killed() -> None:
    async with Home() as home:
        child = await home.start(
            ["sh", "-c", "trap 'echo no' TERM; echo up; while :; do sleep 0.1; done"], name="deaf"
        )
        while "up" not in child.log:
            await asyncio.sleep(0.01)
        await child.stop(grace=0.3)
        assert child.returncode == -signal.SIGKILL
        assert "no" in child.log


async def test_a_frozen_child_is_ended_too(place: Place) -> None:
    async with Home() as home:
        child = await home.start(["sleep", "300"], name="frozen")
        os.kill(child.pid, signal.SIGSTOP)
        started = time.monotonic()
        await child.stop(grace=0.5)
        assert child.returncode is not None
        assert time.monotonic() - started < 3


def test_an_owner_that_ends_well_leaves_nothing_and_says_nothing(place: Place) -> None:
    owner = place.owner(OWNER, "0")
    told(owner)
    assert owner.communicate(timeout=10) == ("", "")
    assert place.left() == ""


def test_an_owner_that_raises_leaves_nothing(place: Place) -> None:
    owner = place.owner(OWNER, "0", "too hot")
    told(owner)
    _, errors = owner.communicate(timeout=10)
    assert "ValueError: too hot" in errors
    assert "Warning" not in errors
    assert place.left() == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_killed_owner_leaves_nothing(
    place: Place, number: signal.Signals, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    owner = place.owner(OWNER, "300")
    told(owner)
    eventually(lambda: sleepers(place) == ["300", "301", "302", "303"])
    owner.send_signal(number)
    assert place.left() == ""


def test_an_owner_killed_with_its_whole_process_group_leaves_nothing(place: Place) -> None:
    owner = place.owner(OWNER, "300")
    told(owner)
    os.killpg(owner.pid, signal.SIGKILL)
    assert place.left() == ""


def test_a_fork_that_holds_the_pipe_open_does_not_keep_the_children_alive(
    place: Place, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    fork = """
        if os.fork() == 0:
            os.set_inheritable(home._guardian.stdin.fileno(), True)
            os.execlp("sleep", "sleep", "20")
"""
    owner = place.owner(OWNER.replace("        print(", fork + "        print(", 1), "300")
    told(owner)
    eventually(lambda: len(sleepers(place)) == 5)
    owner.kill()
    eventually(lambda: sleepers(place) == ["20"])  # the fork: not ours to end


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_killed_guardian_takes_its_children_along_and_its_owner_clears_up(place: Place) -> None:
    owner = place.owner(OWNER, "1")
    os.kill(int(told(owner)["guardian"]), signal.SIGKILL)
    _, errors = owner.communicate(timeout=10)
    assert owner.returncode == 0, errors
    assert place.left() == ""


async def test_a_child_cannot_be_started_without_its_guardian(
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    async with Home() as home:
        child = await home.start(["sleep", "300"], name="sleeper")
        os.kill(home._guardian.pid, signal.SIGKILL)
        assert await child.wait(5) is not None
        with pytest.raises(StartError, match="guardian"):
            await home.start(["sleep", "301"], name="late")
    assert not home.folder.exists()


async def test_a_cancelled_owner_leaves_nothing() -> None:
    homes = []

    async def owner() -> None:
        async with Home() as home:
            homes.append(home)
            await home.start(["sleep", "300"], name="sleeper")
            await asyncio.sleep(300)

    task = asyncio.create_task(owner())
    while not (homes and homes[0]._children and homes[0]._children[1].pid):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not homes[0].folder.exists()
    assert not psutil.pid_exists(homes[0]._children[1].pid)


async def test_two_homes_know_nothing_of_each_other() -> None:
    async with Home() as one:
        first = await one.start(["sleep", "300"], name="first")
        async with Home() as other:
            await other.start(["sleep", "301"], name="second")
        assert first.returncode is None
        assert psutil.pid_exists(first.pid)


def test_free_ports_are_free_and_below_the_ephemeral_range() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(20_000 <= port < 32_000 for port in ports)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ports are only found")
def test_no_port_is_given_out_that_is_held_for_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    held, sockets = _find_ports("127.0.0.1", 5)
    assert all(port in PORTS for port in held)
    # Let chance propose these first, to the next kernel and to the next actor.
    proposed: list[int] = []

    def randbelow(below: int) -> int:
        return proposed.pop() if proposed else secrets.SystemRandom().randrange(below)

    monkeypatch.setattr(secrets, "randbelow", randbelow)
    proposed[:] = [port - PORTS.start for port in held]
    others, more = _find_ports("127.0.0.1", 1)
    assert not proposed
    proposed[:] = [port - PORTS.start for port in held + others]
    actors = free_ports(1)
    assert not proposed
    assert not {*others, *actors} & set(held)
    # The kernel itself binds as ZeroMQ does.
    with socket.socket() as kernel:
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kernel.bind(("127.0.0.1", held[0]))
        kernel.listen()
    for sock in (*sockets, *more):
        sock.close()
