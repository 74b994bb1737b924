"""The engine that the tests of images run on."""

from pathlib import Path

from ..engine import started


def test_the_tests_own_engine_leaves_nothing(programs: Path) -> None:
    with started(programs / "engine") as engine:
        assert engine.store
        assert engine.docker("info", "--format", "{{.DriverStatus}}").stdout == "[[driver-type io.containerd.snapshotter.v1]]\n"
        daemon = int((engine.store / "docker.pid").read_text())
        assert Path(f"/proc/{daemon}").exists()
    assert not engine.store.exists()
    assert not Path(f"/proc/{daemon}").exists()
    assert f"{engine.store}/" not in Path("/proc/mounts").read_text()
