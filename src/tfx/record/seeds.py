"""Seeds for every random draw, keyed by what the draw is for.

One stream for all purposes would couple them: switching dropout off would change the order of the data.
Here each purpose has its own seed, so removing one thing does not change the other draws.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """Returns a 63-bit seed that depends on all arguments, the same on every platform.

    ``purpose`` names the consumer (``"init/encoder.0.q"``, ``"order"``); ``indices`` are counters such as
    the step or the epoch.
    """
    key = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
