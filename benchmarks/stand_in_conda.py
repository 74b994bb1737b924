"""Stands in for the conda executable that conda-lock asks for its conda half.

Answers `create --dry-run --json` by solving the same specs with py-rattler from the records in the folder that
SMOKEHOUSE_CHANNEL names, as of the day SMOKEHOUSE_CUTOFF. Everything else that conda can do is refused.
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
    """The virtual packages that conda-lock states as a channel of its own, at the file:// address `channel`."""
    found = []
    for subdir in ("linux-64", "noarch"):
        repodata = Path(urlsplit(channel).path, subdir, "repodata.json")
        for record in json.loads(repodata.read_text())["packages"].values():
            build = BuildString(record.get("build") or "0")
            found.append(GenericVirtualPackage(PackageName(record["name"]), Version(record["version"]), build))
    return found


def fetch(record: RepoDataRecord) -> dict[str, object]:
    """One package as conda's FETCH action names it."""
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
    """Solve and print what conda prints."""
    given = sys.argv[1:]
    if given == ["--version"]:
        print("conda 0")
        return
    if given[:1] != ["create"] or "--dry-run" not in given or "--json" not in given:
        sys.exit(f"this stands in for conda in a benchmark and cannot: {' '.join(given)}")
    specs, channels = [], []
    arguments = iter(given[1:])
    for argument in arguments:
        if argument == "--channel":
            channels.append(next(arguments))
        elif argument == "--prefix":
            next(arguments)
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
    os._exit(0)  # py-rattler crashes in a fifth of the interpreter's orderly exits after asynchronous calls


if __name__ == "__main__":
    main()
