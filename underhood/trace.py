"""A trace: the messages of a capture, in order, to filter, correlate, check and draw.

Strategy: the dissectors say where each message lies in its stream; this module adds who, to whom
and when. A message knows only offsets until somebody asks for more, so a trace of a long capture
is cheap. A trace never changes: each filter gives a new one, whose messages keep their numbers
and which remembers the query that made it, so that a picture can be checked against its capture.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, overload

from underhood.capture.store import (
    CLIENT_TO_SERVER,
    DIRECTIONS,
    Capture,
    Connection,
    Direction,
    Link,
    scheme_of,
)
from underhood.dissect import Dissection, Unit, dissect
from underhood.dissect.jupyter import JupyterMessage, Signature
from underhood.dissect.spans import Span

if TYPE_CHECKING:
    from underhood.check import Finding
    from underhood.draw.page import Picture

Query = tuple[tuple[str, tuple[Any, ...]], ...]

CLIENT = "client"
"""What a link calls the program that talks to a kernel directly."""


class Message:
    """One message on one hop.

    Attributes
    ----------
    number : int
        Its place in the trace of the whole capture, from 0; it stays the same in every filtered
        trace, and pictures address the message by it.
    time_ns : int
        When its last byte passed the tap, in nanoseconds since 1970.
    sender, receiver : str
        The parties, as lifelines name them.
    link : Link
        The hop it travelled on.
    connection : int
        The id of its connection in the capture.
    direction : str
        ``">"`` from the party that opened the connection, ``"<"`` to it.
    """

    __slots__ = (
        "_dissection", "_key", "_unit", "connection", "direction", "link", "number", "receiver",
        "sender", "time_ns",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        time_ns: int,
        sender: str,
        receiver: str,
        link: Link,
        connection: int,
        direction: Direction,
        unit: Unit,
        dissection: Dissection,
        key: bytes | None,
    ) -> None:
        self.number, self.time_ns, self.sender, self.receiver = number, time_ns, sender, receiver
        self.link, self.connection, self.direction = link, connection, direction
        self._unit, self._dissection, self._key = unit, dissection, key

    def __repr__(self) -> str:
        return (
            f"<Message {self.number} {self.sender} → {self.receiver} "
            f"{self.channel}: {self.label}{f' ({self.detail})' if self.detail else ''}>"
        )

    @property
    def protocol(self) -> str:
        """``"jupyter"``, ``"zmtp"``, ``"http"`` or ``"websocket"``."""
        return self._unit.protocol

    @property
    def label(self) -> str:
        """What an arrow says: a message type, a command's name, a request line's method …."""
        return self._unit.label

    @property
    def detail(self) -> str:
        """A few words more: ``"busy"`` for a status, ``"stdout"`` for a stream."""
        return self._unit.detail

    @property
    def jupyter(self) -> JupyterMessage | None:
        """The Jupyter message that it carries, if it does."""
        return self._unit.jupyter

    @property
    def channel(self) -> str:
        """``"shell"`` and its sisters, for kernel messages on either hop; else the link's."""
        message = self._unit.jupyter
        return (message.channel if message else "") or self.link.channel

    def __getattr__(self, name: str) -> Any:
        """Give the fields of the unit (``method``, ``status`` …) and of its Jupyter message."""
        if not name.startswith("_"):
            for source in (self._unit, self._unit.jupyter):
                if source is not None and hasattr(source, name):
                    return getattr(source, name)
        raise AttributeError(f"this {self.protocol} message has no {name!r}")

    @property
    def msg_id(self) -> str:
        """The Jupyter header's ``msg_id``; empty if it is not a Jupyter message."""
        message = self._unit.jupyter
        return str(message.header.get("msg_id", "")) if message else ""

    @property
    def parent_id(self) -> str:
        """The ``msg_id`` in the parent header; empty if there is none."""
        message = self._unit.jupyter
        return str(message.parent_header.get("msg_id", "")) if message else ""

    @property
    def parent_type(self) -> str:
        """The message type in the parent header; empty if there is none."""
        message = self._unit.jupyter
        return str(message.parent_header.get("msg_type", "")) if message else ""

    @property
    def signature(self) -> Signature | None:
        """The verdict on its signature; None where the protocol has none."""
        message = self._unit.jupyter
        if message is None or self.protocol != "jupyter" or not message.signed_hop:
            return None
        if not self._key:
            return message.verdict(None)
        return message.verdict(self._key, scheme_of(self._key))

    @property
    def size(self) -> int:
        """Its length on the wire, in bytes, framing included."""
        return self._unit.end - self._unit.start

    @property
    def data(self) -> bytes:
        """Its bytes, as they passed the tap."""
        return self._dissection.streams[self.direction][self._unit.start : self._unit.end]

    @property
    def span(self) -> Span:
        """The tree of its bytes; offsets count from the start of its stream."""
        return self._dissection.span(self._unit)

    def octets(self, *others: Message, **options: Any) -> Picture:
        """Show its bytes with every field explained, beside those of ``others`` if any.

        See :func:`underhood.draw.octets.octets`.
        """
        from underhood.draw.octets import octets

        return octets(self, *others, **options)


@dataclass(frozen=True, slots=True)
class Hop:
    """One message on its way: the same message on one link after another.

    ``taken_ns`` is the time since the hop before it, in nanoseconds; 0 for the first.
    """

    message: Message
    taken_ns: int


class Trace(Sequence[Message]):
    """An ordered, immutable sequence of messages.

    Filters give new traces; ``trace[2:5]`` too, and ``trace[0]`` is a message.

    Attributes
    ----------
    capture : Capture
        Where the messages come from.
    query : tuple
        The filters that made it from the trace of the whole capture; see :meth:`select`.
    dissections : mapping of int to Dissection
        What the bytes of each connection mean, by its id: also what is in no message.
    """

    __slots__ = ("_messages", "_whole", "capture", "dissections", "query")

    def __init__(
        self,
        messages: Iterable[Message],
        capture: Capture | None = None,
        query: Query = (),
        *,
        dissections: Mapping[int, Dissection] | None = None,
        whole: Trace | None = None,
    ) -> None:
        self._messages = tuple(messages)
        self.capture = capture if capture is not None else Capture()
        self.query = query
        self.dissections = dissections if dissections is not None else {}
        self._whole = whole

    @classmethod
    def of(cls, capture: Capture) -> Trace:
        """Dissect every connection of ``capture`` and order the messages by time."""
        dissections = {
            connection.id: dissect({d: connection.stream(d) for d in DIRECTIONS})
            for connection in capture.connections
        }
        names = _Names(capture, dissections)
        found: list[tuple[int, int, int, Connection, Unit]] = []
        for connection in capture.connections:
            for direction in DIRECTIONS:
                chunks = [c for c in connection.chunks if c.direction == direction]
                ends = list(accumulate(len(c.data) for c in chunks))
                for unit in dissections[connection.id].units(direction):
                    # A message has arrived when its last byte has.
                    time_ns = chunks[bisect_left(ends, unit.end)].time_ns
                    found.append((time_ns, connection.id, len(found), connection, unit))
        found.sort(key=lambda item: item[:3])
        messages = []
        for number, (time_ns, _, _, connection, unit) in enumerate(found):
            client, server = names.of(connection)
            forth = unit.direction == CLIENT_TO_SERVER
            messages.append(
                Message(
                    number,
                    time_ns,
                    client if forth else server,
                    server if forth else client,
                    connection.link,
                    connection.id,
                    unit.direction,
                    unit,
                    dissections[connection.id],
                    capture.keys.get(connection.link.kernel_id),
                )
            )
        # A capture may still be growing: what is seen now are its first so many messages.
        query: Query = (("first", (len(messages),)),)
        return cls(messages, capture, query, dissections=dissections)

    # ---- a sequence

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self._messages)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Trace: ...
    def __getitem__(self, index: int | slice) -> Message | Trace:
        if isinstance(index, slice):
            part = self._messages[index]
            return self._derived(part, "numbers", *(m.number for m in part))
        return self._messages[index]

    def __repr__(self) -> str:
        return f"<Trace of {len(self)} messages between {', '.join(self.parties) or 'nobody'}>"

    @property
    def whole(self) -> Trace:
        """The trace of the whole capture, which the filters started from."""
        return self if self._whole is None else self._whole

    @property
    def parties(self) -> tuple[str, ...]:
        """Everyone who sends or receives, clients before the servers that they connect to."""
        seen = dict.fromkeys(m.link for m in self._messages)
        ranks: dict[str, int] = {}
        for _ in seen:  # as many rounds as the longest chain could need
            for link in seen:
                ranks[link.server] = max(ranks.get(link.server, 0), ranks.get(link.client, 0) + 1)
                ranks.setdefault(link.client, 0)
            if len(ranks) > len(seen) + 1:
                break
        order = dict.fromkeys(
            p
            for m in self._messages
            for p in ((m.sender, m.receiver) if m.direction == ">" else (m.receiver, m.sender))
        )
        bases = {p: _base(p, ranks) for p in order}
        return tuple(sorted(order, key=lambda p: ranks.get(bases[p], 0)))

    # ---- filters

    def _derived(self, messages: Iterable[Message], name: str, *arguments: Any) -> Trace:
        return Trace(
            messages,
            self.capture,
            (*self.query, (name, arguments)),
            dissections=self.dissections,
            whole=self.whole,
        )

    def filter(self, keep: Callable[[Message], bool]) -> Trace:
        """Keep the messages for which ``keep(message)`` is true."""
        kept = [m for m in self if keep(m)]
        return self._derived(kept, "numbers", *(m.number for m in kept))

    def first(self, count: int) -> Trace:
        """Keep the messages that were among the first ``count`` of their capture."""
        return self._derived((m for m in self if m.number < count), "first", count)

    def numbers(self, *numbers: int) -> Trace:
        """Keep the messages with these numbers."""
        wanted = set(numbers)
        return self._derived((m for m in self if m.number in wanted), "numbers", *numbers)

    def between(self, one: str, other: str) -> Trace:
        """Keep what these two parties said to each other, either way."""
        pair = {one, other}
        return self._derived(
            (m for m in self if {m.sender, m.receiver} == pair), "between", one, other
        )

    def channel(self, *names: str) -> Trace:
        """Keep the messages of these channels (``"shell"``, ``"iopub"`` …, ``"http"``)."""
        return self._derived((m for m in self if m.channel in names), "channel", *names)

    def protocol(self, *names: str) -> Trace:
        """Keep the messages of these protocols (``"jupyter"``, ``"zmtp"`` …)."""
        return self._derived((m for m in self if m.protocol in names), "protocol", *names)

    def types(self, *labels: str) -> Trace:
        """Keep the messages with these labels (``"execute_request"``, ``"SUBSCRIBE"`` …)."""
        return self._derived((m for m in self if m.label in labels), "types", *labels)

    def answering(self, *msg_ids: str) -> Trace:
        """Keep the requests with these ``msg_id`` and each message whose parent one of them is."""
        wanted = set(msg_ids) - {""}
        # A kernel manager and its client may give the same msg_id to messages of different types:
        # they share a session, and both count from 0. The first one is meant.
        types = {m.msg_id: m.label for m in reversed(self) if m.msg_id in wanted}
        return self._derived(
            (
                m
                for m in self
                if (m.msg_id in wanted and m.label == types[m.msg_id])
                or (
                    m.parent_id in wanted
                    and m.parent_type in ("", types.get(m.parent_id, m.parent_type))
                )
            ),
            "answering",
            *msg_ids,
        )

    def until_idle(self) -> Trace:
        """Cut after the first request is complete: its reply *and* its ``idle`` have arrived.

        Channels have no order among each other, so either may come last. What is not complete
        is not cut.
        """
        open_ends: set[str] | None = None
        request = ""
        cut = len(self)
        for place, m in enumerate(self):
            if open_ends is None and m.label.endswith("_request") and m.msg_id:
                request, open_ends = m.msg_id, {"reply", "idle"}
            elif open_ends and m.parent_id == request:
                if m.label.endswith("_reply"):
                    open_ends.discard("reply")
                elif m.label == "status" and m.detail == "idle":
                    open_ends.discard("idle")
                if not open_ends:
                    cut = place + 1
                    break
        return self._derived(self._messages[:cut], "until_idle")

    def select(self, query: Iterable[Sequence[Any]]) -> Trace:
        """Apply a query, as found in ``trace.query`` or in a picture's ``data-query``."""
        trace = self
        for name, arguments in query:
            if name not in FILTERS:
                raise ValueError(f"no filter is called {name!r}; there are {', '.join(FILTERS)}")
            trace = getattr(trace, name)(*arguments)
        return trace

    @property
    def query_json(self) -> str:
        """The query that made this trace, as JSON."""
        return json.dumps(self.query)

    # ---- correlation

    def hops(self, msg_id: str) -> tuple[Hop, ...]:
        """Find one message on every link that it travelled, in order of time.

        A kernel publishes on every connection to its iopub; of several from one party to
        another, the first counts.

        Raises
        ------
        KeyError
            If no message has this ``msg_id``.
        """
        first: dict[tuple[Link, str, str], Message] = {}
        for m in self.answering(msg_id):
            if m.msg_id == msg_id:
                first.setdefault((m.link, m.sender, m.receiver), m)
        if not first:
            raise KeyError(f"no message in this trace has the msg_id {msg_id!r}")
        found = list(first.values())
        starts = [found[0].time_ns, *(m.time_ns for m in found)]
        return tuple(Hop(m, m.time_ns - before) for m, before in zip(found, starts, strict=False))

    def check(self) -> tuple[Finding, ...]:
        """Name what is wrong with the conversation; see :mod:`underhood.check`."""
        from underhood.check import check

        return check(self)

    # ---- pictures

    def sequence_diagram(self, **options: Any) -> Picture:
        """Draw the messages as a sequence diagram; see :mod:`underhood.draw.sequence`."""
        from underhood.draw.sequence import sequence_diagram

        return sequence_diagram(self, **options)

    def octets(self, **options: Any) -> Picture:
        """Show the bytes of the messages with every field explained.

        See :func:`underhood.draw.octets.octets`.
        """
        from underhood.draw.octets import octets

        return octets(self, **options)

    def timing(self, **options: Any) -> Picture:
        """Draw where the time goes between the messages; see :mod:`underhood.draw.timing`."""
        from underhood.draw.timing import timing

        return timing(self, **options)

    def table(self, **options: Any) -> Picture:
        """Show the messages as a table; see :mod:`underhood.draw.table`."""
        from underhood.draw.table import table

        return table(self, **options)


FILTERS = (
    "first", "numbers", "between", "channel", "protocol", "types", "answering", "until_idle",
)  # fmt: skip


def _base(party: str, ranks: dict[str, int]) -> str:
    """Strip the number from ``"client 2"``."""
    return party if party in ranks else party.rstrip("0123456789").rstrip()


class _Names:
    """Who is who, where one name would stand for several parties.

    Two kernels become "kernel" and "kernel 2". Two clients of one kernel become "client" and
    "client 2": they are told apart by the identity that each announces in its ZMTP handshakes.
    Of a client's five sockets only three announce it; another one belongs to the client whose
    identity was announced nearest in time, since a client opens its sockets together.
    """

    def __init__(self, capture: Capture, dissections: Mapping[int, Dissection]) -> None:
        self._kernels: dict[tuple[str, str], str] = {}
        self._clients: dict[int, str] = {}
        taken: dict[str, int] = {}
        # The identities met on each kernel, in order, and who announced one when.
        met: dict[tuple[str, str], dict[bytes, str]] = {}
        announced: dict[tuple[str, str], list[tuple[int, str]]] = {}
        for connection in capture.connections:
            link = connection.link
            kernel = (link.server, link.kernel_id)
            if kernel not in self._kernels:
                taken[link.server] = n = taken.get(link.server, 0) + 1
                self._kernels[kernel] = _numbered(link.server, n)
            # Only a program that talks to a kernel directly is told apart: a server opens
            # connections under several identities and is still one server.
            identity = dissections[connection.id].identity
            if link.client == CLIENT and identity:
                known = met.setdefault(kernel, {})
                name = known.setdefault(identity, _numbered(CLIENT, len(known) + 1))
                self._clients[connection.id] = name
                announced.setdefault(kernel, []).append((connection.opened, name))
        for connection in capture.connections:
            link = connection.link
            if link.client == CLIENT and connection.id not in self._clients:
                near = announced.get((link.server, link.kernel_id), ())
                self._clients[connection.id] = min(
                    near, key=lambda at: abs(at[0] - connection.opened), default=(0, CLIENT)
                )[1]

    def of(self, connection: Connection) -> tuple[str, str]:
        """Return the names of the connection's client and server."""
        link = connection.link
        client = self._clients.get(connection.id, link.client)
        return client, self._kernels[link.server, link.kernel_id]


def _numbered(name: str, n: int) -> str:
    return name if n == 1 else f"{name} {n}"
