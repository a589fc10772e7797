import pytest


@pytest.fixture
def card_example(run_example, capsys):
    return run_example("A card field")


def test_card_shows_the_sections_once_below_the_training_settings(card_example, capsys):
    from promptreid.hub.card import make_card

    card = str(make_card(card_example.manifest, repo_id="you/prompts", base_model=None, details=card_example.details))
    assert card.count("\n## Hardware\n\nOne laptop, 20 minutes for each seed.\n") == 1
    order = [card.index(f"\n## {heading}\n") for heading in ("Training", "Hardware", "Known failures")]
    assert order == sorted(order)


def test_published_card_shows_the_sections(card_example, monkeypatch):
    uploaded = {}
    monkeypatch.setattr(
        "promptreid.model.publishing.upload_files", lambda repository, files, **_: uploaded.update(files) or "url"
    )
    card_example.model.push_to_hub("you/your-prompts", details=card_example.details)
    assert "\n## Known failures\n\nSentences without colours find anybody.\n" in uploaded["README.md"].decode()
