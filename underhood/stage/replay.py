"""Where an actor is missing, its recording plays: the same calls, the same answers, the same bytes.

Strategy: a *scene* is what actors do within one ``record()``, and bears its name. While a scene is
noted (``UNDERHOOD_RENEW`` names a folder), each call to an actor is written down with its answer
and its time, beside the capture of everything that passed. Where an actor is missing, the scene of
that name is looked up: calls are answered as they were then, and with each call the active
recordings are given what had been captured until then, bytes and times as they were. So a
chapter runs unchanged; but it can only do what was done then, and it says what it is doing.

A scene is two files: ``name.pcapng``, and ``name.json`` with the calls. They lie in
``book/recordings``, or in the folder that ``UNDERHOOD_RECORDINGS`` names. With
``UNDERHOOD_REQUIRE_LIVE`` set, a missing actor is an error.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import html
import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, cast

from underhood.capture.recording import active
from underhood.capture.store import Capture, Connection
from underhood.capture.tap import now_ns

if TYPE_CHECKING:
    from underhood.capture.recording import Recording

RENEW: Final = "UNDERHOOD_RENEW"
RECORDINGS: Final = "UNDERHOOD_RECORDINGS"
REQUIRE_LIVE: Final = "UNDERHOOD_REQUIRE_LIVE"

_VERSIONS_OF: Final = ("jupyterlab", "notebook", "jupyterhub", "jupyter_server", "ipykernel")

Actor = TypeVar("Actor")


class MissingActor(RuntimeError):
    """A program that the stage needs is not installed; the message says how to get it."""


class ReplayError(RuntimeError):
    """A recording was asked for what it does not hold."""


class ReplayWarning(UserWarning):
    """Something is replayed from a recording instead of done."""


@contextlib.asynccontextmanager
async def on_stage(
    kind: type[Actor], live: AbstractAsyncContextManager[Actor]
) -> AsyncIterator[Actor]:
    """Run an actor live, or, where it is missing, replay its recording.

    Parameters
    ----------
    kind
        The actor's class; its ``TOLD`` names the attributes that a replay tells, too.
    live
        Runs the real one.

    Raises
    ------
    MissingActor
        If it is missing, and there is no recording, or it must be live.
    """
    recording = active()[-1] if active() else None
    name = recording.name if recording else kind.__name__
    async with contextlib.AsyncExitStack() as stack:
        try:
            actor = await stack.enter_async_context(live)
        except MissingActor as missing:
            if os.environ.get(REQUIRE_LIVE):
                raise
            scene = _Replay.of(recording, name, missing)
            yield cast("Actor", scene.enter(kind))
            scene.unroll()
            return
        if not os.environ.get(RENEW):
            yield actor
            return
        notes = _Notes.of(recording, name)
        yield cast("Actor", notes.enter(actor))
        await stack.aclose()
        notes.save(recording)


# ---------------------------------------------------------------------- what a scene is


@dataclass(slots=True)
class Call:
    """One call to an actor.

    Parameters
    ----------
    method, arguments
        What was called, and with what.
    answer
        What it gave.
    time_ns
        When it was done, in nanoseconds on the taps' clock.
    seen
        How many requests and frames the browser's network tab then held.
    """

    method: str
    arguments: Any
    answer: Any
    time_ns: int
    seen: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Part:
    """What one actor did: its class, its attributes and the calls, in order."""

    kind: str
    attributes: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)


def recordings_folder() -> Path:
    """Return where scenes are looked up."""
    if named := os.environ.get(RECORDINGS):
        return Path(named)
    here = Path.cwd()
    for folder in (here, *here.parents, *Path(__file__).resolve().parents):
        if (found := folder / "book" / "recordings").is_dir():
            return found
    return here / "book" / "recordings"


# ---------------------------------------------------------------------- noting


class _Notes:
    """A scene that is being written down."""

    _running: ClassVar[weakref.WeakKeyDictionary[Recording, _Notes]] = weakref.WeakKeyDictionary()

    def __init__(self, name: str) -> None:
        self._name = name
        self._parts: list[Part] = []
        self._actors: list[Any] = []

    @classmethod
    def of(cls, recording: Recording | None, name: str) -> _Notes:
        if recording is None:
            return cls(name)
        return cls._running.setdefault(recording, cls(name))

    def enter(self, actor: Any) -> Any:
        part = Part(type(actor).__name__)
        self._parts.append(part)
        self._actors.append(actor)
        return _Noted(actor, part, self)

    def save(self, recording: Recording | None) -> None:
        """Write what there is so far."""
        folder = Path(os.environ[RENEW])
        folder.mkdir(parents=True, exist_ok=True)
        for actor, part in zip(self._actors, self._parts, strict=True):
            for name in (*type(actor).TOLD, "network"):
                if hasattr(actor, name):
                    part.attributes[name] = encode(getattr(actor, name))
        notes = {"date": datetime.now(UTC).date().isoformat(), **_versions()}
        scene = {"notes": notes, "parts": [dataclasses.asdict(part) for part in self._parts]}
        (folder / f"{self._name}.json").write_text(json.dumps(scene) + "\n")
        if recording is not None:
            capture = recording.capture
            dataclasses.replace(
                capture,
                connections=tuple(c for c in capture.connections if _of_an_actor(c)),
                notes={**capture.notes, **notes},
            ).save(folder / f"{self._name}.pcapng", keys=True)


class _Noted:
    """An actor whose calls are written down."""

    def __init__(self, actor: Any, part: Part, notes: _Notes) -> None:
        self._actor, self._part, self._notes = actor, part, notes

    def __repr__(self) -> str:
        return repr(self._actor)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._actor, name)
        if name.startswith("_") or not inspect.iscoroutinefunction(found):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            answer = await found(*args, **kwargs)
            network = getattr(self._actor, "network", None)
            seen = (len(network.requests), len(network.frames)) if network else (0, 0)
            note = Call(name, _arguments(found, args, kwargs), None, now_ns(), seen)
            self._part.calls.append(note)
            if hasattr(type(answer), "TOLD"):  # an actor, in its turn
                note.answer = {"$": "actor", "part": len(self._notes._parts)}
                return self._notes.enter(answer)
            note.answer = encode(answer)
            return answer

        return call


def _of_an_actor(connection: Connection) -> bool:
    """Say whether a connection belongs to the scene: not if this process started the kernel."""
    return connection.link.channel == "http" or connection.link.client != "client"


def _arguments(method: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call by name, without those that say what is said anyway."""
    signature = inspect.signature(method)
    given = signature.bind(*args, **kwargs).arguments.items()
    return {
        name: encode(value) for name, value in given if value != signature.parameters[name].default
    }


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for package in _VERSIONS_OF:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    for name, program in (("Chromium", "chromium"), ("Node.js", "node")):
        if path := shutil.which(program):
            said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
            if number := re.search(r"\d+(\.\d+)+", said):
                found[name] = number[0]
    return found


# ---------------------------------------------------------------------- replaying


class _Replay:
    """A scene that is being replayed."""

    _running: ClassVar[weakref.WeakKeyDictionary[Recording, _Replay]] = weakref.WeakKeyDictionary()

    def __init__(self, recording: Recording | None, name: str, why: MissingActor) -> None:
        path = recordings_folder() / f"{name}.json"
        try:
            scene = json.loads(path.read_text())
        except OSError:
            raise MissingActor(
                f"{why}; and there is no recording called {name!r} in book/recordings to replay"
            ) from why
        self.name, self.notes = name, dict(scene["notes"])
        self._recordings = active()
        self.parts = [
            Part(part["kind"], part["attributes"], [Call(**call) for call in part["calls"]])
            for part in scene["parts"]
        ]
        self._waiting = list(self.parts)
        capture = Capture.load(path.with_suffix(".pcapng")) if recording else Capture()
        for taker in self._recordings:
            for kernel_id, key in capture.keys.items():
                taker.learn_key(kernel_id, key)
        self._events = sorted(_events(capture), key=lambda event: event[0])
        self._told = 0
        said = _describe(f"{why}. So this replays the recording {name!r}", self.notes)
        for taker in self._recordings:
            taker.note("replayed", said)
        _say(said)

    @classmethod
    def of(cls, recording: Recording | None, name: str, why: MissingActor) -> _Replay:
        if recording is None:
            return cls(None, name, why)
        if recording not in cls._running:
            cls._running[recording] = cls(recording, name, why)
        return cls._running[recording]

    def enter(self, kind: type[object]) -> _Replayed:
        for part in self._waiting:
            if part.kind == kind.__name__:
                self._waiting.remove(part)
                return _Replayed(part, kind, self)
        raise ReplayError(f"the recording {self.name!r} has no further {kind.__name__} to replay")

    def unroll(self, until: int | None = None) -> None:
        """Give the recordings what was captured until then; all of it by default."""
        while self._told < len(self._events):
            time_ns, tell = self._events[self._told]
            if until is not None and time_ns > until:
                return
            tell(self._recordings)
            self._told += 1


class _Replayed:
    """Stands for an actor, and answers as it did."""

    def __init__(self, part: Part, kind: type[object], scene: _Replay) -> None:
        self._part, self._kind, self._scene = part, kind, scene
        self._calls = list(part.calls)
        self._whole = decode(part.attributes.get("network"))
        if self._whole is not None:
            self.network = type(self._whole)()

    def __repr__(self) -> str:
        return f"<{self._kind.__name__} replayed from the recording {self._scene.name!r}>"

    def __getattr__(self, name: str) -> Any:
        if name in self._part.attributes:
            return decode(self._part.attributes[name])
        if name.startswith("_"):  # asked by those who look for special methods
            raise AttributeError(name)
        method = getattr(self._kind, name, None)
        if not inspect.iscoroutinefunction(method):
            raise ReplayError(
                f"{name!r} needs a live {self._kind.__name__}, and this one is replayed from the "
                f"recording {self._scene.name!r}"
            )

        async def call(*args: Any, **kwargs: Any) -> Any:
            arguments = _arguments(method, (None, *args), kwargs)
            del arguments["self"]
            return self._answer(name, arguments)

        return call

    def _answer(self, name: str, arguments: dict[str, Any]) -> Any:
        asked = (name, arguments)
        call = next((c for c in self._calls if (c.method, c.arguments) == asked), None)
        if call is None:
            done = ", ".join(f"{c.method}({_shown(c.arguments)})" for c in self._calls) or "nothing"
            raise ReplayError(
                f"the recording {self._scene.name!r} does not go on with "
                f"{name}({_shown(arguments)}), but with {done}; install what is missing to do it "
                "for real"
            )
        self._calls.remove(call)
        self._scene.unroll(call.time_ns)
        if self._whole is not None:
            requests, frames = call.seen
            self.network.requests[:] = self._whole.requests[:requests]
            self.network.frames[:] = self._whole.frames[:frames]
        if isinstance(call.answer, dict) and call.answer.get("$") == "actor":
            part = self._scene.parts[call.answer["part"]]
            with contextlib.suppress(ValueError):
                self._scene._waiting.remove(part)
            return _Replayed(part, _types()[part.kind], self._scene)
        return decode(call.answer)


def _shown(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


_Told = Callable[[tuple["Recording", ...]], None]


def _events(capture: Capture) -> Iterator[tuple[int, _Told]]:
    """Yield what happened in a capture: when, and a function that tells it to recordings."""
    for connection in capture.connections:
        flows: list[Any] = []

        def opened(
            takers: tuple[Recording, ...], c: Connection = connection, flows: list[Any] = flows
        ) -> None:
            flows.extend(
                taker.opened(c.link, c.client_address, c.server_address, c.opened)
                for taker in takers
            )

        yield connection.opened, opened
        for chunk in connection.chunks:

            def data(_: Any, chunk: Any = chunk, flows: list[Any] = flows) -> None:
                for flow in flows:
                    flow.data(chunk.time_ns, chunk.direction, chunk.data)

            yield chunk.time_ns, data
        for end in connection.ends:

            def ended(_: Any, end: Any = end, flows: list[Any] = flows) -> None:
                for flow in flows:
                    flow.end(end.time_ns, end.direction, end.kind)

            yield end.time_ns, ended


class _Notice:
    """Says on the page that something is replayed."""

    def __init__(self, text: str) -> None:
        self._text = text

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {
            "text/html": (
                '<div class="admonition note" data-underhood="replay" role="note">'
                '<p class="admonition-title">Replayed from a recording</p>'
                f"<p>{html.escape(self._text)}</p></div>"
            ),
            "text/plain": self._text,
        }


def _describe(what: str, notes: Mapping[str, str]) -> str:
    made = ", ".join(f"{name} {version}" for name, version in notes.items() if name != "date")
    return f"{what}, made on {notes['date']} with {made}."


def _say(text: str) -> None:
    """Say it on the page of a notebook, and elsewhere as a warning."""
    with contextlib.suppress(ImportError):
        from IPython.core.display_functions import display
        from IPython.core.getipython import get_ipython

        if get_ipython() is not None:
            display(_Notice(text))  # type: ignore[no-untyped-call]
            return
    warnings.warn(text, ReplayWarning, stacklevel=2)


# ---------------------------------------------------------------------- values as JSON


def _types() -> dict[str, Any]:
    """Return the classes that answers are made of, by name."""
    from underhood.stage import browser, console, ensemble, hub, lab, server

    kinds: tuple[Any, ...] = (
        browser.Frame, browser.NetworkTab, browser.Request, browser.Screenshot, browser.WebPage,
        console.QtConsole, console.TerminalConsole, ensemble.FrontEnds, hub.Hub, lab.FrontEnd,
        lab.Run, server.Response,
    )  # fmt: skip
    return {kind.__name__: kind for kind in kinds}


def encode(value: Any) -> Any:
    """Return a value as JSON has it; values of the stage's own classes keep their names."""
    if isinstance(value, bytes):
        return {"$": "bytes", "base64": base64.b64encode(value).decode()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"$": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(name): encode(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be kept in a recording: {value!r}")


def decode(value: Any) -> Any:
    """Return the value that :func:`encode` was given (sequences become lists)."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    fields = {name: decode(item) for name, item in value.items() if name != "$"}
    match value.get("$"):
        case None:
            return fields
        case "bytes":
            return base64.b64decode(fields["base64"])
        case name:
            return _types()[name](**fields)
