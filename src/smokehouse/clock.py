"""A clock that stands still while this process is stopped, as by Ctrl-Z: what waited for it meanwhile is not late."""

import os
import threading
import time

_TICK = 0.25  # seconds from one look at the clock to the next, while this process runs
_GAP = 2.0  # seconds without one, after which it did not run


class _Clock:
    """The seconds for which this process ran since it was made; a thread looks at them again and again, so that gaps show."""

    def __init__(self) -> None:
        self._lock, self._ticks = threading.Lock(), False
        self._last, self._lost = time.monotonic(), 0.0

    def now(self) -> float:
        with self._lock:
            moment = time.monotonic()
            if not self._ticks:
                threading.Thread(target=self._tick, daemon=True).start()
                self._ticks, self._last = True, moment
            if moment - self._last > _GAP:
                self._lost += moment - self._last
            self._last = moment
            return moment - self._lost

    def _tick(self) -> None:
        while True:
            time.sleep(_TICK)
            self.now()


_clock = _Clock()


def now() -> float:
    """Return seconds since some moment, of which none counts in which this process was stopped."""
    return _clock.now()


def _restart() -> None:
    """Begin again in a process that was forked, which has no threads."""
    global _clock
    _clock = _Clock()


os.register_at_fork(after_in_child=_restart)
