"""Three things that the released code does, and what each of them changes.

They are not in the paper, but in what reproduces its numbers. `QUIRKS` maps the name of
the figure to its `Finding`.
"""

from signfd_jax.paper._base import (
    Claim,
    Finding,
    Lab,
    Outcome,
    curve,
    final,
    format_mean,
)
from signfd_jax.paper.scales import Scale

_OURS, _RELEASED = "federated_defense", "released_code"


def _cases(few):
    """What is changed in each case: in the remedied decoder, in the released one."""
    inverting = {"num_byzantine": 6, "attack": "sign_inversion"}
    return {
        f"zeros: batches of {few}, nobody lies": (
            {"decoder": _OURS, "batch_size": few},
            {"decoder": _RELEASED, "batch_size": few},
        ),
        f"zeros: batches of {few}, 6 invert": (
            {"decoder": _OURS, "batch_size": few, **inverting},
            {"decoder": _RELEASED, "batch_size": few, **inverting},
        ),
        "forgetting .9: nobody lies": (
            {"decoder": f"{_OURS}:forgetting=0.9"},
            {"decoder": f"{_RELEASED}:forgetting=0.9"},
        ),
        "no split: nobody lies": (
            {"decoder": _OURS},
            {"decoder": _OURS, "split": "everything"},
        ),
        "no split: 6 invert": (
            {"decoder": _OURS, **inverting},
            {"decoder": _OURS, "split": "everything", **inverting},
        ),
        "no split, where 6 invert and a split is Dirichlet .3": (
            {"decoder": _OURS, "split": "dirichlet:0.3", **inverting},
            {"decoder": _OURS, "split": "everything", **inverting},
        ),
    }


def _quirks(scale: Scale, lab: Lab) -> Outcome:
    few = scale.quirk_batch_size
    cases = _cases(few)
    cells = {
        name: tuple(lab.vary(scale, **changes) for changes in pair)
        for name, pair in cases.items()
    }
    found = lab.train(cell for pair in cells.values() for cell in pair)
    rows = [["case", "remedied", "as released", "of single seeds"]]
    loss, panels = {}, {}
    for name, pair in cells.items():
        ours, released = (found[cell] for cell in pair)
        loss[name] = final(ours) - final(released)
        by_seed = ", ".join(f"{a:.3f}" for a in released["test_accuracy"])
        rows.append(
            [
                name,
                format_mean(ours["test_accuracy"]),
                format_mean(released["test_accuracy"]),
                by_seed.replace("0.", "."),
            ]
        )
        if name in list(cases)[:3]:
            panels[name] = {
                label: curve(record)
                for label, record in (("remedied", ours), ("as released", released))
            }
    names = list(cases)
    claims = (
        Claim(
            f"counting zeros as votes costs {loss[names[0]]:.3f} of accuracy with "
            f"batches of {few} and nobody lying, {loss[names[1]]:.3f} with 6 inverting",
            max(loss[names[0]], loss[names[1]]) > 0.05,
        ),
        Claim(
            "dividing decayed counts by the undecayed number of rounds costs "
            f"{loss[names[2]]:.3f}",
            loss[names[2]] > 0.05,
        ),
        Claim(
            "giving every worker all data changes an i.i.d. result by "
            f"{-loss[names[3]]:+.3f} (nobody lies) and {-loss[names[4]]:+.3f} (6 "
            "invert)",
            max(abs(loss[names[3]]), abs(loss[names[4]])) <= 0.02,
        ),
        Claim(
            "but hides what unlike data cost: a Dirichlet split of .3 is "
            f"{-loss[names[5]]:.3f} below no split at all",
            loss[names[5]] < -0.01,
        ),
    )
    return Outcome(
        claims,
        rows,
        panels,
        remarks="A seed whose estimates turn over trains uphill from then on, so that "
        "single seeds end at chance while others are untouched.",
    )


QUIRKS: dict[str, Finding] = {
    "quirks": Finding(
        "What the released code does besides",
        "Not in the paper: zeros are votes, forgetting divides by the wrong total, and "
        "the data are not split.",
        _quirks,
    ),
}
