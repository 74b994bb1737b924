"""The Pod Security Standard "restricted", as Kubernetes publishes it: what a namespace that enforces it admits.

See: https://kubernetes.io/docs/concepts/security/pod-security-standards/ (of Kubernetes 1.37), and, for what undefined values
mean, https://github.com/kubernetes/pod-security-admission: this judges its pods in test/testdata/restricted/v1.37 as their
folders (pass, fail) do, but for those of Windows, which are not covered.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
_SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_PROFILES = ("RuntimeDefault", "Localhost")
_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
_IPV4 = {
    *("ip_local_port_range", "tcp_syncookies", "ping_group_range", "ip_unprivileged_port_start", "ip_local_reserved_ports"),
    *("tcp_keepalive_time", "tcp_fin_timeout", "tcp_keepalive_intvl", "tcp_keepalive_probes", "tcp_rmem", "tcp_wmem"),
    *("tcp_slow_start_after_idle", "tcp_notsent_lowat"),
}
_SYSCTLS = {"kernel.shm_rmid_forced", *(f"net.ipv4.{name}" for name in _IPV4)}
_HOOKS = ("livenessProbe", "readinessProbe", "startupProbe")


def violations(pod: Mapping[str, Any], annotations: Mapping[str, str]) -> list[str]:
    """Return what the standard forbids in the specification of a pod with these annotations, as FIELD: FOUND."""
    return [*_of_pod(pod, annotations), *(f"{where}.{said}" for where, one in _containers(pod) for said in _of_one(pod, one))]


def _containers(pod: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for kind in _CONTAINERS:
        for one in pod.get(kind) or ():
            yield f"{kind}[{one['name']}]", one


def _of_pod(pod: Mapping[str, Any], annotations: Mapping[str, str]) -> Iterator[str]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield f"{name}: true"
    context = pod.get("securityContext") or {}
    yield from _of_context(context)
    for sysctl in context.get("sysctls") or ():
        if sysctl["name"] not in _SYSCTLS:
            yield f"securityContext.sysctls: {sysctl['name']}"
    for volume in pod.get("volumes") or ():
        if kinds := volume.keys() - {"name"} - _VOLUMES:
            yield f"volumes[{volume['name']}]: {', '.join(sorted(kinds))}"
    for name, value in annotations.items():
        if name.startswith(_APPARMOR) and value not in ("", "runtime/default") and not value.startswith("localhost/"):
            yield f"annotations.{name}: {value}"


def _of_context(context: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the settings that a pod and a container both have."""
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield "securityContext.windowsOptions.hostProcess: true"
    if context.get("runAsNonRoot") is False:
        yield "securityContext.runAsNonRoot: false"
    if context.get("runAsUser") == 0:
        yield "securityContext.runAsUser: 0"
    for name in ("seccompProfile", "appArmorProfile"):
        if context.get(name) and context[name]["type"] not in _PROFILES:
            yield f"securityContext.{name}.type: {context[name]['type']}"
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type", "") not in _SELINUX:
        yield f"securityContext.seLinuxOptions.type: {selinux['type']}"
    for name in ("user", "role"):
        if selinux.get(name):
            yield f"securityContext.seLinuxOptions.{name}: {selinux[name]}"


def _of_one(pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a container, which inherits some settings of its pod."""
    context, of_pod = container.get("securityContext") or {}, pod.get("securityContext") or {}
    yield from _of_context(context)
    for name in ("runAsNonRoot", "seccompProfile"):
        if not context.get(name) and not of_pod.get(name):
            yield f"securityContext.{name}: undefined"
    if context.get("privileged"):
        yield "securityContext.privileged: true"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"securityContext.allowPrivilegeEscalation: {context.get('allowPrivilegeEscalation', 'undefined')}"
    if context.get("procMount", "Default") != "Default":
        yield f"securityContext.procMount: {context['procMount']}"
    capabilities = context.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or ()):
        yield f"securityContext.capabilities.drop: {capabilities.get('drop')}"
    if more := set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
        yield f"securityContext.capabilities.add: {', '.join(sorted(more))}"
    if any(port.get("hostPort") for port in container.get("ports") or ()):
        yield "ports.hostPort: set"
    hooks = {name: container.get(name) for name in _HOOKS} | dict(container.get("lifecycle") or {})
    for name, hook in hooks.items():
        if isinstance(hook, Mapping) and any((hook.get(kind) or {}).get("host") for kind in ("httpGet", "tcpSocket")):
            yield f"{name}.host: set"
