"""Two tables for whoever teaches with the course: the talk's slides, and a workshop's hours.

Strategy: nothing in them is typed. ``{slides}`` reads the talk: what is on each slide, how long it
takes, when the speaker's clock should show what, and the chapter that tells more. ``{workshop}``
gets a list of parts of the course and adds up their times: a chapter's minutes come from its card,
what its exercises ask from the exercises, the talk's minutes from its slides. Breaks and whatever
else is no page say theirs. Both are written as MyST, so that links are checked as everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from bs4 import BeautifulSoup
from chapter_execution import Chapter
from docutils import nodes
from docutils.statemachine import StringList
from page_foot import results_of
from slides import FORMS, TALK, about, clock, slides
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx

CARD = re.compile(r"^:class: chapter-card\n(?P<card>.*?)^```", re.MULTILINE | re.DOTALL)
MINUTES = re.compile(r"^\* - Minutes\n  - (\d+)$", re.MULTILINE)
EXERCISE = re.compile(
    r"^`{3,}\{exercise-start\}.*?\n:label: (?P<label>[\w-]+)\n(?::.*\n)*`{3,}\n"
    r"(?P<text>.*?)^`{3,}\{",
    re.MULTILINE | re.DOTALL,
)
#: How much of an exercise is said in a table, in characters.
SAID = 110


def minutes_of(text: str) -> int:
    """Return the minutes on a chapter's card.

    Raises
    ------
    ValueError
        If there is no such card, or no minutes on it.
    """
    card = CARD.search(text)
    minutes = card and MINUTES.search(card["card"])
    if not minutes:
        raise ValueError("it has no card of class chapter-card with minutes")
    return int(minutes[1])


def exercises_of(text: str) -> list[tuple[str, str]]:
    """Return the exercises of a chapter: their labels, and how they begin."""
    return [(found["label"], beginning(found["text"])) for found in EXERCISE.finditer(text)]


def beginning(text: str) -> str:
    """Return how an exercise begins: as many sentences as fit a table."""
    plain = re.sub(r"\{[\w:-]+\}`([^`<]+?)(?:\s*<[^`]*>)?`", r"\1", " ".join(text.split()))
    plain = re.sub(r"(\*{1,2})(?=\S)(.+?)(?<=\S)\1", r"\2", plain)
    plain = re.sub(r"[`\[\]]|\]\([^)]*\)", "", plain)
    said = ""
    for sentence in re.split(r"(?<=[.?!])\s", plain):
        if len(said) > SAID / 2 and len(said) + len(sentence) > SAID:
            return said
        said = f"{said} {sentence}".strip()
        if len(said) > SAID:
            return said[:SAID].rsplit(" ", 1)[0] + " …"
    return said


def talk_minutes(notebook: Any, form: str) -> float:
    """Return how long a form of the talk takes."""
    key, _ = FORMS[form]
    return sum(float(about(slide).get(key, 0)) for slide in slides(notebook))


def title(slide: Sequence[Any]) -> str:
    """Return what is written largest on a slide that was executed."""
    for cell in slide:
        outputs = [out.get("data", {}) for out in cell.get("outputs", ())]
        markdown = [data.get("text/markdown", "") for data in outputs]
        for text in [cell.source] if cell.cell_type == "markdown" else markdown:
            if found := re.search(r"^#+ (.+)$", text, re.MULTILINE):
                last = text.strip().split("\n\n")[-1]
                if re.fullmatch(r"[\d,]+", found[1]):
                    return f"{found[1]} {last}"
                return f"{found[1]}: {last}" if about(slide)["layout"] == "guess" else found[1]
        for data in outputs:
            html = BeautifulSoup(data.get("text/html", ""), "html.parser")
            if heading := html.select_one(".uh-title"):
                return heading.get_text()
    return "The address of the course"


class TeachingTable(SphinxDirective):
    """What both tables need."""

    def talk(self) -> Chapter:
        """Return the talk's source."""
        path = Path(self.env.srcdir, f"{TALK}.md")
        self.env.note_dependency(str(path))
        talk = Chapter.read(TALK, path)
        assert talk is not None
        return talk

    def written(self, lines: Sequence[str]) -> list[nodes.Node]:
        """Turn lines of MyST into nodes."""
        box = nodes.container()
        source, line = self.get_source_info()
        self.state.nested_parse(StringList(list(lines), f"{source}:{line}"), 0, box)
        return box.children


class Slides(TeachingTable):
    """The talk slide by slide, with the time on the clock when each is done."""

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        talk = self.talk()
        _, executed = results_of(self.env.app).cache.merge_match_into_notebook(talk.notebook)
        return self.written(list(self.rows(executed)))

    def rows(self, executed: Any) -> Iterator[str]:
        """Yield the lines of a table."""
        depth = "../" * self.env.docname.count("/")
        yield "| No. | Slide | Minutes | Clock | More in |"
        yield "|---:|---|---:|---:|---|"
        done = 0.0
        for number, slide in enumerate(slides(executed), 1):
            facts = about(slide)
            done += facts["minutes"]
            chapter = facts.get("chapter")
            more = f"{{doc}}`/book/{chapter}`" if chapter else ""
            link = f'<a href="{depth}slides/index.html#/{number - 1}">{number}</a>'
            said = title(slide).replace("|", "\\|")
            yield f"| {link} | {said} | {facts['minutes']:g} | {clock(done)} | {more} |"


class Workshop(TeachingTable):
    """A workshop, made of parts of the course, with the hour at which each begins."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        try:
            plan = yaml.safe_load("\n".join(self.content))
            return self.written(list(self.rows(plan["begin"], plan["parts"])))
        except (yaml.YAMLError, KeyError, TypeError, ValueError, OSError) as error:
            raise self.error(f"workshop: {error}") from error

    def rows(self, begin: str, parts: Sequence[dict[str, Any]]) -> Iterator[str]:
        """Yield the lines of a table, and of a sentence with the sums."""
        at = start = datetime.strptime(begin, "%H:%M")
        taught = 0.0
        yield "| At | Part | Exercises for the room | Minutes |"
        yield "|---:|---|---|---:|"
        for part in parts:
            what, exercises, minutes = self.read(part)
            yield f"| {at:%H:%M} | {what} | {exercises} | {minutes:g} |"
            at += timedelta(minutes=minutes)
            taught += minutes if "break" not in part else 0
        whole = int((at - start).total_seconds() / 60)
        yield ""
        yield (
            f"From {start:%H:%M} to {at:%H:%M}, that is {whole // 60} hours and {whole % 60} "
            f"minutes; {taught:g} minutes of them are for learning, the others are breaks."
        )

    def read(self, part: dict[str, Any]) -> tuple[str, str, float]:
        """Return what a part is, its exercises, and how long it takes."""
        if "break" in part:
            return "*Break*", "", float(part["break"])
        if "talk" in part:
            minutes = talk_minutes(self.talk().notebook, part["talk"])
            depth = "../" * self.env.docname.count("/")
            address = f"{depth}slides/{part['talk']}.html"
            return f'{part["as"]}: <a href="{address}">slides</a>', "", minutes
        if "chapter" not in part:
            return str(part["as"]), "", float(part["minutes"])
        path = Path(self.env.srcdir, f"book/{part['chapter']}.md")
        self.env.note_dependency(str(path))
        text = path.read_text(encoding="utf-8")
        try:
            minutes = minutes_of(text)
        except ValueError as error:
            raise ValueError(f"{part['chapter']}: {error}") from error
        known = exercises_of(text)
        chosen = part.get("exercises", [])
        if not set(chosen) <= {label for label, _ in known}:
            names = ", ".join(label for label, _ in known)
            raise ValueError(f"{part['chapter']} has these exercises: {names}; not {chosen}")
        said = "<br>".join(f"{{ref}}`{says} <{label}>`" for label, says in known if label in chosen)
        return f"{{doc}}`/book/{part['chapter']}`", said, float(minutes)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("slides", Slides)
    app.add_directive("workshop", Workshop)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
