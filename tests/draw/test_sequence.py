"""A sequence diagram shows each message of its trace, once, in order, and nothing else."""

from __future__ import annotations

import re

import pytest
from conversations import execute

from underhood.trace import Trace


def arrows(drawn: str) -> list[int]:
    return [int(n) for n in re.findall(r'data-message="(\d+)"', drawn)]


def one_cell() -> Trace:
    trace = execute().trace()
    return trace.answering(trace.types("execute_request")[0].msg_id)


def test_arrows_are_the_messages_in_order() -> None:
    trace = one_cell()
    assert arrows(trace.sequence_diagram().svg) == [m.number for m in trace]
    assert arrows(trace.sequence_diagram().html) == [m.number for m in trace]


def test_parties_left_out_are_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="'kernel'"):
        one_cell().sequence_diagram(parties=["client"])
