"""`signfd list`: a row for each name, to read on a terminal and to parse elsewhere."""

import io
import re
import sys

import pytest

from signfd_jax import data
from signfd_jax.cli import main
from signfd_jax.experiments import PRESETS, _aliases, _catalogue, registry
from signfd_jax.experiments import _plugins as plugins
from signfd_jax.experiments._choices import choose
from signfd_jax.experiments.sinks import SINKS

NAMES = {
    "presets": PRESETS,
    "datasets": data.DATASETS,
    "models": registry.MODELS,
    "splits": registry.SPLITS,
    "decoders": registry.SERVERS,
    "attacks": registry.ATTACKS,
    "memberships": registry.MEMBERSHIPS,
    "workers": registry.WORKERS,
    "optimizers": registry.OPTIMIZERS,
    "schedules": registry.SCHEDULES,
    "sinks": SINKS,
    "aliases": [name for name, _ in _aliases.listed()],
}
FIELDS = {"models": "model", "splits": "split", "decoders": "decoder"}
FIELDS |= {"attacks": "attack", "memberships": "membership", "workers": "worker"}
FIELDS |= {"optimizers": "optimizer", "schedules": "schedule"}


def listed(capsys, *kinds):
    """What a script reads: kind, name, options, package and description of each row."""
    assert main(["list", *kinds]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = [line.split("\t") for line in out.splitlines()]
    assert {len(row) for row in rows} == {5}
    return rows


def on_a_terminal(monkeypatch, *arguments, columns=80):
    """What a terminal of that width shows."""
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    assert main(list(arguments)) == 0
    return screen.getvalue()


def test_all_kinds_are_listed_with_all_their_names(capsys):
    rows = listed(capsys)
    found = {kind: [row[1] for row in rows if row[0] == kind] for kind in NAMES}
    assert found == {kind: list(names) for kind, names in NAMES.items()}
    assert len(rows) == sum(map(len, NAMES.values()))


@pytest.mark.parametrize("kind", NAMES)
def test_one_kind_is_listed_alone(kind, capsys):
    rows = listed(capsys, kind)
    assert [row[1] for row in rows] == list(NAMES[kind])
    assert {row[0] for row in rows} == {kind}


@pytest.mark.parametrize("kind", NAMES)
def test_each_name_has_a_line_in_plain_letters(kind, capsys):
    for _, name, _, package, description in listed(capsys, kind):
        assert len(description) > 10, f"{name} has no docstring"
        assert not re.search(r"[$\\{}`]", description), description
        assert package == ""


@pytest.mark.parametrize("kind", FIELDS)
def test_options_are_written_as_a_choice_takes_them(kind, capsys):
    field = FIELDS[kind]
    for _, name, options, *_ in listed(capsys, kind):
        if "=..." in options:  # it has no default
            continue
        choice = choose(registry.REGISTRIES[field], field, f"{name}:{options}")
        assert len(choice.options) == len(list(filter(None, options.split(","))))


def test_some_options(capsys):
    options = {name: options for _, name, options, *_ in listed(capsys)}
    assert options["dirichlet"] == "alpha=..."
    assert options["krum"] == "num_byzantine=none,scale=300.0,num_neighbours=none"
    assert options["sleeper"] == "start_round=200"  # an attack cannot be written
    assert options["digits"] == ""


@pytest.mark.parametrize(
    ("line", "plain"),
    [
        (r"All send $-\epsilon\mu$.", "All send -epsilon mu."),
        (r"noise: $g_{m,n} \sim N(0, s^2)$.", "noise: g_m,n ~ N(0, s^2)."),
        (
            r"minus its gradient: $g_m \leftarrow -g_m$.",
            "minus its gradient: g_m <- -g_m.",
        ),
        (r"$\mu - z\sigma\operatorname{sign}(\mu)$", "mu - z sigma sign(mu)"),
        (r"$-\operatorname{sign} \sum_H Y_m$", "-sign sum_H Y_m"),
        ("As `min_max`, with", "As min_max, with"),
        ("costs $5", "costs $5"),
    ],
)
def test_formulas_are_spelled_out(line, plain):
    assert _catalogue.in_plain_letters(line) == plain


def test_names_of_other_packages_are_marked(capsys, monkeypatch):
    def shift(by: int = 1):
        """Send the neighbour's coordinate."""

    monkeypatch.setitem(registry.ATTACKS, "shift", shift)
    monkeypatch.setitem(plugins.PACKAGES["signfd_jax.attacks"], "shift", "stranger")
    row = listed(capsys, "attacks")[-1]
    description = "Send the neighbour's coordinate."
    assert row == ["attacks", "shift", "by=1", "stranger", description]
    shown = on_a_terminal(monkeypatch, "list", "attacks")
    assert "stranger" in shown
    assert "package" in shown


@pytest.mark.parametrize("columns", [50, 80, 200])
@pytest.mark.parametrize("kind", NAMES)
def test_a_terminal_shows_wrapped_tables(kind, columns, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    shown = on_a_terminal(monkeypatch, "list", kind, columns=columns)
    text = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert max(map(len, text.splitlines())) <= columns
    for name in NAMES[kind]:
        assert re.search(rf"^ *{re.escape(name)}\b", text, re.M)


def test_no_color_is_honoured(monkeypatch):
    coloured = re.compile(r"\x1b\[[\d;]*3\d")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert coloured.search(on_a_terminal(monkeypatch, "list", "splits"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured.search(on_a_terminal(monkeypatch, "list", "splits"))


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_what_is_piped_is_plain(variable, capsys, monkeypatch):
    monkeypatch.setenv(variable, "1")
    assert main(["list"]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("attack", "unknown kind 'attack' (did you mean attacks?); known are presets,"),
        ("everything", "unknown kind 'everything'; known are presets, datasets,"),
        ("--all", "unknown kind '--all'; known are presets,"),
    ],
)
def test_an_unknown_kind_is_one_line(kind, says, capsys):
    assert main(["list", kind]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"signfd: {says}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["list", "show"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(command, flag, capsys):
    assert main([command, flag]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: signfd {command} ")
    assert max(map(len, out.splitlines())) <= 80


def test_compare_draws_its_table(tmp_path, monkeypatch):
    """On a terminal; the file is in Markdown all the same."""
    command = """compare --decoders majority_vote --num-byzantine 0 2 --seeds 1
        --rounds 2 --quiet --output-dir""".split()
    shown = on_a_terminal(monkeypatch, *command, str(tmp_path), columns=100)
    (table,) = tmp_path.glob("*/table.md")
    assert table.read_text().startswith("| data ")
    assert "majority vote" in shown
    assert "2 sign_inversion" in shown
    assert "|" not in shown
