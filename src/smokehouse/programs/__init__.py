"""External programs: one module for each, and `process`, which runs them all under a deadline."""
