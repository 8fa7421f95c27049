"""Settings of JAX that change results: recorded, and never mixed."""

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from test_checkpoints import TINY, written

from signfd_jax.cli import main
from signfd_jax.experiments import grid as compare
from signfd_jax.experiments._engine import settings
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments._storage.checkpoints import restore
from signfd_jax.experiments.run import run_experiment
from signfd_jax.paper._base import Lab

# Of each kind of setting one that this process can have for a while.
OTHERS = {
    "jax_default_matmul_precision": lambda: jax.default_matmul_precision("float32"),
    "jax_default_prng_impl": lambda: jax.default_prng_impl("rbg"),
    "jax_disable_jit": jax.disable_jit,
    "jax_enable_x64": lambda: jax.enable_x64(True),
    "jax_random_seed_offset": lambda: updated("jax_random_seed_offset", 1),
    "jax_softmax_custom_jvp": lambda: updated("jax_softmax_custom_jvp", True),
    "jax_threefry_partitionable": lambda: jax.threefry_partitionable(False),
    "NVIDIA_TF32_OVERRIDE": lambda: variable("NVIDIA_TF32_OVERRIDE", "0"),
    "XLA_FLAGS": lambda: variable("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
}


@contextlib.contextmanager
def updated(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


@contextlib.contextmanager
def variable(name, value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        yield


@pytest.mark.parametrize("name", OTHERS)
def test_setting_is_recorded_and_told(name):
    """By its name, what it was and what it is."""
    before = records.environment()
    assert json.loads(json.dumps(before)) == before
    with OTHERS[name]():
        told = settings.changed_settings(before)
        assert told.startswith(f"{name} was ")
        assert ", " not in told
        assert records.changes(before, records.environment()).startswith(name)
    assert settings.changed_settings(before) == ""


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_does_not_go_on_under_another(name, tmp_path):
    """One line names it; checkpoint and metrics stay as they are."""
    folder = records.run_folder(tmp_path, TINY)
    folder.mkdir()
    state = written(folder)
    (folder / "environment.json").write_text("{}")
    with OTHERS[name]():
        with pytest.raises(ValueError, match=f"(?s)^(?!.*\n).*{name} was "):
            run_experiment(TINY, tmp_path, progress=False)
        with pytest.raises(ValueError, match=f"{name} was "):
            restore(folder, state, TINY)
    assert (folder / "environment.json").read_text() == "{}"
    assert restore(folder, state, TINY).rounds == 20


def test_half_written_and_damaged_checkpoints_say_nothing(tmp_path):
    """They are not what a run goes on from."""
    written(tmp_path)
    directory = tmp_path / "checkpoints"
    (directory / "20" / "about.json").write_text("{")
    (directory / "10").rename(directory / "refused-10")
    with OTHERS["jax_softmax_custom_jvp"]():
        settings.check_settings(tmp_path)


def test_harmless_flags_are_no_settings(monkeypatch):
    """Where XLA writes its dumps changes nothing, nor does the order of flags."""
    monkeypatch.setenv("XLA_FLAGS", "--b=1 --a=2 --xla_dump_to=dumps")
    assert settings.settings()["XLA_FLAGS"] == "--a=2 --b=1"


def test_environments_without_settings_are_compared_without(tmp_path):
    """Those of earlier versions: nothing is known of them."""
    then = records.environment()
    del then["settings"]
    with OTHERS["jax_softmax_custom_jvp"]():
        assert records.changes(then, records.environment()) == ""
        assert settings.changed_settings(then) == ""


def test_grid_and_measurements_do_not_mix_either(tmp_path):
    """Cells of one folder were run alike; what is there can still be read."""
    cell = dataclasses.replace(TINY, rounds=2)
    other = dataclasses.replace(TINY, rounds=2, seed=1)
    found = compare.run_grid([cell], tmp_path, progress=False)
    lab = Lab(tmp_path)
    lab.measure(measure, cell)
    with OTHERS["jax_softmax_custom_jvp"]():
        assert compare.run_grid([cell], tmp_path, progress=False) == found
        assert lab.measure(measure, cell) == {"number": 1.0}
        with pytest.raises(ValueError, match="jax_softmax_custom_jvp was False"):
            compare.run_grid([cell, other], tmp_path, progress=False)
        with pytest.raises(ValueError, match="jax_softmax_custom_jvp was False"):
            lab.measure(measure, other)
        compare.run_grid([cell], tmp_path, progress=False, force=True)
    assert not (tmp_path / "summary.json").exists()


def measure(base, *, data_dir):
    del base, data_dir
    return {"number": float(jnp.float32(1))}


FLAGS = "--rounds 2 --eval-every 2 --decoder majority_vote --quiet".split()


def test_finished_run_and_from_name_it(tmp_path, capsys):
    """A finished run says under which settings it was; its repetition differs by it."""
    assert main(["run", *FLAGS, "--output-dir", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    with OTHERS["jax_threefry_partitionable"]():
        capsys.readouterr()
        assert main(["run", *FLAGS, "--output-dir", str(tmp_path)]) == 0
        assert (
            "finished before under other settings of JAX (jax_threefry_partitionable "
            "was True and is False)" in capsys.readouterr().out
        )
        assert main(["run", "--from", str(folder), "--quiet"]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"differs from {folder}")
    assert last.endswith("(that one had jax_threefry_partitionable True)")
