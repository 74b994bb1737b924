"""A policy says whose signature counts, on what hardware and of what age; a file that says it ambiguously is refused."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.proofs import policy
from smokehouse.proofs.attestation import statement
from smokehouse.proofs.signing import Requirements, SignedStatement, Signer, sign
from smokehouse.proofs.trust import Proof, judge

from . import complete_reports
from .complete_reports import DIGEST, ago


@pytest.fixture
def signed(root: Path, keys: Path) -> SignedStatement:
    """A statement of a complete run on a CPU, nine days ago."""
    report = complete_reports.report(root) | {"started": ago(timedelta(days=9))}
    return sign(statement(report, "tiny", DIGEST), Signer(keys / "ours.key"))


def judged(root: Path, keys: Path, signed: SignedStatement, text: str) -> Proof:
    """Judge a statement by a policy that lies beside the keys."""
    (keys / "policy.yml").write_text(text)
    signer = policy.read(keys / "policy.yml")
    return judge(Checkout(root), complete_reports.locked(root), DIGEST, [signed], signer)


OURS = "signed-by:\n  key: ours.pub\n"


@pytest.mark.parametrize("more", ["", "gpu: optional\n", "max-age: 10 days\n", "gpu: optional\nmax-age: 9999 days\n"])
def test_what_meets_a_policy_is_proven(root: Path, keys: Path, signed: SignedStatement, more: str) -> None:
    found = judged(root, keys, signed, OURS + more)
    assert found.valid, found.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("signed-by:\n  key: other.pub\n", "is not signed by the key "),
        (OURS + "gpu: required\n", "expected a run on GPUs with NCCL, found one on "),
        (OURS + "max-age: 8 days\n", "expected a run of at most 8 days ago, found one of 9 days ago; prove it again"),
        (OURS + "max-age: 1 day\n", "expected a run of at most 1 days ago, found one of 9 days ago"),
    ],
    ids=["another key", "no GPU", "too old", "one day"],
)
def test_what_does_not_meet_a_policy_is_not_proven(
    root: Path, keys: Path, signed: SignedStatement, text: str, said: str
) -> None:
    found = judged(root, keys, signed, text)
    assert found.valid is False
    assert found.report is None
    assert said in found.text


def test_a_policy_is_read_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "policy.yml"
    file.write_text(
        "signed-by:\n  identity: https://github.com/o/r/.github/workflows/release.yml@refs/tags/v1\n"
        "  issuer: https://token.actions.githubusercontent.com\ngpu: required\nmax-age: 30 days\n"
    )
    assert policy.read(file) == Signer(
        identity="https://github.com/o/r/.github/workflows/release.yml@refs/tags/v1",
        issuer="https://token.actions.githubusercontent.com",
        requirements=Requirements(gpu=True, max_days=30),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "policy.yml:1: "),
        ("gpu: required\n", "policy.yml:1: signed-by not found; add it"),
        (OURS + "gpus: required\n", "policy.yml:3: unknown key 'gpus'; did you mean gpu?"),
        (OURS + "gpu: yes please\n", "policy.yml:3: gpu: found 'yes please'; use 'required' or 'optional'"),
        (OURS + "gpu: true\n", "policy.yml:3: expected text, found true; put it in quotes"),
        (OURS + "max-age: 30\n", "policy.yml:3: expected text, found 30; put it in quotes"),
        (OURS + "max-age: a month\n", "policy.yml:3: max-age: expected a number of days such as 30 days, found 'a month'"),
        (OURS + "max-age: 0 days\n", "policy.yml:3: max-age: expected a number of days"),
        (OURS + "  identity: https://x\n", "policy.yml:1: signed-by: expected key or identity, found both or none"),
        ("signed-by: {}\n", "policy.yml:1: signed-by: expected key or identity, found both or none"),
        ("signed-by:\n  identity: https://x\n", "policy.yml:1: signed-by.issuer: expected an OIDC issuer for an identity"),
        (
            OURS + "  issuer: https://x\n",
            "policy.yml:1: signed-by.issuer: expected an OIDC issuer for an identity, and none for",
        ),
        (OURS + OURS, "policy.yml:3: invalid YAML: duplicate key 'signed-by'"),
        ("a: &a\n  key: x\nsigned-by: *a\n", "aliases are refused"),
        ("signed-by:\n", "policy.yml:1: expected a value, found none; add it"),
        ("signed_by:\n  key: ours.pub\n", "policy.yml:1: unknown key 'signed_by'; did you mean signed-by?"),
        ("signed-by: [ours.pub]\n", "policy.yml:1: signed-by"),
        ("signed-by:\n  key: [ours.pub]\n", "policy.yml:2: signed-by.key"),
        ('signed-by:\n  key: ""\n', "policy.yml:1: signed-by: expected key or identity, found both or none"),
        (OURS + "---\n" + OURS, "policy.yml:3: invalid YAML"),
        (OURS + "gpu: Required\n", "policy.yml:3: gpu: found 'Required'"),
        (OURS + "max-age: -1 days\n", "policy.yml:3: max-age: expected a number of days"),
        (OURS + 'max-age: "30 days\\n"\n', "policy.yml:3: max-age: expected a number of days"),
        (OURS + "max-age: \u0663\u0660 days\n", "policy.yml:3: max-age: expected a number of days"),
        (OURS + "max_age: 30 days\n", "policy.yml:3: unknown key 'max_age'; did you mean max-age?"),
    ],
)
def test_a_policy_with_a_mistake_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "policy.yml").write_text(text)
    with pytest.raises(UserError) as refused:
        policy.read(tmp_path / "policy.yml")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--policy", "nowhere.yml"], "nowhere.yml: not found"),
        (["--policy", "policy.yml"], "missing.pub: key not found"),
        (["--policy", "policy.yml", "--key", "x.pub"], "--policy: expected no --key and no --identity"),
        (["--policy", "policy.yml", "--identity", "x"], "--policy: expected no --key and no --identity"),
    ],
)
def test_verify_refuses_a_policy_before_anything_is_read(root: Path, tmp_path: Path, options: list[str], said: str) -> None:
    (tmp_path / "environments").mkdir()
    (tmp_path / "policy.yml").write_text(json.dumps({"signed-by": {"key": "missing.pub"}}))
    command = [sys.executable, "-m", "smokehouse", "verify", "oci:nowhere", *options]
    environ = {**os.environ, "PYTHONPATH": str(root / "src")}
    ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
