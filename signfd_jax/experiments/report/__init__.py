"""What is made of results: tables, figures, and the ledger of bits sent.

`tables` has means and their errors, `plots` the figures, `communication` the bits. None
of them runs anything. `plots` needs matplotlib, and is imported by its own name.
"""

from signfd_jax.experiments.report import communication, tables

__all__ = ["communication", "tables"]
