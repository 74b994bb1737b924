"""Remedies in the words of whoever started the process: those of docker run mean nothing in a pod of Kubernetes."""

import dataclasses
import os

from smoke_tests.machine.finding import Finding

# What a remedy says in a container -> what it says in a pod. The longest that fits is taken.
IN_POD = {
    "start with --gpus all": "request nvidia.com/gpu in resources.limits",
    "start the container with --gpus all": "request nvidia.com/gpu in resources.limits",
    "start with --shm-size 2g or --ipc host": "mount an emptyDir with medium Memory at /dev/shm",
    "start with --ulimit nofile=1048576": "raise it in the container runtime of the machine",
    "start with --ulimit fsize=-1": "raise it in the container runtime of the machine",
    "start with --ulimit stack=67108864": "raise it in the container runtime of the machine",
    "InfiniBand needs --ulimit memlock=-1": "InfiniBand needs LimitMEMLOCK=infinity in the container runtime of the machine",
    "start with --tmpfs /tmp:exec": "mount an emptyDir at /tmp",
    "start with --device /dev/infiniband": "request the device in resources.limits",
    "--pids-limit, podPidsLimit, pids.max": "podPidsLimit of the kubelet",
}


def in_pod() -> bool:
    """Whether this process runs in a pod: Kubernetes sets the variable in each container."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def of_pod(finding: Finding) -> Finding:
    """Return a finding whose remedy is one for a pod."""
    fix = finding.fix
    for text in sorted(IN_POD, key=len, reverse=True):
        fix = fix.replace(text, IN_POD[text])
    return dataclasses.replace(finding, fix=fix)
