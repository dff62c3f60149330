"""What a connection says of itself."""

from __future__ import annotations

import pytest

from underhood.capture.store import Connection, End, Link

LINK = Link("client", "kernel", "shell")


@pytest.mark.parametrize(
    ("ends", "closed"),
    [
        ((), None),
        ((End(5, ">", "fin"),), None),
        ((End(5, ">", "fin"), End(7, "<", "fin")), 7),
        ((End(7, "<", "fin"), End(9, ">", "reset")), 9),
        ((End(5, "<", "reset"), End(6, ">", "reset")), 5),
    ],
    ids=["open", "half-closed", "closed", "closed and reset", "reset twice"],
)
def test_a_connection_is_closed_when_nothing_can_come_any_more(
    ends: tuple[End, ...], closed: int | None
) -> None:
    connection = Connection(LINK, 1, ("127.0.0.1", 1), ("127.0.0.1", 2), 0, (), ends)
    assert connection.closed == closed
