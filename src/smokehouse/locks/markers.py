"""Environment markers: what a requirement may depend on, on the machine that a lock is for.

See: https://packaging.python.org/en/latest/specifications/dependency-specifiers/#environment-markers
"""

from smokehouse.locks.model import Lock


def python_version(lock: Lock) -> str:
    """Return the full version of the Python of `lock`, such as 3.11.9."""
    return next((package.version for package in lock.conda if package.name == "python"), f"{lock.python}.0")


def of(lock: Lock) -> dict[str, str]:
    """Return the markers of Linux and the Python of `lock`."""
    python = python_version(lock)
    return {
        "implementation_name": "cpython",
        "implementation_version": python,
        "os_name": "posix",
        "platform_machine": lock.platform.partition("-")[0],
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": python,
        "python_version": lock.python,
        "sys_platform": "linux",
    }
