"""Exercises that judge an answer: what they say to none, to wrong ones and to the right one.

Each chapter is run as a notebook, in a kernel, up to the cell that judges; then its two cells are
run again with other answers, and once more when all other cells of the chapter have been run, as
somebody does who has chosen “Run All” first. The right answer is computed in that kernel from what
the chapter captured, so no number is written here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jupytext
import nbformat
import pytest
from checkout import ROOT
from nbclient import NotebookClient
from sphinx_external_toc.parsing import parse_toc_yaml

CHAPTERS = [
    page
    for page in parse_toc_yaml(ROOT / "_toc.yml")
    if re.match(r"book/(meet|fundamentals|tooling|build)/", page)
]
ASKED = "my_answer = None"


@dataclass(frozen=True)
class Answers:
    """The right answer and wrong ones, as code; ``first`` is what a reader does to get there."""

    right: str
    wrong: tuple[str, ...] = ("RIGHT + 1", "RIGHT - 1", "-1")
    first: str = ""


ANSWERS = {
    "book/meet/cloud": Answers("len(checks)"),
    "book/meet/document": Answers(
        "next(path for path in unknown if unknown[path])",
        ("next(path for path in unknown if not unknown[path])", "'cells[7].outputs[0]'"),
    ),
    "book/meet/front-ends": Answers("len(results)"),
    "book/meet/kernel": Answers("sum(message.size for message in preamble)"),
    "book/meet/keystroke": Answers("len(received)"),
    "book/fundamentals/channels": Answers("len(idles)"),
    "book/fundamentals/execute": Answers("len(mine)"),
    "book/fundamentals/message": Answers(
        "'by-a-reader'",
        ("'never-sent'", "'unsigned-one'", "'another-sum'"),
        first=(
            "await send(request('unsigned-one', code='2 ** 10'), signature=b'')\n"
            "for said, code in {'another-sum': '2 ** 9', 'by-a-reader': '2 ** 10'}.items():\n"
            "    await send(request(said, code=code))\n"
            "    await hear(shell)\n"
            "    await idle(said)\n"
        ),
    ),
    "book/fundamentals/network-tab": Answers("longer"),
    "book/fundamentals/questions": Answers("len(on_shell)"),
    "book/fundamentals/rest": Answers("processes"),
    "book/fundamentals/rich-output": Answers("len(opened)"),
    "book/fundamentals/websocket": Answers("len(late)"),
    "book/fundamentals/zeromq": Answers("three.size"),
    "book/tooling/automate": Answers("len(sent)"),
    "book/tooling/ecosystem": Answers(
        "next(tool for tool in TOOLS if manner(said[tool]) == manner(mystery))",
        ("next(tool for tool in TOOLS if manner(said[tool]) != manner(mystery))", "'abacus'"),
    ),
}


class Reader:
    """Somebody who runs the cells of a chapter, with answers of their own."""

    def __init__(self, client: NotebookClient) -> None:
        self.client = client
        self.cells = client.nb.cells
        code = [n for n, cell in enumerate(self.cells) if cell.cell_type == "code"]
        (asked,) = (n for n in code if self.cells[n].source == ASKED)
        self.asked, self.judge = code[code.index(asked) :][:2]
        self.code = code

    def run(self, source: str, number: int = 0) -> str:
        """Run some code; return what it printed."""
        cell = nbformat.v4.new_code_cell(source)
        self.client.execute_cell(cell, number)
        return "".join(out.text for out in cell.outputs if out.output_type == "stream")

    def run_cells(self, numbers: list[int]) -> None:
        """Run cells of the chapter."""
        for number in numbers:
            self.client.execute_cell(self.cells[number], number)

    def answer(self, answer: str) -> str:
        """Put an answer in place of None, and run both cells; return what the second says."""
        assert self.run(ASKED.replace("None", answer)) == ""
        return self.run(self.cells[self.judge].source)


@contextmanager
def reader(page: str) -> Iterator[Reader]:
    path = ROOT / f"{page}.md"
    notebook = jupytext.reads(path.read_text("utf-8"), fmt="md:myst")
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    )
    with client.setup_kernel():
        yield Reader(client)


def test_every_chapter_has_an_exercise_that_judges_the_readers_answer():
    judging = [page for page in CHAPTERS if ASKED in (ROOT / f"{page}.md").read_text("utf-8")]
    assert judging == CHAPTERS
    assert sorted(ANSWERS) == sorted(CHAPTERS)


@pytest.mark.parametrize("page", CHAPTERS)
def test_the_cell_that_judges_only_looks_at_what_was_captured(page):
    """So it judges once more at any time, and a second try costs nothing."""
    text = (ROOT / f"{page}.md").read_text("utf-8")
    judge = text.partition(f"\n{ASKED}\n```")[2].partition("```{code-cell}")[2].partition("```")[0]
    assert "if my_answer is None:" in judge
    assert not re.search(r"\bawait\b|record\(|\.run\(", judge)


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", CHAPTERS)
def test_an_exercise_says_yes_to_the_right_answer_and_not_yet_to_all_others(page):
    answers = ANSWERS[page]
    with reader(page) as somebody:
        before = [n for n in somebody.code if n <= somebody.judge]
        somebody.run_cells(before)
        somebody.run(answers.first)
        for stage in ("on the way", "when all has been run"):
            somebody.answer("None")
            somebody.run(f"RIGHT = {answers.right}")
            right = somebody.run("print(RIGHT)").strip()
            nothing = somebody.answer("None")
            assert re.match(r"Not yet: put (a|your) \w+ in place of None\.\n$", nothing), stage
            for wrong in answers.wrong:
                said = somebody.answer(wrong)
                assert re.match(r"Not yet[:.] \S", said), (stage, wrong, said)
                if page != "book/meet/document":  # which may name all that there are
                    assert not re.search(rf"(?<!\w){re.escape(right)}(?!\w)", said), said
            said = somebody.answer("RIGHT")
            assert re.match(r"Yes(, because|:) \S", said), (stage, said)
            if stage == "on the way":
                somebody.run_cells([n for n in somebody.code if n > somebody.judge])
