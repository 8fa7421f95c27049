"""How the command line starts: what it imports, and what it keeps compiled."""

import os
import subprocess
import sys

import pytest

import signfd_jax
from signfd_jax.cli import _compiled as compiled

TINY = """run --name tiny --model softmax_regression --decoder majority_vote --force
    --num-workers 5 --num-byzantine 2 --batch-size 4 --rounds 2 --eval-every 2"""
TINY = TINY.split()


def signfd(folder, *arguments, **environment):
    """Run the command in a folder; its cache is there too."""
    kept = {k: v for k, v in os.environ.items() if k != "SIGNFD_COMPILED"}
    kept["MPLCONFIGDIR"] = str(folder)  # of which matplotlib would warn
    code = "from signfd_jax.cli import main; exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=kept | {"XDG_CACHE_HOME": str(folder / "cache")} | environment,
        capture_output=True,
        text=True,
    )


def programs(folder):
    """The compiled programs, and when they were made."""
    files = (folder / "cache" / "signfd_jax").rglob("*-cache")
    return {path.name: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["run", "--help"], ["compare", "--help"]],
    ids=" ".join,
)
def test_help_and_version_need_no_jax(arguments):
    code = (
        "import contextlib, sys\n"
        "from signfd_jax.cli import main\n"
        f"with contextlib.suppress(SystemExit): main({arguments})\n"
        "heavy = {'jax', 'numpy', 'optax', 'flax', 'matplotlib'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stderr == "[]\n"
    said = "signfd " + signfd_jax.__version__ if "--version" in arguments else "usage"
    assert said in process.stdout


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_the_package_is_the_command(argument):
    command = [sys.executable, "-X", "importtime", "-m", "signfd_jax", argument]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.startswith(("signfd ", "usage: signfd "))
    loaded = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert "signfd_jax.cli" in loaded
    assert not loaded & {"jax", "numpy", "optax", "flax", "matplotlib", "rich", "tqdm"}


def test_the_package_gives_the_exit_code_of_the_command():
    command = [sys.executable, "-m", "signfd_jax", "walk"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith("signfd: unknown command 'walk'; known are ")


def test_every_public_name_is_imported_when_it_is_asked_for():
    code = (
        "import sys, signfd_jax\n"
        "assert 'jax' not in sys.modules\n"
        "assert set(signfd_jax.__all__) <= set(dir(signfd_jax))\n"
        "for name in signfd_jax.__all__: getattr(signfd_jax, name)\n"
        "signfd_jax.distributed.sign_all_reduce\n"
        "assert not hasattr(signfd_jax, 'no_such_thing')\n"
        "from signfd_jax import *\n"
        "print(majority_vote is signfd_jax.decoders.base.majority_vote)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout == "True\n"


def told(process):
    """The lines on stderr, but for the one that says from which round a run goes on."""
    lines = process.stderr.splitlines()
    return [line for line in lines if not line.startswith("signfd: no checkpoint in")]


@pytest.mark.slow
def test_programs_are_compiled_once_for_all_calls(tmp_path):
    first = signfd(tmp_path, *TINY)
    assert first.returncode == 0, first.stderr
    assert "signfd: compiling ...\n" in first.stderr
    made = programs(tmp_path)
    assert made
    again = signfd(tmp_path, *TINY, "--quiet")
    assert again.returncode == 0
    assert told(again) == []
    assert programs(tmp_path) == made  # and none beside them


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"SIGNFD_COMPILED": "off"}, marks=pytest.mark.slow),
        {"XDG_CACHE_HOME": os.devnull},  # where no folder can be made
        pytest.param(
            {"SIGNFD_COMPILED": os.devnull + "/programs"}, marks=pytest.mark.slow
        ),
    ],
    ids=lambda environment: " ".join(environment.values()),
)
@pytest.mark.slow
def test_without_a_place_for_programs_a_run_is_as_ever(environment, tmp_path):
    run = signfd(tmp_path, *TINY, "--quiet", **environment)
    assert run.returncode == 0
    assert told(run) == []
    assert "test accuracy" in run.stdout
    assert programs(tmp_path) == {}


def test_old_programs_are_removed(tmp_path):
    young, old = tmp_path / "young", tmp_path / "old"
    young.touch()
    old.touch()
    os.utime(old, (0, 0))
    compiled._forget_old(tmp_path)
    assert list(tmp_path.iterdir()) == [young]
