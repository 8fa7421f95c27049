"""Processes, signals and the terminal: everything about where a run runs.

`launch` starts and joins processes, `signals` turns interrupts into a clean stop, and
`console` says what happens.
"""
