"""Standard streams that are shown as they are written, and whose loss ends nothing.

Output is no part of a verdict: a closed pipe or a full disk under it loses lines, not the report.
"""

import errno
import io
import os
import sys
from typing import Any


class _Tolerant(io.TextIOWrapper):
    """A text stream that drops what cannot be written, and writes what its encoding lacks as escapes."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except (OSError, ValueError) as lost:
            self._end(lost)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except (OSError, ValueError) as lost:
            self._end(lost)

    def _end(self, lost: OSError | ValueError) -> None:
        """Write to nowhere from now on where nobody reads any more: what waits would fail again when Python exits."""
        if isinstance(lost, OSError) and lost.errno == errno.EPIPE:
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - it has no path
                os.dup2(nowhere.fileno(), self.fileno())


def keep_output_harmless() -> None:
    """Open /dev/null for standard streams that are closed; make the others tolerant, and show each line when it is whole."""
    # Otherwise the next file that is opened gets the number of a standard stream, and what libraries print goes there.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            stream = io.TextIOWrapper(io.FileIO(os.devnull, "w"), "utf-8")
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, _Tolerant):
            encoding = stream.encoding
            # In a pipe or a log, lines would be shown at the end, and after those of programs that were started later.
            setattr(sys, name, _Tolerant(stream.detach(), encoding, "backslashreplace", line_buffering=True))
