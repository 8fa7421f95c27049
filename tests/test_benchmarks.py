"""The benchmarks run at tiny sizes, and none of them times a wrong answer."""

import json

import jax.numpy as jnp
import pytest

measure = pytest.importorskip("benchmarks.measure", reason="not a checkout")


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
    assert "".join(order) == "AB" + "AB" + "BA" + "AB"  # once to warm up, then turns
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
    assert measure.copy_pass(numbers)().tolist() == (numbers + 1).tolist()
    assert measure.matrix_rate(64, seconds=0.01) > 0
    assert measure.peak_memory() > 2**20


def test_population_benchmark(tmp_path):
    population = pytest.importorskip("benchmarks.population")
    path = tmp_path / "cpu.json"
    options = population.Options(tally="20x100", json=path)
    population.check_chunks()
    assert population.measure_tally(options.tally)["tally"]["repeats"] >= 3
    found = population.measure_one(200, 12, "population_defense", rounds=2)
    assert found["num_coordinates"] == 130 and found["packed_bytes"] == 6500
    assert found["workers_told_apart"] > 0.9
    assert population.exponent([1, 10, 100], [2.0, 20.0, 200.0]) == pytest.approx(1)
