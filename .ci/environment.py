"""Set up what the Makefile's targets need, say what is being done, and be quick the second time.

Usage: ``python3 .ci/environment.py book``, or ``test``, or ``pins``.

``book``  creates ``.venv`` and installs ``requirements.txt`` into it.
``test``  does that, and sees to the programs that only the tests need: Chromium, Node with the
          packages of ``package-lock.json``, tshark.
``pins``  writes ``requirements.txt`` anew from what is installed in ``.venv``.

It runs before anything is installed, on whatever ``python3`` there is: so it uses the standard
library only, and a syntax that an old Python understands well enough to be told to go.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile

OLDEST, NEWEST = (3, 11), (3, 13)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
BIN = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")
PYTHON = os.path.join(BIN, "python.exe" if os.name == "nt" else "python")
REQUIREMENTS = os.path.join(ROOT, "requirements.txt")


def say(text):
    """Print a line, at once."""
    print(text, flush=True)


def stop(text):
    """End with a sentence that helps."""
    sys.exit("\n" + text + "\n")


def run(command, **options):
    """Run a command in the project's folder; tell whether it succeeded."""
    return subprocess.call(command, cwd=ROOT, **options) == 0


def quietly(command, **options):
    """Run a command without showing what it prints; tell whether it succeeded."""
    return run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)


# ---- stamps: what was set up, and from what


def digest(*parts):
    """Return a digest of files and words."""
    result = hashlib.sha256()
    for part in parts:
        if os.path.isfile(part):
            with open(part, "rb") as file:
                result.update(file.read())
        result.update(part.encode())
    return result.hexdigest()


def fresh(stamp, value):
    """Tell whether ``stamp`` was left by a set-up from the same ``value``."""
    try:
        with open(stamp) as file:
            return file.read() == value
    except OSError:
        return False


def leave(stamp, value):
    """Leave ``stamp``, for the next time."""
    with open(stamp, "w") as file:
        file.write(value)


# ---- Python


def suitable_python():
    """Return a Python that the pins work on, or stop with advice."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which("python3.%d" % minor)
        if found:
            return found
    if sys.version_info[:2] > NEWEST:
        say(
            "Python %d.%d is newer than what the course was tested on; trying."
            % sys.version_info[:2]
        )
        return sys.executable
    return stop(
        "The course needs Python %d.%d or newer, and found only %d.%d (%s).\n"
        "Install a newer one, or say where it is: make PYTHON=/path/to/python3.12 …"
        % (OLDEST + sys.version_info[:2] + (sys.executable,))
    )


def as_root_on_debian():
    """Tell whether packages of the system can be installed without asking anybody."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_install(*packages):
    """Install Debian packages; tell whether it worked."""
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    say("Installing %s with apt-get …" % ", ".join(packages))
    if not quietly(["apt-get", "update"], env=environment):
        return False
    return quietly(
        ["apt-get", "install", "--yes", "--no-install-recommends"] + list(packages),
        env=environment,
    )


def create_venv(python):
    """Create ``.venv``, also where the system's Python came without the means to."""
    shutil.rmtree(VENV, ignore_errors=True)
    say("Creating .venv with %s …" % python)
    if quietly([python, "-c", "import ensurepip, venv"]) and quietly([python, "-m", "venv", VENV]):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    # Debian packs ensurepip apart. virtualenv brings its own pip.
    say("This Python has no ensurepip; trying virtualenv …")
    if quietly([python, "-m", "virtualenv", VENV]):
        return
    if quietly([python, "-m", "pip", "--version"]):
        with tempfile.TemporaryDirectory() as folder:
            install = [python, "-m", "pip", "install", "--quiet", "--target", folder, "virtualenv"]
            environment = dict(os.environ, PYTHONPATH=folder)
            if quietly(install) and quietly([python, "-m", "virtualenv", VENV], env=environment):
                return
    version = subprocess.check_output(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], text=True
    ).strip()
    if as_root_on_debian() and any(
        apt_install(package) and quietly([python, "-m", "venv", VENV])
        for package in ("python%s-venv" % version, "python3-venv")
    ):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    stop(
        "This Python (%s) cannot create virtual environments. On Debian and Ubuntu, run\n"
        "    sudo apt-get install python%s-venv\n"
        "and then make again. Elsewhere, install virtualenv for it." % (python, version)
    )


def set_up_python():
    """See to it that ``.venv`` holds what ``requirements.txt`` says."""
    stamp = os.path.join(VENV, "set-up")
    # The folder belongs to the value: a virtual environment does not survive being moved.
    value = digest(REQUIREMENTS, os.path.join(ROOT, "pyproject.toml"), ROOT)
    if fresh(stamp, value) and quietly([PYTHON, "-c", "import underhood, jupyter_book"]):
        return
    marker = os.path.join(VENV, "folder")
    if not (fresh(marker, ROOT) and quietly([PYTHON, "-m", "pip", "--version"])):
        create_venv(suitable_python())
        leave(marker, ROOT)
    say("Installing requirements.txt into .venv (the first time this takes a few minutes) …")
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    if not run(pip + ["--requirement", REQUIREMENTS]):
        stop(
            "The packages could not be installed; the lines above say why. If they speak of\n"
            "connections or names, this computer does not reach the Python Package Index (PyPI):\n"
            "check the network, and pip's proxy settings. Then run make again: it goes on."
        )
    leave(stamp, value)


def write_pins():
    """Write ``requirements.txt`` anew, keeping its comments."""
    with open(REQUIREMENTS) as file:
        comments = [line for line in file if line.startswith("#")]
    freeze = [PYTHON, "-m", "pip", "freeze", "--exclude-editable", "--exclude", "underhood"]
    pins = subprocess.check_output(freeze, text=True)
    with open(REQUIREMENTS, "w") as file:
        file.write("".join(comments) + pins + "-e .\n")
    say("requirements.txt now holds %d pins." % pins.count("=="))


COMMANDS = {"book": [set_up_python], "pins": [set_up_python, write_pins]}


def main(arguments):
    """Do what is asked for."""
    if len(arguments) != 1 or arguments[0] not in COMMANDS:
        stop("Usage: python3 .ci/environment.py " + "|".join(COMMANDS))
    for step in COMMANDS[arguments[0]]:
        step()


if __name__ == "__main__":
    main(sys.argv[1:])
