"""Tests of the loader. Those in inside/ run in the Python of each stack; see test_stacks.py."""

collect_ignore = ["inside"]
