import re

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from promptreid.hub.card import CardDetails, check_secrets, make_card

RUNS = [
    {"rank1": 0.70, "mAP": 0.60, "image_to_text": {"rank1": 0.80}},
    {"rank1": 0.74, "mAP": 0.62, "image_to_text": {"rank1": 0.84}},
]
DETAILS = CardDetails(
    dataset="CUHK-PEDES",
    checkpoint_rule="epoch with the best validation mAP",
    seeds=(0, 1),
    training={"epochs": [30, 60], "note": "a | b\n<script>"},
    bare_metrics={"rank1": 0.5},
    notes="Thanks to nobody.",
)
# The Hub's own lists, as far as they concern us: https://huggingface.co/docs/hub/model-cards
PIPELINES = {"feature-extraction", "zero-shot-image-classification", "image-feature-extraction"}
LICENSES = {"mit", "apache-2.0", "cc-by-4.0", "cc-by-nc-4.0", "other", "unknown"}


def make(manifest, **arguments):
    base = arguments.pop("base_model", "timm/vit_base_patch16_clip_224.openai")
    return make_card(manifest, repo_id="alice/prompts", base_model=base, **arguments)


def test_card_round_trips_through_model_card(make_manifest, tmp_path):
    card = make(make_manifest(), metrics=RUNS, details=DETAILS)
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert str(again) == str(card)
    assert again.data.to_dict() == card.data.to_dict()
    assert {(r.metric_type, r.metric_value) for r in again.data.eval_results} == {
        ("rank1", 72.0),  # (70 + 74) / 2
        ("map", 61.0),
        ("rank1_image_to_text", 82.0),
    }


def test_model_index_round_trips_through_eval_result(make_manifest):
    results = make(make_manifest(), metrics=RUNS[0], details=CardDetails(dataset="CUHK-PEDES")).data.eval_results
    index = eval_results_to_model_index("prompts", results)
    name, again = model_index_to_eval_results(index)
    assert name == "prompts"
    assert [r.metric_value for r in again] == [70.0, 60.0, 80.0]
    assert {(r.dataset_type, r.dataset_name, r.dataset_split) for r in again} == {("cuhk-pedes", "CUHK-PEDES", "test")}


def test_front_matter_has_what_the_hub_asks_for(make_manifest):
    text = str(make(make_manifest(), metrics=RUNS[0], details=CardDetails(dataset="CUHK-PEDES")))
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "promptreid"
    assert front["base_model"] == "timm/vit_base_patch16_clip_224.openai"
    assert front["base_model_relation"] == "adapter"
    assert front["pipeline_tag"] in PIPELINES
    assert front["license"] in LICENSES
    assert front["license_name"] == "dataset-terms"
    assert front["license_link"] == "https://huggingface.co/alice/prompts#terms-of-the-data"
    assert "## Terms of the data" in text
    assert front["datasets"] == ["cuhk-pedes"]
    assert {"open_clip", "person-re-identification"} <= set(front["tags"])
    (entry,) = front["model-index"]
    assert set(entry) == {"name", "results"}
    assert all({"task", "dataset", "metrics"} <= set(result) for result in entry["results"])
    assert ModelCardData(**{key.replace("-", "_"): value for key, value in front.items() if key != "model-index"})


def test_card_of_fine_tuned_encoders_says_so(make_manifest):
    digests = dict.fromkeys(("prompts.safetensors", "open_clip_model.safetensors", "open_clip_config.json"), "a" * 64)
    card = make(make_manifest(sha256=digests))
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    assert 'create_model_and_transforms("hf-hub:alice/prompts")' in card.text
    assert "hf-hub" not in make(make_manifest()).text


def test_body_states_scores_spread_rule_seeds_and_settings(make_manifest):
    text = make(make_manifest(), metrics=RUNS, details=DETAILS).text
    # The sample standard deviation of 70 and 74 is sqrt(8) = 2.83.
    assert "| Rank-1 | 72.00 | 2.83 |" in text
    assert "| Rank-1, image to text | 82.00 | 2.83 |" in text
    assert "Runs: 2; seeds: 0, 1; spread is the standard deviation over runs." in text
    assert "Checkpoint: epoch with the best validation mAP." in text
    assert "without prompts, as plain open_clip loads them: rank1 50.00" in text
    assert "| epochs | 30, 60 |" in text
    assert "a \\| b &lt;script>" in text
    assert "Thanks to nobody." in text
    assert 'load_prompts("alice/prompts")' in text
    assert "biometric data" in text
    assert "only for academic research" in text


def test_settings_are_shown_as_people_read_them(make_manifest):
    training = {"depth": None, "warmup share": 1 / 12, "schedule": "linear", "average": False, "size": (96, 48)}
    text = make(make_manifest(), details=CardDetails(training=training)).text
    for row in ("depth | none", "warmup share | 0.08333", "schedule | linear", "average | no", "size | 96, 48"):
        assert f"| {row} |" in text


def test_terms_of_other_data_replace_the_usual_ones(make_manifest):
    text = make(make_manifest(), details=CardDetails(terms="Drawings, nobody's.")).text
    assert "## Terms of the data\n\nDrawings, nobody's.\n\n## Limits" in text
    assert "academic research" not in text


def test_what_is_not_known_is_said_to_be_not_reported(make_manifest):
    card = make(make_manifest(pretrained=None), base_model=None)
    assert "No scores were reported." in card.text
    assert "Settings were not reported." in card.text
    assert "\nPrompts for text-to-image person re-identification: find" in card.text
    assert "base_model" not in card.data.to_dict()
    one = make(make_manifest(), metrics=RUNS[0]).text
    assert "| Rank-1 | 70.00 | one run |" in one
    assert "not stated how it was chosen" in one
    assert "an unnamed dataset" in one


@pytest.mark.parametrize("value", [70, -0.1, float("nan"), "0.7", None, True])
def test_score_that_is_no_fraction_is_refused(make_manifest, value):
    with pytest.raises(ValueError, match=r"rank1 is .*, expected a fraction from 0 to 1"):
        make(make_manifest(), metrics={"rank1": value})
    with pytest.raises(ValueError, match=r"rank1, image to text is"):
        make(make_manifest(), metrics={"image_to_text": {"rank1": value}})


@pytest.mark.parametrize("heading", ["", " ", "a\n## b"])
def test_heading_that_is_not_one_line_is_refused(heading):
    with pytest.raises(ValueError, match="expected one line of text"):
        CardDetails(sections={heading: "text"})


def test_metrics_and_seeds_that_do_not_fit_are_refused(make_manifest):
    with pytest.raises(ValueError, match="there are 1 metrics and 2 seeds; give one for each seed"):
        make(make_manifest(), metrics=RUNS[0], details=DETAILS)
    with pytest.raises(TypeError, match="metrics holds float"):
        make(make_manifest(), metrics=[0.5])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("dataset", 3, "dataset is 3, expected text"),
        ("split", None, "split is None"),
        ("license", None, "license is None"),
        ("training", [1], r"training is \[1\], expected settings by name"),
        ("sections", ["a"], r"sections is \['a'\], expected Markdown by heading"),
        ("sections", {"Hardware": 3}, "sections is .*, expected Markdown by heading"),
    ],
)
def test_details_of_another_type_are_refused(name, value, words):
    with pytest.raises(TypeError, match=words):
        CardDetails(**{name: value})


def test_sections_of_ones_own_stand_in_the_card(make_manifest):
    details = CardDetails(
        training={"epochs": 3}, sections={"Hardware": "One H100, 40 minutes.", "Cost": "$5 for ${all}"}
    )
    text = make(make_manifest(), details=details).text
    assert "| epochs | 3 |\n\n## Hardware\n\nOne H100, 40 minutes.\n\n## Cost\n\n$5 for ${all}\n\n## Terms of" in text
    with pytest.raises(ValueError, match="holds an access token"):
        make(make_manifest(), details=CardDetails(sections={"How": "--token hf_" + "a1B2" * 6}))


def test_card_has_nothing_left_of_its_template(make_manifest):
    digests = dict.fromkeys(("prompts.safetensors", "open_clip_model.safetensors", "open_clip_config.json"), "a" * 64)
    for manifest in (make_manifest(), make_manifest(sha256=digests)):
        assert not re.search(r"<!--|\$|\n\n\n|\n\n$", make(manifest).text)


def test_prompts_of_a_foreign_kind_are_named_in_the_card(make_manifest):
    text = make(make_manifest(kinds={"vision": "mine.Wave"})).text
    assert "4 a block in the text encoder, kind `mine.Wave`, pass `vision_prompts=` to load it, in the image" in text


@pytest.mark.parametrize("secret", ["hf_" + "a1B2" * 6, "ghp_" + "a1B2" * 9, "AKIA" + "A1B2" * 4, "sk-" + "a1B2" * 8])
def test_secrets_are_found_anywhere(make_manifest, secret):
    with pytest.raises(ValueError, match="holds an access token; take it out") as caught:
        make(make_manifest(), details=CardDetails(notes=f"use {secret}."))
    assert secret not in str(caught.value)


def test_own_token_is_found_whatever_it_looks_like():
    with pytest.raises(ValueError, match="holds an access token"):
        check_secrets("run --key my-secret-key", token="my-secret-key")
    check_secrets("nothing here", token="my-secret-key")
    check_secrets("nothing here", token=True)


def test_licence_of_ones_own_is_named_and_linked(make_manifest):
    own = CardDetails(license_name="my-terms-1.0", license_link="https://example.org/terms")
    front = make(make_manifest(), details=own).data.to_dict()
    assert [front[name] for name in ("license", "license_name", "license_link")] == [
        "other",
        "my-terms-1.0",
        "https://example.org/terms",
    ]
    listed = make(make_manifest(), details=CardDetails(license="cc-by-nc-4.0")).data.to_dict()
    assert listed["license"] == "cc-by-nc-4.0"
    assert not {"license_name", "license_link"} & listed.keys()


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ({"license": "MIT"}, "license is 'MIT', expected the Hub's identifier, such as 'mit' or 'other'"),
        ({"license": ""}, "license is ''"),
        ({"license": "mit\nevil: x"}, "license is 'mit"),
        ({"license": "mit", "license_link": "LICENSE"}, 'license_link go with license="other"; leave them out'),
        ({"license_name": "My Terms"}, "license_name is 'My Terms', expected lower case"),
        ({"license_link": "terms.txt"}, r"license_link is 'terms\.txt', expected a URL, 'LICENSE' or 'LICENSE\.md'"),
    ],
)
def test_licence_that_the_hub_would_refuse_is_refused_first(details, words):
    with pytest.raises(ValueError, match=words):
        CardDetails(**details)
