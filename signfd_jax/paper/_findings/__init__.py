"""The paper's findings as runs, numbers and claims, in the order of the report.

`FINDINGS` maps the name of a figure to its `Finding`.
"""

from signfd_jax.paper._base import Finding
from signfd_jax.paper._findings.channels import CHANNELS
from signfd_jax.paper._findings.quirks import QUIRKS
from signfd_jax.paper._findings.robustness import ROBUSTNESS
from signfd_jax.paper._findings.traffic import TRAFFIC

__all__ = ["FINDINGS"]

FINDINGS: dict[str, Finding] = {
    **ROBUSTNESS,
    "estimation": CHANNELS["estimation"],
    **TRAFFIC,
    "batch-sizes": CHANNELS["batch-sizes"],
    "invariance": CHANNELS["invariance"],
    **QUIRKS,
}
