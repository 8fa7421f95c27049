"""The README's table of speeds, made of a file of results.

    python -m benchmarks.table benchmarks/results/cpu.json

Prints Markdown; sections that the file does not have are left out.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["table"]


def table(sections: Mapping[str, Any]) -> str:
    """Markdown of all sections, each under the environment it was measured in.

    Args:
        sections: what `measure.write_section` wrote, by name.

    Returns:
        Tables with a line of text above each.
    """
    parts = []
    for name, rows in _SECTIONS.items():
        if name in sections:
            section = sections[name]
            lines = "\n".join(_markdown(rows(section)))
            parts.append(f"{_about(name, section['environment'])}\n\n{lines}\n")
    return "\n".join(parts)


def _about(name: str, environment: Mapping[str, Any]) -> str:
    versions = environment["versions"]
    machine = environment["device"]
    if machine.startswith("cpu"):
        machine = f"{environment['cores']} cores ({environment['processor']})"
    return (
        f"`python -m benchmarks.{name}` on {machine}, jax {versions['jax']}, commit "
        f"{environment['commit']}; medians, with quartiles in brackets."
    )


def _markdown(rows: Iterator[Sequence[str]]) -> Iterator[str]:
    """Header first; all columns but the first to the right."""
    for number, row in enumerate(rows):
        yield "| " + " | ".join(row) + " |"
        if number == 0:
            yield "| " + " | ".join(["---", *["---:"] * (len(row) - 1)]) + " |"


def _milliseconds(result: Mapping[str, Any]) -> str:
    low, high = (_short(1e3 * quartile) for quartile in result["quartiles_s"])
    return f"{_short(1e3 * result['median_s'])} ms [{low}, {high}]"


def _short(number: float) -> str:
    """Two significant digits, or all digits before the point."""
    return f"{number:.2g}" if number < 10 else f"{number:,.0f}"


def _times(result: Mapping[str, Any], key: str) -> str:
    return f"{_short(result[key]['median'])} x" if key in result else ""


_COPIES = {
    "read": "one read of the gradients",
    "copy": "one read and write of the gradients, to new memory",
    "copy in place": "one read and write of the gradients, in place",
}


def _decode(section: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    yield (
        "decoding",
        "time",
        "of one read",
        "of one read and write",
        "released decoder in PyTorch takes",
    )
    for size in section["sizes"]:
        head = f"M = {size['workers']:,}, N = {size['coordinates']:,}"
        yield f"**{head}**", "", "", "", ""
        for name, result in size["results"].items():
            yield (
                _COPIES.get(name) or name,
                _milliseconds(result),
                _times(result, "of_read"),
                _times(result, "of_copy"),
                _times(result, "released_over_this"),
            )
        for name, reason in size["left_out"].items():
            yield name, f"left out: {reason}", "", "", ""


def _round(section: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    yield "whole round", "time", "matrix rate reached", "PyTorch loop takes"
    for workload in section["workloads"]:
        gradients = workload["gradient_operations"]
        limit = 1e3 * gradients / workload["matrix_rate"]
        head = f"{workload['workload']}: {gradients / 1e9:.1f} GFLOP"
        yield f"**{head}**", f"at least {_short(limit)} ms", "", ""
        for name, result in workload["results"].items():
            yield (
                name,
                _milliseconds(result),
                f"{100 * result['share_of_matrix_rate']:.0f} %",
                _times(result, "pytorch_over_this"),
            )


def _population(section: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    yield "population, a round", "time", "workers a second", "peak memory"
    for found in section["rounds"]:
        size = f"M = {found['num_workers']:,}, N = {found['num_coordinates']:,}"
        low, high = (_short(quartile) for quartile in found["quartiles_s"])
        yield (
            f"{size}, {found['decoder']}",
            f"{_short(found['median_s'])} s [{low}, {high}]",
            f"{found['workers_per_s']:,.0f}",
            f"{found['peak_bytes'] / 2**30:.1f} GiB",
        )


_SECTIONS = {"decode": _decode, "round": _round, "population": _population}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("table: give one file of results, as --json writes them", file=sys.stderr)
        sys.exit(2)
    try:
        results = json.loads(Path(sys.argv[1]).read_text())
    except (OSError, ValueError) as error:
        print(f"table: {sys.argv[1]} cannot be read: {error}", file=sys.stderr)
        sys.exit(2)
    print(table(results))
