"""Pages: the documentation that is generated from environments, locks and reports."""
