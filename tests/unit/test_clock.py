"""The clock stands still while its process is stopped, and in no other process that was forked from it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

# Its system clock shows an hour more once it was stopped, so that nothing here waits.
STOPPED = """
import os, signal, time
real, late = time.monotonic, []
time.monotonic = lambda: real() + sum(late)
from smokehouse import clock
before = clock.now()
late.append(3600)
os.kill(os.getpid(), signal.SIGSTOP)
print(clock.now() - before < 60)
if not os.fork():
    late.append(1)
    before = clock.now()
    time.sleep(3)  # longer than a gap: its own thread has looked at the clock meanwhile
    print(clock.now() - before > 2, flush=True)
    os._exit(0)
os.wait()
"""


def test_time_in_which_a_process_was_stopped_does_not_count(root: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-u", "-c", STOPPED]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=60) == ("True\nTrue\n", "")
    finally:
        process.kill()
