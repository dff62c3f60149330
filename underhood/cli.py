"""The command line: ``underhood``, which ``jupyter underhood`` finds too.

Strategy: each subcommand is one function that takes the parsed arguments and returns the exit
code. What was asked for goes to standard output, so that it can be piped; progress, and remarks
about the capture, go to standard error. What a user can get wrong (a file, a port, a number) ends
in one sentence, never in a traceback. Libraries are imported where they are used, so that
``--help`` is there at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from html import escape
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from underhood.capture.store import Capture, Connection, Link, SigningKey
    from underhood.check import Finding
    from underhood.trace import Message, Trace

OK: Final = 0
FOUND: Final = 1
TROUBLE: Final = 2
INTERRUPTED: Final = 130

_CODES: Final = """\
exit codes:
  0    all went well, and check found nothing
  1    check has findings, or a cell of the notebook failed
  2    the command or its input is wrong; standard error says what and what to do
  130  interrupted by Ctrl+C (tap: Ctrl+C is its normal end, and gives 0)
"""


class Trouble(Exception):
    """What a user can put right; its text is a sentence that says what and where."""


# ---- terminals


def _console(*, error: bool = False) -> Console:
    """Return a console that prints texts as they are; into a pipe, without breaking lines."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    return Console(
        file=stream,
        markup=False,
        highlight=False,
        emoji=False,
        width=None if stream.isatty() else 10_000,
    )


def _table(*headings: str, right: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """Return a table; on a narrow terminal, columns of ``right`` and ``whole`` keep their width."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading in right else "left",
            overflow="fold",
            no_wrap=heading in right or heading in whole,
        )
    return table


def _say(text: str) -> None:
    """Say something on standard error; in colours, as tracebacks have them, on a terminal only."""
    if not sys.stderr.isatty():
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    print(text, file=sys.stderr, flush=True)


# ---- reading captures


def _load(args: argparse.Namespace) -> Capture:
    """Read the capture that the arguments name, and say what could not be read of it."""
    from underhood.capture import pcapng

    connection = _read_connection_file(args.connection_file) if args.connection_file else None
    with _progress(f"reading {args.file}"):
        capture = pcapng.load(args.file, links=connection.links if connection else None)
    for note in ("cut", "missing", "skipped"):
        if note in capture.notes:
            _say(f"{args.file}: {capture.notes[note]}")
    if connection is not None:
        # Others may talk to other kernels in the same capture: the ports tell whose key it is.
        ids = {
            c.link.kernel_id for c in capture.connections if c.server_address[1] in connection.links
        }
        if not ids:
            ports = ", ".join(map(str, connection.links))
            _say(f"{args.file}: no connection goes to a port of that kernel ({ports})")
        capture = replace(capture, keys={**capture.keys, **dict.fromkeys(ids, connection.key)})
    return capture


@dataclass(frozen=True, slots=True)
class _ConnectionFile:
    """What a kernel's connection file tells about a capture: its ports and its key."""

    links: Mapping[int, Link]
    key: SigningKey


def _read_connection_file(path: Path) -> _ConnectionFile:
    from underhood.capture.provisioner import CHANNELS
    from underhood.capture.store import DEFAULT_SCHEME, Link, SigningKey

    try:
        info = json.loads(path.read_text())
        links = {
            int(info[port]): Link("client", "kernel", channel, path.stem)
            for port, channel in CHANNELS.items()
        }
        scheme = str(info.get("signature_scheme", DEFAULT_SCHEME))
        return _ConnectionFile(links, SigningKey(str(info["key"]).encode(), scheme))
    except (ValueError, KeyError, TypeError) as error:
        raise Trouble(
            f"{path} is no connection file of a kernel ({error}); "
            "`jupyter --runtime-dir` prints the folder that has them"
        ) from None


_FIELDS: Final[Mapping[str, Callable[[Message], object]]] = {
    "number": lambda m: m.number,
    "sender": lambda m: m.sender,
    "receiver": lambda m: m.receiver,
    "link": lambda m: m.link.label,
    "channel": lambda m: m.channel,
    "protocol": lambda m: m.protocol,
    "label": lambda m: m.label,
    "detail": lambda m: m.detail,
    "signature": lambda m: m.signature or "",
    "msg_id": lambda m: m.msg_id,
    "parent_id": lambda m: m.parent_id,
    "connection": lambda m: m.connection,
}
_TERM: Final = re.compile(r"(?P<field>\w+)(?P<sign>!?=)(?P<values>.*)", re.DOTALL)


def parse_filter(expression: str) -> Callable[[Message], bool]:
    """Return a predicate that keeps the messages which an expression describes.

    An expression has terms, separated by blanks, all of which must hold. A term is
    ``field=value``, ``field!=value``, or ``field=one|other`` for either; ``*`` and ``?`` in a
    value stand for any characters, or one. Quotes keep blanks together:
    ``'label="POST /api/*"'``.

    Raises
    ------
    Trouble
        If a term is none, or names no field.
    """
    try:
        words = shlex.split(expression)
    except ValueError as error:
        raise Trouble(f"--filter {expression!r} cannot be read: {error}") from None
    terms = []
    for word in words:
        term = _TERM.fullmatch(word)
        if term is None or term["field"] not in _FIELDS:
            raise Trouble(
                f"--filter {word!r} is no term: write FIELD=VALUE or FIELD!=VALUE, where FIELD is "
                f"one of {', '.join(_FIELDS)}"
            )
        terms.append((_FIELDS[term["field"]], term["sign"] == "=", term["values"].split("|")))

    def keep(m: Message) -> bool:
        return all(
            wanted == any(fnmatchcase(str(field(m)), value) for value in values)
            for field, wanted, values in terms
        )

    return keep


def _chosen(trace: Trace, expressions: Iterable[str]) -> Trace:
    for expression in expressions:
        trace = trace.filter(parse_filter(expression))
    return trace


def _as_json(m: Message) -> dict[str, object]:
    """Return what programs get to know about a message."""
    return {
        "number": m.number,
        "time": m.time_ns / 1e9,
        "time_ns": m.time_ns,
        "sender": m.sender,
        "receiver": m.receiver,
        "link": m.link.label,
        "channel": m.channel,
        "protocol": m.protocol,
        "label": m.label,
        "detail": m.detail,
        "size": m.size,
        "signature": None if m.signature is None else str(m.signature),
        "msg_id": m.msg_id or None,
        "parent_id": m.parent_id or None,
        "connection": m.connection,
    }


# ---- show


def _show(args: argparse.Namespace) -> int:
    trace = _load(args).trace()
    if args.bytes is not None:
        if args.json or args.filter:
            raise Trouble("--bytes shows one message: leave out --json and --filter")
        return _show_bytes(trace, args.bytes)
    chosen = _chosen(trace, args.filter)
    if args.json:
        for m in chosen:
            print(json.dumps(_as_json(m)))
        return OK
    if not len(chosen):
        _say(f"no message to show: {args.file} has {len(trace)}, on {_connections(trace)}")
        return OK
    part = f"{len(chosen)} of " if len(chosen) < len(trace) else ""
    _say(f"{args.file}: {part}{_seen(trace)}, since {_when(trace[0].time_ns)}")
    _console().print(_messages_table(chosen))
    return OK


def _seen(trace: Trace) -> str:
    """Say how much a trace holds."""
    from underhood.draw.words import messages

    return f"{messages(len(trace))} on {_connections(trace)}"


def _when(time_ns: int) -> str:
    """Write a time as servers' logs do: in this computer's zone, to the millisecond."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    local = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000).astimezone()
    return local.isoformat(sep=" ", timespec="milliseconds")


def _connections(trace: Trace) -> str:
    whole = trace is trace.whole
    count = len(trace.capture.connections if whole else {m.connection for m in trace})
    return f"{count} connection{'' if count == 1 else 's'}"


def _messages_table(trace: Trace) -> Table:
    from underhood.draw.words import channel, milliseconds, says

    signed = ("signature",) if any(m.signature is not None for m in trace) else ()
    table = _table(
        "no.", "ms", "from", "to", "channel", "message", "bytes", *signed,
        right=("no.", "ms", "bytes"), whole=("channel", *signed),
    )  # fmt: skip
    start = trace.whole[0].time_ns
    for m in trace:
        table.add_row(
            str(m.number), milliseconds(m.time_ns - start), m.sender, m.receiver, channel(m),
            says(m), str(m.size), *(str(m.signature or "") for _ in signed),
        )  # fmt: skip
    return table


def _message(trace: Trace, number: int) -> Message:
    if not 0 <= number < len(trace):
        have = f"they are numbered from 0 to {len(trace) - 1}" if len(trace) else "it has none"
        raise Trouble(f"this capture has no message {number}: {have}")
    return trace[number]


_ROW: Final = 16  # bytes in a line of hex


def _show_bytes(trace: Trace, number: int) -> int:
    from underhood.draw.fields import explanation, field

    m = _message(trace, number)
    console = _console()
    console.print(f"message {m.number}: {m.sender} → {m.receiver}, {m.channel}: {m.label}")
    table = _table("offset", "bytes", "text", "field", "value", "what it is", right=("offset",))

    def add(found: Any, level: int) -> None:
        part = m.data[found.start : found.end]
        name = "  " * level + found.label
        about = explanation(found.key)[0]
        if found.children:
            table.add_row(str(found.start), f"({len(part)} bytes)", "", name, found.value, about)
            for child in found.children:
                add(child, level + 1)
            return
        for at in range(0, max(len(part), 1), _ROW):
            row = part[at : at + _ROW]
            shown = "".join(chr(b) if 32 <= b < 127 else "·" for b in row)
            last = (name, found.value, about) if at == 0 else ("", "", "")
            table.add_row(str(found.start + at), row.hex(" "), shown, *last)

    add(field(m.span, m.data), 0)
    console.print(table)
    return OK


# ---- check


def _check(args: argparse.Namespace) -> int:
    trace = _chosen(_load(args).trace(), args.filter)
    findings = trace.check()
    if args.json:
        for finding in findings:
            print(json.dumps(_finding_as_json(finding)))
    else:
        _print_findings(trace, findings)
    return FOUND if findings else OK


def _finding_as_json(finding: Finding) -> dict[str, object]:
    return {
        "rule": finding.rule,
        "sentence": finding.sentence,
        "advice": finding.advice,
        "time": finding.time_ns / 1e9,
        "message": None if finding.message is None else _as_json(finding.message),
        "connection": None if finding.connection is None else finding.connection.id,
    }


def _concerned(where: Message | Connection | None) -> str:
    from underhood.draw.words import says
    from underhood.trace import Message

    if isinstance(where, Message):
        return f"{where.sender} → {where.receiver}, {where.channel}: {says(where)}"
    return where.link.label if where is not None else ""


def _print_findings(trace: Trace, findings: Sequence[Finding]) -> None:
    from underhood.check import RULES
    from underhood.dissect.jupyter import Signature
    from underhood.draw.words import milliseconds

    console = _console()
    sections = {rule.name: f"{rule.section}: {rule.url}" for rule in RULES}
    start = trace.whole[0].time_ns if len(trace.whole) else 0
    for finding in findings:
        at = f"at {milliseconds(finding.time_ns - start)} ms, {_when(finding.time_ns)}"
        console.print(f"{finding.rule}: {finding.place}, {at}", style="bold")
        console.print(f"    {finding.sentence}")
        console.print(f"    {_concerned(finding.message or finding.connection)}")
        console.print(f"    {finding.advice}")
        console.print(f"    {sections[finding.rule]}", style="dim")
    kept = f"all {len(RULES)} rules"
    if any(m.signature is Signature.UNCHECKED for m in trace):
        kept = f"the other {len(RULES) - 1} rules"
        console.print(
            "signatures were not checked, for want of a key: --connection-file gives it, and run "
            "--keys keeps it in the capture"
        )
    if findings:
        count = len(findings)
        console.print(f"{count} finding{'' if count == 1 else 's'} in {_seen(trace)}")
    else:
        console.print(f"nothing wrong: {_seen(trace)} keep {kept}")


# ---- convert


def _convert(args: argparse.Namespace) -> int:
    target: Path = args.output
    writer = _WRITERS.get(target.suffix)
    if writer is None:
        raise Trouble(
            f"cannot tell what {target} is to be: its name must end in {', '.join(_WRITERS)}"
        )
    capture = _load(args)
    writer(capture, target, args)
    _say(f"{target} written")
    return OK


def _write_pcapng(capture: Capture, target: Path, args: argparse.Namespace) -> None:
    if args.filter:
        raise Trouble("--filter picks messages, and a pcapng holds whole connections: leave it out")
    capture.save(target, keys=args.keys)


def _write_lines(capture: Capture, target: Path, args: argparse.Namespace) -> None:
    with target.open("w", encoding="utf-8") as file:
        for m in _chosen(capture.trace(), args.filter):
            file.write(json.dumps(_as_json(m)) + "\n")


def _write_drawing(capture: Capture, target: Path, args: argparse.Namespace) -> None:
    trace = _chosen(capture.trace(), args.filter)
    _drawable(trace).sequence_diagram().save(target)


def _write_page(capture: Capture, target: Path, args: argparse.Namespace) -> None:
    trace = _chosen(capture.trace(), args.filter)
    target.write_text(_page(capture.name, trace, trace.check()), encoding="utf-8")


_WRITERS: Final[Mapping[str, Callable[[Capture, Path, argparse.Namespace], None]]] = {
    ".pcapng": _write_pcapng,
    ".jsonl": _write_lines,
    ".svg": _write_drawing,
    ".html": _write_page,
}

MOST_DRAWN: Final = 1000
"""How many messages a diagram may have; more nobody reads, and browsers get slow."""


def _drawable(trace: Trace) -> Trace:
    if not len(trace):
        raise Trouble("there is no message to draw; see `underhood show FILE`")
    if len(trace) > MOST_DRAWN:
        raise Trouble(
            f"{len(trace)} messages are too many for one diagram (at most {MOST_DRAWN}); "
            "choose some with --filter, as in --filter protocol=jupyter"
        )
    return trace


_STYLE: Final = """\
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem .2rem 0; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font: .9em ui-monospace, monospace; }
"""


def _page(
    title: str, trace: Trace, findings: Sequence[Finding], cells: Sequence[_Cell] = ()
) -> str:
    """Return a page of its own: cells, findings, the diagram and its messages."""
    from underhood.check import RULES

    notes = "".join(f"<li>{escape(k)}: {escape(v)}</li>" for k, v in trace.capture.notes.items())
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>",
        f"<h1>{escape(title)}</h1>\n<ul>{notes}</ul>",
    ]
    if cells:
        head = "".join(f'<th scope="col">{heading}</th>' for heading in _CELL_HEADINGS)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in cell.row()) + "</tr>\n"
            for cell in cells
        )
        parts.append(f"<h2>Cells</h2>\n<table><thead><tr>{head}</tr></thead>{rows}</table>")
    parts.append("<h2>Findings</h2>")
    if findings:
        items = "".join(
            f"<li><strong>{escape(f.rule)}</strong> ({escape(f.place)}): {escape(f.sentence)}. "
            f"{escape(f.advice)}</li>\n"
            for f in findings
        )
        parts.append(f"<ul>{items}</ul>")
    else:
        parts.append(f"<p>None: the conversation keeps all {len(RULES)} rules.</p>")
    parts.append("<h2>Messages</h2>")
    drawn = trace[:MOST_DRAWN]
    if len(drawn) < len(trace):
        parts.append(f"<p>The first {len(drawn)} of {len(trace)} are drawn.</p>")
    drawing = drawn.sequence_diagram(title=f"Who said what: {title}").html if len(drawn) else ""
    parts.append(drawing or "<p>There are none.</p>")
    parts.append("</main>\n</body>\n</html>\n")
    return "\n".join(parts)


# ---- run


@dataclass(frozen=True, slots=True)
class _Cell:
    """What one cell of a notebook did on the wire."""

    number: int
    source: str
    messages: int
    octets: int
    taken_ns: int
    failed: bool

    def row(self) -> tuple[str, ...]:
        """Return what a table says of it, under :data:`_CELL_HEADINGS`."""
        from underhood.draw.words import in_words, plain

        first = next((line for line in self.source.splitlines() if line.strip()), "")
        return (
            str(self.number), plain(first)[:60], str(self.messages), str(self.octets),
            in_words(self.taken_ns), "failed" if self.failed else "ok",
        )  # fmt: skip


_CELL_HEADINGS: Final = ("cell", "first line", "messages", "bytes", "time", "result")


def _read_notebook(path: Path) -> Any:
    import nbformat

    if path.suffix == ".ipynb":
        try:
            return nbformat.read(path, as_version=4)
        except OSError:
            raise
        except Exception as error:  # nbformat, its validator and json raise many kinds
            raise Trouble(f"{path} is no notebook: {str(error).splitlines()[0]}") from None
    try:
        jupytext = import_module("jupytext")
    except ImportError:
        raise Trouble(
            f"{path} is a text notebook, and reading it needs jupytext: pip install jupytext"
        ) from None
    try:
        text = path.read_text(encoding="utf-8")
        # MyST notebooks may lack the header by which jupytext tells them from plain Markdown.
        myst = path.suffix == ".md" and "{code-cell}" in text
        return jupytext.reads(text, fmt="md:myst" if myst else path.suffix)
    except OSError:
        raise
    except Exception as error:
        raise Trouble(f"{path} is no text notebook: {str(error).splitlines()[0]}") from None


def _run(args: argparse.Namespace) -> int:
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    from underhood.capture import record

    path: Path = args.notebook
    if not path.is_file():
        raise Trouble(f"there is no notebook {path}")
    notebook = _read_notebook(path)
    capture_path, report_path = (args.output_dir / f"{path.stem}{s}" for s in (".pcapng", ".html"))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    codes = [n for n, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    asked: dict[int, str] = {}  # the msg_id of each cell's execute_request
    code = OK
    with (
        tempfile.TemporaryFile() as log,
        _warnings_as_sentences(),
        _progress("cells", len(codes)) as advance,
        record(path.stem) as recording,
    ):
        recording.note("notebook", path.name)

        def done(cell: Any, cell_index: int, execute_reply: Any, **_: Any) -> None:
            asked[cell_index] = execute_reply["parent_header"]["msg_id"]
            advance()

        client = NotebookClient(
            notebook,
            timeout=args.timeout,
            allow_errors=args.allow_errors,
            resources={"metadata": {"path": str(path.resolve().parent)}},
            on_cell_executed=done,
            on_cell_error=done,
            **({"kernel_name": args.kernel} if args.kernel else {}),
        )
        try:
            _execute(client, log)
        except NoSuchKernel as error:
            raise Trouble(
                f"no kernel is called {error.name!r}: `jupyter kernelspec list` shows those "
                "installed, and --kernel chooses one"
            ) from None
        except (CellExecutionError, CellTimeoutError) as error:
            _say(f"{path}: {error}")
            code = FOUND
        except (DeadKernelError, RuntimeError) as error:  # RuntimeError: it died while it started
            log.seek(0)
            _say(f"{log.read().decode(errors='replace')}{path}: {error}")
            code = FOUND
        except KeyboardInterrupt:
            _say(f"{path}: interrupted; what was captured is kept")
            code = INTERRUPTED
    trace = recording.trace()
    cells = [_cell(trace, n, notebook.cells[n], asked[n]) for n in codes if n in asked]
    findings = trace.check()
    recording.save(capture_path, keys=args.keys)
    report_path.write_text(_page(path.name, trace, findings, cells), encoding="utf-8")
    table = _table(*_CELL_HEADINGS, right=("cell", "messages", "bytes"))
    for cell in cells:
        table.add_row(*cell.row())
    _console().print(table)
    _print_findings(trace, findings)
    _console().print(f"capture: {capture_path}\nreport:  {report_path}")
    if code == OK and any(cell.failed for cell in cells) and not args.allow_errors:
        code = FOUND
    return code


def _execute(client: Any, log: IO[bytes]) -> None:
    """Execute a notebook.

    In a thread, because nbclient would take Ctrl+C for itself, and lose its kernel halfway. Here
    it interrupts the cell, as a front end does, and ends the kernel only if that does not help.
    """
    failed: list[BaseException] = []

    def execute() -> None:
        try:
            client.execute(stderr=log)
        except BaseException as error:
            failed.append(error)
        finally:
            ended.set()

    # Not join(): interrupted, it takes the thread for ended (python/cpython#90882).
    ended = threading.Event()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=execute, name="notebook", daemon=True).start()
    try:
        ended.wait()
    except KeyboardInterrupt:
        client.allow_errors = False
        for number in (signal.SIGINT, signal.SIGKILL):
            if pid := getattr(getattr(client.km, "provisioner", None), "pid", None):
                os.kill(pid, number)
            if ended.wait(5):
                break
        raise
    if failed:
        raise failed[0]


def _cell(trace: Trace, number: int, cell: Any, msg_id: str) -> _Cell:
    said = trace.answering(msg_id)
    return _Cell(
        number,
        cell.source,
        len(said),
        sum(m.size for m in said),
        said[-1].time_ns - said[0].time_ns if len(said) else 0,
        any(output.output_type == "error" for output in cell.get("outputs", ())),
    )


@contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """Have warnings (a kernel that cannot be tapped) printed without file and line."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _say(str(message))
        yield


@contextmanager
def _progress(what: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """Show how far a long piece of work is, on standard error, if that is a terminal.

    Yields what to call after each step; without a total, it only shows that something goes on.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = _console(error=True)
    columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    if total is not None:
        columns.insert(2, MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task(what, total=total)
        yield lambda: shown.advance(task)


# ---- tap

_FLUSH_S: Final = 0.1


def _tap(args: argparse.Namespace) -> int:
    from underhood.capture import pcapng, tap
    from underhood.capture.store import Link

    pairs = [parse_pair(pair) for pair in args.pair]
    places = [_addresses(*there) for _, there in pairs]
    target: Path = args.output
    ended = threading.Event()
    # SIGTERM ends it like Ctrl+C, so that a service manager may run it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    taps = [
        tap.Tap(("127.0.0.1", port), found, {})
        for (port, _), found in zip(pairs, places, strict=True)
    ]
    tap.start(*taps)  # before the file is opened: a busy port must not cost an older capture
    try:
        file = _CaptureFile(target, ended)
        notes = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "taps": " ".join(args.pair),
        }
        writer = pcapng.Writer(file, name=target.stem, notes=notes)
        for one, (_, (host, port)) in zip(taps, pairs, strict=True):
            one.links[writer] = Link(args.client, args.server, args.channel)
            _say(f"127.0.0.1:{one.address[1]} → {host}:{port}")
        _say(f"writing {target}; press Ctrl+C to end")
        while not ended.wait(_FLUSH_S):
            file.flush()
            if sys.stderr.isatty():
                print(f"\r{file.size:,} bytes", end="", file=sys.stderr, flush=True)
        tap.detach(writer)
        file.close()
    finally:
        tap.stop(*taps, drain=0)
    trace = pcapng.load(target).trace()
    _say(f"\r{target}: {len(trace)} messages on {_connections(trace)}")
    return OK


class _CaptureFile:
    """A capture's file while taps write it; a full disk ends the capture, and breaks no tap."""

    def __init__(self, path: Path, ended: threading.Event) -> None:
        self._path, self._ended = path, ended
        self._file = path.open("wb", buffering=1 << 20)
        self._failure: OSError | None = None

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self._file.tell()

    def write(self, data: bytes) -> None:
        """Write; the taps' thread, which calls this, gets no error."""
        self._attempt(lambda: self._file.write(data))

    def flush(self) -> None:
        """Have the disk take what was written."""
        self._attempt(self._file.flush)

    def close(self) -> None:
        """Close it.

        Raises
        ------
        Trouble
            If not all of it could be written.
        """
        self._attempt(self._file.close)
        if self._failure is not None:
            with suppress(OSError):
                self._file.close()
            raise Trouble(
                f"{self._path}: {self._failure.strerror}; it has what was said before that"
            )

    def _attempt(self, do: Callable[[], object]) -> None:
        if self._failure is None:
            try:
                do()
            except OSError as error:
                self._failure = error
                self._ended.set()


def _addresses(host: str, port: int) -> list[tuple[str, int]]:
    """Return where a host is reached."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Trouble(f"no host is known as {host!r} ({error.strerror})") from None
    return list(dict.fromkeys((str(address[0]), port) for *_, address in found))


def parse_pair(text: str) -> tuple[int, tuple[str, int]]:
    """Read ``PORT:PORT`` or ``PORT:HOST:PORT``: where to listen, and where to forward to.

    Raises
    ------
    Trouble
        If it is neither.
    """
    listen, _, there = text.partition(":")
    host, _, port = there.rpartition(":")
    numbers = [int(p) for p in (listen, port) if p.isascii() and p.isdigit() and int(p) < 65536]
    if len(numbers) != 2 or numbers[1] == 0:
        raise Trouble(
            f"{text!r} says not where to listen and where to forward to: write PORT:PORT, "
            "as in 9999:8888, or PORT:HOST:PORT"
        )
    return numbers[0], (host.strip("[]") or "127.0.0.1", numbers[1])


# ---- the command


def _parser() -> argparse.ArgumentParser:
    class Formatter(argparse.RawDescriptionHelpFormatter):
        pass

    parser = argparse.ArgumentParser(
        prog="underhood",
        description="Capture, dissect and check what Jupyter says on the wire.",
        epilog="examples:\n"
        "  underhood run analysis.ipynb            execute it, and see what was said\n"
        "  underhood show analysis.pcapng          the messages as a table\n"
        "  underhood check analysis.pcapng         what was wrong with them\n"
        "  underhood tap 9999:8888                 listen in between a browser and a server\n\n"
        "underhood COMMAND --help has more.\n\n" + _CODES,
        formatter_class=Formatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], does: str, examples: str
    ) -> Any:
        sub = commands.add_parser(
            name,
            help=does,
            description=f"{does[0].upper()}{does[1:]}.",
            epilog=f"examples:\n{examples}",
            formatter_class=Formatter,
        )
        sub.set_defaults(run=run)
        return sub

    run = command(
        "run", _run, "execute a notebook, and write its capture and a report",
        "  underhood run analysis.ipynb\n"
        "  underhood run chapter.md --output-dir out    a MyST notebook (needs jupytext)\n"
        "  underhood run flaky.ipynb --allow-errors     go on after a cell that fails\n",
    )  # fmt: skip
    run.add_argument(
        "notebook", type=Path, metavar="NOTEBOOK", help="an .ipynb, or a text notebook"
    )
    run.add_argument(
        "--output-dir", type=Path, default=Path(), metavar="DIR",
        help="where NAME.pcapng and NAME.html go (default: here)",
    )  # fmt: skip
    run.add_argument("--kernel", metavar="NAME", help="the kernel to run it with")
    run.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="stop a cell that takes longer"
    )
    run.add_argument("--allow-errors", action="store_true", help="go on after a cell that fails")

    tap = command(
        "tap", _tap, "put a tap in front of a port until Ctrl+C",
        "  underhood tap 9999:8888                      then open http://127.0.0.1:9999\n"
        "  underhood tap 9999:8888 -o server.pcapng --client browser\n"
        "  underhood tap 9001:hub.example:8081 --client proxy --server hub\n",
    )  # fmt: skip
    tap.add_argument(
        "pair", nargs="+", metavar="PORT:PORT",
        help="where to listen on loopback, and where to forward to (or PORT:HOST:PORT)",
    )  # fmt: skip
    tap.add_argument(
        "-o", "--output", type=Path, default=Path("tap.pcapng"), metavar="FILE",
        help="the capture to write (default: tap.pcapng); an older one is replaced",
    )  # fmt: skip
    tap.add_argument("--client", default="client", metavar="NAME", help="what to call who connects")
    tap.add_argument("--server", default="server", metavar="NAME", help="what to call the target")
    tap.add_argument(
        "--channel", default="http", metavar="NAME",
        help="http (default), or a kernel's shell, iopub, stdin, control or heartbeat",
    )  # fmt: skip

    show = command(
        "show", _show, "show the messages of a capture",
        "  underhood show run.pcapng --filter 'channel=iopub label=status sender=kernel'\n"
        "  underhood show run.pcapng --filter 'protocol=jupyter label!=status|stream'\n"
        "  underhood show run.pcapng --filter 'label=\"GET /api/*\"'\n"
        "  underhood show run.pcapng --json | jq -r .label | sort | uniq -c\n"
        "  underhood show run.pcapng --bytes 12\n\n"
        f"fields of --filter:\n  {', '.join(_FIELDS)}\n\n"
        "All terms must hold. A value may be several with | between them, and * and ? in it\n"
        "stand for any characters, or one.\n",
    )  # fmt: skip
    show.add_argument("--json", action="store_true", help="one JSON object per message and line")
    show.add_argument(
        "--bytes", type=int, metavar="N", help="every byte of message N, with its meaning"
    )

    check = command(
        "check", _check, "name what is wrong with a conversation",
        "  underhood check run.pcapng\n"
        "  underhood check run.pcapng --json\n"
        "  underhood check lo.pcap --connection-file kernel-1234.json\n"
        "  underhood check hub.pcapng --filter 'sender=kernel*'    what concerns these messages\n\n"
        "Exits with 1 if there are findings.\n",
    )  # fmt: skip
    check.add_argument("--json", action="store_true", help="one JSON object per finding and line")

    convert = command(
        "convert", _convert, "write a capture in another form, chosen by the name of the output",
        "  underhood convert lo.pcap run.pcapng         packets of any program, in our form\n"
        "  underhood convert run.pcapng run.jsonl       one JSON object per message\n"
        "  underhood convert run.pcapng run.svg --filter protocol=jupyter\n"
        "  underhood convert run.pcapng run.html        a page to open in a browser\n",
    )  # fmt: skip
    for sub in (show, check, convert):
        sub.add_argument("file", type=Path, metavar="FILE", help="a pcapng or pcap file")
        sub.add_argument(
            "--connection-file", type=Path, metavar="JSON",
            help="of the kernel: names its ports, and verifies signatures",
        )  # fmt: skip
    convert.add_argument(
        "output", type=Path, metavar="OUTPUT", help=f"ends in {', '.join(_WRITERS)}"
    )
    for sub in (show, check, convert):
        sub.add_argument(
            "--filter", action="append", default=[], metavar="EXPR",
            help="choose messages, as in 'channel=iopub label=status'",
        )  # fmt: skip
    for sub in (run, convert):
        sub.add_argument(
            "--keys", action="store_true",
            help="keep the keys that verify signatures in the pcapng (whoever has the key of a "
            "running kernel can run code in it)",
        )  # fmt: skip
    parser.set_defaults(run=None)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code.

    Parameters
    ----------
    argv
        The arguments after the command's name; those of this process by default.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what a terminal's encoding lacks becomes "?"
            stream.reconfigure(errors="replace")
    parser = _parser()
    args = parser.parse_args(argv)
    if args.run is None:
        parser.print_help()
        return OK
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Who reads the output has seen enough; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED
    except Trouble as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except ValueError as error:
        from underhood.capture.pcapng import CaptureFileError

        if isinstance(error, CaptureFileError):
            return _fail(str(error))
        raise


def _fail(sentence: str) -> int:
    _say(f"underhood: {sentence}")
    return TROUBLE
