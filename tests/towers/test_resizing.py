"""Image sizes of every kind of tower: built, loaded, saved and made again."""

import warnings

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from promptreid import load_clip
from promptreid.towers.families import patch_grid_of, resize_images
from promptreid.towers.families.open_clip_vit import resize_grid
from promptreid.towers.loading import load_clip_from_config, model_config, preprocess_config
from promptreid.towers.weights import load_weights

TOWERS = {
    "ViT-B-16": (64, 32),
    "ViT-B-16-SigLIP": (64, 32),
    "ViTamin-S": (64, 32),
    "MobileCLIP2-B": (64, 32),
    "EVA02-B-16": (64, 32),
    "PE-Core-B-16": (64, 32),
    "vit_relpos_medium_patch16_cls_224": (64, 32),
    "RN50": (128, 64),
    "convnext_base": (64, 32),
    "MobileCLIP2-S0": (64, 32),
    "swin_base_patch4_window7_224": (96, 64),
}


def make(zoo, name, size):
    torch.manual_seed(0)
    with zoo.shrunk(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_clip(name, image_size=size)


def remake(zoo, clip, size):
    with zoo.shrunk():
        return load_clip_from_config(
            model_config(clip), clip.state_dict(), image_size=size, preprocess_cfg=preprocess_config(clip)
        )


@pytest.mark.parametrize("name", [name for name in TOWERS if name in open_clip.list_models()])
def test_saved_tower_is_made_again_at_its_size_and_turned_on_its_side(zoo, name):
    size = TOWERS[name]
    clip = make(zoo, name, size)
    images = torch.randn(2, 3, *size)
    again = remake(zoo, clip, size)
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(images), clip.encode_image(images), rtol=0, atol=0)
    turned = remake(zoo, clip, size[::-1])
    assert turned.encode_image(images.transpose(2, 3)).shape == (2, 32)
    key = patch_grid_of(clip).key
    if key:
        one, other = clip.state_dict()[key], turned.state_dict()[key]
        assert one.shape == other.shape
        assert not torch.equal(one, other), "equally many patches in another layout are resized, not taken as they are"


@pytest.mark.parametrize("name", [name for name in TOWERS if name in open_clip.list_models()])
def test_weight_file_that_is_not_square_needs_its_size_and_gets_it(zoo, name, tmp_path):
    size = TOWERS[name]
    clip = make(zoo, name, size)
    path = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous().clone() for key, value in clip.state_dict().items()}, path)
    images = torch.randn(2, 3, *size)
    if patch_grid_of(clip).key:
        with zoo.shrunk(), pytest.raises(RuntimeError, match="saved for images that are not square: state their size"):
            load_clip(name, pretrained=str(path), image_size=size, quick_gelu=False)
        with zoo.shrunk(), pytest.raises(RuntimeError, match="another image size than stated"):
            load_clip(name, pretrained=str(path), image_size=size, weights_size=(128, 128), quick_gelu=False)
    with zoo.shrunk():
        again = load_clip(name, pretrained=str(path), image_size=size, weights_size=size, quick_gelu=False)
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(images), clip.encode_image(images), rtol=0, atol=0)


def test_resnet_takes_multiples_of_32_alone(zoo):
    with pytest.raises(ValueError, match=r"image_size is \(70, 32\).* give multiples of 32"):
        make(zoo, "RN50", (70, 32))


def test_size_that_timm_cannot_take_is_refused(zoo):
    with pytest.raises(ValueError, match=r"smaller than one 16 x 16 patch of ViT-B-16-SigLIP"):
        make(zoo, "ViT-B-16-SigLIP", (8, 32))


def test_patch_is_that_of_the_tower(zoo):
    assert patch_grid_of(make(zoo, "ViT-B-32", (64, 32))).patch == (32, 32)
    assert patch_grid_of(make(zoo, "ViT-B-16-SigLIP", (64, 32))).patch == (16, 16)
    assert patch_grid_of(make(zoo, "ViTamin-S", (64, 32))).patch == (16, 16)
    assert patch_grid_of(make(zoo, "RN50", (64, 32))).patch == (32, 32)
    assert patch_grid_of(make(zoo, "convnext_base", (64, 32))).patch == (1, 1)


def test_resizing_there_and_back_to_the_same_size_changes_no_bit(zoo):
    clip = make(zoo, "ViT-B-16", (64, 32))
    before = clip.visual.positional_embedding
    resize_images(clip, (64, 32))
    assert clip.visual.positional_embedding is before


def test_refused_weights_leave_the_model_at_its_size(zoo):
    clip = make(zoo, "ViT-B-16", (64, 32))
    with pytest.raises(RuntimeError, match="patches"):
        load_weights(clip, clip.state_dict(), saved_size=(64, 64))
    assert clip.visual.image_size == (64, 32)
    assert clip.encode_image(torch.randn(1, 3, 64, 32)).shape == (1, 32)


def test_folder_in_open_clips_layout_is_loaded_at_any_size(zoo, tmp_path):
    import json

    clip = make(zoo, "ViT-B-16-SigLIP", (64, 32))
    config = {"model_cfg": model_config(clip), "preprocess_cfg": preprocess_config(clip)}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    path = tmp_path / "open_clip_model.safetensors"
    save_file({key: value.contiguous().clone() for key, value in clip.state_dict().items()}, path)
    images = torch.randn(2, 3, 64, 32)
    with zoo.shrunk(), torch.no_grad():
        folder = load_clip(f"local-dir:{tmp_path}", image_size=(64, 32))
        torch.testing.assert_close(folder.encode_image(images), clip.encode_image(images), rtol=0, atol=0)
        # The configuration beside the file says how it was laid out.
        file = load_clip("ViT-B-16-SigLIP", pretrained=str(path), image_size=(64, 32))
        torch.testing.assert_close(file.encode_image(images), clip.encode_image(images), rtol=0, atol=0)
        other = load_clip(f"local-dir:{tmp_path}", image_size=(32, 96))
        assert other.encode_image(torch.randn(1, 3, 32, 96)).shape == (1, 32)
        with pytest.raises(ValueError, match="brings its own weights"):
            load_clip(f"local-dir:{tmp_path}", pretrained="openai", image_size=(64, 32))
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is not an open_clip configuration"):
        load_clip(f"local-dir:{tmp_path}", image_size=(64, 32))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no open_clip_model.*found: .*; give the file of weights"):
        load_clip(f"local-dir:{tmp_path}", image_size=(64, 32))


def test_resize_grid_keeps_the_class_token_and_a_constant_grid():
    positions = torch.cat([torch.tensor([[5.0]]), torch.full((4, 1), 2.0)])
    resized = resize_grid(positions, source=(2, 2), target=(6, 3))
    assert resized.shape == (19, 1)
    assert resized[0].item() == 5.0
    torch.testing.assert_close(resized[1:], torch.full((18, 1), 2.0))
    assert resize_grid(positions, source=(2, 2), target=(2, 2)) is positions
