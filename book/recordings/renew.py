"""Renew the recordings that are replayed where a browser, Node.js or JupyterHub is missing.

Strategy: a recording is what real actors did, noted while they did it. Here are the stage's own
scenes; every chapter that puts a browser or a hub on the stage is a scene, too, and is executed
with noting switched on: each of its ``record("name")`` blocks becomes ``name.pcapng`` and
``name.json`` beside this file.

Usage: ``python book/recordings/renew.py [NAME …]``, where each NAME is a scene or the path of a
chapter; all of them by default.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from underhood import record
from underhood.stage import jupyterhub, jupyterlab, notebook
from underhood.stage.neutral import NeutralPython, neutral_folder

HERE: Final = Path(__file__).resolve().parent
BOOK: Final = HERE.parent


async def lab() -> None:
    """Open a notebook in JupyterLab, run a cell, save."""
    async with record("lab"), jupyterlab() as front_end:
        await front_end.open("demo.ipynb")
        await front_end.type("6 * 7")
        await front_end.run()
        await front_end.save()
        await front_end.screenshot()


async def classic() -> None:
    """Do the same in Jupyter Notebook."""
    async with record("classic"), notebook() as front_end:
        await front_end.open("demo.ipynb")
        await front_end.type("6 * 7")
        await front_end.run()
        await front_end.save()
        await front_end.screenshot()


async def hub() -> None:
    """Log in to a hub, run a cell, be refused another's server, stop."""
    async with record("hub"), jupyterhub(users=["alice", "bob"]) as a_hub:
        await a_hub.routes()
        alice = await a_hub.log_in("alice")
        await alice.open("demo.ipynb")
        await alice.type("6 * 7")
        await alice.run()
        await alice.screenshot()
        await a_hub.start_server("bob")
        await a_hub.routes()
        await a_hub.request("GET", "/user/bob/api/status")
        await a_hub.request("GET", "/user/bob/api/status", token="")
        await a_hub.stop_server("bob")
        await a_hub.stop_server("alice")
        await a_hub.routes()


SCENES: Final[Mapping[str, Callable[[], Awaitable[None]]]] = {
    scene.__name__: scene for scene in (lab, classic, hub)
}

_BLOCK: Final = re.compile(r"^\s*async with .*?:\n", re.MULTILINE | re.DOTALL)
_ON_STAGE: Final = re.compile(r"\b(front_ends|jupyterlab|notebook|jupyterhub|web_page)\(")
_NAME: Final = re.compile(r"\brecord\(\s*\"([^\"]+)\"")


def scenes_of(chapter: Path) -> list[str]:
    """Return the names of the recordings in which a chapter needs a browser or a hub.

    One that has no name is empty: it cannot be replayed.
    """
    blocks = [block for block in _BLOCK.findall(chapter.read_text()) if _ON_STAGE.search(block)]
    return [named[1] if (named := _NAME.search(block)) else "" for block in blocks]


def chapters() -> list[Path]:
    """Return the chapters that need a browser or a hub (JupyterLab leaves copies in a folder)."""
    pages = [page for page in sorted(BOOK.rglob("*.md")) if ".ipynb_checkpoints" not in page.parts]
    return [page for page in pages if scenes_of(page)]


def execute(chapter: Path) -> None:
    """Execute a chapter as a build does, in a kernel that notes its scenes."""
    sys.path.insert(0, str(BOOK / "_ext"))
    import jupytext
    from chapter_execution import KeptKernelManager, chapter_environment
    from nbclient import NotebookClient
    from traitlets.config import Config

    with tempfile.TemporaryDirectory(prefix="underhood-", dir=neutral_folder()) as folder:
        private = Path(folder)
        python = NeutralPython(private)
        environment = chapter_environment(private, python, private, private)
        client = NotebookClient(
            jupytext.read(chapter),
            config=Config(KeptKernelManager={"python": python.executable}),
            kernel_manager_class=KeptKernelManager,
            kernel_name="python3",
            timeout=300,
            resources={"metadata": {"path": str(chapter.parent)}},
        )
        client.execute(env=environment, stderr=subprocess.DEVNULL)


def main(names: Sequence[str]) -> None:
    """Renew the named recordings, or all."""
    os.environ.setdefault("UNDERHOOD_RENEW", str(HERE))
    os.environ["UNDERHOOD_REQUIRE_LIVE"] = "1"
    for name in names or [*SCENES, *(str(page.relative_to(Path.cwd())) for page in chapters())]:
        started = time.perf_counter()
        if name in SCENES:
            asyncio.run(SCENES[name]())
        elif Path(name).is_file():
            execute(Path(name).resolve())
        else:
            sys.exit(f"{name!r} is neither a chapter nor one of {', '.join(SCENES)}")
        print(f"{name}: renewed in {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
