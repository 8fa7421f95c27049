"""What is made of results: tables, figures, and the ledger of bits sent.

`tables` has means and their errors, `plots` the figures, `communication` the bits. None
of them runs anything.
"""
