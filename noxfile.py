"""The front door: `nox -s smoke` proves an environment, `nox -s lock` makes its lock; `nox -l` lists the rest."""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import nox
from nox.command import CommandFailed

# All sessions share one environment, which `install_tools` makes: nox would make one for each.
nox.options.default_venv_backend = "none"
nox.options.sessions = ["tests", "lint"]

OLDEST_PYTHON = (3, 11)  # as in pyproject.toml
TOOLS = Path("lockfiles/tools.txt")
FAILURES = Path("docs/known-failures.md")
COMMANDS = "docs/site/commands.py"  # writes docs/reference/commands.md
UNIT_TESTS, FAULT_TESTS, IMAGE_TESTS = "tests/unit", "tests/faults", "tests/integration"
CLUSTER_TESTS = "tests/cluster"
NOT_BY_DEFAULT = tuple(f"--ignore={path}" for path in (IMAGE_TESTS, CLUSTER_TESTS))
TOOLS_ENVIRONMENT = Path(".nox", "tools")
BIN = TOOLS_ENVIRONMENT.absolute() / "bin"
# With the second one, messages of the builder show commands as nox takes them.
FROM_SOURCE = {"PYTHONPATH": "src", "SMOKEHOUSE_STARTED_BY": "nox"}
# Seconds that a session has to end its processes in after Ctrl-C, and again after SIGTERM.
INTERRUPT_TIMEOUT = 10.0
TERMINATE_TIMEOUT = 10.0

# The sessions that have an option --report.
REPORT_SESSIONS = {"docs", "publish", "smoke"}
SCRIPTS_OF_IMAGES = ("docker/inside/describe",)  # Python without .py
# Run with the Python of any environment, from 3.10 on.
INSIDE = ("smoke_tests", "src/smokehouse_loader")
# .pre-commit-config.yaml has a hook for each, which runs `nox -s lint -- NAME`.
LINTERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "ruff": (("ruff", "check"), ("ruff", "format", "--check")),
    "mypy": (
        ("mypy",),
        ("mypy", "--python-version", "3.10", *INSIDE),
        ("mypy", "--scripts-are-modules", *SCRIPTS_OF_IMAGES),
    ),
    "codespell": (("codespell",),),
    "shellcheck": (("shellcheck",),),  # and the scripts, which `lint` finds
    "hadolint": (("hadolint", "docker/Dockerfile", "docker/examples/child/Dockerfile", "cluster/skypilot/Dockerfile"),),
    "zizmor": (("zizmor", "--offline", "--no-progress", "--persona", "pedantic", ".github"),),
    "pre-commit": (("pre-commit", "validate-config", ".pre-commit-config.yaml"),),
}


@nox.session(name="list")
def list_environments(session: nox.Session) -> None:
    """List the environments: list [-- --json]."""
    install_tools(session)
    run_smokehouse(session, "list")


@nox.session
def show(session: nox.Session) -> None:
    """Show what is in an environment and where its files are: show -- NAME [--json]."""
    install_tools(session)
    run_smokehouse(session, "show")


@nox.session
def doctor(session: nox.Session) -> None:
    """Check this machine and an installation: doctor -- [NAME] [--prefix PREFIX] [--json]."""
    install_tools(session)
    run_smokehouse(session, "doctor")


@nox.session
def run(session: nox.Session) -> None:
    """Run a command in an installed environment: run -- [--prefix PREFIX] NAME -- COMMAND..."""
    install_tools(session)
    run_smokehouse(session, "run", started_in=True)


@nox.session
def sbom(session: nox.Session) -> None:
    """Print the software bill of materials of a lock: sbom -- NAME [--format spdx|cyclonedx] [--output FILE] ..."""
    install_tools(session)
    run_smokehouse(session, "sbom")


@nox.session
def audit(session: nox.Session) -> None:
    """List the known vulnerabilities of locks: audit -- [NAME...] [--database DIR] [--check] [--format sarif] ..."""
    install_tools(session)
    run_smokehouse(session, "audit")


@nox.session
def lock(session: nox.Session) -> None:
    """Lock environments: lock -- [NAME...] [--check]; the tools: lock -- --tools; the base of images: lock -- --base."""
    install_tools(session)
    run_smokehouse(session, "lock")


@nox.session
def new(session: nox.Session) -> None:
    """Write a new environment like another, with its lock: new -- NAME --like OTHER [--family FAMILY --class CLASS]."""
    install_tools(session)
    run_smokehouse(session, "new")


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
def report(session: nox.Session) -> None:
    """Print the table of a smoke test's report again: report -- FILE [--json]."""
    install_tools(session)
    run_smokehouse(session, "report")


@nox.session
def matrix(session: nox.Session) -> None:
    """Measure which versions work together: matrix -- [--model NAME] [--transformers V,...] [--jobs N] [--list] ..."""
    install_tools(session)
    run_smokehouse(session, "matrix")


@nox.session
def suggest(session: nox.Session) -> None:
    """Suggest the nearest stack that works: suggest -- --model NAME [--transformers V] [--checkpoint PATH] [--json] ..."""
    install_tools(session)
    run_smokehouse(session, "suggest")


@nox.session
def bundle(session: nox.Session) -> None:
    """Download all that a machine without a network needs: bundle -- NAME DIR [--devel] [--only pip] [--channel ...]."""
    install_tools(session)
    run_smokehouse(session, "bundle")


@nox.session
def install(session: nox.Session) -> None:
    """Install an environment without root: install -- NAME PREFIX [--bundle DIR] [--devel] [--with-project DIR] ..."""
    install_tools(session)
    run_smokehouse(session, "install")


@nox.session
def docs(session: nox.Session) -> None:
    """Write the pages of environments, known failures and commands: docs -- [NAME...] [--check] [--report FILE]."""
    install_tools(session)
    run_smokehouse(session, "docs")
    command = ("python", "-m", "smokehouse_loader", "failures")
    if "--check" in session.posargs:
        run_tool(session, *command, "--check", str(FAILURES), env=FROM_SOURCE)
        run_tool(session, "python", COMMANDS, "--check")
    else:
        FAILURES.write_text(run_tool(session, *command, env=FROM_SOURCE, silent=True) or "", "utf-8")
        run_tool(session, "python", COMMANDS)


@nox.session
def site(session: nox.Session) -> None:
    """Build the documentation as a site in build/site; a broken link or anchor is an error: site -- [mkdocs options]."""
    install_tools(session)
    # Material warns of a next major version of MkDocs; the lock has the one that it supports.
    run_tool(session, "mkdocs", "build", "--clean", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def build(session: nox.Session) -> None:
    """Build an image: build -- NAME [--flavour runtime|devel] [--output oci:DIR|docker|push:REF] ...; see -- --help."""
    install_tools(session)
    run_smokehouse(session, "build")


@nox.session
def verify(session: nox.Session) -> None:
    """Compare an image with its lock, check its proof: verify -- REF [--quick] [--with WHEEL] [--base REF] [--key FILE] ..."""
    install_tools(session)
    run_smokehouse(session, "verify")


@nox.session
def publish(session: nox.Session) -> None:
    """Build, prove, verify, sign and push, all or nothing: publish -- NAME HOST/REPOSITORY [--key FILE] ..."""
    install_tools(session)
    run_smokehouse(session, "publish")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, without those of images and clusters unless named: tests -- [PATH...] [--cov] [pytest options]."""
    install_tools(session)
    if session.posargs:  # in one call: of two, -k may leave one without a test, which pytest takes for a failure
        named = any(argument.partition("/")[0] == "tests" for argument in session.posargs)
        run_pytest(session, *parallel(session.posargs), *([] if named else NOT_BY_DEFAULT))
        return
    first = (UNIT_TESTS, FAULT_TESTS)
    rest = ("tests", *(f"--ignore={path}" for path in first), *NOT_BY_DEFAULT)
    failed = []
    for paths in (first, rest):
        try:
            run_pytest(session, *parallel(paths))
        except CommandFailed:
            failed.append(paths[0])
    if failed:
        session.error(f"failed: {', '.join(failed)}")


def parallel(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of pytest with those that run unit tests on all cores; smoke runs keep the cores busy themselves."""
    paths = [argument for argument in arguments if argument.partition("/")[0] == "tests"]
    alone = any(argument.startswith(("-n", "-s", "--pdb", "--cov")) for argument in arguments)
    fast = (UNIT_TESTS, FAULT_TESTS)
    several = bool(paths) and all(any(Path(path).is_relative_to(folder) for folder in fast) for path in paths)
    return [*arguments, *(("-n", "auto", "--maxprocesses", "8") if several and not alone else ())]


@nox.session
def images(session: nox.Session) -> None:
    """Build and prove images on a real container engine: images -- [pytest options]."""
    install_tools(session)
    run_pytest(session, *(session.posargs or [IMAGE_TESTS]))


@nox.session
def cluster(session: nox.Session) -> None:
    """Test cluster/ on a real Slurm, as root, after .ci/install-slurm: cluster -- [pytest options]."""
    install_tools(session)
    run_pytest(session, *(session.posargs or [CLUSTER_TESTS]))


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
                run_tool(session, *command, *(shell_scripts() if name == "shellcheck" else ()))
            except CommandFailed:
                failed.append(command[0])
    if failed:
        session.error(f"failed: {', '.join(dict.fromkeys(failed))}")


@nox.session
def benchmark(session: nox.Session) -> None:
    """Measure against rivals or floors: benchmark -- [smoke|lock|loader|cluster|matrix|image]; the last three run if named."""
    install_tools(session)
    chosen = [name for name in session.posargs[:1] if not name.startswith("-")]
    for name in chosen or ["smoke", "lock", "loader"]:
        run_tool(session, "python", f"benchmarks/{name}.py", *session.posargs[len(chosen) :], env={"PYTHONPATH": "src:."})


def install_tools(session: nox.Session) -> None:
    """Install lockfiles/tools.txt, and nothing else, in .nox/tools; up to date, it needs no network and prints nothing."""
    installed, python = TOOLS_ENVIRONMENT / TOOLS.name, BIN / "python"
    TOOLS_ENVIRONMENT.parent.mkdir(exist_ok=True)
    with TOOLS_ENVIRONMENT.with_name(".tools.lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)  # two sessions may start at a time
        if python.exists() and installed.exists() and installed.read_bytes() == TOOLS.read_bytes():
            return
        uv = find_uv()
        if not python.exists():
            session.run_install(uv, "venv", "--quiet", "--clear", "--python", find_python(uv), str(TOOLS_ENVIRONMENT))
        # An activated environment of ours sets it, and the tools are none of its packages.
        sync = ("pip", "sync", "--python", str(python), "--require-hashes", "--compile-bytecode", str(TOOLS))
        session.run_install(uv, *sync, env={"UV_CONSTRAINT": None})
        shutil.copyfile(TOOLS, installed)


def find_python(uv: str) -> str:
    """Return the Python for the tools: the one that runs nox, or another on this machine if that is too old."""
    if sys.version_info >= OLDEST_PYTHON:
        return sys.executable
    oldest = ".".join(map(str, OLDEST_PYTHON))
    command = [uv, "python", "find", "--no-project", "--no-python-downloads", f">={oldest}"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode:
        running = f"{sys.version_info.major}.{sys.version_info.minor} ({sys.executable})"
        print(f"nox: expected Python {oldest} or later, found {running} and no other; install python{oldest}", file=sys.stderr)
        sys.exit(2)
    return ended.stdout.strip()


def find_uv() -> str:
    """Return the uv that nox[uv] brings, or the one on PATH."""
    try:
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        return "uv"


def run_tool(
    session: nox.Session, program: str, *arguments: str, env: dict[str, str] | None = None, silent: bool = False
) -> str | None:
    """Run a program of the tools, and return its output if `silent`."""
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])
    output = session.run(
        str(BIN / program),
        *arguments,
        env={"PATH": path, "VIRTUAL_ENV": str(BIN.parent), **(env or {})},
        silent=silent,
        interrupt_timeout=INTERRUPT_TIMEOUT,
        terminate_timeout=TERMINATE_TIMEOUT,
    )
    return str(output) if silent else None


def run_smokehouse(session: nox.Session, verb: str, *options: str, started_in: bool = False) -> None:
    """Run a verb of the builder; end with its exit code 2 where the user's input was wrong, and with any if `started_in`."""
    try:
        run_tool(session, "python", "-m", "smokehouse", verb, *options, *session.posargs, env=FROM_SOURCE)
    except CommandFailed as failed:
        if failed.return_code == 2 or (started_in and failed.return_code):
            sys.exit(failed.return_code)
        raise


def run_pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest; with --cov, also measure the processes that tests start."""
    run_tool(session, "python", "-m", "pytest", *arguments)


def shell_scripts() -> list[str]:
    """Return the tracked files that a shell runs: by their first line, as some have no suffix."""
    listed = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout.splitlines()
    return [name for name in listed if Path(name).is_file() and _first_line(Path(name)).endswith(("/sh", " sh", "bash"))]


def _first_line(file: Path) -> str:
    with file.open("rb") as content:
        line = content.readline(80).decode("utf-8", "replace").strip()
    return line if line.startswith("#!") else ""


def misplaced(arguments: Sequence[str], sessions: Iterable[str]) -> str | None:
    """Return what is wrong with the command line of nox, where the arguments of a session follow its name without a `--`.

    Options that nox does not know never get here: nox refuses them before it reads this file.
    """
    dashes = arguments.index("--") if "--" in arguments else len(arguments)
    words, rest = list(arguments[:dashes]), arguments[dashes + 1 :]
    known = set(sessions)
    for option in {"-s", "--session", "--sessions"} & {*words}:
        named = words[words.index(option) + 1 :]
        end = next((index for index, word in enumerate(named) if word.startswith("-")), len(named))
        wrong = [word for word in named[:end] if word not in known]
        right = shlex.join(["nox", "-s", *(w for w in named[:end] if w in known), "--", *wrong, *named[end:], *rest])
        if wrong and named[0] in known:
            return f"{wrong[0]}: not a session; -- is missing before the arguments of {named[0]}; run {right}"
        # nox has an option of this name, which would swallow it.
        if {*named[:end]} & REPORT_SESSIONS and any(word.partition("=")[0] == "--report" for word in named[end:]):
            return f"--report: -- is missing before the options of {named[0]}; run {right}"
    return None


if Path(sys.argv[0]).stem in ("nox", "__main__") and (problem := misplaced(sys.argv[1:], nox.registry.get())):
    print(f"nox: {problem}", file=sys.stderr)
    sys.exit(2)
