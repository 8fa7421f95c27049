"""The sizes at which the paper's findings are run.

`SCALES` maps the name to the `Scale`: `small` is digits on a laptop, `full` the paper's
own setting, for a GPU.
"""

import dataclasses

from signfd_jax.experiments import PRESETS, Experiment

__all__ = ["SCALES", "Scale"]


@dataclasses.dataclass(frozen=True)
class Scale:
    """What the findings have in common at one size.

    Attributes:
        base: data set, model, batch size, learning rate, rounds and seeds.
        others: more data sets and models, for the first finding alone.
        flip_probabilities: r of the stochastic sign flip.
        gradient_scale: learning rate of the rules that average gradients, over that of
            the rules that step along signs.
        batch_sizes: for each mode, `(workers, examples)` of two kinds of workers.
        quirk_batch_size: examples of each worker where zeros are to matter.
    """

    base: Experiment
    others: tuple[Experiment, ...]
    flip_probabilities: tuple[float, ...]
    gradient_scale: float
    batch_sizes: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    quirk_batch_size: int = 4


_SMALL = dataclasses.replace(
    PRESETS["digits"].experiment,
    name="paper",
    decoder="federated_defense",
    attack="none",
    num_byzantine=0,
    seeds=3,
)


def _of_paper(preset):
    return dataclasses.replace(
        PRESETS[preset].experiment,
        name="paper",
        decoder="federated_defense",
        attack="none",
        num_byzantine=0,
        rounds=3000,
        eval_every=100,
        seeds=3,
    )


SCALES: dict[str, Scale] = {
    "small": Scale(
        base=_SMALL,
        others=(),
        flip_probabilities=(0.0, 0.25, 0.5, 0.75, 1.0),
        gradient_scale=50.0,
        # 15 workers with 240 examples in all, as in the paper's 960.
        batch_sizes=(
            ((9, 4), (6, 34)),
            ((12, 4), (3, 64)),
            ((14, 4), (1, 184)),
        ),
    ),
    "full": Scale(
        base=_of_paper("mnist-cnn"),
        others=(_of_paper("cifar10-resnet56"), _of_paper("cifar100-resnet56")),
        flip_probabilities=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        gradient_scale=100.0,
        batch_sizes=(
            ((9, 4), (6, 154)),
            ((12, 4), (3, 304)),
            ((14, 4), (1, 904)),
        ),
    ),
}
