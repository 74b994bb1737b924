"""`list` and `show`: which environments there are, and what is in one."""

import json

from ..conftest import TestCheckout


def test_environments_are_listed(checkout: TestCheckout) -> None:
    checkout.lock()
    ended = checkout.run("list")
    assert (ended.returncode, ended.stderr) == (0, "")
    head, row = ended.stdout.splitlines()
    assert head.split() == ["NAME", "STACK", "CUDA", "CUT-OFF", "PROVEN", "ON"]
    assert row.split() == ["tiny", "12.4", "2025-03-15", "not", "proven"]
    assert json.loads(checkout.run("list", "--json").stdout) == [
        {"name": "tiny", "stack": {}, "cuda": "12.4", "cutoff": "2025-03-15", "proven_on": None}
    ]


def test_an_environment_without_a_lock_is_listed_with_what_to_do(checkout: TestCheckout) -> None:
    problem = "lockfiles/tiny/lock.json: not found; run smokehouse lock tiny"
    ended = checkout.run("list")
    assert ended.returncode == 0
    assert ended.stdout.splitlines()[1] == f"tiny  {problem}"
    assert json.loads(checkout.run("list", "--json").stdout) == [{"name": "tiny", "problem": problem}]
    assert checkout.refused("show", "tiny") == f"smokehouse: {problem}"


def test_show_says_what_is_in_an_environment_and_where(checkout: TestCheckout) -> None:
    checkout.lock()
    before = checkout.run("show", "tiny").stdout
    for text in (
        "model        Qwen2_5_VLForConditionalGeneration (family qwen2_5_vl)\n",
        "packages     3 PyPI packages, ",
        "left out     vllm\n",
        "proven on    not proven\n",
        f"definition   {checkout.folder}\n",
        f"lock         {checkout.pins.parent}\n",
        "installed in not installed; run smokehouse smoke tiny\n",
    ):
        assert text in before
    assert checkout.run("smoke", "tiny").returncode == 0
    after = checkout.run("show", "tiny").stdout
    assert f"installed in {checkout.installed}\n" in after
    assert after.endswith(f"To use it: source {checkout.installed}/bin/activate, or smokehouse run tiny -- COMMAND\n")
    found = json.loads(checkout.run("show", "tiny", "--json").stdout)
    assert found["pypi"] == {"alpha": "1.0", "beta": "2.0", "gamma": "1.5"}
    assert found["files"]["installation"] == str(checkout.installed)
    assert found["installation_current"] is True
    assert found["files"]["page"] is None


def test_show_suggests_a_name(checkout: TestCheckout) -> None:
    assert "did you mean tiny?" in checkout.refused("show", "tny")
