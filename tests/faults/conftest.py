"""What the tests of faults share with the others."""

from ..integration import conftest as integration
from ..unit import conftest as builder

programs, cosign, keys = integration.programs, integration.cosign, integration.keys
channel, checkout, index, server = builder.channel, builder.checkout, builder.index, builder.server
packages, uv_cache = builder.packages, builder.uv_cache
