"""Bound the logs of ranks and launchers while they are written, and keep their ends: what went wrong is said last."""

import contextlib
import os
from pathlib import Path

LARGEST = 64 << 20  # bytes of one log
KEPT = 8 << 20  # bytes at its end that stay when it has become larger
_TRIES = 100  # of a writer that is as fast as this reads


def trim(folder: Path, largest: int = LARGEST, kept: int = KEPT) -> None:
    """Cut the beginning off each log in the folders of `folder` that is too large; its writer goes on at the new end.

    Writers append: what they write while this reads is read, too, so that little can be lost, and nothing of a writer that has
    ended.
    """
    for file in folder.glob("*/*.log"):
        with contextlib.suppress(OSError):
            if file.stat().st_size <= largest:
                continue
            descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
            try:
                size = os.fstat(descriptor).st_size
                end = os.pread(descriptor, kept, size - kept)
                for _ in range(_TRIES):
                    if not (more := os.pread(descriptor, kept, size)):
                        break
                    end, size = (end + more)[-kept:], size + len(more)
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"[{size - len(end)} bytes before this were dropped]\n".encode() + end)
            finally:
                os.close(descriptor)
