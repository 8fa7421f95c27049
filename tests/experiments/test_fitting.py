"""Presets with fewer workers than they are for."""

import pytest

from signfd_jax.cli import main
from signfd_jax.cli._options import Compare, Run, fitting, read_run_flags
from signfd_jax.experiments import PRESETS, Experiment


def flags_of(preset, text):
    options, lines = read_run_flags(Run(PRESETS[preset].experiment), text.split())
    return options.experiment, lines


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("workers", [1, 2, 3, 8, 14, 15, 101])
def test_every_preset_runs_with_any_number_of_workers(preset, workers):
    ours = PRESETS[preset].experiment
    for text in (f"--num-workers {workers}", f"--num_workers={workers}"):
        experiment, lines = flags_of(preset, text)
        assert experiment.num_workers == workers
        assert 2 * experiment.num_byzantine < workers
        assert experiment.num_byzantine <= ours.num_byzantine
        if experiment.worker_chunk:
            assert workers % experiment.worker_chunk == 0
        changed = [
            name
            for name in ("num_byzantine", "worker_chunk")
            if getattr(experiment, name) != getattr(ours, name)
        ]
        assert len(lines) == len(changed)
        for name, line in zip(changed, lines, strict=True):
            for number in (ours, experiment):
                assert f" {getattr(number, name)}" in line
            assert preset in line
            assert f"--{name.replace('_', '-')} sets it" in line


@pytest.mark.parametrize(
    ("text", "byzantine"),
    [
        ("", 7),
        ("--rounds 3", 7),
        ("--num-workers 5 --num-byzantine 4", 4),
        ("--num_byzantine=0 --num_workers=5", 0),
        ("--num-workers 5 --byzantine-ids 1 2 3", 3),
    ],
)
def test_what_is_given_stays(text, byzantine):
    experiment, lines = flags_of("digits", text)
    assert experiment.num_byzantine == byzantine
    assert lines == []


def test_configuration_of_more_liars_than_honest_workers():
    ours = Experiment(name="mine", num_workers=15, num_byzantine=10)
    options, lines = read_run_flags(Run(ours), ["--num-workers", "12"])
    assert (options.experiment.num_byzantine, lines) == (10, [])
    with pytest.raises(ValueError, match=r"but is 10, as mine has it"):
        read_run_flags(Run(ours), ["--num-workers", "5"])


@pytest.mark.parametrize("workers", [1, 5, 6, 15, 50])
def test_grid_has_minorities(workers):
    numbers = fitting(Compare(), Experiment(num_workers=workers)).num_byzantine
    assert all(2 * number < workers for number in numbers)
    assert numbers == tuple(sorted(set(numbers)))
    if workers >= 15:
        assert numbers == Compare().num_byzantine


def test_command_says_it_once(tmp_path, capsys):
    flags = """--num-workers 5 --model softmax_regression --decoder majority_vote
        --batch-size 4 --rounds 4 --eval-every 2 --quiet""".split()
    assert main(["run", *flags, "--output-dir", str(tmp_path)]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "signfd: num_byzantine is 2, the largest minority of 5 workers; digits has 7 "
        "for 15 (--num-byzantine sets it)"
    )
    assert "no checkpoint in" in second
    assert main(["run", *flags, "--num-byzantine", "7"]) == 2
    assert "num_byzantine must lie in [0, 5]" in capsys.readouterr().err
