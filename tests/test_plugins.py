"""A package of a stranger's, built from the page that tells how, and bad ones."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from signfd_jax.experiments import plugins
from signfd_jax.experiments.records import read_lines

PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"


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


def test_a_stranger_compares_an_attack_and_a_rule(tmp_path):
    install(tmp_path, titled("stranger.py"), titled("pyproject.toml"))
    command = re.search(r"^signfd (compare .*?)\n```", PAGE.read_text(), re.M | re.S)
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


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "stranger:shift",
            "stranger:nothing",
            "imported from stranger:nothing",
        ),
        ("stranger:shift", "nowhere:shift", "ModuleNotFoundError"),
        ("stranger:shift", "stranger:jax", "is no function"),
        ("shift = ", "sign_inversion = ", "the name is taken"),
        ("shortest = ", "krum = ", "the name is taken"),
        ("shift = ", '"my shift" = ', "a name must consist of"),
    ],
)
def test_a_broken_package_is_told_in_one_line(old, new, says, tmp_path):
    install(tmp_path, titled("stranger.py"), titled("pyproject.toml").replace(old, new))
    process = signfd(tmp_path, "run", "--rounds", "2")
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert says in line and "the package stranger" in line


def test_nothing_is_added_here():
    """Else the other tests would go over what some package added."""
    for group in plugins.GROUPS:
        assert plugins.load(group) == {}
