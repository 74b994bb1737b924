"""The table of verbs, and the one place where errors become a line and an exit code."""

import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from smokehouse.cli import audit, catalog, docs, doctor, image, install, lock, matrix, new, smoke, suggest
from smokehouse.console import STARTED_BY, as_typed, status
from smokehouse.errors import UserError
from smokehouse.programs.process import end_with_parent

# Each verb, in the order of `--help`, and the arguments of its example.
VERBS: tuple[tuple[str, Callable[..., Any], tuple[str, ...]], ...] = (
    ("list", catalog.list_environments, ("--json",)),
    ("show", catalog.show, ("qwen2.5-vl",)),
    ("smoke", smoke.smoke, ("qwen2.5-vl", "--zero", "3")),
    ("report", smoke.report, ("build/smoke/qwen2.5-vl/report.json",)),
    ("install", install.install, ("qwen2.5-vl", "~/envs/vl", "--devel")),
    ("run", install.run, ("qwen2.5-vl", "--", "python", "train.py")),
    ("bundle", install.bundle, ("qwen2.5-vl", "/media/disk/bundle")),
    ("doctor", doctor.doctor, ("qwen2.5-vl-latest",)),
    ("sbom", catalog.sbom, ("qwen2.5-vl", "--format", "cyclonedx", "--output", "sbom.cdx.json")),
    ("audit", audit.audit, ("qwen2.5-vl", "--database", "~/vulnerabilities")),
    ("lock", lock.lock, ("qwen2.5-vl", "--upgrade", "transformers", "--diff")),
    ("new", new.new, ("mistral", "--like", "yi-coder", "--family", "mistral", "--class", "MistralForCausalLM")),
    ("matrix", matrix.matrix, ("--model", "qwen2.5-vl", "--transformers", "4.51.3,4.57.6")),
    ("suggest", suggest.suggest, ("--model", "Qwen2.5-VL", "--transformers", "4.51")),
    ("build", image.build, ("qwen2.5-vl", "--flavour", "devel", "--output", "oci:build/image")),
    ("verify", image.verify, ("ghcr.io/OWNER/qwen2.5-vl@sha256:…", "--key", "cosign.pub")),
    ("publish", image.publish, ("qwen2.5-vl", "ghcr.io/OWNER/qwen2.5-vl", "--key", "cosign.key")),
    ("docs", docs.docs, ("qwen2.5-vl", "--report", "build/smoke/qwen2.5-vl/report.json")),
)
# Typer breaks no line of a paragraph that begins so.
_AS_IT_IS = "\b\n"
_BY_NOX = os.environ.get(STARTED_BY) == "nox"


class Verb(TyperCommand):
    """A verb whose usage line and example are what the user types: with nox, arguments follow a `--`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the usage line after the name of the verb, in pieces."""
        # Typer writes {NAME} for what is required.
        pieces = [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]
        return ["--", *pieces] if _BY_NOX else pieces


app = typer.Typer(
    help="""Locked, built and proven environments for training vision-language models.

    Environments come from environments/ in this folder or a parent, then from the installed package. Installations and
    reports go to build/ beside that folder; where there is none, to $SMOKEHOUSE_HOME, by default ~/.local/share/smokehouse.
    """,
    epilog=f"Example: {as_typed('smoke', 'qwen2.5-vl')}",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import PackageNotFoundError, version  # slow to import

        try:
            print(f"smokehouse {version('smokehouse')}")
        except PackageNotFoundError:  # nox runs it from the sources of a checkout
            print("smokehouse of this checkout, not installed")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Run before each verb; typer calls it for the options that come before one."""


for _name, _function, _example in VERBS:
    _settings = smoke.SETTINGS if _name == "smoke" else install.RUN_SETTINGS if _name == "run" else None
    _epilog = f"{_AS_IT_IS}Example: {as_typed(_name, *_example)}"
    app.command(_name, cls=Verb, epilog=_epilog, context_settings=_settings)(_function)


def main() -> int:
    """Run the command line and return its exit code: 0, 1 for a failed check, 2 for invalid input."""
    try:
        code = _main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    if "rattler" in sys.modules:
        # Its threads outlive the last call and crash an interpreter that exits under them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def share_certificates() -> None:
    """Make every program and library that is started trust the same certificates: each reads another of these variables."""
    names = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
    place = next((os.environ[name] for name in names if os.environ.get(name)), "")
    if Path(place).is_file():
        for name in names:
            os.environ.setdefault(name, place)


class _Output(io.TextIOWrapper):
    """Standard output that is shown line by line, also in a pipe or a log, and goes nowhere once nobody reads it."""

    def write(self, text: str, /) -> int:
        with self._harmless():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._harmless():
            super().flush()

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except OSError as broken:
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - it has no path; Python would fail again when it exits
                os.dup2(nowhere.fileno(), self.fileno())
            if broken.errno != errno.EPIPE:
                broken.filename = "standard output"
                raise


def _end_in_order() -> None:
    """Have signals end this process as an exception does, and the end of its parent, such as nox, send one.

    Whoever ignores SIGHUP, as nohup does, keeps it running.
    """
    # Otherwise the next file that is opened gets the number of a standard stream, and output goes there.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if isinstance(sys.stdout, io.TextIOWrapper):  # not where the file descriptor is closed
        sys.stdout = _Output(sys.stdout.detach(), sys.stdout.encoding, "backslashreplace", line_buffering=True)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, _: sys.exit(128 + received))
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        end_with_parent()


def _main() -> int:
    share_certificates()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, no exit status can be read
    _end_in_order()
    try:
        code = int(app(prog_name="nox -s" if _BY_NOX else "smokehouse", standalone_mode=False) or 0)
        return _flush(code)
    except KeyboardInterrupt:
        return _complain("interrupted; no partial result is in use", 130)
    except typer.Abort:
        return _complain("interrupted", 130)
    except typer.TyperException as wrong:
        return _complain(f"{wrong.format_message().rstrip('.')}; see --help", 2)
    except UserError as mistake:
        for line in mistake.lines:
            status(line)
        return 2
    except OSError as broken:
        if _is_nowhere():
            return _complain("the current folder no longer exists; change to one that does (cd)", 2)
        where = f"{broken.filename}: " if broken.filename else ""
        return _complain(f"{where}{broken.strerror or broken}; {_remedy(broken)}", 2)
    except MemoryError:
        return _complain("out of memory; free memory, or raise its limit (ulimit -v)", 2)
    except RuntimeError as broken:
        if "can't start new thread" not in str(broken):
            raise
        return _complain(f"{broken}; free memory, or raise the limits of processes and memory (ulimit -u, ulimit -v)", 2)


def _is_nowhere() -> bool:
    """Return whether the folder that this process runs in was removed."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _flush(code: int) -> int:
    """Return the exit code after writing what was printed; raises OSError where that fails."""
    if sys.stdout:
        sys.stdout.flush()
    return code


def _remedy(broken: OSError) -> str:
    """Return what to do about an error of the system."""
    remedies = {
        "free disk space": (errno.ENOSPC, errno.EDQUOT),
        "fix permissions": (errno.EACCES, errno.EPERM, errno.EROFS),
        "raise the limit of open files (ulimit -n)": (errno.EMFILE, errno.ENFILE),
        "raise the limit of file sizes (ulimit -f)": (errno.EFBIG,),
        "raise the limit of processes (ulimit -u)": (errno.EAGAIN,),
        "free memory": (errno.ENOMEM,),
        "specify a shorter path": (errno.ENAMETOOLONG,),
        "specify a file": (errno.EISDIR,),
    }
    return next((text for text, numbers in remedies.items() if broken.errno in numbers), "fix it and run it again")


def _complain(message: str, code: int) -> int:
    status(message)
    return code
