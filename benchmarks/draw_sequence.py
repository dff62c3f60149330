"""How fast sequence diagrams are drawn, beside PlantUML and Mermaid on the same messages.

All three run as whole processes, in turn, from a file to an SVG file: ours from a capture, which it
has to dissect first; PlantUML (from Debian) and Mermaid (its command from npm, with the system's
Chromium) from their own languages, written beforehand. What a peer cannot draw has no row: its
picture must hold as many labels as there are messages, and no error.

Then, in this process: time and size at 1,000 messages beside their limits, and at 10,000 beside ten
times those at 1,000, which is what growing linearly means (by the time of the processor, which
other work on the machine does not lengthen).

Run it: ``python -m benchmarks draw_sequence``.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from underhood.capture.store import Capture
from underhood.trace import Trace

ROOT: Final = Path(__file__).resolve().parent.parent
HOME: Final = ROOT / "_build" / "benchmarks"
MERMAID: Final = ("@mermaid-js/mermaid-cli@12.2.0", "puppeteer@25")
SIZES: Final = (14, 100, 1000, 5000)
ROUNDS: Final = 3
PATIENCE: Final = 300  # seconds that one drawing may take

OURS: Final = """
import sys
from pathlib import Path
from underhood import load
picture = load(sys.argv[1]).trace().protocol("jupyter").sequence_diagram()
Path(sys.argv[2]).write_text(picture.svg)
"""


def conversation(count: int) -> Capture:
    """Return a capture of cells run through a server: ``count`` messages after the handshakes."""
    sys.path.insert(0, str(ROOT / "tests" / "draw"))
    from conversations import execute

    whole: Capture = execute(cells=-(-count // 14), relayed=True, name=f"{count} messages")
    last = whole.trace().protocol("jupyter")[count - 1].time_ns
    connections = tuple(
        type(c)(
            c.link, c.id, c.client_address, c.server_address, c.opened,
            tuple(chunk for chunk in c.chunks if chunk.time_ns <= last),
        )
        for c in whole.connections
    )  # fmt: skip
    return Capture(connections, whole.keys, whole.notes, whole.name)


# ---- the peers


def says(trace: Trace) -> list[tuple[str, str, str]]:
    """Return sender, receiver and text of every message."""
    return [
        (m.sender, m.receiver, f"{m.label}: {m.detail}" if m.detail else m.label) for m in trace
    ]


def plantuml_text(trace: Trace) -> str:
    """Write the messages in PlantUML's language."""
    parties = [f"participant {party}" for party in trace.parties]
    arrows = [f"{a} -> {b} : {text}" for a, b, text in says(trace)]
    return "\n".join(["@startuml", *parties, *arrows, "@enduml", ""])


def mermaid_text(trace: Trace) -> str:
    """Write the messages in Mermaid's language."""
    parties = [f"    participant {party}" for party in trace.parties]
    # A colon would begin the text a second time.
    arrows = [f"    {a}->>{b}: {text.replace(': ', ' ')}" for a, b, text in says(trace)]
    return "\n".join(["sequenceDiagram", *parties, *arrows, ""])


def set_up_mermaid() -> Path | None:
    """Return Mermaid's command, installed into the build folder where it is missing."""
    command = HOME / "node_modules" / ".bin" / "mmdc"
    if not command.exists() and shutil.which("npm"):
        HOME.mkdir(parents=True, exist_ok=True)
        print("Installing Mermaid from npm …", file=sys.stderr)
        install = ["npm", "install", "--prefix", HOME, "--no-audit", "--no-fund", *MERMAID]
        quiet = {"PUPPETEER_SKIP_DOWNLOAD": "1", "npm_config_loglevel": "error"}
        subprocess.run(install, env={**os.environ, **quiet}, capture_output=True, check=False)
    return command if command.exists() else None


def peers(folder: Path) -> dict[str, Callable[[Path, Path], list[str]]]:
    """Return, for each peer at hand, what makes its command from a source and a target."""
    found: dict[str, Callable[[Path, Path], list[str]]] = {}
    if plantuml := shutil.which("plantuml"):
        found["PlantUML"] = lambda source, target: [
            plantuml, "-tsvg", "-o", str(target.parent), str(source),
        ]  # fmt: skip
    else:
        print("PlantUML is not here (Debian has it: plantuml); no row for it.", file=sys.stderr)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    mermaid = set_up_mermaid() if chromium else None
    if mermaid:
        browser, limits = folder / "browser.json", folder / "mermaid.json"
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser.write_text(json.dumps({"executablePath": chromium, "args": flags}))
        # By default Mermaid gives up beyond 50,000 characters and draws that it has.
        limits.write_text(json.dumps({"maxTextSize": 10**8, "maxEdges": 10**6}))
        found["Mermaid"] = lambda source, target: [
            str(mermaid), "-q", "-i", str(source), "-o", str(target),
            "-p", str(browser), "-c", str(limits),
        ]  # fmt: skip
    else:
        print("Mermaid or Chromium is not here; no row for it.", file=sys.stderr)
    return found


def is_drawn(svg: str, trace: Trace) -> bool:
    """Tell whether a drawing has a label for each message, and no error."""
    if re.search(r"Syntax error|Maximum text size|error-icon\b[^{]*<path", svg):
        return False
    label = trace[0].label
    wanted = sum(m.label == label for m in trace)
    return len(re.findall(rf">\s*{label}\s*<", svg)) >= wanted


# ---- measuring


def seconds(command: list[str]) -> float:
    """Run a command and return how long it took; infinite if it failed."""
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return float("inf")
    return time.perf_counter() - begin if done.returncode == 0 else float("inf")


def whole_processes(folder: Path) -> list[dict[str, Any]]:
    """Let ours and the peers draw the same messages, in turn."""
    rows = []
    found = peers(folder)
    for count in SIZES:
        capture = conversation(count)
        trace = capture.trace().protocol("jupyter")
        assert len(trace) == count
        file, ours = folder / f"{count}.pcapng", folder / f"ours-{count}.svg"
        capture.save(file)
        sources = {"PlantUML": folder / f"{count}.puml", "Mermaid": folder / f"{count}.mmd"}
        sources["PlantUML"].write_text(plantuml_text(trace))
        sources["Mermaid"].write_text(mermaid_text(trace))
        took: dict[str, list[float]] = {name: [] for name in ("ours", *found)}
        drawn: dict[str, bool] = dict.fromkeys(found, True)
        for _ in range(ROUNDS):
            took["ours"].append(seconds([sys.executable, "-c", OURS, str(file), str(ours)]))
            for name, command in found.items():
                if not drawn[name]:
                    continue
                target = sources[name].with_suffix(".svg")
                took[name].append(seconds(command(sources[name], target)))
                svg = target.read_text() if target.exists() else ""
                drawn[name] = is_drawn(svg, trace)
                target.unlink(missing_ok=True)
        assert is_drawn(ours.read_text(), trace)
        mine = statistics.median(took["ours"])
        for name in found:
            theirs = statistics.median(took[name])
            if drawn[name] and theirs < float("inf"):
                rows.append(_row(f"{count:,} messages to SVG, {name}", mine, theirs, "s"))
            else:
                print(f"{name} cannot draw {count:,} messages; no row for it.", file=sys.stderr)
    return rows


def in_process() -> list[dict[str, Any]]:
    """Measure time and size in this process."""
    seconds_of: dict[int, float] = {}
    processor: dict[int, float] = {}
    kilobytes: dict[int, float] = {}
    for count in (14, 1000, 10_000):
        times = []
        worked = []
        for _ in range(5 if count < 10_000 else 3):
            trace = conversation(count).trace().protocol("jupyter")  # nothing decoded yet
            begin, work = time.perf_counter(), time.process_time()
            svg = trace.sequence_diagram().svg
            worked.append(time.process_time() - work)
            times.append(time.perf_counter() - begin)
        processor[count] = min(worked)
        seconds_of[count] = min(times)
        kilobytes[count] = len(gzip.compress(svg.encode())) / 1e3
    output = conversation(14).trace().protocol("jupyter").sequence_diagram().html
    whole = len(gzip.compress(output.encode())) / 1e3
    return [
        _row("1,000 messages in process, beside the limit", seconds_of[1000], 0.15, "s"),
        _row("10,000 messages, beside 10 × 1,000", processor[10_000], 10 * processor[1000], "s"),
        _row("size of 1,000 messages, beside the limit", kilobytes[1000], 50, "kB"),
        _row("size of 10,000, beside 10 × 1,000", kilobytes[10_000], 10 * kilobytes[1000], "kB"),
        _row("output of 14 messages with all of them in it, beside the limit", whole, 40, "kB"),
    ]


def _row(name: str, ours: float, peer: float, unit: str) -> dict[str, Any]:
    return {"name": name, "ours": ours, "peer": peer, "ratio": ours / peer, "unit": unit}


def run() -> list[dict[str, Any]]:
    """Measure, and return the rows; ratios below 1 are better."""
    with tempfile.TemporaryDirectory() as folder:
        return [*whole_processes(Path(folder)), *in_process()]


if __name__ == "__main__":
    for row in run():
        print(f"{row['name']:65} {row['ours']:8.3f} {row['peer']:8.3f} {row['ratio']:6.2f}")
