"""Weights of any origin become an ordinary folder: of open_clip's own format, or of transformers'."""

import json

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from promptreid import PromptedCLIP, load_clip
from promptreid.errors import UnsupportedTowerError, WeightsError
from promptreid.towers import converting
from promptreid.towers.converting import convert_weights

transformers = pytest.importorskip("transformers")
NAME, SIZE = "ViT-B-16", (64, 32)


@pytest.fixture
def small(monkeypatch):
    """open_clip's ViT-B-16 with few narrow layers and its own vocabulary; every other name stays as it is."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 224, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
    }
    for name in (NAME, f"{NAME}-quickgelu"):
        own = config if name == NAME else config | {"quick_gelu": True}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, own)
    return config


def same(one, other, size, *, rtol=0.0, atol=0.0):
    images, tokens = torch.randn(2, 3, *size), open_clip.get_tokenizer("ViT-B-32")(["a man in red", "a bag"])
    with torch.no_grad():
        torch.testing.assert_close(one.encode_image(images), other.encode_image(images), rtol=rtol, atol=atol)
        torch.testing.assert_close(one.encode_text(tokens), other.encode_text(tokens), rtol=rtol, atol=atol)


def test_file_becomes_a_folder_that_open_clip_and_promptreid_load(small, tmp_path):
    clip = load_clip(NAME, image_size=SIZE, quick_gelu=True)
    weights = {f"base_model.{name}": value.half() for name, value in clip.state_dict().items()}
    torch.save({"model": weights | {"classifier.weight": torch.zeros(3)}}, tmp_path / "best.pth")
    made = convert_weights(str(tmp_path / "best.pth"), tmp_path / "out", weights_size=SIZE)
    assert (made.title, made.name, made.image_size, made.quick_gelu) == ("IRRA", NAME, SIZE, True)
    assert (made.left_out, made.loads_in_open_clip) == (("classifier.weight",), True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("open_clip_model.safetensors", "open_clip_config.json")
    }
    own = load_clip(NAME, pretrained=str(tmp_path / "best.pth"), weights_size=SIZE, image_size=SIZE)
    plain, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    again = load_clip(f"local-dir:{tmp_path / 'out'}", image_size=SIZE)
    for each in (plain.eval(), again):
        same(each, own, SIZE)
    stored = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in stored.items())
    assert transform(Image.new("RGB", (40, 90))).shape == (3, *SIZE)
    assert PromptedCLIP(again).eval_transform.interpolation == "bilinear"


def test_what_would_be_ignored_is_refused(small, tmp_path):
    with pytest.raises(ValueError, match="name is local-dir:other, which brings its own weights; give it as source"):
        convert_weights("a.pth", tmp_path / "out", name="local-dir:other")
    with pytest.raises(ValueError, match="leave quick_gelu and weights_size out"):
        load_clip("hf-hub:user/repo", weights_size=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_image_size_resizes_positions_as_load_clip_does(small, tmp_path):
    clip = load_clip(NAME, image_size=(64, 64), quick_gelu=False)
    save_file(clip.state_dict(), tmp_path / "a.safetensors")
    convert_weights(str(tmp_path / "a.safetensors"), tmp_path / "out", image_size=SIZE, quick_gelu=False)
    path = str(tmp_path / "a.safetensors")
    expected = load_clip(NAME, pretrained=path, image_size=SIZE, quick_gelu=False)
    same(load_clip(f"local-dir:{tmp_path / 'out'}", image_size=None), expected, SIZE)


def test_architecture_is_told_by_the_shapes_or_asked_for(small, tmp_path, clip):
    save_file(clip.state_dict(), tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"odd\.safetensors does not say of which architecture it is.*name it: name="):
        convert_weights(str(tmp_path / "odd.safetensors"), tmp_path / "out", quick_gelu=False)
    with pytest.raises(ValueError, match=r"does not hold the weights of this architecture.*Name the architecture"):
        convert_weights(str(tmp_path / "odd.safetensors"), tmp_path / "out", quick_gelu=False, name=NAME)
    save_file(load_clip(NAME, image_size=(64, 64)).state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"Its shapes are those of ViT-B-16: name that"):
        load_clip("ViT-B-32", pretrained=str(tmp_path / "b.safetensors"), quick_gelu=False)
    assert not (tmp_path / "out").exists()


def test_text_of_another_length_gives_the_model_and_its_tokenizer_that_length(small, tmp_path):
    small["text_cfg"]["context_length"] = 33
    save_file(load_clip(NAME, image_size=SIZE).state_dict(), tmp_path / "a.safetensors")
    small["text_cfg"]["context_length"] = 77
    path = str(tmp_path / "a.safetensors")
    model = PromptedCLIP(load_clip(NAME, pretrained=path, image_size=SIZE, weights_size=SIZE, quick_gelu=False))
    assert model.tokenizer(["a man"]).shape == (1, 33)
    assert model.encode_text(model.tokenizer(["a man"])).shape == (1, 32)
    convert_weights(path, tmp_path / "out", weights_size=SIZE, quick_gelu=False)
    assert open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(["a man"]).shape == (1, 33)
    assert open_clip.create_model(f"local-dir:{tmp_path / 'out'}").context_length == 33


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("side", [32, 64])
def test_open_clip_to_transformers_and_back_is_byte_equal(small, tmp_path, quick_gelu, side):
    clip = load_clip(NAME, image_size=(side, side), quick_gelu=quick_gelu)
    save_file(clip.state_dict(), tmp_path / "a.safetensors")
    convert_weights(str(tmp_path / "a.safetensors"), tmp_path / "there", to="transformers", quick_gelu=quick_gelu)
    made = convert_weights(str(tmp_path / "there"), tmp_path / "back")
    assert (made.title, made.image_size, made.quick_gelu) == ("transformers", (side, side), quick_gelu)
    back = load_file(tmp_path / "back" / "open_clip_model.safetensors")
    assert back.keys() == clip.state_dict().keys()
    assert all(torch.equal(value, clip.state_dict()[name]) for name, value in back.items())
    again = convert_weights(str(tmp_path / "back"), tmp_path / "again", to="transformers")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("there", "again"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert again.loads_in_open_clip


def test_transformers_own_loaders_give_the_features_from_sentences_and_images(small, tmp_path):
    clip = load_clip(NAME, image_size=(64, 64), quick_gelu=True)
    save_file(clip.state_dict(), tmp_path / "a.safetensors")
    convert_weights(str(tmp_path / "a.safetensors"), tmp_path / "out", to="transformers", quick_gelu=True)
    model = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "out")
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "out")
    sentences = ["a Man in a red coat, carrying 2 bags", "someone's élégant hat"]
    image = Image.effect_noise((50, 90), 80).convert("RGB")
    tokens = tokenizer(sentences, padding="max_length", return_tensors="pt")
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    own = PromptedCLIP(clip)
    ids = own.tokenizer(sentences)
    for theirs, ours in zip(tokens["input_ids"], ids, strict=True):
        end = int(ours.argmax()) + 1
        assert torch.equal(theirs[:end], ours[:end])
    torch.testing.assert_close(pixels[0], own.eval_transform(image), atol=0.02, rtol=0)
    with torch.no_grad(), own.disabled():
        text = model.get_text_features(**tokens)
        text = getattr(text, "pooler_output", text)
        torch.testing.assert_close(text, clip.encode_text(ids), rtol=1e-5, atol=1e-5)


def test_sharded_folders_of_transformers_in_both_formats_are_loaded(small, tmp_path):
    clip = load_clip(NAME, image_size=(64, 64), quick_gelu=True)
    save_file(clip.state_dict(), tmp_path / "a.safetensors")
    convert_weights(str(tmp_path / "a.safetensors"), tmp_path / "whole", to="transformers", quick_gelu=True)
    model = transformers.CLIPModel.from_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="500KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    bins = tmp_path / "bins"
    bins.mkdir()
    (bins / "config.json").write_bytes((tmp_path / "shards" / "config.json").read_bytes())
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    for name in set(index["weight_map"].values()):
        torch.save(load_file(tmp_path / "shards" / name), bins / name.replace("safetensors", "bin"))
    index["weight_map"] = {key: name.replace("safetensors", "bin") for key, name in index["weight_map"].items()}
    (bins / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for folder in (tmp_path / "shards", bins):
        same(load_clip(f"local-dir:{folder}", image_size=(64, 64)), clip, (64, 64))
        same(load_clip(NAME, pretrained=str(folder), image_size=(64, 64)), clip, (64, 64))
    (index_file,) = bins.glob("*.index.json")
    index["weight_map"]["extra"] = "gone.bin"
    index_file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json lists \d+ files, and gone\.bin is not beside it"):
        load_clip(NAME, pretrained=str(bins))
    for strange in ("../a.bin", "a/b.bin", "", 3):
        index["weight_map"]["extra"] = strange
        index_file.write_text(json.dumps(index))
        with pytest.raises(ValueError, match=r"index\.json is not an index of weights in several files"):
            load_clip(NAME, pretrained=str(bins))


def test_model_that_is_there_is_kept_unless_overwriting_is_asked_for(small, tmp_path):
    save_file(load_clip(NAME, image_size=(64, 64)).state_dict(), tmp_path / "a.safetensors")
    arguments = (str(tmp_path / "a.safetensors"), tmp_path / "out")
    convert_weights(*arguments, quick_gelu=True)
    with pytest.raises(FileExistsError, match="holds a model already; choose another folder, or pass overwrite=True"):
        convert_weights(*arguments, quick_gelu=False)
    assert convert_weights(*arguments, quick_gelu=False, overwrite=True).quick_gelu is False
    with pytest.raises(ValueError, match="to is 'onnx', expected"):
        convert_weights(*arguments, to="onnx")
    with pytest.raises(FileNotFoundError, match=r"there is no gone\.pt, and .*name the architecture too"):
        convert_weights("gone.pt", tmp_path / "new")


def test_refused_conversion_leaves_nothing_behind(small, tmp_path):
    save_file(load_clip(NAME, image_size=(64, 64)).state_dict(), tmp_path / "a.safetensors")
    source, out = str(tmp_path / "a.safetensors"), tmp_path / "new" / "out"
    with pytest.raises(UnsupportedTowerError, match="square"):
        convert_weights(source, out, quick_gelu=False, to="transformers", image_size=(64, 32))
    with pytest.raises(WeightsError):
        convert_weights(source, out, name="ViT-B-32", quick_gelu=False)
    with pytest.raises(ValueError, match="smaller than one"):
        convert_weights(source, out, quick_gelu=False, image_size=(8, 8))
    assert not out.parent.exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file; give a folder to write the model into"):
        convert_weights(source, tmp_path / "file", quick_gelu=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_tokenizer_of_hugging_face_goes_with_the_weights_or_its_absence_is_told(zoo, tmp_path, monkeypatch):
    class Tokenizer:
        def __init__(self, name, **options):
            assert options == {"trust_remote_code": False}
            if name.startswith("timm"):
                raise OSError("offline\nmore")
            self.tokenizer = self

        def save_pretrained(self, folder):
            (folder / "tokenizer.json").write_text("{}")

    monkeypatch.setattr(converting, "HFTokenizer", Tokenizer)
    with zoo.shrunk():
        save_file(load_clip("ViT-B-16-SigLIP", image_size=(64, 64)).state_dict(), tmp_path / "model.safetensors")
        with pytest.warns(UserWarning, match=r"tokenizer of timm/ViT-B-16-SigLIP could not be loaded \(offline\); put"):
            convert_weights(str(tmp_path / "model.safetensors"), tmp_path / "one", name="ViT-B-16-SigLIP")
        (tmp_path / "tokenizer_config.json").write_text("{}")
        convert_weights(str(tmp_path / "model.safetensors"), tmp_path / "two", name="ViT-B-16-SigLIP")
    assert (tmp_path / "two" / "tokenizer.json").exists()
