"""The zero-shot methods under one roof: all that there are, and one run that serves each.

To add one, write its module with a `ZeroShot` object beside the code, and list it in `METHODS`. The
run itself knows none of them: it is handed one, so that a change in one invalidates no run of
another.
"""

from unlearnlib.pipeline.registry import Registry
from unlearnlib.zero_shot import deep_inversion, gkt, masked_distillation, mm_noise, read_out
from unlearnlib.zero_shot.method import Outcome, Settings, ZeroShot, obstacle, run, unlearn

__all__ = ["METHODS", "Outcome", "Settings", "ZeroShot", "obstacle", "run", "unlearn"]

METHODS: Registry[ZeroShot] = Registry(
    "zero-shot method",
    mm_noise.METHOD,
    gkt.METHOD,
    deep_inversion.METHOD,
    masked_distillation.METHOD,
    read_out.MASKED_LOGIT,
    read_out.RANDOM_CLASS_ROW,
    read_out.RANDOM_EMBEDDINGS,
)
