"""A build context is used again only as it was made."""

import os
import shutil
from pathlib import Path

from smokehouse import locks
from smokehouse.checkout import Checkout
from smokehouse.images import contexts
from smokehouse.installs import bundle

from ..conftest import TestCheckout


def test_a_conda_prefix_is_used_again_only_as_it_was_made(checkout: TestCheckout, packages: Path, tmp_path: Path) -> None:
    checkout.lock("--channel", str(packages))
    place = tmp_path / "bundle"
    assert checkout.run("bundle", "tiny", str(place), "--channel", str(packages)).returncode == 0
    locked = locks.load(Checkout(checkout.root), "tiny")
    bundled, folder = bundle.read(place, locked), tmp_path / "conda"

    def make() -> tuple[int, bytes, str]:
        contexts.conda_context(folder, locked.lock.main, locked.lock, bundled)
        archive = folder / "prefix.tar"
        return archive.stat().st_ino, archive.read_bytes(), (folder / "plan.json").read_text()

    inode, archive, plan = make()
    # Another environment with the same packages takes it as it is, and only so.
    other = tmp_path / "images" / "other" / "conda"
    shutil.copytree(folder, tmp_path / "images" / "tiny" / "conda")
    [kept] = (tmp_path / "images").glob("*/conda/prefix.tar")
    contexts.conda_context(other, locked.lock.main, locked.lock, bundled)
    assert (other / "prefix.tar").samefile(kept)
    assert (other / "plan.json").read_text() == plan
    for damaged in (kept, kept.with_name("plan.json")):
        shutil.rmtree(other)
        damaged.write_text("{}")
        contexts.conda_context(other, locked.lock.main, locked.lock, bundled)
        assert (other / "prefix.tar").read_bytes() == archive
    assert make() == (inode, archive, plan)
    stat = (folder / "prefix.tar").stat()

    def edit() -> None:
        (folder / "prefix.tar").write_bytes(archive.replace(b"#!", b"#?", 1))
        os.utime(folder / "prefix.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns))

    for poison in (
        edit,
        lambda: (folder / "prefix.tar").write_bytes(b""),
        lambda: (folder / "prefix.tar").unlink(),
        lambda: (folder / "plan.json").write_text(plan.replace('"budget": ', '"budget": 1')),
        lambda: shutil.rmtree(folder),
    ):
        poison()
        assert make()[1:] == (archive, plan)
