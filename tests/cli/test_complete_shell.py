"""`promptreid completion`: what bash and zsh really complete with the script."""

import shutil
import subprocess

import pytest

from promptreid.cli import main as command_line

pytest.importorskip("shtab", reason="needs the extra completion")


def completed(script, shell, typed, folder):
    """The words that a shell offers for the last of those typed."""
    asked = (
        f'COMP_WORDS=({typed}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); _shtab_promptreid; printf "%s\\n" '
        '"${COMPREPLY[@]}"'
    )
    answer = subprocess.run([shell, "-c", f"{script}\n{asked}"], capture_output=True, text=True, cwd=folder, check=True)
    assert answer.stderr == ""
    return set(answer.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_choices_and_paths(call, tmp_path):
    (tmp_path / "gallery").mkdir()
    (tmp_path / "guests.txt").touch()
    code, script, _ = call("completion", "bash")
    assert code == 0
    assert completed(script, "bash", 'promptreid ""', tmp_path) == set(command_line.COMMANDS)
    assert completed(script, "bash", "promptreid se", tmp_path) == {"search"}
    assert completed(script, "bash", "promptreid search --th", tmp_path) == {"--threshold"}
    assert completed(script, "bash", "promptreid train crops --prompt-kind c", tmp_path) == {"coupled"}
    assert completed(script, "bash", 'promptreid store ""', tmp_path) >= {"info", "optimize", "erase", "restore"}
    assert completed(script, "bash", "promptreid search g", tmp_path) == {"gallery"}  # a folder, so no guests.txt
    assert completed(script, "bash", "promptreid search gallery --queries g", tmp_path) == {"gallery", "guests.txt"}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_the_script_as_the_completion_of_promptreid(call, tmp_path):
    code, script, _ = call("completion", "zsh")
    assert code == 0
    (tmp_path / "_promptreid").write_text(script)
    asked = f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -D; print $_comps[promptreid]"
    answer = subprocess.run(["zsh", "-f", "-c", asked], capture_output=True, text=True, check=True)
    assert (answer.stdout, answer.stderr) == ("_promptreid\n", "")
    subprocess.run(["zsh", "-n", tmp_path / "_promptreid"], check=True)
    assert "search:'find the images that a sentence describes'" in script


def test_script_is_whole_in_json_too(call):
    code, answer, _ = call("completion", "bash", "--json")
    assert code == 0
    assert "complete -" in answer["script"]
    code, _, errors = call("completion", "fish")
    assert code == 2
    assert "choose from" in errors


def test_without_shtab_the_extra_is_named(call, monkeypatch):
    monkeypatch.setattr(command_line, "find_spec", lambda name: None)
    code, _, errors = call("completion", "bash")
    assert code == 3
    assert 'pip install "promptreid[completion]"' in errors
