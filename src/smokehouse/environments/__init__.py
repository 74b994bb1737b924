"""Environments as people write them: `environment.yml` and `stack.toml`, read and validated."""
