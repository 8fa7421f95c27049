"""What each constant of the default decoder saves: halved, doubled, and taken away.

Test accuracies less those of the constants as they are, with standard errors of paired
seeds, over settings in which some mechanism matters. The constants are inputs of the
compiled program, so that a setting is compiled once. They were chosen on settings like
these; `benchmarks.generalise` judges them on others.

    python -m benchmarks.ablate --json benchmarks/results/ablate.json
"""

import dataclasses
import functools
import statistics
from pathlib import Path

import signfd_jax as sfd
from benchmarks.trials import Trial, accuracies, main, paired, read, write

# What takes a mechanism away.
OFF = {
    "forgetting": 1.0,
    "majority": 1e-6,  # confidence is always 1
    "significant": 1e-6,
    "duplicate": 1e6,
    "slack": 1e-6,
    "exact": 1e-9,  # with `shared_batches` besides: nobody sends the same
    "alike": 1e-9,
}
_WITHOUT_EXACT = functools.partial(sfd.correlation_defense, shared_batches=True)
TRIALS = (
    Trial(attack="none"),
    Trial(attack="sign_inversion"),
    Trial(attack="alie"),
    Trial(attack="alie", batch_size=4),
    Trial(attack="ipm"),
    Trial(attack="majority_opposition", split="dirichlet:0.3"),
    Trial(attack="mimic", num_byzantine=6),
    Trial(attack="near_duplicate_collusion"),
    Trial(attack="random_collusion"),
    Trial(attack="stochastic_sign_flip", batch_size=4),
    Trial(attack="sign_inversion@drawn_each_round"),
    Trial(attack="sleeper"),
    Trial(attack="on_off"),
    Trial(attack="flip:0.8", shared_by=15),
    Trial(attack="flip:0.8", shared_by=3),
    Trial(attack="flip:0.6", num_workers=50, num_byzantine=24, batch_size=64),
    Trial(attack="flip:0.8", split="dirichlet:0.1"),
    Trial(attack="flip:own", split="labels:3"),
    Trial(attack="sign_inversion", split="dirichlet:0.3"),
    Trial(attack="alie", split="dirichlet:0.3"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run, and where the results are."""

    json: Path = Path("runs/ablate.json")
    """Results; what is there is not run again."""
    seeds: int = 6
    """Paired training seeds."""
    report: bool = False
    """Run nothing; print the table of what is there."""
    data_dir: Path | None = None
    """Folder of the data sets; default: the variable SIGNFD_DATA."""


def variants() -> dict[str, sfd.Thresholds]:
    """The constants as they are, and with one of them changed."""
    frozen = sfd.Thresholds()
    found = {"as they are": frozen}
    for name, value in frozen._asdict().items():
        if name == "forgetting":  # twice and half as many rounds
            changed = {"halved": 0.96, "doubled": 0.99}
        else:
            changed = {"halved": value / 2, "doubled": value * 2}
        for how, other in (changed | {"off": OFF[name]}).items():
            found[f"{name} {how}"] = frozen._replace(**{name: other})
    return found


def run(options: Options) -> None:
    """Run what is missing, and write after each setting."""
    results = read(options.json).get("cells", {})
    for trial in TRIALS:
        for name, thresholds in variants().items():
            key = f"{trial} | {name}"
            if len(results.get(key, [])) < options.seeds:
                results[key] = accuracies(
                    trial,
                    _WITHOUT_EXACT if name == "exact off" else sfd.correlation_defense,
                    thresholds,
                    options.seeds,
                    options.data_dir,
                )
        write(options.json, results)


def report(options: Options) -> str:
    """Every change with the settings that it moves by more than two standard errors."""
    results = read(options.json).get("cells", {})
    lines = ["| change | mean | settings moved by more than two standard errors |"]
    lines.append("|---|---|---|")
    for name in variants():
        differences, moved = [], []
        for trial in TRIALS:
            ours = results.get(f"{trial} | {name}")
            frozen = results.get(f"{trial} | as they are")
            if ours is None or frozen is None:
                continue
            mean, error = paired(ours, frozen)
            differences.append(mean)
            if abs(mean) > 2 * error and abs(mean) > 0.005:
                moved.append(f"{_short(trial)}: {mean:+.3f} ± {error:.3f}")
        if differences:
            text = "; ".join(moved) or "none"
            lines.append(f"| {name} | {statistics.fmean(differences):+.4f} | {text} |")
    return "\n".join(lines)


def _short(trial: Trial) -> str:
    """A setting without what most settings share."""
    text = str(trial)
    for common in ("split=iid ", "num_byzantine=7 ", "split=", "attack="):
        text = text.replace(common, "")
    return text


if __name__ == "__main__":
    main(Options, run, report)
