"""Binder: an environment from Binder's files alone, and chapters opened, run and saved in it.

What repo2docker would do is taken from its own Dockerfile, line by line; only the image below it,
and the packages of ``apt.txt``, are this machine's. JupyterLab then runs in that environment, and
Chromium opens chapters by the address that the launch button of the built page has.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from checkout import ROOT, missing
from nbconvert import HTMLExporter
from playwright.sync_api import Browser, Page, expect
from sphinx_external_toc.parsing import parse_toc_yaml

PAGES = list(parse_toc_yaml(ROOT / "_toc.yml"))
EXECUTED = [page for page in PAGES if "```{code-cell}" in (ROOT / f"{page}.md").read_text("utf-8")]
#: In each CI run; the first starts a hub with its proxy, two servers and a browser, and more.
HEAVIEST = ["book/meet/cloud", "book/meet/keystroke", "book/meet/kernel"]
CHAPTERS = [
    pytest.param(page, marks=[] if page in HEAVIEST else pytest.mark.nightly, id=page)
    for page in sorted(EXECUTED, key=lambda page: page not in HEAVIEST)
]

#: Downloaded, and executed where the course is not; pages of the appendix stay where they are.
ELSEWHERE = [
    pytest.param(page, marks=[] if page == HEAVIEST[-1] else pytest.mark.nightly, id=page)
    for page in EXECUTED
    if re.match(r"book/(meet|fundamentals|tooling|build)/", page)
]
#: The page that tells how, among other things.
SETUP = "book/appendix/setup.md"
#: An installer that is quick. Nothing else of the project needs it, so it is no requirement.
UV = "uv==0.13.9"


# ---- what repo2docker would do


DRY_RUN = """
import sys
from repo2docker.app import Repo2Docker
Repo2Docker(
    repo=sys.argv[1], dry_run=True, platform="linux/amd64", user_id=1000, user_name="jovyan",
    log_level="ERROR",
).build()
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean clone of this checkout, with what is not committed yet."""
    folder = tmp_path_factory.mktemp("binder") / "course"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(listed, cwd=ROOT, text=True).split("\0")
    for name in names:
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "All of it"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def dockerfile(checkout: Path) -> list[str]:
    """The steps of the Dockerfile that repo2docker prints, without comments, each on a line."""
    printed = subprocess.check_output([sys.executable, "-c", DRY_RUN, checkout], text=True)
    text = re.sub(r"^#.*\n", "", printed, flags=re.MULTILINE).replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def step(dockerfile: list[str], words: str) -> int:
    """Return the number of the one step that has these words."""
    (found,) = [number for number, line in enumerate(dockerfile) if words in line]
    return found


def test_binder_would_use_our_files_in_this_order(dockerfile):
    assert dockerfile[0] == "FROM docker.io/library/buildpack-deps:24.04"
    order = [
        step(dockerfile, "environment-2epy-2d3-2e12"),  # runtime.txt: Python 3.12
        step(dockerfile, "--no-install-recommends fonts-dejavu-core"),  # apt.txt
        step(dockerfile, "COPY --chown=1000:1000 src/ "),  # “-e .” needs the folder
        step(dockerfile, 'pip install --no-cache-dir -r "requirements.txt"'),
        step(dockerfile, "pip install --no-cache-dir ."),  # which postBuild mends
        step(dockerfile, "RUN ./postBuild"),
    ]
    assert order == sorted(order)
    assert not (ROOT / "binder").exists(), "then repo2docker would not look at the other files"
    assert os.access(ROOT / "postBuild", os.X_OK)


def test_binder_would_install_every_package_of_apt_txt(dockerfile):
    line = dockerfile[step(dockerfile, "fonts-dejavu-core")]
    packages = re.findall(r"^[a-z][\w.+-]*$", (ROOT / "apt.txt").read_text(), re.MULTILINE)
    assert [p for p in packages if f" {p} " not in line] == []


def test_apt_txt_has_what_this_very_chromium_needs():
    import playwright

    driver = Path(playwright.__file__).parent / "driver/package/lib/coreBundle.js"
    found = re.search(
        r'"ubuntu24\.04-x64": \{.*?chromium: \[(.*?)\]', driver.read_text("utf-8"), re.DOTALL
    )
    assert found, "Playwright keeps its list elsewhere now"
    needed = set(re.findall(r'"([^"]+)"', found[1]))
    assert needed - set((ROOT / "apt.txt").read_text().split()) == set()


# ---- the environment, by those steps


class Place:
    """A folder, a home, an environment in it, as on Binder, and how programs are run there."""

    def __init__(self, course: Path, name: str) -> None:
        self.course = course
        self.home = course.parent / f"{name}-home"
        self.prefix = course.parent / f"{name}-environment"
        self.home.mkdir()
        kept = ("PIP_", "NPM_", "SSL_", "REQUESTS_", "NODE_EXTRA", "UNDERHOOD_", "LANG", "LC_")
        self.environment = {k: v for k, v in os.environ.items() if k.upper().startswith(kept)}
        self.environment["HOME"] = str(self.home)
        self.environment["PATH"] = f"{self.prefix / 'bin'}:{os.environ['PATH']}"

    def create(self) -> None:
        """Create the environment: with Python 3.12, as runtime.txt says, if it is there."""
        wanted = ["python3.12", "-m", "venv", str(self.prefix)]
        if not shutil.which(wanted[0]) or subprocess.call(wanted, stderr=subprocess.DEVNULL):
            self.run(sys.executable, "-m", "venv", self.prefix)

    def run(self, *command: str | Path) -> None:
        """Run a command in the place's folder; it must succeed."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.course,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def uv_install(place: Place) -> tuple[str | Path, ...]:
    """The command that installs, up to where the environment is named."""
    return place.home / "uv/bin/uv", "pip", "install", "--quiet", "--python"


@pytest.fixture(scope="module")
def place(checkout: Path) -> Place:
    """The environment that Binder would have, on this machine's system."""
    if not (shutil.which("node") and shutil.which("npm")):
        missing("there is no Node.js, which Binder's image has")
    place = Place(checkout, "binder")
    place.create()
    # repo2docker takes pip. All is pinned, so uv installs the same, with a tenth of the work, and
    # what pip says at the end is what counts.
    place.run("pip", "install", "--quiet", "--target", place.home / "uv", UV)
    text = (place.course / "requirements.txt").read_text()
    assert text.endswith("\n-e .\n")
    (place.home / "pins.txt").write_text(text.removesuffix("-e .\n"))
    place.run(*uv_install(place), place.prefix, "-r", place.home / "pins.txt")
    place.run("pip", "install", "--quiet", "--no-deps", ".")
    place.run("pip", "check")
    place.run("./postBuild")
    return place


@pytest.fixture(scope="module")
def jupyter(place: Place) -> Iterator[str]:
    """The address of Jupyter, started by the command at the end of the Dockerfile, with a token."""
    token = secrets.token_hex(16)
    command = ["jupyter", "notebook", "--ip=127.0.0.1", "--port=0", "--no-browser"]
    if os.geteuid() == 0:
        command.append("--allow-root")
    log = place.home / "jupyter.log"
    with log.open("wb") as written:
        server = subprocess.Popen(
            command,
            cwd=place.course,
            env={**place.environment, "JUPYTER_TOKEN": token},
            stdout=written,
            stderr=written,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 120
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield f"{found[0]}?token={token}"
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def lab(browser: Browser, jupyter: str) -> Iterator[Page]:
    """A page of somebody who has been let in, as BinderHub does."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(90_000)
    page.goto(jupyter)
    yield page
    page.close()


def address_of_the_button(build: Path, page: str) -> str:
    """Return where Binder would lead to, on the server that it has started."""
    soup = BeautifulSoup((build / f"html/{page}.html").read_text("utf-8"), "html.parser")
    (link,) = [a for a in soup.select("a[href]") if a.get_text(strip=True) == "Open it in Binder"]
    return parse_qs(urlsplit(str(link["href"])).query)["urlpath"][0]


def menu(page: Page, name: str, item: str) -> None:
    """Choose from JupyterLab's menus."""
    page.get_by_role("menuitem", name=name, exact=True).click()
    page.get_by_role("menuitem", name=item, exact=True).click()


def open_chapter(lab: Page, jupyter: str, path: str) -> None:
    """Open a chapter, and wait until its kernel is idle and all its cells are there."""
    cells = len(re.findall(r"^```\{code-cell\}", (ROOT / path[9:]).read_text("utf-8"), re.M))
    lab.goto(f"{jupyter.partition('?')[0]}{path}?reset")
    lab.wait_for_function(
        """cells => document.querySelector('#jp-main-statusbar')?.innerText.includes('| Idle')
        && document.querySelectorAll('.jp-Notebook .jp-CodeCell').length === cells""",
        arg=cells,
    )


#: Whether all has run: a cell that is folded shows no number, so the kernel must rest, too.
RUN = """() => {
    const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputArea-prompt')]
        .map(prompt => prompt.textContent);
    const idle = document.querySelector('#jp-main-statusbar').innerText.includes('| Idle');
    const rests = idle && prompts.every(prompt => /\\d/.test(prompt));
    window.restsSince = rests ? window.restsSince ?? performance.now() : null;
    return rests && performance.now() - window.restsSince > 2000
        || document.querySelector('.jp-Notebook [data-mime-type$="vnd.jupyter.error"]') !== null;
}"""

SEEN = """() => ({
    errors: [...document.querySelectorAll('.jp-Notebook [data-mime-type$="vnd.jupyter.error"]')]
        .map(e => e.textContent),
    pictures: document.querySelectorAll('.jp-Notebook [data-underhood] svg').length,
    ended: document.querySelectorAll('.jp-Notebook [data-uth-ended]').length,
    closed: [...document.querySelectorAll('.jp-Notebook details[data-uth-solution]')]
        .filter(e => !e.open).length,
    shown: [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')]
        .filter(c => c.offsetParent).length,
    unglued: [...document.querySelectorAll('.jp-Notebook .jp-MarkdownCell span:not([class])')]
        .map(e => e.textContent).filter(t => t === '…' || /^[a-z]+_[a-z_]+$/.test(t)),
})"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", CHAPTERS)
def test_the_launch_button_leads_to_a_notebook_that_runs_and_saves_cleanly(
    build, lab, jupyter, place, page
):
    path = address_of_the_button(build, page)
    open_chapter(lab, jupyter, path)
    menu(lab, "Run", "Run All Cells")
    lab.wait_for_function(RUN, timeout=400_000)
    seen: dict[str, Any] = lab.evaluate(SEEN)
    assert seen["errors"] == []
    assert seen["pictures"] >= 1
    assert seen["unglued"] == []
    source = (place.course / f"{page}.md").read_text("utf-8")
    # Whoever goes on from here is told that what exercises need has ended.
    assert seen["ended"] == source.count("\n## Your turn\n")
    # Solutions were run like all else, and are closed until somebody asks for them.
    solutions = re.findall(r"\{solution-start\}.*?\{solution-end\}", source, re.DOTALL)
    cells = source.count("```{code-cell}")
    assert seen["closed"] == len(solutions)
    assert seen["shown"] == cells - sum(text.count("```{code-cell}") for text in solutions)

    menu(lab, "Edit", "Clear Outputs of All Cells")
    lab.keyboard.press("Control+s")
    lab.wait_for_function("() => !document.querySelector('.jp-mod-dirty')")
    status = ["git", "status", "--porcelain"]
    assert subprocess.check_output(status, cwd=place.course, text=True) == ""


def test_a_solution_opens_when_its_title_is_clicked_and_closes_again(lab, jupyter):
    open_chapter(lab, jupyter, "lab/tree/book/meet/kernel.md")
    closed = lab.locator(".jp-Notebook .jp-CodeCell[data-uth=closed]")
    solutions = lab.locator(".jp-Notebook details[data-uth-solution]")
    text = (ROOT / "book/meet/kernel.md").read_text("utf-8")
    expect(solutions).to_have_count(text.count("{solution-start}"))
    before = closed.count()
    first = text.partition("{solution-start}")[2].partition("{solution-end}")[0]
    solutions.first.locator("summary").click()
    expect(closed).to_have_count(before - first.count("```{code-cell}"))
    solutions.first.locator("summary").click()
    expect(closed).to_have_count(before)


def test_the_page_on_setting_up_states_the_sizes_that_were_installed(place):
    text = (place.course / SETUP).read_text("utf-8")
    found = re.search(
        r"about ([\d.]+) GB of Python packages .*?, (\d+) MB from npm", text, re.DOTALL
    )
    said = float(found[1]) * 1000, float(found[2])
    for megabytes, folder in zip(said, (place.prefix, place.course / "node_modules"), strict=True):
        output = subprocess.check_output(["du", "-sm", folder], text=True)
        assert int(output.split()[0]) == pytest.approx(megabytes, rel=0.2), folder.name


# ---- a chapter that was downloaded, alone


@pytest.mark.parametrize("page", EXECUTED)
def test_a_downloaded_notebook_shows_its_pictures_in_nbconverts_page(build, page):
    notebook = nbformat.read(build / f"html/_sources/{page}.ipynb", as_version=4)
    text, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook)
    soup = BeautifulSoup(text, "html.parser")
    drawn = BeautifulSoup((build / f"html/{page}.html").read_text("utf-8"), "html.parser")
    names = [figure["data-underhood"] for figure in drawn.select("figure[data-underhood]")]
    assert [figure["data-underhood"] for figure in soup.select("figure[data-underhood]")] == names
    for figure in soup.select('figure[data-underhood="sequence"]'):
        assert figure.select("svg [data-message]")


@pytest.fixture(scope="module")
def elsewhere(build: Path, checkout: Path, place: Place) -> Place:
    """A place without the course, made by the command that each downloaded notebook names."""
    folder = checkout.parent / "downloads"
    folder.mkdir()
    there = Place(folder, "reader")
    there.create()
    commands = set()
    for page in EXECUTED:
        notebook = nbformat.read(build / f"html/_sources/{page}.ipynb", as_version=4)
        prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        commands |= set(re.findall(r'pip install "(.+) @ git\+(.+)"', prose))
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    ((package, address),) = commands
    assert address == config["repository"]["url"]
    assert f'pip install "{package} @ git+{address}"' in (ROOT / SETUP).read_text("utf-8")
    # The very commit that is tested, with the releases that the course shows.
    from_here = (f"{package} @ git+{checkout.as_uri()}", "-c", place.home / "pins.txt")
    place.run(*uv_install(place), there.prefix, *from_here)
    # As `npm install --global` would, and `playwright install`.
    programs = place.course / "node_modules/.bin"
    there.environment["PATH"] += f"{os.pathsep}{programs}"
    if (browsers := place.home / ".cache/ms-playwright").is_dir():
        there.environment["PLAYWRIGHT_BROWSERS_PATH"] = str(browsers)
    return there


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", ELSEWHERE)
def test_a_downloaded_notebook_executes_elsewhere(build, elsewhere, page):
    folder = elsewhere.course / page
    folder.mkdir(parents=True)
    source = shutil.copy(build / f"html/_sources/{page}.ipynb", folder)
    done = folder / "done.ipynb"
    convert = ("jupyter", "nbconvert", "--to=notebook", "--execute", f"--output={done}")
    elsewhere.run(*convert, "--ExecutePreprocessor.timeout=300", source)
    for cell in nbformat.read(done, as_version=4).cells:
        for output in cell.get("outputs", ()):
            if "raises-exception" not in cell.metadata.get("tags", []):
                assert output.output_type != "error"
            assert "this replays the recording" not in str(output)


def test_the_library_that_runs_is_the_one_in_the_folder(place):
    where = [place.prefix / "bin/python", "-c", "import underhood; print(underhood.__file__)"]
    found = subprocess.check_output(where, cwd=place.home, env=place.environment, text=True)
    assert Path(found.strip()) == place.course / "underhood/__init__.py"


def test_nobody_is_asked_and_nothing_is_fetched_when_jupyterlab_opens(place):
    text = (place.prefix / "etc/jupyter/labconfig/default_setting_overrides.json").read_text()
    news = json.loads(text)["@jupyterlab/apputils-extension:notification"]
    assert news == {"fetchNews": "false", "checkForUpdates": False}
