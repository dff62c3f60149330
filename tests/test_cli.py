"""The command: what it prints, what it writes, and what it says when something is wrong."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
import pytest
from live import eventually, front_end, kernel, kill, run, start_kernel, until_begun
from rich.console import Console

from underhood import Capture, load, record
from underhood.cli import Trouble, _messages_table, main, parse_filter, parse_pair
from underhood.stage import jupyter_server

BIN = Path(sys.executable).parent
FIELDS = {
    "time", "sender", "receiver", "link", "protocol", "label", "size", "signature", "msg_id",
    "parent_id",
}  # fmt: skip


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a healthy conversation with a kernel, with its key."""
    with record("healthy") as recording, kernel() as (_, client):
        run(client, "print('a [bracket] is no markup')\n1 + 1")
    return recording.save(tmp_path_factory.mktemp("captures") / "healthy.pcapng", keys=True)


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a conversation that a kernel's death cut short."""
    with record("sick") as recording, kernel() as (manager, client):
        client.execute("import time; time.sleep(60)")
        until_begun(client)
        kill(manager)
    return recording.save(tmp_path_factory.mktemp("captures") / "sick.pcapng")


def underhood(
    *arguments: str | Path, cwd: Path | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    return subprocess.run(
        [BIN / "underhood", *arguments], capture_output=True, text=True, cwd=cwd, **options
    )


def notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


# ---- help


def test_without_arguments_it_says_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    told = capsys.readouterr().out
    for command in ("run", "tap", "show", "check", "convert", "exit codes"):
        assert command in told


@pytest.mark.parametrize("command", ["run", "tap", "show", "check", "convert"])
def test_every_command_has_examples_that_it_understands(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from underhood.cli import _parser

    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    examples = re.findall(
        rf"^  underhood ({command} .*?)(?:\s{{2,}}.*| \|.*)?$", told, re.MULTILINE
    )
    assert len(examples) >= 2
    for example in examples:
        import shlex

        assert _parser().parse_args(shlex.split(example)).run is not None


def test_jupyter_finds_it_as_a_subcommand() -> None:
    told = subprocess.run(
        [BIN / "jupyter", "underhood", "--help"],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    assert told.stdout.startswith("usage: underhood")


# ---- show


def test_show_prints_a_row_per_message(capture: Path) -> None:
    told = underhood("show", capture)
    assert told.returncode == 0
    heading, _, *rows = told.stdout.splitlines()
    assert heading.split() == [
        "no.", "ms", "from", "to", "channel", "message", "bytes", "signature"
    ]  # fmt: skip
    trace = load(capture).trace()
    assert f"{capture}: {len(trace)} messages on " in told.stderr
    since = re.search(r"since (.*)$", told.stderr)
    assert since, told.stderr
    milliseconds = round(datetime.fromisoformat(since[1]).timestamp() * 1e3)
    assert milliseconds == trace[0].time_ns // 1_000_000
    assert len(rows) == len(trace)
    for row, m in zip(rows, trace, strict=True):
        cells = re.split(r"\s{2,}", row.strip())
        assert cells[0] == str(m.number)
        assert cells[2:5] == [m.sender, m.receiver, m.channel]
        assert cells[5] == (f"{m.label}: {m.detail}" if m.detail else m.label)
        assert cells[6] == str(m.size)


def test_on_a_narrow_terminal_words_are_folded_and_numbers_are_not(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, record() as recording:
        where = recording.tap(
            listener.getsockname()[:2], client="somebody's browser", server="somebody's server"
        )
        with socket.create_connection(where) as client:
            server, _ = listener.accept()
            with server:
                asked = b"GET /api/contents/notebooks/of/somebody HTTP/1.1\r\n\r\n" * 120
                client.sendall(asked)
                assert server.recv(len(asked), socket.MSG_WAITALL) == asked
    console = Console(file=io.StringIO(), width=60)
    trace = recording.trace()
    console.print(_messages_table(trace))
    told = console.file.getvalue()
    assert max(map(len, told.splitlines())) <= 60
    headings = ["no.", "ms", "from", "to", "channel", "message", "bytes"]
    assert told.splitlines()[0].split() == headings, "nothing is signed here"
    rows = re.findall(r"^ *(\d+) .* http .* (\d+) *$", told, re.MULTILINE)
    assert rows == [(str(m.number), str(m.size)) for m in trace]


def test_a_terminal_that_knows_ascii_only_is_told_the_same_words(sick: Path) -> None:
    usual = underhood("check", sick)
    plain = underhood("check", sick, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert plain.returncode == usual.returncode
    words = r"[A-Za-z_]{2,}"
    assert re.findall(words, plain.stdout) == re.findall(words, usual.stdout) != []


def test_show_json_prints_an_object_per_message(capture: Path) -> None:
    told = underhood("show", capture, "--json")
    found = [json.loads(line) for line in told.stdout.splitlines()]
    trace = load(capture).trace()
    assert len(found) == len(trace)
    for one, m in zip(found, trace, strict=True):
        assert set(one) >= FIELDS
        assert (one["sender"], one["receiver"], one["link"]) == (m.sender, m.receiver, m.link.label)
        assert (one["protocol"], one["label"], one["size"]) == (m.protocol, m.label, m.size)
        assert one["time"] == pytest.approx(m.time_ns / 1e9, abs=1e-6)
        assert one["time_ns"] == m.time_ns
        assert (one["msg_id"] or "", one["parent_id"] or "") == (m.msg_id, m.parent_id)
        assert one["signature"] == ("valid" if m.protocol == "jupyter" else None)


def test_show_json_names_protocols_on_both_hops(tmp_path: Path) -> None:
    async def story() -> Capture:
        async with record() as recording, jupyter_server() as server:
            kernel_id = await start_kernel(server)
            async with front_end(server, kernel_id) as client:
                await client.execute("1")
            await server.request("DELETE", f"/api/kernels/{kernel_id}")
        return recording.capture

    file = asyncio.run(story()).save(tmp_path / "server.pcapng")
    found = [json.loads(line) for line in underhood("show", file, "--json").stdout.splitlines()]
    kinds = {(one["link"].partition(",")[0], one["protocol"], one["label"]) for one in found}
    assert {
        ("client → server", "http", "POST /api/kernels"),
        ("client → server", "http", "201 Created"),
        ("client → server", "jupyter", "execute_request"),
        ("client → server", "jupyter", "execute_reply"),
        ("client → server", "websocket", "close"),
        ("server → kernel", "zmtp", "SUBSCRIBE"),
        ("server → kernel", "jupyter", "execute_request"),
        ("server → kernel", "jupyter", "execute_reply"),
    } <= kinds


def test_show_filters(capture: Path) -> None:
    told = underhood(
        "show", capture, "--json", "--filter", "channel=iopub label=status sender=kernel"
    )
    found = [json.loads(line) for line in told.stdout.splitlines()]
    assert [one["number"] for one in found] == [
        m.number for m in load(capture).trace().types("status")
    ]
    told = underhood("show", capture, "--filter", "label=nothing")
    assert (told.returncode, told.stdout) == (0, "")
    assert "no message to show" in told.stderr


@pytest.mark.parametrize(
    ("expression", "labels"),
    [
        (
            "label=execute_*",
            {"execute_request", "execute_input", "execute_reply", "execute_result"},
        ),
        ("channel=shell protocol!=zmtp sender=client", {"kernel_info_request", "execute_request"}),
        ("label=stream|error", {"stream"}),
        ("detail=stdout", {"stream"}),
        ('detail="3.1 NULL" channel=shell', {"greeting"}),
        ("link='client → kernel, shell' label=*_reply", {"kernel_info_reply", "execute_reply"}),
        ("label!=*", set()),
    ],
)
def test_a_filter_expression_keeps_what_it_describes(
    expression: str, labels: set[str], capture: Path
) -> None:
    kept = load(capture).trace().filter(parse_filter(expression))
    assert {m.label for m in kept} == labels


@pytest.mark.parametrize("expression", ["label", "colour=red", "=x", "label='open"])
def test_a_filter_that_is_none_says_what_one_is(expression: str) -> None:
    with pytest.raises(Trouble, match=r"write FIELD=VALUE|cannot be read"):
        parse_filter(expression)


def test_show_bytes_shows_every_byte_of_a_message(capture: Path) -> None:
    trace = load(capture).trace()
    m = trace.types("stream")[0]
    told = underhood("show", capture, "--bytes", str(m.number))
    assert told.returncode == 0
    shown = bytes.fromhex(
        "".join(
            found[1]
            for line in told.stdout.splitlines()
            if (found := re.match(r" *\d+   ((?:[0-9a-f]{2} ?)+)  ", line))
        )
    )
    assert shown == m.data
    for said in ("signature", "parent_header", "<IDS|MSG>", "stdout", "One bit says that"):
        assert said in told.stdout


# ---- check


def test_check_finds_nothing_wrong_with_a_healthy_capture(capture: Path) -> None:
    told = underhood("check", capture)
    assert told.returncode == 0
    assert re.fullmatch(r"nothing wrong: .* keep all \d+ rules\n", told.stdout)


def test_check_does_not_say_that_signatures_are_right_without_a_key(
    capture: Path, tmp_path: Path
) -> None:
    told = underhood("check", load(capture).save(tmp_path / "keyless.pcapng"))
    assert told.returncode == 0
    assert told.stdout.startswith("signatures were not checked, for want of a key: ")
    assert re.search(r"^nothing wrong: .* keep the other \d+ rules$", told.stdout, re.MULTILINE)


def test_check_names_what_is_wrong_and_exits_with_1(sick: Path) -> None:
    told = underhood("check", sick)
    assert told.returncode == 1
    for said in (
        "request without reply",
        "missing idle",
        "execute_request",
        "Restart it",
        "https:",
    ):
        assert said in told.stdout
    assert "2 findings" in told.stdout
    asked = next(m for m in load(sick).trace().types("execute_request"))
    times = re.findall(r", (\d{4}-\d\d-\d\d [\d:.]{12}[+-]\d\d:\d\d)$", told.stdout, re.MULTILINE)
    for time in times:
        milliseconds = round(datetime.fromisoformat(time).timestamp() * 1e3)
        assert milliseconds == asked.time_ns // 1_000_000
    assert len(times) == 2
    assert "signatures were not checked" in told.stdout
    found = [json.loads(line) for line in underhood("check", sick, "--json").stdout.splitlines()]
    assert {one["rule"] for one in found} == {"request without reply", "missing idle"}
    assert {one["message"]["label"] for one in found} == {"execute_request"}
    assert underhood("check", sick, "--filter", "channel=iopub").returncode == 0
    assert underhood("check", sick, "--filter", "channel=shell").returncode == 1


def test_a_connection_file_names_the_ports_and_verifies_signatures(
    capture: Path, tmp_path: Path
) -> None:
    import shutil

    with record() as recording, kernel() as (manager, client):
        shutil.copy(manager.connection_file, tmp_path / "kernel.json")
        run(client, "1")
    file = recording.save(tmp_path / "without-key.pcapng")
    seen = {
        json.loads(line)["signature"]
        for line in underhood(
            "show", file, "--json", "--connection-file", tmp_path / "kernel.json"
        ).stdout.splitlines()
    }
    assert seen == {"valid", None}
    told = underhood("check", capture, "--connection-file", tmp_path / "kernel.json")
    assert told.returncode == 0, "another kernel's key must not be tried"
    assert "no connection goes to a port of that kernel" in told.stderr
    told = underhood("show", file, "--connection-file", file)
    assert told.returncode == 2
    assert "is no connection file of a kernel" in told.stderr


# ---- convert


def test_convert_writes_what_the_name_says(capture: Path, tmp_path: Path) -> None:
    trace = load(capture).trace()
    for suffix in (".pcapng", ".jsonl", ".svg", ".html"):
        told = underhood("convert", capture, tmp_path / f"out{suffix}")
        assert told.returncode == 0, told.stderr
    again = load(tmp_path / "out.pcapng")
    assert [repr(m) for m in again.trace()] == [repr(m) for m in trace]
    assert not again.keys
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [m.number for m in trace]
    page = (tmp_path / "out.html").read_text()
    assert page.startswith("<!doctype html>")
    for picture in ((tmp_path / "out.svg").read_text(), page):
        arrows = set(map(int, re.findall(r'data-message="(\d+)"', picture)))
        assert arrows == {m.number for m in trace}


def test_convert_keeps_keys_only_when_told(capture: Path, tmp_path: Path) -> None:
    underhood("convert", capture, tmp_path / "with.pcapng", "--keys")
    assert load(tmp_path / "with.pcapng").keys == load(capture).keys
    underhood("convert", capture, tmp_path / "without.pcapng")
    (key,) = load(capture).keys.values()
    assert key.hex().encode() not in (tmp_path / "without.pcapng").read_bytes()


def test_convert_draws_a_choice(capture: Path, tmp_path: Path) -> None:
    target = tmp_path / "part.svg"
    underhood("convert", capture, target, "--filter", "label=execute_request|execute_reply")
    arrows = re.findall(r'data-message="(\d+)"', target.read_text())
    wanted = load(capture).trace().types("execute_request", "execute_reply")
    assert set(map(int, arrows)) == {m.number for m in wanted}


def test_convert_reads_captures_of_other_programs(tmp_path: Path) -> None:
    pcap = tmp_path / "empty.pcap"
    pcap.write_bytes(bytes.fromhex("d4c3b2a1 0200 0400 00000000 00000000 ffff0000 01000000"))
    assert underhood("convert", pcap, tmp_path / "empty.pcapng").returncode == 0
    assert load(tmp_path / "empty.pcapng").connections == ()


# ---- run


def test_run_executes_a_notebook_and_keeps_what_was_said(tmp_path: Path) -> None:
    file = notebook(tmp_path / "fine.ipynb", "print('out')", "6 * 7")
    told = underhood("run", file, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "nothing wrong" in told.stdout
    rows = [line.split() for line in told.stdout.splitlines()]
    assert ["0", "print('out')", "6"] in [row[:3] for row in rows]
    trace = load(tmp_path / "fine.pcapng").trace()
    codes = [m.content["code"] for m in trace.types("execute_request")]
    assert codes == ["print('out')", "6 * 7"]
    report = (tmp_path / "fine.html").read_text()
    assert 'data-underhood="sequence"' in report
    assert "print(&#x27;out&#x27;)" in report


def test_run_keeps_the_capture_of_a_notebook_that_fails(tmp_path: Path) -> None:
    file = notebook(tmp_path / "fails.ipynb", "1", "1 / 0", "2")
    told = underhood("run", file, "--output-dir", tmp_path / "out", "--keys")
    assert told.returncode == 1
    assert "ZeroDivisionError" in told.stderr
    assert "\x1b" not in told.stderr, "it is no terminal"
    assert "Traceback (most recent call last):\n  File" not in told.stderr, "the command's own"
    trace = load(tmp_path / "out" / "fails.pcapng").trace()
    assert [m.label for m in trace.types("error")] == ["error"]
    assert len(trace.types("execute_request")) == 2
    assert {str(m.signature) for m in trace.protocol("jupyter")} == {"valid"}
    assert "failed" in (tmp_path / "out" / "fails.html").read_text()


def test_run_goes_on_after_errors_when_told(tmp_path: Path) -> None:
    file = notebook(tmp_path / "fails.ipynb", "1 / 0", "2")
    assert underhood("run", file, "--allow-errors", cwd=tmp_path).returncode == 0
    assert len(load(tmp_path / "fails.pcapng").trace().types("execute_request")) == 2


def test_run_keeps_the_capture_of_a_kernel_that_dies(tmp_path: Path) -> None:
    file = notebook(tmp_path / "dies.ipynb", "import os; os._exit(1)")
    told = underhood("run", file, cwd=tmp_path)
    assert told.returncode == 1
    assert "request without reply" in told.stdout
    assert len(load(tmp_path / "dies.pcapng").trace().types("execute_request")) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_can_be_interrupted_and_keeps_what_was_said(
    number: signal.Signals, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    file = notebook(
        tmp_path / "long.ipynb", f"open({str(ready)!r}, 'w'); import time; time.sleep(100)", "2"
    )
    process = subprocess.Popen(
        [BIN / "underhood", "run", file, "--allow-errors"], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    eventually(ready.exists, 60)
    process.send_signal(number)
    told, remarks = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; what was captured is kept" in remarks
    assert "nothing wrong" in told
    trace = load(tmp_path / "long.pcapng").trace()
    (error,) = trace.types("error")
    assert error.detail == "KeyboardInterrupt"
    assert len(trace.types("execute_request")) == 1
    assert len(trace.types("shutdown_request")) == 1


def test_run_reads_text_notebooks(tmp_path: Path) -> None:
    (tmp_path / "chapter.md").write_text(
        "---\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n# A chapter\n\n"
        "```{code-cell} python3\n6 * 7\n```\n"
    )
    told = underhood("run", tmp_path / "chapter.md", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert len(load(tmp_path / "chapter.pcapng").trace().types("execute_result")) == 1
    (tmp_path / "empty.xyz").write_text("what is this?")
    told = underhood("run", tmp_path / "empty.xyz", cwd=tmp_path)
    assert told.returncode == 2
    assert "is no text notebook" in told.stderr


# ---- tap


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that answers each line with itself."""
    script = (
        "import socketserver, sys\n"
        "class Echo(socketserver.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        for line in self.rfile: self.wfile.write(line)\n"
        "server = socketserver.ThreadingTCPServer(('127.0.0.1', 0), Echo)\n"
        "print(server.server_address[1], flush=True)\n"
        "server.serve_forever()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        yield int(p.stdout.readline())
        p.kill()


def tap(*arguments: str | Path) -> tuple[subprocess.Popen[str], int]:
    """Start ``underhood tap``; return its process and the port that it listens on."""
    process = subprocess.Popen(
        [BIN / "underhood", "tap", *arguments], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = process.stderr.readline()
    found = re.fullmatch(r"127\.0\.0\.1:(\d+) → .*\n", said)
    assert found, said
    assert process.stderr.readline().startswith("writing ")
    return process, int(found[1])


def say(port: int, line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(line)
        assert client.recv(100) == line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tap_records_until_it_is_ended(echo: int, number: signal.Signals, tmp_path: Path) -> None:
    file = tmp_path / "echo.pcapng"
    process, port = tap(f"0:{echo}", "-o", file, "--client", "me", "--server", "echo")
    say(port, b"hello\n")
    process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 0, told
    assert "1 connection" in told
    (connection,) = load(file).connections
    assert connection.link.label == "me → echo, http"
    assert connection.stream(">") == connection.stream("<") == b"hello\n"


def test_tap_loses_nothing_old_when_it_is_killed(echo: int, tmp_path: Path) -> None:
    file = tmp_path / "echo.pcapng"
    process, port = tap(f"0:{echo}", "-o", file)
    say(port, b"before\n")
    before = file.stat().st_size
    eventually(lambda: file.stat().st_size > before or b"before" in file.read_bytes())
    process.kill()
    process.communicate()
    (connection,) = load(file).connections
    assert connection.stream("<") == b"before\n"


def test_tap_on_a_full_disk_ends_and_keeps_what_it_has(echo: int, tmp_path: Path) -> None:
    file = tmp_path / "echo.pcapng"
    process, port = tap(f"0:{echo}", "-o", file)
    say(port, b"before\n")
    eventually(lambda: b"before" in file.read_bytes())
    limit = file.stat().st_size + 100
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    say(port, b"after\n")
    _, told = process.communicate(timeout=20)
    assert process.returncode == 2
    assert re.search(
        r"^underhood: .*echo\.pcapng: File too large; it has what was", told, re.MULTILINE
    )
    assert "Traceback" not in told
    assert load(file).connections[0].stream("<") == b"before\n"


def test_tap_says_that_a_port_is_busy_and_spares_the_old_capture(tmp_path: Path) -> None:
    file = tmp_path / "old.pcapng"
    file.write_bytes(b"an older capture")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        told = underhood("tap", f"{busy.getsockname()[1]}:1", "-o", file)
    assert told.returncode == 2
    assert "another program listens on" in told.stderr
    assert file.read_bytes() == b"an older capture"


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("9999:8888", (9999, ("127.0.0.1", 8888))),
        ("0:hub.example:8081", (0, ("hub.example", 8081))),
        ("1:[::1]:2", (1, ("::1", 2))),
    ],
)
def test_a_pair_says_where_to_listen_and_where_to_forward_to(
    text: str, pair: tuple[int, tuple[str, int]]
) -> None:
    assert parse_pair(text) == pair


@pytest.mark.parametrize("text", ["8888", "a:b", "1:", ":1", "1:0", "70000:1", "1:host:", "-1:2"])
def test_a_pair_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Trouble, match="write PORT:PORT"):
        parse_pair(text)


# ---- what can go wrong


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "missing.pcapng"], "missing.pcapng: No such file"),
        (["show", "."], "Is a directory"),
        (["check", "text.ipynb"], "is not a capture file"),
        (["check", "empty.pcapng"], "is empty"),
        (["show", "healthy.pcapng", "--bytes", "100000"], "has no message 100000: they are"),
        (["show", "healthy.pcapng", "--bytes", "-1"], "has no message -1"),
        (["show", "healthy.pcapng", "--bytes", "1", "--json"], "leave out --json"),
        (["show", "healthy.pcapng", "--filter", "color=red"], "--filter 'color=red'"),
        (["show", "healthy.pcapng", "--connection-file", "nothing.json"], "nothing.json: No such"),
        (["convert", "healthy.pcapng", "out.docx"], "must end in .pcapng, .jsonl, .svg, .html"),
        (["convert", "healthy.pcapng", "no/folder.html"], "No such file"),
        (["convert", "healthy.pcapng", "o.pcapng", "--filter", "label=x"], "whole connections"),
        (["convert", "healthy.pcapng", "out.svg", "--filter", "label=x"], "no message to draw"),
        (["run", "missing.ipynb"], "there is no notebook"),
        (["run", "text.ipynb"], "is no notebook"),
        (["run", "fine.ipynb", "--kernel", "cobol"], "no kernel is called 'cobol'"),
        (["tap", "what:ever"], "write PORT:PORT"),
        (["tap", "0:no-such-host.invalid:80"], "no host is known as 'no-such-host.invalid'"),
        (["tap", "0:8888", "-o", "no/folder.pcapng"], "No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_in_a_sentence(
    arguments: list[str], says: str, capture: Path, tmp_path: Path
) -> None:
    (tmp_path / "healthy.pcapng").write_bytes(capture.read_bytes())
    (tmp_path / "text.ipynb").write_text("no notebook, and no capture")
    (tmp_path / "empty.pcapng").touch()
    notebook(tmp_path / "fine.ipynb", "1")
    told = underhood(*arguments, cwd=tmp_path)
    assert told.returncode == 2
    assert told.stdout == ""
    assert told.stderr.startswith("underhood: ")
    assert says in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_a_capture_that_was_cut_is_shown_as_far_as_it_goes(capture: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pcapng"
    cut.write_bytes(capture.read_bytes()[:-3000])
    told = underhood("show", cut)
    assert told.returncode == 0
    assert len(told.stdout.splitlines()) > 10
    assert "cut.pcapng: " in told.stderr


def test_a_reader_that_has_seen_enough_is_no_error(capture: Path) -> None:
    told = subprocess.run(
        f"'{BIN / 'underhood'}' show '{capture}' --json | head -n 1; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True,
    )  # fmt: skip
    first, code = told.stdout.splitlines()
    assert json.loads(first)["number"] == 0
    assert code == "0"
    assert told.stderr == ""


def test_a_hostile_label_does_not_reach_the_terminal(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, record() as recording:
        where = recording.tap(
            ("127.0.0.1", listener.getsockname()[1]), client="client", server="server"
        )
        with socket.create_connection(where) as client:
            server, _ = listener.accept()
            with server:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                server.recv(100)
                server.sendall(b"HTTP/1.1 200 \x1b[31mred [bold]\r\nContent-Length: 0\r\n\r\n")
                client.recv(100)
    told = underhood("show", recording.save(tmp_path / "hostile.pcapng"))
    assert told.returncode == 0
    assert "\x1b" not in told.stdout
    assert "red [bold]" in told.stdout
