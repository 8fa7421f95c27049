"""The comparison with other libraries finds differences, and leaves no name out."""

import importlib
import re
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("benchmarks.parity", reason="not a checkout")
command = importlib.import_module("benchmarks.parity.__main__")
imports = importlib.import_module("benchmarks.parity._imports")
compare = importlib.import_module("benchmarks.parity._compare")

PEERS = {peer.name: peer for peer in command.PEERS}


def names_in_the_docs(library):
    """Those attacks and rules of a library that `docs/peers.md` finds here."""
    text = (Path(__file__).parents[1] / "docs/peers.md").read_text()
    section = text.split(f"\n## {library}\n")[1].split("\n## ")[0]
    names = set()
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        kinds = ("attack", "rule", "pre-aggregation")
        if len(cells) == 3 and cells[1] in kinds and "not here" not in cells[2]:
            names |= set(re.findall("`(.*?)`", cells[0]))
    return names


@pytest.mark.parametrize("library", PEERS)
def test_every_name_is_compared_or_has_a_reason(library):
    peer = PEERS[library]
    compared, not_compared = set(peer.pairs), set(peer.not_compared)
    assert not compared & not_compared
    assert all(peer.not_compared.values())
    assert names_in_the_docs(library) <= compared | not_compared


def test_one_wrong_coordinate_is_found():
    right = compare.Pair(lambda numpy, x: numpy.mean(x, 0), lambda x: x.mean(0))
    wrong = right._replace(ours=lambda x: x.mean(0).at[7].add(1))
    assert compare.difference(np, right, draws=2) < 1e-6
    assert compare.difference(np, wrong, draws=2) > 0.1


def test_scattered_rows_tell_definitions_of_krum_apart():
    """With one neighbour more, or another power of distances, others are chosen."""

    def chosen(rows, neighbours, power):
        apart = np.linalg.norm(rows[:, None] - rows[None], axis=2) ** power
        scores = np.sort(apart, axis=1)[:, 1 : neighbours + 1].sum(1)
        return scores.argmin(), set(scores.argsort()[: compare.M - compare.F])

    count = compare.M - compare.F
    draws = [compare.rows_scattered(draw) for draw in range(5)]
    right = [chosen(rows, count - 2, 2) for rows in draws]
    more = [chosen(rows, count - 1, 2) for rows in draws]
    assert {a[0] == b[0] for a, b in zip(right, more, strict=True)} == {True, False}
    assert {a[1] == b[1] for a, b in zip(right, more, strict=True)} == {True, False}
    other = [chosen(rows, count - 1, 1) for rows in draws]
    assert any(a[0] != b[0] for a, b in zip(more, other, strict=True))


def test_infinities_are_compared():
    infinite = lambda numpy, x: numpy.full(x.shape[1], numpy.inf)  # noqa: E731
    same = compare.Pair(infinite, lambda x: jnp.full(x.shape[1], jnp.inf))
    other = compare.Pair(infinite, lambda x: jnp.zeros(x.shape[1]))
    assert compare.difference(np, same, draws=1) == 0
    assert compare.difference(np, other, draws=1) == float("inf")


def test_another_shape_is_refused():
    pair = compare.Pair(lambda numpy, x: x[0], lambda x: x)
    with pytest.raises(ValueError, match="theirs has shape"):
        compare.difference(np, pair, draws=1)


@pytest.mark.parametrize("there", [(), ("blades/blades/adversaries",)])
def test_a_folder_that_lacks_a_library(there, tmp_path, monkeypatch, capsys):
    for folder in there:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").touch()
    said = refused(monkeypatch, capsys, "--clones", str(tmp_path))
    assert str(tmp_path / ("fedlib" if there else "blades")) in said
    assert "--help" in said


def test_no_draws(monkeypatch, capsys):
    assert "--draws is 0" in refused(monkeypatch, capsys, "--draws", "0")


def refused(monkeypatch, capsys, *arguments):
    """The one line that the command says before it leaves."""
    monkeypatch.setattr(sys, "argv", ["parity", *arguments])
    with pytest.raises(SystemExit) as stop:
        command.main()
    printed = capsys.readouterr()
    assert (stop.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    return printed.err


@pytest.fixture
def modules():
    """Forgets the modules that a test imports."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_what_a_file_does_not_need_is_replaced(tmp_path, modules):
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/__init__.py").write_text("raise RuntimeError('a server')")
    (tmp_path / "rules/largest.py").write_text(
        "from absent.servers import Server, override\n"
        "largest = max\n"
        "class Largest(Server):\n"
        "    @override(Server)\n"
        "    def __call__(self, rows):\n"
        "        return largest(rows)\n"
    )
    imports.stand_in("absent")
    imports.stand_in("absent.servers")
    imports.package("rules", tmp_path / "rules")
    file = importlib.import_module("rules.largest")
    assert file.Largest(number=3)([1, 2]) == 2
    with imports.replaced(file, largest=min):
        assert file.Largest()([1, 2]) == 1
    assert file.Largest()([1, 2]) == 2


def test_a_package_that_is_not_installed():
    with pytest.raises(imports.MissingLibrary, match="pip install no-such-package"):
        imports.needed("json", "no-such-package")
    with pytest.raises(imports.MissingLibrary, match="do this"):
        imports.installed("absent", "absent_module", "do this")
