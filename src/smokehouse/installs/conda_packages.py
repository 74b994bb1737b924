"""Install conda packages into a prefix with rattler."""

import asyncio
import json
import re
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from smokehouse import clock, console
from smokehouse.errors import UserError
from smokehouse.storage import files

_TIMEOUT = 3600.0  # seconds to link all packages


def link(archives: Mapping[str, Path], folder: Path, used_as: Path, cache: Path) -> None:
    """Install the conda packages `archives` into `folder`, with `used_as` as the prefix that they contain.

    `archives` has the file of each package, verified by its hash, by the URL to record as its origin. They are unpacked to
    `cache`, a new folder. Files of `folder` and `cache` may be hard links of each other. Raises UserError.
    """
    from rattler.exceptions import ExtractError, InstallerError, IoError, LinkError, TransactionError

    try:
        asyncio.run(_in_time(_link(list(archives.values()), folder, used_as, cache)))
    except TimeoutError:
        raise UserError(f"{folder}: timed out after {_TIMEOUT:.0f} s; check its disk and run it again") from None
    except (ExtractError, InstallerError, IoError, LinkError, TransactionError, OSError) as broken:
        raise UserError(f"{folder}: {_explain(broken)}") from None
    origins = {path.resolve().as_uri(): url for url, path in archives.items()}
    for record in (folder / "conda-meta").glob("*.json"):
        content = json.loads(record.read_text())
        # The archives and the cache are temporary; conda and mamba need the public URL.
        content["url"] = origins[content["url"]]
        content["channel"] = content["url"].rsplit("/", 2)[0]
        for key in ("extracted_package_dir", "package_tarball_full_path", "link"):
            content.pop(key, None)
        files.write(record, json.dumps(content, indent=2) + "\n")


def require_compatible_machine(virtual_packages: Mapping[str, str], name: str) -> None:
    """Raise UserError where this machine's glibc or NVIDIA driver is older than `virtual_packages`.

    Without a driver the environment runs on the CPU. CONDA_OVERRIDE_GLIBC and CONDA_OVERRIDE_CUDA replace the detected
    versions, as in conda.
    """
    from rattler import Version
    from rattler.exceptions import DetectVirtualPackageError, VirtualPackageOverrideError
    from rattler.virtual_package import VirtualPackage, VirtualPackageOverrides

    try:
        detected = [package.into_generic() for package in VirtualPackage.detect(VirtualPackageOverrides.from_env())]
    except (DetectVirtualPackageError, VirtualPackageOverrideError) as broken:
        raise UserError(f"{name}: glibc and CUDA driver cannot be detected ({broken}); check CONDA_OVERRIDE_*") from None
    versions = {package.name.normalized: package.version for package in detected}
    for package, component, remedy in (
        ("__glibc", "glibc", "install it on a newer system"),
        ("__cuda", "CUDA driver", "update the NVIDIA driver, or use an environment for an older CUDA"),
    ):
        required, found = virtual_packages.get(package), versions.get(package)
        if required and (found < Version(required) if found else package == "__glibc"):  # without a driver there is a CPU
            raise UserError(f"{name}: expected {component} {required} or later, found {found or 'none'}; {remedy}")


async def _in_time(linking: Coroutine[Any, Any, None]) -> None:
    """Await `linking`; raises TimeoutError."""
    task, until = asyncio.ensure_future(linking), clock.now() + _TIMEOUT
    while not (await asyncio.wait({task}, timeout=max(0.0, until - clock.now())))[0]:
        if clock.now() >= until:
            task.cancel()
            raise TimeoutError
    task.result()


async def _link(archives: Sequence[Path], folder: Path, used_as: Path, cache: Path) -> None:
    import rattler
    from rattler.install import InstallerReporter
    from rattler.package_cache.package_cache import PackageCache, ValidationMode

    class Reporter(InstallerReporter):
        """A counter of linked packages."""

        def on_link_complete(self, index: int) -> None:
            advance(1)

    records = [await rattler.RepoDataRecord.from_package_archive(archive) for archive in archives]
    with console.progress("linking", len(records), "items") as advance:
        await rattler.install(
            records,
            target_prefix=folder,
            alternative_target_prefix=used_as,
            package_cache=PackageCache.new_layered([cache], validation_mode=ValidationMode.full()),
            # The lock does not cover what these scripts do, and no package of an environment needs them.
            execute_link_scripts=False,
            show_progress=False,
            # mypy takes the empty methods of rattler for abstract ones.
            reporter=Reporter() if console.is_terminal() else None,  # type: ignore[abstract]
        )


def _explain(broken: BaseException) -> str:
    """Return rattler's message and what to do, in one line."""
    said = " ".join(str(broken).split())
    if re.search(r"No space left on device|os error 28\b", said):
        return "the disk is full; free disk space and run it again"
    return f"cannot be linked ({said}); run it again"
