"""Commands of the pages about clusters: each is parsed by the tool it is for, or run. test_docs.py has those of nox."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smokehouse.runs import manifests

ROOT = Path(__file__).parents[2]
PAGES = ("index", "preflight", "kubernetes", "clouds", "bare-metal")
# torchrun's options, which tests/kubernetes gives to the real one; SkyPilot's task has the same.
TORCHRUN = {"--nnodes", "--node-rank", "--nproc-per-node", "--master-addr", "--master-port"}
PROGRAMS = {"nox", "kubectl", "docker", "sky", "torchrun", "python", "openssl", "export", "mkdir"}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield the commands in code blocks, with their page."""
    for page in PAGES:
        for line in (ROOT / "docs" / "cluster" / f"{page}.md").read_text().splitlines():
            if re.match(r" {4,}\S", line):
                yield page, shlex.split(line.replace("…", "a" * 64).replace("OWNER", "owner"), comments=True)


COMMANDS = list(commands())


def of(program: str) -> list[list[str]]:
    """Return the commands of a program."""
    found = [words for _, words in COMMANDS if words[0] == program]
    assert found
    return found


def ended(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "KUBECONFIG": "/nowhere"}
    return subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)


def test_each_command_is_of_a_program_that_some_test_parses() -> None:
    assert {words[0] for _, words in COMMANDS} == PROGRAMS
    assert {page for page, _ in COMMANDS} == set(PAGES)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_kubectl_parses_its_commands() -> None:
    assert ended(["kubectl", "apply", "--no-such-option", "--help"]).returncode  # a control: help does not hide a wrong option
    for words in of("kubectl"):
        assert ended([*words, "--help"]).returncode == 0
        for option, value in itertools.pairwise(words):
            if option == "-k":
                assert manifests.build(ROOT / value)
            elif option == "-f":
                assert manifests.read(ROOT / value)


def test_names_of_kubectl_in_the_text_are_commands() -> None:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    text = (ROOT / "docs/cluster/kubernetes.md").read_text()
    inline = set(re.findall(r"`(kubectl [^`\n]+)`", text))
    assert inline
    for command in inline:
        assert ended([*shlex.split(command), "--help"]).returncode == 0


@pytest.mark.skipif(not shutil.which("docker"), reason="docker is not installed")
def test_docker_parses_its_commands() -> None:
    assert ended(["docker", "run", "--no-such-option", "--help"]).returncode
    for words in of("docker"):
        images = [n for n, word in enumerate(words) if word == "IMAGE" or word.startswith("ghcr.io/")]
        own = words if words[1] != "run" else words[: images[0]]
        assert ended([*own[:2], "--help", *own[2:]]).returncode == 0


def test_doctors_in_containers_get_options_that_they_know() -> None:
    checked = 0
    for words in of("docker"):
        if "doctor" in words:
            options = words[words.index("doctor") + 1 :]
            found = ended([sys.executable, "-m", "smoke_tests.machine", "--device", "cpu", *options])
            assert found.returncode in (0, 1), found.stderr
            checked += 1
    assert checked >= 3


def test_the_preflight_runs() -> None:
    for words in of("python"):
        json.loads(ended([sys.executable, *words[1:], "--device", "cpu"]).stdout)


def test_torchrun_gets_the_options_that_are_run_elsewhere() -> None:
    texts = [*of("torchrun"), *(words[words.index("torchrun") :] for words in of("docker") if "torchrun" in words)]
    assert len(texts) == 2
    for words in texts:
        assert {word for word in words if word.startswith("--")} == TORCHRUN
    task = (ROOT / "cluster/skypilot/train.yaml").read_text()
    assert set(re.findall(r"--[a-z-]+", task.partition("exec torchrun")[2])) == TORCHRUN


def test_files_of_skypilots_commands_exist() -> None:
    for words in of("sky"):
        assert words[1:3] == ["launch", "-c"] or words[1] == "down"
        assert words[1] == "down" or (ROOT / "cluster" / words[-1]).is_file()


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_the_token_is_long_enough_and_nobody_elses() -> None:
    assert of("mkdir") == [["mkdir", "-m", "700", str(Path(words[-1]).parent)] for words in of("openssl")]
    for words in of("openssl"):
        assert len(ended(words[: words.index(">")]).stdout.strip()) == 64


def test_the_table_of_the_preflight_has_each_finding() -> None:
    """Of this machine; those about GPUs are in tests/gpu."""
    page = (ROOT / "docs/cluster/preflight.md").read_text()
    found = json.loads(ended([sys.executable, "-m", "smoke_tests.machine", "--json"]).stdout)
    for where in {one["where"] for one in found}:
        name = "limit of …" if where.startswith("limit of") else "C compiler" if where.startswith("/usr") else where
        assert name in page, where
