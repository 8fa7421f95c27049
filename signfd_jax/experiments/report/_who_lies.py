"""The picture of who lies: weights coloured by verdict, and who votes like whom.

With `plots` the only module that imports matplotlib. Shapes: `M` workers, `K` of them a
committee.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from signfd_jax.decoders import VERDICTS
from signfd_jax.experiments.report import _style

_NAMED = 40  # workers whose numbers fit beside the matrix


def workers_figure(
    metrics: Sequence[Mapping[str, Any]],
    correlations: tuple[np.ndarray, np.ndarray] | None,
    duplicate_of: Sequence[int],
    unit: str,
) -> Figure:
    """Weights of the first seed's workers against the round, and their correlations.

    `correlations` are float `[K, M]` and the committee int `[K]`; `duplicate_of` has
    for each worker the one that it is a duplicate of, or -1.
    """
    first = [record for record in metrics if record["seed"] == metrics[0]["seed"]]
    panels = 1 if correlations is None else 2
    figure = Figure(figsize=(1 + 5 * panels, 4.2), layout="constrained")
    left, *right = figure.subplots(1, panels, squeeze=False)[0]
    _weights(left, first, unit)
    if correlations is not None:
        kinds = first[-1]["verdicts"]
        image = _matrix(right[0], *correlations, kinds, duplicate_of)
        figure.colorbar(image, ax=right[0], shrink=0.8, label="mean correlation")
    return figure


def _weights(axes, records, unit):
    """A line for each worker, in the colour of the verdict at its later end."""
    rounds = [record["round"] for record in records]
    said = np.array([record["verdicts"] for record in records])
    weights = np.array([record["weights"] for record in records], float)
    for worker in range(weights.shape[1]):
        points = np.stack([rounds, weights[:, worker]], axis=1)
        colours = [_style.VERDICTS[kind] for kind in said[:, worker]]
        dashed = worker in records[0]["byzantine"]
        lines = LineCollection(
            list(np.stack([points[:-1], points[1:]], axis=1)),
            colors=colours[1:],
            linestyles="--" if dashed else "-",
        )
        axes.add_collection(lines)
        if len(rounds) == 1:  # a single point would not be seen
            axes.scatter(*points.T, color=colours)
    there = [kind for kind in VERDICTS if kind in said]
    shown: list[Any] = [
        Line2D([], [], color=_style.VERDICTS[k], label=k) for k in there
    ]
    if records[0]["byzantine"]:
        shown.append(Line2D([], [], color="black", linestyle="--", label="Byzantine"))
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 4}
    axes.legend(handles=shown, fontsize="small", frameon=False, **below)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.autoscale()
    axes.set(xlabel="round", ylabel=f"weight of the vote ({unit})")
    axes.grid(alpha=0.3)


def _matrix(axes, mean, committee, kinds, duplicate_of):
    """Correlations among the committee, cluster by cluster; duplicates have a cross."""
    among = mean[:, committee]
    copied = {int(worker): k for k, worker in enumerate(committee)}
    of = np.array([copied.get(duplicate_of[worker], -1) for worker in committee])
    order = cluster_order(among, of)
    shown = among[np.ix_(order, order)].astype(float)
    np.fill_diagonal(shown, np.nan)
    most = np.nanmax(np.abs(shown), initial=1e-3)
    image = axes.imshow(shown, cmap="RdBu_r", vmin=-most, vmax=most)
    place = np.argsort(order)
    for k in np.flatnonzero(of >= 0):
        x, y = place[k], place[of[k]]
        axes.plot([x, y], [y, x], "x", color="black", markersize=4)
    if len(order) <= _NAMED:
        numbers = [str(committee[k]) for k in order]
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(range(len(order)), numbers, fontsize=6)
            for label, k in zip(axis.get_ticklabels(), order, strict=True):
                label.set_color(_style.VERDICTS[kinds[committee[k]]])
    crossed = ", duplicates crossed" if (of >= 0).any() else ""
    axes.set(title=f"workers by cluster{crossed}", xlabel="worker", ylabel="worker")
    return image


def cluster_order(correlation: np.ndarray, duplicate_of: np.ndarray) -> np.ndarray:
    """An order of the workers with each side together, the larger first.

    The sides are the signs of the leading eigenvector of the correlations `[K, K]`.
    Within a side the most alike come first, and duplicates (`[K]`, the place of the
    first one, or -1) behind the one that they send the same as.
    """
    _, vectors = np.linalg.eigh((correlation + correlation.T) / 2)
    vector = vectors[:, -1]
    negative = vector < 0
    if negative.sum() * 2 > len(vector):
        negative = ~negative
    alone = np.arange(len(vector))
    original = np.where(duplicate_of >= 0, np.minimum(duplicate_of, alone), alone)
    keys = alone, original, -np.abs(vector)[original], negative
    return np.lexsort(keys)
