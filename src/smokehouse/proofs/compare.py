"""Compare an image with what is expected of it: its config, its files, and the list of files that its build made."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from smokehouse.checkout import Checkout
from smokehouse.images.paths import FILES_JSON
from smokehouse.oci.filesystem import Entry, Tree, folders
from smokehouse.oci.layout import Image
from smokehouse.oci.model import Runtime
from smokehouse.proofs.expected import COMPILED, CONDA, ExpectedFiles
from smokehouse.storage import strict_json

# The keys of `files` in the JSON of verify, which scripts read, where they are not what messages say.
_JSON_OWNERS = {CONDA: "the conda half", COMPILED: "its source, compiled"}


@dataclass(frozen=True)
class Difference:
    """A difference: the number of the layer from 1 (0 for none), a path in the image, and what is wrong with it."""

    layer: int
    path: str
    problem: str


@dataclass(frozen=True)
class Verification:
    """The result of verifying an image.

    `lock` is the SHA-256 of lock.json. `files` counts the files by their owner; `uncompared` were built from source when the
    image was. `sbom` is the expected SBOM, a file; `added` lists the image's extra wheels, which are not in the lock.
    `rebuilt`, `proof` and `base` are sentences; `report` is the report in a statement that was verified. `proven` is whether
    there is one by the trusted signer, None where none was specified.
    """

    image: str
    digest: str
    environment: str
    lock: str
    base: str = ""
    files: Mapping[str, int] = field(default_factory=dict)
    uncompared: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    rebuilt: str = ""
    proof: str = ""
    proven: bool | None = None
    report: Mapping[str, Any] | None = None
    sbom: str = ""
    added: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing differs, and a statement by the trusted signer, where one is specified, is a proof."""
        return not self.differences and self.proven is not False

    def as_json(self) -> dict[str, Any]:
        """Return what `verify --json` prints."""
        files = {_JSON_OWNERS.get(owner, owner): count for owner, count in self.files.items()}
        return {**asdict(self), "files": files, "passed": self.passed}


def compare_config(checkout: Checkout, image: Image, labels: Mapping[str, str], base: Runtime) -> list[Difference]:
    """Return how the config of `image` differs from `labels`, docker/Dockerfile and the config of its `base`."""
    found, dockerfile = image.config.config, _read_dockerfile(checkout)
    found_env, expected_env = _variables(found), _variables(base) | dockerfile["ENV"]
    settings: list[tuple[str, object, object, str]] = [
        (f"label {name}", image.labels.get(name), text, "the lock") for name, text in labels.items()
    ]
    settings += [
        (f"ENV {name}", found_env.get(name), expected_env.get(name), "docker/Dockerfile and the base")
        for name in sorted(found_env.keys() | expected_env.keys())
    ]
    settings += [
        ("ENTRYPOINT", list(found.entrypoint or ()), dockerfile["ENTRYPOINT"], "docker/Dockerfile"),
        ("CMD", list(found.cmd or ()), dockerfile["CMD"], "docker/Dockerfile"),
        ("USER", found.user, base.user, "the base"),
    ]
    return [
        Difference(0, f"(config) {name}", f"expected {_show(wanted)} from {source}, found {_show(value)}")
        for name, value, wanted, source in settings
        if value != wanted
    ]


def _show(value: object) -> str:
    return repr(value) if value else "none"


def _variables(config: Runtime) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in config.env or ())


def _read_dockerfile(checkout: Checkout) -> dict[str, Any]:
    """Return ENV, ENTRYPOINT and CMD of the last stage of docker/Dockerfile."""
    text = checkout.file("docker/Dockerfile").read_text("utf-8")
    lines = text.rpartition("\nFROM ")[2].replace("\\\n", " ").splitlines()
    found: dict[str, Any] = {"ENV": {}, "ENTRYPOINT": [], "CMD": []}
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "ENV":
            found["ENV"] |= dict(entry.partition("=")[::2] for entry in shlex.split(rest))
        elif word in ("ENTRYPOINT", "CMD"):
            found[word] = json.loads(rest)
    return found


def compare_base(tree: Tree, base: Mapping[str, Entry]) -> list[Difference]:
    """Return the files of the `base` that later layers deleted or replaced in `tree`."""
    differences = []
    for path, was in base.items():
        entry = tree.entries.get(path)
        if entry is None:
            differences.append(Difference(0, path, "base file deleted by a later layer"))
        # COPY --link adds the directories above what it copies, unchanged.
        elif entry != was and (entry.kind != "folder" or was.kind != "folder"):
            differences.append(Difference(entry.layer + 1, path, "base file replaced by a later layer"))
    return differences


def compare_files(expected: ExpectedFiles, tree: Tree, base: Mapping[str, Entry]) -> tuple[list[Difference], dict[str, int]]:
    """Return the files of `tree`, but for those of the `base`, that are not as expected, and how many are, by owner."""
    parents = folders(expected.files)
    counts: Counter[str] = Counter()
    differences = []
    for path, entry in tree.entries.items():
        was = base.get(path)
        if was and entry.kind != "folder":
            continue
        if (problem := _problem(expected, path, entry, parents, was)) is not None:
            differences.append(Difference(entry.layer + 1, path, problem))
        elif path in expected.files:
            counts[_group(expected.files[path].owner)] += 1
    differences += [
        Difference(0, path, f"file of {expected.files[path].owner} not found in the image")
        for path in expected.files.keys() - tree.entries.keys() - {FILES_JSON}
    ]
    return differences, dict(counts)


def _problem(files: ExpectedFiles, path: str, entry: Entry, parents: set[str], was: Entry | None) -> str | None:
    """Return what is wrong with a file, link or folder, None where nothing is; `was` is the base's folder."""
    if was and was.kind == "folder":
        before, now = _permissions(was), _permissions(entry)
        return None if before == now else f"base directory changed: expected {before}, found {now}"
    if entry.owner != (0, 0) or entry.attributes:
        attributes = ", ".join(entry.attributes) or "no attributes"
        return f"expected owner 0:0 and no attributes, found {entry.owner[0]}:{entry.owner[1]} and {attributes}"
    if entry.kind == "folder":
        if path not in parents:
            return "unexpected directory"
        return None if entry.mode == 0o755 else f"directory: expected mode 755, found {entry.mode:o}"
    if path == FILES_JSON:
        return None  # compare_list is stricter
    expected = files.files.get(path)
    if expected is None:
        return f"unexpected {entry.kind}"
    if not expected.fits(entry):
        return f"differs from that of {expected.owner}"
    if entry.kind == "file" and entry.mode != (mode := 0o755 if expected.runs else 0o644):
        return f"expected mode {mode:o} from {expected.owner}, found {entry.mode:o}"
    return None


def _permissions(entry: Entry) -> str:
    return ", ".join([f"mode {entry.mode:o}", f"owner {entry.owner[0]}:{entry.owner[1]}", *entry.attributes])


def _group(owner: str) -> str:
    return "wheels" if owner.endswith(".whl") else owner


def compare_list(expected: ExpectedFiles, tree: Tree, known: set[str]) -> list[Difference]:
    """Return how files.json in the image differs from the files that its build made; paths in `known` are skipped."""
    entry = tree.entries.get(FILES_JSON)
    layer = entry.layer + 1 if entry else 0
    try:
        document = strict_json.parse(tree.kept[FILES_JSON])
        listed = {str(item["path"]).removeprefix("/"): str(item["sha256"]) for item in document["files"]}
    except (KeyError, ValueError, TypeError, RecursionError):
        return [Difference(layer, FILES_JSON, "missing or invalid list of the files that the build made")]
    differences = []
    for path, digest in listed.items():
        found = tree.entries.get(path)
        if path not in known and (found is None or found.sha256 != digest):
            problem = f"files.json lists SHA-256 {digest}, found {found.sha256 if found else 'no such file'}"
            differences.append(Difference(layer, path, problem))
    for path, file in expected.files.items():
        if file.made and not file.target and path in tree.entries and path not in listed:
            differences.append(Difference(layer, path, "made in the build, but not listed in files.json"))
    return differences


def first_difference(image: Image, rebuilt: Image) -> Difference:
    """Return the first difference between two images of different digests, by layer and path."""
    layers = [*zip(image.config.rootfs.diff_ids, rebuilt.config.rootfs.diff_ids, strict=False)]
    for number, (one, other) in enumerate(layers):
        if one == other:
            continue
        found, expected = (side.tree(lambda path: False, first=number, last=number + 1).entries for side in (image, rebuilt))
        for path in sorted(found.keys() | expected.keys()):
            if found.get(path) != expected.get(path):
                problem = "not found in the rebuilt image" if path not in expected else "differs from the rebuilt image"
                return Difference(number + 1, path, problem if path in found else "found only in the rebuilt image")
        return Difference(number + 1, "(the layer)", "has the same files with other times, or in another order")
    if len(image.manifest.layers) != len(rebuilt.manifest.layers):
        return Difference(len(layers) + 1, "(the layer)", "found in only one of the images")
    if image.config != rebuilt.config:
        return Difference(0, "(config)", "differs from the rebuilt image")
    return Difference(0, "(manifest)", "has the same files, compressed or described differently")
