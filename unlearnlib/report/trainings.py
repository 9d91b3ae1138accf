"""What notebooks show of trainings: how many images, how good, and whether the loss had settled."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from unlearnlib.pipeline.records import Record
from unlearnlib.report import figures


def summary(trained: Mapping[str, Record]) -> pd.DataFrame:
    """Tabulate trainings, see `training.run`: a row a seed, accuracies in percent."""
    rows = {
        record.arguments["seed"]: {
            "training images": record.result["train_images"],
            "validation accuracy %": round(record.result["validation_accuracy"], 2),
        }
        for record in trained.values()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("seed")


def show_losses(trained: Mapping[str, Record]) -> None:
    """Show the loss of each epoch: the mean over trainings as a line, their range as a band."""
    losses = np.array([record.result["losses"] for record in trained.values()])
    figure, axis = plt.subplots(figsize=(figures.WIDTH, 2.8))
    epochs = range(1, losses.shape[1] + 1)
    figures.spread(axis, epochs, losses, label="mean over seeds", marker="o")
    axis.set(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend()
    figures.show(
        figure,
        alt="Training loss falling with the epochs on a logarithmic axis.",
        caption="Mean training loss of each epoch. Line: mean over seeds; band: their range.",
    )
