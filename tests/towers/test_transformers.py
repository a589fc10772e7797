"""transformers' CLIPModel and SiglipModel: the same features here, and back again without a bit changed."""

import json
import warnings

import open_clip
import pytest
import torch

from promptreid import load_clip
from promptreid.errors import UnsupportedTowerError
from promptreid.towers import converting
from promptreid.towers.converting import convert_weights
from promptreid.towers.families import resize_images
from promptreid.towers.tower import image_preprocessing_of
from promptreid.towers.transformers_names import from_transformers, open_clip_config, to_transformers

transformers = pytest.importorskip("transformers")

TOWER = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}


def features(model, images, tokens):
    with torch.no_grad():
        found = model.get_image_features(pixel_values=images), model.get_text_features(input_ids=tokens)
    return [getattr(each, "pooler_output", each) for each in found]


def check_equal(clip, model, size, vocabulary):
    images, tokens = torch.randn(2, 3, size, size), torch.randint(1, vocabulary - 2, (2, clip.context_length))
    tokens[:, 9] = vocabulary - 1
    with torch.no_grad():
        own = clip.encode_image(images), clip.encode_text(tokens)
    for one, other in zip(own, features(model, images, tokens), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def make_clip_model(activation, size):
    torch.manual_seed(0)
    text = TOWER | {"vocab_size": 96, "hidden_act": activation, "eos_token_id": 2}
    vision = TOWER | {"hidden_size": 64, "image_size": size, "patch_size": 16, "hidden_act": activation}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    return transformers.CLIPModel(config).eval()


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_folder_of_a_clip_model_gives_its_features_and_goes_back_byte_for_byte(tmp_path, activation, size):
    model = make_clip_model(activation, size)
    model.save_pretrained(tmp_path)
    clip = load_clip(f"local-dir:{tmp_path}", image_size=(size, size))
    check_equal(clip, model, size, 96)
    again = to_transformers(clip)
    check_equal(clip, again, size, 96)
    assert again.config.text_config.hidden_act == activation
    state, back = model.state_dict(), again.state_dict()
    assert state.keys() == back.keys()
    assert all(torch.equal(state[name], back[name]) for name in state)
    own = from_transformers(back)
    assert own.keys() == clip.state_dict().keys()
    assert all(torch.equal(own[name], value) for name, value in clip.state_dict().items())


def test_file_of_a_clip_model_is_told_by_its_keys_and_its_configuration(zoo, tmp_path):
    with zoo.shrunk():
        model = to_transformers(load_clip("ViT-B-16", image_size=(64, 64), quick_gelu=True))
        model.save_pretrained(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the activation is known, so nothing is asked
            clip = load_clip("ViT-B-16", pretrained=str(tmp_path), image_size=(64, 64))
        check_equal(clip, model, 64, 96)
        wide = load_clip("ViT-B-16", pretrained=str(tmp_path / "model.safetensors"), image_size=(64, 32))
        assert wide.visual.grid_size == (4, 2)


@pytest.mark.parametrize("size", [32, 64])
def test_siglip_model_there_and_back(zoo, tmp_path, size):
    with zoo.shrunk():
        torch.manual_seed(0)
        clip = load_clip("ViT-B-16-SigLIP", image_size=(size, size))
        with torch.no_grad():
            for parameter in clip.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        model = to_transformers(clip)
        assert type(model).__name__ == "SiglipModel"
        check_equal(clip, model, size, 96)
        model.save_pretrained(tmp_path)
        again = load_clip("ViT-B-16-SigLIP", pretrained=str(tmp_path), image_size=(size, size))
    state = clip.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "ViT-B-32-SigLIP2-256"])
def test_siglip_model_is_recognised_from_its_configuration(zoo, tmp_path, monkeypatch, name):
    def offline(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(converting, "HFTokenizer", offline)
    size = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    with zoo.shrunk():
        clip = load_clip(name, image_size=(size, size))
        to_transformers(clip).save_pretrained(tmp_path)
        again = load_clip(f"local-dir:{tmp_path}", image_size=None)
        with pytest.warns(UserWarning, match=f"tokenizer of timm/{name} could not be loaded"):
            made = convert_weights(str(tmp_path), tmp_path / "open_clip")
    state = clip.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert image_preprocessing_of(again)["mean"] == (0.5, 0.5, 0.5)
    assert (made.title, made.image_size, made.loads_in_open_clip) == ("transformers", (size, size), True)


def published(name):
    """What transformers writes of the SigLIP that open_clip calls `name`."""
    config = open_clip.get_model_config(name)
    text, trunk = config["text_cfg"], config["vision_cfg"]["timm_model_name"]
    patch, size = trunk.split("_patch")[1].split("_siglip_")
    return {
        "model_type": "siglip",
        "text_config": {
            "hidden_size": text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
        },
        "vision_config": {"hidden_size": config["embed_dim"], "patch_size": int(patch), "image_size": int(size)},
    }


@pytest.mark.parametrize("name", [name for name in open_clip.list_models() if "-SigLIP" in name])
def test_configuration_of_each_siglip_gives_open_clips(name):
    assert open_clip_config(published(name)) == open_clip.get_model_config(name)


def test_configuration_of_siglip_by_its_defaults_at_another_size():
    stated = {"model_type": "siglip", "text_config": {}, "vision_config": {"image_size": 240}}
    expected = open_clip.get_model_config("ViT-B-16-SigLIP")
    expected["vision_cfg"]["image_size"] = 240
    found = open_clip_config(stated)
    found["vision_cfg"]["timm_model_name"] = expected["vision_cfg"]["timm_model_name"]
    assert found == expected


def test_configuration_of_a_siglip_that_open_clip_lacks_is_refused(tmp_path):
    stated = published("ViT-B-16-SigLIP")
    stated["text_config"]["num_hidden_layers"] = 5
    (tmp_path / "config.json").write_text(json.dumps(stated))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="open_clip lists no SigLIP with these numbers"):
        load_clip(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-16-quickgelu", "ViT-B-16-SigLIP"])
@pytest.mark.parametrize("size", [(64, 32), (32, 96)])
def test_images_that_are_not_square_give_the_features_of_transformers_on_the_same_positions(zoo, name, size):
    """transformers interpolates without antialiasing, so it is lent positions that are interpolated here by hand."""
    rows, columns = size[0] // 16, size[1] // 16
    with zoo.shrunk():
        torch.manual_seed(0)
        clip = load_clip(name, image_size=(64, 64))
        model = to_transformers(clip)
        wide = load_clip(name, image_size=size)
        state = clip.state_dict()
    key = "visual.trunk.pos_embed" if name.endswith("SigLIP") else "visual.positional_embedding"
    table = state[key].reshape(-1, state[key].shape[-1])
    prefix, grid = table[:-16], table[-16:].T.reshape(1, -1, 4, 4)
    grid = torch.nn.functional.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)
    positions = torch.cat([prefix, grid.flatten(2)[0].T])
    resize_images(clip, size)
    torch.testing.assert_close(clip.state_dict()[key].reshape(positions.shape), positions, rtol=1e-5, atol=1e-6)
    assert clip.state_dict()[key].shape == wide.state_dict()[key].shape
    model.vision_model.embeddings.interpolate_pos_encoding = lambda *_: positions.unsqueeze(0)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        theirs = model.get_image_features(pixel_values=images, interpolate_pos_encoding=True)
        theirs = getattr(theirs, "pooler_output", theirs)
        own = clip.encode_image(images)
    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize(("name", "size"), [("ViT-B-16", (64, 32)), ("RN50", (64, 64)), ("coca_ViT-B-32", (64, 64))])
def test_towers_that_transformers_lacks_are_refused(zoo, name, size):
    with zoo.shrunk():
        clip = load_clip(name, image_size=size)
    with pytest.raises(UnsupportedTowerError, match=r"square|no CLIPModel or SiglipModel with the towers"):
        to_transformers(clip)


def test_configuration_of_another_model_names_the_way(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "vision_config": {}}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="loaded by open_clip's name"):
        load_clip(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(("text", "vision"), [("quick_gelu", "gelu"), ("gelu", "quick_gelu"), ("relu", "relu")])
def test_towers_of_different_or_unknown_activations_are_refused(tmp_path, text, vision):
    model = make_clip_model("quick_gelu", 32)
    model.config.text_config.hidden_act, model.config.vision_config.hidden_act = text, vision
    model.save_pretrained(tmp_path)
    for name, pretrained in ((f"local-dir:{tmp_path}", None), ("ViT-B-16", str(tmp_path))):
        with pytest.raises(
            ValueError, match=f"its towers compute {text} and {vision}; open_clip computes QuickGELU or"
        ):
            load_clip(name, pretrained=pretrained, image_size=(32, 32))
