"""Front ends without a browser: `jupyter console` at a terminal, and the Qt console.

Strategy: both are the real programs in a neutral home, on a kernel that runs already, and are
driven by the keys that a reader would press. The console sits at a pseudo-terminal, and a terminal
emulator tells what its screen shows. The Qt console draws into memory instead of onto a screen,
and Qt's own test library presses its keys (see :mod:`underhood.stage.qt_window`). Both are ready,
and have run a line, when an empty prompt stands at the end.

They find the kernel by its connection file, as everybody does. Inside a recording each gets a file
of its own, whose ports are those of taps of its own: so a picture can tell it from the server,
which goes to the same kernel by other taps.
"""

from __future__ import annotations

import abc
import asyncio
import base64
import contextlib
import json
import os
import re
import struct
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final

from underhood.capture.provisioner import CHANNELS
from underhood.capture.recording import active
from underhood.stage import qt_window
from underhood.stage.browser import Screenshot
from underhood.stage.processes import Home
from underhood.stage.replay import MissingActor
from underhood.stage.server import Taps

SIZE: Final = (80, 24)
"""Columns and rows of the terminal."""

PATIENCE_S: Final = 60.0
"""How long a console may take to show its prompt, or to run a line, in seconds."""

_EMPTY_PROMPT: Final = re.compile(r"^In \[\d+\]:\s*\Z", re.MULTILINE)
_PROMPT_LINE: Final = re.compile(r"^In \[\d+\]:.*$", re.MULTILINE)
_EVERY_S: Final = 0.02


class Console(abc.ABC):
    """A front end with a prompt, on somebody else's kernel.

    Attributes
    ----------
    kind : str
        What it is, as pictures call it.
    """

    TOLD: ClassVar[tuple[str, ...]] = ("kind",)

    def __init__(self, kind: str, process: Process) -> None:
        self.kind, self._process = kind, process

    def __repr__(self) -> str:
        return f"<{self.kind}, process {self._process.pid}>"

    async def type(self, source: str) -> None:
        """Type one line at the prompt."""
        await self._press(source)
        typed = source.rstrip()
        await self._until(lambda shown: shown.endswith(typed), f"it does not show {typed!r}")

    async def run(self) -> str:
        """Press Enter, wait until the line has run, and return what it made appear."""
        await self._press("\r")
        await self.ready()
        return _PROMPT_LINE.split(await self.screen())[-2].strip("\n")

    async def ready(self) -> None:
        """Wait until an empty prompt stands at the end."""
        await self._until(lambda shown: bool(_EMPTY_PROMPT.search(shown)), "it shows no prompt")

    async def shows(self, text: str) -> None:
        """Wait until it shows a text."""
        await self._until(lambda shown: text in shown, f"it does not show {text!r}")

    @abc.abstractmethod
    async def screen(self) -> str:
        """Return the text that it shows, without the blanks at the ends of lines."""

    @abc.abstractmethod
    async def _press(self, keys: str) -> None:
        """Press keys; a carriage return is Enter."""

    async def _until(self, true: Callable[[str], bool], otherwise: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not true(await self.screen()):
            if self._process.returncode is not None:
                otherwise = f"it ended with exit code {self._process.returncode}"
            elif time.monotonic() < end:
                await asyncio.sleep(_EVERY_S)
                continue
            raise TimeoutError(f"{self.kind}: {otherwise}. It shows:\n{await self.screen()}")


class TerminalConsole(Console):
    """`jupyter console` at a terminal."""

    def __init__(self, kind: str, process: Process, terminal: int) -> None:
        import pyte

        super().__init__(kind, process)
        self._terminal = terminal
        self._display = pyte.Screen(*SIZE)
        # A program that asks where its cursor is gets the answer that a terminal would give.
        self._display.write_process_input = self._write  # type: ignore[method-assign]
        self._stream = pyte.ByteStream(self._display)
        asyncio.get_running_loop().add_reader(terminal, self._hear)

    async def screen(self) -> str:
        """Return the text on its screen, without the blanks at the ends of lines."""
        return "\n".join(line.rstrip() for line in self._display.display).rstrip("\n")

    async def _press(self, keys: str) -> None:
        self._write(keys)

    def _write(self, data: str) -> None:
        with contextlib.suppress(OSError):  # it has ended, and whoever waits for it will be told
            os.write(self._terminal, data.encode())

    def _hear(self) -> None:
        try:
            self._stream.feed(os.read(self._terminal, 1 << 16))
        except OSError:  # it has ended
            asyncio.get_running_loop().remove_reader(self._terminal)


class QtConsole(Console):
    """The Qt console, in a window that is in memory only."""

    async def screen(self) -> str:
        """Return the text in its window, without the blanks at the ends of lines."""
        return "\n".join(line.rstrip() for line in (await self._ask("read")).splitlines())

    async def screenshot(self) -> Screenshot:
        """Return a picture of the window."""
        png = base64.b64decode(await self._ask("picture"))
        return Screenshot(png, f"{self.kind}, showing: {' '.join((await self.screen()).split())}")

    async def _press(self, keys: str) -> None:
        await self._ask("press", keys)

    async def _ask(self, what: str, *arguments: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(json.dumps([what, *arguments]).encode() + b"\n")
            await self._process.stdin.drain()
            if answer := await self._process.stdout.readline():
                return str(json.loads(answer))
        raise RuntimeError(
            f"{self.kind}: the window has gone, exit code {await self._process.wait()}"
        )


async def find_consoles(home: Home) -> None:
    """Look whether both consoles can run here.

    Raises
    ------
    MissingActor
        If something is missing that one of them needs.
    """
    for module in ("jupyter_console", "pyte"):
        if find_spec(module) is None:
            raise MissingActor(f"{module} is missing: pip install {module}")
    # Qt may be installed and still lack a library of the system.
    trial = await asyncio.create_subprocess_exec(
        *(home.python, "-c", "import qtconsole.qtconsoleapp, qtpy.QtTest"),
        env=home.environment,
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
    )
    _, said = await trial.communicate()
    if trial.returncode:
        why = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise MissingActor(
            f"The Qt console is missing (pip install qtconsole PySide6-Essentials): {why}"
        )


@contextlib.asynccontextmanager
async def terminal_console(
    home: Home, *arguments: str, client: str = "console"
) -> AsyncIterator[TerminalConsole]:
    """Run `jupyter console` on the newest kernel in ``home`` as long as the block runs.

    Parameters
    ----------
    home
        Where the kernel's connection file lies, and the console lives.
    arguments
        For its command line.
    client
        What pictures call it.

    Raises
    ------
    FileNotFoundError
        If there is no kernel.
    TimeoutError
        If it shows no prompt.
    """
    import pty

    async with _connection_file(home, client) as file:
        ours, its = pty.openpty()
        try:
            columns, rows = SIZE
            _set_size(its, columns, rows)
            process = await asyncio.create_subprocess_exec(
                *(home.python, "-m", "jupyter_console", f"--existing={file}", *arguments),
                env=home.environment | {"TERM": "xterm-256color"},
                cwd=home.notebooks,
                stdin=its,
                stdout=its,
                stderr=its,
                start_new_session=True,
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(its)
        console = TerminalConsole(client, process, ours)
        try:
            await console.ready()
            yield console
        finally:
            asyncio.get_running_loop().remove_reader(ours)
            os.close(ours)
            await _end(process)


@contextlib.asynccontextmanager
async def qt_console(
    home: Home, *arguments: str, client: str = "Qt console"
) -> AsyncIterator[QtConsole]:
    """Run the Qt console; all else as in :func:`terminal_console`."""
    async with _connection_file(home, client) as file:
        process = await asyncio.create_subprocess_exec(
            *(home.python, qt_window.__file__, f"--existing={file}", *arguments),
            env=home.environment | {"QT_QPA_PLATFORM": "offscreen"},
            cwd=home.notebooks,
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            limit=1 << 24,
            start_new_session=True,
        )
        try:
            console = QtConsole(client, process)
            await console.ready()
            yield console
        finally:
            await _end(process)


async def _end(process: Process) -> None:
    """End a console: its kernel is somebody else's, so there is nothing to say goodbye to."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    # Reads what is left in the pipes, if there are any, so that they are closed.
    await process.communicate()


@contextlib.asynccontextmanager
async def _connection_file(home: Home, client: str) -> AsyncIterator[Path]:
    """Find the newest kernel; while something records, lead ``client`` to it by its own taps."""
    found = Path(home.environment["JUPYTER_RUNTIME_DIR"]).glob("kernel-*.json")
    file = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if file is None:
        raise FileNotFoundError("no kernel runs here yet: open a notebook before a console")
    if not active():
        yield file
        return
    # Where the kernel really listens: its provisioner wrote that into a file of the same name.
    (behind,) = Path(home.environment["TMPDIR"]).glob(f"underhood-*/{file.name}")
    connection: dict[str, Any] = json.loads(behind.read_text())
    taps = Taps()
    try:
        kernel_id = file.stem.removeprefix("kernel-")
        for port, channel in CHANNELS.items():
            connection[port] = taps.before(
                connection[port], client, "kernel", channel=channel, kernel_id=kernel_id
            )
        own = home.folder / client.replace(" ", "-") / file.name
        own.parent.mkdir(mode=0o700, exist_ok=True)
        own.touch(0o600)
        own.write_text(json.dumps(connection, indent=2))
        yield own
    finally:
        await taps.close()


def _set_size(terminal: int, columns: int, rows: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
