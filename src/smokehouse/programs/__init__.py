"""External programs: a module for each, and `process`, which runs every one under a deadline.

    >>> from smokehouse.programs import docker, uv
    >>> from smokehouse.programs.process import run

No other module builds the arguments of these programs or reads their errors.
"""

__all__ = ["buildx", "cosign", "docker", "hatchling", "process", "uv"]
