"""The report: every finding run, judged and written down, with its figures."""

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax

from signfd_jax.experiments import to_json
from signfd_jax.experiments._processes import console
from signfd_jax.experiments._storage import files
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments.report._tables import markdown
from signfd_jax.paper._base import Finding, Lab, Outcome, verdict
from signfd_jax.paper._findings import FINDINGS
from signfd_jax.paper.scales import SCALES

__all__ = ["reproduce"]


@jax.transfer_guard("allow")  # What a run moves to the device, it means to.
def reproduce(
    figures: Sequence[str],
    scale: str = "small",
    output_dir: str | Path = "runs",
    *,
    data_dir: Path | None = None,
    force: bool = False,
    progress: bool = True,
) -> tuple[Path, dict[str, str]]:
    """Run findings of the paper and write a report.

    What was run before, by this or by another figure, is not run again. The report
    covers the figures that are asked for.

    Args:
        figures: names of `FINDINGS`, or `["all"]`.
        scale: a name of `SCALES`.
        output_dir: the folder of all runs; the report goes to `paper-<scale>` in it.
        data_dir: folder of the data sets; None: see `data.load`.
        force: run everything again.
        progress: show progress bars on stderr.

    Returns:
        The path of `report.md`, and the verdict of each figure.

    Raises:
        ValueError: a name is unknown.
        OSError: the folder cannot be written.

    Examples:
        >>> reproduce(["accuracy"])
        Traceback (most recent call last):
        ValueError: unknown figure 'accuracy'; known are all, inversion, ...
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}; known are {', '.join(SCALES)}")
    for name in figures:
        if name not in ("all", *FINDINGS):
            known = ", ".join(["all", *FINDINGS])
            raise ValueError(f"unknown figure {name!r}; known are {known}")
    names = list(FINDINGS) if "all" in figures else list(dict.fromkeys(figures))
    folder = files.expanded(output_dir) / f"paper-{scale}"
    if force and folder.exists():
        shutil.rmtree(folder)
    lab = Lab(records.make_folder(folder), data_dir, progress)
    outcomes = {}
    for name in names:
        outcomes[name] = FINDINGS[name].run(SCALES[scale], lab)
    verdicts = {name: verdict(outcome) for name, outcome in outcomes.items()}
    path = folder / "report.md"
    records.write_atomically(path, _report(scale, outcomes, verdicts))
    with console.spared("no figures"):
        _draw(folder, outcomes)
    return path, verdicts


def _draw(folder, outcomes):
    from signfd_jax.experiments.report import plots

    figures = {
        folder / f"{name}.png": functools.partial(
            plots.panels_figure,
            outcome.panels,
            xlabel=outcome.xlabel,
            ylabel=outcome.ylabel,
            log_x=outcome.log_x,
        )
        for name, outcome in outcomes.items()
    }
    plots.save(figures, dpi=72)


def _report(scale, outcomes, verdicts):
    base = SCALES[scale].base
    environment = records.environment()
    versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
    overview = [["figure", "finding", "verdict"]]
    overview += [[name, FINDINGS[name].title, verdicts[name]] for name in outcomes]
    which = "all" if len(outcomes) == len(FINDINGS) else " ".join(outcomes)
    parts = [
        "# The paper's findings, run again",
        f"`signfd paper {which} --scale {scale}`. Data set {base.dataset}, model "
        f"{base.model}, M = {base.num_workers} workers, batches of {base.batch_size}, "
        f"learning rate {base.learning_rate:g}, {base.rounds} rounds, {base.seeds} "
        "seeds; a mean over seeds comes with its standard error, a band in a figure is "
        f"their range. {environment['device']}; {versions}.",
        "The paper: Park and Lee, [SignSGD with Federated Defense: Harnessing "
        "Adversarial Attacks through Gradient Sign Decoding]"
        "(https://proceedings.mlr.press/v235/park24h.html), ICML 2024. What it reports "
        "is taken from public digests, without exact accuracies.",
        markdown(overview),
        *(
            _section(name, FINDINGS[name], outcome, verdicts[name])
            for name, outcome in outcomes.items()
        ),
        "## The setting\n\n```json\n" + to_json(base) + "```",
    ]
    return "\n\n".join(parts) + "\n"


def _section(name: str, finding: Finding, outcome: Outcome, judged: str) -> str:
    claims = "\n".join(
        f"- {'yes' if claim.holds else 'no'}: {claim.text}." for claim in outcome.claims
    )
    return "\n\n".join(
        [
            f"## {finding.title}: {judged}",
            f"**Reported.** {finding.reported}",
            f"**Came out.**\n\n{claims}",
            markdown(outcome.rows),
            f"![{finding.title}]({name}.png)",
            f"**Where it differs, and why.** {outcome.remarks}",
        ]
    )
