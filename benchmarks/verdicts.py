"""How often an honest worker is named, and how soon a liar is.

False alarms: runs of 300 rounds in which nobody lies. A run counts as one if any worker
was named at any time: as inverted, uninformative, or a duplicate. Delays: the round in
which a liar was first named, for each attack, the median over liars and seeds. Copies:
three liars send an honest worker's votes each, and flip some of them.

    python -m benchmarks.verdicts --json benchmarks/results/verdicts.json
    python -m benchmarks.verdicts --report --json benchmarks/results/verdicts.json
"""

import dataclasses
from pathlib import Path

import numpy as np

import signfd_jax as sfd
from benchmarks.trials import Trial, main, read, watched, write
from signfd_jax.decoders import VERDICTS

NAMED = ("inverted", "uninformative", "duplicate")
CLEAN = {
    "i.i.d.": Trial(attack="none"),
    "i.i.d., batches of 64": Trial(attack="none", batch_size=64),
    "i.i.d., eight workers": Trial(attack="none", num_workers=8, num_byzantine=3),
    "i.i.d., half of the workers each round": Trial(attack="none@sampled:0.5"),
    "Dirichlet .3": Trial(attack="none", split="dirichlet:0.3"),
    "two labels a worker": Trial(attack="none", split="labels:2"),
}
ATTACKS = (
    "sign_inversion",
    "flip:0.6",
    "flip:0.8",
    "flip:own",
    "flip:rising",
    "negated_copies",
    "two_groups",
    "random_vote",
    "random_collusion",
    "stochastic_sign_flip",
    "gaussian",
    "zero",
    "label_flip",
    "alie",
    "ipm",
    "fang",
    "mimic",
    "min_max",
    "min_sum",
    "sign_alie",
    "majority_opposition",
    "near_duplicate_collusion",
    "sleeper",
    "swing",
    "on_off",
)

NOISE = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.2)
"""The shares of their votes that copies flip."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run, and where the results are."""

    json: Path = Path("runs/verdicts.json")
    """Results; what is there is not run again."""
    clean_runs: int = 200
    """Runs of each setting in which nobody lies."""
    seeds: int = 3
    """Runs of each attack."""
    report: bool = False
    """Run nothing; print the tables of what is there."""
    data_dir: Path | None = None
    """Folder of the data sets; default: the variable SIGNFD_DATA."""


def run(options: Options) -> None:
    """Run what is missing, and write after each setting."""
    results = read(options.json).get("cells", {})
    wanted = [(name, trial, options.clean_runs) for name, trial in CLEAN.items()]
    for attack in ATTACKS:
        for liars in (3, 6):
            trial = Trial(attack=attack, num_byzantine=liars)
            wanted.append((f"{attack}, {liars}", trial, options.seeds))
    for noise in NOISE:
        trial = Trial(attack=f"copies:{noise}", num_byzantine=3)
        wanted.append((trial.attack, trial, options.seeds))
    for name, trial, seeds in wanted:
        if name not in results:
            results[name] = _first_named(trial, seeds, options.data_dir)
            write(options.json, results)


def _make_decoder(thresholds):
    return sfd.correlation_defense(thresholds)


def _kinds(state):
    return sfd.verdicts(state).kind


def _first_named(trial, seeds, data_dir):
    """For each seed and worker whether it lies, and when it was first named so."""
    accuracies, masks, kinds = watched(
        *(trial, _make_decoder, sfd.Thresholds(), seeds, data_dir), watch=_kinds
    )
    kinds = np.asarray(kinds)
    found = {"accuracy": np.asarray(accuracies).tolist()}
    if not trial.attack.startswith("none"):
        found["liars"] = masks.astype(int).tolist()
    for name in NAMED:
        named = kinds == VERDICTS.index(name)
        first = np.where(named.any(axis=1), named.argmax(axis=1) + 1, 0)
        found[name] = first.tolist()
    return found


def report(options: Options) -> str:
    """Both tables."""
    results = read(options.json).get("cells", {})
    lines = [
        "| nobody lies | runs | with a false alarm | inverted | uninformative | "
        "duplicate |",
        "|---|---|---|---|---|---|",
    ]
    for name in CLEAN:
        if name in results:
            rounds = np.array([results[name][kind] for kind in NAMED])
            alarms = (rounds > 0).any(axis=2)  # by kind and run
            each = " | ".join(str(number) for number in alarms.sum(axis=1))
            runs, any_of = len(results[name]["accuracy"]), alarms.any(axis=0).sum()
            lines.append(f"| {name} | {runs} | {any_of} | {each} |")
    lines += [
        "",
        "| attack | liars | named | round (median) | as | honest named | accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for attack in ATTACKS:
        for liars in (3, 6):
            if cell := results.get(f"{attack}, {liars}"):
                lines.append(f"| {attack} | {liars} | {_delay(cell)} |")
    lines += [
        "",
        "| flipped | liars | named duplicates | round (median) | accuracy |",
        "|---|---|---|---|---|",
    ]
    for noise in NOISE:
        if cell := results.get(f"copies:{noise}"):
            rounds = np.array(cell["duplicate"])[np.array(cell["liars"], bool)]
            named = rounds[rounds > 0]
            median = f"{np.median(named):.0f}" if named.size else "never"
            lines.append(
                f"| {noise:.0%} | {rounds.size} | {named.size} | {median} | "
                f"{np.mean(cell['accuracy']):.3f} |"
            )
    return "\n".join(lines)


def _delay(cell):
    liars = np.array(cell["liars"], bool)
    rounds = np.array([cell[kind] for kind in NAMED])
    first = np.where(rounds > 0, rounds, 10**6).min(axis=0)
    named = (rounds > 0).any(axis=0)
    caught = named & liars
    median = f"{np.median(first[caught]):.0f}" if caught.any() else "never"
    as_what = ", ".join(
        f"{kind} {int(((rounds[k] > 0) & liars).sum())}"
        for k, kind in enumerate(NAMED)
        if ((rounds[k] > 0) & liars).any()
    )
    return " | ".join(
        [
            f"{int(caught.sum())} of {int(liars.sum())}",
            median,
            as_what or "none",
            str(int((named & ~liars).sum())),
            f"{np.mean(cell['accuracy']):.3f}",
        ]
    )


if __name__ == "__main__":
    main(Options, run, report)
