"""Compare locks with their environments, without a network."""

from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.environments import definition as environments
from smokehouse.environments.definition import Environment
from smokehouse.environments.inputs import CondaInputs, Inputs, name_of
from smokehouse.errors import UserError
from smokehouse.locks import model as manifests
from smokehouse.locks.model import MANIFEST, Manifest
from smokehouse.locks.pins import Lock, LockFiles, environment_lock, read
from smokehouse.storage import files


def read_manifest(place: LockFiles) -> Manifest:
    """Read the lock.json of an environment's lock; raises UserError where the lock is missing or was edited."""
    assert place.manifest
    return manifests.read(place.manifest, str(Path(place.name).with_name(MANIFEST)), f"run {place.command}")


def check(inputs: Inputs, place: LockFiles) -> None:
    """Raise UserError where the pip lock is not what `inputs` ask for, saying what differs. Needs no network."""
    if problem := _difference(inputs, read(place)):
        raise UserError(f"{place.name}: {problem}; run {place.command}")


def check_environment(environment: Environment, place: LockFiles) -> Manifest:
    """Return the manifest of the lock of `environment`; raises UserError as `check` does, for either half."""
    manifest = read_manifest(place)
    if manifest.inputs != environment.digest():
        check(environment.inputs, place)
        problem = _conda_difference(environment.conda, manifest)
        raise UserError(f"{place.pins.parent.name}: {problem}; run {place.command}")
    return manifest


def locked(checkout: Checkout, name: str) -> tuple[Environment, Manifest, str]:
    """Return the environment `name`, the manifest of its lock, seen to be of it, and the SHA-256 of lock.json.

    Raises UserError.
    """
    promise = environments.read(checkout, name)
    manifest = check_environment(promise, environment_lock(checkout, name))
    return promise, manifest, files.hashed(checkout.lock(name) / MANIFEST)


def virtual_packages(inputs: CondaInputs) -> dict[str, str]:
    """Return the virtual packages as conda-lock writes them: a version, and a build where there is one."""
    return {name: version if build == "0" else f"{version} {build}" for name, (version, build) in inputs.virtual}


def _conda_difference(inputs: CondaInputs, manifest: Manifest) -> str:
    """Return how the conda half of a lock that was made from something else is not what `inputs` ask for."""
    locked = {package.name: package for package in manifest.conda}
    for spec in inputs.specs:
        package = locked.get(name_of(spec))
        if package is None:
            return f"{inputs.file} asks {spec}, the conda half of the lock has none"
        category = "devel" if package.name in inputs.devel else "main"
        if category == "main" != package.category:
            return f"{package.name} is devel in the lock and no longer in stack.toml's [conda] devel"
    virtual = virtual_packages(inputs)
    for name in sorted(virtual.keys() | manifest.virtual_packages.keys()):
        if virtual.get(name) != manifest.virtual_packages.get(name):
            return f"{name} is to be {virtual.get(name)}, in the lock it is {manifest.virtual_packages.get(name)}"
    return "the conda half was made from other specs, or by an older Smokehouse"


def _difference(inputs: Inputs, lock: Lock) -> str | None:
    """Return how `lock` is not what `inputs` ask for, None where it is."""
    for what, asked, locked in (
        ("Python", inputs.python, lock.python),
        ("platform", inputs.platform or "any", lock.platform),
        ("cut-off", str(inputs.cutoff), lock.cutoff),
    ):
        if asked != locked:
            return f"{what} is to be {asked}, in the lock it is {locked}"
    for requirement in sorted(inputs.requirements, key=str):
        locked_versions = lock.versions.get(requirement.name)
        if locked_versions is None:
            return f"{inputs.file} asks {requirement}, the lock has none"
        if not any(requirement.specifier.contains(version, prereleases=True) for version in locked_versions):
            return f"{inputs.file} asks {requirement}, the lock has {', '.join(locked_versions)}"
    asked_names = {requirement.name for requirement in inputs.requirements}
    if gone := [name for name, via in lock.via.items() if inputs.file in via and name not in asked_names]:
        return f"{inputs.file} no longer asks {', '.join(gone)}, the lock still does"
    if lock.inputs != inputs.digest():
        return "the lock was made from other version ranges, extras or left_out, or by an older Smokehouse"
    return None
