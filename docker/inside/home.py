"""Makes any UID work: run by a .pth at every start of Python, because not every runtime runs the entrypoint.

Only what is missing is set: who has a home directory keeps it.
"""

import os
import stat


def _set() -> None:
    try:
        import pwd

        pwd.getpwuid(os.getuid())
    except (ImportError, KeyError):
        for name in ("USER", "LOGNAME"):  # what getpass.getuser, and with it torch, asks before the password file
            os.environ.setdefault(name, f"uid{os.getuid()}")
    home = os.environ.get("HOME", "")
    if home and os.path.isdir(home) and os.access(home, os.W_OK):
        return
    folder = os.environ["HOME"] = _made()
    for name, below in (
        ("XDG_CACHE_HOME", ".cache"),
        ("HF_HOME", ".cache/huggingface"),
        ("TRITON_CACHE_DIR", ".triton/cache"),
        ("TORCH_EXTENSIONS_DIR", ".cache/torch_extensions"),
        ("TORCHINDUCTOR_CACHE_DIR", ".cache/torchinductor"),
        ("MPLCONFIGDIR", ".config/matplotlib"),
    ):
        os.environ.setdefault(name, f"{folder}/{below}")


def _made() -> str:
    """Return a folder that nobody else has a hand in, or one that does not exist where there can be none."""
    folder = f"/tmp/smokehouse-{os.getuid()}"
    try:
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            found = os.lstat(folder)
            # Slurm's and HPC's runtimes mount the /tmp of the host, where another user can have made it.
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                import tempfile

                return tempfile.mkdtemp(prefix=f"smokehouse-{os.getuid()}-", dir="/tmp")
    except OSError:
        return "/nonexistent"
    return folder


_set()
