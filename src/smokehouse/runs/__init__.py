"""Runs: where a smoke test is started, and how its report is read."""
