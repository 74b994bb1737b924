"""The solvers behind a lock: uv for PyPI packages, py-rattler for conda packages. Slow to import, so imported when used."""
