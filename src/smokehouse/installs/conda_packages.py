"""Conda prefixes: packages put into a folder by rattler, the installer of the conda half."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from smokehouse import console
from smokehouse.errors import UserError
from smokehouse.storage import files

_LINKING = 3600.0  # seconds


def link(archives: Mapping[str, Path], folder: Path, used_as: Path, cache: Path) -> None:
    """Install the conda packages `archives` into `folder`, with `used_as` where they name their own place.

    `archives` has the file of each package by the URL that is to be its origin; each must have been seen to have its
    hash. They are unpacked to `cache`; of what is there from an earlier call only what is whole and unedited is used.
    The files in `folder` and `cache` are the same. Raises UserError.
    """
    from rattler.exceptions import ExtractError, InstallerError, IoError, LinkError, TransactionError

    try:
        asyncio.run(asyncio.wait_for(_link(list(archives.values()), folder, used_as, cache), _LINKING))
    except TimeoutError:
        raise UserError(f"{folder}: not linked within {_LINKING:.0f} s; look at its disk and run it again") from None
    except (ExtractError, InstallerError, IoError, LinkError, TransactionError, OSError) as broken:
        raise UserError(f"{folder}: {_explain(broken)}") from None
    origins = {path.resolve().as_uri(): url for url, path in archives.items()}
    for record in (folder / "conda-meta").glob("*.json"):
        content = json.loads(record.read_text())
        # The archives and the cache are for this installation only; conda and mamba want to know where to ask again.
        content["url"] = origins[content["url"]]
        content["channel"] = content["url"].rsplit("/", 2)[0]
        for place in ("extracted_package_dir", "package_tarball_full_path", "link"):
            content.pop(place, None)
        files.write(record, json.dumps(content, indent=2) + "\n")


def refuse_machine(virtual_packages: Mapping[str, str], name: str) -> None:
    """Raise UserError where this machine's glibc or NVIDIA driver is older than `virtual_packages` say.

    No driver is fine: the environment then runs on the CPU. CONDA_OVERRIDE_GLIBC and CONDA_OVERRIDE_CUDA stand for what
    is detected, as in conda.
    """
    from rattler import Version
    from rattler.exceptions import DetectVirtualPackageError, VirtualPackageOverrideError
    from rattler.virtual_package import VirtualPackage, VirtualPackageOverrides

    try:
        detected = [package.into_generic() for package in VirtualPackage.detect(VirtualPackageOverrides.from_env())]
    except (DetectVirtualPackageError, VirtualPackageOverrideError) as broken:
        raise UserError(f"{name}: this machine cannot be examined ({broken}); look at CONDA_OVERRIDE_*") from None
    here = {package.name.normalized: package.version for package in detected}
    for package, what, cure in (
        ("__glibc", "glibc", "install it on a newer system"),
        ("__cuda", "CUDA driver", "update the NVIDIA driver, or take an environment for an older CUDA"),
    ):
        wanted, found = virtual_packages.get(package), here.get(package)
        if wanted and found and found < Version(wanted):
            raise UserError(f"{name}: the lock is for {what} {wanted} or later, this machine has {found}; {cure}")


async def _link(archives: Sequence[Path], folder: Path, used_as: Path, cache: Path) -> None:
    import rattler
    from rattler.install import InstallerReporter
    from rattler.package_cache.package_cache import PackageCache, ValidationMode

    class Reporter(InstallerReporter):
        """Counts the packages that are linked."""

        def on_link_complete(self, index: int) -> None:
            advance(1)

    records = [await rattler.RepoDataRecord.from_package_archive(archive) for archive in archives]
    with console.progress("linking", len(records), "items") as advance:
        await rattler.install(
            records,
            target_prefix=folder,
            alternative_target_prefix=used_as,
            package_cache=PackageCache.new_layered([cache], validation_mode=ValidationMode.full()),
            # What packages run while they are linked is in no lock, and no package of an environment needs it.
            execute_link_scripts=False,
            show_progress=False,
            # mypy takes the methods that rattler leaves empty for abstract ones.
            reporter=Reporter() if console.is_terminal() else None,  # type: ignore[abstract]
        )


def _explain(broken: BaseException) -> str:
    """Return what rattler says, and the cure, in one line."""
    said = " ".join(str(broken).split())
    if re.search(r"No space left on device|os error 28\b", said):
        return "the disk is full; free some space and run it again"
    return f"cannot be linked ({said}); run it again"
