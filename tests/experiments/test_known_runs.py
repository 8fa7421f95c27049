"""Trusted workers, stakes and shares in an experiment."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from choices import slow_but

import signfd_jax as sfd
from signfd_jax import data, models
from signfd_jax.attacks import drawn_each_round, sampled
from signfd_jax.cli import main
from signfd_jax.data import batches
from signfd_jax.experiments import Experiment, fingerprint, from_json, to_json
from signfd_jax.experiments._engine import known
from signfd_jax.experiments._engine.prepare import (
    byzantine_mask,
    check,
    prepare,
    split_examples,
)
from signfd_jax.experiments._engine.program_sharded import prepare_sharded
from signfd_jax.experiments._storage.params import digest
from signfd_jax.experiments.grid import Grid, _splits, cells, run_grid
from signfd_jax.experiments.report._tables import pivot

CONFIG = Experiment(
    name="known",
    model="softmax_regression",
    num_workers=8,
    num_byzantine=5,
    batch_size=8,
    rounds=6,
    eval_every=3,
)
UNEQUAL = (3.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 0.5)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def vary(**fields):
    return dataclasses.replace(CONFIG, **fields)


def trained(prepared):
    state, rounds = prepared.start(), 0
    while rounds < prepared.rounds:
        state, rounds, _ = prepared.advance(state, rounds)
    return state


def test_old_configurations_keep_their_fingerprints():
    """As they were before there were these fields."""
    assert fingerprint(Experiment()) == "c67daa02"
    ids = Experiment(worker="local_steps:2", byzantine_ids=(1, 2))
    assert fingerprint(ids) == "d0dea2a1"


@pytest.mark.parametrize(
    "fields",
    [
        {"stakes": UNEQUAL},
        {"stakes": (3, 1, 1, 2, 1, 1, 1, 0.5)},
        {"shares": UNEQUAL},
        {"shares": "examples"},
        {"stakes": "examples"},
        {"trusted": 2, "root_examples": 9},
        {"trusted": 1, "shares": "examples", "withheld": ("shares", "trusted")},
        {"stop_below": "0.50:3"},
    ],
)
@pytest.mark.usefixtures("without_beartype")  # who is not strict may write 3
def test_json_gives_them_back(fields):
    config = vary(**fields)
    again = from_json(Experiment, to_json(config))
    assert again == config
    assert fingerprint(again) == fingerprint(config) != fingerprint(CONFIG)


@pytest.mark.usefixtures("without_beartype")
def test_numbers_that_are_equal_are_the_same_run():
    whole = vary(stakes=(3, 1, 1, 2, 1, 1, 1, 0.5))
    assert fingerprint(whole) == fingerprint(vary(stakes=UNEQUAL))
    assert vary(stop_below="0.50:3") == vary(stop_below="0.5:03")
    both = {"trusted": 1, "stakes": UNEQUAL}
    one, other = ("trusted", "stakes"), ("stakes", "trusted")
    assert vary(**both, withheld=one) == vary(**both, withheld=other)


@pytest.mark.parametrize("trusted", [1, 3])
def test_the_trusted_never_lie(trusted):
    for seed in range(20):
        mask = byzantine_mask(vary(trusted=trusted), seed)
        assert mask.sum() == 5
        assert not mask[-trusted:].any()
        # As long as none of them was drawn, the others are those of before.
        usual = byzantine_mask(CONFIG, seed)
        if not usual[-trusted:].any():
            np.testing.assert_array_equal(mask, usual)


@pytest.mark.parametrize("membership", [drawn_each_round(), sampled(0.4)])
def test_the_trusted_are_here_and_honest_in_every_round(membership):
    byzantine = jnp.arange(8) < 5
    of_others = known.spared(membership, 2)
    for seed in range(10):
        lying, present = of_others(jax.random.key(seed), byzantine, 3)
        own, here = membership(jax.random.key(seed), byzantine[:-2], 3)
        assert lying.tolist() == [*own.tolist(), False, False]
        if here is not None:
            assert present.tolist() == [*here.tolist(), True, True]
    assert known.spared(membership, 0) is membership
    assert known.spared(None, 2) is None


def test_root_examples_are_drawn_by_the_partition_seed(digits):
    config = vary(trusted=2, root_examples=500)
    split = split_examples(config, digits)
    others = split_examples(vary(num_workers=6), digits)
    assert split.sizes.tolist() == [*others.sizes.tolist(), 500, 500]
    width = others.indices.shape[1]
    np.testing.assert_array_equal(split.indices[:6, :width], others.indices)
    for row in split.indices[6:]:
        assert len(set(row[:500].tolist())) == 500
        # Drawn at random: about as many of each class as there are.
        counts = np.bincount(np.asarray(digits.train_labels)[row[:500]], minlength=10)
        assert (np.abs(counts - 50) < 35).all()  # five standard deviations
    assert (split.indices[6] != split.indices[7]).any()
    np.testing.assert_array_equal(split.indices, split_examples(config, digits).indices)
    other = split_examples(dataclasses.replace(config, partition_seed=1), digits)
    assert (split.indices[6] != other.indices[6]).any()


def test_more_root_examples_than_there_are(digits):
    with pytest.raises(ValueError, match="root_examples is 10000, but there are"):
        split_examples(vary(trusted=1, root_examples=10_000), digits)


def test_without_root_examples_the_trusted_have_their_share(digits):
    split, usual = (split_examples(c, digits) for c in (vary(trusted=2), CONFIG))
    np.testing.assert_array_equal(split.indices, usual.indices)


@pytest.mark.parametrize(
    ("own", "num_batches", "sizes"),
    [
        (0, 1, 8),
        (5, 1, [8] * 7 + [5]),
        (100, 1, [8] * 7 + [100]),
        (500, 1, [8] * 7 + [128]),
        (500, 5, 40),
    ],
)
def test_batches_of_the_trusted(own, num_batches, sizes):
    config = vary(trusted=1, root_examples=own)
    assert known.batch_sizes(config, num_batches) == sizes


def test_grids_tell_such_splits_apart(digits):
    cells = [CONFIG, vary(trusted=1), vary(trusted=1, root_examples=20)]
    assert len(_splits(cells, {"digits": digits})) == 2


KNOWN = [
    {"trusted": 1},
    {"trusted": 2, "root_examples": 20},
    {"stakes": UNEQUAL},
    {"shares": UNEQUAL, "trusted": 1},
    {"shares": "examples", "split": "dirichlet:0.3"},
    {"stakes": "examples", "split": "dirichlet:0.3"},
    {"trusted": 2, "root_examples": 20, "withheld": ("trusted",)},
    {"trusted": 1, "shares": UNEQUAL, "withheld": ("shares",)},
]


@pytest.mark.parametrize("fields", slow_but(KNOWN[:1], KNOWN))
def test_an_experiment_is_the_simulation_with_what_is_known(fields, digits):
    config = vary(**fields)
    split = split_examples(config, digits)
    model = models.SoftmaxRegression(10)
    simulated = sfd.simulation(
        models.loss_fn(model),
        sfd.sign_sgd(config.learning_rate, num_workers=8),
        num_workers=8,
        attack=sfd.attacks.sign_inversion(),
    )
    model_key, run_key = jax.random.split(jax.random.key(0))
    params = model.init(model_key, jnp.zeros((1, 8, 8, 1)))
    sizes = [8] * 6 + [20, 20] if config.root_examples else 8
    draw = batches.worker_batches(digits, split, sizes)
    given = {"trusted": jnp.arange(8) >= 8 - config.trusted} if config.trusted else {}
    for name in ("stakes", "shares"):
        if value := getattr(config, name):
            values = split.sizes if value == "examples" else UNEQUAL
            given[name] = jnp.array(values, jnp.float32)
    given = {name: v for name, v in given.items() if name not in config.withheld}
    state = simulated.init(run_key, params, byzantine_mask(config, 0))
    state, _ = sfd.run(simulated, state, draw, 6, **given)
    ours = trained(prepare(config, digits, split))
    weights = lambda s: sfd.verdicts(s.opt_state)._replace(kind=0)  # noqa: E731
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one[0], other, atol=1e-5),
        ours.params,
        state.params,
    )
    first = jax.tree.map(lambda leaf: leaf[0], ours.opt_state)
    np.testing.assert_allclose(
        weights(ours._replace(opt_state=first)).correlation,
        weights(state).correlation,
        atol=1e-3,
    )


@pytest.mark.parametrize("fields", [KNOWN[1], KNOWN[3]])
@pytest.mark.slow
def test_in_chunks_is_all_at_once(fields, digits):
    whole, chunked = (
        trained(prepare(vary(**fields, worker_chunk=chunk), digits)) for chunk in (0, 4)
    )
    assert digest(whole.params) == digest(chunked.params)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"trusted": 2, "root_examples": 20},
        {"trusted": 2, "root_examples": 20, "withheld": ("trusted",)},
        {"trusted": 2, "membership": "drawn_each_round", "shares": UNEQUAL},
        {
            "trusted": 1,
            "stop_below": "0.5:2",
            "shares": UNEQUAL,
            "withheld": ("shares",),
        },
        {"stakes": UNEQUAL, "stop_below": "0.9:2", "optimizer": "sgd:momentum=0.9"},
        {"stakes": "examples", "shares": "examples", "split": "dirichlet:0.3"},
    ],
)
def test_devices_train_as_one_process_does(fields, digits):
    config = vary(wire="one_bit", **fields)
    one, many = (
        trained(prepare(config, digits)),
        trained(prepare_sharded(config, digits)),
    )
    assert digest(many.params) == digest(one.params)
    assert digest(many.opt_state[1:]) == digest(one.opt_state[1:])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"trusted": 8}, r"trusted must lie in \[0, 8\)"),
        ({"trusted": -1}, r"trusted must lie in"),
        ({"trusted": 4}, "num_byzantine must be at most 4, the workers that are not"),
        (
            {"trusted": 2, "byzantine_ids": (0, 6)},
            "byzantine_ids names 6, but the last",
        ),
        ({"root_examples": 5}, "root_examples must be 0, or a number of examples with"),
        ({"root_examples": -1, "trusted": 1}, "root_examples must be 0, or"),
        ({"stakes": (1.0,) * 7}, "stakes must have a number for each of the 8 workers"),
        ({"shares": (1.0,) * 7 + (-1.0,)}, "shares must be finite and not negative"),
        ({"stakes": (float("nan"),) * 8}, "stakes must be finite and not negative"),
        (
            {"shares": "sizes"},
            "one number for each worker, or examples, but is 'sizes'",
        ),
        (
            {"trusted": 1, "decoder": "majority_vote"},
            "majority_vote cannot use trusted",
        ),
        (
            {"shares": "examples", "decoder": "krum"},
            "krum cannot use shares; leave out",
        ),
        ({"trusted": 1, "worker": "dct_top_k"}, "the server of dct_top_k cannot use"),
        ({"withheld": ("trusted",)}, r"withheld must name some .* \(nothing\), but is"),
        (
            {"trusted": 1, "withheld": ("trusted", "votes")},
            r"of trusted, stakes and shares \(trusted\), but is trusted, votes",
        ),
        (
            {"trusted": 1, "stakes": UNEQUAL, "withheld": ("stakes",)}
            | {"decoder": "majority_vote"},
            "majority_vote cannot use trusted; leave out --trusted, or",
        ),
        ({"stop_below": "0.5"}, "stop_below must be confidence:rounds"),
        ({"stop_below": "2:5"}, "stop_below must be confidence:rounds"),
        ({"stop_below": "0.5:0"}, "stop_below must be confidence:rounds"),
        (
            {"stop_below": "0.5:5", "decoder": "majority_vote"},
            "majority_vote does not say how sure it is; leave out --stop-below",
        ),
        (
            {"stop_below": "0.5:5", "decoder": "krum"},
            "krum does not say how sure it is",
        ),
    ],
)
def test_what_means_nothing_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        check(vary(**fields))


@pytest.mark.slow
def test_stakes_and_shares_of_a_majority_vote(digits):
    """It can use them: with one vote that weighs, the others do not count."""
    only = tuple(float(m in (2, 3, 4)) for m in range(8))
    config = vary(decoder="majority_vote", num_byzantine=0)
    with_stakes = dataclasses.replace(config, stakes=only)
    with_shares = dataclasses.replace(config, shares=only)
    one, other = (trained(prepare(c, digits)) for c in (with_stakes, with_shares))
    assert digest(one.params) == digest(other.params)
    assert digest(one.params) != digest(trained(prepare(config, digits)).params)


# Compared -----------------------------------------------------------------------------


COMPARED = Grid(
    vary(trusted=1, root_examples=20, shares="examples"),
    decoders=("correlation_defense", "majority_vote", "krum:scale=30", "fltrust"),
    num_byzantine=(5,),
    batch_sizes=(8,),
)


def test_a_compared_decoder_is_told_what_it_can_use():
    found = {cell.decoder: cell for cell in cells(COMPARED)}
    assert {name: cell.withheld for name, cell in found.items()} == {
        "correlation_defense": (),
        "majority_vote": ("trusted",),
        "krum:scale=30": ("trusted", "shares"),
        "fltrust": ("shares",),
    }
    for cell in found.values():  # but for that, all cells are alike
        one = dataclasses.replace(cell, decoder="majority_vote", withheld=())
        other = dataclasses.replace(found["majority_vote"], withheld=())
        assert one == other


def test_what_the_base_withholds_is_withheld_from_all():
    base = dataclasses.replace(COMPARED.base, withheld=("shares",))
    found = cells(dataclasses.replace(COMPARED, base=base))
    both = ("trusted", "shares")
    withheld = [("shares",), both, both, ("shares",)]
    assert [cell.withheld for cell in found] == withheld


@pytest.mark.slow
def test_a_table_has_a_row_for_the_told_and_the_untold(tmp_path):
    every = cells(COMPARED)
    records = run_grid(every, tmp_path, progress=False)
    assert pivot(records).settings == ["iid, batch 8"]
    assert len(pivot(records).accuracies) == len(every)
    # The same decoder in both ways: neither hides the other.
    untold = dataclasses.replace(every[0], withheld=("trusted",))
    records = run_grid([*every, untold], tmp_path, progress=False)
    assert len(pivot(records).accuracies) == len(every) + 1


COMPARE = """compare --num-byzantine 10 --seeds 1 --rounds 1 --quiet
    --output-dir""".split()


@pytest.mark.parametrize(
    ("flags", "notes"),
    [
        (
            "--decoders fltrust_sign majority_vote --trusted 1 --root-examples 9",
            ["majority_vote: does not use --trusted"],
        ),
        (
            "--decoders majority_vote krum --trusted 2 --stakes" + 15 * " 1",
            [
                "krum: real numbers, 300 times the learning rate",
                "majority_vote: does not use --trusted",
                "krum: does not use --trusted and --stakes",
            ],
        ),
    ],
)
@pytest.mark.slow
def test_compare_says_who_is_not_told(flags, notes, tmp_path, capsys):
    assert main([*COMPARE, str(tmp_path), *flags.split()]) == 0
    out, err = capsys.readouterr()
    table, _, rest = out.partition("\n\n")
    assert rest.splitlines()[:-1] == notes
    assert len(table.splitlines()) == 4  # one row, and the worst case
    (written,) = tmp_path.glob("*/table.md")
    assert written.read_text() == "\n".join([table, "", *notes, ""])
    # A majority of liars is no surprise where somebody is told whom to trust.
    assert ("warning: 10 of 15" in err) == ("fltrust_sign" not in flags)


def test_notes_do_not_mix_with_a_table_for_programs(tmp_path, capsys):
    flags = "--decoders krum --shares examples --format csv".split()
    assert main([*COMPARE, str(tmp_path), *flags]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("data,Byzantine workers,krum,") and "shares" not in out
    assert "signfd: krum: does not use --shares\n" in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--stakes 1 2", "stakes must have a number for each of the 15 workers"),
        ("--shares some", "one number for each worker, or examples, but is 'some'"),
        ("--trusted 15", "trusted must lie in [0, 15)"),
        ("--trusted 6", "num_byzantine must be at most 9, the workers that are not"),
        ("--root-examples 9", "root_examples must be 0, or a number of examples with"),
        ("--decoders majority_vote zeno", "zeno needs trusted; add --trusted"),
    ],
)
def test_compare_refuses_in_one_line(flags, says, tmp_path, capsys):
    assert main([*COMPARE, str(tmp_path), *flags.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("signfd: ") and says in err
    assert list(tmp_path.iterdir()) == []


# On the command line ------------------------------------------------------------------


RUN = """run --model softmax_regression --num-workers 4 --num-byzantine 1 --rounds 2
    --batch-size 4 --eval-every 2 --quiet --output-dir""".split()


@pytest.mark.parametrize(
    "flags",
    [
        "--trusted 1 --decoder federated_defense",
        "--shares 1 2 3 4 --decoder krum",
        "--stakes 1 2",
        "--shares some",
        "--stop-below 0.5:5 --decoder federated_defense",
        "--trusted 1 --byzantine-ids 3",
    ],
)
def test_commands_refuse_in_one_line(flags, tmp_path, capsys):
    assert main([*RUN, str(tmp_path), *flags.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("signfd: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_no_warning_of_a_majority_of_liars_where_one_is_trusted(tmp_path, capsys):
    flags = "--trusted 1 --root-examples 30 --num-byzantine 3".split()
    assert main([*RUN, str(tmp_path), *flags, "--shares", "examples"]) == 0
    assert "signfd: warning" not in capsys.readouterr().err
    (folder,) = tmp_path.iterdir()
    assert main(["show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "run\ttrusted\t3, with 30 examples each\n" in shown
    assert "configuration\tshares\texamples\t\n" in shown


@pytest.mark.slow
def test_one_trusted_worker_saves_a_run(digits):
    """Twelve of fifteen lie: without it the run learns the opposite of its data."""
    config = Experiment(
        model="softmax_regression", num_byzantine=12, rounds=150, eval_every=150
    )
    trusting = dataclasses.replace(config, trusted=1, root_examples=100)
    accuracy = {}
    for each in (config, trusting):
        prepared = prepare(each, digits)
        _, _, metrics = prepared.advance(prepared.start(), 0)
        accuracy[each.trusted] = float(metrics.test_accuracy[0])
    assert accuracy[0] < 0.2
    assert accuracy[1] > 0.8
