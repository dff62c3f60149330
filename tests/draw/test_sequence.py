"""A sequence diagram shows each message of its trace, once, in order, and nothing else."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from conversations import MS, Conversation, execute, frame, invented
from hypothesis import given, settings
from hypothesis import strategies as st

from underhood.draw.page import Picture
from underhood.draw.words import in_words, milliseconds
from underhood.trace import Trace

SVG = "{http://www.w3.org/2000/svg}"


def arrows(drawn: str) -> list[int]:
    return [int(n) for n in re.findall(r'data-message="(\d+)"', drawn)]


def stood_for(drawn: str) -> list[int]:
    folded = re.findall(r'data-folded="([\d ]+)"', drawn)
    return sorted(arrows(drawn) + [int(n) for found in folded for n in found.split()])


def texts(picture: Picture) -> list[str]:
    root = ElementTree.fromstring(picture.svg)
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def one_cell() -> Trace:
    trace = execute().trace()
    return trace.answering(trace.types("execute_request")[0].msg_id)


def beats(count: int) -> Trace:
    talk = Conversation("beats")
    heartbeat = talk.link("client", "kernel", "heartbeat")
    for _ in range(count):
        for direction in (">", "<"):
            talk.octets(heartbeat, direction, frame(b"", more=True) + frame(b"ping"), 1)
    return talk.capture().trace().types("ping")


# ---- the messages, all of them, in order


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.sampled_from(["order", "time"]))
def test_arrows_are_the_messages_whatever_the_trace(seed: int, groups: bool, scale: str) -> None:
    trace = invented(seed).trace()
    picture = trace.sequence_diagram(groups=groups, scale=scale)
    assert arrows(picture.svg) == [m.number for m in trace]
    ElementTree.fromstring(picture.svg)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_folded_arrows_stand_for_every_message(seed: int, groups: bool) -> None:
    trace = invented(seed).trace()
    picture = trace.sequence_diagram(fold=True, groups=groups)
    assert stood_for(picture.svg) == [m.number for m in trace]
    shown = arrows(picture.svg)
    assert shown == sorted(shown)


def test_the_whole_output_has_each_arrow_once() -> None:
    trace = one_cell()
    html = trace.sequence_diagram().html
    assert arrows(html) == [m.number for m in trace]
    assert 'data-underhood="sequence" data-capture="execute"' in html
    assert "data-query=" in html


def test_an_arrow_says_its_label_and_detail() -> None:
    shown = texts(one_cell().sequence_diagram())
    assert [t for t in shown if "status" in t] == ["status: busy", "status: idle"]
    assert "stream: stdout" in shown


def test_an_arrow_is_a_link_with_a_sentence() -> None:
    root = ElementTree.fromstring(one_cell().sequence_diagram().svg)
    links = list(root.iter(f"{SVG}a"))
    assert links[-1].findtext(f"{SVG}title") == (
        "iopub, kernel to client, status: idle, 2.4 ms after the request"
    )
    assert links[-1].get("href", "").endswith(f"-m{links[-1].get('data-message')}")


def test_a_reader_who_cannot_see_it_is_told_everything() -> None:
    picture = one_cell().sequence_diagram()
    assert "Sequence diagram of 7 messages between client and kernel, over 2.4 ms" in (
        picture.description
    )
    for n in range(1, 8):
        assert f" {n}. " in picture.description
    many = execute(cells=20).trace().protocol("jupyter").sequence_diagram().description
    assert "100 iopub and 40 shell" in many
    assert len(many) < 500


def test_an_empty_trace_is_drawn_too() -> None:
    picture = one_cell()[:0].sequence_diagram()
    assert arrows(picture.svg) == []
    assert "No messages" in picture.title


# ---- lifelines


def lifelines(picture: Picture) -> list[str]:
    root = ElementTree.fromstring(picture.svg)
    heads = next(g for g in root.iter(f"{SVG}g") if g.get("class") == "u-heads")
    return ["".join(t.itertext()) for t in heads.iter(f"{SVG}text")]


def test_lifelines_stand_in_the_order_found_or_given() -> None:
    trace = execute(relayed=True).trace().protocol("jupyter")
    assert lifelines(trace.sequence_diagram()) == ["browser", "server", "kernel"]
    given_order = ("kernel", "nobody", "server", "browser")
    assert lifelines(trace.sequence_diagram(parties=given_order)) == list(given_order)


def test_parties_left_out_are_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="leaves out 'kernel'"):
        one_cell().sequence_diagram(parties=["client"])


def test_an_arrow_between_far_lifelines_leaves_a_gap_at_those_between() -> None:
    trace = one_cell()
    picture = trace.sequence_diagram(parties=("client", "a", "b", "kernel"))
    root = ElementTree.fromstring(picture.svg)
    lines = [p for p in root.iter(f"{SVG}path") if p.get("class") == "u-line"]
    assert {line.get("d", "").count("M") for line in lines} == {3}


def test_busy_and_idle_make_one_bar_where_the_kernel_speaks() -> None:
    picture = execute(relayed=True, cells=2).trace().protocol("jupyter").sequence_diagram()
    assert picture.svg.count('class="u-busy"') == 2
    assert one_cell()[:3].sequence_diagram().svg.count('class="u-busy"') == 1


# ---- time


def test_times_count_from_the_first_message() -> None:
    shown = texts(one_cell().sequence_diagram())
    assert [t for t in shown if re.fullmatch(r"\d+\.\d", t)] == [
        "0.0", "0.4", "0.8", "1.2", "1.6", "2.0", "2.4",
    ]  # fmt: skip
    assert not [t for t in texts(one_cell().sequence_diagram(time=False)) if t[0].isdigit()]


def test_a_pause_is_shown_where_time_passes() -> None:
    shown = texts(execute(cells=2, pause=1500).trace().protocol("jupyter").sequence_diagram())
    assert shown.count("+1.5 s") == 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=2, max_size=30))
def test_a_true_axis_ties_each_arrow_to_its_moment(pauses: list[int]) -> None:
    talk = Conversation("axis")
    shell = talk.link("client", "kernel", "shell")
    for pause in pauses:
        talk.say(shell, ">", "comm_msg", ms=pause)
    trace = talk.capture().trace().protocol("jupyter")
    root = ElementTree.fromstring(trace.sequence_diagram(scale="time").svg)
    paths = {p.get("class", ""): p.get("d", "") for p in root.iter(f"{SVG}path")}
    ties = [
        [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", f"M{tie}")]
        for tie in paths["u-tie"].split("M")[1:]
    ]
    rows = [
        float(re.findall(r"M[\d.]+ ([\d.]+)", p.get("d", ""))[0])
        for p in root.iter(f"{SVG}path")
        if p.get("class") == "u-line"
    ]
    assert [tie[-1] for tie in ties] == rows
    assert all(b - a >= 20 for a, b in pairwise(rows))
    whole = trace[-1].time_ns - trace[0].time_ns
    top, bottom = ties[0][0], ties[-1][0]
    for message, tie in zip(trace, ties, strict=True):
        share = (message.time_ns - trace[0].time_ns) / max(whole, 1)
        assert tie[0] == pytest.approx(top + share * (bottom - top), abs=0.2)


@pytest.mark.parametrize(
    ("ns", "said"),
    [(0, "0 ns"), (999, "999 ns"), (1_500, "1.5 µs"), (12 * MS, "12 ms"), (1_250 * MS, "1.2 s")],
)
def test_durations_carry_their_unit(ns: int, said: str) -> None:
    assert in_words(ns) == said


def test_milliseconds_lose_their_decimal_when_it_says_nothing() -> None:
    assert [milliseconds(ns) for ns in (0, 99_949_999, 99_950_000, 12_345_600_000)] == [
        "0.0", "99.9", "100", "12\N{NARROW NO-BREAK SPACE}346",
    ]  # fmt: skip


# ---- fates


def test_a_forged_message_is_refused_without_being_told() -> None:
    talk = Conversation("forged")
    shell = talk.link("client", "kernel", "shell")
    talk.say(shell, ">", "execute_request", {"code": "1"}, tamper=True)
    talk.say(shell, ">", "execute_request", {"code": "1"})
    picture = talk.capture().trace().protocol("jupyter").sequence_diagram()
    assert picture.svg.count(", refused") >= 1
    assert "✕ refused" in picture.html
    assert "lost" not in picture.svg


def test_a_lost_message_ends_before_its_receiver() -> None:
    trace = one_cell()
    picture = trace.sequence_diagram(lost=[trace[3].number])
    assert "stdout, 1.2 ms after the request, lost" in picture.svg
    assert "● lost on the way" in picture.html


def test_marks_for_messages_that_are_not_there_are_an_error() -> None:
    with pytest.raises(ValueError, match="lost names 4711"):
        one_cell().sequence_diagram(lost=[4711])
    with pytest.raises(ValueError, match="notes names 4711"):
        one_cell().sequence_diagram(notes={4711: "?"})
    with pytest.raises(ValueError, match="links names 4711"):
        one_cell().sequence_diagram(links={4711: "?"})


# ---- groups, notes, folds


def test_each_request_gets_a_band_with_its_code() -> None:
    picture = execute(cells=3).trace().protocol("jupyter").sequence_diagram(groups=True)
    assert picture.svg.count('class="u-band"') == 3
    assert "execute_request · print(1); 1" in texts(picture)


def test_a_group_that_is_interrupted_goes_on_below() -> None:
    talk = Conversation("interleaved")
    shell, iopub = talk.link("c", "k", "shell"), talk.link("c", "k", "iopub")
    first = talk.say(shell, ">", "execute_request", {"code": "1"})
    second = talk.say(shell, ">", "execute_request", {"code": "2"})
    for parent in (first, second):
        talk.say(iopub, "<", "status", {"execution_state": "busy"}, parent["header"])
    shown = texts(talk.capture().trace().protocol("jupyter").sequence_diagram(groups=True))
    assert shown.count("execute_request, continued") == 2


def test_a_note_stands_below_its_message() -> None:
    trace = one_cell()
    shown = texts(trace.sequence_diagram(notes={trace[0].number: "It begins here."}))
    assert shown.index("It begins here.") == shown.index("execute_request") + 1


def test_an_arrow_can_lead_elsewhere_than_to_its_message() -> None:
    trace = one_cell()
    root = ElementTree.fromstring(trace.sequence_diagram(links={trace[0].number: "a.html?b&c"}).svg)
    first, second = list(root.iter(f"{SVG}a"))[:2]
    assert first.get("href") == "a.html?b&c"
    assert second.get("href", "").endswith(f"-m{trace[1].number}")


def test_a_run_is_folded_into_one_arrow_with_its_count() -> None:
    picture = beats(37).sequence_diagram(fold=True)
    assert len(arrows(picture.svg)) == 2
    assert "×37" in texts(picture)
    assert len(stood_for(picture.svg)) == 74
    assert "37 times within 72 ms" in picture.svg


def test_nothing_is_folded_unasked_nor_across_a_note() -> None:
    trace = beats(9)
    assert len(arrows(trace.sequence_diagram().svg)) == 18
    noted = trace.sequence_diagram(fold=True, notes={trace[8].number: "Look here."})
    assert len(arrows(noted.svg)) == 6


# ---- text that cannot be drawn as it is


def test_odd_texts_leave_the_picture_well_formed() -> None:
    talk = Conversation("odd")
    talk.session.pack = lambda value: json.dumps(
        value, default=str
    ).encode()  # escapes what UTF-8 has not
    iopub = talk.link("client <&>", 'ker"nel', "iopub")
    for name in ("a\x00b\x1b[31m", "</svg><script>alert(1)</script>", "\ud800", "x" * 5000, "\n\n"):
        talk.say(iopub, "<", "stream", {"name": name})
    picture = talk.capture().trace().protocol("jupyter").sequence_diagram()
    ElementTree.fromstring(picture.svg)
    assert "<script>alert" not in picture.html
    picture.html.encode("utf-8")
