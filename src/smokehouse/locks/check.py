"""Load an environment with its lock, and report how a lock is out of date. Uses no network and no solver."""

from dataclasses import dataclass

from smokehouse.checkout import Checkout
from smokehouse.environments import definition
from smokehouse.environments.definition import Environment
from smokehouse.environments.inputs import CondaInputs, Inputs, package_name
from smokehouse.errors import UserError
from smokehouse.locks import constraints, contents, model, pins
from smokehouse.locks.model import Lock
from smokehouse.locks.pins import LockFiles, PinFile, Pins
from smokehouse.storage.files import hashed


@dataclass(frozen=True)
class LockedEnvironment:
    """An environment and its lock, up to date with each other. `digest` is the SHA-256 of lock.json, in hex."""

    environment: Environment
    lock: Lock
    files: LockFiles
    digest: str

    @property
    def name(self) -> str:
        """The environment's name."""
        return self.environment.name

    @property
    def cuda(self) -> str:
        """The CUDA release that it is for, such as 12.4."""
        return self.environment.stack.cuda.version


def load(checkout: Checkout, name: str) -> LockedEnvironment:
    """Read the environment `name` and its lock; raises UserError where either is invalid, or the lock is out of date."""
    environment = definition.read(checkout, name)
    files = LockFiles.of(checkout, name)
    return LockedEnvironment(environment, check_environment(environment, files), files, hashed(files.lock_json))


def others(locked: LockedEnvironment) -> list[LockedEnvironment]:
    """Return the locks of an environment for its further platforms; raises UserError where one is invalid."""
    found = []
    for environment in locked.environment.others:
        files = locked.files.on(environment.stack.packages.platform)
        found.append(LockedEnvironment(environment, check_environment(environment, files), files, hashed(files.lock_json)))
    return found


def read_lock(files: LockFiles) -> Lock:
    """Read lock.json and verify the files beside it; raises UserError where one is missing or was edited."""
    return model.read(files.lock_json, f"{files.name}/{files.lock_json.name}", f"run {files.command}")


def check_environment(environment: Environment, files: LockFiles) -> Lock:
    """Return the lock of `environment`; raises UserError where it is out of date, saying what differs.

    A lock for a further platform that is out of date makes all of it so.
    """
    contents.require_plain(files, environment.stack.packages.platforms)
    lock = read_lock(files)
    found = pins.read(files.pins, files.build_pins)
    check_pins(environment.inputs, files.pins, found)
    if lock.inputs != environment.digest():
        problem = _conda_difference(environment.conda, lock)
        raise UserError(f"{files.label}: lock out of date: {problem}; run {files.command}")
    contents.require_same(environment, files, lock, found)
    constraints.check(files, lock)
    for other in environment.others:
        check_environment(other, files.on(other.stack.packages.platform))
    return lock


def check_pins(inputs: Inputs, file: PinFile, found: Pins) -> None:
    """Raise UserError where `found`, read from `file`, is out of date with `inputs`, saying what differs."""
    if problem := _difference(inputs, found):
        raise UserError(f"{file.name}: lock out of date: {problem}; run {file.command}")


def virtual_packages(inputs: CondaInputs) -> dict[str, str]:
    """Return the virtual packages as conda-lock writes them: a version, and a build where there is one."""
    return {name: version if build == "0" else f"{version} {build}" for name, (version, build) in inputs.virtual}


def _conda_difference(inputs: CondaInputs, lock: Lock) -> str:
    """Return how the conda packages of a lock that was made from other inputs differ from what `inputs` require."""
    locked = {package.name: package for package in lock.conda}
    for spec in inputs.specs:
        package = locked.get(package_name(spec))
        if package is None:
            return f"{inputs.file} requires {spec}, lock has no such conda package"
        category = "devel" if package.name in inputs.devel else "main"
        if category == "main" != package.category:
            return f"{package.name}: expected category main, lock has devel"
    virtual = virtual_packages(inputs)
    for name in sorted(virtual.keys() | lock.virtual_packages.keys()):
        if virtual.get(name) != lock.virtual_packages.get(name):
            return f"{name}: expected {virtual.get(name)}, lock has {lock.virtual_packages.get(name)}"
    return "the specs of conda packages changed, or an older version of Smokehouse made it"


def _difference(inputs: Inputs, found: Pins) -> str | None:
    """Return how `found` differs from what `inputs` require, None where it does not."""
    for what, required, locked in (
        ("Python", inputs.python, found.python),
        ("platform", inputs.platform or "any", found.platform),
        ("cut-off", str(inputs.cutoff), found.cutoff),
    ):
        if required != locked:
            return f"{what}: expected {required}, lock has {locked}"
    for requirement in sorted(inputs.requirements, key=str):
        versions = found.versions.get(requirement.name)
        if versions is None:
            return f"{inputs.file} requires {requirement}, lock has no such package"
        if not any(requirement.specifier.contains(version, prereleases=True) for version in versions):
            return f"{inputs.file} requires {requirement}, lock has {', '.join(versions)}"
    required_names = {requirement.name for requirement in inputs.requirements}
    if gone := [name for name, via in found.via.items() if inputs.file in via and name not in required_names]:
        return f"{inputs.file} no longer requires {', '.join(gone)}, lock still has it"
    if found.inputs != inputs.digest():
        return "version ranges, extras or left_out changed, or an older version of Smokehouse made it"
    return None
