"""A program in a root of its own sees what it is given, and nothing of the machine."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from smokehouse.programs import namespace

SHELL = {place: place for place in ("/bin", "/usr", "/lib", "/lib64") if Path(place).exists()}


def run(folder: Path, script: str, mounts: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a root of two layers, with the machine's programs."""
    for name in ("upper", "lower", "out", "work"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "upper" / "both").write_text("upper")
    (folder / "lower" / "both").write_text("lower")
    (folder / "lower" / "below").write_text("below")
    layers = [str(folder / "upper"), str(folder / "lower")]
    root = namespace.Root(layers, {**SHELL, "/out": str(folder / "out"), **mounts}, ["/out"], str(folder / "work"))
    command = namespace.command(root, ["/bin/sh", "-c", script], {"PATH": "/usr/bin:/bin", "GREETING": "hello"})
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_it_sees_the_layers_and_its_own_variables(tmp_path: Path) -> None:
    ended = run(tmp_path, "cat /both /below; echo; env | grep -v PWD | sort; id -u; umask; echo $$")
    assert ended.stdout.splitlines() == ["upperbelow", "GREETING=hello", "PATH=/usr/bin:/bin", "0", "0022", "1"], ended.stderr


def test_it_writes_to_out_alone(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "kept").write_text("kept")
    script = "echo made > /out/made; echo x > /both; rm /below; echo x > /in/kept; rm /in/kept; echo x > /in/more"
    ended = run(tmp_path, script, {"/in": str(given)})
    assert ended.stderr.count("Read-only file system") == 3
    assert (tmp_path / "out" / "made").read_text() == "made\n"
    assert [path.name for path in given.iterdir()] == ["kept"]
    assert (given / "kept").read_text() == "kept"
    assert (tmp_path / "upper" / "both").read_text() == "upper"
    assert (tmp_path / "lower" / "below").exists()
    assert [*(tmp_path / "work").iterdir()] == []


def test_it_has_no_network_and_no_other_files(tmp_path: Path) -> None:
    ended = run(tmp_path, f"cat /proc/net/dev | grep -c :; ls -d {tmp_path} /etc /root /home 2>&1 | grep -vc cannot; ls /")
    interfaces, found, *names = ended.stdout.split()
    assert (interfaces, found) == ("1", "0")  # the loopback interface, which is down
    assert {*names} <= {"below", "both", "dev", "out", "proc", "tmp"} | {place.strip("/") for place in SHELL}


def test_the_exit_code_is_that_of_the_program(tmp_path: Path) -> None:
    assert run(tmp_path, "exit 7").returncode == 7
    root = namespace.Root([str(tmp_path / "lower")], {}, [], str(tmp_path / "work"))
    ended = subprocess.run(namespace.command(root, ["/no/such"], {}), capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (namespace.NOT_STARTED, "/no/such: No such file or directory\n")


def test_what_it_has_started_ends_with_it(tmp_path: Path) -> None:
    """The descriptor that a program in the background keeps open is closed when that program is gone."""
    ours, theirs = os.pipe()
    for name in ("lower", "work"):
        (tmp_path / name).mkdir()
    root = namespace.Root([str(tmp_path / "lower")], SHELL, [], str(tmp_path / "work"))
    command = namespace.command(root, ["/bin/sh", "-c", "sleep 600 & exit 0"], {"PATH": "/bin"})
    process = subprocess.Popen(command, pass_fds=[theirs], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(theirs)
    process.wait(60)
    assert os.read(ours, 1) == b""
    os.close(ours)
