"""The zero-shot methods under one roof: what each takes, and one call for all of them.

A *method* is a dict: its ``kind``, a key of `KINDS`, and the keywords of the parts named there.
What is not given keeps its default.
"""

from typing import Any

import torch
from torch import Tensor, nn

from unlearnlib.models import models
from unlearnlib.zero_shot import deep_inversion, gkt, masked_distillation, mm_noise

Method = dict[str, Any]
KINDS = {  # what each kind of method takes beside `kind`: the keywords of these
    "mm_noise": {"settings": mm_noise.Settings},
    "gkt": {"settings": gkt.Settings},
    "deep_inversion": {
        "synthesis": deep_inversion.Synthesis,
        "distillation": deep_inversion.Distillation,
    },
    "masked_distillation": {
        "synthesis": deep_inversion.Synthesis,
        "tuning": masked_distillation.Tuning,
    },
}


def settings_of(method: Method) -> dict[str, Any]:
    """Make the settings of a method: for its ``kind``, the parts that `KINDS` names.

    Raises:
        ValueError: unknown kind or part.
        TypeError: a keyword that a part does not have.
    """
    kind, given = method.get("kind"), {k: v for k, v in method.items() if k != "kind"}
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; choose one of {list(KINDS)}")
    if unknown := given.keys() - KINDS[kind].keys():
        raise ValueError(f"{kind} takes {list(KINDS[kind])}, not {sorted(unknown)}")
    return {name: part(**given.get(name, {})) for name, part in KINDS[kind].items()}


def unlearn(
    model: nn.Module,
    method: Method,
    *,
    forget_classes: list[int],
    shape: tuple[int, int, int],
    seed: int,
) -> tuple[nn.Module, Tensor]:
    """Forget classes from a classifier, reading nothing but the classifier.

    Args:
        model: of `models.build`, frozen; stays as it is.
        method: see above.
        forget_classes: class numbers.
        shape: ``(C, H, W)`` of an image.
        seed: of all but a student's first weights, which follow torch's own seed.

    Returns:
        the unlearned network, in evaluation mode, and the images ``[n, C, H, W]`` that it learnt
        from; none (``n`` is 0) of masked distillation.

    Raises:
        ValueError, TypeError: as `settings_of`.
        FloatingPointError: a loss that is not finite.
    """
    kind, parts = method.get("kind"), settings_of(method)
    options = {"forget_classes": forget_classes, "shape": shape, "seed": seed}
    sized = options | {"num_classes": models.num_classes(model)}
    if kind == "mm_noise":
        result = mm_noise.unlearn(model, **parts, **sized)
        network, images = result["model"], result["noise"]
    elif kind == "gkt":
        result = gkt.transfer_knowledge(model, **parts, **options)
        kept = next(s for s in result["snapshots"] if s["pseudo_batch"] == result["stop"])
        network, images = models.unpack(result["model"]), kept["images"]
    elif kind == "masked_distillation":
        network, images = (
            masked_distillation.unlearn(model, **parts, **sized),
            torch.empty(0, *shape),
        )
    else:
        images, _ = deep_inversion.synthesise(model, settings=parts["synthesis"], **sized)
        network, _ = deep_inversion.distil(
            model, images, forget_classes=forget_classes, settings=parts["distillation"], seed=seed
        )
    return network.eval(), images
