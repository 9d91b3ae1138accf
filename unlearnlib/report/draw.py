"""A page on which models answer a digit that its visitor draws, and a game: which one is gold?

The models run in the page itself, see `live`; ``templates/draw.js`` is what visitors meet. Where no
script runs, in Jupyter and on paper too, a table has every model's answers to the test images.
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from IPython.display import display
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from torch import Tensor, nn

from unlearnlib.data.requests import Classes
from unlearnlib.models import checkpoints, networks
from unlearnlib.pipeline import records
from unlearnlib.pipeline.paths import Place
from unlearnlib.report import live
from unlearnlib.zero_shot import variants

MIME = "application/vnd.unlearnlib.draw+json"
GOLD = "retrain"
LARGEST = 2_000_000  # characters of the weights of all networks in a page
# a colour a method, seen on white and on black; gold has the colour of the text
COLOURS = {
    "original": "#7b8794", GOLD: "", "delete": "#96703c", "masked_logit": "#4d8f2f",
    "random_class_row": "#8a8a1e", "random_embeddings": "#1d8f5f", "masked_distillation": "#0e8c8c",
    "mm_noise": "#d24b4b", "mm_noise_repaired": "#cc6a14", "gkt": "#2f7fd6",
    "gkt_to_its_end": "#7a6ae6", "gkt_entropy": "#4a86b8", "gkt_no_attention": "#5f7fae",
    "gkt_prior": "#2586a6", "gkt_prior_entropy": "#3f8a9c", "gkt_prior_no_attention": "#55879b",
    "deep_inversion_100": "#a45fcb", "deep_inversion_6000": "#c9519f",
}  # fmt: skip
OTHER = "#808080"  # of a method that is no row of the main table
Models = Mapping[str, nn.Module]  # by name, in the order of the page


def models(here: Place, names: Iterable[str], seed: int) -> dict[str, nn.Module]:
    """Load models of the study, those that are there.

    Args:
        here: files of the profile.
        names: of methods, rows of the main table; with `variants.TO_ITS_END` behind, the last
            snapshot of a transfer in place of that at its stop.
        seed: of the runs.

    Returns:
        networks in evaluation mode, in the order of the names.

    Raises:
        CheckpointError: a file that is damaged.
    """
    files, found = variants.runs(here), {}
    for name in names:
        plain = name.removesuffix(variants.TO_ITS_END)
        file = files.get(f"{plain}-seed{seed}")
        if plain != name:
            transfer = here.run(f"{variants.ROWS[plain].stage}_transfers", f"{plain}-seed{seed}")
            if transfer.is_file():
                last = records.result(transfer)["snapshots"][-1]
                found[name] = checkpoints.unpack(last["model"]).eval()
        elif file is not None:
            found[name] = checkpoints.load(file).eval()
    return found


def picked(labels: Tensor, classes: int, each: int) -> Tensor:
    """List the places of the first images of every class, class by class: at most `each` of one."""
    return torch.cat([torch.nonzero(labels == k).flatten()[:each] for k in range(classes)])


# ------------------------------------------------------------------------------------- the page


def show(
    models: Models,
    images: Tensor,
    labels: Tensor,
    *,
    classes: tuple[str, ...],
    request: Classes,
    relearned: Mapping[str, float],
    most: int,
    seed: int,
    caption: str,
) -> None:
    """Display the models for visitors to ask, and a table of their answers to some test images.

    Args:
        models: by name.
        images: grey test images to pick from, ``[N, 1, H, W]`` in [0, 1].
        labels: class numbers ``[N]``.
        classes: names of the classes.
        request: the classes that were to be forgotten.
        relearned: mini-batches until a model has learned them again, infinite if it has not.
        most: mini-batches after which that was given up.
        seed: of what the page draws at random.
        caption: markdown below.

    Where `page` cannot hold the models, it says why, and displays the table alone.
    """
    bundle: dict[str, Any] = {
        "text/html": _rendered("draw", still=still(models, images, labels, classes)),
        "text/plain": f"{len(models)} models that answer a drawing, in the report's page",
    }
    try:
        bundle[MIME] = page(
            models, images, labels, classes=classes, request=request, relearned=relearned,
            most=most, seed=seed,
        )  # fmt: skip
    except ValueError as error:
        print(f"no drawing board, the table alone: {error}")
    display(bundle, raw=True, metadata={"caption": caption})


def show_game() -> None:
    """Display the game; it is played with the models of `show`, in the same page."""
    told = "A game, in the report's page"
    display({"text/html": _rendered("spot"), "text/plain": told}, raw=True)


def page(
    models: Models,
    images: Tensor,
    labels: Tensor,
    *,
    classes: tuple[str, ...],
    request: Classes,
    relearned: Mapping[str, float],
    most: int,
    seed: int,
) -> dict[str, Any]:
    """Collect what the script of the page reads; see `show` for the arguments.

    Raises:
        ValueError: a network that `live` cannot write, networks too large for a page, or images that
            are not grey.
    """
    if images.shape[1] != 1:
        raise ValueError(f"images {list(images.shape)}: a page draws in grey, so give one channel")
    written = {name: live.described(network) for name, network in models.items()}
    if (size := sum(len(one["weights"]) for one in written.values())) > LARGEST:
        raise ValueError(
            f"{size} characters of weights, above {LARGEST}: give fewer models or a smaller width"
        )
    pixels = (255 * images).round().to(torch.uint8).numpy().tobytes()
    return {
        "classes": list(classes),
        "forgotten": list(request.classes),
        "seed": seed,
        "most": most,
        "images": {
            "height": images.shape[2], "width": images.shape[3], "labels": labels.tolist(),
            "pixels": base64.b64encode(pixels).decode(),
        },
        "models": [
            {
                "name": name, "title": variants.title(name), "colour": colour(name),
                "gold": name == GOLD, "unlearned": name not in ("original", GOLD),
                "relearned": _finite(relearned.get(name)), **one,
            }
            for name, one in written.items()
        ],
    }  # fmt: skip


def colour(name: str) -> str:
    """Return the colour of a method; that of gold is empty, since it is that of the text."""
    return COLOURS.get(name, OTHER)


def still(
    models: Models, images: Tensor, labels: Tensor, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Compute what the table shows: pictures, and every model's answers to them.

    Returns:
        ``images``, each with its ``label`` and ``url``; and ``rows``, each with the ``title`` of a
        model and its ``answers``: a class and its probability in percent.
    """
    rows = []
    for name, network in models.items():
        sure, said = networks.predict(network, images).softmax(1).max(1)
        answers = [(classes[k], f"{100 * p:.0f}") for k, p in zip(said, sure.tolist(), strict=True)]
        rows.append({"title": variants.title(name), "answers": answers})
    pictures = [
        {"label": classes[k], "url": _url(image)}
        for k, image in zip(labels.tolist(), images[:, 0].numpy(), strict=True)
    ]
    return {"images": pictures, "rows": rows}


def _finite(batches: float | None) -> float | None:
    return None if batches is None or math.isinf(batches) else batches


def _url(image: np.ndarray) -> str:
    """Write an image ``[H, W]`` in [0, 1] as PNG, in a data URI."""
    stream = io.BytesIO()
    Image.fromarray((255 * image).round().astype(np.uint8)).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _rendered(name: str, **content: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(live.__file__).parent / "templates"),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(f"{name}.html.j2").render(**content)
