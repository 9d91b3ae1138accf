"""Figures: one seaborn theme, PNG with a description in words, sized for a page."""

import base64
import io
import struct
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 7.5  # inches, of a page
RESOLUTION = 144  # dots per inch, shown at 96

# of each method, in every figure: gold black, the original grey, a family in shades of one colour
_OF_METHODS = {
    "retrain": "#000000", "retrain_again": "#5c5c5c", "original": "#a0a0a0", "none": "#a0a0a0",
    "gkt": "#0173b2", "gkt_no_attention": "#56b4e9", "gkt_entropy": "#0b3c5d",
    "gkt_prior": "#029e73", "gkt_prior_no_attention": "#7fd1b9", "gkt_prior_entropy": "#01523c",
    "deep_inversion_100": "#de8f05", "deep_inversion_6000": "#8a5903",
    "mm_noise": "#cc78bc", "mm_noise_repaired": "#7a3b6d",
    "masked_distillation": "#d55e00", "masked_logit": "#e3b8a0", "random_class_row": "#ca9161",
    "random_embeddings": "#f2a0c8",
    "fine_tune": "#88ccee", "gradient_ascent": "#aa4499", "random_labels": "#44aa99",
    "delete": "#882255", "scrub": "#332288", "salun": "#999933",
    "first_order": "#0173b2", "newton": "#d55e00", "second_order": "#029e73",
    "second_order_cubic": "#01523c", "rif": "#ca9161", "pif": "#cc78bc", "fif": "#7a3b6d",
    "gif": "#de8f05",
}  # fmt: skip

Pictures = tuple[np.ndarray, np.ndarray, np.ndarray]  # [N, H, W], classes [N], confidence [N]


def theme() -> None:
    """Set the study's look: white ground, colour-blind safe colours."""
    sns.set_theme(style="whitegrid", palette="colorblind", font_scale=0.95)
    plt.rcParams |= {"figure.constrained_layout.use": True, "axes.titlesize": "medium"}


def colours(names: Iterable[str]) -> dict[str, str]:
    """Give methods their colours, the same in every figure.

    Args:
        names: of methods, as in tables; one that has no colour of its own, such as a variant, takes
            one that no other of these has, or a grey where there are too many.

    Returns:
        the colour of each, in hexadecimal digits.
    """
    names = list(dict.fromkeys(names))
    taken = {_OF_METHODS[name] for name in names if name in _OF_METHODS}
    free = iter([one for one in sns.color_palette("colorblind").as_hex() if one not in taken])
    return {name: _OF_METHODS.get(name) or next(free, "#d0d0d0") for name in names}


def show(figure: Figure, *, alt: str, caption: str | None = None) -> None:
    """Display a figure as PNG with its description, and close it.

    Args:
        figure: at most `WIDTH` inches wide.
        alt: what the figure shows, in words, for those who do not see it.
        caption: markdown below the figure; says what intervals and bands are.
    """
    content = png(figure)
    width = round(struct.unpack(">I", content[16:20])[0] * 96 / RESOLUTION)
    metadata = {"image/png": {"alt": alt, "width": width}}
    display(
        {"image/png": base64.b64encode(content).decode(), "text/plain": alt},
        raw=True,
        metadata=metadata | ({"caption": caption} if caption else {}),
    )


def png(figure: Figure) -> bytes:
    """Draw a figure as PNG, the same bytes each time, and close it."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=RESOLUTION, metadata={"Software": None})
    plt.close(figure)
    return stream.getvalue()


def gallery(rows: dict[str, np.ndarray], *, columns: int = 10) -> Figure:
    """Draw rows of pictures.

    Args:
        rows: title of each row and its images ``[N, H, W]``, of any range, dark is low.
        columns: pictures a row at most.
    """
    size = (WIDTH, WIDTH / (columns + 2) * len(rows) * 1.15)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    for line, (title, images) in zip(axes, rows.items(), strict=True):
        for number, axis in enumerate(line):
            axis.axis("off")
            if number < len(images):
                axis.imshow(images[number], cmap="gray")
        label = {"rotation": 0, "ha": "right", "va": "center", "fontsize": "small"}
        line[0].axis("on")
        line[0].set(xticks=[], yticks=[], frame_on=False)
        line[0].set_ylabel(title, **label)
    return figure


def class_gallery(rows: Mapping[str, Pictures], *, classes: Sequence[str]) -> Figure:
    """Draw rows of pictures with a column a class.

    Args:
        rows: title of each row, and its pictures with the class that a teacher sees in each and how
            sure it is; the surest of each class is shown.
        classes: names of the classes.
    """
    size = (WIDTH, WIDTH / (len(classes) + 2) * len(rows) * 1.35)
    figure, axes = plt.subplots(len(rows), len(classes), figsize=size, squeeze=False)
    for line, (title, (images, predicted, confidence)) in zip(axes, rows.items(), strict=True):
        for k, axis in enumerate(line):
            of_class = np.flatnonzero(np.asarray(predicted) == k)
            axis.set(xticks=[], yticks=[], frame_on=False, box_aspect=1)
            if len(of_class):
                best = of_class[np.argmax(np.asarray(confidence)[of_class])]
                axis.imshow(images[best], cmap="gray")
                axis.set_xlabel(f"{100 * float(confidence[best]):.0f} %", fontsize="x-small")
            else:
                axis.text(0.5, 0.5, "–", ha="center", va="center", transform=axis.transAxes)
        label = {"rotation": 0, "ha": "right", "va": "center", "fontsize": "small"}
        line[0].set_ylabel(title, **label)
    for axis, name in zip(axes[0], classes, strict=True):
        axis.set_title(name, fontsize="small")
    return figure


def confusion(axis: Axes, counts: np.ndarray, *, title: str) -> None:
    """Draw a confusion matrix ``[K, K]`` as percent of each true class."""
    shares = 100 * counts / counts.sum(1, keepdims=True).clip(1)
    sns.heatmap(
        shares, ax=axis, vmin=0, vmax=100, cmap="rocket_r", annot=True, fmt=".0f", cbar=False,
        square=True, annot_kws={"fontsize": 6}, linewidths=0.3,
    )  # fmt: skip
    axis.set(title=title, xlabel="predicted class", ylabel="true class")


def spread(axis: Axes, x: Sequence[float], repeats: np.ndarray, *, label: str, **style) -> None:
    """Draw the mean of repeats ``[R, len(x)]`` as a line and their range as a band."""
    (line,) = axis.plot(x, np.nanmean(repeats, 0), label=label, **style)
    low, high = np.nanmin(repeats, 0), np.nanmax(repeats, 0)
    axis.fill_between(x, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
