"""The benchmarks run at tiny sizes, and none of them times a wrong answer."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signfd_jax as sfd
from signfd_jax.decoders import released_code

pytestmark = pytest.mark.slow

measure = pytest.importorskip("benchmarks.measure", reason="not a checkout")
decode, round, table = (
    importlib.import_module(f"benchmarks.{name}")
    for name in ("decode", "round", "table")
)


@pytest.mark.parametrize("wrong", [[1.0, 2.5], [1.0, jnp.nan], [1.0, 2.0, 3.0]])
def test_a_wrong_answer_is_refused(wrong):
    right = {"a": jnp.array([1.0, 2.0])}
    measure.check_equal("right", right, right)
    with pytest.raises(measure.WrongAnswer, match="wrong one: "):
        measure.check_equal("wrong one", {"a": jnp.array(wrong)}, right)


def test_tolerance_is_relative_to_the_largest_number():
    found, expected = jnp.array([100.0, 1.5]), jnp.array([100.0, 1.0])
    measure.check_equal("near", found, expected, tolerance=0.006)
    with pytest.raises(measure.WrongAnswer, match="1 of 2 numbers"):
        measure.check_equal("far", found, expected, tolerance=0.004)


def test_competitors_take_turns():
    order = []
    times = measure.interleaved(
        {name: lambda name=name: order.append(name) for name in "AB"}, most=3
    )
    # Once to warm up, then turns; as they are brief, with a call before that is timed.
    assert "".join(order) == "AB" + "AB" + "BBAA" + "AABB"
    assert {name: len(time.samples) for name, time in times.items()} == {"A": 3, "B": 3}


def test_ratios_are_paired():
    slow, fast = measure.Timing((2.0, 30.0, 4.0)), measure.Timing((1.0, 10.0, 2.0))
    assert measure.ratio(slow, fast)["median"] == 2.0


def test_sections_of_a_file_are_kept(tmp_path):
    path = tmp_path / "results" / "cpu.json"
    measure.write_section(path, "round", {"x": 1})
    measure.write_section(path, "decode", {"x": 2})
    measure.write_section(path, "round", {"x": 3})
    sections = json.loads(path.read_text())
    assert {name: section["x"] for name, section in sections.items()} == {
        "decode": 2,
        "round": 3,
    }
    assert {"device", "versions", "commit"} <= sections["round"]["environment"].keys()


def test_what_the_machine_can_do():
    numbers = jnp.arange(5.0)
    assert measure.read_pass(numbers)() == numbers.sum()
    assert measure.copy_pass(numbers)().tolist() == (numbers + 1).tolist()
    in_place = measure.copy_in_place(numbers)
    assert [in_place()[0], in_place()[0], numbers[0]] == [1, 2, 0]
    assert measure.matrix_rate(64, seconds=0.01) > 0
    assert measure.peak_memory() > 2**20


@pytest.fixture
def known_rate(monkeypatch):
    """Spares the seconds that it takes to measure."""
    monkeypatch.setattr(measure, "matrix_rate", lambda: 1e11)


def test_decoding_is_measured_and_tabulated(tmp_path, known_rate):
    path = tmp_path / "cpu.json"
    decoders = ("majority_vote", "federated_defense")
    options = decode.Options(
        sizes=("5x3000",), decoders=decoders, seconds=0.1, peers=False, json=path
    )
    decode.main(options)
    section = json.loads(path.read_text())["decode"]
    results = section["sizes"][0]["results"]
    assert {"copy", *decoders} <= results.keys()
    assert all(result["repeats"] >= 3 for result in results.values())
    lines = table.table({"decode": section}).splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    names = ("one read and write of the gradients, in place", *decoders)
    for name in (*names, "majority_vote, packed"):
        assert sum(line.startswith(f"| {name} |") for line in lines) == 1


def test_what_needs_too_much_memory_is_left_out(known_rate):
    options = decode.Options(
        sizes=("5x3000",), decoders=("majority_vote",), memory_gib=1e-6, peers=False
    )
    size = decode.main(options)["sizes"][0]
    assert size["results"].keys() == {"read", "copy", "copy in place"}
    assert "GiB" in size["left_out"]["majority_vote"]


def test_a_wrong_decoder_is_not_timed(monkeypatch):
    """One that turns the signs of a single coordinate."""
    right = sfd.federated_defense(initial_rounds=100)

    def wrong(state, votes):
        decoded, state, info = right.decode(state, votes)
        return decoded.at[7].multiply(-1), state, info

    monkeypatch.setitem(
        decode.DECODERS, "federated_defense", lambda: right._replace(decode=wrong)
    )
    gradients = decode.gradients_of(5, 500)
    with pytest.raises(measure.WrongAnswer, match="1 of 500 numbers"):
        decode.from_gradients("federated_defense", gradients)


def test_a_decoder_that_counts_wrongly_is_not_timed(monkeypatch):
    right = sfd.federated_defense(initial_rounds=100)

    def wrong(state, votes):
        decoded, new, info = right.decode(state, votes)
        return decoded, new._replace(fd_counters=state.fd_counters), info

    monkeypatch.setitem(
        decode.DECODERS, "federated_defense", lambda: right._replace(decode=wrong)
    )
    gradients = decode.gradients_of(5, 500)
    with pytest.raises(measure.WrongAnswer):
        decode.from_gradients("federated_defense", gradients)


def test_rounds_are_measured_and_tabulated(tmp_path, known_rate):
    path = tmp_path / "cpu.json"
    options = round.Options(
        workloads=("mnist_mlp/3x2",),
        decoders=("majority_vote",),
        seconds=0.1,
        peers=False,
        json=path,
    )
    round.main(options)
    section = json.loads(path.read_text())["round"]
    workload = section["workloads"][0]
    assert workload["gradient_operations"] == (6 * 101_632 - 2 * 100_352) * 3 * 2
    assert workload["results"]["majority_vote"]["repeats"] >= 3
    text = table.table({"round": section})
    assert "| majority_vote |" in text
    assert "| majority_vote, 10 rounds a call |" in text


def test_a_wrong_loss_is_not_timed():
    batch = round.batches("mnist_mlp", 3, 2)
    entry = round.Entry("majority_vote", rounds=3)
    run, loss, _ = round.simulated("mnist_mlp", entry, batch, 1)
    assert run().loss.shape == (3,)
    round.check_losses("mnist_mlp", {"majority_vote": loss}, batch, 2)
    with pytest.raises(measure.WrongAnswer, match="majority_vote"):
        round.check_losses("mnist_mlp", {"majority_vote": 1.01 * loss}, batch, 2)


@pytest.fixture
def pytorch():
    pytest.importorskip("torch", reason="the extra `bench` is not installed")
    return importlib.import_module("benchmarks.pytorch")


def test_pytorch_decodes_as_the_reference(pytorch):
    """Both phases; the shares are sixteenths or nearly, so that nothing nearly ties."""
    torch = importlib.import_module("torch")
    decoder = released_code(initial_rounds=3)
    state = decoder.init(5, jnp.zeros(400))
    released = pytorch.ReleasedDefense((400,), 5, 3)
    for key in jax.random.split(jax.random.key(0), 6):
        gradients = jax.random.normal(key, (5, 400)) + jnp.linspace(-1, 2, 5)[:, None]
        decoded, state, _ = decoder.decode(state, sfd.votes(gradients))
        theirs = released.decode(torch.from_numpy(np.array(gradients.T)))
        assert (np.asarray(theirs) == np.asarray(decoded)).mean() > 0.99


@pytest.mark.parametrize("network", ["mnist_mlp", "mnist_cnn", "cifar_resnet20"])
def test_pytorch_has_the_same_gradients(pytorch, network):
    assert len(round.looped(network, round.batches(network, 2, 3), 0)) == 2


def test_population_benchmark():
    population = pytest.importorskip("benchmarks.population")
    assert population.measure_tally("20x100")["tally"]["repeats"] >= 3
    found = population.measure_one(200, 12, "correlation_defense", rounds=8, chunk=100)
    assert found["num_coordinates"] == 130 and found["packed_bytes"] == 6500
    assert found["workers_told_apart"] > 0.9
    section = {"environment": measure.environment(), "rounds": [found]}
    assert "| M = 200, N = 130, corr" in table.table({"population": section})
    assert population.exponent([1, 10, 100], [2.0, 20.0, 200.0]) == pytest.approx(1)


def test_trusted_benchmark(tmp_path):
    trusted = importlib.import_module("benchmarks.trusted")
    path = tmp_path / "trusted.json"
    options = trusted.Options(
        json=path,
        seeds=1,
        rounds=2,
        roots=(100,),
        attacks=("none", "label flip", "random collusion"),
        liars=(14,),
    )
    trusted.run(options)
    before = path.stat().st_mtime_ns
    trusted.run(options)  # nothing is run again
    assert path.stat().st_mtime_ns == before
    rows = [line for line in trusted.report(options).splitlines() if "| 14 |" in line]
    assert len(rows) == 2
    # Where all but the root lie, the honest alone are the root alone.
    for line in rows:
        *_, ceiling, alone, _ = (cell.strip() for cell in line.split("|"))
        assert ceiling == alone != ""


def test_the_root_row_is_the_gradient_of_all_its_examples():
    trusted = importlib.import_module("benchmarks.trusted")
    server = sfd.scale_by_sign_decoder(3, sfd.majority_vote())
    tx = trusted.with_root(server, lambda x, batch: jnp.sum(x * batch), jnp.ones(2))
    rows = jnp.array([[1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]])
    updates, _ = tx.update(rows, tx.init(jnp.zeros(2)), jnp.zeros(2))
    assert updates.tolist() == [1.0, -1.0]


def test_unequal_benchmark(tmp_path):
    unequal = importlib.import_module("benchmarks.unequal")
    options = unequal.Options(
        json=tmp_path / "unequal.json",
        seeds=1,
        rounds=2,
        attacks=("none", "scaling by -1000"),
        splits=("unlike",),
    )
    unequal.run(options)
    assert unequal.report(options).count("| unlike |") == 2


@pytest.mark.parametrize("split", ["i.i.d.", "unlike"])
def test_unequal_sites_share_all_examples(split):
    unequal = importlib.import_module("benchmarks.unequal")
    parts = unequal.sites(np.arange(1442) % 10, split)
    held = [row[:size] for row, size in zip(parts.indices, parts.sizes, strict=True)]
    assert np.array_equal(np.sort(np.concatenate(held)), np.arange(1442))
    assert parts.sizes[unequal.LARGEST] / 1442 == pytest.approx(0.517, abs=1e-3)
    assert parts.sizes[unequal.SMALLEST] / 1442 == pytest.approx(0.006, abs=1e-3)


def test_influence_is_the_share_of_signs_that_a_site_changes():
    unequal = importlib.import_module("benchmarks.unequal")
    tx = unequal.influence(sfd.scale_by_sign_decoder(3, sfd.majority_vote()), site=0)
    rows = jnp.array([[1.0, 1.0], [1.0, 1.0], [1.0, -1.0]])  # one tie without it
    _, state = tx.update(rows, tx.init(jnp.zeros(2)), jnp.zeros(2))
    assert state.changed == 0.5
