"""The front door: `nox -s smoke` proves an environment, `nox -s lock` makes its lock; `nox -l` lists the rest."""

import shutil
import subprocess
import sys
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint"]

TOOLS = Path("lockfiles/tools.txt")
FAILURES = Path("docs/known-failures.md")
COMMANDS = "docs/site/commands.py"  # writes docs/reference/commands.md
IMAGE_TESTS = "tests/integration"
FROM_SOURCE = {"PYTHONPATH": "src"}
# Seconds that a session has to end its processes in after Ctrl-C, and again after SIGTERM.
INTERRUPT_TIMEOUT = 10.0
TERMINATE_TIMEOUT = 10.0

SCRIPTS_OF_IMAGES = ("docker/inside/describe", "docker/inside/doctor")  # Python without .py
# .pre-commit-config.yaml has a hook for each, which runs `nox -s lint -- NAME`.
LINTERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "ruff": (("ruff", "check"), ("ruff", "format", "--check")),
    "mypy": (("mypy",), ("mypy", "--scripts-are-modules", *SCRIPTS_OF_IMAGES)),
    "codespell": (("codespell",),),
    "shellcheck": (("shellcheck",),),  # and the scripts, which `lint` finds
    "hadolint": (("hadolint", "docker/Dockerfile", "docker/examples/child/Dockerfile"),),
    "zizmor": (("zizmor", "--offline", "--no-progress", "--persona", "pedantic", ".github"),),
    "pre-commit": (("pre-commit", "validate-config", ".pre-commit-config.yaml"),),
}


@nox.session
def lock(session: nox.Session) -> None:
    """Lock environments: lock -- [NAME...] [--check]; the tools: lock -- --tools; the base of images: lock -- --base."""
    install_tools(session)
    run_smokehouse(session, "lock")


@nox.session
def drift(session: nox.Session) -> None:
    """Ask the live index whether it still gives the committed locks: drift -- [NAME...] [--channel ...] [--json]."""
    install_tools(session)
    run_smokehouse(session, "lock", "--drift")


@nox.session
def smoke(session: nox.Session) -> None:
    """Prove an environment: smoke -- [NAME] [--zero 2,3] [--nproc N] [--device auto|cpu|cuda] ...; see -- --help."""
    install_tools(session)
    run_smokehouse(session, "smoke")


@nox.session
def bundle(session: nox.Session) -> None:
    """Download all that a machine without a network needs: bundle -- NAME DIR [--devel] [--only pip] [--channel ...]."""
    install_tools(session)
    run_smokehouse(session, "bundle")


@nox.session
def install(session: nox.Session) -> None:
    """Install an environment without root: install -- NAME PREFIX [--bundle DIR] [--devel] [--used-as PATH] ..."""
    install_tools(session)
    run_smokehouse(session, "install")


@nox.session
def docs(session: nox.Session) -> None:
    """Write the pages of environments, known failures and commands: docs -- [NAME...] [--check] [--report FILE]."""
    install_tools(session)
    run_smokehouse(session, "docs")
    command = ("python", "-m", "smokehouse_loader", "failures")
    if "--check" in session.posargs:
        session.run(*command, "--check", str(FAILURES), env=FROM_SOURCE)
        session.run("python", COMMANDS, "--check")
    else:
        FAILURES.write_text(session.run(*command, env=FROM_SOURCE, silent=True) or "", "utf-8")
        session.run("python", COMMANDS)


@nox.session
def site(session: nox.Session) -> None:
    """Build the documentation as a site in build/site; a broken link or anchor is an error: site -- [mkdocs options]."""
    install_tools(session)
    # Material warns of a next major version of MkDocs; the lock has the one that it supports.
    session.run("mkdocs", "build", "--clean", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def build(session: nox.Session) -> None:
    """Build an image: build -- NAME [--flavour runtime|devel] [--output oci:DIR|docker|push:REF] ...; see -- --help."""
    install_tools(session)
    run_smokehouse(session, "build")


@nox.session
def verify(session: nox.Session) -> None:
    """Compare an image with its lock, check its proof: verify -- REF [--bundle DIR] [--key FILE] [--rebuild] [--json]."""
    install_tools(session)
    run_smokehouse(session, "verify")


@nox.session
def publish(session: nox.Session) -> None:
    """Build, prove, verify, sign and push, all or nothing: publish -- NAME HOST/REPOSITORY [--key FILE] ..."""
    install_tools(session)
    run_smokehouse(session, "publish")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, without those of images unless named: tests -- [PATH...] [--cov] [pytest options]."""
    install_tools(session)
    named = [argument for argument in session.posargs if argument.partition("/")[0] == "tests"]
    run_pytest(session, *session.posargs, *([] if named else [f"--ignore={IMAGE_TESTS}"]))


@nox.session
def images(session: nox.Session) -> None:
    """Build and prove images on a real container engine: images -- [pytest options]."""
    install_tools(session)
    run_pytest(session, *(session.posargs or [IMAGE_TESTS]))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, spelling, shell scripts, Dockerfiles and workflows: lint -- [NAME...] runs some of the linters."""
    names = session.posargs or [*LINTERS]
    if unknown := ", ".join(name for name in names if name not in LINTERS):
        session.error(f"lint: expected {', '.join(LINTERS)}, found {unknown}")
    install_tools(session)
    failed = []
    for name in names:
        for command in LINTERS[name]:
            try:
                session.run(*command, *(shell_scripts() if name == "shellcheck" else ()))
            except CommandFailed:
                failed.append(command[0])
    if failed:
        session.error(f"failed: {', '.join(dict.fromkeys(failed))}")


@nox.session
def benchmark(session: nox.Session) -> None:
    """Measure against rivals or floors: benchmark -- [smoke|lock|loader|image]; image takes half an hour, and runs if named."""
    install_tools(session)
    chosen = [name for name in session.posargs[:1] if not name.startswith("-")]
    for name in chosen or ["smoke", "lock", "loader"]:
        session.run(
            "python",
            f"benchmarks/{name}.py",
            *session.posargs[len(chosen) :],
            env={"PYTHONPATH": "src:."},
            interrupt_timeout=INTERRUPT_TIMEOUT,
            terminate_timeout=TERMINATE_TIMEOUT,
        )


def install_tools(session: nox.Session) -> None:
    """Install lockfiles/tools.txt, and nothing else, in the session's environment; up to date, it needs no network."""
    installed = Path(session.virtualenv.location, TOOLS.name)
    if not installed.exists() or installed.read_bytes() != TOOLS.read_bytes():
        session.run_install("uv", "pip", "sync", "--require-hashes", "--compile-bytecode", str(TOOLS), external=True)
        shutil.copyfile(TOOLS, installed)


def run_smokehouse(session: nox.Session, verb: str, *options: str) -> None:
    """Run a verb of the builder; end with its exit code 2 where the user's input was wrong."""
    try:
        session.run(
            "python",
            "-m",
            "smokehouse",
            verb,
            *options,
            *session.posargs,
            env=FROM_SOURCE,
            interrupt_timeout=INTERRUPT_TIMEOUT,
            terminate_timeout=TERMINATE_TIMEOUT,
        )
    except CommandFailed as failed:
        if failed.return_code == 2:
            sys.exit(2)
        raise


def run_pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest; with --cov, also measure the processes that tests start."""
    session.run(
        "python",
        "-m",
        "pytest",
        *arguments,
        interrupt_timeout=INTERRUPT_TIMEOUT,
        terminate_timeout=TERMINATE_TIMEOUT,
    )


def shell_scripts() -> list[str]:
    """Return the tracked files that a shell runs: by their first line, as some have no suffix."""
    listed = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout.splitlines()
    return [name for name in listed if Path(name).is_file() and _first_line(Path(name)).endswith(("/sh", " sh", "bash"))]


def _first_line(file: Path) -> str:
    with file.open("rb") as content:
        line = content.readline(80).decode("utf-8", "replace").strip()
    return line if line.startswith("#!") else ""
