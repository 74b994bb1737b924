"""Makes any UID work: run by a .pth at every start of Python, because not every runtime runs the entrypoint.

Only what is missing is set: who has a home directory keeps it.
"""

import os


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
    folder = f"/tmp/smokehouse-{os.getuid()}"
    os.environ["HOME"] = folder
    for name, below in (
        ("XDG_CACHE_HOME", ".cache"),
        ("HF_HOME", ".cache/huggingface"),
        ("TRITON_CACHE_DIR", ".triton/cache"),
        ("TORCH_EXTENSIONS_DIR", ".cache/torch_extensions"),
        ("TORCHINDUCTOR_CACHE_DIR", ".cache/torchinductor"),
        ("MPLCONFIGDIR", ".config/matplotlib"),
    ):
        os.environ.setdefault(name, f"{folder}/{below}")
    if not os.path.isdir(folder) and os.access("/tmp", os.W_OK):
        os.makedirs(folder, 0o700, exist_ok=True)


_set()
