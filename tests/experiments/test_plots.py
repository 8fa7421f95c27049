"""Figures show what the records say."""

import json

import numpy as np
import pytest

from signfd_jax.experiments.report import plots


def metric(round, seed, accuracy, weights=(1.0, -2.0)):
    return {
        "round": round,
        "seed": seed,
        "test_accuracy": accuracy,
        "weights": list(weights),
        "byzantine": [1],
    }


METRICS = [metric(1, 0, 0.2), metric(1, 1, 0.4), metric(2, 0, 0.6), metric(2, 1, 1.0)]


def test_accuracy_is_the_mean_over_seeds():
    (axes,) = plots.accuracy_figure({"a": METRICS, "b": METRICS[:2]}).axes
    line = axes.lines[0]
    assert line.get_xdata().tolist() == [1, 2]
    assert line.get_ydata() == pytest.approx([0.3, 0.8])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


def test_weights_of_the_first_seed_liars_dashed():
    (axes,) = plots.weights_figure(METRICS).axes
    honest, liar = axes.lines[:2]
    assert honest.get_ydata().tolist() == [1.0, 1.0]
    assert (honest.get_linestyle(), liar.get_linestyle()) == ("-", "--")


def cell(decoder, num_byzantine, accuracies, split="iid"):
    attack = "gaussian" if num_byzantine else "none"
    return {
        "config": {
            "decoder": decoder,
            "attack": attack,
            "num_byzantine": num_byzantine,
            "split": split,
            "batch_size": 4,
            "wire": "ternary",
            "membership": "fixed",
        },
        "test_accuracy": accuracies,
        "rounds": [1, 2],
        "accuracies": [[0.1, accuracy] for accuracy in accuracies],
    }


def test_heat_map_with_the_worst_curves():
    records = [cell("d", 0, [0.9, 0.8]), cell("d", 2, [0.5, 0.7]), cell("e", 2, [0.95])]
    curves, heat, _ = plots.grid_figure(records).axes
    assert curves.get_title() == "iid, batch 4: 2 gaussian"
    assert curves.lines[0].get_ydata() == pytest.approx([0.1, 0.6])
    assert len(curves.lines) == 2
    image = heat.get_images()[0].get_array().filled(-1)
    np.testing.assert_allclose(image, [[0.85, -1], [0.6, 0.95]])
    assert [text.get_text() for text in heat.texts] == ["0.850", "0.600", "0.950"]


def test_one_heat_map_a_setting():
    records = [cell("d", 0, [0.9]), cell("d", 0, [0.8], split="one_class")]
    *maps, _ = plots.grid_figure(records).axes
    titles = [axes.get_title() for axes in maps]
    assert titles == ["iid, batch 4", "one_class, batch 4"]


def test_draw_tells_a_run_from_a_grid(tmp_path):
    run, grid = tmp_path / "run", tmp_path / "grid"
    for folder, name, records in (
        (run, "metrics.jsonl", METRICS),
        (grid, "cells.jsonl", [cell("d", 2, [0.5])]),
    ):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records))
    assert [p.name for p in plots.draw(run)] == ["accuracy.png", "weights.png"]
    assert [p.name for p in plots.draw(grid)] == ["comparison.png"]
    assert all(p.stat().st_size > 0 for p in tmp_path.glob("*/*.png"))


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        plots.draw(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.draw(tmp_path)
