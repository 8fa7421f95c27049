"""Tables: drawn on a terminal, and plain lines to parse everywhere else."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

Cell = str | Sequence[str]
"""A text, or several that are printed with commas between them."""


class Table(NamedTuple):
    """What is printed as a table.

    Attributes:
        title: the first cell of each plain line, and what stands above a drawn table.
        head: the names of the columns.
        rows: the rows of cells.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def print_tables(tables: Sequence[Table]) -> None:
    """Print tables to stdout: with rich on a terminal, else as `plain_lines`."""
    if sys.stdout.isatty():
        _draw(tables)
    else:
        for table in tables:
            print(*plain_lines(table), sep="\n")


def plain_lines(table: Table) -> list[str]:
    """One line a row: the title and the cells, with tabs between them."""
    return ["\t".join([table.title, *map(_plain, row)]) for row in table.rows]


def _plain(cell):
    """A cell on one line; tabs and line breaks in it become spaces."""
    return " ".join(_joined(cell, ",").split())


def _joined(cell, comma):
    return cell if isinstance(cell, str) else comma.join(cell)


def _draw(tables):
    """Draw tables up to the width of the terminal, without their empty columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    console = Console(file=sys.stdout)
    for table in tables:
        title = Text(table.title, "bold")
        drawn = Drawn(box=box.SIMPLE_HEAD, title=title, title_justify="left")
        drawn.show_header = any(table.head)
        used = [i for i in range(len(table.head)) if any(row[i] for row in table.rows)]
        for i in used:
            style = "" if i else "cyan"
            drawn.add_column(table.head[i], style=style, overflow="fold", no_wrap=not i)
        for row in table.rows:
            # As `Text`: what is in brackets is no markup.
            drawn.add_row(*(Text(_joined(row[i], ", ")) for i in used))
        console.print(drawn)
