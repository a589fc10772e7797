"""The interactive snippets about the Hub, in the README and its page, against the Hub of the tests."""

import re
from doctest import DocTestParser
from pathlib import Path

import pytest

from promptreid import evaluate, save_prompts
from promptreid.data.reader import load_dataset
from promptreid.synthetic import write_generated

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub's upload
ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```pycon\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "docs/hub.md"])
def test_interactive_snippets_push_and_load(page, hub, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", next(token for token, user in hub.tokens.items() if user == "alice"))
    save_prompts(model, "run/model")
    data = load_dataset(write_generated("data", num_identities=(2, 2, 4), seed=0, progress=False))
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert blocks
    names = {"model": model, "evaluate": evaluate, "data": data}
    for block in blocks:
        for example in DocTestParser().get_examples(re.sub(r'"(?:you|user)/', '"alice/', block)):
            exec(compile(example.source, page, "exec"), names)
    assert hub.repos
    assert names["model"] is not model
    assert names["model"].prompt_state_dict().keys() == model.prompt_state_dict().keys()
