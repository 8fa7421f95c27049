"""Names of other libraries: each stands for one of ours, and the page says which."""

import json
import re
from pathlib import Path

import pytest

from signfd_jax import aggregators, attacks, data, decoders
from signfd_jax.cli import main
from signfd_jax.experiments import Experiment, _aliases, from_json, registry, to_json
from signfd_jax.experiments.grid import Grid, cells

PAGE = Path(__file__).parents[2] / "docs" / "peers.md"
# What other parts of the library bring; the page has their names already.
OURS = {name for table in registry.REGISTRIES.values() for name in table}
OURS |= {*data.DATASETS, *aggregators.PREAGGREGATIONS}
OURS |= {*attacks.__all__, *decoders.__all__}
KINDS = {"rule": "decoder", "data": "dataset"}


def rows():
    """Library, their names, field and the cell of ours, of each row of the tables."""
    library = ""
    for line in PAGE.read_text().splitlines():
        library = line.removeprefix("## ") if line.startswith("## ") else library
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if library and len(cells) == 3 and cells[0] not in ("theirs", "---"):
            theirs, kind, ours = cells
            yield library, re.findall(r"`(.+?)`", theirs), KINDS.get(kind, kind), ours


def test_each_of_our_names_on_the_page_exists():
    found = list(rows())
    assert len(found) > 150
    named = {
        name.split(":")[0]
        for *_, ours in found
        if not ours.startswith("not here")
        for name in re.findall(r"`([^`]+)`", ours)
        if not name.startswith(("--", "scale_weights"))
    }
    assert len(named) > 40
    assert named <= OURS, sorted(named - OURS)
    assert all(re.search(r"`|not here", ours) for *_, ours in found)


@pytest.mark.parametrize("library", _aliases._BY_PEER)
def test_the_page_has_each_alias_as_it_is(library):
    table = {
        (field, name): re.findall(r"`([^`]+)`", ours)[0]
        for of, names, field, ours in rows()
        if of == library
        for name in names
        if not ours.startswith("not here")
    }
    for field, names in _aliases._BY_PEER[library].items():
        for name, target in names.items():
            assert table.pop((field, name)) == target, name
    # The others are called the same here, are no names of a command, or mean another.
    for (field, name), ours in table.items():
        other = _aliases.ALIASES.get(field, {}).get(name)
        assert name == ours or other != ours or field == "pre-aggregation", name


def test_an_alias_has_one_meaning_and_is_no_name_of_ours():
    for field, names in _aliases.ALIASES.items():
        for name, target in names.items():
            known = registry.REGISTRIES.get(field, data.DATASETS)
            assert name not in known
            assert target.split(":")[0] in known
            meanings = {
                fields[field][name]
                for fields in _aliases._BY_PEER.values()
                if name in fields.get(field, {})
            }
            assert meanings == {target}


def test_what_is_stored_has_our_name():
    theirs = Experiment(
        dataset="MNIST",
        model="logreg_mnist",
        split="dirichlet_niid:0.3",
        decoder="TrMean:num_byzantine=2,scale=30",
        attack="Inf",
    )
    ours = Experiment(
        dataset="mnist",
        model="softmax_regression",
        split="dirichlet:0.3",
        decoder="trimmed_mean:num_byzantine=2,scale=30",
        attack="non_finite:inf",
    )
    assert theirs == ours
    fields = json.loads(to_json(Experiment())) | {"attack": "IPM:epsilon=3"}
    assert from_json(Experiment, json.dumps(fields)).attack == "ipm:epsilon=3"


def test_a_grid_takes_aliases():
    ours, theirs = (
        Grid(Experiment(), decoders=d, attacks=a, splits=s, num_byzantine=(3,))
        for d, a, s in [
            (("krum", "mean"), ("none", "ipm"), ("iid",)),
            (("Krum", "Average"), ("NoAttack", "ipm"), ("IIDPartitioner",)),
        ]
    )
    assert theirs == ours and len(cells(theirs)) == 4


def test_what_another_package_calls_so_is_that(monkeypatch):
    monkeypatch.setitem(registry.SERVERS, "Krum", registry.SERVERS["mean"])
    assert Experiment(decoder="Krum").decoder == "Krum"
    monkeypatch.delitem(registry.ATTACKS, "fang")
    assert Experiment(attack="FangAttack").attack == "FangAttack"
    assert "FangAttack" not in dict(_aliases.listed())


def test_the_command_lists_and_takes_them(capsys, tmp_path):
    assert main(["list", "aliases"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    about = {name: text for _, name, _, _, text in lines}
    assert about["MoNNA"] == "The decoder monna, as ByzFL and ByzPy call it."
    assert about["TrMean"] == "The decoder trimmed_mean, as ByzFL calls it."
    assert main(["run", "--decoder", "TrMen", "--output-dir", str(tmp_path)]) == 2
    assert "unknown decoder 'TrMen'" in capsys.readouterr().err
