"""Network, folders, control groups and clock of a machine: real ones where root may make them, else the kernel's files."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smoke_tests.machine import cgroup, clock, fabric, promises, remedies, shown, storage
from smoke_tests.machine.finding import Finding
from smoke_tests.machine.gpus import Visible
from smoke_tests.machine.situation import Situation, findings
from smoke_tests.machine.storage import Mount

ROOT = Path(__file__).parents[3]
as_root = pytest.mark.skipif(os.getuid() != 0, reason="namespaces, mounts and control groups require root")


def wrong(found: Iterator[Finding]) -> dict[str, Finding]:
    """Return what is not ok, by place."""
    return {one.where: one for one in found if one.level != "ok"}


# the fabric


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose sys and dev are taken for the kernel's, with the libraries of the fabric."""
    for name in ("sys", "dev/infiniband", "lib"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "dev/infiniband/uverbs0").touch()
    (tmp_path / "lib/libibverbs.so.1").touch()
    monkeypatch.setenv("SMOKEHOUSE_SYS", str(tmp_path / "sys"))
    monkeypatch.setenv("SMOKEHOUSE_DEV", str(tmp_path / "dev"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "lib"))
    for name in ("NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_NET_PLUGIN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def add(
    machine: Path, device: str, *, driver: str = "mlx5_core", state: str = "4: ACTIVE", rate: str = "400 Gb/sec (4X NDR)"
) -> None:
    """Add a device with one port, as sysfs has it. See: Documentation/ABI/stable/sysfs-class-infiniband of Linux."""
    folder = machine / "sys/class/infiniband" / device
    (folder / "ports/1").mkdir(parents=True)
    (folder / "ports/1/state").write_text(f"{state}\n")
    (folder / "ports/1/rate").write_text(f"{rate}\n")
    (machine / "drivers" / driver).mkdir(parents=True, exist_ok=True)
    (folder / "device").mkdir()
    (folder / "device/driver").symlink_to(machine / "drivers" / driver)


def test_a_fabric_that_was_promised_and_is_sound(machine: Path) -> None:
    add(machine, "mlx5_0")
    [one] = fabric.check("infiniband", container=False)
    assert (one.level, one.what) == ("ok", "mlx5_0 400 Gb/sec (4X NDR)")


def test_a_fabric_that_was_promised_and_is_not_there(machine: Path) -> None:
    add(machine, "mlx5_0")
    [one] = fabric.check("efa", container=True)
    assert (one.level, one.where) == ("fail", "fabric")
    assert not wrong(fabric.check("ethernet", container=True))


def test_ports_that_are_down_or_slow(machine: Path) -> None:
    add(machine, "mlx5_0", state="1: DOWN")
    assert wrong(fabric.check("infiniband", container=False))["mlx5_0:1"].level == "fail"
    add(machine, "mlx5_1")
    add(machine, "mlx5_2", rate="100 Gb/sec (4X EDR)")
    found = wrong(fabric.check("infiniband", container=False))
    assert {where: one.level for where, one in found.items()} == {"mlx5_0:1": "warn", "mlx5_2:1": "warn"}
    assert found["mlx5_2:1"].what == "runs at 100 Gb/sec (4X EDR), another port at 400 Gb/sec"


def test_devices_and_libraries_that_a_container_does_not_have(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(machine, "rdmap0", driver="efa")
    (machine / "dev/infiniband/uverbs0").unlink()
    (machine / "lib/libibverbs.so.1").unlink()
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)  # this machine's own libraries
    for promised, level in (("efa", "fail"), (None, "warn")):
        found = wrong(fabric.check(promised, container=True))
        assert set(found) == {str(machine / "dev/infiniband"), "libibverbs.so.1", "NCCL plugin"}
        assert {one.level for one in found.values()} == {level}
    (machine / "lib/libnccl-net-ofi.so").touch()
    assert "NCCL plugin" not in wrong(fabric.check("efa", container=True))
    monkeypatch.setenv("NCCL_NET_PLUGIN", "mine")
    assert "libnccl-net-mine.so" in wrong(fabric.check("efa", container=True))["NCCL plugin"].what


@pytest.mark.parametrize(
    ("variable", "value", "fails"),
    [
        ("NCCL_IB_DISABLE", "1", True),
        ("NCCL_IB_DISABLE", "0", False),
        ("NCCL_IB_HCA", "mlx5", False),
        ("NCCL_IB_HCA", "=mlx5", True),
        ("NCCL_IB_HCA", "^mlx5_0", True),
        ("NCCL_IB_HCA", "^mlx5_1", False),
        ("NCCL_IB_HCA", "=mlx5_0:1,mlx5_1:1", False),
        ("NCCL_IB_HCA", "mlx5_0:2", True),
    ],
)
def test_settings_that_leave_the_fabric_out(
    machine: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, fails: bool
) -> None:
    add(machine, "mlx5_0")
    monkeypatch.setenv(variable, value)
    assert set(wrong(fabric.check("infiniband", container=False))) == ({variable} if fails else set())


# interfaces of a real network namespace

INTERFACES = """
import dataclasses, json, os, subprocess, sys
from smoke_tests.machine import fabric
for number, command in enumerate(json.loads(sys.argv[1])):
    subprocess.run(["ip", *command.split()], check=True)
found = fabric.interfaces()
answers = []
for value in json.loads(sys.argv[2]):
    os.environ["NCCL_SOCKET_IFNAME"] = value
    if not value:
        del os.environ["NCCL_SOCKET_IFNAME"]
    answers.append(dataclasses.asdict(fabric.interface(found)))
print(json.dumps(answers))
"""


def interface(commands: list[str], *values: str) -> list[dict[str, str]]:
    """Return what is found in a network namespace that `ip` made with `commands`, for values of NCCL_SOCKET_IFNAME."""
    command = ["unshare", "--net", sys.executable, "-c", INTERFACES, json.dumps(commands), json.dumps(values)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    found: list[dict[str, str]] = json.loads(ended.stdout)
    return found


@as_root
def test_the_interface_that_nccl_takes() -> None:
    made = ["link set lo up", "link add eth7 type veth peer name p-eth7", "addr add 192.0.2.7/24 dev eth7", "link set eth7 up"]
    made += ["link add docker0 type veth peer name p-docker0", "addr add 198.51.100.1/24 dev docker0", "link set docker0 up"]
    made += ["link add eth8 type veth peer name p-eth8", "addr add 192.0.2.8/24 dev eth8"]  # which is down
    named = interface(made, "", "eth", "^docker,eth", "=eth", "eth8", "docker0", "lo")
    assert [one["level"] for one in named] == ["ok", "ok", "warn", "fail", "fail", "warn", "warn"]
    assert named[0]["what"] == "eth7 (192.0.2.7)"
    assert named[3]["what"] == "NCCL_SOCKET_IFNAME==eth matches none of lo, eth7, docker0"
    assert named[5]["what"] == "docker0 (198.51.100.1), a bridge of this machine"
    made += ["link add ib0 type veth peer name p-ib0", "addr add 203.0.113.1/24 dev ib0", "link set ib0 up"]
    assert interface(made, "")[0]["what"] == "ib0 (203.0.113.1)"  # which NCCL prefers


@as_root
def test_a_namespace_with_no_interface_but_loopback() -> None:
    assert interface([], "")[0]["level"] == "fail"
    [one] = interface(["link set lo up"], "")
    assert (one["level"], one["what"]) == ("warn", "lo, which reaches this machine only")


def test_interfaces_of_this_machine_are_those_that_sockets_use() -> None:
    names = {name for _, name in socket.if_nameindex()}
    assert {one.name for one in fabric.interfaces()} <= names
    assert any(one.loopback for one in fabric.interfaces())


# folders


def folders_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all caches be in folders of `tmp_path`."""
    for name in ("HF_HOME", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))


def test_caches_on_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders_on(tmp_path, monkeypatch)
    proc = tmp_path / "proc/self"
    proc.mkdir(parents=True)
    place = str(tmp_path).replace(" ", "\\040")
    proc.joinpath("mountinfo").write_text(
        "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
        f"40 22 0:50 / {place} rw,relatime shared:1 - nfs4 server:/home rw,vers=4.2\n"
        f"41 40 0:51 / {place}/TORCH_EXTENSIONS_DIR rw,noexec - tmpfs none rw\n"
    )
    monkeypatch.setenv("SMOKEHOUSE_PROC", str(tmp_path / "proc"))
    found = wrong(storage.check(gpu=True, container=False))
    assert {where: one.level for where, one in found.items()} == {"TRITON_CACHE_DIR": "warn", "TORCH_EXTENSIONS_DIR": "warn"}
    assert "is on nfs4" in found["TRITON_CACHE_DIR"].what
    assert "noexec" in found["TORCH_EXTENSIONS_DIR"].what


@pytest.mark.parametrize(
    ("kind", "network"),
    [("nfs", True), ("nfs4", True), ("lustre", True), ("fuse.sshfs", True), ("wekafs", True), ("ext4", False), ("xfs", False)]
    + [("tmpfs", False), ("overlay", False), ("fuse.fuse-overlayfs", True), ("fuse.overlayfs", False)],
)
def test_what_is_a_network_file_system(kind: str, network: bool) -> None:
    assert Mount(Path("/"), kind, frozenset()).network == network


@as_root
def test_full_and_small_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders_on(tmp_path, monkeypatch)
    mounted = {"TRITON_CACHE_DIR": "size=8m", "TMPDIR": "size=200m", "HF_HOME": "size=200m,nr_inodes=1"}
    try:
        for name, options in mounted.items():
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", tmp_path / name], check=True, timeout=10)
        found = wrong(storage.check(gpu=False, container=False))
    finally:
        for name in mounted:
            subprocess.run(["umount", tmp_path / name], check=False, timeout=10)
    assert {where: one.level for where, one in found.items()} == {
        "HF_HOME": "fail",
        "TRITON_CACHE_DIR": "fail",
        "TMPDIR": "warn",
    }
    assert "no inode is free" in found["HF_HOME"].what
    assert found["TMPDIR"].what.endswith("200 MiB free, 1024 MiB may be needed")


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders_on(tmp_path, monkeypatch)
    (tmp_path / "file").touch()
    for name in ("HF_HOME", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "file" / "below"))
    for gpu, level in ((True, "fail"), (False, "warn")):
        found = wrong(storage.check(gpu=gpu, container=True))
        assert {where: one.level for where, one in found.items()} == {"HF_HOME": "warn", "TRITON_CACHE_DIR": level}
        assert found["TRITON_CACHE_DIR"].fix.endswith("such as a mounted volume")


def test_folders_of_which_nothing_can_be_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to a disk that is not mounted, and one that leads to itself: no program can make these folders."""
    folders_on(tmp_path, monkeypatch)
    (tmp_path / "nothing").symlink_to(tmp_path / "not-mounted")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing" / "hub"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "loop"))
    found = {where: (one.level, one.what) for where, one in wrong(storage.check(gpu=True, container=False)).items()}
    assert found == {
        "HF_HOME": ("warn", f"{tmp_path}/nothing/hub cannot be used: {tmp_path}/nothing is a link to nothing"),
        "TRITON_CACHE_DIR": ("fail", f"{tmp_path}/loop cannot be used: Too many levels of symbolic links"),
    }


@as_root
def test_folders_below_one_that_is_another_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where HOME is that of another user, or of root."""
    folders_on(tmp_path, monkeypatch)
    tmp_path.chmod(0o700)
    os.seteuid(65534)
    try:
        found = wrong(storage.check(gpu=False, container=False))
    finally:
        os.seteuid(0)
    assert {where: one.what.rpartition(": ")[2] for where, one in found.items()} == dict.fromkeys(
        ("HF_HOME", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TMPDIR"), "Permission denied"
    )


# control groups


def kernel(folder: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str]) -> None:
    """Show these control groups in place of the kernel's."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = folder / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setenv("SMOKEHOUSE_PROC", str(folder / "proc"))
    monkeypatch.setenv("SMOKEHOUSE_SYS", str(folder / "sys"))


def test_the_tightest_limit_of_a_group_and_those_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(
        tmp_path,
        monkeypatch,
        "0::/kubepods/pod1\n",
        {
            "kubepods/memory.max": f"{8 << 30}\n",
            "kubepods/memory.current": f"{6 << 30}\n",
            "kubepods/memory.stat": f"anon 5\ninactive_file {1 << 30}\n",
            "kubepods/pod1/memory.max": "max\n",
            "kubepods/pod1/memory.current": "1\n",
            "kubepods/pod1/pids.max": "100\n",
            "kubepods/pod1/pids.current": "40\n",
            "kubepods/pod1/cpu.max": "150000 100000\n",
            "kubepods/cpu.max": "max 100000\n",
        },
    )
    assert cgroup.read() == cgroup.Limits(3 << 30, 60, 1.5)
    levels = [(one.level, one.what.split(",")[0]) for one in cgroup.check(2, container=True)]
    assert levels[:3] == [
        ("warn", "3072 MiB of memory left"),
        ("fail", "60 processes and threads left"),
        ("warn", "1.5 CPUs for 2 ranks"),
    ]
    assert [one.level for one in cgroup.check(1, container=True)] == ["fail", "ok"]


def test_groups_of_version_1_with_and_without_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(
        tmp_path,
        monkeypatch,
        "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n3:pids:/docker/x\n2:name=systemd:/\n0::/\n",
        {
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/memory.usage_in_bytes": "1\n",
            "memory/docker/x/memory.limit_in_bytes": f"{1 << 30}\n",
            "memory/docker/x/memory.usage_in_bytes": "0\n",
            "cpu,cpuacct/docker/x/cpu.cfs_quota_us": "-1\n",
            "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cgroup.read() == cgroup.Limits(1 << 30, None, None)


@as_root
def test_a_real_control_group() -> None:
    """A child in a group of its own reads the limit that the kernel enforces."""
    first = Path("/sys/fs/cgroup/pids")
    unified = not first.is_dir()
    group = (Path("/sys/fs/cgroup") if unified else first) / f"smokehouse-test-{os.getpid()}"
    code = f"""
import os, pathlib
pathlib.Path({str(group)!r}, "cgroup.procs").write_text(str(os.getpid()))
from smoke_tests.machine import cgroup
print(cgroup.read().processes)
"""
    try:
        group.mkdir()
        (group / "pids.max").write_text("50")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert ended.stdout == "49\n", ended.stderr
    finally:
        group.rmdir()


# clock, promises, and what is printed


@pytest.mark.parametrize(
    ("state", "level"),
    [
        (clock.Clock(True, 20_000), "ok"),
        (clock.Clock(True, 3_000_000), "warn"),
        (clock.Clock(False, 16_000_000), "warn"),
        (None, "ok"),
    ],
)
def test_clock(state: clock.Clock | None, level: str) -> None:
    assert clock.judge(state).level == level


def test_the_kernel_says_the_state_of_its_clock() -> None:
    found = clock.read()
    assert found
    assert 0 <= found.most_error <= 16_000_000  # microseconds, the kernel's largest


def test_gpus_that_were_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    assert list(promises.check(7, None)) == []
    assert [one.level for one in promises.check(7, 8)] == ["fail"]
    assert [one.level for one in promises.check(8, 8)] == ["ok"]
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    [one] = promises.check(7, None)
    assert one.what == "8 were promised (SLURM_GPUS_ON_NODE), 7 are visible"


def test_markdown_shows_any_text_as_it_is() -> None:
    hostile = Finding("fail", "a|b\n<script>`x`*y*_z_", "w|here", "<img>")
    text = shown.markdown("Title", [Finding("ok", "good", "there"), hostile])
    assert text.startswith("**Title**: 1 fail, 0 warn, 1 ok\n")
    row = next(line for line in text.splitlines() if "fail |" in line)
    assert row == "| fail | w\\|here | a\\|b &lt;script>'x'\\*y\\*\\_z\\_ | &lt;img> |"
    assert text.endswith("| there | good |\n\n</details>")


def test_the_command_prints_the_same_findings_in_each_form() -> None:
    command = [sys.executable, "-m", "smoke_tests", "preflight", "--device", "cpu"]
    forms = {
        form: subprocess.run([*command, *form.split()], cwd=ROOT, capture_output=True, text=True, timeout=60)
        for form in ("", "--json", "--markdown", "--json --markdown", "--fabric token-ring")
    }
    found = [Finding(**one) for one in json.loads(forms["--json"].stdout)]
    assert {"fabric", "NCCL interface", "HF_HOME", "control group", "clock"} <= {one.where for one in found}
    assert len(forms[""].stdout.splitlines()) == len(found)
    assert forms["--markdown"].stdout.count("\n| ") == len(found) + 2 - (0 if any(o.level != "ok" for o in found) else 1)
    for wrong_option in ("--json --markdown", "--fabric token-ring"):
        assert (forms[wrong_option].returncode, forms[wrong_option].stdout) == (2, "")
    assert dataclasses.asdict(found[0]).keys() == {"level", "what", "where", "fix"}


def test_each_remedy_of_a_container_has_one_of_a_pod() -> None:
    """Flags of docker in sources, and no row of the table that no source has."""
    text = "".join(file.read_text() for file in (ROOT / "smoke_tests/machine").glob("[a-z]*.py") if file.name != "remedies.py")
    for flag in ("nofile=1048576", "fsize=-1", "stack=67108864"):  # put together from two texts
        assert f'how("{flag}"' in text
        text += f"start with --ulimit {flag}\n"
    assert [row for row in remedies.IN_POD if row not in text] == []
    given = set(re.findall(r"(?:start with|start the container with|InfiniBand needs) --[a-z-]+[^\"']*?(?=[\"',]|\n)", text))
    translated = {one for one in given if "--" not in remedies.of_pod(Finding("fail", "", "", one)).fix}
    assert given - translated <= {"start with --ulimit {flag}"}


def test_remedies_in_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    found = {one.where: one.fix for one in findings(Situation("cuda", kernels=lambda: ()), Visible(()))}
    assert found["NVIDIA driver"].endswith("request nvidia.com/gpu in resources.limits")
    on_host = findings(Situation("cuda", container=False, kernels=lambda: ()), Visible(()))
    assert not any("resources.limits" in one.fix for one in on_host)
