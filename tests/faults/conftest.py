"""What the tests of faults share with the others."""

from ..integration import conftest as integration

programs, cosign, keys = integration.programs, integration.cosign, integration.keys
