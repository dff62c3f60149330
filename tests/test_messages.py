"""Every message type that ipykernel can send or receive has been captured live in the book.

The types are data, in ``message_types.yml``, by the section of the message specification that
defines each. They are held to the ipykernel that is installed, so that a type that it learns is
missed here; and the captures that the chapters made while the book was built are counted against
them, each way in which a type travels by itself.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkout import ROOT
from ipykernel.ipkernel import IPythonKernel
from sphinx_external_toc.parsing import parse_toc_yaml

import underhood
from underhood import Message

Way = tuple[str, str]
"""Who says it, ``"client"`` or ``"kernel"``, and its type."""

SECTIONS: list[dict[str, Any]] = yaml.safe_load((ROOT / "tests/message_types.yml").read_text())
TYPES = [entry for section in SECTIONS for entry in section["types"]]
WAYS: set[Way] = {(sender, entry["name"]) for entry in TYPES for sender in entry["says"]}
DEPRECATED = {entry["name"] for entry in TYPES if entry.get("deprecated")}


@dataclass(frozen=True)
class Said:
    """A message as far as it is counted here: a test makes some by hand."""

    label: str
    direction: str


def way(message: Message | Said) -> Way:
    """Tell who says a message: on every hop, clients open the connections."""
    return ("client" if message.direction == ">" else "kernel", message.label)


def missing(said: Iterable[Message | Said]) -> list[str]:
    """Name each way of each type that nobody used, but for deprecated types."""
    unused = WAYS - {way(message) for message in said}
    return sorted(
        f"{name}, said by the {sender}" for sender, name in unused if name not in DEPRECATED
    )


@pytest.fixture(scope="module")
def captured(build: Path) -> list[Message]:
    """Every Jupyter message to or from a kernel that passed a tap, on any page of the book.

    ipyparallel's controller is none: it has messages of its own, in the same envelope.
    """
    return [
        message
        for page in parse_toc_yaml(ROOT / "_toc.yml")
        for path in sorted((build / "captures" / page).glob("*.pcapng"))
        for message in underhood.load(path).trace().protocol("jupyter")
        if message.jupyter and message.link.server != "controller"
    ]


def test_every_type_that_the_kernel_can_send_or_receive_was_captured_in_some_chapter(captured):
    counts = Counter(map(way, captured))
    assert not missing(captured), counts


def test_a_type_that_travelled_only_one_of_its_ways_is_missed():
    everything = [Said(name, ">" if sender == "client" else "<") for sender, name in WAYS]
    assert missing(everything) == []
    without = [said for said in everything if said != Said("comm_close", ">")]
    assert missing(without) == ["comm_close, said by the client"]
    assert missing(said for said in everything if said.label not in DEPRECATED) == []


def test_what_the_chapters_captured_beyond_the_list_was_sent_to_the_kernel_and_not_by_it(captured):
    unlisted = {way(message) for message in captured} - WAYS
    assert {sender for sender, _ in unlisted} <= {"client"}, unlisted


def test_the_list_names_each_type_once_with_a_section_and_who_says_it():
    names = [entry["name"] for entry in TYPES]
    assert len(names) == len(set(names))
    assert all(entry["says"] and {*entry["says"]} <= {"client", "kernel"} for entry in TYPES)
    assert all(section["section"].startswith("https://") for section in SECTIONS)
    assert {name for name in DEPRECATED if name.startswith("connect_")} == DEPRECATED


def test_the_list_has_what_the_installed_kernel_has_a_handler_for_and_nothing_else():
    handled = {*IPythonKernel.msg_types, *IPythonKernel.control_msg_types}
    comms = {"comm_open", "comm_msg", "comm_close"}
    listed = {name for sender, name in WAYS if sender == "client"}
    assert handled | comms | {"input_reply"} == listed
    replies = {name.replace("_request", "_reply") for name in handled}
    assert replies <= {name for sender, name in WAYS if sender == "kernel"}


def strings(*packages: str) -> Iterator[str]:
    """Give every string literal in the source of installed packages."""
    for package in packages:
        for file in files(package) or ():
            if file.suffix == ".py" and "tests" not in file.parts:
                source = Path(str(file.locate())).read_text(encoding="utf-8")
                for node in ast.walk(ast.parse(source)):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str):
                        yield node.value


def test_each_type_that_the_kernel_says_is_named_in_its_source():
    sources = set(strings("ipykernel", "comm"))
    unnamed = {name for sender, name in WAYS if sender == "kernel" and name not in sources}
    assert unnamed == set()
