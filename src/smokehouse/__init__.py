"""The builder: reads environments, locks them, installs them and starts their smoke test. It never imports torch."""

__version__ = "0.1.0"
