"""Save and load on a local folder, from the model's point of view."""

import copy
import importlib.util
import inspect
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from promptreid import PromptConfig, PromptedCLIP, load_clip, load_prompts, push_prompts, save_prompts
from promptreid.errors import AttachmentError, CheckpointError
from promptreid.files import file_digest
from promptreid.hub.manifest import parse_manifest
from promptreid.model import base_lookup
from promptreid.model.publishing import files_to_push, write_card
from promptreid.towers.converting import convert_weights
from promptreid.towers.loading import ClipSource
from promptreid.towers.tiny import tiny_prompts

SIZE = (32, 16)
PROMPT_FILES = {"prompts.safetensors", "prompt_config.json"}
ALL_FILES = PROMPT_FILES | {"open_clip_model.safetensors", "open_clip_config.json"}


def make_base(size: tuple[int, int] = SIZE) -> torch.nn.Module:
    return load_clip("promptreid-tiny", pretrained="generated", image_size=size)


_BASES: dict[tuple[int, int], torch.nn.Module] = {}


@pytest.fixture
def base() -> torch.nn.Module:
    """A copy of the base that ships with promptreid; making it once is enough."""
    if SIZE not in _BASES:
        _BASES[SIZE] = make_base()
    return copy.deepcopy(_BASES[SIZE])


@pytest.fixture
def model(base: torch.nn.Module) -> PromptedCLIP:
    return PromptedCLIP(base, PromptConfig(text_length=3, vision_length=2, text_depth=2)).eval()


@pytest.fixture
def folder(model: PromptedCLIP, tmp_path: Path) -> Path:
    return save_prompts(model, tmp_path / "prompts")


@pytest.fixture
def tuned(model: PromptedCLIP) -> PromptedCLIP:
    with torch.no_grad():
        for parameter in model.clip.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    return model


@pytest.fixture
def batch(base: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = open_clip.get_tokenizer("promptreid-tiny")(["a woman in a red coat", "a man with a bag", "blue jeans"])
    return torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(3)), tokens


@torch.no_grad()
def scores(model: PromptedCLIP, batch) -> torch.Tensor:
    images, tokens = batch
    images = images.to(next(model.clip.parameters()).dtype)
    return model.encode_text(tokens, normalize=True).float() @ model.encode_image(images, normalize=True).float().T


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("[!.]*")}


def edit(folder: Path, **changes: object) -> None:
    """Change what `prompt_config.json` says, with digests and checksum that fit."""
    path = folder / "prompt_config.json"
    manifest = parse_manifest(path.read_bytes(), source="")
    digests = {name: file_digest(folder / name) for name in manifest.sha256}
    path.write_text(replace(manifest, **{"sha256": digests, **changes}).to_json())


def calls_in(action: Callable[[], object]) -> Counter[str]:
    """How often each function of promptreid is called, by its name."""
    calls: Counter[str] = Counter()

    def note(frame, event: str, _) -> None:
        if event == "call" and "promptreid" in Path(frame.f_code.co_filename).parts:
            calls[frame.f_code.co_name] += 1

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls


def test_loading_looks_at_the_base_once(folder):
    for arguments in ({}, {"model": make_base()}):
        calls = calls_in(lambda arguments=arguments: load_prompts(folder, **arguments))
        assert [calls[name] for name in ("fingerprint", "find_vision_tower", "find_text_tower")] == [1, 1, 1]
        assert calls["refuse_compiled"] == 2  # once a tower


def test_saving_compares_the_weights_and_hashes_once(model, tuned, tmp_path):
    calls = calls_in(lambda: save_prompts(tuned, tmp_path / "tuned"))
    files = ["prompts.safetensors", "open_clip_model.safetensors", "open_clip_config.json"]
    assert [calls[name] for name in ("weights_changed", "fingerprint", "_checksum")] == [1, 1, 1]
    assert calls["file_digest"] == len(files)


def test_signatures_are_shown_in_full_and_stand_once():
    arguments = inspect.signature(load_prompts).parameters
    assert {"model", "revision", "token", "cache_dir", "local_files_only", "trust_base"} <= arguments.keys()
    assert inspect.signature(PromptedCLIP.from_pretrained) == inspect.signature(load_prompts)
    assert (PromptedCLIP.save_pretrained, PromptedCLIP.push_to_hub) == (save_prompts, push_prompts)


def test_prompts_loaded_with_their_base_score_the_same(model, folder, batch):
    loaded = load_prompts(folder)
    assert names(folder) == PROMPT_FILES
    assert torch.equal(scores(loaded, batch), scores(model, batch))
    assert loaded.config == model.config
    assert loaded.source == model.source
    assert not loaded.training
    assert loaded.tokenizer(["a"]).shape == (1, 77)


def test_prompts_loaded_into_a_model_score_the_same(model, folder, batch):
    expected = scores(model, batch)
    clip = model.detach()
    loaded = load_prompts(str(folder), model=clip)
    assert loaded.clip is clip
    assert torch.equal(scores(loaded, batch), expected)


def test_fine_tuned_encoders_score_the_same(tuned, tmp_path, batch):
    folder = save_prompts(tuned, tmp_path / "m")
    assert names(folder) == ALL_FILES
    assert torch.equal(scores(load_prompts(folder), batch), scores(tuned, batch))


def test_random_base_is_saved_with_its_weights(tmp_path, batch):
    model = PromptedCLIP(load_clip("promptreid-tiny", image_size=SIZE)).eval()
    folder = save_prompts(model, tmp_path / "m")
    assert names(folder) == ALL_FILES
    assert torch.equal(scores(load_prompts(folder), batch), scores(model, batch))


def test_encoders_always_saves_the_weights_of_the_base_too(model, tmp_path, batch):
    folder = save_prompts(model, tmp_path / "m", encoders="always")
    assert names(folder) == ALL_FILES
    assert torch.equal(scores(load_prompts(folder), batch), scores(model, batch))


def test_one_layer_norm_trained_a_little_is_saved(model, tmp_path, batch):
    with torch.no_grad():
        model.clip.ln_final.weight.add_(1e-5)
    folder = save_prompts(model, tmp_path / "m")
    assert names(folder) == ALL_FILES
    loaded = load_prompts(folder)
    assert torch.equal(loaded.clip.ln_final.weight, model.clip.ln_final.weight)
    assert names(save_prompts(loaded, tmp_path / "again")) == ALL_FILES


def test_saved_again_a_loaded_model_is_the_same(model, folder, tmp_path, batch):
    again = save_prompts(load_prompts(folder), tmp_path / "again")
    assert names(again) == PROMPT_FILES
    assert (again / "prompts.safetensors").read_bytes() == (folder / "prompts.safetensors").read_bytes()
    assert (again / "prompt_config.json").read_bytes() == (folder / "prompt_config.json").read_bytes()
    assert torch.equal(scores(load_prompts(again), batch), scores(model, batch))


def test_fine_tuned_model_saved_again_keeps_its_weights(tuned, tmp_path, batch):
    loaded = load_prompts(save_prompts(tuned, tmp_path / "one"))
    again = save_prompts(loaded, tmp_path / "two")
    assert names(again) == ALL_FILES
    assert (again / "prompt_config.json").read_bytes() == (tmp_path / "one" / "prompt_config.json").read_bytes()
    assert torch.equal(scores(load_prompts(again), batch), scores(tuned, batch))


def test_saving_over_fine_tuned_prompts_by_prompts_alone_takes_the_weights_away(model, tuned, tmp_path):
    folder = save_prompts(tuned, tmp_path / "m")
    (folder / "notes.txt").write_text("mine")
    save_prompts(PromptedCLIP(make_base()), folder, overwrite=True)
    assert names(folder) == PROMPT_FILES | {"notes.txt"}


def test_model_without_prompts_in_a_tower_round_trips(base, tmp_path, batch):
    model = PromptedCLIP(base, PromptConfig(text_length=0, vision_length=1)).eval()
    loaded = load_prompts(save_prompts(model, tmp_path / "m"))
    assert torch.equal(scores(loaded, batch), scores(model, batch))


def test_tied_weights_are_saved_each_by_itself(model, tmp_path, batch):
    blocks = model.clip.visual.transformer.resblocks
    blocks[1].mlp.c_fc.weight = blocks[0].mlp.c_fc.weight
    folder = save_prompts(model, tmp_path / "m")
    assert names(folder) == ALL_FILES
    assert torch.equal(scores(load_prompts(folder), batch), scores(model, batch))


def test_half_precision_model_saves_prompts_alone_in_float32(model, tmp_path, batch):
    model.clip.bfloat16()
    folder = save_prompts(model, tmp_path / "m")
    assert names(folder) == PROMPT_FILES
    assert {value.dtype for value in load_file(folder / "prompts.safetensors").values()} == {torch.float32}
    loaded = load_prompts(folder, dtype=torch.bfloat16)
    assert next(loaded.clip.parameters()).dtype == torch.bfloat16
    assert loaded.vision.prompts.tokens.dtype == torch.float32
    assert torch.equal(scores(loaded, batch), scores(model, batch))


def test_half_precision_encoders_are_saved_as_they_are_and_score_the_same(tuned, tmp_path, batch):
    tuned.clip.bfloat16()
    folder = save_prompts(tuned, tmp_path / "m")
    assert load_file(folder / "open_clip_model.safetensors")["visual.proj"].dtype == torch.bfloat16
    assert torch.equal(scores(load_prompts(folder, dtype=torch.bfloat16), batch), scores(tuned, batch))


def test_prompts_in_half_precision_are_saved_as_float32(model, tmp_path):
    model.half()
    loaded = load_prompts(save_prompts(model, tmp_path / "m"))
    assert torch.equal(loaded.text.prompts.tokens, model.text.prompts.tokens.float())


def test_device_is_used(folder):
    assert next(load_prompts(folder, device="cpu").parameters()).device.type == "cpu"
    with pytest.raises(RuntimeError, match="nowhere"):
        load_prompts(folder, device="nowhere")


@pytest.mark.parametrize("dtype", [torch.int64, "bfloat16", 16])
def test_dtype_that_is_none_is_refused(folder, dtype):
    with pytest.raises(TypeError, match=r"expected a floating-point torch\.dtype"):
        load_prompts(folder, dtype=dtype)


def test_loading_leaves_the_prompts_as_they_are_and_starts_none(folder, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("probed")

    monkeypatch.setattr("promptreid.prompts.block_tokens.start_states", fail)
    load_prompts(folder)


def test_folder_without_a_name_is_not_the_working_folder(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("", " "):
        with pytest.raises(ValueError, match=r'directory is empty; give a path \("\." is the working folder\)'):
            save_prompts(model, name)
    assert not list(tmp_path.iterdir())
    save_prompts(model, ".")
    for read, argument in ((load_prompts, "source"), (lambda name: push_prompts(name, "a/b"), "model")):
        with pytest.raises(ValueError, match=f"{argument} is empty"):
            read("")
    with pytest.raises(ValueError, match="folder is empty"):
        write_card("")
    assert load_prompts(".").image_size == model.image_size


def test_file_in_place_of_its_folder_is_said_to_be_one(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_prompts(model, "pp/a")
    for name in ("pp/a/prompts.safetensors", tmp_path / "pp" / "a" / "prompt_config.json"):
        with pytest.raises(FileNotFoundError, match=r"is a file; give the folder that it is in, .*pp/a$"):
            load_prompts(name)
    (tmp_path / "pp" / "file").touch()
    with pytest.raises(FileNotFoundError, match=r"pp/file is a file; give the folder that it is in, pp$"):
        load_prompts("pp/file")


def test_folder_that_is_none_is_refused(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_prompts(tmp_path / "no")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file; give a folder"):
        save_prompts(model, tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"has no prompt_config\.json"):
        load_prompts(tmp_path)


def test_existing_prompts_are_not_overwritten_unasked(model, folder):
    with pytest.raises(FileExistsError, match="holds prompts already; choose another folder, or pass overwrite=True"):
        save_prompts(model, folder)
    save_prompts(model, folder, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_of_another_model_is_left_as_it_is(model, tmp_path, overwrite):
    convert_weights("generated", tmp_path, name="promptreid-tiny")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    own = PromptedCLIP(load_clip(f"local-dir:{tmp_path}", image_size=SIZE))
    for each in (model, own):
        with pytest.raises(FileExistsError, match=r"choose another folder"):
            save_prompts(each, tmp_path, overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_prompts_are_not_saved_over_the_base_that_they_need(tuned, tmp_path):
    folder = save_prompts(tuned, tmp_path / "base")
    named = load_clip(f"local-dir:{folder}", image_size=SIZE)
    file = load_clip("promptreid-tiny", pretrained=f"{folder}/open_clip_model.safetensors", image_size=SIZE)
    for clip in (named, file):
        with pytest.raises(FileExistsError, match="holds the weights that these prompts are for; choose another"):
            save_prompts(PromptedCLIP(clip), folder / ".." / "base", overwrite=True)
    assert names(folder) == ALL_FILES


def test_arguments_that_do_not_fit_are_refused(model, base, tmp_path):
    with pytest.raises(ValueError, match="encoders is 'never', expected"):
        save_prompts(model, tmp_path, encoders="never")
    with pytest.raises(TypeError, match="model is CLIP, expected a PromptedCLIP"):
        save_prompts(model.clip, tmp_path)
    model.source = None
    with pytest.raises(ValueError, match=r"pass source=ClipSource"):
        save_prompts(model, tmp_path)


def test_diverged_model_is_not_saved_over_a_sound_one(model, folder):
    with torch.no_grad():
        model.text.prompts.tokens[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity; training diverged, so nothing was saved"):
        save_prompts(model, folder, overwrite=True)
    load_prompts(folder)


def test_head_put_onto_the_open_clip_model_is_not_saved(model, tmp_path):
    model.clip.identity_head = torch.nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"has gained identity_head\.bias, identity_head\.weight since it was made"):
        save_prompts(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_prompts_of_another_size_of_image_are_refused_and_can_be_set_by_hand(model, folder, batch):
    other = make_base((48, 32))
    with pytest.raises(CheckpointError, match=r"trained at image size \(32, 16\), this has \(48, 32\)\. Leave model"):
        load_prompts(folder, model=other)
    moved = PromptedCLIP(other, model.config)
    moved.load_prompt_state_dict(model.prompt_state_dict())
    assert torch.equal(moved.text.prompts.tokens, model.text.prompts.tokens)


def test_every_difference_is_named(model, folder, tuned, clip):
    with pytest.raises(CheckpointError) as caught:
        load_prompts(folder, model=clip)
    for words in (
        "belong to promptreid-tiny tagged 'generated' at image size (32, 16), and not to this model",
        "their vision width is 128, this has 32",
        "their vision depth is 4, this has 3 blocks",
        "their text width is 128, this has 24",
        "its weights differ",
        "Leave model out to load the right one",
    ):
        assert words in str(caught.value)
    assert "text depth" not in str(caught.value)


def test_other_architecture_is_named(folder):
    with pytest.raises(CheckpointError, match=r"this is ViT-S-32-alt; .*their vision width is 128, this has 384"):
        load_prompts(folder, model=load_clip("ViT-S-32-alt", image_size=(32, 32)))


def test_activation_is_compared(folder, model):
    clip = model.detach()
    for block in clip.transformer.resblocks:
        block.mlp.gelu = open_clip.transformer.QuickGELU()
    with pytest.raises(CheckpointError, match="they compute GELU, this QuickGELU"):
        load_prompts(folder, model=clip)


def test_prompts_of_stage_two_are_refused_on_the_base_and_the_other_way_round(folder, tuned, tmp_path):
    stage_two = save_prompts(tuned, tmp_path / "two")
    with pytest.raises(CheckpointError, match="its weights differ: theirs were fine-tuned together with the prompts"):
        load_prompts(stage_two, model=make_base())
    with pytest.raises(CheckpointError, match="its weights differ\\."):
        load_prompts(folder, model=copy.deepcopy(tuned).detach())
    assert load_prompts(stage_two, model=tuned.detach()).base_digests is None


def test_prompts_of_a_hardly_tuned_model_are_refused_on_the_base(model, tmp_path):
    with torch.no_grad():
        for parameter in model.clip.parameters():
            parameter.mul_(1 + 1e-4)
    folder = save_prompts(model, tmp_path / "m")
    with pytest.raises(CheckpointError, match="fine-tuned together with the prompts"):
        load_prompts(folder, model=make_base())
    load_prompts(folder, model=model.detach())


def test_half_precision_base_is_the_same_base(folder, batch):
    loaded = load_prompts(folder, model=make_base().half(), dtype=torch.float32)
    torch.testing.assert_close(scores(loaded, batch), scores(load_prompts(folder), batch), atol=5e-3, rtol=0)


def test_refused_model_is_left_bare(model, folder, batch):
    clip = model.detach()
    bare = clip.encode_image(batch[0])
    edit(
        folder,
        shapes={"vision.prompts.tokens": (4, 2, 128), "text.prompts.tokens": (2, 3, 128)},
        prompts=PromptConfig(),
    )
    with pytest.raises(CheckpointError, match=r"do not fit this model: text\.prompts\.tokens has shape"):
        load_prompts(folder, model=clip)
    assert torch.equal(clip.encode_image(batch[0]), bare)


def test_model_that_is_none_is_refused(model, folder):
    with pytest.raises(TypeError, match=r"a PromptedCLIP already; pass the open_clip model"):
        load_prompts(folder, model=model)
    with pytest.raises(AttachmentError, match="already carries prompts"):
        load_prompts(folder, model=model.clip)
    with pytest.raises(TypeError, match="model is Linear, expected the open_clip model"):
        load_prompts(folder, model=torch.nn.Linear(2, 2))


def test_base_that_open_clip_does_not_list_needs_trust(folder):
    edit(folder, model_name="hf-hub:somebody/model")
    with pytest.raises(CheckpointError, match=r"lists no architecture 'hf-hub:somebody/model'.*trust_base=True"):
        load_prompts(folder)
    with pytest.raises(CheckpointError, match="cannot be made"):
        load_prompts(folder, trust_base=True)


def test_weights_that_open_clip_does_not_list_need_trust(model, tmp_path, batch):
    weights = tmp_path / "own.pt"
    torch.save(make_base((64, 64)).state_dict(), weights)
    square = load_clip("promptreid-tiny", pretrained=str(weights), image_size=(64, 64))
    folder = save_prompts(PromptedCLIP(square), tmp_path / "m")
    assert names(folder) == PROMPT_FILES
    with pytest.raises(CheckpointError, match=r"lists no weights of promptreid-tiny tagged .*own\.pt.*trust_base=True"):
        load_prompts(folder)
    loaded = load_prompts(folder, trust_base=True)
    assert torch.equal(loaded.clip.text_projection, square.text_projection)


FILE_SETTINGS = [
    {"quick_gelu": True},
    {"quick_gelu": False},
    {"weights_size": SIZE},
    {"weights_size": SIZE, "quick_gelu": True},
]


@pytest.mark.parametrize("settings", FILE_SETTINGS, ids=str)
def test_prompts_on_a_file_that_needed_settings_load_with_them(tmp_path, batch, settings):
    weights = tmp_path / "own.pt"
    torch.save(make_base(settings.get("weights_size", (64, 64))).state_dict(), weights)
    clip = load_clip("promptreid-tiny", pretrained=weights, image_size=SIZE, **settings)
    model = PromptedCLIP(clip, PromptConfig(text_length=3, vision_length=2)).eval()
    folder = save_prompts(model, tmp_path / "m")
    assert names(folder) == PROMPT_FILES
    loaded = load_prompts(folder, trust_base=True)
    assert torch.equal(scores(loaded, batch), scores(model, batch))
    assert (loaded.source, loaded.source.quick_gelu) == (model.source, model.source.quick_gelu)
    again = save_prompts(loaded, tmp_path / "again")
    assert names(again) == PROMPT_FILES
    assert (again / "prompt_config.json").read_bytes() == (folder / "prompt_config.json").read_bytes()


def test_prompts_published_with_the_weights_of_a_file_do_not_state_its_path_or_size(tmp_path):
    weights = tmp_path / "own.pt"
    torch.save(make_base().state_dict(), weights)
    clip = load_clip("promptreid-tiny", pretrained=weights, image_size=SIZE, weights_size=SIZE)
    folder = save_prompts(PromptedCLIP(clip), tmp_path / "m", encoders="always")
    published = parse_manifest(files_to_push(folder, "alice/m")["prompt_config.json"], source="")
    assert published.source == ClipSource("promptreid-tiny", None, SIZE)


def test_base_file_that_changed_is_explained_without_the_advice_to_leave_out_a_model(tmp_path):
    weights = tmp_path / "own.pt"
    state = make_base((64, 64)).state_dict()
    torch.save(state, weights)
    folder = save_prompts(
        PromptedCLIP(load_clip("promptreid-tiny", pretrained=weights, image_size=SIZE)), tmp_path / "m"
    )
    torch.save({name: value + 0.1 for name, value in state.items()}, weights)
    with pytest.raises(CheckpointError, match=r"its weights differ\. The base has changed since") as caught:
        load_prompts(folder, trust_base=True)
    assert "Leave model out" not in str(caught.value)
    holder = PromptedCLIP(make_base((48, 32)))
    with pytest.raises(CheckpointError, match=r"\(48, 32\)\. Load them by themselves, with load_prompts"):
        holder.add_prompts("other", folder)


class Harm:
    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*TorchScript archive:UserWarning")
@pytest.mark.parametrize(("kind", "words"), [("pickle", "could run code"), ("script", "could run code|TorchScript")])
def test_base_that_would_run_code_is_refused_even_if_trusted(model, folder, tmp_path, monkeypatch, kind, words):
    monkeypatch.chdir(tmp_path)
    if kind == "pickle":
        torch.save({"state_dict": Harm()}, "harm.pt")
    else:
        torch.jit.script(torch.nn.Linear(2, 2)).save("harm.pt")
    edit(folder, pretrained="harm.pt")
    with pytest.raises(CheckpointError, match=words):
        load_prompts(folder, trust_base=True)
    assert not Path("harmed").exists()


def test_architecture_that_is_not_open_clips_needs_trust(tuned, tmp_path, batch):
    folder = save_prompts(tuned, tmp_path / "m")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "somebody/model"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    edit(folder)
    with pytest.raises(CheckpointError, match=r"is not open_clip's of promptreid-tiny.*trust_base=True"):
        load_prompts(folder)


def test_image_size_no_file_has_memory_for_is_refused(tuned, tmp_path):
    folder = save_prompts(tuned, tmp_path / "m")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = [2048, 2048]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    edit(folder, image_size=(2048, 2048))
    with pytest.raises(CheckpointError, match=r"of another shape visual\.positional_embedding"):
        load_prompts(folder)


@pytest.mark.parametrize("image_size", ["large", [0, 0], [-8, 8], [1.5, 2], None, {}])
def test_image_size_that_is_none_is_refused(tuned, tmp_path, image_size):
    folder = save_prompts(tuned, tmp_path / "m")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = image_size
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    edit(folder)
    with pytest.raises(CheckpointError, match="image_size"):
        load_prompts(folder)


def test_encoders_that_lack_weights_are_refused_before_any_is_read(tuned, tmp_path, monkeypatch):
    folder = save_prompts(tuned, tmp_path / "m")
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["extra"] = weights.pop("logit_scale")
    from safetensors.torch import save_file

    save_file(weights, folder / "open_clip_model.safetensors")
    edit(folder)
    monkeypatch.setattr(base_lookup, "read_weights", lambda *_: pytest.fail("read"))
    with pytest.raises(CheckpointError, match="missing logit_scale, unexpected extra, of another shape none"):
        load_prompts(folder)


def test_tag_whose_weights_changed_is_refused(folder):
    edit(folder, base_fingerprint=(0.5,) * 256, encoders_fingerprint=(0.5,) * 256)
    with pytest.raises(CheckpointError, match="and not to this model: its weights differ"):
        load_prompts(folder)


CHANGED = ["token_embedding.weight", "visual.positional_embedding", "positional_embedding", "visual.conv1.weight"]


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*CHANGED, "ln_final.bias", "visual.proj", "text_projection"])
def test_base_with_one_row_changed_is_refused(model, folder, name, precision):
    clip = model.detach()
    with torch.no_grad():
        clip.get_parameter(name)[1] += 0.5
    with pytest.raises(CheckpointError, match=r"and not to this model: (some of )?its weights differ"):
        load_prompts(folder, model=clip.to(precision))
    assert not hasattr(clip.visual, "promptreid_prompts")


@pytest.mark.parametrize("name", CHANGED)
def test_base_changed_behind_pytorchs_back_is_refused(folder, name):
    clip = make_base()
    clip.get_parameter(name).data[1] += 0.5  # as PEFT merges, which no counter of PyTorch's notes
    with pytest.raises(CheckpointError, match="its weights differ"):
        load_prompts(folder, model=clip)


def test_weights_are_read_whole_once_until_something_is_written_to_them(folder):
    clip = make_base()
    reads = []
    for _ in range(2):
        reads.append(calls_in(lambda: load_prompts(folder, model=clip).detach())["weight_digests"])
    other = copy.deepcopy(clip)
    for _ in range(2):
        reads.append(calls_in(lambda: load_prompts(folder, model=other).detach())["weight_digests"])
    with torch.no_grad():
        other.ln_final.bias.mul_(1)
    reads.append(calls_in(lambda: load_prompts(folder, model=other).detach())["weight_digests"])
    assert reads == [0, 0, 1, 0, 1]


def test_base_changed_by_less_than_any_rounding_is_refused(model, folder):
    clip = model.detach()
    with torch.no_grad():
        clip.ln_final.bias[0] = torch.nextafter(clip.ln_final.bias[0], torch.tensor(9.0))
    with pytest.raises(CheckpointError, match=r"some of its weights differ .*Leave model out to load the right one"):
        load_prompts(folder, model=clip)


@pytest.mark.parametrize("saved", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_base_in_another_precision_is_the_same_base(tmp_path, saved, given):
    folder = save_prompts(PromptedCLIP(make_base().to(saved)), tmp_path / "m")
    load_prompts(folder, model=make_base().to(given))


def test_base_in_mixed_precision_is_the_same_base(folder):
    clip = make_base()
    clip.transformer.half()  # open_clip's own "fp16" keeps norms and embeddings as they are
    load_prompts(folder, model=clip)
    with torch.no_grad():
        clip.token_embedding.weight[1] += 0.5
    with pytest.raises(CheckpointError, match="its weights differ"):
        load_prompts(folder, model=clip)


def test_rounding_of_positions_does_not_matter(model, folder):
    clip = model.detach()
    with torch.no_grad():
        clip.visual.positional_embedding.mul_(1 + 1e-5)  # as another machine resizes it
    load_prompts(folder, model=clip)


def test_file_of_an_older_version_without_checksums_is_held_to_samples_alone(model, folder):
    edit(folder, weights={})
    assert "weights" not in json.loads((folder / "prompt_config.json").read_text())
    clip = model.detach()
    with torch.no_grad():
        clip.token_embedding.weight[1] += 0.5
    load_prompts(folder, model=clip)


def test_tag_whose_weights_changed_in_one_place_is_refused(folder):
    edit(folder, weights={"float32": "0" * 16})
    with pytest.raises(CheckpointError, match="some of its weights differ"):
        load_prompts(folder)


def test_prompts_of_stage_two_are_refused_on_encoders_with_one_row_changed(tuned, tmp_path):
    folder = save_prompts(tuned, tmp_path / "two")
    clip = tuned.detach()
    load_prompts(folder, model=clip).detach()
    with torch.no_grad():
        clip.token_embedding.weight[1] += 0.5
    with pytest.raises(CheckpointError, match="some of its weights differ"):
        load_prompts(folder, model=clip)


def test_source_can_be_told_for_a_model_that_open_clip_made(tmp_path, batch):
    clip = open_clip.create_model("promptreid-tiny", force_image_size=SIZE)
    clip.load_state_dict(make_base().state_dict())
    model = PromptedCLIP(clip, source=ClipSource("promptreid-tiny", "generated", SIZE)).eval()
    folder = save_prompts(model, tmp_path / "m")
    assert names(folder) == PROMPT_FILES
    assert torch.equal(scores(load_prompts(folder), batch), scores(model, batch))


def test_plain_open_clip_loads_the_fine_tuned_encoders(tuned, tmp_path, batch):
    folder = save_prompts(tuned, tmp_path / "m")
    clip, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    with tuned.disabled(), torch.no_grad():
        expected = tuned.encode_image(batch[0])
    torch.testing.assert_close(clip.eval().encode_image(batch[0]), expected)
    assert transform(__import__("PIL.Image").Image.new("RGB", (40, 90))).shape == (3, *SIZE)


def test_base_changed_before_wrapping_is_saved_with_its_weights(tmp_path, batch):
    base = make_base()
    base.load_state_dict({key: value + 0.01 for key, value in base.state_dict().items()})
    model = PromptedCLIP(base).eval()
    folder = save_prompts(model, tmp_path / "m")
    assert names(folder) == ALL_FILES
    assert torch.equal(scores(load_prompts(folder), batch), scores(model, batch))


def test_one_row_changed_after_wrapping_is_saved(model, tmp_path, batch):
    with torch.no_grad():
        model.clip.token_embedding.weight[model.tokenizer(["red"])[0, 1]] += 1
    folder = save_prompts(model, tmp_path / "m")
    assert names(folder) == ALL_FILES
    assert torch.equal(scores(load_prompts(folder), batch), scores(model, batch))


def test_source_that_was_told_is_not_believed_of_other_weights_or_another_architecture(tmp_path, batch):
    base = make_base()
    with torch.no_grad():
        base.token_embedding.weight[3] += 1
    told = ClipSource("promptreid-tiny", "generated", (SIZE[0], SIZE[1]))
    object.__setattr__(base, "promptreid_source", None)  # as of a model that open_clip made
    model = PromptedCLIP(base, source=told).eval()
    folder = save_prompts(model, tmp_path / "m")
    assert names(folder) == ALL_FILES
    assert torch.equal(scores(load_prompts(folder), batch), scores(model, batch))
    other = PromptedCLIP(make_base(), source=ClipSource("ViT-B-32", "openai", SIZE))
    with pytest.raises(ValueError, match=r"said to be ViT-B-32, but has gained .* and lacks .* source that the model"):
        save_prompts(other, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("size", "files"), [((48, 48), PROMPT_FILES), (SIZE, ALL_FILES)])
def test_source_that_was_told_is_named_where_it_gives_the_model_again(tmp_path, size, files):
    base = load_clip("promptreid-tiny", pretrained="generated", image_size=size)
    base.load_state_dict({key: value + 0.01 for key, value in base.state_dict().items()})
    torch.save(base.state_dict(), tmp_path / "mine.pt")  # of another size than a square it does not load unasked
    model = PromptedCLIP(base, source=ClipSource("promptreid-tiny", str(tmp_path / "mine.pt"), size)).eval()
    assert names(save_prompts(model, tmp_path / "m")) == files
    again = load_prompts(tmp_path / "m", trust_base=True)
    images = torch.randn(2, 3, *size)
    assert torch.equal(again.encode_image(images), model.encode_image(images))


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_source_of_a_file_may_be_told_without_its_activation(tmp_path, batch, quick_gelu):
    weights, length = tmp_path / "own.pt", 32
    state = make_base((64, 64)).state_dict()
    torch.save(state | {"positional_embedding": state["positional_embedding"][:length]}, weights)
    clip = load_clip("promptreid-tiny", pretrained=weights, image_size=SIZE, quick_gelu=quick_gelu)
    model = PromptedCLIP(clip, source=ClipSource("promptreid-tiny", str(weights), SIZE)).eval()
    folder = save_prompts(model, tmp_path / "m")
    assert names(folder) == PROMPT_FILES
    images = torch.randn(2, 3, *SIZE)
    assert torch.equal(load_prompts(folder, trust_base=True).encode_image(images), model.encode_image(images))


@pytest.mark.parametrize("told", [None, ClipSource("promptreid-tiny", "generated", (96, 48))])
def test_adapters_inside_are_refused_with_what_to_do(tmp_path, told):
    base = make_base()
    linear = base.visual.transformer.resblocks[0].mlp.c_fc
    linear.lora_A = torch.nn.Linear(linear.in_features, 2, bias=False)  # as PEFT names them
    model = PromptedCLIP(base, source=told)
    with pytest.raises(ValueError, match=r"gained visual\..*lora_A\.weight since .*get_peft_model"):
        save_prompts(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_load_prompts_crosses_at_most_23_files_of_the_package():
    path = Path(__file__).parents[2] / "tools" / "files_crossed.py"
    spec = importlib.util.spec_from_file_location("files_crossed", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    folder = tiny_prompts()
    load_prompts(folder)  # so that lazy imports are done
    assert tool.files_crossed(lambda: load_prompts(folder))["files"] <= 23
