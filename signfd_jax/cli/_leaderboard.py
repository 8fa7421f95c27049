"""`signfd leaderboard`: the challenges, an entry of one, and the page of all rows."""

from signfd_jax.cli._compiled import keep_compiled
from signfd_jax.cli._options import (
    LeaderboardList,
    LeaderboardPage,
    LeaderboardRun,
    read_flags,
)
from signfd_jax.cli._printing import Table, print_tables
from signfd_jax.experiments._processes import console
from signfd_jax.experiments._storage import files

_NOT_EQUAL = 1


def leaderboard(arguments: list[str]) -> int:
    """List, run or write, as the first argument says."""
    if not arguments:
        raise ValueError("give list, run or page: signfd leaderboard run NAME ...")
    action, *rest = arguments
    if action not in _ACTIONS:
        raise ValueError(console.unknown("action", action, list(_ACTIONS)))
    return _ACTIONS[action](rest)


def _list(arguments):
    options = read_flags(LeaderboardList(), arguments, "leaderboard list")
    from signfd_jax.experiments import challenges
    from signfd_jax.experiments import leaderboard as boards

    rows = []
    for name in challenges.names(options.folder):
        challenge = challenges.read_challenge(options.folder, name)
        entries = list(boards.read_rows(options.folder, challenge))
        about = challenge.sha256, challenge.about
        rows.append((name, str(challenge.version), entries, *about))
    head = ("name", "version", "entries", "sha256", "what it is")
    print_tables([Table("challenges", head, rows)])
    return 0


def _run(arguments):
    named = bool(arguments) and arguments[0][:1] != "-"
    options = read_flags(LeaderboardRun(), arguments[named:], "leaderboard run")
    if not named:
        raise ValueError("give a challenge: signfd leaderboard run NAME --decoder ...")
    from signfd_jax.experiments import challenges
    from signfd_jax.experiments import leaderboard as boards

    challenge = challenges.read_challenge(options.folder, arguments[0])
    rows = boards.read_rows(options.folder, challenge)
    entries = list(rows) if options.decoder is None else [options.decoder]
    if not entries:
        raise ValueError(f"nothing was entered in {arguments[0]}: give a --decoder")
    keep_compiled()
    code = 0
    for entry in entries:
        try:
            row = boards.regenerate(
                challenge,
                entry,
                options.output_dir,
                data_dir=options.data_dir,
                force=options.force,
                progress=not options.quiet,
            )
        except ValueError as error:
            if options.decoder is not None:
                raise
            console.warn(f"{entry}: {error}")  # such as of a package that is not here
            code = _NOT_EQUAL
            continue
        if row["entry"] not in rows:
            path = boards.enter(options.folder, challenge, row)
            print(f"{entry}: entered, {_result(row)}: {path}")
            continue
        found = boards.compare(rows[row["entry"]], row)
        print(f"{entry}: {found.report}", flush=True)
        code = code if found.equal else _NOT_EQUAL
    return code


def _result(row):
    from signfd_jax.experiments.report._leaderboard import summary

    found = summary(row)
    worst = f"worst case {found.worst:.3f} under {found.attackers}"
    return f"accuracy {found.accuracy:.3f}, {worst}"


def _page(arguments):
    options = read_flags(LeaderboardPage(), arguments, "leaderboard page")
    from signfd_jax.experiments._storage import run_folder as records
    from signfd_jax.experiments.report._leaderboard import page

    text, path = page(options.folder), files.expanded(options.output)
    records.make_folder(path.parent)
    records.write_atomically(path, text)
    print(path)
    return 0


_ACTIONS = {"list": _list, "run": _run, "page": _page}
