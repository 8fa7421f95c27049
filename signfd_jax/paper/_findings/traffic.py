"""The finding on traffic: accuracy against the bits that were sent for it.

`TRAFFIC` maps the name of the figure to its `Finding`.
"""

import statistics

from signfd_jax.experiments.report.communication import ledger
from signfd_jax.paper._base import (
    CLOSE,
    Claim,
    Finding,
    Lab,
    Outcome,
    curve,
    final,
    format_mean,
)
from signfd_jax.paper._measure.setting import num_coordinates
from signfd_jax.paper.scales import Scale

_FD = "federated_defense"


def _gaussian(scale: Scale, lab: Lab) -> Outcome:
    scaled = f"scale={scale.gradient_scale:g}"
    servers = {
        "federated defense": {"decoder": _FD, "wire": "one_bit"},
        "Multi-Krum": {"decoder": f"multi_krum:{scaled}"},
        "Top-10 % + Multi-Krum": {"decoder": f"top_k_multi_krum:fraction=0.1,{scaled}"},
    }
    cells = {
        label: lab.vary(scale, num_byzantine=6, attack="gaussian", **changes)
        for label, changes in servers.items()
    }
    found = {label: lab.train([cell])[cell] for label, cell in cells.items()}
    size = lab.measure(_num_coordinates, scale.base)["num_coordinates"]
    entries = {label: ledger(cell, size) for label, cell in cells.items()}
    target = 0.98 * min(map(final, found.values()))
    rows = [
        [
            "server",
            "accuracy",
            "up: values",
            "up: indices",
            "down: values",
            "down: indices",
            "bits a coordinate and round",
            f"MB to accuracy {target:.3f}",
        ]
    ]
    cost, panels = {}, {}
    for label, record in found.items():
        entry = entries[label]
        rounds, accuracies = curve(record)
        first = next(
            r
            for r, values in zip(rounds, accuracies, strict=True)
            if statistics.fmean(values) >= target
        )
        megabytes = (entry.up + entry.down) / 8e6
        cost[label] = first * megabytes
        rows.append(
            [
                label,
                format_mean(record["test_accuracy"]),
                *(f"{bits:,}" for bits in entry),
                f"{(entry.up + entry.down) / size:.1f}",
                f"{cost[label]:.3g}",
            ]
        )
        panels[label] = ([r * megabytes for r in rounds], accuracies)
    a_round = {label: entry.up + entry.down for label, entry in entries.items()}
    top = entries["Top-10 % + Multi-Krum"]
    up_only = top.up / entries["federated defense"].up
    a_coordinate = (top.up_values + top.up_indices) / round(0.1 * size)
    support = (10 * a_round["federated defense"] - top.up) / (size * a_coordinate)
    loss = max(map(final, found.values())) - final(found["federated defense"])
    claims = _claims(a_round, cost, target, loss)
    return Outcome(
        claims,
        rows,
        {"6 of 15 send Gaussian noise": panels},
        xlabel="MB that a worker sent and received",
        log_x=True,
        remarks=f"N = {size:,} coordinates. Bits of one worker in one round: one bit a "
        "coordinate and a bit of the presence mask up, one bit down (one-bit wire); "
        "32 bits a coordinate both ways for Multi-Krum; for the top k = N/10, k values "
        "of 32 bits with k indices of ⌈log₂ N⌉ bits up, and down the mean of the M - L "
        "selected rows, dense, which is the most that it can take. The paper's factor "
        "against Top-10 % depends on how the way down is counted: on the way up alone "
        f"it is {up_only:.1f}, and it is 10 for both ways if {support:.0%} of the "
        "coordinates of that mean are sent, with their indices.",
    )


def _claims(a_round, cost, target, loss):
    """Of the bits of a round, the megabytes to the target, and the lack of accuracy."""
    ours, krum, sparse = "federated defense", "Multi-Krum", "Top-10 % + Multi-Krum"
    per_round = a_round[krum] / a_round[ours]
    per_sparse = a_round[sparse] / a_round[ours]
    to_target = cost[krum] / cost[ours], cost[sparse] / cost[ours]
    return (
        Claim(
            f"a round of federated defense takes {per_round:.0f} times less traffic "
            "than one of full-precision Multi-Krum (the paper: about 30)",
            20 <= per_round <= 45,
        ),
        Claim(
            f"and {per_sparse:.1f} times less than one of Top-10 % + Multi-Krum (the "
            "paper: about 10)",
            7 <= per_sparse <= 14,
        ),
        Claim(
            f"to reach an accuracy of {target:.3f} it takes {to_target[0]:.0f} and "
            f"{to_target[1]:.1f} times less",
            to_target[0] > 10 and to_target[1] > 3,
        ),
        Claim(
            f"it ends within {CLOSE} of the best of the three (it lacks {loss:.3f})",
            loss <= CLOSE,
        ),
    )


def _num_coordinates(base, *, data_dir):
    return {"num_coordinates": num_coordinates(base, data_dir=data_dir)}


TRAFFIC: dict[str, Finding] = {
    "gaussian": Finding(
        "Gaussian attack: accuracy against communicated bits",
        "About 30 times less traffic than full-precision Multi-Krum, and about 10 "
        "times less than Top-10 % + Multi-Krum.",
        _gaussian,
    ),
}
