"""A lock that somebody edited with care, all digests computed again, is refused: each file has one form, and all agree."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.locks import constraints, pins
from smokehouse.locks.model import Lock
from smokehouse.locks.pins import LockFiles
from smokehouse.storage.files import hashed, sha256

NAME = "qwen2.5-vl"
ACCELERATE = re.compile(r"accelerate==1\.4\.0 \\\n    --hash=sha256:[0-9a-f]{64}\n    # via [^\n]*\n")
Text = Callable[[str], str]


class Edited:
    """A checkout with the committed lock, to edit."""

    def __init__(self, root: Path, place: Path) -> None:
        for part in ("environments", "lockfiles"):
            shutil.copytree(root / part / NAME, place / part / NAME)
        shutil.copytree(root / "environments" / "stacks", place / "environments" / "stacks")
        self.checkout = Checkout(place)
        self.files = LockFiles.of(self.checkout, NAME)
        self.folder = self.files.folder

    def edit(self, name: str, change: Text) -> None:
        """Edit a file of the lock, which must change it."""
        before = (self.folder / name).read_text()
        after = change(before)
        assert after != before
        (self.folder / name).write_text(after, newline="")

    def edit_json(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Edit lock.json, and write it as it is generated."""
        content = json.loads(self.files.lock_json.read_text())
        change(content)
        self.files.lock_json.write_text(Lock.model_validate(content).text())

    def redo(self) -> None:
        """Compute all digests again, as somebody does who wants to get through."""
        text = self.files.pins.path.read_bytes().decode()
        without = re.sub(r"^# content: .*\n", "", text, count=1, flags=re.MULTILINE)
        digest = sha256(f"{without}\0{self.files.build_pins.read_bytes().decode()}")
        text = re.sub(r"^# content: .*$", f"# content: sha256:{digest}", text, count=1, flags=re.MULTILINE)
        self.files.pins.path.write_text(text, newline="")
        content = json.loads(self.files.lock_json.read_text())
        content["files"] = {name: hashed(self.folder / name) for name in content["files"]}
        lock = Lock.model_validate(content)
        self.files.lock_json.write_text(lock.text())
        self.files.constraints.write_text(constraints.text(self.files, lock))

    def refusal(self) -> str:
        """Return why the lock is refused; fails where it is not."""
        with pytest.raises(UserError) as refused:
            locks.load(self.checkout, NAME)
        said = str(refused.value)
        assert said.startswith((f"lockfiles/{NAME}", f"{NAME}: ", "requirements.txt:", "build-requirements.txt:"))
        return said


@pytest.fixture
def edited(root: Path, tmp_path: Path) -> Edited:
    """A copy of the committed lock."""
    return Edited(root, tmp_path)


def test_computing_digests_again_changes_nothing(edited: Edited) -> None:
    before = {path.name: path.read_bytes() for path in edited.folder.iterdir()}
    edited.redo()
    assert {path.name: path.read_bytes() for path in edited.folder.iterdir()} == before
    assert locks.load(edited.checkout, NAME).lock.environment == NAME


def before_first(line: str) -> Text:
    """Add a line before the first package."""
    return lambda text: text.replace("accelerate==", f"{line}\naccelerate==", 1)


def in_pin(change: Text) -> Text:
    """Change the lines of the first package."""
    return lambda text: ACCELERATE.sub(lambda found: change(found[0]), text, count=1)


FILES = ("lock.json", "requirements.txt", "build-requirements.txt", "conda-lock.yml", "constraints.txt")
REQUIREMENTS: dict[str, Text] = {
    "an extra index": before_first("--extra-index-url=https://evil.example/simple"),
    "an index": before_first("-i https://evil.example/simple"),
    "links": before_first("--find-links /tmp/evil"),
    "a trusted host": before_first("--trusted-host evil.example"),
    "an editable": before_first("-e ./evil"),
    "an include": before_first("-r evil.txt"),
    "constraints": before_first("-c evil.txt"),
    "pre-releases": before_first("--pre"),
    "a file URL": before_first("evil @ file:///tmp/evil-1.0-py3-none-any.whl"),
    "a path": before_first("./evil-1.0-py3-none-any.whl"),
    "git": before_first("evil @ git+https://evil.example/evil.git"),
    "an empty line": before_first(""),
    "a comment": before_first("# harmless"),
    "an option at the end": lambda text: text + "--extra-index-url https://evil.example/simple\n",
    "an option without a newline": lambda text: text + "--pre",
    "carriage returns": lambda text: text.replace("\n", "\r\n"),
    "an option after a carriage return": in_pin(lambda pin: pin.replace("# via ", "# via x\r--pre ")),
    "an option after a line separator": in_pin(lambda pin: pin.replace("# via ", "# via x\u2028--pre ")),
    "a continued comment": in_pin(lambda pin: pin.rstrip("\n") + " \\\n    --pre\n"),
    "a header that is an option": lambda text: text.replace("# platform", "--pre\n# platform", 1),
    "no hash": in_pin(lambda pin: re.sub(r" \\\n    --hash=sha256:[0-9a-f]{64}", "", pin)),
    "md5": in_pin(lambda pin: re.sub(r"sha256:[0-9a-f]{64}", "md5:" + "0" * 32, pin)),
    "a hash in capitals": in_pin(lambda pin: re.sub(r"sha256:([0-9a-f]{64})", lambda found: "sha256:" + found[1].upper(), pin)),
    "a second hash": in_pin(lambda pin: pin.replace("    --hash", f"    --hash=sha256:{'0' * 64} \\\n    --hash", 1)),
    "another hash": in_pin(lambda pin: re.sub(r"sha256:[0-9a-f]{64}", f"sha256:{'0' * 64}", pin)),
    "a marker": in_pin(lambda pin: pin.replace("1.4.0 ", "1.4.0 ; sys_platform == 'win32' ", 1)),
    "another version": in_pin(lambda pin: pin.replace("1.4.0", "1.4.1")),
    "a range": in_pin(lambda pin: pin.replace("==", ">=")),
    "an extra": in_pin(lambda pin: pin.replace("accelerate==", "accelerate[evil]==")),
    "another name": in_pin(lambda pin: pin.replace("accelerate==", "accelerat3==")),
    "a package less": in_pin(lambda pin: ""),
    "a package twice": in_pin(lambda pin: pin + pin),
    "another size": lambda text: re.sub(r"# download: \d+", "# download: 1", text),
    "nothing": lambda text: text[: text.index("accelerate==")],
}


@pytest.mark.parametrize("kind", REQUIREMENTS)
def test_requirements_have_one_form(edited: Edited, kind: str) -> None:
    edited.edit("requirements.txt", REQUIREMENTS[kind])
    edited.redo()
    edited.refusal()


@pytest.mark.parametrize("kind", ["an extra index", "no hash", "a second hash", "nothing", "a package twice"])
def test_build_requirements_have_one_form(edited: Edited, kind: str) -> None:
    def change(text: str) -> str:
        renamed = text.replace("setuptools==76.0.0", "accelerate==1.4.0")
        return REQUIREMENTS[kind](renamed).replace("accelerate==1.4.0", "setuptools==76.0.0")

    edited.edit("build-requirements.txt", change)
    edited.redo()
    edited.refusal()


def without(kind: str, name: str) -> Callable[[dict[str, Any]], object]:
    """Take a package out of lock.json."""
    return lambda content: content.update({kind: [one for one in content[kind] if one["name"] != name]})


LOCK_JSON: dict[str, Callable[[dict[str, Any]], object]] = {
    "another environment": lambda content: content.update(environment="vlm-r1"),
    "another Python": lambda content: content.update(python="3.10"),
    "another platform": lambda content: content.update(platform="x86_64-manylinux_2_17"),
    "another cut-off": lambda content: content.update(cutoff="2026-01-01"),
    "another channel": lambda content: content["channel"].update(name="evil"),
    "another driver": lambda content: content["virtual_packages"].update(__cuda="11.0"),
    "no conda packages": lambda content: content.update(conda=[]),
    "no PyPI packages": lambda content: content.update(pip=[]),
    "no build requirements": lambda content: content.update(build=[]),
    "a conda package less": without("conda", "libaio"),
    "a PyPI package less": without("pip", "aiohttp"),
    "no files": lambda content: content.update(files={}),
    "a file less": lambda content: content["files"].pop("conda-lock.yml"),
    "another conda hash": lambda content: content["conda"][0].update(sha256="0" * 64),
    "another PyPI hash": lambda content: content["pip"][0].update(sha256="0" * 64),
    "another wheel": lambda content: content["pip"][0].update(file="evil-1.0-py3-none-any.whl"),
    "a wheel of another Python": lambda content: content["pip"][0].update(
        file="accelerate-1.4.0-cp312-cp312-manylinux_2_28_x86_64.whl"
    ),
    "a wheel of another machine": lambda content: content["pip"][0].update(file="accelerate-1.4.0-py3-none-win_amd64.whl"),
    "no wheel": lambda content: content["pip"][0].update(file="evil"),
    "another archive": lambda content: content["conda"][0].update(file="evil-0.1-conda_forge.tar.bz2"),
    "another subdir": lambda content: content["conda"][0].update(subdir="osx-64"),
    "another category": lambda content: content["conda"][0].update(category="devel"),
    "another size": lambda content: content["pip"][0].update(size=1),
    "in another order": lambda content: content["pip"].reverse(),
    "other inputs": lambda content: content.update(inputs="0" * 64),
}


@pytest.mark.parametrize("kind", LOCK_JSON)
def test_lock_json_agrees_with_the_others(edited: Edited, kind: str) -> None:
    edited.edit_json(LOCK_JSON[kind])
    edited.redo()
    edited.refusal()


LOCK_TEXT: dict[str, Text] = {
    "a key twice": lambda text: text.replace('"python"', '"python": "3.10",\n "python"', 1),
    "a byte-order mark": lambda text: "\ufeff" + text,
    "an unknown key": lambda text: text.replace('"python"', '"index": "https://evil.example",\n "python"', 1),
    "a tool that steers a terminal": lambda text: text.replace('"uv": "', '"uv": "1\\u001b[2J', 1),
    "a tool of two lines": lambda text: text.replace('"uv": "', '"uv": "1\\n', 1),
    "half of a pair": lambda text: text.replace('"license": "', '"license": "\\ud83d', 1),
    "another indent": lambda text: json.dumps(json.loads(text)),
}


@pytest.mark.parametrize("kind", LOCK_TEXT)
def test_lock_json_has_one_form(edited: Edited, kind: str) -> None:
    edited.edit("lock.json", LOCK_TEXT[kind])
    edited.refusal()


CONDA_LOCK: dict[str, Text] = {
    "another channel": lambda text: text.replace("- url: conda-forge", "- url: https://evil.example", 1),
    "another URL": lambda text: text.replace("https://conda.anaconda.org/conda-forge/", "https://evil.example/", 1),
    "another hash": lambda text: re.sub(r"sha256: [0-9a-f]{64}", f"sha256: {'0' * 64}", text, count=1),
    "no md5": lambda text: re.sub(r"md5: [0-9a-f]{32}", "md5: ''", text, count=1),
    "a PyPI package": lambda text: text.replace("manager: conda", "manager: pip", 1),
    "another category": lambda text: text.replace("category: main", "category: devel", 1),
    "a package less": lambda text: text[: text.rindex("\n- name: ") + 1],
    "a package twice": lambda text: text + text[text.rindex("\n- name: ") + 1 :],
    "an alias": lambda text: text.replace("dependencies: {}", "dependencies: &a {}", 1),
    "a key twice": lambda text: text.replace("  manager: conda\n", "  manager: conda\n  manager: conda\n", 1),
    "a comment": lambda text: text + "# harmless\n",
    "another document": lambda text: text + "---\nversion: 1\n",
    "a tag": lambda text: text + "x: !!python/object/apply:os.system ['true']\n",
    "no list": lambda text: text[: text.index("package:")] + "package: {}\n",
    "nothing": lambda text: "\n",
    "depth": lambda text: "[" * 5000,
}


@pytest.mark.parametrize("kind", CONDA_LOCK)
def test_conda_lock_agrees_with_the_others(edited: Edited, kind: str) -> None:
    edited.edit("conda-lock.yml", CONDA_LOCK[kind])
    edited.redo()
    edited.refusal()


def test_a_package_taken_out_of_all_files_is_missed(edited: Edited) -> None:
    edited.edit("requirements.txt", in_pin(lambda pin: ""))
    edited.edit_json(lambda content: content.update(pip=content["pip"][1:]))
    edited.redo()
    assert "requires accelerate==1.4.0, lock has no such package" in edited.refusal()


@pytest.mark.parametrize(
    "name", ["lock.json", "requirements.txt", "build-requirements.txt", "conda-lock.yml", "constraints.txt"]
)
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_file_of_a_lock_that_is_none_is_refused(edited: Edited, tmp_path: Path, name: str, kind: str) -> None:
    file = edited.folder / name
    other = file.rename(tmp_path / name)
    if kind == "link":
        file.symlink_to(other)
    elif kind == "pipe":
        os.mkfifo(file)  # whoever opens it waits for ever
    else:
        file.mkdir()
    assert f"{name}: expected a file, found a link, folder or pipe" in edited.refusal()


def test_a_folder_of_a_lock_that_is_a_link_is_refused(edited: Edited, tmp_path: Path) -> None:
    other = edited.folder.rename(tmp_path / "elsewhere")
    edited.folder.symlink_to(other)
    assert "expected a folder, found a link or another file" in edited.refusal()


def test_tools_have_one_form(root: Path) -> None:
    text = (root / "lockfiles" / "tools.txt").read_text()
    whole = pins.parse_body(text, "tools.txt")
    assert len(whole) > 50
    for line in ("--pre", "-r other.txt", "evil @ https://evil.example/evil.whl", "evil==1.0"):
        with pytest.raises(UserError, match=r"^tools\.txt:\d+: expected NAME==VERSION with --hash=sha256:HEX"):
            pins.parse_body(f"{text}{line}\n", "tools.txt")
