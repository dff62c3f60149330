"""Building the book: what happens when a chapter fails, when the build is killed, and when not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest
import yaml
from checkout import ROOT, missing
from contents import texts_in

from underhood.capture.store import Capture

JUPYTER_BOOK = str(Path(sys.executable).parent / "jupyter-book")
MARK = "UNDERHOOD_TEST_BUILD"

HEADER = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
    format_version: 0.13
    jupytext_version: 1.19.6
kernelspec:
  display_name: Python 3 (ipykernel)
  language: python
  name: {kernel}
---

# A chapter

"""

PLAIN = """---
myst:
  html_meta:
    description: A page of a book that is made for a test, without a cell in it.
---

# A page without cells
"""


def chapter(*cells: str, kernel: str = "python3") -> str:
    """Return the text of a chapter with these cells."""
    return HEADER.format(kernel=kernel) + "\n\n".join(
        f"```{{code-cell}} ipython3\n{cell}\n```\n" for cell in cells
    )


class Book:
    """A small book of its own, built with the extensions and settings of this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        (folder / "book").mkdir(parents=True)
        for part in ("_ext", "_lab", "_static", "_templates"):
            (folder / "book" / part).symlink_to(ROOT / "book" / part)
        shutil.copy(ROOT / "_config.yml", folder)
        for bibliography in (ROOT / "book").rglob("*.bib"):
            place = folder / bibliography.relative_to(ROOT)
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(bibliography)
        (folder / "requirements.txt").write_text("# none\n")

    def write(self, **chapters: str) -> None:
        """Write chapters and the table of contents."""
        for name, text in chapters.items():
            (self.folder / "book" / f"{name}.md").write_text(text)
        first, *others = [f"book/{name}" for name in chapters]
        if not others:  # the theme cannot write the contents of a book of one page
            others = ["book/plain"]
            (self.folder / "book/plain.md").write_text(PLAIN)
        contents = {"format": "jb-book", "root": first}
        contents["chapters"] = [{"file": name} for name in others]
        (self.folder / "_toc.yml").write_text(json.dumps(contents))

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        """The environment of a build: all its processes can be told by a mark in it."""
        return {**os.environ, MARK: self.mark, **extra}

    def build(
        self, *options: str, prefix: Sequence[str] = (), **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """Build the book, to its end."""
        return subprocess.run(
            [*prefix, JUPYTER_BOOK, "build", ".", *(options or ("-W", "-n", "--keep-going"))],
            cwd=self.folder,
            env=self.environment(extra),
            capture_output=True,
            text=True,
        )

    def start(self) -> subprocess.Popen[bytes]:
        """Begin to build the book."""
        return subprocess.Popen(
            [JUPYTER_BOOK, "build", "."],
            cwd=self.folder,
            env=self.environment({}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # Whoever runs the tests in the background of a shell has them ignore interrupts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def processes(self) -> list[psutil.Process]:
        """Every living process that carries the mark of this book's builds."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if (
                    process.environ().get(MARK) == self.mark
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
        return found


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    book = Book(tmp_path / "a book, with blanks")
    yield book
    for process in book.processes():
        with contextlib.suppress(psutil.Error):
            process.kill()


def assert_built(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stdout + result.stderr


def within(seconds: float, true: Callable[[], bool]) -> bool:
    """Tell whether something becomes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.1)
    return true()


def test_a_book_in_a_folder_with_blanks_is_built_and_its_second_build_executes_nothing(book):
    book.write(one=chapter("6 * 7"), two=chapter("6 * 8"))
    first = book.build()
    assert_built(first)
    assert "[2/2]" in first.stdout
    assert ">42<" in (book.folder / "_build/html/book/one.html").read_text().replace("\n", "<")
    second = book.build()
    assert second.returncode == 0
    assert "all 2 chapters have been executed before" in second.stdout


def test_a_changed_chapter_alone_is_executed_again_and_its_page_shows_the_new_result(book):
    book.write(one=chapter("6 * 7"), two=chapter("6 * 8"))
    book.build()
    book.write(one=chapter("6 * 7"), two=chapter("6 * 9"))
    again = book.build()
    assert "executing 1 of 2 chapters" in again.stdout
    assert "54" in (book.folder / "_build/html/book/two.html").read_text()


def test_a_page_that_is_shown_while_somebody_writes_it_is_loaded_again(book):
    book.write(one=chapter("6 * 7"), two=chapter("6 * 8"))
    assert_built(book.build())
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    page = f"http://127.0.0.1:{port}/book/two.html"
    server = subprocess.Popen(
        [sys.executable, ROOT / ".ci/serve.py", str(port)],
        cwd=book.folder,
        env=book.environment({}),
    )

    def shown(words: str) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(page, timeout=60) as answer:
            return words in answer.read().decode()
        return False

    try:
        assert within(30, lambda: shown(">48\n")), "it was not served"
        assert shown("livereload.js"), "nobody tells the browser"
        book.write(one=chapter("6 * 7"), two=chapter("6 * 9"))
        assert within(120, lambda: shown(">54\n")), "it was not built again"
    finally:
        server.terminate()
        server.wait()


def test_a_port_that_is_taken_gives_way_to_the_next_that_is_free(tmp_path):
    (tmp_path / "_build/html").mkdir(parents=True)
    (tmp_path / "_build/html/index.html").write_text("here it is")
    serve = [sys.executable, ROOT / ".ci/serve.py"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = subprocess.Popen(
            [*serve, str(port)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert server.stdout
            said = ""
            while "Serving on" not in said:
                line = server.stdout.readline()
                assert line, said
                said += line
            assert f"Port {port} is in use" in said
            (address,) = re.findall(r"Serving on (http://127\.0\.0\.1:\d+)", said)

            def shown() -> bool:
                with contextlib.suppress(OSError), urllib.request.urlopen(address) as answer:
                    return b"here it is" in answer.read()
                return False

            assert within(30, shown)
        finally:
            server.terminate()
            server.communicate()


@pytest.mark.parametrize("port", ["80", "http", "65536"])
def test_what_is_no_port_is_named(port):
    serve = [sys.executable, ROOT / ".ci/serve.py", port]
    done = subprocess.run(serve, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"'{port}' is no port that this may use" in done.stderr


def test_changed_pins_make_every_chapter_run_again(book):
    book.write(one=chapter("import time; time.time_ns()"))
    book.build()
    page = book.folder / "_build/html/book/one.html"
    before = page.read_text()
    (book.folder / "requirements.txt").write_text("# others\n")
    again = book.build()
    assert "executing 1 of 1 chapters" in again.stdout
    assert page.read_text() != before, "the page still shows the result of the run before"


def test_lost_captures_make_their_chapter_run_again(book):
    book.write(one=chapter("6 * 7"), two=chapter("6 * 8"))
    book.build()
    shutil.rmtree(book.folder / "_build/captures/book/two")
    assert "executing 1 of 2 chapters" in book.build().stdout


def test_a_chapter_finds_the_folder_for_its_captures_and_nobodys_name(book):
    cell = "import os, pathlib\npathlib.Path(os.environ['UNDERHOOD_KEEP'], 'it.pcapng').touch()"
    book.write(one=chapter(cell, "os.environ['USER']"))
    assert_built(book.build())
    assert (book.folder / "_build/captures/book/one/it.pcapng").exists()
    assert "jovyan" in (book.folder / "_build/html/book/one.html").read_text()


def test_a_warning_fails_the_build_and_the_next_one_until_it_is_mended(book):
    link = "\nSee {doc}`nowhere`.\n"
    book.write(one=chapter("6 * 7") + link)
    for _ in range(2):
        result = book.build()
        assert result.returncode == 1
        assert "unknown document: 'nowhere'" in result.stderr
    assert "all 1 chapters have been executed before" in result.stdout
    book.write(one=chapter("6 * 7"))
    assert_built(book.build())


def test_a_failing_cell_fails_the_build_which_names_chapter_line_cell_and_traceback(book):
    book.write(fine=chapter("1 + 1"), broken=chapter("x = 1", "def f():\n    return x / 0", "f()"))
    result = book.build()
    assert result.returncode == 1
    said = result.stderr[-3000:]
    line = (book.folder / "book/broken.md").read_text().splitlines().index("f()") + 1
    assert f"broken.md, line {line}: this cell failed" in said
    assert "    f()\n" in said
    assert "ZeroDivisionError: division by zero" in said
    assert "return x / 0" in said, "the traceback does not reach to the line that failed"
    assert said.rstrip().endswith("The book was not built: book/broken failed.")
    assert "[2/2]" in result.stdout, "the other chapter did not get its turn"


def test_a_cell_that_takes_too_long_fails_the_build(book):
    config = book.folder / "_config.yml"
    config.write_text(config.read_text().replace("timeout: 300", "timeout: 2"))
    book.write(slow=chapter("import time; time.sleep(60)"))
    result = book.build()
    assert result.returncode == 1
    assert "slow.md, line" in result.stderr
    assert "time.sleep(60)" in result.stderr
    assert within(20, lambda: not book.processes())


def test_a_kernel_that_dies_before_its_first_reply_gets_one_more_try(book, tmp_path):
    spec = tmp_path / "jupyter/kernels/frail"
    spec.mkdir(parents=True)
    code = (
        "import os, pathlib, sys\n"
        f"flag = pathlib.Path({str(tmp_path / 'died-before')!r})\n"
        "if not flag.exists(): flag.touch(); sys.exit('I am not well')\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'ipykernel_launcher', *sys.argv[1:]])"
    )
    argv = [sys.executable, "-c", code, "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "Frail", "language": "python"})
    )
    book.write(one=chapter("6 * 7", kernel="frail"))
    result = book.build(JUPYTER_PATH=str(tmp_path / "jupyter"))
    assert_built(result)
    assert "one: its kernel died before its first reply" in result.stdout
    (tmp_path / "died-before").unlink()
    shutil.rmtree(book.folder / "_build")
    code = argv[2].replace("flag.touch(); ", "")
    (spec / "kernel.json").write_text(
        json.dumps({"argv": [*argv[:2], code, *argv[3:]], "display_name": "x", "language": "x"})
    )
    result = book.build(JUPYTER_PATH=str(tmp_path / "jupyter"))
    assert result.returncode == 1
    assert "no kernel could be started, twice" in result.stderr
    assert "I am not well" in result.stderr


# A chapter with everything that can be left behind: a kernel of its own, a busy one, a child in a
# session of its own, and a grandchild whose parent is gone.
CROWD = r"""
import pathlib
import subprocess
import sys

from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(stderr=subprocess.DEVNULL)
client.execute("while True: pass")
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
start_another = (
    "import subprocess, sys\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
    " start_new_session=True)"
)
subprocess.run([sys.executable, "-c", start_another])
pathlib.Path("crowded").touch()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes by their environment")
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name
)
def test_a_build_that_is_ended_while_chapters_run_leaves_no_process(book, how):
    book.write(one=chapter(CROWD, "import time; time.sleep(600)"), two=chapter("1"))
    build = book.start()
    assert within(60, (book.folder / "book/crowded").exists)
    assert len(book.processes()) >= 6
    build.send_signal(how)
    assert within(20, lambda: not book.processes()), book.processes()
    build.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes by their environment")
@pytest.mark.parametrize("after", [1.6, 2.0, 2.4, 2.9, 3.5])
def test_a_build_that_is_killed_at_any_moment_leaves_no_process(book, after):
    book.write(**{f"c{n}": chapter(CROWD.replace("crowded", f"crowded{n}")) for n in range(3)})
    build = book.start()
    time.sleep(after)
    build.kill()
    build.wait()
    assert within(20, lambda: not book.processes()), book.processes()


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes by their environment")
def test_what_a_chapter_forgets_to_end_is_ended_when_the_chapter_is_done(book):
    book.write(one=chapter(CROWD, "manager.shutdown_kernel(now=True)"))
    assert_built(book.build())
    assert not book.processes()


# ---------------------------------------------------------------------- on somebody's machine

# What speaks most of where it runs: tracebacks, help, a debugger; servers and their pages.
TALKATIVE = """
import asyncio
from subprocess import DEVNULL
from jupyter_client.manager import start_new_async_kernel
from underhood import record

async with record("talkative") as capture:
    manager, client = await start_new_async_kernel(stderr=DEVNULL)
    for seq, command in enumerate(("initialize", "attach", "configurationDone"), 1):
        content = {"type": "request", "seq": seq, "command": command}
        content |= {"arguments": {"adapterID": "python"}}
        client.control_channel.send(client.session.msg("debug_request", content))
    while "process" not in [m.detail for m in capture.trace().types("debug_event")]:
        await asyncio.sleep(0.05)
    client.execute("import json, ipykernel, underhood; ipykernel.__file__, underhood.__file__")
    client.inspect("json.loads")
    client.execute("get_ipython().ipython_dir, json.loads('{')")
    while not capture.trace().types("error"):
        await asyncio.sleep(0.05)
    client.stop_channels()
    await manager.shutdown_kernel()
"""

FRONT_END = """
from underhood import record
from underhood.stage import jupyterlab

async with record("front-end") as capture, jupyterlab() as lab:
    await lab.open("demo.ipynb")
    await lab.type("import json; json.loads('{')")
    await lab.run()
    await lab.save()
    picture = await lab.screenshot()
"""

DRAW = "capture.trace().sequence_diagram()"

FAIL = "from underhood.stage import replay; replay.decode({'$': 'nothing'})"


def test_a_book_tells_nothing_of_the_machine_that_built_it(tmp_path, chromium):
    home = tmp_path / "Quetzalcoatl"
    (home / "tmp").mkdir(parents=True)
    book = Book(home / "courses of Mictlantecuhtli")
    failing = chapter(FAIL).replace("ipython3\n", "ipython3\n:tags: [raises-exception]\n\n")
    book.write(
        talkative=chapter(TALKATIVE, DRAW),
        front=chapter(FRONT_END, "picture", DRAW),
        failing=failing,
    )
    names = dict.fromkeys(("USER", "LOGNAME", "USERNAME"), "xochipilli")
    # A host name of its own, where the system lets us.
    renamed = ["unshare", "--uts", "sh", "-c", 'hostname tenochtitlan && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*renamed, "true"], check=False).returncode:
        renamed = []
    result = book.build(
        prefix=renamed,
        HOME=str(home),
        TMPDIR=str(home / "tmp"),
        PLAYWRIGHT_BROWSERS_PATH=str(chromium),
        **names,
    )
    assert_built(result)

    files = sorted((book.folder / "_build/captures").rglob("*.pcapng"))
    assert [file.stem for file in files] == ["front-end", "talkative"]
    told = {str(file): file.read_bytes() for file in files}
    for file in files:
        told |= {f"{file}, {n}": text for n, text in enumerate(texts_in(Capture.load(file)))}
    pages = sorted((book.folder / "_build/html").rglob("*.html"))
    told |= {str(page): page.read_bytes() for page in pages}
    # It looks where they do speak: of the environment, of Python below it, of the server's folder.
    everything = b"\n".join(told.values())
    for spoken in (b"/env/lib/python3", b"/python/lib/python3", b"site-packages/underhood/stage"):
        assert spoken in everything
    assert b'"serverRoot": "~/notebooks"' in everything
    secrets = {
        *("Quetzalcoatl", "Mictlantecuhtli", "xochipilli", "tenochtitlan"),
        *(str(ROOT), sys.prefix, sys.base_prefix, str(Path.home() / ".")),
    }
    if len(os.uname().nodename) > 5:  # a shorter one is found by chance
        secrets.add(os.uname().nodename)
    found = {
        (secret, place)
        for secret in secrets
        for place, text in told.items()
        if secret.encode() in text
    }
    assert not found


@pytest.fixture
def chromium() -> Path:
    """Where Playwright has its own browsers; the test is left out where there is none at all."""
    own = Path.home() / ".cache" / "ms-playwright"
    if not (shutil.which("chromium") or list(own.glob("chromium-*"))):
        missing("there is no Chromium")
    return own


# ---------------------------------------------------------------------- without the actors


def test_without_chromium_and_node_the_book_is_built_and_each_page_says_what_it_replays(
    book, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(ROOT / "book" / "recordings")
    from renew import scenes_of

    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [contents["root"], *(c["file"] for p in contents["parts"] for c in p["chapters"])]
    pages = {name: scenes_of(ROOT / f"{name}.md") for name in listed}
    acting = {name: scenes for name, scenes in pages.items() if scenes}
    assert len(acting) >= 3, "which chapters put a browser or a hub on the stage?"

    ignored = shutil.ignore_patterns("_*", ".*", "*.bib")
    shutil.copytree(ROOT / "book", book.folder / "book", ignore=ignored, dirs_exist_ok=True)
    first, *others = acting
    contents = {"format": "jb-book", "root": first, "chapters": [{"file": n} for n in others]}
    (book.folder / "_toc.yml").write_text(json.dumps(contents))
    environment = {"PATH": str(tmp_path), "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path)}
    # Links to the pages that are left out lead nowhere: so warnings are none of this test's matter.
    assert_built(book.build("-n", UNDERHOOD_REQUIRE_LIVE="", **environment))

    for name, scenes in acting.items():
        html = (book.folder / f"_build/html/{name}.html").read_text()
        notices = re.findall(r'data-underhood="replay".*?</div>', html, re.DOTALL)
        for scene in set(scenes):
            (said,) = [text for text in notices if f"the recording &#x27;{scene}&#x27;" in text]
            assert re.search(r"made on \d{4}-\d\d-\d\d with .*Python \d.* Chromium \d", said)
        assert len(notices) == len(set(scenes))
