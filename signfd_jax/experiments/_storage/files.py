"""Paths and files as users write them."""

import json
import os
from pathlib import Path
from typing import Any


def expanded(path: str | Path) -> Path:
    """A path whose `~` or `~user` stands for a home, as far as there is one."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"a folder must be a path, but is {path!r}")
    return Path(os.path.expanduser(path))


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object."""
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object of fields")
    return found


def read_text(path: Path) -> str:
    """Read a text file, with or without the byte order mark that some editors write."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} is not text in UTF-8; save it so, or it is damaged"
        ) from None
