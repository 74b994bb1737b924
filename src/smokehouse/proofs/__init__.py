"""Proofs: whether an image is what its lock builds, and what was proven of it."""
