"""The benchmarks' collector finds each of them, and says when one is not right."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from checkout import ROOT

README = (ROOT / "benchmarks" / "README.md").read_text("utf-8")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.__main__")


def test_each_benchmark_can_be_run_and_is_described(collector: ModuleType) -> None:
    names = collector.names()
    assert "tap_latency" in names
    assert set(names) == {path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")}
    for name in names:
        assert callable(importlib.import_module(f"benchmarks.{name}").run)
        assert f"`{name}`" in README, f"benchmarks/README.md does not describe {name}"


def test_rows_are_collected_and_incomplete_ones_refused(
    collector: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"name": "a thing", "ours": 1234.5, "peer": 0.5, "ratio": 2.469, "unit": "MB/s"}
    made = ModuleType("benchmarks.made_up")
    made.run = lambda: [row]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "benchmarks.made_up", made)
    assert collector.measure("made_up") == [{"benchmark": "made_up", **row}]
    made.run = lambda: [{"name": "a thing"}]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="has no ours, peer, ratio, unit"):
        collector.measure("made_up")
