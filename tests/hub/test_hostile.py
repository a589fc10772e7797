"""Folders made to do harm: links, pipes, values out of bounds. Each is refused in our own words, and harms nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from promptreid import load_clip, load_prompts, save_prompts
from promptreid.errors import CheckpointError, PromptReidError
from promptreid.files import file_digest
from promptreid.hub.manifest import _checksum
from promptreid.towers.loading import ClipSource


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return save_prompts(model, tmp_path / "m")


@pytest.fixture
def tuned_folder(tuned, tmp_path) -> Path:
    return save_prompts(tuned, tmp_path / "t")


def change(path: Path, *keys: str, value: object) -> None:
    """Put a value into a JSON file, and make the digests fit, as whoever means harm would."""
    document = json.loads(path.read_bytes())
    holder = document
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = value
    path.write_text(json.dumps(document), encoding="utf-8")
    manifest = path.with_name("prompt_config.json")
    values = json.loads(manifest.read_bytes())
    values["sha256"] = {name: file_digest(path.with_name(name)) for name in values["sha256"]}
    values.pop("checksum")
    values["checksum"] = _checksum(values)
    manifest.write_text(json.dumps(values))


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("text_length", 100, "cannot be put into promptreid-tiny: length is 100"),
        ("text_depth", 9, "cannot be put into promptreid-tiny: depth is 9, but .* has 4 blocks"),
        ("vision_length", 65536, "length is 65536"),
        ("vision_place", "attention_pool", 'place is "attention_pool", but this .* has none'),
    ],
)
def test_prompts_that_the_towers_have_no_room_for_are_refused(folder, setting, value, words):
    change(folder / "prompt_config.json", "prompts", setting, value=value)
    with pytest.raises(CheckpointError, match=words):
        load_prompts(folder)


@pytest.mark.parametrize("size", [[65536, 65536], [4096, 1025]])
def test_image_size_that_would_take_all_memory_is_refused(folder, size):
    change(folder / "prompt_config.json", "image_size", value=size)
    with pytest.raises(CheckpointError, match=r"expected at most 4194304 pixels"):
        load_prompts(folder)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("mean", [float("nan")] * 3, "mean is"),
        ("mean", "abc", "mean is 'abc', expected 3 numbers|mean is abc, expected 3 numbers"),
        ("mean", [0.5], "expected 3 numbers from -10.0 to 10.0"),
        ("mean", [1e300] * 3, "expected 3 numbers"),
        ("mean", [10**400] * 3, "expected 3 numbers"),
        ("std", [0, 0, 0], "expected 3 numbers from 0.001 to 10.0"),
        ("std", [True] * 3, "expected 3 numbers"),
        ("interpolation", "evil", "interpolation is 'evil', expected one of bicubic"),
        ("resize_mode", 7, "resize_mode is '7'"),
        ("mode", "CMYK", "mode is 'CMYK', expected one of RGB"),
        ("mode", [], r"mode is '\[\]'"),
        ("fill_color", 10**9, "fill_color is"),
        ("size", [10**9, 10**9], "image_size is"),
        ("size", "x", "image_size is"),
        ("evil", 1, r"preprocess_cfg has unknown keys \['evil'\]"),
    ],
)
def test_preprocessing_out_of_bounds_is_refused(tuned_folder, name, value, words):
    change(tuned_folder / "open_clip_config.json", "preprocess_cfg", name, value=value)
    with pytest.raises(CheckpointError, match=words):
        load_prompts(tuned_folder)


@pytest.mark.parametrize("levels", [30, 400, 900])
@pytest.mark.parametrize("keys", [("model_cfg", "text_cfg"), ("model_cfg", "quick_gelu"), ("preprocess_cfg", "mean")])
@pytest.mark.parametrize("trust_base", [False, True])
def test_deep_nesting_is_refused(tuned_folder, keys, levels, trust_base):
    change(tuned_folder / "open_clip_config.json", *keys, value=nested(levels))
    with pytest.raises(CheckpointError, match=r"nested more than 16 levels deep"):
        load_prompts(tuned_folder, trust_base=trust_base)


@pytest.mark.parametrize(
    "config",
    [
        {"text_cfg": None},
        {"vision_cfg": 3},
        {"vision_cfg": {"image_size": [32, 16], "layers": -1, "width": 64}},
        {"vision_cfg": {"image_size": [32, 16], "layers": 10**7, "width": 64}},
        {"vision_cfg": {"image_size": [32, 16], "layers": [1000, 1000], "width": 64}},
        {"embed_dim": 2**40},
        {"embed_dim": "x"},
        {"text_cfg": {"hf_model_name": "./nothing", "hf_tokenizer_name": "./nothing"}},
    ],
)
def test_architecture_that_cannot_be_made_is_refused_even_if_trusted(tuned_folder, config):
    pytest.importorskip("transformers", exc_type=ImportError)
    for name, value in config.items():
        change(tuned_folder / "open_clip_config.json", "model_cfg", name, value=value)
    with pytest.raises(PromptReidError, match=r"base of these prompts|layers of vision_cfg"):
        load_prompts(tuned_folder, trust_base=True)


@pytest.mark.parametrize("name", ["prompts.safetensors", "prompt_config.json", "open_clip_model.safetensors"])
@pytest.mark.parametrize(
    "target", ["/dev/zero", "/etc/passwd", "/nowhere", ".", "/proc/self/mem", "/proc/kmsg", "pipe"]
)
def test_links_and_pipes_in_place_of_files_are_refused(tuned_folder, tmp_path, name, target):
    (tuned_folder / name).unlink()
    os.mkfifo(tmp_path / "pipe")
    (tuned_folder / name).symlink_to(tmp_path / "pipe" if target == "pipe" else target)
    with pytest.raises(CheckpointError, match=f"{name}"):
        load_prompts(tuned_folder)


def test_staged_name_that_is_a_link_is_refused(folder):
    digest = json.loads((folder / "prompt_config.json").read_bytes())["sha256"]["prompts.safetensors"]
    (folder / f".prompts.safetensors-{digest}").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match=r"is corrupt|bytes, expected at most"):
        load_prompts(folder)


def test_link_in_place_of_the_lock_is_not_followed(folder, model, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (folder / ".prompts.lock").unlink(missing_ok=True)
    (folder / ".prompts.lock").symlink_to(precious)
    with pytest.raises(OSError, match=r"\.prompts\.lock is a link or not a regular file; remove it"):
        save_prompts(model, folder, overwrite=True)
    (folder / "prompts.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"prompts\.safetensors is missing"):
        load_prompts(folder)
    assert precious.read_text() == "mine"


def test_pipe_in_place_of_the_lock_does_not_hang(folder, model):
    (folder / ".prompts.lock").unlink(missing_ok=True)
    os.mkfifo(folder / ".prompts.lock")
    (folder / "prompts.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"prompts\.safetensors is missing"):
        load_prompts(folder)
    with pytest.raises(OSError, match="is a link or not a regular file"):
        save_prompts(model, folder, overwrite=True)


HOLD = """
import sys
from huggingface_hub.utils import WeakFileLock
with WeakFileLock(sys.argv[1], timeout=60):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_that_stays_held_is_explained(folder, model, monkeypatch):
    monkeypatch.setattr("promptreid.hub.prompt_files._LOCK_SECONDS", 0.3)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / ".prompts.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError, match=r"another process has been saving into .*m for 0\.3 s; wait for it"):
            save_prompts(model, folder, overwrite=True)
        holder.stdin.close()
    load_prompts(folder)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (ClipSource("promptreid-tiny", "/weights/" + "x" * 600, (32, 16)), "pretrained is"),
        (ClipSource("a\nb", "generated", (32, 16)), "model_name is"),
    ],
)
def test_what_could_not_be_loaded_again_is_not_saved(model, tmp_path, source, words):
    model.source = source
    with pytest.raises(ValueError, match=f"what would be saved could not be loaded again: .*{words}"):
        save_prompts(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_preprocessing_that_could_not_be_loaded_again_is_not_saved(tuned, tmp_path):
    tuned.clip.visual.preprocess_cfg["mean"] = (float("nan"),) * 3
    with pytest.raises(ValueError, match=r"could not be loaded again: .*mean is"):
        save_prompts(tuned, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_cfg", "tokenizer_kwargs", {"trust_remote_code": True}),
        ("text_cfg", "tokenizer_kwargs", {"bpe_path": "/etc/passwd"}),
        ("text_cfg", "tokenizer_kwargs", "x"),
        ("text_cfg", "tokenizer_kwargs", {"clean": "os.system"}),
        ("text_cfg", "tokenizer_kwargs", {"clean": ["lower"]}),
        ("text_cfg", "tokenizer_kwargs", {"reduction_mask": "all"}),
        ("text_cfg", "hf_tokenizer_name", "/tmp/theirs"),
        ("text_cfg", "hf_model_name", ["x"]),
        ("text_cfg", "act_kwargs", {"evil": 1}),
        ("vision_cfg", "timm_model_name", "hf-hub:somebody/model"),
        ("vision_cfg", "timm_model_name", "local-dir:/tmp/theirs"),
        ("vision_cfg", "norm_kwargs", {"evil": 1}),
    ],
)
def test_what_could_make_a_library_run_code_is_refused_from_a_folder_and_a_repository(tuned_folder, part, key, value):
    from promptreid.towers.tokenizer import tokenizer_of

    change(tuned_folder / "open_clip_config.json", "model_cfg", part, key, value=value)
    with pytest.raises(CheckpointError, match=f"{key} is "):
        load_prompts(tuned_folder, trust_base=True)
    for load in (load_clip, tokenizer_of):
        with pytest.raises(ValueError, match=f"{key} is "):
            load(f"local-dir:{tuned_folder}")


def test_what_open_clip_lists_is_not_refused(zoo):
    import open_clip

    from promptreid.towers.weights import check_architecture

    for name in zoo.names():
        check_architecture(open_clip.get_model_config(name))


def test_transformers_neither_runs_nor_asks_to_run_the_code_of_a_repository(tuned_folder, tmp_path, monkeypatch):
    import builtins

    hf_model = pytest.importorskip("open_clip.hf_model")
    pytest.importorskip("transformers")
    evil, asked = tmp_path / "evil", []
    evil.mkdir()
    own = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
    (evil / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": own}))
    (evil / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    monkeypatch.setattr(builtins, "input", lambda *words: asked.append(words) or "y")
    real = hf_model.AutoConfig.from_pretrained
    monkeypatch.setattr(hf_model.AutoConfig, "from_pretrained", lambda _, **more: real(str(evil), **more))
    for key, value in (("hf_model_name", "bob/evil"), ("hf_proj_type", "linear"), ("hf_pooler_type", "cls_pooler")):
        change(tuned_folder / "open_clip_config.json", "model_cfg", "text_cfg", key, value=value)
    said = "custom code|execute the configuration file"  # as transformers has it, new and old
    with pytest.raises(ValueError, match=said):
        load_clip(f"local-dir:{tuned_folder}")
    with pytest.raises(PromptReidError, match=f"{said}|does not hold the weights"):
        load_prompts(tuned_folder, trust_base=True)
    assert asked == []
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (
            ("model_cfg", "surprise"),
            1,
            r"cannot build the model described in .*config\.json.* unexpected keyword .*surprise",
        ),
        (
            ("model_cfg", "vision_cfg", "width"),
            "wide",
            r"cannot build the model described in .*open_clip_config\.json.*; upgrade it",
        ),
    ],
)
def test_configuration_that_open_clip_makes_nothing_of_is_named(tuned_folder, keys, value, words):
    change(tuned_folder / "open_clip_config.json", *keys, value=value)
    with pytest.raises(ValueError, match=words):
        load_clip(f"local-dir:{tuned_folder}")


def test_tokenizer_that_cannot_be_downloaded_is_named(tuned_folder, monkeypatch):
    from promptreid.errors import HubError
    from promptreid.towers import tokenizer

    def missing(*arguments, **options):
        raise OSError("we could not connect")

    monkeypatch.setattr(tokenizer, "HFTokenizer", missing)
    change(tuned_folder / "open_clip_config.json", "model_cfg", "text_cfg", "hf_tokenizer_name", value="bob/words")
    with pytest.raises(HubError, match=r"the tokenizer bob/words of local-dir:.* cannot be downloaded \(we could not"):
        tokenizer.tokenizer_of(f"local-dir:{tuned_folder}")
