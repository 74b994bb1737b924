"""A stand-in for the conda executable that conda-lock runs to solve conda packages.

It answers `create --dry-run --json` by solving the same specs with py-rattler from the records in the folder
SMOKEHOUSE_CHANNEL, as of the day SMOKEHOUSE_CUTOFF. It refuses every other command.
"""

import asyncio
import json
import os
import sys
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from rattler import (
    BuildString,
    Channel,
    ChannelConfig,
    GenericVirtualPackage,
    MatchSpec,
    PackageName,
    RepoDataRecord,
    SparseRepoData,
    Version,
    solve_with_sparse_repodata,
)


def virtual_packages(channel: str) -> list[GenericVirtualPackage]:
    """Return the virtual packages that conda-lock provides as a channel of its own, at the file:// URL `channel`."""
    found = []
    for subdir in ("linux-64", "noarch"):
        repodata = Path(urlsplit(channel).path, subdir, "repodata.json")
        for record in json.loads(repodata.read_text())["packages"].values():
            build = BuildString(record.get("build") or "0")
            found.append(GenericVirtualPackage(PackageName(record["name"]), Version(record["version"]), build))
    return found


def fetch(record: RepoDataRecord) -> dict[str, object]:
    """Return a package as conda's FETCH action describes it."""
    return {
        "name": record.name.normalized,
        "version": str(record.version),
        "build": str(record.build),
        "build_number": record.build_number,
        "channel": record.channel,
        "subdir": record.subdir,
        "fn": record.file_name,
        "url": record.url,
        "md5": record.md5.hex() if record.md5 else None,
        "sha256": record.sha256.hex() if record.sha256 else None,
        "depends": record.depends,
        "constrains": record.constrains,
        "size": record.size,
    }


def main() -> None:
    """Solve, and print the same JSON as conda."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print("conda 0")
        return
    if arguments[:1] != ["create"] or "--dry-run" not in arguments or "--json" not in arguments:
        sys.exit(f"stand_in_conda: expected create --dry-run --json, found {' '.join(arguments)}")
    specs, channels = [], []
    remaining = iter(arguments[1:])
    for argument in remaining:
        if argument == "--channel":
            channels.append(next(remaining))
        elif argument == "--prefix":
            next(remaining)
        elif not argument.startswith("--"):
            specs.append(MatchSpec(argument))
    folder = Path(os.environ["SMOKEHOUSE_CHANNEL"])
    after = date.fromisoformat(os.environ["SMOKEHOUSE_CUTOFF"]) + timedelta(days=1)
    conda_forge = Channel("conda-forge", ChannelConfig("https://conda.anaconda.org/"))
    records = [SparseRepoData(conda_forge, subdir, folder / subdir / "repodata.json") for subdir in ("linux-64", "noarch")]
    virtual = [package for channel in channels if channel.startswith("file:") for package in virtual_packages(channel)]
    solved = asyncio.run(
        solve_with_sparse_repodata(
            specs,
            records,
            virtual_packages=virtual,
            exclude_newer=datetime.combine(after, time(), UTC),
            timestamp_policy="allow-missing",
        )
    )
    print(json.dumps({"success": True, "dry_run": True, "actions": {"FETCH": [fetch(one) for one in solved], "LINK": []}}))
    sys.stdout.flush()
    os._exit(0)  # py-rattler crashes one in five interpreters that exit normally after asynchronous calls


if __name__ == "__main__":
    main()
