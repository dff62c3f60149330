"""What a field is for: one plain sentence and a link into its specification.

Strategy: explanations are data, in ``explanations.yml``, grouped by the section that they link to.
The file is read when the first explanation is asked for. Fields that programs may invent (header
fields, members of a message's content) may be missing in it; they get a general explanation. A
field that turns up in a capture of the project's own must not: the tests see to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Final

# Keys that begin like this, and the key whose explanation stands in for them.
_GENERAL: Final = (("http.header.", "http.header.other"), ("jupyter.", "json.member"))


@dataclass(frozen=True, slots=True)
class Explanation:
    """One sentence about a field, and the section of its specification."""

    sentence: str
    link: str


@cache
def explanations() -> Mapping[str, Explanation]:
    """Return all explanations by key."""
    # Here, so that nobody pays for YAML who does not ask.
    import yaml

    text = resources.files(__package__).joinpath("explanations.yml").read_text("utf-8")
    found: dict[str, Explanation] = {}
    for group in yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        for key, sentence in group["fields"].items():
            if key in found:
                raise ValueError(f"explanations.yml explains {key!r} twice")
            found[key] = Explanation(sentence, group["link"])
    return MappingProxyType(found)


def explain(key: str) -> Explanation:
    """Explain a field.

    Parameters
    ----------
    key
        As spans carry it (``Span.key``), for example ``"jupyter.header.msg_id"``.

    Raises
    ------
    KeyError
        If there is no such field.
    """
    found = explanations().get(key)
    if found is not None:
        return found
    for start, general in _GENERAL:
        if key.startswith(start):
            return explanations()[general]
    raise KeyError(f"no field has the key {key!r}; see underhood/dissect/explanations.yml")
