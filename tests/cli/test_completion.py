"""The script of `signfd completion`, sourced by the shell it is for."""

import shutil
import subprocess

import pytest

from signfd_jax.cli import main

ASK = """
COMP_WORDS=(signfd "$@") COMP_CWORD=$#
_signfd
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def offered(tmp_path_factory):
    """A function that says what bash offers for the last of these words."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")

    def ask(script, *words):
        done = subprocess.run(
            [bash, "-u", "-c", script + ASK, "signfd", *words],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    return ask


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["co"], {"compare", "completion"}),
        (["run", "mnist"], {"mnist-mlp", "mnist-cnn"}),
        (["run", "digits", "--flip"], {"--flip-probability"}),
        (["run", "--decoder", "federated_d"], {"federated_defense"}),
        (["compare", "--decoders", "majority_vote", "kru"], {"krum"}),
        (["compare", "--attacks", "alie", "ip"], {"ipm"}),
        (["compare", "--root"], {"--root-examples"}),
        (["plot", "runs", "--format", ""], {"png", "pdf", "svg"}),
        (["leaderboard", ""], {"list", "run", "page"}),
        (["leaderboard", "run", "--fol"], {"--folder"}),
        (["list", "mo"], {"models"}),
        (["show", "no-such-folder"], set()),
    ],
)
def test_what_is_offered(words, wanted, offered, capsys):
    assert main(["completion", "bash"]) == 0
    assert set(offered(capsys.readouterr().out, *words)) == wanted


def test_zsh_reads_the_same_script(capsys):
    main(["completion", "bash"])
    bash = capsys.readouterr().out
    main(["completion", "zsh"])
    assert capsys.readouterr().out.endswith(bash)


@pytest.mark.parametrize("words", [[], ["fish"], ["bash", "zsh"]])
def test_other_shells(words, capsys):
    assert main(["completion", *words]) == 2
    assert "bash" in capsys.readouterr().err
