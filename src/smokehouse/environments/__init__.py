"""Environments: which packages to lock and which model they are for, as a person wrote it down.

    >>> environment = environments.read(checkout, "qwen2.5-vl")
    >>> environment.inputs, environment.conda  # the PyPI and conda packages to resolve
    >>> environment.stack  # the rest: model, cut-off, platform, CUDA release, expectations

An environment is a folder with `environment.yml`, a conda environment file, and `stack.toml`. Every mistake in them is
reported with file and line.
"""

from smokehouse.environments.definition import Environment, read
from smokehouse.environments.inputs import CondaInputs, Inputs

__all__ = ["CondaInputs", "Environment", "Inputs", "read"]
