"""Every row of the table in docs/weights.md is a test, and what it says to type can be typed."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from promptreid.cli.main import build_parser

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "weights.md"
CHECKPOINTS, FOREIGN, CONVERTING = (f"towers/test_{name}.py" for name in ("checkpoints", "transformers", "converting"))
BASES, COMMAND = "hub/test_bases.py", "cli/test_convert_weights.py"
FIELD = (CHECKPOINTS, "test_field_checkpoint_gives_its_encoders_activation_size_and_statistics")
# Row, by how it begins → the test of what it says.
TESTS = {
    "nothing yet": (BASES, "test_tag_of_every_family_gives_open_clips_features_and_our_resize"),
    "OpenAI's": (CHECKPOINTS, "test_openai_torchscript_is_read_without_its_code_and_gets_quick_gelu"),
    "its tensors in a dictionary": (CHECKPOINTS, "test_openai_tensors_as_a_dictionary_are_told_by_their_keys"),
    "a checkpoint of open_clip's training": (CHECKPOINTS, "test_training_checkpoints_and_state_dicts_are_loaded"),
    "a file with": (CHECKPOINTS, "test_activation_is_that_of_the_configuration_beside_the_file"),
    "a folder of open_clip": (CONVERTING, "test_file_becomes_a_folder_that_open_clip_and_promptreid_load"),
    "a repository of open_clip": ("hub/test_download.py", "test_damaged_base_in_the_cache_is_fetched_once_more"),
    "a folder of transformers' `CLIPModel`": (
        *(FOREIGN, "test_folder_of_a_clip_model_gives_its_features_and_goes_back_byte_for_byte"),
    ),
    "the same in several files": (*(CONVERTING, "test_sharded_folders_of_transformers_in_both_formats_are_loaded"),),
    "a repository of transformers": (
        *(BASES, "test_source_is_pinned_to_the_commit_so_that_it_is_made_again_as_it_was"),
    ),
    "a folder or repository of transformers' `SiglipModel`": (FOREIGN, "test_siglip_model_there_and_back"),
    "IRRA's": (CHECKPOINTS, "test_irra_features_equal_a_plain_forward_on_its_own_names"),
    "RDE's": FIELD,
    "TBPS-CLIP's": FIELD,
    "CLIP-ReID's": (CHECKPOINTS, "test_clip_reid_gives_its_image_encoder_and_the_text_encoder_it_left_frozen"),
    "published results": (COMMAND, "test_public_checkpoint_is_scored_as_its_own_model_is"),
    "any of these": (COMMAND, "test_convert_says_what_the_file_is_and_writes_a_folder_for_every_command"),
    "your own model": (CONVERTING, "test_open_clip_to_transformers_and_back_is_byte_equal"),
}


def rows():
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def test_table_is_the_only_one_and_every_row_has_its_test():
    found = rows()
    assert all(len(row) == 3 for row in found)
    assert len(found) == len(TESTS)
    for (held, _, checked), (start, (file, name)) in zip(found, TESTS.items(), strict=True):
        assert held.startswith(start), held
        assert checked
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", text, re.MULTILINE), f"{held}: {file} has no {name}"


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:30])
def test_what_a_row_says_to_type_can_be_typed(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DATA").mkdir()
    typed = re.findall(r"`(.*?)`", row[1])
    assert typed or row[1] == "the same"
    for words in typed:
        if words.startswith("promptreid "):
            build_parser().parse_args(shlex.split(words)[1:])
        else:
            (call,) = ast.parse(words).body
            assert ast.unparse(call.value.func) == "load_clip"
            assert {argument.arg for argument in call.value.keywords} <= {"pretrained", "quick_gelu", "image_size"}
