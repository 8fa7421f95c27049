"""How the attack success rate is called in records, and said beside the accuracy."""

import statistics
from collections.abc import Mapping
from typing import Any

SUCCESS = "attack_success_rate"
"""Its name in the records of a run and of a grid, where the attack has a target."""


def scores(metrics: Any) -> str:
    """What a progress bar says of a test: means over the seeds."""
    said = f"accuracy {statistics.fmean(metrics.test_accuracy.tolist()):.3f}"
    if metrics.attack_success_rate is None:
        return said
    success = statistics.fmean(metrics.attack_success_rate.tolist())
    return f"{said}, attack {success:.3f}"


def said(summary: Mapping[str, Any]) -> str:
    """What a run says of its end: " attack success rate 0.9876," or nothing."""
    rate = summary.get(SUCCESS)
    return "" if rate is None else f"attack success rate {rate:.4f}, "
