"""The tap forwards every byte, changes none, and ends as its two sides do."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from select import select

import pytest
from checkout import missing
from listeners import Memory, Pair, read_all

from underhood.capture.store import Link
from underhood.capture.tap import THREAD, Tap, now_ns, start, stop

Sockets = tuple[socket.socket, socket.socket]
Eventually = Callable[[Callable[[], object]], None]
IPV4_ONLY = pytest.mark.parametrize("family", ["IPv4"], indirect=True)
INTERNET = pytest.mark.parametrize("family", ["IPv4", "IPv6"], indirect=True)


def reset_on_close(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def say(sock: socket.socket, data: bytes, pieces: random.Random) -> None:
    at = 0
    while at < len(data):
        step = pieces.choice((1, 10, 1000, 70_000))
        sock.sendall(data[at : at + step])
        at += step
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("seed", range(3))
def test_random_traffic_passes_unchanged_both_ways_at_once(
    joined: Sockets, memory: Memory, eventually: Eventually, seed: int
) -> None:
    client, server = joined
    chance = random.Random(seed)
    sent = {">": chance.randbytes(2_000_000), "<": chance.randbytes(1_500_000)}
    heard: dict[str, bytes] = {}
    threads = [
        threading.Thread(target=say, args=(client, sent[">"], random.Random(seed))),
        threading.Thread(target=say, args=(server, sent["<"], random.Random(-seed))),
        threading.Thread(target=lambda: heard.update({">": read_all(server)})),
        threading.Thread(target=lambda: heard.update({"<": read_all(client)})),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert heard == sent
    (told,) = memory.told
    eventually(lambda: len(told.ends) == 2)
    assert {way: told.stream(way) for way in "><"} == sent
    times = [time_ns for time_ns, _, _ in told.events]
    assert times == sorted(times)
    assert told.opened <= times[0]


def test_whoever_has_received_something_finds_it_told(joined: Sockets, memory: Memory) -> None:
    client, server = joined
    for n in range(200):
        client.sendall(b"%d" % n)
        assert server.recv(100) == b"%d" % n
        THREAD.run(asyncio.sleep, 0)
        assert memory.told[0].events[-1][2] == b"%d" % n


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_half_close_leaves_the_other_direction_open(
    joined: Sockets, memory: Memory, eventually: Eventually, first: str
) -> None:
    one, other = joined if first == "client" else joined[::-1]
    one.sendall(b"that is all")
    one.shutdown(socket.SHUT_WR)
    assert read_all(other) == b"that is all"
    time.sleep(0.25)  # longer than the tap looks for a reset behind the half-close
    other.sendall(b"but I go on" * 100_000)
    other.close()
    assert read_all(one) == b"but I go on" * 100_000
    way, back = (">", "<") if first == "client" else ("<", ">")
    eventually(lambda: memory.told[0].ends == [(way, "fin"), (back, "fin")])


@INTERNET
@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_is_passed_on_as_a_reset(
    joined: Sockets, memory: Memory, eventually: Eventually, who: str
) -> None:
    one, other = joined if who == "client" else joined[::-1]
    one.sendall(b"x")
    assert other.recv(1) == b"x"
    reset_on_close(one)
    one.close()
    with pytest.raises(ConnectionResetError):
        other.recv(1)
    eventually(lambda: memory.told[0].ends == [(">" if who == "client" else "<", "reset")])


@INTERNET
def test_a_reset_after_a_half_close_is_noticed_though_nobody_reads(
    joined: Sockets, memory: Memory, eventually: Eventually
) -> None:
    client, server = joined
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    reset_on_close(client)
    client.close()
    eventually(lambda: memory.told[0].ends == [(">", "fin"), (">", "reset")])
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        server.sendall(b"is anybody there?")


@INTERNET
def test_a_server_that_talks_to_a_client_that_has_gone_is_told_so(
    joined: Sockets, memory: Memory, eventually: Eventually
) -> None:
    client, server = joined
    client.close()  # no more to say, and nobody to listen
    assert server.recv(1) == b""
    server.sendall(b"are you there?")
    eventually(lambda: memory.told[0].ends == [(">", "fin"), (">", "reset")])
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        server.sendall(b"no?")


def test_a_client_that_vanishes_without_reading_does_not_stop_the_others(
    listen: Callable[[], Pair], tap: Callable[..., Tap], eventually: Eventually
) -> None:
    pair = listen()
    running = tap(pair.front, pair.target)
    for _ in range(5):
        client = pair.connect(running.address)
        server, _ = pair.listener.accept()
        server.sendall(b"x" * 100_000)
        client.close()  # with unread data: a reset
        server.close()
    with pair.connect(running.address) as client:
        server, _ = pair.listener.accept()
        with server:
            server.sendall(b"still here")
            assert client.recv(100) == b"still here"
    eventually(lambda: not running.relays)


@INTERNET
def test_a_target_that_refuses_becomes_a_reset_when_patience_ends(
    listen: Callable[[], Pair], tap: Callable[..., Tap], memory: Memory, eventually: Eventually
) -> None:
    pair = listen()
    pair.listener.close()
    with pair.connect(tap(pair.front, pair.target, patience=0.1).address) as client:
        client.sendall(b"hello?")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    eventually(lambda: memory.told)
    assert memory.told[0].events[0][1:] == ("<", "reset")
    assert memory.told[0].stream(">") == b"", "it never passed"


@INTERNET
def test_what_is_said_before_the_target_is_up_is_kept_and_told_when_it_passes(
    listen: Callable[[], Pair], tap: Callable[..., Tap], memory: Memory
) -> None:
    pair = listen()
    pair.listener.close()
    running = tap(pair.front, pair.target)
    early = random.Random(1).randbytes(3_000_000)  # more than the tap keeps in memory
    with pair.connect(running.address) as client:
        talking = threading.Thread(target=say, args=(client, early, random.Random(2)))
        talking.start()
        time.sleep(0.2)
        up = now_ns()
        family = socket.AF_INET6 if pair.family == "IPv6" else socket.AF_INET
        with socket.create_server(running.targets[0], family=family) as late:
            server, _ = late.accept()
            with server:
                assert read_all(server) == early
                server.sendall(b"there you are")
        assert read_all(client) == b"there you are"
        talking.join(5)
    assert memory.told[0].opened > up
    assert memory.told[0].stream(">") == early


@INTERNET
def test_a_client_that_gives_up_before_the_target_is_up_leaves_no_trace(
    listen: Callable[[], Pair], tap: Callable[..., Tap], memory: Memory, eventually: Eventually
) -> None:
    pair = listen()
    pair.listener.close()
    running = tap(pair.front, pair.target)
    client = pair.connect(running.address)
    eventually(lambda: running.relays)
    reset_on_close(client)
    client.close()
    eventually(lambda: not running.relays)
    assert not memory.told


@INTERNET
def test_a_busy_port_is_an_error_that_says_so(family: str, listen: Callable[[], Pair]) -> None:
    busy = listen().target
    with pytest.raises(OSError, match=rf"{busy[0]}:{busy[1]} .*free it or choose another port"):
        start(Tap((str(busy[0]), int(busy[1])), [("127.0.0.1", 1)], {}))


@IPV4_ONLY
def test_taps_start_all_or_none(listen: Callable[[], Pair], eventually: Eventually) -> None:
    pair = listen()
    first = Tap(("127.0.0.1", 0), [pair.target], {})
    with pytest.raises(OSError, match="tap not started"):
        start(first, Tap(pair.target, [pair.target], {}))
    with pytest.raises(ConnectionRefusedError):
        pair.connect(first.address)


def test_a_slow_reader_slows_the_writer_down(joined: Sockets, memory: Memory) -> None:
    client, server = joined
    client.setblocking(False)
    sent = 0
    while sent < 200_000_000 and select([], [client], [], 0.5)[1]:
        sent += client.send(b"x" * 100_000)
    # What fits into the buffers of two connections, and into the tap's: not all that was offered.
    assert sent < 30_000_000
    client.settimeout(5)
    threading.Thread(target=lambda: client.shutdown(socket.SHUT_WR)).start()
    assert len(read_all(server)) == sent


@IPV4_ONLY
def test_a_long_stream_stays_right(joined: Sockets, memory: Memory, eventually: Eventually) -> None:
    client, server = joined
    block = random.Random(5).randbytes(1 << 20)
    count = 150

    def talk() -> None:
        for n in range(count):
            client.sendall(struct.pack(">Q", n) + block)
        client.shutdown(socket.SHUT_WR)

    threading.Thread(target=talk).start()
    heard = read_all(server)
    assert len(heard) == count * (len(block) + 8) > 150_000_000
    assert heard == b"".join(struct.pack(">Q", n) + block for n in range(count))
    eventually(lambda: memory.told[0].ends)
    assert memory.told[0].stream(">") == heard


@IPV4_ONLY
def test_threads_take_turns_sooner_while_a_tap_runs_and_as_before_afterwards(
    listen: Callable[[], Pair],
) -> None:
    before = sys.getswitchinterval()
    running = Tap(("127.0.0.1", 0), [listen().target], {})
    start(running)
    assert sys.getswitchinterval() < 0.001
    stop(running)
    assert sys.getswitchinterval() == before


@INTERNET
def test_addresses_are_those_that_the_client_sees(joined: Sockets, memory: Memory) -> None:
    client, server = joined
    server.sendall(b"x")
    assert client.recv(1) == b"x"
    THREAD.run(asyncio.sleep, 0)
    told = memory.told[0]
    assert told.client == client.getsockname()[:2]
    assert told.server == client.getpeername()[:2]
    assert told.server != server.getsockname()[:2]


@pytest.mark.parametrize("family", ["Unix-domain"], indirect=True)
def test_addresses_of_unix_domain_sockets_are_made_up_and_tell_no_path(
    listen: Callable[[], Pair], tap: Callable[..., Tap], memory: Memory, eventually: Eventually
) -> None:
    pair = listen()
    running = tap(pair.front, pair.target)
    with pair.connect(running.address), pair.connect(running.address):
        eventually(lambda: len(memory.told) == 2)
    one, other = memory.told
    assert {told.client[0] for told in (one, other)} == {"127.0.0.1"}
    assert one.client != other.client
    assert one.server == other.server
    assert os.stat(str(running.address)).st_mode & 0o777 == 0o600


@INTERNET
def test_small_messages_are_not_held_back(
    listen: Callable[[], Pair], tap: Callable[..., Tap], eventually: Eventually
) -> None:
    pair = listen()
    running = tap(pair.front, pair.target)
    with pair.connect(running.address):
        eventually(lambda: [relay for relay in running.relays if relay.stands])
        (relay,) = running.relays
        for side in (relay.near, relay.far):
            assert side.transport is not None
            sock = side.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_tap_stops_without_noise_and_listens_no_more(
    family: str,
    listen: Callable[[], Pair],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pair = listen()
    running = Tap(pair.front, [pair.target], {})
    start(running)
    with pair.connect(running.address) as client:
        server, _ = pair.listener.accept()
        with server:
            stop(running, drain=0)
            assert client.recv(1) == b""
            assert server.recv(1) == b""
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        pair.connect(running.address)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not [t for t in threading.enumerate() if t.name == "underhood taps"]


def test_last_words_of_a_target_that_just_ended_are_forwarded_before_a_tap_stops(
    listen: Callable[[], Pair], tap: Callable[..., Tap]
) -> None:
    pair = listen()
    running = tap(pair.front, pair.target)
    with pair.connect(running.address) as client:
        server, _ = pair.listener.accept()
        client.sendall(b"?")
        assert server.recv(1) == b"?"  # so the tap has noticed, too, that the target is reached
        server.sendall(b"last words" * 100_000)
        heard: list[bytes] = []
        hearing = threading.Thread(target=lambda: heard.append(read_all(client)))
        hearing.start()
        server.close()
        stop(running)
        hearing.join(5)
    assert heard == [b"last words" * 100_000]


@IPV4_ONLY
def test_a_sink_that_is_detached_is_told_no_more_but_forwarding_goes_on(
    joined: Sockets, memory: Memory, listen: Callable[[], Pair]
) -> None:
    from underhood.capture.tap import detach

    client, server = joined
    client.sendall(b"on record")
    assert server.recv(100) == b"on record"
    detach(memory)
    client.sendall(b"off record")
    assert server.recv(100) == b"off record"
    THREAD.run(asyncio.sleep, 0)
    assert memory.told[0].stream(">") == b"on record"


@IPV4_ONLY
def test_several_sinks_are_told_the_same(listen: Callable[[], Pair]) -> None:
    pair = listen()
    sinks = {Memory(): Link("a", "b", "x"), Memory(): Link("c", "d", "y")}
    running = Tap(pair.front, [pair.target], sinks)
    start(running)
    with pair.connect(running.address) as client:
        server, _ = pair.listener.accept()
        with server:
            client.sendall(b"to all")
            assert server.recv(100) == b"to all"
            THREAD.run(asyncio.sleep, 0)
    stop(running, drain=0)
    assert [sink.told[0].stream(">") for sink in sinks] == [b"to all", b"to all"]
    assert [sink.told[0].link for sink in sinks] == list(sinks.values())


def test_children_share_the_clock() -> None:
    script = "from underhood.capture.tap import now_ns; print(now_ns())"
    from underhood.capture.tap import CLOCK_OFFSET

    # An offset that is an hour off shows that the child takes ours, not its own.
    hour = 3600 * 10**9
    before = now_ns() + hour
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "UNDERHOOD_CLOCK": str(CLOCK_OFFSET + hour)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert before < int(result.stdout) < now_ns() + hour
    assert abs(now_ns() - time.time_ns()) < 60 * 10**9


@IPV4_ONLY
def test_a_forked_child_can_have_taps_of_its_own(
    joined: Sockets, listen: Callable[[], Pair]
) -> None:
    if not hasattr(os, "fork"):
        missing("this system cannot fork")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert not THREAD.running
            pair = listen()
            running = Tap(pair.front, [pair.target], {})
            start(running)
            with pair.connect(running.address) as client:
                server, _ = pair.listener.accept()
                client.sendall(b"x")
                assert server.recv(1) == b"x"
            stop(running, drain=0)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    client, server = joined
    client.sendall(b"the parent's still work")
    assert server.recv(100) == b"the parent's still work"


@IPV4_ONLY
def test_a_forked_child_does_not_keep_the_port_open(listen: Callable[[], Pair]) -> None:
    pair = listen()
    running = Tap(pair.front, [pair.target], {})
    start(running)
    leave, stay = os.pipe()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(tell, b"x")
        os.read(leave, 1)
        os._exit(0)
    try:
        os.read(told, 1)  # what follows a fork in the child is done
        stop(running, drain=0)
        with pytest.raises(ConnectionRefusedError):
            pair.connect(running.address)
    finally:
        os.write(stay, b"x")
        os.waitpid(pid, 0)
        for end in (leave, stay, told, tell):
            os.close(end)


def test_the_thread_ends_what_still_runs_on_it() -> None:
    ended = threading.Event()
    tasks = []

    async def dial() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def begin() -> None:
        tasks.append(asyncio.create_task(dial()))
        await asyncio.sleep(0)

    holder = object()
    THREAD.hold(holder)
    THREAD.run(begin)
    THREAD.release(holder)
    assert ended.is_set(), "Python would say: Task was destroyed but it is pending"
