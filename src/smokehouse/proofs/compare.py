"""Compare an image with what is expected of it."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from smokehouse.checkout import Checkout
from smokehouse.images.paths import FILES_JSON
from smokehouse.oci import model
from smokehouse.oci.filesystem import Entry, Tree, folders
from smokehouse.oci.layout import Image
from smokehouse.proofs.expected import ExpectedFiles


@dataclass(frozen=True)
class Difference:
    """What is not as it should be: a path in the image, the number of its layer from 1 (0 for none), and how it differs."""

    layer: int
    path: str
    problem: str


@dataclass
class Verification:
    """What was seen of an image. `files` counts them by whose they are; `uncompared` were built from source in the build.

    `sbom` is the file that the image's own was compared with; `added` are the wheels in it that no lock names.
    """

    image: str
    digest: str
    environment: str
    lock: str
    base: str = ""
    files: dict[str, int] = field(default_factory=dict)
    uncompared: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    rebuilt: str = ""
    proof: str = ""
    report: Mapping[str, Any] | None = None
    sbom: str = ""
    added: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def compare_config(
    checkout: Checkout, found: Image, labels: Mapping[str, str], below: model.Runtime, verdict: Verification
) -> None:
    """Note where the image is started in another way than docker/Dockerfile says, or has other labels than the lock."""
    runtime = found.config.config
    said = _dockerfile(checkout)

    def differ(what: str, problem: str) -> None:
        verdict.differences.append(Difference(0, f"(config) {what}", problem))

    for name, text in labels.items():
        if found.labels.get(name) != text:
            differ(f"label {name}", f"{found.labels.get(name)!r}, the lock says {text!r}")
    env = dict(entry.partition("=")[::2] for entry in runtime.env or ())
    wanted = dict(entry.partition("=")[::2] for entry in below.env or ()) | said["ENV"]
    for name in sorted(env.keys() | wanted.keys()):
        if env.get(name) != wanted.get(name):
            differ(f"ENV {name}", f"{env.get(name)!r}, docker/Dockerfile and the base say {wanted.get(name)!r}")
    for name, has, wants in (
        ("ENTRYPOINT", list(runtime.entrypoint or ()), said["ENTRYPOINT"]),
        ("CMD", list(runtime.cmd or ()), said["CMD"]),
        ("USER", runtime.user, below.user),
    ):
        if has != wants:
            differ(name, f"{has!r}, docker/Dockerfile says {wants!r}")


def _dockerfile(checkout: Checkout) -> dict[str, Any]:
    """Return ENV, ENTRYPOINT and CMD of the last stage of docker/Dockerfile."""
    text = (checkout.root / "docker" / "Dockerfile").read_text("utf-8")
    lines = text.rpartition("\nFROM ")[2].replace("\\\n", " ").splitlines()
    said: dict[str, Any] = {"ENV": {}, "ENTRYPOINT": [], "CMD": []}
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "ENV":
            said["ENV"] |= dict(entry.partition("=")[::2] for entry in shlex.split(rest))
        elif word in ("ENTRYPOINT", "CMD"):
            said[word] = json.loads(rest)
    return said


def compare_files(contents: ExpectedFiles, tree: Tree, under: Mapping[str, Entry], verdict: Verification) -> None:
    """Note every file that differs, is not of the lock, or is not there."""
    parents = folders(contents.files)
    counts: Counter[str] = Counter()

    def differ(entry: Entry | None, path: str, problem: str) -> None:
        verdict.differences.append(Difference(entry.layer + 1 if entry else 0, path, problem))

    for path, was in under.items():
        now = tree.entries.get(path)
        # COPY --link brings the folders above what it copies, as they were.
        if now is None:
            differ(None, path, "of the base, and taken away by a layer above it")
        elif now != was and (now.kind != "folder" or was.kind != "folder"):
            differ(now, path, "of the base, and replaced by a layer above it")
    counts[verdict.base.partition(",")[0].partition("@")[0]] = sum(entry.kind != "folder" for entry in under.values())
    for path, entry in tree.entries.items():
        if path in under and entry.kind != "folder":
            continue
        if (problem := _problem(contents, path, entry, parents, under.get(path))) is not None:
            differ(entry, path, problem)
        elif path in contents.files:
            counts[_group(contents.files[path].owner)] += 1
    for path in contents.files.keys() - tree.entries.keys() - {FILES_JSON}:
        differ(None, path, f"of {contents.files[path].owner}, and not in the image")
    verdict.files = dict(counts)


def _problem(contents: ExpectedFiles, path: str, entry: Entry, parents: set[str], was: Entry | None) -> str | None:
    """Return how a file, link or folder is not as it should be, None where it is; `was` is the base's folder."""
    if was and was.kind == "folder":
        same = (was.mode, was.owner, was.attributes) == (entry.mode, entry.owner, entry.attributes)
        return None if same else "a folder of the base, with other rights than there"
    if entry.owner != (0, 0) or entry.attributes:
        return f"owned by {entry.owner[0]}:{entry.owner[1]}, with {', '.join(entry.attributes) or 'no attributes'}"
    if entry.kind == "folder":
        if path not in parents:
            return "a folder of no artefact of the lock"
        return None if entry.mode == 0o755 else f"a folder of mode {entry.mode:o}, not 755"
    if path == FILES_JSON:
        return None  # its own check says more
    expected = contents.files.get(path)
    if expected is None:
        return "of no artefact of the lock, and not ours"
    if not expected.fits(entry):
        return f"differs from that of {expected.owner}"
    if entry.kind == "file" and entry.mode != (wanted := 0o755 if expected.runs else 0o644):
        return f"of mode {entry.mode:o}, {expected.owner} has {wanted:o}"
    return None


def _group(owner: str) -> str:
    return "wheels" if owner.endswith(".whl") else owner


def check_list(contents: ExpectedFiles, tree: Tree, verdict: Verification) -> None:
    """Note where files.json in the image does not name what was made in its build, with its hash."""
    entry = tree.entries.get(FILES_JSON)
    listed: dict[str, str] = {}
    try:
        document = json.loads(tree.kept[FILES_JSON])
        listed = {str(item["path"]).removeprefix("/"): str(item["sha256"]) for item in document["files"]}
    except (KeyError, ValueError, TypeError, RecursionError):
        verdict.differences.append(
            Difference(entry.layer + 1 if entry else 0, FILES_JSON, "no list of what was made in the build")
        )
        return
    assert entry
    known = {difference.path for difference in verdict.differences}
    for path, digest in listed.items():
        there = tree.entries.get(path)
        if path not in known and (there is None or there.sha256 != digest):
            verdict.differences.append(Difference(entry.layer + 1, path, "not in the image as files.json says"))
    for path, expected in contents.files.items():
        if expected.made and not expected.target and path in tree.entries and path not in listed:
            verdict.differences.append(Difference(entry.layer + 1, path, "made in the build, and not named in files.json"))


def first_difference(found: Image, again: Image) -> Difference:
    """Return the first thing that two images do not have in common, by layer and path."""
    layers = [*zip(found.config.rootfs.diff_ids, again.config.rootfs.diff_ids, strict=False)]
    for number, (here, there) in enumerate(layers):
        if here == there:
            continue
        one, two = (side.tree(lambda path: False, first=number, last=number + 1).entries for side in (found, again))
        for path in sorted(one.keys() | two.keys()):
            if one.get(path) != two.get(path):
                problem = "not in the rebuilt image" if path not in two else "differs from that of the rebuilt image"
                return Difference(number + 1, path, problem if path in one else "only in the rebuilt image")
        return Difference(number + 1, "(the layer)", "has the same files, with other times or in another order")
    if len(found.manifest.layers) != len(again.manifest.layers):
        return Difference(len(layers) + 1, "(the layer)", "is in one of the images only")
    if found.config != again.config:
        return Difference(0, "(config)", "differs from that of the rebuilt image")
    return Difference(0, "(manifest)", "the same files, packed or described in another way")
