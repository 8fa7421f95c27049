"""A model and data of the user's own, in a folder of the user's own."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from signfd_jax import data, models
from signfd_jax.experiments import Experiment, run_experiment
from signfd_jax.experiments._choices import choose
from signfd_jax.experiments._storage.run_folder import read_lines

PAGE = (Path(__file__).parents[2] / "docs" / "your-own.md").read_text()
SHORT = {"rounds": 4, "eval_every": 2, "batch_size": 4}


def arrays(classes=3):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 200)
    return rng.normal(size=(200, 5)) + 2 * np.eye(classes, 5)[labels], labels


@pytest.fixture
def scratch(tmp_path):
    """The files of the page that tells how, in a folder outside the repository."""
    (tmp_path / "mynet.py").write_text(titled("mynet.py"))
    subprocess.run([sys.executable, "-c", titled("data.py")], cwd=tmp_path, check=True)
    return tmp_path


def titled(name):
    """The block of the page with that title."""
    return re.search(rf'^```python title="{name}"\n(.*?)^```', PAGE, re.M | re.S)[1]


def signfd(folder, *arguments, **options):
    """The installed command, which does not look for modules where one is."""
    code = (
        "import sys; sys.path = [p for p in sys.path if p]\n"
        "from signfd_jax.cli import main; sys.exit(main())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


RUN = re.search(r"^signfd (run .*?)\n```", PAGE, re.M | re.S)[1]
MINE = RUN.replace("\\\n", " ").split()


@pytest.mark.slow
def test_a_run_of_ones_own_goes_on_where_it_was_killed(scratch):
    process = signfd(scratch, *MINE, "--output-dir", "whole")
    _, err = process.communicate()
    assert process.returncode == 0, err
    process = signfd(scratch, *MINE, "--checkpoint-every", "2")
    deadline = time.monotonic() + 120
    while not list(scratch.glob("runs/my-*/checkpoints/*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    process = signfd(scratch, *MINE)
    _, err = process.communicate()
    assert process.returncode == 0, err
    (one,), (other,) = scratch.glob("whole/*"), scratch.glob("runs/*")
    for name in ("metrics.jsonl", "metrics.csv", "params.npz"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--model", "mynett:Net"], "mynett:Net cannot be imported"),
        (["--model", "mynet:Nett"], "mynet:Nett cannot be imported"),
        (["--model", "mynet:NET.x"], "is no package.module:Name"),
        (["--model", "mynet:Net:width=3"], "has no option 'width'"),
        (["--dataset", "your.npz"], "there is no file your.npz"),
        (["--log", "cvs"], "unknown sink 'cvs' (did you mean csv?)"),
    ],
)
def test_what_is_wrong_is_one_line(scratch, arguments, wrong):
    process = signfd(scratch, *MINE, *arguments)
    _, err = process.communicate()
    assert process.returncode == 2
    assert wrong in err
    assert len(err.splitlines()) == 1
    assert not (scratch / "runs").exists()


class Net(nn.Module):
    """A model whose logits are a line away."""

    num_classes: int = 3
    keeps: bool = False
    activation: object = nn.relu

    @nn.compact
    def __call__(self, inputs):
        if self.keeps:
            inputs = nn.BatchNorm(use_running_average=False)(inputs)
        return nn.Dense(self.num_classes)(self.activation(inputs))


@pytest.mark.slow
def test_objects_stand_for_names(tmp_path, monkeypatch):
    dataset = data.from_arrays(*arrays(), name="mine")
    config = Experiment(**SHORT)
    run = {"dataset": dataset, "progress": False}
    folder, _ = run_experiment(config, tmp_path / "a", model=Net(), **run)
    other, _ = run_experiment(
        config, tmp_path / "a", model=Net(activation=nn.tanh), **run
    )
    assert folder != other
    # The same by names.
    found = choose({}, "model", f"{__name__}:Net")
    assert found.make({"num_classes": 3}) == Net()
    np.savez(tmp_path / "mine.npz", inputs=arrays()[0], labels=arrays()[1])
    monkeypatch.chdir(tmp_path)
    named = Experiment(**SHORT, model=f"{__name__}:Net", dataset="mine.npz")
    same, _ = run_experiment(named, tmp_path / "b", progress=False)
    assert read_lines(folder / "metrics.jsonl") == read_lines(same / "metrics.jsonl")
    # It had been finished; other data of the same name are refused.
    _, again = run_experiment(config, tmp_path / "a", model=Net(), **run)
    assert again["finished_before"]
    run["dataset"] = data.from_arrays(arrays()[0] + 1, arrays()[1], name="mine")
    with pytest.raises(ValueError, match="begun with other data of the same name"):
        run_experiment(config, tmp_path / "a", model=Net(), **run)


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        (Net(num_classes=4), r"logits of shape \[1, 4\] for one input, but \[1, 3\]"),
        (Net(keeps=True), "keeps batch_stats beside its parameters"),
        (models.MnistCNN(), r"MnistCNN cannot read an input of shape \[1, 5\]"),
        (len, "has no method init"),
    ],
)
def test_a_model_that_cannot_be_trained(tmp_path, model, wrong):
    dataset = data.from_arrays(*arrays())
    with pytest.raises(ValueError, match=wrong):
        run_experiment(Experiment(**SHORT), tmp_path, dataset=dataset, model=model)


def test_tokens_reach_the_model_as_they_are(tmp_path):
    class Words(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            assert tokens.dtype == jnp.int32
            return nn.Dense(2)(nn.Embed(9, 4)(tokens).mean(axis=-2))

    tokens = np.random.default_rng(0).integers(0, 9, (60, 6))
    labels = (tokens.sum(axis=1) > 24).astype(int)
    config = Experiment(**SHORT, num_workers=5)
    _, summary = run_experiment(
        config,
        tmp_path,
        dataset=data.from_arrays(tokens, labels),
        model=Words(),
        progress=False,
    )
    assert 0 < summary["test_accuracy"] < 1
    assert jax.tree.leaves(summary["num_coordinates"]) == [9 * 4 + 4 * 2 + 2]
