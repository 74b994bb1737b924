"""The front door: `nox -s smoke` proves an environment, `nox -s lock` makes its lock; `nox -l` lists the rest."""

import shutil
import sys
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint"]

TOOLS = Path("lockfiles/tools.txt")
FAILURES = Path("docs/known-failures.md")
FROM_SOURCE = {"PYTHONPATH": "src"}
# Seconds that a smoke test has to end its ranks in after Ctrl-C, and again after a SIGTERM.
ORDERLY = {"interrupt_timeout": 10.0, "terminate_timeout": 10.0}


@nox.session
def lock(session: nox.Session) -> None:
    """Resolve environments: lock -- [NAME...] [--check]; the tools: lock -- --tools; images' base: lock -- --base."""
    install_tools(session)
    run_smokehouse(session, "lock")


@nox.session
def smoke(session: nox.Session) -> None:
    """Prove an environment: smoke -- [NAME] [--zero 2,3] [--nproc N] [--device auto|cpu|cuda] ...; see -- --help."""
    install_tools(session)
    run_smokehouse(session, "smoke")


@nox.session
def bundle(session: nox.Session) -> None:
    """Fetch all that a machine without a network needs: bundle -- NAME DIR [--devel] [--only pip] [--channel ...]."""
    install_tools(session)
    run_smokehouse(session, "bundle")


@nox.session
def install(session: nox.Session) -> None:
    """Install both halves without root: install -- NAME PREFIX [--bundle DIR] [--devel] [--used-as PATH] ..."""
    install_tools(session)
    run_smokehouse(session, "install")


@nox.session
def docs(session: nox.Session) -> None:
    """Write the pages of the environments and of the known failures: docs -- [NAME...] [--check] [--report FILE]."""
    install_tools(session)
    run_smokehouse(session, "docs")
    command = ("python", "-m", "smokehouse_loader", "failures")
    if "--check" in session.posargs:
        session.run(*command, "--check", str(FAILURES), env=FROM_SOURCE)
    else:
        FAILURES.write_text(session.run(*command, env=FROM_SOURCE, silent=True), "utf-8")


@nox.session
def build(session: nox.Session) -> None:
    """Build an image: build -- NAME [--flavour runtime|devel] [--output oci:DIR|docker|push:REF] ...; see -- --help."""
    install_tools(session)
    run_smokehouse(session, "build")


@nox.session
def verify(session: nox.Session) -> None:
    """Is this image what its lock builds, and proven? verify -- REF [--bundle DIR] [--key FILE] [--rebuild] [--json]."""
    install_tools(session)
    run_smokehouse(session, "verify")


@nox.session
def publish(session: nox.Session) -> None:
    """Build, prove, verify, sign and push, all or nothing: publish -- NAME HOST/REPOSITORY [--key FILE] ..."""
    install_tools(session)
    run_smokehouse(session, "publish")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, but for those of images where nothing is named: tests -- [pytest options]."""
    install_tools(session)
    session.run("python", "-m", "pytest", *(session.posargs or ["--ignore=tests/integration"]), **ORDERLY)


@nox.session
def images(session: nox.Session) -> None:
    """Build and prove images on a real container engine: images -- [pytest options]."""
    install_tools(session)
    session.run("python", "-m", "pytest", *(session.posargs or ["tests/integration"]), **ORDERLY)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types."""
    install_tools(session)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy", "--strict", "src")
    session.run("mypy", "--ignore-missing-imports", "smoke_tests")


@nox.session
def benchmark(session: nox.Session) -> None:
    """Measure each against its rival or floor: benchmark -- [smoke|lock|loader|image]; images, half an hour, if named only."""
    install_tools(session)
    chosen = [name for name in session.posargs[:1] if not name.startswith("-")]
    for name in chosen or ["smoke", "lock", "loader"]:
        session.run("python", f"benchmarks/{name}.py", *session.posargs[len(chosen) :], env={"PYTHONPATH": "src:."}, **ORDERLY)


def install_tools(session: nox.Session) -> None:
    """Make the session's environment what lockfiles/tools.txt names; where it already is, this takes no network."""
    installed = Path(session.virtualenv.location, TOOLS.name)
    if not installed.exists() or installed.read_bytes() != TOOLS.read_bytes():
        session.run_install("uv", "pip", "sync", "--require-hashes", "--compile-bytecode", str(TOOLS), external=True)
        shutil.copyfile(TOOLS, installed)


def run_smokehouse(session: nox.Session, verb: str) -> None:
    """Run a verb of the builder, with its own exit code for a mistake of the user's."""
    try:
        session.run("python", "-m", "smokehouse", verb, *session.posargs, env=FROM_SOURCE, **ORDERLY)
    except CommandFailed as failed:
        if failed.return_code == 2:
            sys.exit(2)
        raise
