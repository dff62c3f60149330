"""Timing pictures say what the clock of the capture says."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from conversations import MS, Conversation, execute, http_request, http_response
from hypothesis import given, settings
from hypothesis import strategies as st

from underhood.draw.page import Picture
from underhood.draw.timing import busy_times, distribution, exchanges, timing
from underhood.trace import Trace

SVG = "{http://www.w3.org/2000/svg}"


def texts(picture: Picture) -> list[str]:
    root = ElementTree.fromstring(picture.svg)
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def boxes(picture: Picture, kind: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(picture.svg)
    return [
        (float(r.attrib["x"]), float(r.attrib["width"]))
        for r in root.iter(f"{SVG}rect")
        if r.get("class") == f"u-{kind}"
    ]


def http(*answers: tuple[float, int | None]) -> Trace:
    """One request after another on one connection, each answered after so many milliseconds."""
    talk = Conversation("http")
    for n, (ms, status) in enumerate(answers):
        link = talk.link("browser", "server", "http")
        talk.octets(link, ">", http_request("GET", f"/api/{n}"), ms)
        if status is not None:
            talk.octets(link, "<", http_response(status, "Whatever"), 1)
    return talk.capture().trace()


# ---- hop by hop


def test_who_held_the_conversation_adds_up_to_the_whole() -> None:
    trace = execute(relayed=True).trace().protocol("jupyter")
    picture = timing(trace)
    assert picture.kind == "timing"
    assert "From the request to the last word: server 400 µs, kernel 4.4 ms and server 400 µs" in (
        picture.description
    )
    widths = [w for kind in ("share-1", "share-2") for _, w in boxes(picture, kind)]
    assert sum(widths) == pytest.approx(668 - 16, abs=0.5)
    assert texts(picture)[0] == "5.2 ms in all"


def test_each_message_is_one_row_with_a_mark_per_hop() -> None:
    trace = execute(relayed=True).trace().protocol("jupyter")
    picture = timing(trace)
    shown = re.findall(r'data-message="(\d+)" data-folded="(\d+)"', picture.svg)
    assert sorted(int(n) for pair in shown for n in pair) == [m.number for m in trace]
    assert len(boxes(picture, "head")) == len(trace)


def test_without_message_ids_there_are_no_hops() -> None:
    with pytest.raises(ValueError, match="msg_id"):
        timing(http((1, 200)), show="hops")


# ---- the waterfall


def test_a_request_is_paired_with_its_own_response() -> None:
    trace = http((5, 200), (50, 404), (10, None))
    pairs = exchanges(trace)
    assert [(q.label, r.status if r else None) for q, r in pairs] == [
        ("GET /api/0", 200), ("GET /api/1", 404), ("GET /api/2", None),
    ]  # fmt: skip
    shown = texts(timing(trace))
    assert "200 · 5.0 ms" in shown
    assert "404 · 50 ms" in shown
    assert "✕ no response" in shown


def test_bars_are_as_long_as_the_requests_took() -> None:
    picture = timing(http((20, 200), (40, 201), (80, 200)))
    widths = [width for _, width in boxes(picture, "bar")]
    assert widths[1] / widths[0] == pytest.approx(2, rel=0.02)
    assert widths[2] / widths[0] == pytest.approx(4, rel=0.02)


def test_failures_differ_in_shape_not_in_colour() -> None:
    picture = timing(http((5, 200), (5, 500)))
    assert len(boxes(picture, "bar")) == 1
    assert len(boxes(picture, "bar-failed")) == 1
    assert "1 without success" in picture.description


def test_no_requests_no_waterfall() -> None:
    with pytest.raises(ValueError, match="no HTTP request"):
        timing(execute().trace(), show="waterfall")


# ---- busy and idle


def test_a_kernel_is_busy_from_busy_to_idle() -> None:
    trace = execute(cells=3, pause=10, relayed=True).trace().protocol("jupyter")
    lanes = busy_times(trace)
    assert list(lanes) == ["kernel"]
    begins = [m.time_ns for m in trace if m.detail == "busy" and m.sender == "kernel"]
    ends = [m.time_ns for m in trace if m.detail == "idle" and m.sender == "kernel"]
    assert lanes["kernel"] == list(zip(begins, ends, strict=True))


def test_busy_without_end_lasts_to_the_end() -> None:
    trace = execute().trace().protocol("jupyter")[:4]
    assert busy_times(trace)["kernel"] == [(trace[1].time_ns, trace[3].time_ns)]


def test_every_kernel_has_a_lane() -> None:
    talk = Conversation("two kernels")
    for kernel in ("kernel a", "kernel b"):
        iopub = talk.link("client", kernel, "iopub")
        for state in ("busy", "idle"):
            talk.say(iopub, "<", "status", {"execution_state": state}, ms=20)
    picture = timing(talk.capture().trace().protocol("jupyter"))
    shown = texts(picture)
    assert {"kernel a", "kernel b"} <= set(shown)
    assert len(boxes(picture, "busy")) == 2
    assert "33 % busy" in shown


# ---- distributions


def test_a_distribution_says_its_median_and_quartiles() -> None:
    picture = distribution({"reply": [n * MS for n in range(1, 10)]}, title="Replies")
    assert "median 5.0 ms" in picture.description
    assert "half of them between 2.5 ms and 7.5 ms" in picture.description
    assert len(boxes(picture, "dot")) == 9
    assert "reply: 9 runs" in repr(picture)


def test_of_one_run_a_distribution_says_no_more_than_its_time() -> None:
    picture = distribution({"alone": [3 * MS]}, title="One")
    assert "1 run" in texts(picture)
    assert "alone: 1 run, 3.0 ms" in repr(picture)
    assert "half of them" not in repr(picture)


def test_many_runs_are_counted_instead_of_dotted() -> None:
    picture = distribution({"reply": [n * MS for n in range(500)]}, title="Replies")
    assert 0 < len(boxes(picture, "dot")) < 200


def test_what_came_before_is_negative() -> None:
    picture = distribution({"idle after reply": [-2 * MS, 1 * MS, 3 * MS]}, title="Order")
    assert "−2.0 ms" in picture.description
    assert any(text.startswith("−") for text in texts(picture))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(10**10), 10**10), min_size=1, max_size=60))
def test_any_durations_can_be_drawn(values: list[int]) -> None:
    picture = distribution({"any": values}, title="Any")
    for x, width in boxes(picture, "dot"):
        assert 0 <= x <= 668 - width


def test_no_samples_no_distribution() -> None:
    with pytest.raises(ValueError, match="no samples"):
        distribution({"a": []}, title="Nothing")
