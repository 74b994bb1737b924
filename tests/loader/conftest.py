"""The loader's tests run inside stacks, each in a process of that stack's own Python; see test_stacks.py."""

collect_ignore = ["inside"]
