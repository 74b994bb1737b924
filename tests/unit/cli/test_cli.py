"""The command line: one line and exit code 2 for each mistake."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from smokehouse.cli import app

from ..conftest import TestCheckout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command; see --help"),
        (["lcok"], "No such command 'lcok'"),
        (["lock", "--chek"], "No such option: --chek"),
        (
            ["lock", "tiny", "--tools"],
            "--tools: expected no names and no option but --check and --unsettled;",
        ),
    ],
)
def test_usage(checkout: TestCheckout, arguments: list[str], message: str) -> None:
    assert message in checkout.refused(*arguments)


def test_help(checkout: TestCheckout) -> None:
    ended = checkout.run("lock", "--help")
    assert ended.returncode == 0
    assert "--check" in ended.stdout


def test_workflows_call_existing_sessions_and_options(root: Path) -> None:
    sessions = re.findall(r"^@nox\.session\ndef (\w+)", (root / "noxfile.py").read_text(), re.MULTILINE)
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    seen = set()
    for place in (root / ".github" / "workflows").glob("*.yml"):
        workflow = yaml.safe_load(place.read_text())
        # YAML reads `on` as true. A workflow without the input runs each line as it is.
        inputs = (workflow[True].get("workflow_dispatch") or {}).get("inputs", {})
        flavours = inputs["flavour"]["options"] if inputs else [""]
        steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
        for line in re.findall(r"\bnox -s .*", "\n".join(steps).replace("\\\n", " ")):
            for flavour in flavours:
                words = shlex.split(line.partition(" | ")[0].replace("$FLAVOUR", flavour))
                names, _, arguments = " ".join(words[2:]).partition(" -- ")
                for session in names.split():
                    assert session in sessions
                    if session in verbs:
                        verbs[session].make_context(session, arguments.split())
                    seen.add((place.stem, session, flavour))
    assert seen == {("images", session, flavour) for session in ("publish", "verify") for flavour in ("runtime", "devel")} | {
        *(("checks", session, "") for session in ("lint", "lock", "docs", "site", "tests", "cluster")),
        *(("weekly", session, "") for session in ("images", "drift", "audit", "tests")),
    }
