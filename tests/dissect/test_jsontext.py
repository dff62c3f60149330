"""JSON texts as spans."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiling import assert_tiles, fields, holes

from underhood.dissect.jsontext import Names, json_spans, read_json
from underhood.dissect.spans import Span

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)
LAYOUTS = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])


def value_of(spans: tuple[Span, ...]) -> Any:
    (root,) = (span for span in spans if span.key != "json.whitespace")
    return root.value


@given(JSON, LAYOUTS, st.integers(0, 9))
def test_any_json_text_is_tiled_down_to_its_values(value: Any, layout: Any, base: int) -> None:
    text = json.dumps(value, **layout).encode("utf-8", "surrogatepass")
    spans = json_spans(text, base)
    assert_tiles(spans, base, base + len(text))
    assert holes(spans) == []
    # repr, since NaN is not equal to itself
    assert repr(value_of(spans)) == repr(read_json(text)[0])


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:0a \\', max_size=40).map(str.encode))
def test_what_is_json_is_decided_by_the_standard_library(text: bytes) -> None:
    spans = json_spans(text)
    assert_tiles(spans, 0, len(text))
    try:
        json.loads(text.decode("utf-8", "replace"))
    except ValueError:
        assert len(holes(spans)) == (1 if text else 0)
    else:
        assert holes(spans) == []


def test_a_member_has_the_key_that_its_place_gives_it() -> None:
    names = Names("top", {"a": Names("below")}, {"c": "elsewhere"})
    text = b'{"a": {"b": 1, "list": [{"x": 2}]}, "c": {"d": 3}}'
    found = {s.label: s.key for top in json_spans(text, 0, names) for s in top.walk()}
    assert found["a"] == "top.a"
    assert found["b"] == "below.b"
    assert found["x"] == "json.member"
    assert found["c"] == "elsewhere"
    assert found["d"] == "json.member"


def test_every_byte_of_an_object_has_its_place() -> None:
    (root,) = json_spans(b'{"a": [1, true]}')
    assert fields(root) == [("name", "a"), ("number", 1), ("boolean", True)]
    assert [leaf.length for leaf in root.leaves()] == [1, 3, 1, 1, 1, 1, 1, 1, 4, 1, 1]


def test_a_name_that_comes_twice_keeps_both_values_and_the_last_one_counts() -> None:
    (root,) = json_spans(b'{"a":1,"a":2}')
    assert [c.value for c in root.children if c.label == "a"] == [1, 2]
    assert root.value == {"a": 2}


def test_numbers_that_fast_parsers_change_stay_as_they_are() -> None:
    (root,) = json_spans(b'{"large": 123456789012345678901234567890, "nan": NaN}')
    assert root.value["large"] == 123456789012345678901234567890
    assert root.value["nan"] != root.value["nan"]


@pytest.mark.parametrize("depth", [500, 100_000])
def test_depth_is_no_danger(depth: int) -> None:
    text = b"[" * depth + b"]" * depth
    spans = json_spans(text)
    assert sum(leaf.length for leaf in spans[0].leaves()) == len(text)


def test_what_is_not_json_says_where_it_fails() -> None:
    (hole,) = json_spans(b'{"a": 1,}', 7)
    assert (hole.start, hole.length) == (7, 9)
    assert "line 1 column 9" in hole.value
