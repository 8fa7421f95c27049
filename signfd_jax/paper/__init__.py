"""The paper's findings as presets: one command each, one report, one verdict each.

`FINDINGS` are what can be run, `SCALES` at which size. Start with `reproduce`, which is
the command `signfd paper`.
"""

from signfd_jax.paper._base import Claim, Finding, Lab, Outcome, verdict
from signfd_jax.paper._findings import FINDINGS
from signfd_jax.paper.report import reproduce
from signfd_jax.paper.scales import SCALES, Scale

__all__ = [
    "FINDINGS",
    "SCALES",
    "Claim",
    "Finding",
    "Lab",
    "Outcome",
    "Scale",
    "reproduce",
    "verdict",
]
