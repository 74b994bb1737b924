"""The result of a verification, as scripts read it."""

from smokehouse.proofs import Difference, Verification
from smokehouse.proofs.expected import COMPILED, CONDA


def test_the_json_of_verify_keeps_its_keys() -> None:
    files = {"debian-trixie": 1, CONDA: 2, "wheels": 3, "this checkout": 4, COMPILED: 5}
    difference = Difference(2, "etc/passwd", "base file replaced by a later layer")
    verification = Verification("oci:x", "sha256:1", "tiny", "2", files=files, differences=[difference])
    printed = verification.as_json()
    assert [*printed] == [
        *("image", "digest", "environment", "lock", "base", "files", "uncompared", "differences"),
        *("rebuilt", "proof", "report", "sbom", "added", "passed"),
    ]
    assert printed["files"] == {
        "debian-trixie": 1,
        "the conda half": 2,
        "wheels": 3,
        "this checkout": 4,
        "its source, compiled": 5,
    }
    assert printed["differences"] == [{"layer": 2, "path": "etc/passwd", "problem": difference.problem}]
    assert printed["passed"] is False
    assert Verification("oci:x", "sha256:1", "tiny", "2").as_json()["passed"] is True
