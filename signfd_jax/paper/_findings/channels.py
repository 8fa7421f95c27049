"""Findings on channels: estimates, unlike batches, and exact weights.

`CHANNELS` maps the name of a figure to its `Finding`.
"""

import dataclasses
import statistics

from signfd_jax.experiments.report._tables import mean
from signfd_jax.paper._base import CLOSE, Claim, Finding, Lab, Outcome, format_mean
from signfd_jax.paper._measure import channel_error, side_by_side
from signfd_jax.paper.scales import Scale

_FD, _MV = "federated_defense", "majority_vote"


def _estimation(scale: Scale, lab: Lab) -> Outcome:
    samples = (1, 3, 10, 30, 100, 300, 1000)
    channels = (0.3,) * 9 + (0.7,) * 6
    drawn = lab.measure(_channels, scale.base, channels, samples)
    every = max(1, scale.base.rounds // 30)
    trained = lab.measure(channel_error.decoding_in_training, scale.base, 6, every)
    early = len(trained["round"]) // 3

    def mean_error(server):
        return mean(trained[server]["error"][:early])

    fd, best, vote = map(mean_error, (_FD, "oracle", _MV))
    off = drawn["error"][-1] - drawn["oracle"]
    claims = (
        Claim(
            f"in channels of p = .3 and .7 the decoding error falls with the error of "
            f"p̂, from {drawn['error'][0]:.3f} (one comparison) to "
            f"{drawn['error'][-1]:.3f} (1000; exact weights: {drawn['oracle']:.3f})",
            drawn["error"] == sorted(drawn["error"], reverse=True) and off < 0.002,
        ),
        Claim(
            "the bound for wrong weights is never below the decoding error",
            all(e <= b for e, b in zip(drawn["error"], drawn["bound"], strict=True)),
        ),
        Claim(
            f"in training, over the first {trained['round'][early - 1]} rounds, "
            f"federated defense decodes within .02 of the oracle ({fd:.3f}; "
            f"{best:.3f}), a majority vote worse ({vote:.3f})",
            abs(fd - best) <= 0.02 and vote > fd,
        ),
    )
    measured = trained[_FD]["error"]
    below = _exceeding(measured, trained[_FD]["exact"])
    beyond = _exceeding(measured, trained[_FD]["bound"])
    rows = [["comparisons behind p̂", "RMS error of p̂", "P_E", "bound of P(S ≤ 0)"]]
    for line in zip(
        samples, drawn["deviation"], drawn["error"], drawn["bound"], strict=True
    ):
        rows.append([str(line[0]), *(f"{value:.4f}" for value in line[1:])])
    rows.append(["exact weights", "0", f"{drawn['oracle']:.4f}", "½BC: "])
    rows[-1][-1] += f"{drawn['oracle_bound']:.4f}"
    rows.append(["majority vote", "", f"{drawn['majority']:.4f}", ""])
    panels = {
        "in training": {
            label: (trained["round"], trained[name]["error"])
            for label, name in (
                ("federated defense", _FD),
                ("oracle", "oracle"),
                ("majority vote", _MV),
            )
        },
        "theory beside it (federated defense)": {
            "measured": (trained["round"], trained[_FD]["error"]),
            "P_E of the measured p": (trained["round"], trained[_FD]["exact"]),
            "its bound ½BC": (trained["round"], trained[_FD]["bound"]),
        },
    }
    return Outcome(
        claims,
        rows,
        panels,
        ylabel="decoding error",
        remarks="In training, the truth U is the sign of the gradient over the whole "
        "training set. The theory's P_E, from one p a worker, is below what is "
        f"measured in {below} of {len(measured)} tests, and the measured error is "
        f"above the bound in {beyond}: p differs between coordinates, P_E is convex in "
        "p below ½, and so its mean over coordinates is more than the P_E of their "
        "mean p. Towards the end the gradient is so small that most p are near ½, "
        "whatever the decoder.",
    )


def _exceeding(errors, bounds):
    """How many errors are above their bound, of those that were measured."""
    pairs = zip(errors, bounds, strict=True)
    return sum(e > b for e, b in pairs if e is not None and b is not None)


def _channels(base, crossover, samples, *, data_dir):
    del base, data_dir
    return channel_error.weights_from_samples(crossover, samples)


def _batch_sizes(scale: Scale, lab: Lab) -> Outcome:
    every = max(1, scale.base.rounds // 30)
    # A large batch from a worker's small share would be no better than the share.
    base = dataclasses.replace(scale.base, split="everything")
    servers = ("federated_voting", _FD, _MV)
    rows = [
        [
            "batch sizes",
            "server",
            "accuracy",
            "error to round 100",
            "error after",
            "weights of the two",
        ]
    ]
    claims, panels = [], {}
    for kinds in scale.batch_sizes:
        (many, small), (few, large) = kinds
        found = lab.measure(side_by_side.mixed_batch_sizes, base, kinds, every)
        name = f"{many} of {small}, {few} of {large}"
        start = sum(r <= 100 for r in found["round"])  # voting: a majority until then
        error, at_first = {}, {}
        for server in servers:
            result = found[server]
            error[server] = _mean(seed[start:] for seed in result["error"])
            at_first[server] = _mean(seed[:start] for seed in result["error"])
            first, last = result["weights"][:many], result["weights"][many:]
            rows.append(
                [
                    name,
                    server.replace("_", " "),
                    format_mean(result["accuracy"]),
                    f"{at_first[server]:.3f}",
                    f"{error[server]:.3f}",
                    f"{mean(first):.2f}, {mean(last):.2f}",
                ]
            )
        voting = found["federated_voting"]["accuracy"]
        plain = found[_MV]["accuracy"]
        gain = statistics.fmean(voting) - statistics.fmean(plain)
        claims.append(
            Claim(
                f"{name}: federated voting decodes better than a majority vote "
                f"(error {error['federated_voting']:.3f}; {error[_MV]:.3f}), accuracy "
                f"{gain:+.3f}",
                error["federated_voting"] < error[_MV] and gain > -CLOSE,
            )
        )
        panels[name] = {
            server.replace("_", " "): (
                found["round"],
                list(map(list, zip(*found[server]["error"], strict=True))),
            )
            for server in servers
        }
    return Outcome(
        tuple(claims),
        rows,
        panels,
        ylabel="decoding error",
        remarks="The decoding error is against the sign of the gradient over the whole "
        "training set. For 100 rounds federated voting is a majority vote, so the "
        "claims are about what follows. All workers draw from one pool, as in the "
        "released code. The learned weights do tell the two kinds of workers apart; "
        "how much that is worth depends on how noisy the small batches are. Here a "
        "majority vote converges even with batches of 4.",
    )


def _mean(seeds):
    """Over seeds and tests; NaN, of which no claim is true, where no test fell."""
    return mean(value for seed in seeds for value in seed)


def _invariance(scale: Scale, lab: Lab) -> Outcome:
    numbers = tuple(range(8))
    found = lab.measure(side_by_side.lockstep, scale.base, numbers)
    largest = max(map(max, found["difference"]))
    claims = (
        Claim(
            f"over {scale.base.rounds} rounds no parameter ever differs between L = 0 "
            f"and any L up to 7 (largest difference {largest:g}, largest move "
            f"{found['moved'][-1]:.3f})",
            largest == 0 and found["moved"][-1] > 0,
        ),
    )
    rows = [["L", "largest difference from L = 0", "test accuracy"]]
    by_run = list(zip(*found["difference"], strict=True))
    for number, differences, accuracy in zip(
        numbers, by_run, found["accuracy"], strict=True
    ):
        rows.append([str(number), f"{max(differences):g}", f"{accuracy:.4f}"])
    rounds = list(range(1, len(found["moved"]) + 1))
    panels = {
        "exact weights, L = 0 … 7": {
            "largest move of a parameter": (rounds, found["moved"]),
            "largest difference of any L from L = 0": (
                rounds,
                [max(d) for d in found["difference"]],
            ),
        }
    }
    return Outcome(
        claims,
        rows,
        panels,
        ylabel="difference of parameters",
        remarks="The weights are those of crossover probabilities from .1 to .4, which "
        "differ from worker to worker, and one minus them for the inverters. Tallies "
        "are sums of integers, so that equal means equal bit for bit.",
    )


CHANNELS: dict[str, Finding] = {
    "estimation": Finding(
        "Accuracy of p̂ and the decoding error",
        "The better p̂, the nearer the decoding error to that of exact weights. (No "
        "numbers of the paper were at hand; the claim is its theory's.)",
        _estimation,
    ),
    "batch-sizes": Finding(
        "Heterogeneous batch sizes",
        "Of the forerunner, signSGD with federated voting: where batch sizes differ, "
        "learned weights decode better than a majority vote, which may not converge.",
        _batch_sizes,
    ),
    "invariance": Finding(
        "Invariance: trajectories under L = 0 … 7 with exact weights",
        "An inverter with a known crossover probability is as useful as an honest "
        "worker: with exact weights the decoded signs do not depend on L.",
        _invariance,
    ),
}
