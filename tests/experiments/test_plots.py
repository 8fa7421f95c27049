"""Figures show what the records say."""

import json

import numpy as np
import pytest

from signfd_jax.cli import main
from signfd_jax.experiments import registry
from signfd_jax.experiments.report import _style, plots


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
    assert curves.get_title() == "2 lie: gaussian"
    assert curves.lines[0].get_ydata() == pytest.approx([0.1, 0.6])
    assert len(curves.lines) == 2
    image = heat.get_images()[0].get_array().filled(-1)
    np.testing.assert_allclose(image, [[0.85, -1], [0.6, 0.95]])
    assert [text.get_text() for text in heat.texts] == ["0.850", "0.600", "0.950"]


def test_one_heat_map_a_setting():
    records = [cell("d", 0, [0.9]), cell("d", 0, [0.8], split="one_class")]
    *maps, _ = plots.grid_figure(records).axes
    titles = [axes.get_title() for axes in maps]
    assert titles == ["i.i.d., batch 4", "one class, batch 4"]


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


def test_a_name_has_its_line_whoever_else_is_drawn():
    names = list(registry.SERVERS)
    together = _style.styles(names)
    own = ["correlation_defense", "federated_defense", "majority_vote"]
    for name in own:
        assert _style.styles([name])[name] == together[name]
        assert _style.styles(["other", name])[name] == together[name]
    lines = [(style["color"], str(style["linestyle"])) for style in together.values()]
    assert len(set(lines)) == len(names)


def test_more_labels_than_lines_share_some():
    drawn = _style.styles([f"run {number}" for number in range(50)])
    assert len(drawn) == 50
    lines = {(style["color"], str(style["linestyle"])) for style in drawn.values()}
    assert len(lines) == len(_style._OTHERS)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("federated_defense", "federated defense"),
        ("krum:scale=0.1", "Krum, scale 0.1"),
        ("federated_defense:initial_rounds=10,anchor=true", None),
    ],
)
def test_names_are_those_that_people_use(choice, said):
    spoken = _style.spoken(choice)
    assert said is None or spoken == said
    assert "_" not in spoken and "=" not in spoken


def test_attackers_in_words():
    assert _style.attackers("none") == "nobody lies"
    assert _style.attackers("7 alie, drawn_each_round") == (
        "7 lie: ALIE, drawn each round"
    )


def written(folder, config="{}", records=METRICS):
    folder.mkdir()
    (folder / "config.json").write_text(config)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text)
    return str(folder)


def test_plot_as_asked(tmp_path, capsys):
    one = written(tmp_path / "one", '{"decoder": "federated_defense"}')
    two = written(tmp_path / "two")
    look = "--format svg --title Mine --labels first second --size 5 3".split()
    assert main(["plot", one, two, *look]) == 0
    names = [line.rpartition("/")[2] for line in capsys.readouterr().out.split()]
    assert names == [*["accuracy.svg", "weights.svg"] * 2, "accuracies.svg"]
    text = (tmp_path / "accuracies.svg").read_text()
    assert ">Mine<" in text and ">first<" in text and ">second<" in text
    assert 'width="360pt" height="216pt"' in text
    assert "(nats)" in (tmp_path / "one" / "weights.svg").read_text()
    assert "(votes)" in (tmp_path / "two" / "weights.svg").read_text()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--format gif", "--format"),
        ("--labels a b", "there are 2 labels, but 1 runs"),
        ("--size 5 0", "size must be a width and a height"),
    ],
)
def test_plot_refuses_in_one_line(flags, says, tmp_path, capsys):
    assert main(["plot", written(tmp_path / "one"), *flags.split()]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        plots.draw(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.draw(tmp_path)
