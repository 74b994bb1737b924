"""Statements of where an image comes from and what is in it: SLSA provenance, and its SBOM in two formats.

See: https://slsa.dev/spec/v1.0/provenance, https://github.com/in-toto/attestation/tree/main/spec/predicates
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smokehouse import __version__
from smokehouse.checkout import Checkout
from smokehouse.images import debian_lock, record
from smokehouse.images.labels import ImageLabels
from smokehouse.locks import LOCK_JSON, LockedEnvironment
from smokehouse.programs import git
from smokehouse.proofs import signing
from smokehouse.storage import files

PROVENANCE = "https://slsa.dev/provenance/v1"
SPDX = "https://spdx.dev/Document"
CYCLONEDX = "https://cyclonedx.org/bom"

# How `build` makes an image from a lock, and who runs it where no workflow does.
BUILD_TYPE = "urn:smokehouse:image-from-lock:v1"
LOCAL_BUILDER = "urn:smokehouse:local-builder"


@dataclass(frozen=True)
class Workflow:
    """A run of a GitHub workflow: the URL of the workflow with its ref, and the URL of the run."""

    identity: str
    run: str

    @classmethod
    def current(cls, environ: Mapping[str, str] = os.environ) -> "Workflow | None":
        """Return the run that this process is part of, None outside of one.

        See: https://docs.github.com/en/actions/reference/workflows-and-actions/variables
        """
        names = ("GITHUB_SERVER_URL", "GITHUB_WORKFLOW_REF", "GITHUB_REPOSITORY", "GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT")
        if environ.get("GITHUB_ACTIONS") != "true" or not all(environ.get(name) for name in names):
            return None
        server, ref, repository, run, attempt = (environ[name] for name in names)
        return cls(f"{server}/{ref}", f"{server}/{repository}/actions/runs/{run}/attempts/{attempt}")


def statements(
    checkout: Checkout, locked: LockedEnvironment, labels: ImageLabels, sboms: Mapping[str, Path], name: str, digest: str
) -> list[bytes]:
    """Return the statements about the image `digest` in the repository `name`: its provenance, and its SBOM in two formats.

    `sboms` has the files of both formats by the types of their predicates, `labels` are the image's.
    """
    predicates = {PROVENANCE: provenance(checkout, locked, labels, Workflow.current())}
    predicates |= {kind: json.loads(sbom.read_text()) for kind, sbom in sboms.items()}
    return [signing.statement(kind, predicate, name, digest) for kind, predicate in predicates.items()]


def provenance(checkout: Checkout, locked: LockedEnvironment, labels: ImageLabels, workflow: Workflow | None) -> dict[str, Any]:
    """Return the SLSA provenance of an image: what it was requested as, what it was built from, and by whom."""
    invocation = {"metadata": {"invocationId": workflow.run}} if workflow else {}
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "environment": labels.environment,
                "flavour": labels.flavour,
                "ops": labels.ops,
                "with": list(labels.extra_wheels),
            },
            "internalParameters": {"smokehouse": __version__},
            "resolvedDependencies": list(_dependencies(checkout, locked, labels)),
        },
        "runDetails": {"builder": {"id": workflow.identity if workflow else LOCAL_BUILDER}, **invocation},
    }


def revision(checkout: Checkout, name: str) -> str:
    """Return the commit that the files of an image of the environment `name` are from; empty where one differs from it."""
    if checkout.packaged:  # the package is not in the user's repository, and has no history
        return ""
    inside = ["docker", "smoke_tests", "packages", "src/smokehouse_loader", f"environments/{name}", f"lockfiles/{name}"]
    present = [path for path in inside if (checkout.root / path).exists()]
    present.append(f":(exclude)lockfiles/{name}/{record.NAME}")  # it follows from the others
    return git.last_commit(checkout.root, present)


def _dependencies(checkout: Checkout, locked: LockedEnvironment, labels: ImageLabels) -> Iterator[dict[str, Any]]:
    """Yield what an image was built from, each with its digest: the locks list all of its artefacts by theirs."""
    if labels.source and (commit := revision(checkout, locked.name)):
        yield {"uri": f"git+{labels.source}@{commit}", "digest": {"gitCommit": commit}}
    yield {"name": f"{locked.files.name}/{LOCK_JSON}", "digest": {"sha256": labels.lock}}
    for file, digest in sorted(locked.lock.files.items()):
        yield {"name": f"{locked.files.name}/{file}", "digest": {"sha256": digest}}
    if labels.base_name.startswith("debian-"):
        yield {"name": debian_lock.LOCK, "digest": {"sha256": files.hashed(checkout.file(debian_lock.LOCK))}}
    yield {"name": labels.base_name, "digest": {"sha256": labels.base_digest.removeprefix("sha256:")}}
    for text in labels.extra_wheels:
        wheel, _, sha256 = text.partition("#sha256=")
        yield {"name": wheel, "digest": {"sha256": sha256}}
