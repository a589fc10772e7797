"""`promptreid push`: what it refuses, shows, hands over and says in the end."""

import json
from pathlib import Path

import pytest

from promptreid.cli.main import _in_a_shell
from promptreid.hub import repository
from promptreid.hub.transfer import PublishedURL


def test_push_dry_run_shows_card_and_files_and_uploads_nothing(call, shipped, tmp_path):
    model, _ = shipped
    folder = model.save_pretrained(tmp_path / "model")
    code, text, _ = call("push", folder, "somebody/model", "--dry-run")
    assert code == 0
    assert "# model" in text
    assert 'load_prompts("somebody/model")' in text
    size = (folder / "prompts.safetensors").stat().st_size
    assert f"{size:>12,} bytes  prompts.safetensors" in text
    code, answer, _ = call("push", folder, "somebody/model", "--dry-run", "--json")
    assert answer["files"]["prompts.safetensors"] == size
    assert set(answer["files"]) == {"README.md", "config.json", "prompt_config.json", "prompts.safetensors"}
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["prompt_config.json", "prompts.safetensors"]


def test_push_hands_over_what_it_is_given(call, tmp_path, monkeypatch):
    given = {}

    def pretend(folder, repository, **settings):
        given.update(folder=folder, repository=repository, **settings)
        return PublishedURL("https://hub/commit/1", is_private=settings["private"], is_new=True)

    monkeypatch.setattr("promptreid.model.publishing.push_prompts", pretend)
    scores = {"rank1": 0.5, "num_queries": 4}
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"text_to_image": scores, "image_to_text": scores}))
    code, text, _ = call("push", tmp_path, "somebody/model", "--metrics", metrics)
    assert code == 0
    assert text == (
        "published, private: https://hub/commit/1\n"
        "to load it: --model somebody/model of index, search and evaluate, or in Python "
        'load_prompts("somebody/model")\n'
    )
    assert given["private"] is True
    assert given["metrics"] == {"rank1": 0.5, "image_to_text": {"rank1": 0.5}}
    call("push", tmp_path, "somebody/model", "--public", "--create-pr")
    assert (given["private"], given["create_pr"], given["metrics"], given["details"]) == (False, True, None, None)
    call("push", tmp_path, "somebody/model", "--metrics", metrics, "--dataset", "CUHK-PEDES")
    assert given["details"].dataset == "CUHK-PEDES"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({}, "it lacks 'text_to_image'"),
        ({"text_to_image": {"rank1": 0.5}, "image_to_text": {}}, "it lacks 'rank1'"),
        ({"text_to_image": [[1, 0.5]], "image_to_text": {}}, "'int' object has no attribute 'startswith'"),
        ({"text_to_image": 1, "image_to_text": {}}, "'int' object is not iterable"),
    ],
)
def test_push_of_scores_that_are_incomplete_names_the_file(call, tmp_path, content, why):
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps(content))
    code, _, notes = call("push", tmp_path, "somebody/model", "--metrics", metrics, "--dry-run")
    assert (code, notes) == (2, f"error: {metrics} is not a metrics.json of `promptreid evaluate` ({why})\n")


@pytest.mark.parametrize(
    ("settings", "private", "is_new", "words"),
    [
        (["--public"], False, True, "published, public: https://hub/1"),
        ([], True, False, "unchanged, private: https://hub/1 holds these very files already"),
        (["--revision", "v2"], True, True, "--model somebody/m --revision v2 of index"),
        (["--create-pr"], True, True, "pull request opened (private repository): https://hub/1"),
    ],
)
def test_push_says_who_sees_it_and_how_to_load_it(call, tmp_path, monkeypatch, settings, private, is_new, words):
    made = PublishedURL("https://hub/1", is_private=private, is_new=is_new)
    monkeypatch.setattr("promptreid.model.publishing.push_prompts", lambda *_, **__: made)
    code, text, _ = call("push", tmp_path, "somebody/m", *settings)
    assert (code, words in text) == (0, True), text
    _, answer, _ = call("push", tmp_path, "somebody/m", *settings, "--json")
    assert answer == {"url": "https://hub/1", "private": private, "changed": is_new, "exit_code": 0}


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_push_to_nobodys_repository_is_refused_before_any_work(call, tmp_path, monkeypatch, more):
    monkeypatch.setattr("promptreid.model.publishing.push_prompts", lambda *_, **__: pytest.fail("it began"))
    code, _, notes = call("push", tmp_path, "mine", *more)
    assert (code, "argument repository is mine, without its owner; write USER/mine" in notes) == (2, True), notes


def test_what_the_hub_refuses_is_told_without_arguments_of_python():
    words = [*repository._STATUS_WORDS.values()]
    assert "the token is missing, wrong or expired; run `hf auth login`, or set HF_TOKEN to a valid one" in map(
        _in_a_shell, words
    )
    for kind in ("repository", "transfer", "prompt_files"):
        source = (Path(repository.__file__).parent / f"{kind}.py").read_text()
        messages = [line for line in source.splitlines() if "token=" in line and '"' in line]
        assert [line for line in messages if "token=" in _in_a_shell(line)] == []
