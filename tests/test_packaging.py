"""The small files beside the code agree with it and with each other."""

import re
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

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


@pytest.mark.parametrize("extra", ["", "experiments", "flower", "test", "docs"])
def test_requirements_have_lower_bounds(extra):
    requirements = EXTRAS[extra] if extra else PYPROJECT["project"]["dependencies"]
    for requirement in requirements:
        assert requirement.startswith("signfd-jax[") or re.search(r">=\d", requirement)


def test_package_is_typed():
    assert (Path(signfd_jax.__file__).parent / "py.typed").is_file()


def test_contributing_fits_on_a_page():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 40


# Outside the checkout there is nothing to build.
in_checkout = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")


def tracked(*places):
    """The files there that git tracks, or would, were they added now."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *places]
    listing = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name for name in listing.stdout.split() if (ROOT / name).is_file()}


@in_checkout
def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
    about = f"signfd_jax-{signfd_jax.__version__}.dist-info/"
    assert names - tracked("signfd_jax") == {
        about + name for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")
    } | {about + "licenses/LICENSE"}
    assert tracked("signfd_jax") <= names
    assert Path(path).stat().st_size < 500_000


@in_checkout
def test_sdist_holds_what_one_builds_tests_and_reads(tmp_path):
    (path,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path))
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    small = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md")
    wanted = tracked("signfd_jax", "tests", "docs", "mkdocs.yml", "pyproject.toml")
    assert names == wanted | {*small, ".gitignore", "PKG-INFO"}
    assert Path(path).stat().st_size < 1_000_000
