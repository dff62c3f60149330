"""The runner that a reader takes away from *Automate a notebook*: real notebooks, real kernels."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import nbformat
import pytest
from checkout import ROOT
from nbformat.v4 import new_code_cell, new_notebook

FILE = ROOT / "book/tooling/runner.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("runner", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["runner"] = module
    spec.loader.exec_module(module)
    return module


runner = load()


@pytest.fixture
def job(tmp_path):
    """Write a notebook with these cells; return the job to run it."""

    def make(*cells: str, kernel: str = "python3", **parameters: Any) -> Any:
        notebook = new_notebook(cells=[new_code_cell(source) for source in cells])
        notebook.metadata.kernelspec = {
            "name": kernel, "display_name": kernel, "language": "python",
        }  # fmt: skip
        if parameters:
            notebook.cells[0].metadata.tags = ["parameters"]
        number = len(list(tmp_path.glob("*.ipynb")))
        source = tmp_path / f"notebook-{number}.ipynb"
        nbformat.write(notebook, source)
        return runner.Job(source, tmp_path / "done" / source.name, parameters)

    return make


def texts(job: Any) -> list[str]:
    """Every text that the executed notebook shows."""
    found = []
    for cell in nbformat.read(job.target, as_version=4).cells:
        for output in cell.get("outputs", []):
            found.append(output.get("text") or output.get("data", {}).get("text/plain"))
    return found


def test_a_notebook_that_runs_is_saved_with_its_outputs_and_its_source_is_left_alone(job):
    doubled = job("x = 21", "2 * x")
    before = doubled.source.read_bytes()
    outcome = runner.run(doubled)
    assert (outcome.fate, outcome.why, outcome.tries, outcome.ok) == ("ok", "", 1, True)
    assert texts(doubled) == ["42"]
    assert doubled.source.read_bytes() == before
    assert [place for place, _ in outcome.cells] == [0, 1]
    assert 0 < sum(seconds for _, seconds in outcome.cells) < outcome.seconds


def test_parameters_replace_what_the_tagged_cell_sets(job):
    asked = job("city = 'Paris'", "city", city="Tokyo")
    assert runner.run(asked).ok
    assert texts(asked) == ["'Tokyo'"]


def test_a_cell_that_raises_ends_the_run_and_keeps_what_was_computed(job):
    broken = job("print('kept')", "1 / 0", "print('never')")
    outcome = runner.run(broken, tries=3)
    assert (outcome.fate, outcome.tries) == ("error", 1)
    assert outcome.why == "cell 1: ZeroDivisionError: division by zero"
    assert texts(broken)[0] == "kept\n"
    assert "never\n" not in texts(broken)
    assert nbformat.read(broken.target, as_version=4).cells[1].outputs[0].ename


def test_a_cell_that_asks_somebody_is_told_apart_from_one_that_fails(job):
    outcome = runner.run(job("input('Who is there? ')"))
    assert outcome.fate == "input"


def test_a_cell_that_takes_too_long_is_left_with_what_it_had_printed(job):
    slow = job("import time\nprint('begun', flush=True)\ntime.sleep(600)", "1")
    outcome = runner.run(slow, timeout=2)
    assert (outcome.fate, outcome.why) == ("timeout", "cell 0 took more than 2 s")
    assert texts(slow) == ["begun\n"]
    assert outcome.cells == ()


def test_a_kernel_that_dies_is_tried_again_and_its_last_words_are_kept(job, tmp_path):
    dying = job("import os, sys", "os.write(2, b'out of luck\\n'); os._exit(1)")
    outcome = runner.run(dying, tries=2)
    assert (outcome.fate, outcome.tries) == ("dead kernel", 2)
    assert outcome.why == "in cell 1: out of luck"
    # The second time it lives.
    once = job(
        f"import os, pathlib\nmark = pathlib.Path({str(tmp_path / 'mark')!r})",
        "if not mark.exists():\n    mark.touch()\n    os._exit(1)\n'lives'",
    )
    outcome = runner.run(once, tries=2)
    assert (outcome.fate, outcome.tries) == ("ok", 2)
    assert texts(once) == ["'lives'"]


def test_a_kernel_that_is_not_installed_is_named(job):
    outcome = runner.run(job("1", kernel="cobol"))
    assert (outcome.fate, outcome.why, outcome.tries) == (
        "no kernel", "no kernel is called 'cobol'", 1,
    )  # fmt: skip


def test_a_kernel_whose_program_is_gone_is_an_outcome_too(job, tmp_path, monkeypatch):
    spec = tmp_path / "kernels" / "gone"
    spec.mkdir(parents=True)
    command = [str(tmp_path / "no-such-python"), "-f", "{connection_file}"]
    about = {"argv": command, "display_name": "Gone", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(about))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    outcome = runner.run(job("1", kernel="gone"), tries=2)
    assert outcome.fate == "no kernel"
    assert "cannot be started" in outcome.why


@pytest.mark.parametrize(
    "content",
    ["", "no JSON", "[]", "{}", '{"cells": 5}', '{"nbformat": 4, "nbformat_minor": 5}', "\xff"],
)
def test_what_is_no_notebook_is_refused_before_a_kernel_is_started(content, tmp_path):
    source = tmp_path / "broken.ipynb"
    source.write_bytes(content.encode("latin-1"))
    outcome = runner.run(runner.Job(source, tmp_path / "done.ipynb"))
    assert outcome.fate == "invalid"
    assert outcome.why
    assert not (tmp_path / "done.ipynb").exists()


def test_a_notebook_that_is_not_there_is_an_outcome_too(tmp_path):
    outcome = runner.run(runner.Job(tmp_path / "none.ipynb", tmp_path / "done.ipynb"))
    assert outcome.fate == "invalid"
    assert "none.ipynb" in outcome.why


def test_two_workers_run_two_at_a_time(job, tmp_path):
    meet = (
        "import pathlib, time",
        "mine, other = map(pathlib.Path, {})",
        "mine.touch()",
        "while not other.exists(): time.sleep(0.05)",
    )
    places = [str(tmp_path / name) for name in ("here", "there")]
    jobs = [job("\n".join(meet).format(order)) for order in (places, places[::-1])]
    outcomes = list(runner.run_all(jobs, workers=2))
    assert all(outcome.ok for outcome in outcomes), "each waited for the other"


def test_whoever_has_an_executor_can_lend_it(job):
    with ThreadPoolExecutor(1) as pool:
        (outcome,) = runner.run_all([job("1")], executor=pool)
        assert outcome.ok
        pool.submit(time.sleep, 0).result()  # it is still open


def test_outcomes_come_as_they_end_not_in_the_order_of_the_jobs(job):
    slow, quick = job("import time; time.sleep(5)"), job("1")
    names = [o.job.source.name for o in runner.run_all([slow, quick], workers=2)]
    assert names == [quick.source.name, slow.source.name]


def test_a_caller_hears_of_each_code_cell_before_it_runs(job):
    heard = []
    runner.run(job("1", "2"), on_cell=lambda job, place: heard.append(place))
    assert heard == [0, 1]


def test_a_report_says_what_became_of_each_and_shows_its_last_output(job):
    good, bad = job("'fine'"), job("'early'", "1 / 0 | 1")
    outcomes = [runner.run(each) for each in (bad, good)]
    made = runner.report(outcomes)
    nbformat.validate(made)
    table = made.cells[0].source
    assert "| notebook-0.ipynb | ok |" in table
    assert "| notebook-1.ipynb | error |" in table
    shown = [cell.outputs[0] for cell in made.cells if cell.cell_type == "code"]
    assert shown[0].data["text/plain"] == "'fine'"
    assert shown[1].ename == "ZeroDivisionError"


def test_the_command_line_runs_notebooks_and_fails_if_one_failed(job, tmp_path):
    good, bad = job("n = 1", "n + 1", n=0), job("n = 1", "1 / 0", n=0)
    command = [sys.executable, FILE, good.source, bad.source, "--to", tmp_path / "out"]
    done = subprocess.run(
        [*map(str, command), "-p", "n", "41"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == ["error", "ok"]
    read = nbformat.read(tmp_path / "out" / good.source.name, as_version=4)
    assert read.cells[-1].outputs[0].data["text/plain"] == "42"
    assert (tmp_path / "out" / "report.ipynb").is_file()


def test_after_a_failure_nothing_is_left_waiting_in_the_background(job, tmp_path):
    slow = job("import time; time.sleep(600)")
    code = (
        f"import gc, pathlib, runner\n"
        f"source, target = map(pathlib.Path, {[str(slow.source), str(slow.target)]!r})\n"
        f"job = runner.Job(source, target)\n"
        f"print(runner.run(job, timeout=1).fate)\n"
        f"gc.collect()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FILE.parent, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("timeout\n", "")


def test_whoever_stops_listening_stops_what_has_not_begun(job):
    jobs = [job("1") for _ in range(6)]
    for _ in runner.run_all(jobs, workers=1):
        break
    assert sum(each.target.exists() for each in jobs) <= 3
