"""Programs that the tests require, unpacked from Debian packages without installing them."""

import fcntl
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

_DOWNLOADING = 600  # seconds


def unpack(names: Sequence[str], folder: Path, *, without: Sequence[str] = (), dependencies: bool = False) -> Path:
    """Unpack Debian packages, each written as name/suite or name/suite/component, into `folder` and return its usr/.

    With `dependencies`, so are all packages that they depend on and this machine lacks. Files whose path matches a pattern of
    `without` are not unpacked. Mirror and keyring are those of the machine's own apt sources. Files of an earlier call are
    reused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / ".unpacked"
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not done.exists() or done.read_text().split() != [*names]:
            _fetch(names, folder, dependencies=dependencies)
            excluded = folder / "excluded"
            excluded.write_text("".join(f"{pattern}\n" for pattern in without))
            for package in sorted([*(folder / "packages").glob("*.deb"), *(folder / "cache" / "archives").glob("*.deb")]):
                script = 'dpkg-deb --fsys-tarfile "$1" | tar -x --exclude-from="$2"'
                command = ["bash", "-o", "pipefail", "-c", script, "-", str(package), str(excluded)]
                subprocess.run(command, cwd=folder, check=True, timeout=300)
                package.unlink()
            done.write_text("\n".join(names))
    return folder / "usr"


def _fetch(names: Sequence[str], folder: Path, *, dependencies: bool) -> None:
    for place in ("lists/partial", "cache/archives/partial", "packages"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    mirror, keyring = _source()
    parts = [(*package.split("/"), "main")[:3] for package in names]
    sources = sorted({f"deb [signed-by={keyring}] {mirror} {suite} {component}\n" for _, suite, component in parts})
    (folder / "sources.list").write_text("".join(sources))
    (folder / "apt.conf").write_text(
        f'Dir::State::lists "{folder}/lists"; Dir::Cache "{folder}/cache"; Dir::Etc::sourcelist "{folder}/sources.list";'
        'Dir::Etc::sourceparts "/dev/null"; Dir::Etc::preferencesparts "/dev/null"; APT::Sandbox::User "root";'
        'Acquire::Retries "3";\n'
    )
    environ = os.environ | {"APT_CONFIG": str(folder / "apt.conf")}
    chosen = [f"{name}/{suite}" for name, suite, _ in parts]
    download = ["apt-get", "download", "-qq", *chosen]
    if dependencies:  # it installs nothing, so it takes no lock of the machine's packages
        download = ["apt-get", "install", "--download-only", "--no-install-recommends", "--reinstall"]
        download += ["--allow-downgrades", "-qq", "-y", "-o", "Debug::NoLocking=1", *chosen]
    for command in (["apt-get", "update", "-qq"], download):
        ended = subprocess.run(
            command, cwd=folder / "packages", env=environ, capture_output=True, text=True, timeout=_DOWNLOADING
        )
        assert ended.returncode == 0, ended.stderr


def _source() -> tuple[str, str]:
    """Return the Debian mirror that this machine uses, and the keyring that verifies its packages."""
    for path in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            fields = dict(re.findall(r"^([\w-]+):\s*(.*?)\s*$", stanza, re.MULTILINE))
            if "debian-archive" in fields.get("Signed-By", "") and "-security" not in fields["Suites"]:
                return fields["URIs"].split()[0], fields["Signed-By"]
    raise AssertionError(
        "no Debian mirror found in /etc/apt/sources.list.d; these tests require one, or a running Docker engine"
    )
