"""`signfd completion SHELL`: a script that completes commands, options and names."""

import dataclasses
import typing

from signfd_jax.cli._list import KINDS
from signfd_jax.cli._options import Compare, LeaderboardRun, Paper, Plot, Run
from signfd_jax.experiments._processes import console

SHELLS = ("bash", "zsh")
"""The shells that there is a script for."""

_OPTIONS = {
    "run": Run,
    "compare": Compare,
    "paper": Paper,
    "leaderboard": LeaderboardRun,
    "plot": Plot,
}
_VALUES = {"wire": ("ternary", "one_bit"), "scale": ("small", "full")}

_SCRIPT = """\
_signfd() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" option="" known="" i
  for ((i = COMP_CWORD - 1; i > 1; i--)); do
    case "${{COMP_WORDS[i]}}" in --*) option="${{COMP_WORDS[i]}}"; break ;; esac
  done
  if [ "$COMP_CWORD" -eq 1 ]; then
    known="{commands}"
  else
    case "${{COMP_WORDS[1]}} $option $word" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$known" -- "$word"))
}}
complete -o default -F _signfd signfd
"""


def completion(shell: str, commands: list[str]) -> str:
    """The script for a shell, with the names that there are now, plugins' included."""
    if shell not in SHELLS:
        raise ValueError(console.unknown("shell", shell, SHELLS))
    from signfd_jax.experiments import _catalogue

    names = {kind: [e.name for e in _catalogue.entries(kind)] for kind in KINDS}
    cases = []
    for command, options in _OPTIONS.items():
        fields = list(_fields(options))
        flags = ["--" + field.name.replace("_", "-") for field in fields]
        cases.append((f'"{command} "*" -"*', flags))
        for flag, field in zip(flags, fields, strict=True):
            if known := _values(field, names):
                cases.append((f'"{command} {flag} "*', known))
    for command in ("run", "compare"):
        cases.append((f'"{command}  "*', names["presets"]))
    cases.append(('"leaderboard  "*', ("list", "run", "page")))
    cases.append(('"list "*', KINDS))
    script = _SCRIPT.format(
        commands=" ".join(commands),
        cases="\n".join(f'      {case}) known="{" ".join(w)}" ;;' for case, w in cases),
    )
    zsh = "autoload -U +X bashcompinit && bashcompinit\n"
    return zsh + script if shell == "zsh" else script


def _fields(options):
    """The fields that have flags; those of a nested dataclass have no prefix."""
    for field in dataclasses.fields(options):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield from _fields(field.type)
        else:
            yield field


def _values(field, names):
    """What may follow a flag; a flag for several names is called like their kind."""
    if typing.get_origin(field.type) is typing.Literal:
        return typing.get_args(field.type)
    for kind in (field.name, field.name + "s"):
        if kind in names:
            return names[kind]
    return _VALUES.get(field.name, ())
