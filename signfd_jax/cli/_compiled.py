"""Compiled programs, kept from one call of the command to the next."""

import contextlib
import os
import time
import warnings
from pathlib import Path
from typing import Any

_VARIABLE = "SIGNFD_COMPILED"
_OFF = ("", "0", "no", "off")
_DAYS = 60  # that a program stays which nobody has made again


def programs_folder() -> Path | None:
    """Where compiled programs are kept, or None where they are not.

    The variable SIGNFD_COMPILED names a folder, or says "off". Else it is one in the
    user's cache. Machines with unlike processors have folders of their own: a program
    made for one may not run on the other.
    """
    from signfd_jax.experiments._engine.settings import processor

    chosen = os.environ.get(_VARIABLE)
    if chosen is None:
        from signfd_jax.data._download import users_cache

        return users_cache() / "compiled" / processor()
    return None if chosen.lower() in _OFF else Path(chosen).expanduser() / processor()


def keep_compiled() -> None:
    """Turn JAX's cache of compiled programs on, unless the user has set it.

    A folder that cannot be written is no error: programs are then compiled each time.
    """
    import jax

    folder = programs_folder()
    config: Any = jax.config
    if folder is None or config.jax_compilation_cache_dir is not None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            return
        _forget_old(folder)
    except OSError:
        return
    config.update("jax_compilation_cache_dir", str(folder))
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # A full disk, say: what cannot be kept is compiled again the next time.
    warnings.filterwarnings("ignore", "Error (read|writ)ing persistent compilation")


def _forget_old(folder):
    """Remove programs that were made long ago."""
    before = time.time() - _DAYS * 24 * 3600
    for entry in os.scandir(folder):
        if entry.is_file() and entry.stat().st_mtime < before:
            with contextlib.suppress(OSError):
                os.unlink(entry)
