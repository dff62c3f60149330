"""Explanations: each field has one sentence and a link."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from underhood.dissect import explain
from underhood.dissect.explanations import explanations
from underhood.dissect.jupyter import MESSAGE_TYPES

SPECIFICATIONS = (
    "https://rfc.zeromq.org/spec/",
    "https://jupyter-client.readthedocs.io/en/stable/messaging.html#",
    "https://jupyter-server.readthedocs.io/en/latest/developers/websocket-protocols.html#",
    "https://jupyterhub.readthedocs.io/",
    "https://www.rfc-editor.org/rfc/rfc",
    "https://html.spec.whatwg.org/multipage/",
    "https://fetch.spec.whatwg.org/#",
    "https://www.w3.org/TR/",
    "https://w3c.github.io/",
    "https://wicg.github.io/ua-client-hints/#",
    "https://microsoft.github.io/debug-adapter-protocol/",
    "https://developer.mozilla.org/en-US/docs/Web/HTTP/",
    "https://www.tornadoweb.org/en/stable/",
    "https://github.com/ipython/ipykernel/",
)


@pytest.mark.parametrize("key", sorted(explanations()))
def test_an_explanation_is_a_sentence_with_a_link_into_a_specification(key: str) -> None:
    explanation = explain(key)
    assert re.fullmatch(r"[A-Z].{9,220}[.]", explanation.sentence), explanation.sentence
    assert explanation.link.startswith(SPECIFICATIONS), explanation.link


@pytest.mark.parametrize("msg_type", sorted(MESSAGE_TYPES))
def test_every_type_of_the_messaging_specification_is_explained(msg_type: str) -> None:
    assert f"jupyter.{msg_type}" in explanations()


def test_header_fields_that_nobody_knows_have_a_general_explanation() -> None:
    assert explain("http.header.x-of-my-own") == explain("http.header.other")


def test_fields_that_nobody_knows_have_a_general_explanation() -> None:
    assert explain("jupyter.status.of_my_own") == explain("json.member")


def test_a_key_that_no_span_has_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"explanations\.yml"):
        explain("zmtp.nonsense")


def test_the_file_is_read_when_the_first_explanation_is_asked_for() -> None:
    script = (
        "import sys; import underhood; assert 'yaml' not in sys.modules;"
        "from underhood.dissect import explain; explain('zmtp.frame'); assert 'yaml' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
