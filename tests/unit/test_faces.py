"""The names that packages offer exist, and importing a package imports nothing that is slow."""

import importlib
import subprocess
import sys

import pytest

PACKAGES = ("audits", "images", "oci", "programs", "proofs", "runs", "storage")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_of_a_face_exists(package: str) -> None:
    face = importlib.import_module(f"smokehouse.{package}")
    for name in face.__all__:
        if package == "programs":  # its names are modules
            importlib.import_module(f"smokehouse.{package}.{name}")
        assert getattr(face, name) is not None
    with pytest.raises(AttributeError, match=f"module 'smokehouse.{package}' has no attribute 'missing'"):
        _ = face.missing


@pytest.mark.parametrize("package", PACKAGES)
def test_a_face_is_light(package: str) -> None:
    heavy = {"pydantic", "requests", "rich", "ssl", "urllib.request", "zstandard"}
    code = f"import sys, smokehouse.{package}; print(*({heavy} & {{*sys.modules}}))"
    ended = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (0, [], "")
