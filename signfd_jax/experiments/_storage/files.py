"""Paths and files as users write them."""

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["expanded", "read_json", "read_text"]


def expanded(path: str | Path) -> Path:
    """A path whose `~` or `~user` stands for a home, as far as there is one.

    Args:
        path: the path, as a user wrote it.

    Returns:
        The path; as it was where nobody is called so.

    Examples:
        >>> expanded("~nobody-is-called-so/runs").parts
        ('~nobody-is-called-so', 'runs')
    """
    return Path(os.path.expanduser(path))


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: the file.

    Returns:
        The object.

    Raises:
        ValueError: it is no JSON object; the text names the file.
        OSError: it cannot be read.

    Examples:
        >>> path = Path(getfixture("tmp_path")) / "summary.json"
        >>> _ = path.write_text('{"rounds": 3}')
        >>> read_json(path)
        {'rounds': 3}
    """
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object of fields")
    return found


def read_text(path: Path) -> str:
    """Read a text file, with or without the byte order mark that some editors write.

    Args:
        path: the file, in UTF-8.

    Returns:
        Its text.

    Raises:
        ValueError: it is not such a text; the text of the error names the file.
        OSError: it cannot be read.

    Examples:
        >>> path = Path(getfixture("tmp_path")) / "a.json"
        >>> _ = path.write_text("{}", encoding="utf-8-sig")
        >>> read_text(path)
        '{}'
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} is not text in UTF-8; save it so, or it is damaged"
        ) from None
