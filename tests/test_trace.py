"""Traces: who said what to whom, found again by filters, requests and hops, in real captures."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import pairwise
from pathlib import Path

import pytest
import sick_kernel
from live import connect, eventually, front_end, kernel, run, start_kernel

from underhood import Capture, Message, Trace, load, record
from underhood.dissect.jupyter import Signature
from underhood.stage import jupyter_server


@pytest.fixture(scope="module")
def capture() -> Capture:
    """One kernel's life: three cells, one of them with output and one with an error."""
    with record("life") as recording, kernel() as (_, client):
        for code in ("print('out')\n1 + 1", "1 / 0", "'x' * 300_000"):
            run(client, code)
    return recording.capture


@pytest.fixture(scope="module")
def trace(capture: Capture) -> Trace:
    return capture.trace()


def numbers(trace: Trace) -> list[int]:
    return [m.number for m in trace]


def request(trace: Trace, code: str) -> Message:
    """Find the execute_request for code that begins so."""
    return next(
        m
        for m in trace.types("execute_request")
        if m.jupyter is not None and m.jupyter.content["code"].startswith(code)
    )


# ---- a sequence


def test_messages_are_numbered_from_zero_in_order_of_time(trace: Trace) -> None:
    assert numbers(trace) == list(range(len(trace)))
    assert all(one.time_ns <= other.time_ns for one, other in pairwise(trace))


def test_messages_keep_their_numbers_in_every_part(trace: Trace) -> None:
    for part in (trace.channel("iopub"), trace[10:20], trace.answering(request(trace, "1").msg_id)):
        assert 0 < len(part) < len(trace)
        assert all(m is trace[m.number] for m in part)


def test_a_slice_is_a_trace_and_an_index_a_message(trace: Trace) -> None:
    assert numbers(trace[3:6]) == [3, 4, 5]
    assert numbers(trace[::-1]) == list(reversed(range(len(trace))))
    assert trace[-1].number == len(trace) - 1
    assert trace[3:6][1].number == 4


def test_a_part_knows_the_whole_and_its_bytes(trace: Trace) -> None:
    part = trace.channel("iopub")[1:3].types("status")
    assert part.whole is trace
    assert trace.whole is trace
    assert part.dissections is trace.dissections
    assert set(trace.dissections) == {c.id for c in trace.capture.connections}
    assert not len(trace[:0].types("status"))
    assert trace[:0].whole is trace  # though it is empty


def test_a_message_arrives_when_its_last_byte_does(trace: Trace) -> None:
    large = max(trace.types("execute_result"), key=lambda m: m.size)
    connection = trace.capture.connections[large.connection - 1]
    chunks = [c for c in connection.chunks if c.direction == large.direction]
    passed = 0
    holding = []
    for chunk in chunks:
        if passed < large.span.end and passed + len(chunk.data) > large.span.start:
            holding.append(chunk)
        passed += len(chunk.data)
    assert len(holding) > 1, "it came in one piece; take a larger one"
    assert large.time_ns == holding[-1].time_ns


def test_the_bytes_of_messages_are_the_bytes_of_their_connection(trace: Trace) -> None:
    for connection in trace.capture.connections:
        for direction in (">", "<"):
            said = [m for m in trace if (m.connection, m.direction) == (connection.id, direction)]
            assert b"".join(m.data for m in said) == connection.stream(direction)
            assert all(len(m.data) == m.size == m.span.length for m in said)


def test_a_message_has_the_fields_of_what_it_carries(trace: Trace) -> None:
    reply = trace.types("execute_reply")[0]
    assert reply.msg_type == "execute_reply"
    assert reply.content["status"] == "ok"
    assert repr(reply) == f"<Message {reply.number} kernel → client shell: execute_reply>"
    with pytest.raises(AttributeError, match="this jupyter message has no 'path'"):
        _ = reply.path
    with pytest.raises(AttributeError, match="this zmtp message has no 'content'"):
        _ = trace.types("greeting")[0].content


def test_signatures_are_judged_with_the_key_at_hand(
    trace: Trace, capture: Capture, tmp_path: Path
) -> None:
    spoken = trace.protocol("jupyter")
    assert {m.signature for m in spoken} == {Signature.VALID}
    assert {m.signature for m in trace.protocol("zmtp")} == {None}
    without = load(capture.save(tmp_path / "without.pcapng")).trace()
    assert {m.signature for m in without.protocol("jupyter")} == {Signature.UNCHECKED}


# ---- filters


def test_filters_keep_what_they_say(trace: Trace) -> None:
    assert numbers(trace.channel("iopub", "shell")) == [
        m.number for m in trace if m.link.channel in ("iopub", "shell")
    ]
    assert numbers(trace.protocol("jupyter")) == [m.number for m in trace if m.jupyter is not None]
    assert {m.label for m in trace.types("status", "stream")} == {"status", "stream"}
    assert len(trace.between("kernel", "client")) == len(trace)
    assert not len(trace.between("kernel", "server"))
    assert numbers(trace.numbers(7, 3, 7)) == [3, 7]
    assert {m.sender for m in trace.filter(lambda m: m.sender == "kernel")} == {"kernel"}


def test_filters_work_one_after_another_in_any_order(trace: Trace) -> None:
    one = trace.channel("iopub").types("status")
    assert numbers(one) == numbers(trace.types("status").channel("iopub"))
    assert one.query[-2:] == (("channel", ("iopub",)), ("types", ("status",)))


def test_answering_keeps_a_request_and_what_it_caused(trace: Trace) -> None:
    asked = request(trace, "print")
    said = trace.answering(asked.msg_id)
    assert said[0] is asked
    assert {m.parent_id for m in said[1:]} == {asked.msg_id}
    assert sorted(f"{m.label} {m.detail}".strip() for m in said) == [
        "execute_input", "execute_reply", "execute_request", "execute_result", "status busy",
        "status idle", "stream stdout",
    ]  # fmt: skip


def test_answering_follows_several_requests(trace: Trace) -> None:
    one, other = request(trace, "print"), request(trace, "1 / 0")
    both = trace.answering(one.msg_id, other.msg_id)
    apart = numbers(trace.answering(one.msg_id)) + numbers(trace.answering(other.msg_id))
    assert numbers(both) == sorted(apart)
    assert not len(trace.answering("")), "most messages have no parent, and are nobody's answer"


def test_answering_tells_apart_what_manager_and_client_number_alike(trace: Trace) -> None:
    # A manager and its client share a session, and both count their messages from 0.
    first = trace.types("kernel_info_request")[0]
    (last,) = trace.types("shutdown_request")
    assert first.msg_id == last.msg_id
    said = {m.label for m in trace.answering(first.msg_id)}
    assert "kernel_info_reply" in said
    assert not said & {"shutdown_request", "shutdown_reply"}


@pytest.mark.parametrize(
    ("order", "last"), [("reply first", "status"), ("reply last", "execute_reply")]
)
def test_a_request_is_complete_with_its_reply_and_its_idle(
    order: str, last: str, tmp_path: Path
) -> None:
    specs = sick_kernel.install(tmp_path, order)
    with (
        record() as recording,
        kernel(kernel_name="sick", kernel_spec_manager=specs) as (_, client),
    ):
        time.sleep(0.1)  # until what comes of getting ready has passed
        msg_id = client.execute("anything")
        run(client, "more")
    trace = recording.trace()
    place = next(m.number for m in trace if m.msg_id == msg_id and m.label == "execute_request")
    cut = trace[place:].until_idle()
    assert cut[-1].label == last
    assert {"execute_reply", "status"} <= {m.label for m in cut if m.parent_id == msg_id}
    assert numbers(cut) == list(range(place, place + len(cut)))
    assert len([m for m in cut if m.label == "execute_reply"]) == 1


def test_what_is_not_complete_is_not_cut(trace: Trace) -> None:
    asked = request(trace, "print")
    said = trace.answering(asked.msg_id)
    for incomplete in (
        said.filter(lambda m: m.label != "execute_reply"),
        said.filter(lambda m: m.detail != "idle"),
        trace.channel("heartbeat"),
    ):
        assert numbers(incomplete.until_idle()) == numbers(incomplete)


def test_a_query_makes_the_same_part_again(trace: Trace) -> None:
    asked = request(trace, "print")
    for part in (
        trace.answering(asked.msg_id).until_idle(),
        trace.between("client", "kernel").channel("iopub").types("status")[2:5],
        trace.filter(lambda m: m.size > 1000).protocol("jupyter"),
        trace.numbers(4, 5),
        trace,
    ):
        assert numbers(trace.select(json.loads(part.query_json))) == numbers(part)


def test_a_query_made_while_recording_finds_the_same_later() -> None:
    with record() as recording, kernel() as (_, client):
        run(client, "1")
        early = recording.trace().types("execute_request", "execute_reply")
        run(client, "2")
    late = recording.trace()
    assert len(late.types("execute_request", "execute_reply")) == 2 * len(early) == 4
    assert numbers(late.select(early.query)) == numbers(early)


def test_a_query_with_an_unknown_filter_is_refused(trace: Trace) -> None:
    with pytest.raises(ValueError, match=r"no filter is called 'save'; there are .*, between, "):
        trace.select([["save", ["file"]]])


def test_a_trace_comes_back_from_a_file(trace: Trace, capture: Capture, tmp_path: Path) -> None:
    again = load(capture.save(tmp_path / "life.pcapng", keys=True)).trace()
    assert [repr(m) for m in again] == [repr(m) for m in trace]
    assert [m.time_ns for m in again] == [m.time_ns for m in trace]
    assert [m.signature for m in again] == [m.signature for m in trace]


# ---- parties


def test_two_kernels_and_two_clients_have_names_of_their_own() -> None:
    with record() as recording, kernel() as (first, one), kernel() as (_, other):
        time.sleep(0.3)  # until no socket of the first client is being opened any more
        two = connect(first)
        two.start_channels()
        two.wait_for_ready(timeout=60)
        for client in (one, two, other):
            run(client, "1")
        eventually(lambda: two.hb_channel.is_beating())
        two.stop_channels()
    trace = recording.trace()
    assert set(trace.parties) == {"client", "client 2", "kernel", "kernel 2"}
    assert trace.parties.index("client 2") < trace.parties.index("kernel")
    asked = [(m.sender, m.receiver) for m in trace.types("execute_request")]
    assert asked == [("client", "kernel"), ("client 2", "kernel"), ("client", "kernel 2")]
    # Iopub and heartbeat announce no identity, and yet belong to somebody.
    late = trace.between("client 2", "kernel")
    assert {m.channel for m in late} == {"shell", "iopub", "stdin", "control", "heartbeat"}
    for name in ("client", "client 2"):
        subscribed = trace.between(name, "kernel").types("SUBSCRIBE")
        assert len(subscribed) == 1


def test_a_client_is_the_same_after_a_restart() -> None:
    with record() as recording, kernel() as (manager, client):
        run(client, "1")
        manager.restart_kernel()
        client.wait_for_ready(timeout=60)
        run(client, "2")
    assert recording.trace().parties == ("client", "kernel")


# ---- one message on its way


@pytest.fixture(scope="module", params=["v1", "default"])
def through_server(request: pytest.FixtureRequest) -> tuple[Trace, str]:
    """A cell that went from a front end through a Jupyter Server, and its msg_id."""

    async def story() -> tuple[Trace, str]:
        async with record() as recording, jupyter_server(client="front end") as server:
            kernel_id = await start_kernel(server)
            async with front_end(server, kernel_id, v1=request.param == "v1") as client:
                msg_id = await client.execute("1 + 1")
            await server.request("DELETE", f"/api/kernels/{kernel_id}")
        return recording.trace(), msg_id

    return asyncio.run(story())


def test_a_request_hops_from_front_end_to_server_to_kernel(
    through_server: tuple[Trace, str],
) -> None:
    trace, msg_id = through_server
    assert trace.parties == ("front end", "server", "kernel")
    hops = trace.hops(msg_id)
    assert [(h.message.sender, h.message.receiver) for h in hops] == [
        ("front end", "server"), ("server", "kernel")
    ]  # fmt: skip
    assert [h.message.signature for h in hops] == [None, Signature.VALID]
    assert {h.message.label for h in hops} == {"execute_request"}
    assert {h.message.channel for h in hops} == {"shell"}
    assert hops[0].taken_ns == 0
    assert hops[1].taken_ns == hops[1].message.time_ns - hops[0].message.time_ns > 0


def test_replies_and_outputs_hop_back(through_server: tuple[Trace, str]) -> None:
    trace, msg_id = through_server
    said = trace.answering(msg_id).between("server", "front end")
    back = [m for m in said if m.direction == "<"]
    assert {m.label for m in back} >= {"execute_reply", "execute_result", "status"}
    for m in back:
        hops = trace.hops(m.msg_id)
        # The server has several connections to iopub; the way has two hops all the same.
        assert [(h.message.sender, h.message.receiver) for h in hops] == [
            ("kernel", "server"), ("server", "front end")
        ]  # fmt: skip
        assert all(h.taken_ns >= 0 for h in hops)


def test_answering_has_both_hops(through_server: tuple[Trace, str]) -> None:
    trace, msg_id = through_server
    said = trace.answering(msg_id)
    for pair in (("front end", "server"), ("server", "kernel")):
        labels = {m.label for m in said.between(*pair)}
        assert {"execute_request", "execute_reply", "status"} <= labels


def test_of_two_copies_on_one_link_the_first_is_the_hop() -> None:
    with record() as recording, kernel() as (_, client):
        again = client.connect_iopub()
        eventually(lambda: run(client, "1") and again.poll(100))
        again.close(0)
    trace = recording.trace()
    told = trace.types("status")
    copies = [[m for m in told if m.msg_id == msg_id] for msg_id in {m.msg_id for m in told}]
    twice = [found for found in copies if len(found) == 2]
    assert twice
    for first, second in twice:
        assert (first.sender, first.receiver) == (second.sender, second.receiver)
        assert [hop.message for hop in trace.hops(first.msg_id)] == [first]


def test_hops_of_a_message_that_is_not_there_are_an_error(trace: Trace) -> None:
    for nobody in ("no such id", ""):
        with pytest.raises(KeyError, match="no message in this trace has the msg_id"):
            trace.hops(nobody)
