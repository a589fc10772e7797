"""Galleries: built, searched, saved, loaded, and every bad input."""

import json
import stat

import pytest
import torch
from PIL import Image

from promptreid import Gallery, PromptConfig, PromptedCLIP, load_clip
from promptreid.data.images import open_image
from promptreid.errors import CheckpointError, DatasetError


@pytest.fixture
def gallery(model, folder):
    return Gallery.build(model, folder, batch_size=10, progress=False)


def features_of(model, path):
    with torch.inference_mode():
        return model.eval().encode_image(model.eval_transform(open_image(path)).unsqueeze(0), normalize=True)[0]


def test_build_encodes_every_image_of_the_folder_in_order(model, folder, gallery):
    assert [str(path) for path in gallery.paths] == sorted(str(path) for path in folder.rglob("*.jpg"))
    assert gallery.features.shape == (24, 128)
    torch.testing.assert_close(gallery.features[17], features_of(model, gallery.paths[17]), rtol=1e-4, atol=1e-5)


def test_build_of_a_list_keeps_its_order(model, folder):
    paths = sorted(folder.rglob("*.jpg"), reverse=True)[:5]
    assert list(Gallery.build(model, paths, progress=False).paths) == paths


def test_build_puts_the_training_mode_back(model, folder):
    model.train()
    Gallery.build(model, folder, progress=False)
    assert model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_gallery_of_encoders_of_another_precision_is_float32_and_finds_the_same(model, folder, gallery, dtype):
    queries = ["a woman with a red coat", "a man with a backpack"]
    exact = gallery.search(queries, 24)
    model.clip.to(dtype)
    found = Gallery.build(model, folder, progress=False)
    assert found.features.dtype == torch.float32
    torch.testing.assert_close(found.features.norm(dim=-1), torch.ones(24), rtol=1e-6, atol=1e-6)
    for hits, others in zip(exact, found.search(queries, 24), strict=True):
        scores = {hit.path: hit.score for hit in others}
        assert all(scores[hit.path] == pytest.approx(hit.score, abs=0.02) for hit in hits)
    assert found.search(found.paths[5], 1)[0].path == found.paths[5]


def test_build_leaves_unreadable_images_out_and_names_them(model, folder):
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image either")
    Image.new("L", (20_000, 8)).save(folder / "wide.png")
    Image.new("F", (8, 16)).save(folder / "floats.tiff")
    with pytest.warns(UserWarning, match="cannot be read") as warned:
        gallery = Gallery.build(model, folder, batch_size=3, progress=False)
    (said,) = [str(warning.message) for warning in warned]
    assert said.startswith("4 of 28 images cannot be read and are left out: ")
    assert f"{folder / 'broken.jpg'} cannot be read (cannot identify image file); {folder / 'empty.png'} " in said
    assert f"{folder / 'floats.tiff'} cannot be read (its pixels are floating-point numbers of unknown range)" in said
    assert f"{folder / 'wide.png'} has 20000 x 8 pixels, more than 16384 on a side" in said
    assert len(gallery) == 24


def test_search_by_a_image_finds_itself_first(gallery):
    for query in (gallery.paths[5], open_image(gallery.paths[5]), gallery.features[5], gallery.features[5] * 3):
        best = gallery.search(query, 3)[0]
        assert (best.path, best.index) == (gallery.paths[5], 5)
        assert best.score == pytest.approx(1.0, abs=1e-4)


def test_search_by_a_sentence_ranks_by_cosine_similarity(model, gallery):
    sentence = "a woman with a red coat"
    with torch.inference_mode():
        words = model.eval().encode_text(model.tokenizer([sentence]), normalize=True)[0]
    scores = [float(words @ row) for row in gallery.features]
    expected = sorted(range(24), key=lambda index: -scores[index])
    hits = gallery.search(sentence, 24)
    assert [hit.index for hit in hits] == expected
    assert [hit.score for hit in hits] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    assert [hit.index for hit in gallery.search(sentence, 4)] == expected[:4]


def test_search_of_equal_scores_gives_the_earlier_image_first(model, folder):
    one = next(folder.rglob("*.jpg"))
    gallery = Gallery(model, [one] * 6, torch.nn.functional.normalize(torch.ones(6, 128), dim=-1))
    assert [hit.index for hit in gallery.search(torch.ones(128), 4)] == [0, 1, 2, 3]


def test_save_and_load_give_the_same_gallery(model, gallery, tmp_path):
    saved = gallery.save(tmp_path / "index")
    loaded = Gallery.load(saved, model)
    assert loaded.paths == gallery.paths
    assert torch.equal(loaded.features, gallery.features)
    assert loaded.search("a man", 5) == gallery.search("a man", 5)


@pytest.mark.posix
def test_save_lets_only_the_owner_read(gallery, tmp_path):
    saved = gallery.save(tmp_path / "index")
    assert stat.S_IMODE(saved.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in saved.iterdir()} == {0o600}


def prompted(**settings):
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
    return PromptedCLIP(clip, PromptConfig(**{"text_length": 2, "vision_length": 2, **settings}))


def test_load_with_other_prompts_on_the_same_base_is_refused(gallery, tmp_path):
    saved = gallery.save(tmp_path / "index")
    torch.manual_seed(1)
    other = prompted()
    with pytest.raises(CheckpointError, match=r"another model .*different: image prompts, text prompts"):
        Gallery.load(saved, other)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_load_with_one_block_of_prompts_trained_on_is_refused(model, gallery, tmp_path, tower):
    saved = gallery.save(tmp_path / "index")
    with torch.no_grad():
        getattr(model, tower).prompts.tokens[-1].mul_(1.5)
    words = {"vision": "image", "text": "text"}[tower]
    with pytest.raises(CheckpointError, match=f"different: {words} prompts"):
        Gallery.load(saved, model)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vision_length": 3}, "image prompts"),
        ({"vision_length": 0, "text_length": 0}, "image prompts, text prompts"),
        ({"text_depth": 1}, "text prompts"),
    ],
)
def test_load_with_prompts_of_another_shape_is_refused(gallery, tmp_path, settings, words):
    saved = gallery.save(tmp_path / "index")
    with pytest.raises(CheckpointError, match=f"different: .*{words}"):
        Gallery.load(saved, prompted(**settings))


def test_load_with_prompts_at_positions_is_refused(model, gallery, tmp_path):
    saved = gallery.save(tmp_path / "index")
    other = prompted(position_embedding=True)
    other.load_prompt_state_dict(model.prompt_state_dict())
    with pytest.raises(CheckpointError, match="different: position embedding of prompts"):
        Gallery.load(saved, other)


def test_load_with_other_encoders_or_image_size_is_refused(model, gallery, tmp_path):
    saved = gallery.save(tmp_path / "index")
    other = PromptedCLIP(load_clip("promptreid-tiny", image_size=(96, 48)), model.config)
    other.load_prompt_state_dict(model.prompt_state_dict())
    with pytest.raises(CheckpointError, match="different: open_clip weights"):
        Gallery.load(saved, other)
    small = load_clip("promptreid-tiny", pretrained="generated", image_size=(48, 48))
    other = PromptedCLIP(small, model.config)
    other.load_prompt_state_dict(model.prompt_state_dict())
    with pytest.raises(CheckpointError, match="different: image size"):
        Gallery.load(saved, other)


def test_load_in_half_precision_is_accepted(model, gallery, tmp_path):
    saved = gallery.save(tmp_path / "index")
    assert len(Gallery.load(saved, model.to(torch.bfloat16))) == 24


@pytest.mark.parametrize(
    ("query", "error", "words"),
    [
        ("  ", ValueError, "the query is empty"),
        (7, TypeError, "query is int, expected a sentence"),
        (torch.ones(3), ValueError, r"query features have shape \(3,\) .*expected .*128"),
    ],
)
def test_search_for_a_bad_query_is_refused(gallery, query, error, words):
    with pytest.raises(error, match=words):
        gallery.search(query, 3)


def test_search_for_a_image_that_cannot_be_read_is_refused(gallery, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"cannot read the image .*broken.png"):
        gallery.search(tmp_path / "broken.png", 3)


def test_build_of_nothing_is_refused(model, tmp_path):
    with pytest.raises(DatasetError, match=r"there is no folder .*nowhere"):
        Gallery.build(model, tmp_path / "nowhere", progress=False)
    with pytest.raises(DatasetError, match="has no images"):
        Gallery.build(model, tmp_path, progress=False)
    with pytest.raises(DatasetError, match="the list of images is empty"):
        Gallery.build(model, [], progress=False)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match="none of the 1 images can be read"):
        Gallery.build(model, tmp_path, progress=False)


def test_gallery_of_bad_features_is_refused(model):
    with pytest.raises(ValueError, match="NaN or infinity"):
        Gallery(model, ["a.jpg"], torch.full((1, 128), torch.nan))
    with pytest.raises(ValueError, match=r"shape \(1, 128\) .*expected floating point \(2, dimensions\)"):
        Gallery(model, ["a.jpg", "b.jpg"], torch.ones(1, 128))
    with pytest.raises(ValueError, match=r"dtype torch\.int64, expected floating point"):
        Gallery(model, ["a.jpg"], torch.ones(1, 128, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"1 of 2 features are not of unit length, such as number 1 of length 2"):
        Gallery(model, ["a.jpg", "b.jpg"], torch.eye(2, 128) * torch.tensor([[1.0], [2.0]]))
    with pytest.raises(ValueError, match="1 images but metadata for 2"):
        Gallery(model, ["a.jpg"], torch.ones(1, 128), metadata=[{}, {}])


def test_search_of_an_empty_gallery_is_refused(model):
    with pytest.raises(ValueError, match="the gallery is empty; add images first"):
        Gallery(model, [], torch.ones(0, 128)).search("a man", 1)


def test_load_of_another_format_version_is_refused(model, gallery, tmp_path):
    saved = gallery.save(tmp_path / "index")
    index = json.loads((saved / "gallery.json").read_text())
    (saved / "gallery.json").write_text(json.dumps({**index, "format_version": 99}))
    with pytest.raises(CheckpointError, match="format version 99"):
        Gallery.load(saved, model)


def test_load_of_a_damaged_folder_is_refused(model, gallery, tmp_path):
    saved = gallery.save(tmp_path / "index")
    for path in (saved / "gallery.json", *saved.glob("features-*.safetensors")):
        content = path.read_bytes()
        for damage in (b"", content[: len(content) // 2], b"\xff" * 100):
            path.write_bytes(damage)
            with pytest.raises(CheckpointError, match="index"):
                Gallery.load(saved, model)
        path.unlink()
        with pytest.raises(CheckpointError, match="index"):
            Gallery.load(saved, model)
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="nowhere"):
        Gallery.load(tmp_path / "nowhere", model)
