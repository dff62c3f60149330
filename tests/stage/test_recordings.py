"""A recording stands for the real thing: same calls, same answers, same kinds of messages."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from places import Place

from underhood import record
from underhood.capture.store import DIRECTIONS, Capture
from underhood.dissect import dissect
from underhood.dissect.jupyter import Signature
from underhood.dissect.spans import UNDECODED
from underhood.stage import MissingActor, ReplayError, jupyterhub, jupyterlab
from underhood.stage.replay import ReplayWarning, recordings_folder

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
RECORDED = sorted(path.stem for path in recordings_folder().glob("*.pcapng"))


def _renew() -> ModuleType:
    path = ROOT / "book" / "recordings" / "renew.py"
    spec = importlib.util.spec_from_file_location("renew", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RENEW = _renew()


@pytest.fixture
def nobody_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take Chromium and Node.js away."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    monkeypatch.delenv("UNDERHOOD_REQUIRE_LIVE", raising=False)


# ---------------------------------------------------------------------- structure

FREE = re.compile(
    r"GET |\d{3} |PATCH |PUT \S*/lab/api/|debug_|comm_"
    r"|(status|stream|text|ping|pong|close|kernel_info_reply|shutdown_reply)$"
)
"""What may come at any time, any number of times, or not at all.

What a front end fetches, and in which order its parallel connections bring it, differs from visit
to visit, and so does all that hangs on a clock: polling, activity, the debugger's questions.
Whether a kernel's last words still reach a server that is about to end is a race, too.
"""


def parties(capture: Capture) -> set[str]:
    return set(capture.trace().parties)


def order(capture: Capture) -> dict[tuple[str, str, str], list[str]]:
    """For each way and channel, the kinds of messages in the order of their first appearance."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for message in capture.trace():
        kind = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "…", message.label)
        kinds = found.setdefault((message.sender, message.receiver, message.channel), [])
        if not FREE.match(kind) and kind not in kinds:
            kinds.append(kind)
    return {way: kinds for way, kinds in found.items() if kinds}


Answers = dict[tuple[str, str, str], list[list[tuple[str, str]]]]


def cells(capture: Capture) -> list[Answers]:
    """For each cell that was run, what answered it, for each way and channel.

    Connections have no order among each other: a server listens to a kernel's iopub twice.
    """
    trace = capture.trace()
    found = []
    for msg_id in dict.fromkeys(m.msg_id for m in trace.types("execute_request")):
        lines: dict[tuple[str, str, str, int], list[tuple[str, str]]] = {}
        for m in trace.answering(msg_id):
            line = lines.setdefault((m.sender, m.receiver, m.channel, m.connection), [])
            line.append((m.label, m.detail))
        answers: Answers = {}
        for (*way, _), said in sorted(lines.items(), key=lambda item: item[1]):
            sender, receiver, channel = way
            answers.setdefault((sender, receiver, channel), []).append(said)
        found.append(answers)
    return found


@pytest.mark.usefixtures("chromium_is_here", "hub_is_here")
@pytest.mark.parametrize("scene", list(RENEW.SCENES))
async def test_a_recording_has_the_structure_of_a_live_capture(
    scene: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Capture.load(recordings_folder() / f"{scene}.pcapng")
    monkeypatch.setenv("UNDERHOOD_RENEW", str(tmp_path))
    await RENEW.SCENES[scene]()
    live = Capture.load(tmp_path / f"{scene}.pcapng")
    assert parties(recorded) == parties(live)
    assert order(recorded) == order(live)
    assert cells(recorded) == cells(live)
    assert cells(live)
    calls = [
        [(call["method"], call["arguments"]) for part in script["parts"] for call in part["calls"]]
        for folder in (recordings_folder(), tmp_path)
        for script in [json.loads((folder / f"{scene}.json").read_text())]
    ]
    assert calls[0] == calls[1]


# ---------------------------------------------------------------------- each recording


def test_there_are_recordings_of_all_scenes() -> None:
    assert set(RENEW.SCENES) <= set(RECORDED)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_is_whole_and_small_and_says_when_and_with_what(name: str) -> None:
    path = recordings_folder() / f"{name}.pcapng"
    assert path.stat().st_size < 2_000_000
    capture = Capture.load(path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", capture.notes["date"])
    assert {"Python", "Chromium", "jupyter_server", "ipykernel"} <= set(capture.notes)
    trace = capture.trace()
    for connection in capture.connections:
        dissection = dissect({way: connection.stream(way) for way in DIRECTIONS})
        spans = [span for way in DIRECTIONS for span in dissection.spans(way)]
        assert UNDECODED not in {span.label for span in spans}
    assert {m.signature for m in trace} <= {None, Signature.VALID}
    script = json.loads(path.with_suffix(".json").read_text())
    assert [call for part in script["parts"] for call in part["calls"]]


@pytest.mark.parametrize("scene", list(RENEW.SCENES))
def test_actors_part_in_good_order(scene: str) -> None:
    """Browsers leave before servers end, so nothing hangs in the air; one question was too much."""
    found = Capture.load(recordings_folder() / f"{scene}.pcapng").trace().check()
    refused = ["GET /user/bob/api/status got 403 Forbidden"] if scene == "hub" else []
    assert [str(finding).partition(": ")[2] for finding in found] == refused


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_tells_nothing_of_the_machine_that_made_it(name: str) -> None:
    for path in recordings_folder().glob(f"{name}.*"):
        text = path.read_bytes()
        for secret in (str(ROOT), str(Path.home()), sys.prefix, sys.base_prefix):
            assert secret.encode() not in text


@pytest.mark.parametrize("page", RENEW.chapters(), ids=lambda page: page.stem)
def test_every_chapter_can_be_replayed(page: Path) -> None:
    scenes = set(RENEW.scenes_of(page))
    assert "" not in scenes, "give each record() with a browser or a hub in it a name"
    assert scenes <= set(RECORDED), f"run book/recordings/renew.py {page.relative_to(ROOT)}"


# ---------------------------------------------------------------------- replaying


@pytest.mark.usefixtures("nobody_here")
async def test_a_replay_gives_the_same_answers_and_bytes() -> None:
    path = recordings_folder() / "lab.pcapng"
    recorded = Capture.load(path)
    with pytest.warns(ReplayWarning, match=r"no chromium.*'lab', made on \d{4}-.* jupyterlab \d"):  # noqa: PT031
        async with record("lab") as capture, jupyterlab() as lab:
            assert not capture.connections
            await lab.open("demo.ipynb")
            opened = capture.trace()
            await lab.type("6 * 7")
            ran = await lab.run()
            run = capture.trace()
            await lab.save()
            picture = await lab.screenshot()
    assert capture.connections == recorded.connections
    assert capture.keys == recorded.keys
    assert "'lab'" in capture.notes["replayed"]
    # What had been captured before the cell was run, and what only after.
    assert opened.types("GET /lab/tree/demo.ipynb")
    assert not opened.types("execute_request")
    assert run.types("execute_request")
    assert ran.output == "42"
    (first, _) = run.hops(run.types("execute_request")[0].msg_id)
    assert ran.pressed_ns < first.message.time_ns < ran.painted_ns
    assert picture.png.startswith(b"\x89PNG")
    assert lab.kind == "JupyterLab"
    assert len(lab.network.requests) > 100
    assert lab.network.frames[0].payload


@pytest.mark.usefixtures("nobody_here")
async def test_a_hub_is_replayed_with_the_browser_in_it() -> None:
    with pytest.warns(ReplayWarning, match=r"'hub', made on"):  # noqa: PT031
        async with record("hub") as capture, jupyterhub(users=["alice", "bob"]) as hub:
            assert list(await hub.routes()) == ["/"]
            alice = await hub.log_in("alice")
            await alice.open("demo.ipynb")
            await alice.type("6 * 7")
            assert (await alice.run()).output == "42"
            assert list(hub.users) == ["alice", "bob"]
    assert "alice's server" in capture.trace().parties


@pytest.mark.usefixtures("nobody_here")
@pytest.mark.filterwarnings("ignore::underhood.stage.replay.ReplayWarning")
async def test_a_replay_refuses_what_was_not_done() -> None:
    async with record("lab"), jupyterlab() as lab:
        await lab.open("demo.ipynb")
        with pytest.raises(ReplayError, match=r"type\(source='7 \* 6'\), but with type\(source='6"):
            await lab.type("7 * 6")
        with pytest.raises(ReplayError, match="'page' needs a live FrontEnd"):
            _ = lab.page
        assert "replayed" in repr(lab)


@pytest.mark.usefixtures("nobody_here")
async def test_without_a_recording_the_missing_actor_is_named() -> None:
    with pytest.raises(MissingActor, match=r"Chromium is missing.*no recording called 'unheard'"):
        async with record("unheard"), jupyterlab():
            pytest.fail("nobody is here")


@pytest.mark.usefixtures("nobody_here")
async def test_where_actors_must_be_live_a_missing_one_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UNDERHOOD_REQUIRE_LIVE", "1")
    with pytest.raises(MissingActor, match="Chromium is missing"):
        async with record("lab"), jupyterlab():
            pytest.fail("nobody is here")
    with pytest.raises(MissingActor, match=r"Node\.js"):
        async with record("hub"), jupyterhub():
            pytest.fail("nobody is here")


NOTEBOOK = """
import sys, nbformat, nbclient, os
document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('''
from underhood import record
from underhood.stage import jupyterlab

async with record("lab") as capture, jupyterlab() as lab:
    await lab.open("demo.ipynb")
''')])
nbclient.NotebookClient(document, kernel_name="python3").execute()
(output,) = document.cells[0].outputs
print(output.data["text/html"])
"""


def test_a_page_says_what_it_replays(place: Place, tmp_path: Path) -> None:
    owner = place.owner(
        f"import os; os.environ['PATH'] = {str(tmp_path)!r};"
        f"os.environ['PLAYWRIGHT_BROWSERS_PATH'] = {str(tmp_path)!r}\n"
        "os.environ.pop('UNDERHOOD_REQUIRE_LIVE', None)\n" + NOTEBOOK
    )
    said, errors = owner.communicate(timeout=60)
    assert owner.returncode == 0, errors
    assert 'data-underhood="replay"' in said
    assert re.search(r"recording &#x27;lab&#x27;, made on \d{4}-\d\d-\d\d with Python 3", said)


def test_the_recordings_can_be_renewed_from_the_command_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "book" / "recordings" / "renew.py", "no-such-scene"],
        env={**os.environ, "UNDERHOOD_RENEW": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "'no-such-scene' is neither a chapter nor one of lab, classic, hub" in done.stderr
