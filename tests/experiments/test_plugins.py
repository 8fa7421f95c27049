"""A package of a stranger's, built from the page that tells how, and bad ones."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from signfd_jax.experiments import _plugins as plugins
from signfd_jax.experiments._storage.run_folder import read_lines

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"


def titled(name):
    """The block of the page with that title."""
    block = re.search(
        rf'^```\w+ title="{re.escape(name)}"\n(.*?)^```', PAGE.read_text(), re.M | re.S
    )
    assert block, f"{PAGE.name} has no block called {name}"
    return block[1]


def install(folder, module, project):
    """What `pip install` leaves of a package: its module, and its entry points."""
    about = tomllib.loads(project)["project"]
    (folder / f"{about['name']}.py").write_text(module)
    info = folder / f"{about['name']}-{about['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
    )
    lines = []
    for group, points in about["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {to}" for name, to in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def signfd(folder, *arguments):
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    code = "import sys; from signfd_jax.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_stranger_compares_an_attack_and_a_rule(tmp_path):
    install(tmp_path, titled("stranger.py"), titled("pyproject.toml"))
    command = re.search(r"^signfd (compare .*?)\nsignfd", PAGE.read_text(), re.M | re.S)
    assert command
    arguments = command[1].replace("\\\n", " ").split()
    process = signfd(tmp_path, *arguments, "--quiet")
    assert process.returncode == 0, process.stderr
    for name in ("shift:by=2", "shortest:power=1", "correlation_defense"):
        assert name in process.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    cells = read_lines(folder / "cells.jsonl")
    losses = {
        (cell["config"]["decoder"], cell["config"]["attack"]): cell["test_loss"]
        for cell in cells
    }
    assert len(losses) == 6  # two servers: nobody lies, three shift, three invert
    for decoder in {decoder for decoder, _ in losses}:
        assert losses[decoder, "shift:by=2"] != losses[decoder, "none"]


@pytest.mark.slow
def test_a_stranger_runs_a_model_on_data_as_a_preset_says(tmp_path):
    install(tmp_path, titled("stranger.py"), titled("pyproject.toml"))
    command = re.search(r"^signfd (run mine .*?)\n```", PAGE.read_text(), re.M | re.S)
    assert command
    process = signfd(tmp_path, *command[1].split(), "--quiet")
    assert process.returncode == 0, process.stderr
    accuracy = re.search(r"test accuracy ([.\d]+)", process.stdout)
    assert accuracy and float(accuracy[1]) > 0.6
    process = signfd(tmp_path, "list", "models", "datasets", "presets")
    rows = [line.split("\t")[:4] for line in process.stdout.splitlines()]
    assert ["models", "bilinear", "width=8", "stranger"] in rows
    assert ["datasets", "clouds", "", "stranger"] in rows
    assert ["presets", "mine", "", "stranger"] in rows


@pytest.mark.slow
def test_versions_of_plugins_are_recorded(tmp_path):
    install(tmp_path, titled("stranger.py"), titled("pyproject.toml"))
    run = [
        "run",
        "--attack",
        "shift",
        "--num-byzantine",
        "1",
        "--rounds",
        "2",
        "--quiet",
    ]
    process = signfd(tmp_path, *run)
    assert process.returncode == 0, process.stderr
    (environment,) = (tmp_path / "runs").glob("*/environment.json")
    assert json.loads(environment.read_text())["versions"]["stranger"] == "0.1"


BROKEN = [
    # what is other in the package, the entry that suffers, what the line says
    ("stranger:shift", "stranger:nothing", "shift", "imported from stranger:nothing"),
    ("stranger:shift", "nowhere:shift", "shift", "ModuleNotFoundError"),
    ("stranger:shift", "builtins:min", "shift", "no signature"),
    ("stranger:shift", "no point!", "shift", "imported from no point!"),
    ("stranger:shift", "stranger:jax", "shift", "is no function"),
    ("stranger:shortest", "stranger:twice", "shortest", "duplicate parameter name"),
    ("stranger:shortest", "quitter:leave", "shortest", "SystemExit"),
    ("shift = ", '"my shift" = ', "my shift", "a name must consist of"),
]
TAKEN = [
    ("shift = ", "sign_inversion = ", "sign_inversion", "the name is taken"),
    ("shortest = ", "krum = ", "krum", "the name is taken"),
]
SOME_SLOW = [
    *BROKEN[:2],
    *(pytest.param(*row, marks=pytest.mark.slow) for row in BROKEN[2:]),
]
ADDED = {"shift": "--attack", "my shift": "--attack", "shortest": "--decoder"}


def install_broken(folder, old, new):
    module = (
        titled("stranger.py") + "\n\ndef twice(rows, scale=1.0):\n    return rows\n"
    )
    project = titled("pyproject.toml")
    assert old in project
    install(folder, module, project.replace(old, new))
    (folder / "quitter.py").write_text("import sys\n\nsys.exit(3)\n")


@pytest.mark.parametrize(("old", "new", "name", "says"), SOME_SLOW + TAKEN)
@pytest.mark.slow
def test_a_broken_package_is_told_in_one_line_and_left_out(
    old, new, name, says, tmp_path
):
    install_broken(tmp_path, old, new)
    process = signfd(tmp_path, "list")
    assert process.returncode == 0
    (line,) = process.stderr.splitlines()
    assert says in line
    assert f"{name!r} of the package stranger: " in line
    assert line.endswith("; it is left out")
    words = [line.split("\t")[1] for line in process.stdout.splitlines()]
    sound = {"shift", "shortest"} - {old.removesuffix(" = ").split(":")[-1]}
    assert sound < set(words)
    assert words.count(name) == ((old, new, name, says) in TAKEN)  # the library's own


@pytest.mark.parametrize(("old", "new", "name", "says"), SOME_SLOW)
@pytest.mark.slow
def test_a_broken_thing_that_is_asked_for_ends_the_command(
    old, new, name, says, tmp_path
):
    install_broken(tmp_path, old, new)
    command = ["run", ADDED[name], name, "--num-byzantine", "1", "--rounds", "2"]
    process = signfd(tmp_path, *command)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert says in line and "the package stranger" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("entry_points.txt", "[signfd_jax.attacks]\nno equals sign\n"),
        ("entry_points.txt", b"\xff\xfe\x00"),
        ("METADATA", None),
        ("METADATA", b"\xff\xfe\x00"),
    ],
)
@pytest.mark.slow
def test_a_damaged_package_does_not_end_the_command_line(file, content, tmp_path):
    install(tmp_path, titled("stranger.py"), titled("pyproject.toml"))
    install(
        tmp_path,
        "",
        """[project]
name = "damaged"
version = "1"
[project.entry-points."signfd_jax.attacks"]
a_thing = "nowhere:nothing"
""",
    )
    path = tmp_path / "damaged-1.dist-info" / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    process = signfd(tmp_path, "list")
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    assert process.stderr.count("\n") <= 1
    rows = [line.split("\t") for line in process.stdout.splitlines()]
    added = {name: rest for _, name, *rest in rows if name in ("shift", "shortest")}
    assert added == {
        "shift": [
            "by=1",
            "stranger",
            "Send the gradient of the neighbouring coordinate.",
        ],
        "shortest": [
            "num_byzantine=none,scale=300.0,power=2.0",
            "stranger",
            "The mean of the M - f rows that are shortest, in the norm of that power.",
        ],
    }


def test_nothing_is_added_here():
    """Else the other tests would go over what some package added."""
    for group in plugins.GROUPS:
        assert plugins.load(group) == {}
