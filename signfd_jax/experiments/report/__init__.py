"""What is made of results: figures, the ledger of bits sent, and tables.

`plots` has the figures, `communication` the bits; the private module writes tables.
None of them runs anything. `plots` needs matplotlib: it is imported by its own name.
"""

from signfd_jax.experiments.report import communication

__all__ = ["communication"]
