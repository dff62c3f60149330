"""A chapter as a notebook that reads well where nobody knows MyST: Lab, VS Code, Colab, GitHub.

Strategy: a chapter's text is read line by line. Fences of directives become what plain Markdown
has for them: a box becomes a quotation that begins with its name, a table of lists a table, an
exercise and its solution get headings. A solution's heading starts folded where front ends can do
that. Roles become links and words, and a glued value what the run left. Cells keep their order, so
that "run all" still works. A picture keeps its HTML and gets an image inside it, which is seen
where its style sheet is taken out: in an untrusted notebook, or on GitHub.

Whoever has this one file only can run it, too: a box says what to install, and a module that lies
beside the chapter comes along in a cell that writes it.
"""

from __future__ import annotations

import ast
import base64
import copy
import re
from collections.abc import Callable, Iterator, Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import nbformat

from underhood.draw.scene import styled

#: Finds the title and the address of a page by what a chapter calls it.
PageFinder = Callable[[str], tuple[str, str]]

TITLES = {"seealso": "See also"}  # of boxes; others are called by their own name
BOXES = frozenset(["admonition", "note", "tip", "hint", "warning", "caution"])
BOXES |= {"danger", "important", "attention", "seealso", "error"}
FENCE = re.compile(r"(?P<fence>`{3,}|:{3,})\{(?P<name>[\w:-]+)\}\s*(?P<argument>.*?)\s*$")
ROLE = re.compile(r"\{(?P<name>[\w:-]+)\}(?P<tick>`+)(?P<text>.+?)(?P=tick)", re.DOTALL)
PAGE_LINK = re.compile(r"\]\(([^()#:\s]+)\.md(#[^()\s]*)?\)")
TARGET = re.compile(r"(.+?)\s*<([^<>]+)>", re.DOTALL)
LABEL = re.compile(r"^(\([\w -]+\)=|\{[#.][^}]*\}|\+\+\+.*|%.*)$")
ITEM = re.compile(r"^(?P<indent> *)(?P<mark>[*-]) +(?P<rest>.*)$")
PICTURE = re.compile(r'<figure class="underhood".*?</figure>', re.DOTALL)
DRAWING = re.compile(r'<div class="uh-stage".*?(<svg\b.*?</svg>)\s*</div>', re.DOTALL)
PLAIN = re.compile(r'<p class="uh-plain">.*?</p>', re.DOTALL)
HIDDEN = {"remove-cell": (True, True), "hide-cell": (True, True), "hide-input": (True, False)}
HIDDEN |= {"remove-input": (True, False), "hide-output": (False, True)}
HREF = re.compile(r'(?<=\bhref=")[^"#][^"]*(?=")')
IMPORT = re.compile(r"^(?:import|from) (\w+)", re.MULTILINE)

TO_RUN = """\
> **To run it yourself**
>
> This is one page of [{title}]({address}), with
> what it showed there. To run it anew, install the course's library:
>
> ```sh
> pip install "underhood[book] @ git+{repository}"
> ```
>
> [What else it may need]({more}). The last cell
> ends what the others have started. So when you have run all, and an exercise needs a kernel or a
> server, restart this notebook's kernel, and run the cells above the exercise.
"""


class Text:
    """Turns a chapter's MyST into Markdown that every front end reads.

    Parameters
    ----------
    find
        Finds the title and the address of a page.
    glued
        What the run glued, by name, as text.
    folder
        Where the chapter lies, with the files that it includes.
    page
        The address of its page, which relative links are relative to.
    """

    def __init__(self, find: PageFinder, glued: dict[str, str], folder: Path, page: str) -> None:
        self.find, self.glued, self.folder, self.page = find, glued, folder, page
        self._exercises: dict[str, int] = {}

    def markdown(self, source: str) -> str:
        """Turn the text of one cell."""
        blocks = "\n".join(self._blocks(source.split("\n")))
        # A place that the site fills would be taken for HTML, with the words right below it.
        blocks = re.sub(r"^<div\b[^>]*></div>$", "", blocks, flags=re.MULTILINE)
        return re.sub(r"\n{3,}", "\n\n", blocks).strip("\n")

    def _blocks(self, lines: Sequence[str]) -> Iterator[str]:
        at = 0
        while at < len(lines):
            line = lines[at]
            opening = FENCE.match(line.strip())
            if opening:
                close = _closing(lines, at, opening["fence"])
                inside = lines[at + 1 : close]
                indent = " " * (len(line) - len(line.lstrip()))
                for made in self._directive(opening["name"], opening["argument"], inside):
                    yield f"{indent}{made}" if made else ""
                at = close + 1
            elif re.match(r"^\s*(`{3,}|~{3,})", line):  # code, as it is
                close = _closing(lines, at, line.strip()[:3])
                yield from lines[at : close + 1]
                at = close + 1
            else:
                # A role may go on in the next line; a paragraph is turned as one.
                end = at
                while (
                    end + 1 < len(lines) and lines[end + 1].strip() and not _opens(lines[end + 1])
                ):
                    end += 1
                kept = [part for part in lines[at : end + 1] if not LABEL.match(part)]
                yield from self.words("\n".join(kept)).split("\n")
                at = end + 1

    def _directive(self, name: str, argument: str, lines: list[str]) -> Iterator[str]:
        options, body = _options(lines)
        if name in BOXES:
            title = argument if name == "admonition" else TITLES.get(name, name.title())
            if name != "admonition" and argument:  # text may begin behind the name
                body = [argument, *body]
            inside = self.markdown("\n".join(body)).split("\n")
            yield ""
            yield f"> **{self.words(title)}**"
            yield ">"
            for line in inside:
                yield f"> {line}".rstrip()
            yield ""
        elif name in ("exercise-start", "exercise"):
            number = len(self._exercises) + 1
            self._exercises[options.get("label", str(number))] = number
            yield from ("", f"### Exercise {number}" + (f": {argument}" if argument else ""), "")
            yield from self._blocks(body)
        elif name in ("solution-start", "solution"):
            number = self._exercises.get(argument, 0)
            yield from ("", f"#### Solution of exercise {number}", "")
            yield from self._blocks(body)
        elif name in ("exercise-end", "solution-end"):
            yield ""
        elif name == "list-table":
            yield ""
            yield from self._table(body, head=options.get("header-rows", "0") != "0")
            yield ""
        elif name in ("figure", "image"):
            yield from self._blocks(body)
        elif name in ("code-block", "code"):
            yield from (f"```{argument}", *body, "```")
        elif name == "literalinclude":
            included = _included(self.folder / argument, options.get("pyobject"))
            yield from (f"```{options.get('language', '')}", *included, "```")
        else:  # a division, which ends the paragraph before it
            yield ""
            yield from self._blocks(body)
            yield ""

    def _table(self, lines: list[str], *, head: bool) -> Iterator[str]:
        """Turn a list of lists into a table."""
        rows: list[list[list[str]]] = []
        for line in lines:
            row = re.match(r"^[*-] [*-] ?(.*)$", line)
            cell = re.match(r"^  [*-] ?(.*)$", line)
            if row:
                rows.append([[row[1]]])
            elif cell and rows:
                rows[-1].append([cell[1]])
            elif rows and line.strip():
                rows[-1][-1].append(line.strip())
        width = max(map(len, rows), default=0)
        if not head:
            rows.insert(0, [[""]] * width)
        for number, cells in enumerate(rows):
            yield "| " + " | ".join(self._cell(cell) for cell in cells) + " |"
            if number == 0:
                yield "|" + " --- |" * width

    def _cell(self, lines: Sequence[str]) -> str:
        items = sum(bool(ITEM.match(line)) for line in lines)
        text = ""
        for line in lines:
            item = ITEM.match(line)
            if item and items > 1:
                text += ("<br>" if text else "") + "• " + item["rest"]
            else:
                text += (" " if text else "") + line
        return self.words(text).replace("|", "\\|")

    def words(self, text: str) -> str:
        """Turn the roles in a text, and its links to other pages."""
        linked = PAGE_LINK.sub(self._page_link, ROLE.sub(self._role, text))
        linked = linked.replace("](#", f"]({self.page}#")
        return HREF.sub(lambda found: urljoin(self.page, found[0]), linked)

    def _page_link(self, found: re.Match[str]) -> str:
        return f"]({self.find(found[1])[1]}{found[2] or ''})"

    def _role(self, found: re.Match[str]) -> str:
        name, text = found["name"], re.sub(r"\s+", " ", found["text"])
        named = TARGET.fullmatch(text)
        shown, target = (named[1], named[2]) if named else ("", text)
        if name == "doc":
            title, address = self.find(target)
            return f"[{shown or title}]({address})"
        if name.startswith("glue"):
            key, _, form = text.partition(":")
            return _formatted(self.glued.get(key, "…"), form)
        if name == "cite" or name.startswith("cite:"):
            address = self.find("/book/appendix/bibliography")[1]
            return ", ".join(f"[{key.strip()}]({address})" for key in text.split(","))
        if name == "term":
            return shown or text
        if name == "kbd":
            return f"<kbd>{escape(text)}</kbd>"
        return shown or text


def _opens(line: str) -> bool:
    return bool(re.match(r"^\s*(`{3,}|:{3,}|~{3,})", line))


def _closing(lines: Sequence[str], at: int, fence: str) -> int:
    """Return the number of the line that closes a fence; the last if none does."""
    sign, length = re.escape(fence[0]), len(fence)
    close = re.compile(rf"^\s*{sign}{{{length},}}\s*$")
    depth = 0
    for number in range(at + 1, len(lines)):
        line = lines[number]
        if close.match(line):
            if depth == 0:
                return number
            depth -= 1
        elif fence[0] == ":" and re.match(rf"^\s*:{{{length},}}\{{", line):
            depth += 1
    return len(lines) - 1 if at + 1 < len(lines) else at


def _options(lines: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Take the options off the lines of a directive."""
    options: dict[str, str] = {}
    rest = list(lines)
    while rest and (found := re.match(r"^\s*:([\w-]+):\s*(.*)$", rest[0])):
        options[found[1]] = found[2].strip()
        rest.pop(0)
    while rest and not rest[0].strip():
        rest.pop(0)
    return options, rest


def _included(path: Path, name: str | None) -> list[str]:
    """Return the lines of a file, or those that define a function or a class of this name."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)) if name else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if node.name == name:
                return text.splitlines()[first - 1 : node.end_lineno]
    return text.splitlines()


def _formatted(text: str, form: str) -> str:
    """Show a glued value as the page does: strings without quotes, numbers as asked for."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if form:
        try:
            return format(float(text), form)
        except ValueError:
            return text
    return text


def glued_values(cells: Sequence[Any]) -> dict[str, str]:
    """Return what cells glued, as text, by name."""
    values = {}
    for cell in cells:
        for output in cell.get("outputs", ()):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            if name:
                # Glued without being displayed, its type is hidden behind a prefix.
                for kind, value in output.get("data", {}).items():
                    if kind.endswith("text/plain"):
                        values[str(name)] = str(value)
    return values


def with_image(html: str) -> str:
    """Put an image of each drawing where its style sheet, if there is one, hides it."""

    def picture(found: re.Match[str]) -> str:
        drawing = DRAWING.search(found[0])
        if not drawing:
            return found[0]
        label = re.search(r'aria-label="([^"]*)"', found[0])
        alone = re.sub(r"</?a\b[^>]*>", _as_group, styled(drawing[1], "light"))
        if "xmlns=" not in alone.partition(">")[0]:
            alone = alone.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
        data = base64.b64encode(alone.encode()).decode()
        name = escape(unescape(label[1]) if label else "", quote=True)
        image = f'<p class="uh-plain"><img alt="{name}" src="data:image/svg+xml;base64,{data}"></p>'
        return PLAIN.sub(lambda _: image, found[0], count=1)

    return PICTURE.sub(picture, html)


def _as_group(tag: re.Match[str]) -> str:
    """Keep the class of what is a link on a page; an image has no links."""
    if tag[0].startswith("</"):
        return "</g>"
    style = re.search(r'\sclass="[^"]*"', tag[0])
    return f"<g{style[0] if style else ''}>"


def _as_output(output: Any) -> Any | None:
    """Return an output as it goes into the notebook; None for what only the page needs."""
    if "scrapbook" in output.get("metadata", {}):
        return None
    if "text/html" in output.get("data", {}):
        output["data"]["text/html"] = with_image(str(output["data"]["text/html"]))
    return output


def _sections(source: str) -> Iterator[str]:
    """Give each section a cell of its own, or a solution could not be folded alone."""
    section: list[str] = []
    fence = ""
    for line in source.split("\n"):
        mark = re.match(r"\s*(`{3,}|~{3,})", line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
        if section and not fence and re.match(r"#{2,4} ", line):
            yield "\n".join(section).strip("\n")
            section = []
        section.append(line)
    yield "\n".join(section).strip("\n")


def _module(name: str, path: Path, before: Any) -> Iterator[Any]:
    """Yield cells that write a module, to stand before the cell that imports it."""
    prose = nbformat.v4.new_markdown_cell(
        f"(The next cell, which is folded, writes `{name}.py` into the folder of this notebook.)"
    )
    text = path.read_text(encoding="utf-8").rstrip("\n")
    cell = nbformat.v4.new_code_cell(f"%%writefile {name}.py\n{text}")
    cell.metadata["jupyter"] = {"source_hidden": True}
    prose.id, cell.id = f"{before.id}-says"[:64], f"{before.id}-file"[:64]
    yield from (prose, cell)


def portable(executed: Any, find: PageFinder, folder: Path, book: dict[str, str]) -> Any:
    """Return an executed chapter as a notebook for any front end.

    Parameters
    ----------
    executed
        The chapter as executed, in MyST.
    find
        Finds the title and the address of a page by what the chapter calls it.
    folder
        Where the chapter lies.
    book
        The book's ``title``, its ``address``, that of its ``repository``, that of the chapter's
        ``page``, and where one reads ``more`` about running a chapter elsewhere.
    """
    notebook = copy.deepcopy(executed)
    kernel = notebook.metadata.get("kernelspec", {})
    language = notebook.metadata.get("language_info", {"name": "python"})
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": language})
    text = Text(find, glued_values(notebook.cells), folder, book["page"])
    cells: list[Any] = []
    written: set[str] = set()
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            for number, source in enumerate(_sections(text.markdown(cell.source))):
                if not source.strip():
                    continue
                part = nbformat.v4.new_markdown_cell(source)
                part.id = f"{cell.id}-{number}"[:64] if number else cell.id
                if source.startswith("#### Solution"):
                    # JupyterLab's word for it, and Colab's.
                    part.metadata["jp-MarkdownHeadingCollapsed"] = True
                    part.metadata["heading_collapsed"] = True
                cells.append(part)
                if len(cells) == 1:
                    cells.append(nbformat.v4.new_markdown_cell(TO_RUN.format(**book).strip()))
                    cells[-1].id = "to-run-it-yourself"
            continue
        for name in dict.fromkeys(IMPORT.findall(cell.source)):
            if name not in written and (folder / f"{name}.py").is_file():
                cells.extend(_module(name, folder / f"{name}.py", cell))
                written.add(name)
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        for tag in tags:
            if tag in HIDDEN:
                source_hidden, outputs_hidden = HIDDEN[tag]
                cell.metadata["jupyter"] = {
                    "source_hidden": source_hidden,
                    "outputs_hidden": outputs_hidden,
                }
                if source_hidden:
                    cell.metadata["cellView"] = "form"  # Colab's word for it
        if "outputs" in cell:
            cell.outputs = [kept for out in cell.outputs if (kept := _as_output(out)) is not None]
        cells.append(cell)
    notebook.cells = cells
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return notebook
