"""Pods as processes of this machine: each in namespaces of its own for network, mounts and processes.

What is rendered is what runs: command, arguments, environment, volumes, user, read-only root. An image is the environment that
is installed here, with Smokehouse's files as in one. GPUs and limits of resources are not imitated. Requires root.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What an image has as ENV: see docker/Dockerfile.
_ENVIRON = {"PATH": "/opt/env/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_ENVIRON["KUBERNETES_SERVICE_HOST"] = "10.96.0.1"
_SYSTEM = ("usr", "bin", "lib", "lib64", "sbin", "etc")  # of this machine, in place of the image's Debian
_NETWORK = "10.77.0"
_REFERENCE = re.compile(r"\$(\$|\(([-._a-zA-Z][-._a-zA-Z0-9]*)\))")
_DEADLINE = 20.0  # seconds, for ip

# Run as root in new namespaces of mounts and processes: make the root of a container, then become its user.
_CONTAINER = r"""
import json, os, socket, subprocess, sys
spec = json.loads(sys.argv[1])
root = spec["root"]
def run(*command):
    subprocess.run(command, check=True)
socket.sethostname(spec["hostname"])
run("mount", "--make-rprivate", "/")
run("mount", "-t", "tmpfs", "-o", "mode=755", "none", root)
for source, target, options in spec["mounts"]:
    place = root + target
    os.makedirs(place if source == "tmpfs" or os.path.isdir(source) else os.path.dirname(place), exist_ok=True)
    if source == "tmpfs":
        run("mount", "-t", "tmpfs", "-o", options, "none", place)
        continue
    if not os.path.exists(place):
        open(place, "a").close()
    run("mount", "--rbind", source, place)
    if options == "ro":
        run("mount", "-o", "remount,bind,ro", place)
os.makedirs(root + "/proc", exist_ok=True)
run("mount", "-t", "proc", "proc", root + "/proc")
if spec["read_only"]:
    run("mount", "-o", "remount,ro", root)
os.chroot(root)
os.chdir("/")
user = spec["user"]
command = ["setpriv", f"--reuid={user}", f"--regid={spec['group']}", f"--groups={spec['groups']}", "--no-new-privs"]
command += ["--bounding-set=-all", "--inh-caps=-all", "--", *spec["command"]]
os.execvpe("setpriv", command, spec["environ"])
"""


@dataclass
class Image:
    """What pods run in place of an image: an installed environment, and Smokehouse's files as /opt/smokehouse."""

    prefix: Path
    files: Path

    def mounts(self) -> list[tuple[str, str, str]]:
        """Return what is mounted read-only: source, target, options."""
        python = (self.prefix / "bin" / "python").resolve().parents[1]
        # Scripts of the environment contain its path, and the interpreter may be one of this machine.
        places = {str(self.prefix): ["/opt/env", str(self.prefix)], str(python): [str(python)]}
        places[str(self.files)] = ["/opt/smokehouse"]
        return [(source, target, "ro") for source, targets in places.items() for target in targets]


@dataclass
class Network:
    """A network of pods: a bridge in a namespace of its own, and a namespace for each pod."""

    name: str = field(default_factory=lambda: f"pods-{uuid.uuid4().hex[:8]}")
    pods: list[str] = field(default_factory=list)

    def __enter__(self) -> "Network":
        """Make the bridge."""
        _ip("netns", "add", self.name)
        for command in ("link add bridge type bridge", "link set bridge up", "link set lo up"):
            _ip("-n", self.name, *command.split())
        return self

    def __exit__(self, *_: object) -> None:
        """Delete it, and the pods' namespaces."""
        for name in (*self.pods, self.name):
            _ip("netns", "delete", name, check=False)

    def add(self, number: int) -> tuple[str, str]:
        """Return the namespace and the address of a new pod."""
        name, address = f"{self.name}-{number}", f"{_NETWORK}.{len(self.pods) + 2}"
        _ip("netns", "add", name)
        self.pods.append(name)
        end = f"end{len(self.pods)}"
        _ip("-n", self.name, "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("-n", self.name, "link", "set", end, "master", "bridge", "up")
        for command in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _ip("-n", name, *command.split())
        return name, address


def _ip(*command: str, check: bool = True) -> None:
    subprocess.run(["ip", *command], check=check, capture_output=True, timeout=_DEADLINE)


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Return a command or argument with variables in $() expanded as the kubelet does; unknown ones stay, $$ is a $.

    See: https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/
    """
    return _REFERENCE.sub(lambda found: "$" if found[1] == "$" else environ.get(found[2], found[0]), text)


class Pod:
    """One pod: what it is for the API, and the processes of its containers."""

    def __init__(
        self, name: str, index: int, spec: dict[str, Any], image: Image, folder: Path, volumes: Mapping[str, Path]
    ) -> None:
        """Prepare the pod `name` with a completion `index`; `volumes` are the folders of claims by name."""
        self.name, self.index, self.spec = name, index, spec
        self._image, self._folder, self._volumes = image, folder, volumes
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        self.secrets: dict[str, dict[str, str]] = {}
        self.namespace, self.address = "", ""
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._ended = False

    def log(self, container: str) -> Path:
        """Return the file of a container's log."""
        return self.folder / f"{container}.log"

    def run(self, container: dict[str, Any], hosts: Mapping[str, str]) -> int:
        """Run a container to its end, and return its exit code; `hosts` is name -> address."""
        environ = self._environ(container)
        own = self.folder / container["name"]
        own.mkdir()
        (own / "root").mkdir()
        names = "".join(f"{address} {name} {name.partition('.')[0]}\n" for name, address in hosts.items())
        (own / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        command = [expand(part, environ) for part in (*container["command"], *container.get("args", []))]
        context = self.spec["securityContext"]
        description = {
            "root": str(own / "root"),
            "hostname": self.name,
            "mounts": [*self._image.mounts(), *self._mounts(container), (str(own / "hosts"), "/etc/hosts", "ro")],
            "read_only": container["securityContext"].get("readOnlyRootFilesystem", False),
            "user": context["runAsUser"],
            "group": context["runAsGroup"],
            "groups": context["fsGroup"],
            "command": command,
            "environ": environ,
        }
        started = ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--pid", "--fork", "--kill-child"]
        started += ["--uts", "python3", "-c", _CONTAINER, json.dumps(description)]
        with self.log(container["name"]).open("wb") as output, self._lock:
            if self._ended:
                return 137
            self._process = subprocess.Popen(
                started, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        return self._process.wait()

    def end(self) -> None:
        """End what runs in the pod, and let nothing start any more."""
        with self._lock:
            self._ended = True
            if self._process and self._process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def _environ(self, container: dict[str, Any]) -> dict[str, str]:
        environ = {**_ENVIRON, "HOSTNAME": self.name, "JOB_COMPLETION_INDEX": str(self.index)}
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {})
            if reference := source.get("secretKeyRef"):
                environ[variable["name"]] = self.secrets[reference["name"]][reference["key"]]
            elif reference := source.get("fieldRef"):
                assert reference["fieldPath"] == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
                environ[variable["name"]] = str(self.index)
            else:
                environ[variable["name"]] = expand(variable["value"], environ)
        return environ

    def _mounts(self, container: dict[str, Any]) -> list[tuple[str, str, str]]:
        kinds = {volume["name"]: volume for volume in self.spec["volumes"]}
        found = [(f"/{name}", f"/{name}", "ro") for name in _SYSTEM if Path("/", name).exists()]
        found.append(("/dev", "/dev", "rw"))
        for mount in container["volumeMounts"]:
            volume = kinds[mount["name"]]
            if "emptyDir" in volume:
                size = volume["emptyDir"]["sizeLimit"].removesuffix("i").lower()
                found.append(("tmpfs", mount["mountPath"], f"size={size},mode=1777"))
            else:
                source = self._volumes[volume["persistentVolumeClaim"]["claimName"]]
                os.chown(source, 0, self.spec["securityContext"]["fsGroup"])
                source.chmod(0o2775)
                found.append((str(source), mount["mountPath"], "rw"))
        return found


def image_of(checkout: Path, name: str, prefix: Path, folder: Path) -> Image:
    """Return an image of the environment `name` that is installed in `prefix`; its /opt/smokehouse is made in `folder`."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(checkout / "docker/inside", folder, ignore=ignored)
    for program in ("describe", "doctor", "entrypoint", "smoke"):  # as docker/steps/own_files.py installs them
        (folder / program).chmod(0o755)
    shutil.copytree(checkout / "smoke_tests", folder / "smoke_tests", ignore=ignored)
    shutil.copytree(checkout / "lockfiles" / name, folder / "lock")
    shutil.copy(checkout / "environments" / name / "stack.toml", folder)
    (folder / "environment").write_text(name)
    (folder / "cuda").write_text("12.4")
    return Image(prefix, folder)
