"""Make any user ID work: a .pth file runs this at every start of Python, because not every runtime runs the entrypoint.

Only missing variables are set: a user with a home directory keeps it.
"""

import os
import stat


def _set() -> None:
    try:
        import pwd

        pwd.getpwuid(os.getuid())
    except (ImportError, KeyError):
        for name in ("USER", "LOGNAME"):  # getpass.getuser, which torch calls, reads these before the password file
            os.environ.setdefault(name, f"uid{os.getuid()}")
    home = os.environ.get("HOME", "")
    if home and os.path.isdir(home) and os.access(home, os.W_OK):
        return
    folder = os.environ["HOME"] = _private_folder()
    for name, below in (
        ("XDG_CACHE_HOME", ".cache"),
        ("HF_HOME", ".cache/huggingface"),
        ("TRITON_CACHE_DIR", ".triton/cache"),
        ("TORCH_EXTENSIONS_DIR", ".cache/torch_extensions"),
        ("TORCHINDUCTOR_CACHE_DIR", ".cache/torchinductor"),
        ("MPLCONFIGDIR", ".config/matplotlib"),
    ):
        os.environ.setdefault(name, f"{folder}/{below}")


def _private_folder() -> str:
    """Return a folder that no other user can write to, or a path that does not exist if there cannot be one."""
    folder = f"/tmp/smokehouse-{os.getuid()}"
    try:
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            found = os.lstat(folder)
            # Slurm and HPC runtimes mount the host's /tmp, where another user may have created the folder.
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                import tempfile

                return tempfile.mkdtemp(prefix=f"smokehouse-{os.getuid()}-", dir="/tmp")
    except OSError:
        return "/nonexistent"
    return folder


_set()
