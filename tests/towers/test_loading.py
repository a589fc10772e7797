"""Making open_clip models: the right name, size, activation and weights, or a clear refusal."""

import json
import logging
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from promptreid import load_clip
from promptreid.errors import CheckpointError
from promptreid.towers import loading
from promptreid.towers.families.open_clip_vit import resize_grid
from promptreid.towers.loading import ClipSource, load_clip_from_config, model_config, preprocess_config, source_of
from promptreid.towers.weights import load_weights

TINY = Path(loading.__file__).parent / "tiny" / "promptreid-tiny.safetensors"


def remake(clip, image_size):
    return load_clip_from_config(
        model_config(clip), clip.state_dict(), image_size=image_size, preprocess_cfg=preprocess_config(clip)
    )


@pytest.fixture
def tiny():
    return load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))


@pytest.mark.parametrize(("name", "near"), [("ViT-B/16", "ViT-B-16"), ("promptreid-tny", "promptreid-tiny")])
def test_unknown_name_is_refused_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"no model named '{name}'. Did you mean .*{near}"):
        load_clip(name)


def test_unknown_name_like_none_points_to_the_list():
    with pytest.raises(ValueError, match=r"no model named 'xyzzyxyzzy'. open_clip\.list_models\(\) lists"):
        load_clip("xyzzyxyzzy")


@pytest.mark.parametrize("size", [384, (384,), (0, 128), (-8, 8), (96.0, 48), ("96", "48"), (True, True), (1, 2, 3)])
def test_image_size_that_is_not_two_positive_integers_is_refused(size):
    with pytest.raises(ValueError, match=r"expected \(height, width\) in pixels: two positive integers"):
        load_clip("promptreid-tiny", image_size=size)


def test_image_smaller_than_a_patch_is_refused():
    with pytest.raises(ValueError, match=r"\(96, 7\), smaller than one 8 x 8 patch of promptreid-tiny"):
        load_clip("promptreid-tiny", image_size=(96, 7))


def test_image_size_that_cuts_a_patch_warns_with_a_size_that_does_not():
    with pytest.warns(UserWarning, match=r"last 2 rows and 5 columns .* \(96, 48\) loses none"):
        clip = load_clip("promptreid-tiny", image_size=(98, 53))
    assert clip.visual.grid_size == (12, 6)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 40])
def test_damaged_weight_file_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RuntimeError, match=rf"{name} is not a weight file, or is damaged .* again"):
        load_clip("promptreid-tiny", pretrained=str(tmp_path / name))


def test_name_that_is_no_text_is_refused():
    with pytest.raises(TypeError, match="name is NoneType, expected one of"):
        load_clip(None)


def test_unknown_tag_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no pretrained weights tagged 'opneai'.* Tags: .*openai"):
        load_clip("ViT-B-16", pretrained="opneai")
    with pytest.raises(ValueError, match=r"tagged 'openai'.* Tags: generated"):
        load_clip("promptreid-tiny", pretrained="openai")


def test_quick_gelu_architecture_with_gelu_weights_is_refused(monkeypatch):
    # No such pair is on open_clip's list today; a tag of one's own can make it.
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-B-16-quickgelu", {"plain": {"url": "https://a.org"}})
    with pytest.raises(ValueError, match=r"tagged 'plain' were trained with GELU. Load 'ViT-B-16' instead"):
        load_clip("ViT-B-16-quickgelu", pretrained="plain")


@pytest.mark.parametrize("quick", [True, False])
def test_activation_follows_the_pretrained_tag(quick, tmp_path, monkeypatch):
    save_file(load_file(TINY), tmp_path / "weights.safetensors")
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: str(tmp_path / "weights.safetensors"))
    registry = open_clip.pretrained._PRETRAINED
    monkeypatch.setitem(registry, "promptreid-tiny", {"there": {"url": "https://example.org", "quick_gelu": quick}})
    clip = load_clip("promptreid-tiny", pretrained="there", image_size=(64, 64))
    kinds = {type(block.mlp.gelu).__name__ for block in clip.visual.transformer.resblocks}
    kinds |= {type(block.mlp.gelu).__name__ for block in clip.transformer.resblocks}
    assert kinds == {"QuickGELU" if quick else "GELU"}
    # What is saved later is made again with the same activation.
    assert model_config(clip).get("quick_gelu", False) is quick
    again = remake(clip, (64, 64))
    assert type(again.visual.transformer.resblocks[0].mlp.gelu).__name__ == ("QuickGELU" if quick else "GELU")


def test_shipped_weights_at_their_own_size_are_the_file_bit_for_bit():
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(64, 64))
    stored = load_file(TINY)
    state = clip.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[key], stored[key].float()) for key in state)
    assert not clip.training


def test_shipped_grid_is_resized_from_height_and_width(tiny):
    stored = load_file(TINY)["visual.positional_embedding"].float()
    expected = resize_grid(stored, source=(8, 8), target=(12, 6))
    assert torch.equal(tiny.visual.positional_embedding.data, expected)


def test_saved_model_at_the_same_size_gives_equal_features(tiny):
    images, tokens = torch.randn(2, 3, 96, 48), torch.randint(0, 49000, (2, 77))
    again = remake(tiny, (96, 48))
    assert torch.equal(again.encode_image(images), tiny.encode_image(images))
    assert torch.equal(again.encode_text(tokens), tiny.encode_text(tokens))


@pytest.mark.parametrize("size", [(48, 96), (64, 64), (128, 40), (8, 8)])
def test_saved_model_is_made_again_at_any_size(tiny, size):
    again = remake(tiny, size)
    saved = tiny.visual.positional_embedding.data
    expected = resize_grid(saved, source=(12, 6), target=(size[0] // 8, size[1] // 8))
    assert torch.equal(again.visual.positional_embedding.data, expected)
    assert again.encode_image(torch.randn(1, 3, *size)).shape == (1, 128)
    assert model_config(again)["vision_cfg"]["image_size"] == list(size)


def test_grid_turned_on_its_side_is_resized_and_not_taken_as_it_is(tiny):
    """12 x 6 and 6 x 12 patches are equally many: open_clip would load one for the other without a word."""
    turned = remake(tiny, (48, 96)).visual.positional_embedding.data
    assert turned.shape == tiny.visual.positional_embedding.shape
    assert not torch.allclose(turned, tiny.visual.positional_embedding.data)


def test_weights_of_another_stated_size_are_refused(tiny):
    with pytest.raises(RuntimeError, match="holds 72 patches, which is not the 8 x 8 grid expected"):
        load_weights(tiny, tiny.state_dict(), saved_size=(64, 64))
    with pytest.raises(RuntimeError, match="saved for images that are not square: state their size"):
        load_weights(tiny, tiny.state_dict())


def test_missing_and_unexpected_weights_are_both_listed(tiny):
    state = tiny.state_dict()
    state["surplus"] = state.pop("ln_final.weight")
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*ln_final\.weight.*Unexpected key.*surplus"):
        load_weights(tiny, state, saved_size=(96, 48))


def test_weights_of_another_architecture_are_refused(tiny, clip):
    with pytest.raises(RuntimeError, match=r"size mismatch|patches"):
        load_weights(tiny, clip.state_dict(), saved_size=(32, 16))


def test_half_precision_weights_are_loaded_as_float32(tiny):
    halves = {key: value.half() for key, value in tiny.state_dict().items()}
    load_weights(tiny, halves, saved_size=(96, 48))
    assert {parameter.dtype for parameter in tiny.parameters()} == {torch.float32}


def test_source_is_remembered_and_stays_out_of_the_state(tiny):
    assert source_of(tiny) == ClipSource("promptreid-tiny", "generated", (96, 48))
    assert tiny.state_dict().keys() == load_file(TINY).keys()


def test_foreign_model_does_not_know_its_configuration(clip):
    assert source_of(clip) is None
    with pytest.raises(ValueError, match=r"make it with promptreid\.load_clip"):
        model_config(clip)


def test_preprocessing_squashes_and_names_the_size(tiny):
    stated = preprocess_config(tiny)
    assert stated["size"] == [96, 48]
    assert stated["resize_mode"] == "squash"


def test_loading_leaves_no_filter_on_the_log():
    before = list(logging.getLogger().filters)
    load_clip("promptreid-tiny", pretrained="generated", image_size=(64, 64))
    assert logging.getLogger().filters == before


def test_folder_with_open_clips_older_name_of_weights_loads(tmp_path):
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(32, 16))
    config = {"model_cfg": model_config(clip), "preprocess_cfg": preprocess_config(clip)}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(clip.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    loaded = load_clip(f"local-dir:{tmp_path}", image_size=(32, 16))
    assert torch.equal(loaded.text_projection, clip.text_projection)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weight_file_that_is_not_finite_is_refused(tmp_path, value):
    state = load_clip("promptreid-tiny", pretrained="generated", image_size=(64, 64)).state_dict()
    state["token_embedding.weight"][7, 7] = value
    torch.save(state, tmp_path / "own.pt")
    with pytest.raises(CheckpointError, match=r"own\.pt holds NaN or infinity in token_embedding\.weight"):
        load_clip("promptreid-tiny", pretrained=str(tmp_path / "own.pt"), image_size=(64, 64))


@pytest.mark.parametrize("pretrained", [None, "generated"])
def test_size_of_a_file_is_refused_where_there_is_none(pretrained):
    with pytest.raises(ValueError, match=rf"weights_size is \(96, 48\).*pretrained is {pretrained!r}; leave"):
        load_clip("promptreid-tiny", pretrained=pretrained, weights_size=(96, 48))


@pytest.mark.parametrize("kind", [Path, str])
def test_weight_file_may_be_named_by_a_path(tiny, tmp_path, kind):
    torch.save(tiny.state_dict(), tmp_path / "w.pt")
    file = {"weights_size": (96, 48), "quick_gelu": False}
    again = load_clip("promptreid-tiny", pretrained=kind(tmp_path / "w.pt"), image_size=(96, 48), **file)
    assert source_of(again).pretrained == str(tmp_path / "w.pt")
    assert torch.equal(again.text_projection, tiny.text_projection)
    with pytest.raises(ValueError, match="there is no file of that name"):
        load_clip("promptreid-tiny", pretrained=kind(tmp_path / "gone.pt"))


@pytest.mark.parametrize("pretrained", [b"w.pt", 3, True, ["w.pt"], {}])
@pytest.mark.parametrize("name", ["promptreid-tiny", "local-dir:somewhere"])
def test_weights_named_by_neither_text_nor_a_path_are_refused(name, pretrained):
    with pytest.raises(TypeError, match=f"pretrained is {type(pretrained).__name__}, expected .* path"):
        load_clip(name, pretrained=pretrained)


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:-x/y", "hf-hub:a/b/c", "hf-hub:a b/c"])
def test_name_that_no_repository_can_have_is_refused(name):
    with pytest.raises(ValueError, match=r"names no repository of the Hub .*; expected USER/NAME"):
        load_clip(name)
