"""ZMTP as libzmq speaks it: real sockets, a tap in between."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import zmq
import zmq.auth
from recorded import Tapped, tapped
from tiling import examine, holes, labels
from wire import command, greeting, message, prop, ready
from zmq.auth.thread import ThreadAuthenticator

from underhood.dissect import Dissection


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


def bound(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> tuple[zmq.Socket[bytes], int]:
    peer = context.socket(kind)
    return peer, peer.bind_to_random_port("tcp://127.0.0.1")


def connected(context: zmq.Context[zmq.Socket[bytes]], kind: int, tap: Tapped) -> zmq.Socket[bytes]:
    peer = context.socket(kind)
    peer.connect(f"tcp://127.0.0.1:{tap.port}")
    return peer


def read(tap: Tapped, upward: int, downward: int) -> Dissection:
    """Wait until so many messages have passed each way, and check that every byte is read."""

    def enough(streams: object) -> bool:
        found = examine(tap.streams())
        return len(found.units(">")) >= upward and len(found.units("<")) >= downward

    dissection = examine(tap.wait(enough))
    assert holes(dissection.spans(">")) == holes(dissection.spans("<")) == []
    return dissection


def test_null_with_identity_and_multipart(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router, port = bound(context, zmq.ROUTER)
    with tapped(port) as tap:
        dealer = context.socket(zmq.DEALER)
        dealer.identity = b"session-1"
        dealer.connect(f"tcp://127.0.0.1:{tap.port}")
        dealer.send_multipart([b"hello", b"", b"x" * 70_000])
        assert router.recv_multipart() == [b"session-1", b"hello", b"", b"x" * 70_000]
        router.send_multipart([b"session-1", b"back"])
        dissection = read(tap, 3, 3)
    assert dissection.identity == b"session-1"
    assert labels(dissection, ">") == ["greeting", "READY", "message"]
    assert [unit.detail for unit in dissection.units("<")] == ["3.1 NULL", "ROUTER", "back"]


def test_subscriptions_are_commands_between_new_peers(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    publisher, port = bound(context, zmq.XPUB)
    with tapped(port) as tap:
        subscriber = connected(context, zmq.SUB, tap)
        subscriber.subscribe(b"")
        subscriber.subscribe(b"stream")
        subscriber.unsubscribe(b"stream")
        assert [publisher.recv() for _ in range(3)] == [b"\x01", b"\x01stream", b"\x00stream"]
        publisher.send_multipart([b"stream.stdout", b"text"])
        assert subscriber.recv_multipart() == [b"stream.stdout", b"text"]
        dissection = read(tap, 5, 3)
    assert [(unit.label, unit.detail) for unit in dissection.units(">")[2:]] == [
        ("SUBSCRIBE", "everything"),
        ("SUBSCRIBE", "stream"),
        ("CANCEL", "stream"),
    ]


def test_a_30_subscriber_sends_subscriptions_as_messages(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    publisher, port = bound(context, zmq.XPUB)
    with tapped(port) as tap, socket.create_connection(("127.0.0.1", tap.port)) as old:
        old.sendall(greeting(minor=0) + ready(b"SUB"))
        read(tap, 2, 2)
        old.sendall(message(b"\x01topic"))
        assert publisher.recv() == b"\x01topic"  # libzmq took it for a subscription, too
        old.sendall(message(b"\x00topic"))
        assert publisher.recv() == b"\x00topic"
        dissection = read(tap, 4, 2)
    assert [(unit.label, unit.detail) for unit in dissection.units(">")] == [
        ("greeting", "3.0 NULL"),
        ("READY", "SUB"),
        ("SUBSCRIBE", "topic"),
        ("CANCEL", "topic"),
    ]


def test_libzmq_subscribes_by_message_at_a_30_publisher(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def publish() -> None:
            old, _ = listener.accept()
            with old:
                old.sendall(greeting(minor=0) + ready(b"PUB"))
                said = b""
                while not said.endswith(message(b"\x01topic")):
                    said += old.recv(1000)
                old.sendall(message(b"topic", b"news"))
                while old.recv(1000):
                    pass

        thread = threading.Thread(target=publish, daemon=True)
        thread.start()
        with tapped(listener.getsockname()[1]) as tap:
            subscriber = connected(context, zmq.SUB, tap)
            subscriber.subscribe(b"topic")
            assert subscriber.recv_multipart() == [b"topic", b"news"]
            dissection = read(tap, 3, 3)
            subscriber.close(linger=0)
        thread.join(5)
    assert [(unit.label, unit.detail) for unit in dissection.units(">")[2:]] == [
        ("SUBSCRIBE", "topic")
    ]


def test_zeromq_has_a_heartbeat_of_its_own(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    _, port = bound(context, zmq.ROUTER)
    with tapped(port) as tap:
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.HEARTBEAT_IVL, 50)
        dealer.setsockopt(zmq.HEARTBEAT_TTL, 3000)
        dealer.connect(f"tcp://127.0.0.1:{tap.port}")
        dissection = read(tap, 3, 3)
    ping, pong = dissection.units(">")[2], dissection.units("<")[2]
    assert (ping.label, pong.label) == ("PING", "PONG")
    assert {s.label: s.value for s in ping.span.leaves()}["TTL"] == 30  # tenths of a second


@pytest.fixture
def passwords(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[None]:
    """A server of PLAIN asks an authenticator for each client's password."""
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_plain(domain="*", passwords={"admin": "secret"})
    yield
    authenticator.stop()


@pytest.mark.usefixtures("passwords")
def test_plain_with_the_right_password(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router = context.socket(zmq.ROUTER)
    router.plain_server = True
    port = router.bind_to_random_port("tcp://127.0.0.1")
    with tapped(port) as tap:
        dealer = context.socket(zmq.DEALER)
        dealer.plain_username, dealer.plain_password = b"admin", b"secret"
        dealer.connect(f"tcp://127.0.0.1:{tap.port}")
        dealer.send(b"hello")
        assert router.recv_multipart()[1] == b"hello"
        dissection = read(tap, 4, 3)
    assert labels(dissection, ">") == ["greeting", "HELLO", "INITIATE", "message"]
    assert labels(dissection, "<") == ["greeting", "WELCOME", "READY"]
    assert {s.label: s.value for s in dissection.spans(">")[1].leaves()}["password"] == "secret"
    assert dissection.units(">")[2].detail == "DEALER"


@pytest.mark.usefixtures("passwords")
def test_plain_with_a_wrong_password_is_refused_with_a_misspelt_error(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    router = context.socket(zmq.ROUTER)
    router.plain_server = True
    port = router.bind_to_random_port("tcp://127.0.0.1")
    with tapped(port) as tap:
        dealer = context.socket(zmq.DEALER)
        dealer.plain_username, dealer.plain_password = b"admin", b"guess"
        dealer.connect(f"tcp://127.0.0.1:{tap.port}")
        dissection = read(tap, 2, 2)
        dealer.close(linger=0)
    refusal = dissection.units("<")[1]
    assert (refusal.label, refusal.detail) == ("ERROR", "400")
    # Should libzmq mend this, the byte 5E becomes 05 45, and the assertion shows it.
    assert dissection.streams["<"].endswith(b"\x04\x09\x5eRROR\x03400")


@pytest.mark.parametrize("heartbeat", [False, True])
def test_curve_shows_nothing_but_lengths(
    context: zmq.Context[zmq.Socket[bytes]], heartbeat: bool
) -> None:
    server_public, server_secret = zmq.curve_keypair()
    publisher = context.socket(zmq.XPUB)
    publisher.curve_server, publisher.curve_secretkey = True, server_secret
    port = publisher.bind_to_random_port("tcp://127.0.0.1")
    with tapped(port) as tap:
        subscriber = context.socket(zmq.SUB)
        subscriber.curve_publickey, subscriber.curve_secretkey = zmq.curve_keypair()
        subscriber.curve_serverkey = server_public
        if heartbeat:
            subscriber.setsockopt(zmq.HEARTBEAT_IVL, 50)
        subscriber.connect(f"tcp://127.0.0.1:{tap.port}")
        subscriber.subscribe(b"")
        assert publisher.recv() == b"\x01"
        publisher.send_multipart([b"topic", b"secret news"])
        assert subscriber.recv_multipart() == [b"topic", b"secret news"]
        if heartbeat:
            time.sleep(0.2)
        dissection = read(tap, 5 if heartbeat else 4, 5)
    assert labels(dissection, ">")[:3] == ["greeting", "HELLO", "INITIATE"]
    assert labels(dissection, "<")[:3] == ["greeting", "WELCOME", "READY"]
    assert set(labels(dissection, ">")[3:]) == set(labels(dissection, "<")[3:]) == {"sealed"}
    assert b"secret news" not in dissection.streams["<"]


def test_peers_of_different_mechanisms_part_after_the_greeting(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    _, port = bound(context, zmq.ROUTER)
    with tapped(port) as tap, socket.create_connection(("127.0.0.1", tap.port)) as peer:
        peer.sendall(greeting(b"PLAIN")[:11])
        tap.wait(lambda streams: len(streams["<"]) == 64)
        peer.sendall(greeting(b"PLAIN")[11:] + command(b"HELLO", b"\1a\1b"))
        dissection = read(tap, 2, 1)
    assert labels(dissection, "<") == ["greeting"]
    assert dissection.units(">")[0].detail == "3.1 PLAIN"


def test_libzmq_waits_with_half_a_greeting(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    _, port = bound(context, zmq.ROUTER)
    with tapped(port) as tap, socket.create_connection(("127.0.0.1", tap.port)):
        dissection = read(tap, 0, 1)
    (unit,) = dissection.units("<")
    assert (unit.label, unit.detail) == ("greeting", f"only {unit.end} bytes")
    assert unit.end in (10, 11, 12)


def test_metadata_of_an_application_is_shown(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router, port = bound(context, zmq.ROUTER)
    with tapped(port) as tap:
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.METADATA, b"X-Course:under the hood")
        dealer.connect(f"tcp://127.0.0.1:{tap.port}")
        dealer.send(b"hello")
        assert router.recv_multipart()[1] == b"hello"
        dissection = read(tap, 3, 2)
    said = {s.label: s.value for s in dissection.units(">")[1].span.children}
    assert said["X-Course"] == "under the hood"
    assert prop(b"X-Course", b"under the hood") in dissection.streams[">"]
