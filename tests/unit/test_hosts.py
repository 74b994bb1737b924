"""No file of ours names the host of a package registry."""

import functools
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

from virtualenv.seed.wheels import embed


@functools.cache
def hosts() -> set[str]:
    """The hosts that the clients on this machine are made for or configured with."""
    pip = next(Path(embed.__file__).parent.glob("pip-*.whl"))
    with zipfile.ZipFile(pip) as archive:
        text = archive.read("pip/_internal/models/index.py").decode()
    found = set(re.findall(r'PackageIndex\(\s*"https://([^/"]+)', text))
    found |= set(re.findall(r'file_storage_domain="([^"]+)"', text))
    assert len(found) >= 3
    for sources in Path("/etc/apt").glob("sources.list.d/*.sources"):
        found |= set(re.findall(r"^URIs: *https?://([^/\s]+)", sources.read_text(), re.MULTILINE))
    if npm := shutil.which("npm"):
        asked = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True, timeout=60)
        found |= set(re.findall(r"https?://([^/\s]+)", asked.stdout))
    return found


def test_no_file_names_a_registry(root: Path) -> None:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=root, capture_output=True, check=True, timeout=60).stdout.decode().split("\0")
    named = {
        (name, host)
        for name in files
        if name and (root / name).is_file()
        for host in hosts()
        if host.encode() in (root / name).read_bytes()
    }
    assert not named
