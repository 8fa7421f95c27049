"""What `Experiment.stop_below` says."""


def stop_rule(text: str) -> tuple[float, int]:
    """The confidence in (0, 1] and the number of rounds of `confidence:rounds`."""
    first, _, second = text.partition(":")
    try:
        confidence, rounds = float(first), int(second)
    except ValueError:
        confidence, rounds = 0.0, 0
    if not 0 < confidence <= 1 or rounds < 1:
        raise ValueError(
            "stop_below must be confidence:rounds, a number in (0, 1] and a number of "
            f"rounds, such as 0.5:20, but is {text!r}"
        )
    return confidence, rounds
