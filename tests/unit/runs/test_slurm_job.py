"""What the first node of a Slurm job makes of the lines of all nodes. tests/cluster runs it on a real Slurm."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from smokehouse.programs import slurm
from smokehouse.runs import slurm_job
from smokehouse.runs.slurm_job import End, Job, Listener

NAMES = ("gpu07", "gpu08")


def listener(*lines: tuple[int, str]) -> tuple[Listener, list[str]]:
    """Return who has heard these lines, and what it passed on."""
    shown: list[str] = []
    found = Listener(NAMES, lambda stream, line: shown.append(f"{stream} {line}"))
    for stream, line in lines:
        found.hear(stream, line.encode())
    return found, shown


def test_first_node_that_fails_is_the_cause() -> None:
    """Node 0 follows it, and its exit code is that of the run; what srun and slurmstepd add is no cause."""
    found, shown = listener(
        (1, "0: waiting at 10.0.0.1:20001"),
        (2, "1: disk quota   exceeded"),
        (2, "1: slurmstepd: error: *** STEP 5.0 ON gpu08 CANCELLED ***"),
        (2, "1: smokehouse-node-ended 3"),
        (2, "srun: error: gpu08: task 1: Exited with exit code 3"),
        (2, "0: expected 2 nodes, found no node 1"),
        (2, "0: smokehouse-node-ended 2"),
    )
    result = found.result(3)
    assert result.code == 2
    assert result.cause == "node gpu08 ended with exit code 3: disk quota exceeded"
    assert [end.node for end in result.ends] == ["gpu08", "gpu07"]
    assert shown == [
        "1 waiting at 10.0.0.1:20001",
        "2 gpu08: disk quota   exceeded",
        "2 gpu08: slurmstepd: error: *** STEP 5.0 ON gpu08 CANCELLED ***",
        "2 srun: error: gpu08: task 1: Exited with exit code 3",
        "2 expected 2 nodes, found no node 1",
    ]


def test_srun_that_starts_nothing_is_the_cause() -> None:
    found, _ = listener((2, "srun: error: Unable to create step for job 7: Invalid node count"))
    assert found.result(1).cause == "srun: error: Unable to create step for job 7: Invalid node count"


def test_nodes_that_all_pass() -> None:
    found, _ = listener((2, "1: smokehouse-node-ended 0"), (2, "0: smokehouse-node-ended 0"))
    assert (found.result(0).code, found.result(0).cause) == (0, "")


def test_node_that_never_says_how_it_ended_fails_the_job() -> None:
    """srun itself ends with 0 after a node that was lost."""
    found, _ = listener((2, "0: smokehouse-node-ended 0"))
    assert found.result(0).code == 1


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (1, "node n1 ended with exit code 1: said"),
        (137, "node n1 was killed by SIGKILL: said"),
        (255, "node n1 ended with exit code 255: said"),
    ],
)
def test_end_in_words(code: int, expected: str) -> None:
    assert End("n1", code, "said").words == expected


def test_long_lines_that_srun_breaks_are_whole_again() -> None:
    """Pieces of two nodes, and of two streams of one, come in turn."""
    found = Listener(NAMES, None)
    for stream, line in (
        (1, b"0: " + b"a" * 1024),
        (1, b"1: " + b"b" * 1024),
        (2, b"0: warning"),
        (1, b"0: end"),
        (1, b"1: " + b"c" * 1024),
        (1, b"1: "),
        (1, b"0: next"),
    ):
        found.hear(stream, line)
    printed = found.result(0).printed
    assert printed == {"gpu07": "a" * 1024 + "end\nnext", "gpu08": "b" * 1024 + "c" * 1024}


@pytest.mark.parametrize(
    "line", ["7: smokehouse-node-ended 1", "smokehouse-node-ended 1", "1: smokehouse-node-ended x", "\xff"]
)
def test_lines_of_nobody_end_nothing(line: str) -> None:
    found, shown = listener((2, line))
    assert found.result(0).ends == ()
    assert len(shown) == 1


def job(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> tuple[Job, Path]:
    """Return a job whose srun is a shell, in an allocation of one node, and its reserve."""
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu07")
    monkeypatch.setattr(slurm, "nodes", lambda listed: [listed])
    reserve = slurm_job.reserve(folder)
    return Job((script,), ("sh", "-c"), folder, reserve=reserve), reserve


def test_what_srun_waits_for_in_vain_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """srun waits for a node that is gone until Slurm has noticed, minutes later; node 0 knows it long before."""
    monkeypatch.setattr(slurm_job, "GRACE", 0.2)
    run, reserve = job(monkeypatch, tmp_path, "echo '0: lost gpu08' >&2; echo '0: smokehouse-node-ended 1' >&2; exec sleep 600")
    began = time.monotonic()
    result = run()
    assert time.monotonic() - began < 60
    assert (result.code, result.cause) == (1, "node gpu07 ended with exit code 1: lost gpu08")
    assert not reserve.exists()


def test_node_says_how_its_command_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the line that each node really runs; SIGTERM, which all get, does not end it early."""
    node = slurm_job.srun(1)[-3:-1]
    assert node[0] == "-c"
    command = ["sh", "-c", node[1], "smokehouse", "sh", "-c", "kill -TERM $PPID; echo why >&2; exit 7"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (7, "why\nsmokehouse-node-ended 7\n")


def test_jobs_that_follow_each_other_have_ports_of_their_own_that_no_client_takes() -> None:
    ports = [slurm_job.port_of(str(number)) for number in range(32760, 32760 + 12_000)]
    assert len(set(ports)) == len(ports)
    assert all(1024 <= port < 32768 for port in ports)


def test_training_jobs_have_the_ports_of_smoke_tests(root: Path) -> None:
    """Both are of a job's number, so that a job that runs both in turn needs one port."""
    [line] = [line for line in (root / "cluster/slurm/train.sbatch").read_text().splitlines() if "PORT=${PORT:-" in line]
    for job in ("1", "12001", "4711000"):
        script = f'{line}\necho "$PORT"'
        said = subprocess.run(["bash", "-c", script], env={"SLURM_JOB_ID": job}, capture_output=True, text=True, check=True)
        assert int(said.stdout) == slurm_job.port_of(job)


def caches(environ: dict[str, str], key: str = "key") -> dict[str, str]:
    """Return where a job compiles on a node, by variable."""
    script = f'set -eu\n{slurm_job.CACHES}caches "$1"; echo "${{TRITON_CACHE_DIR:-}}"; echo "${{TORCH_EXTENSIONS_DIR:-}}"'
    ended = subprocess.run(["sh", "-c", script, "sh", key], env=environ, capture_output=True, text=True, check=True)
    return dict(zip(("TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR"), ended.stdout.splitlines(), strict=True))


def test_training_jobs_and_smoke_tests_compile_in_the_same_folders(root: Path) -> None:
    """The file is also copied alone, and so has the function itself."""
    assert slurm_job.CACHES in (root / "cluster/slurm/train.sbatch").read_text()


def test_what_is_compiled_is_of_one_node_and_one_environment(tmp_path: Path) -> None:
    """Also where home is on NFS. Kernels of Triton have keys of their own."""
    environ = {**os.environ, "NODE_CACHE": str(tmp_path / "local"), "HOME": "/nfs/home", "TMPDIR": "/nfs/tmp"}
    for name in ("TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR"):
        environ.pop(name, None)
    own = tmp_path / "local" / f"smokehouse-{os.getuid()}"
    for key in ("one", "two"):
        expected = {"TRITON_CACHE_DIR": f"{own}/triton", "TORCH_EXTENSIONS_DIR": f"{own}/torch_extensions/{key}"}
        assert caches(environ, key) == expected
    assert own.stat().st_mode & 0o777 == 0o700
    chosen = {"TRITON_CACHE_DIR": "/mine", "TORCH_EXTENSIONS_DIR": "/mine too"}
    assert caches(environ | chosen) == chosen


def test_folder_that_another_user_made_is_not_compiled_in(tmp_path: Path) -> None:
    """They could put code into it. Where there can be none, the defaults of the libraries stay."""
    environ = {"PATH": os.environ["PATH"], "NODE_CACHE": str(tmp_path)}
    own = tmp_path / f"smokehouse-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir()
    own.symlink_to("elsewhere")
    found = Path(caches(environ)["TRITON_CACHE_DIR"]).parent
    assert found.parent == tmp_path
    assert found.name.startswith(f"{own.name}-")
    assert found.stat().st_mode & 0o777 == 0o700
    if os.getuid() == 0:
        own.unlink()
        own.mkdir()
        os.chown(own, 54321, -1)
        assert Path(caches(environ)["TRITON_CACHE_DIR"]).parent not in (own, found)
    assert caches(environ | {"NODE_CACHE": "/proc/none"}) == {"TRITON_CACHE_DIR": "", "TORCH_EXTENSIONS_DIR": ""}
