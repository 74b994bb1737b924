"""What is built from source is compared with the source as far as it can be, and nothing else hides behind it."""

import hashlib
import zipfile
from pathlib import Path

from smokehouse.contents import Contents
from smokehouse.house import House
from smokehouse.layers import Entry, Tree
from smokehouse.manifest import LockedFile, Manifest

from ..builder.conftest import sdist

SITE = "opt/env/lib/python3.11/site-packages"


def test_only_what_a_build_can_make_counts_as_built(root: Path, tmp_path: Path) -> None:
    source = "def train(): ...\n"
    archive = tmp_path / "deep-1.0.tar.gz"
    archive.write_bytes(sdist("deep", "1.0", {"deep/train.py": source, "deep/ops/op.cpp": ""}))
    files = {
        f"{SITE}/deep/train.py": source,
        f"{SITE}/deep/edited.py": "import evil\n",
        f"{SITE}/deep/ops/op.so": "made",
        f"{SITE}/deep/git_version_info_installed.py": "version='1.0'\n",
        f"{SITE}/other/evil.so": "evil",
        f"{SITE}/evil.pth": "import evil\n",
        f"{SITE}/deep-1.0.dist-info/METADATA": "Name: deep\n",
        f"{SITE}/deep-1.0.dist-info/evil": "",
        "opt/env/bin/deep": "#!/opt/env/bin/python\n",
        "etc/evil": "",
    }
    record = "".join(f"../../../../../{path},,\n" for path in files)
    files[f"{SITE}/deep-1.0.dist-info/RECORD"] = record
    digests = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in files.items()}
    tree = Tree(
        entries={path: Entry("file", 3, 0o644, (0, 0), sha256=digest) for path, digest in digests.items()},
        kept={path: text.encode() for path, text in files.items()},
    )
    contents = Contents(House(root), Manifest.model_construct(python="3.11"))
    locked = LockedFile(name="deep", version="1.0", file=archive.name, size=0, sha256="0" * 64)
    built = contents.add_built(locked, archive, tree)
    assert set(built) == {
        f"{SITE}/deep/ops/op.so",
        f"{SITE}/deep/git_version_info_installed.py",
        f"{SITE}/deep-1.0.dist-info/METADATA",
        "opt/env/bin/deep",
    }
    assert contents.files.keys() - set(built) == {f"{SITE}/deep/train.py"}
    assert contents.sources.keys() == {f"{SITE}/deep/train.py", f"{SITE}/deep/git_version_info_installed.py"}


def test_a_wheel_that_is_wrong_about_itself_is_read_as_it_is(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "odd-1.0-py3-none-any.whl"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("odd.py", "x = 1\n")
        archive.writestr("odd-1.0.data/scripts/run", "#!python\nimport odd\n")
        archive.writestr("odd-1.0.data/data/share/odd.txt", "odd\n")
        archive.writestr("odd-1.0.dist-info/RECORD", "odd.py,sha256=AAAA,6\n")
    contents = Contents(House(root), Manifest.model_construct(python="3.11"))
    contents.add_wheel(place)

    def fits(path: str, content: bytes) -> bool:
        return contents.files[path].fits(Entry("file", 0, 0o644, (0, 0), sha256=hashlib.sha256(content).hexdigest()))

    assert fits(f"{SITE}/odd.py", b"x = 1\n")
    assert not fits(f"{SITE}/odd.py", b"x = 2\n")
    assert fits("opt/env/bin/run", b"#!/opt/env/bin/python3.11\nimport odd\n")
    assert fits("opt/env/share/odd.txt", b"odd\n")
    assert fits(f"{SITE}/odd-1.0.dist-info/INSTALLER", b"smokehouse\n")
