"""Seeds derived by name from one root seed, so that no two streams of a run share their numbers.

A run has one seed. Whatever it draws (a group, a sample, an order, first weights) has a name, and
the seed of that draw follows from both. Another setting, another method or a new draw beside it
changes no other.
"""

import hashlib
import json
import operator

import torch


def derive(seed: int, *names: str | int) -> int:
    """Derive the seed of a named stream: the same for the same seed and names, else unrelated.

    Args:
        seed: the root, that of a run.
        names: of the stream, such as ``"curvature sample"``.

    Returns:
        0 to 2**32 - 1, which every generator takes.

    Raises:
        TypeError: a seed that is no whole number.
    """
    text = json.dumps([operator.index(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def stream(seed: int, *names: str | int) -> torch.Generator:
    """Return a generator of torch for a named stream, see `derive`."""
    return torch.Generator().manual_seed(derive(seed, *names))
