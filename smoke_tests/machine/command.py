"""`python -m smoke_tests preflight`: print the findings; exit code 1 where training would not work."""

import argparse
import dataclasses
import json
import os
import signal
from typing import NoReturn

from smoke_tests.machine import fabric, shown
from smoke_tests.machine.situation import Situation, findings
from smoke_tests.machine.software import release


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def _release(text: str) -> tuple[int, int]:
    if not (found := release(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is an invalid CUDA release; give one such as 12.4")
    return found


def _ranks(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is invalid; give a number of 1 or more")
    return int(text)


def main(arguments: list[str]) -> int:
    """Check this machine with the command line `arguments`, and return the exit code; for wrong ones, exit with 2."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, no exit status can be read
    description = "Check driver, GPUs, shared memory, limits and compilers; exit with 1 where training would not work."
    parser = _Parser(prog=os.environ.get("SMOKEHOUSE_PROG", "python -m smoke_tests preflight"), description=description)
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("--markdown", action="store_true", help="Print Markdown, to paste into an issue.")
    help_text = "Check for a run on cuda, where GPUs are required, or on cpu (default: auto)."
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=help_text)
    parser.add_argument("--nproc", type=_ranks, metavar="N", help="Check for this many ranks (default: one per GPU).")
    help_text = "Require this CUDA release of the driver (default: that of torch)."
    parser.add_argument("--cuda", type=_release, metavar="RELEASE", help=help_text)
    help_text = "Give the remedies of a container or a host (default: detected)."
    parser.add_argument("--remedies", choices=("container", "host"), help=help_text)
    help_text = "Require this many GPUs (default: SLURM_GPUS_ON_NODE in a job of Slurm)."
    parser.add_argument("--gpus", type=_ranks, metavar="N", help=help_text)
    parser.add_argument("--fabric", choices=fabric.KINDS, help="Require this network between machines (default: detected).")
    help_text = "Multiply matrices on each GPU and reduce over all, and compare with machines of the type (starts CUDA)."
    parser.add_argument("--measure", action="store_true", help=help_text)
    options = parser.parse_args(arguments)
    if options.json and options.markdown:
        parser.error("expected --json or --markdown, found both")
    container = None if options.remedies is None else options.remedies == "container"
    given = {"promised": options.gpus, "fabric": options.fabric, "measure": options.measure}
    found = findings(Situation(options.device, options.nproc, container, options.cuda, **given))
    if options.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found]))
    elif options.markdown:
        print(shown.markdown("Smokehouse preflight", found))
    else:
        print(*(f"  {shown.line(finding)}" for finding in found), sep="\n")
    return int(any(finding.level == "fail" for finding in found))
