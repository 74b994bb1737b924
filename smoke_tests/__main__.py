"""`python -m smoke_tests [preflight]`: exit code 0 when everything passed, 1 when something failed, 2 for invalid input."""

import os
import signal
import sys
import time

from smoke_tests import endings, here
from smoke_tests.machine.output import keep_output_harmless
from smoke_tests.options import InputError, read
from smoke_tests.outcome import one_line


def main(arguments: list[str]) -> int:
    """Run the smoke tests with the command line `arguments`, and return the exit code."""
    began = time.monotonic()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, no exit status can be read
    keep_output_harmless()
    endings.end_in_order()
    try:
        if sys.version_info < here.PYTHON:
            oldest = ".".join(map(str, here.PYTHON))
            raise InputError(
                f"{sys.executable}: expected Python {oldest} or later, found {sys.version.split()[0]}; give another one"
            )
        if arguments[:1] == ["preflight"]:
            from smoke_tests.machine import command

            return command.main(arguments[1:])
        options = read(arguments)
        if options.validate:
            return 0
        if options.lock is None:
            here.leave_no_bytecode()
        options = here.complete(options)
        from smoke_tests.run import serve, smoke

        if options.node_rank:
            return serve(options)
        code = smoke(options, began)
        if hint := os.environ.get("SMOKEHOUSE_HINT"):  # the builder's, which cannot print it after its exec
            print(f"\n{hint}")
        return code
    except InputError as error:
        print(" ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except (OSError, ImportError) as error:
        print(f"smoke: {_explained(error)}", file=sys.stderr)
        return 2
    except MemoryError:
        print("smoke: out of memory; free memory, or raise its limit (ulimit -v)", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        print(
            f"smoke: {error}; free memory, or raise the limits of processes and memory (ulimit -u, ulimit -v)", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("smoke: interrupted before the first rank started", file=sys.stderr)
        return 1


def _explained(error: OSError | ImportError) -> str:
    """Return what the system or an import refused, and what to do, in one line."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; {endings.remedy(error)}"
    from smokehouse_loader import explain

    known = explain(error)
    return f"{one_line(error)}; {known[0].failure.cure if known else 'install the environment again'}"


if __name__ == "__main__":
    endings.leave(main(sys.argv[1:]))
