"""The small files beside the code agree with it and with each other."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import signfd_jax

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]


def test_version_is_single_sourced():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "signfd_jax/__init__.py"
    assert citation["version"] == signfd_jax.__version__


def test_pre_commit_runs_the_pinned_tools():
    """Hooks are local, so the versions are those of the extra `dev`, in CI and here."""
    pins = dict(requirement.split("==") for requirement in EXTRAS["dev"])
    tools = {name.partition("[")[0] for name in pins}
    hooks = []
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    for repository in config["repos"]:
        assert repository["repo"] == "local"
        hooks += repository["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {hook["entry"].split()[0] for hook in hooks} == tools - {"pre-commit"}
    assert "pre-commit run --all-files" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("extra", ["", "experiments", "test", "docs"])
def test_requirements_have_lower_bounds(extra):
    requirements = EXTRAS[extra] if extra else PYPROJECT["project"]["dependencies"]
    for requirement in requirements:
        assert requirement.startswith("signfd-jax[") or re.search(r">=\d", requirement)


def test_package_is_typed():
    assert (Path(signfd_jax.__file__).parent / "py.typed").is_file()


def test_contributing_fits_on_a_page():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 40
