"""Prompts for each camera: every image gets its own camera's, an unknown camera the mean."""

import copy
import json
import warnings

import pytest
import torch
from open_clip.model import CLIP

from promptreid import (
    ContrastiveLoss,
    Gallery,
    PromptConfig,
    PromptedCLIP,
    Stage,
    Trainer,
    evaluate,
    load_clip,
    load_prompts,
    save_prompts,
)
from promptreid.data.dataset import CaptionedImages
from promptreid.data.records import ImageRecord, ReIDSplit
from promptreid.hub.card import _prompts_line
from promptreid.hub.manifest import parse_manifest
from promptreid.model.vision import PromptedVisionEncoder
from promptreid.training.run_identity import run_identity

GROUPED = PromptConfig(text_length=2, vision_length=2, kind="grouped", groups=("cam_a", "cam_b"))


def make_base():
    return load_clip("promptreid-tiny", pretrained="generated", image_size=(32, 16))


def apart(model):
    """The model, with prompts that differ by group."""
    with torch.no_grad():
        model.vision.prompts.tokens.normal_()
    return model


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "grouped"}, 'kind is "grouped" and groups is empty; name them'),
        ({"groups": ("a",)}, "groups is .*its prompts are the same for all images. Leave groups out"),
        ({"kind": "coupled", "groups": ("a",)}, "same for all images"),
        ({"kind": "grouped", "groups": ("a", "a")}, "expected names that are all different"),
        ({"kind": "grouped", "groups": ("a", "")}, "groups holds '' of 0 letters, expected 1 to 512"),
        ({"kind": "grouped", "groups": ("a" * 600,)}, "groups holds 'a{59}… of 600 letters, expected 1 to 512"),
        (
            {"kind": "grouped", "groups": ("b", "a\u00a0b")},
            r"the group 'a\\xa0b' holds U\+00A0 \(NO-BREAK SPACE\), .* rename it, in the annotations .* such as 'a_b'",
        ),
        ({"kind": "grouped", "groups": ("a\tb",)}, r"the group 'a\\tb' holds U\+0009 \(a control character\)"),
        ({"kind": "grouped", "groups": ("a\nb",)}, r"holds U\+000A .* such as 'a_b'"),
        ({"kind": "grouped", "groups": ("\u202ea",)}, r"holds U\+202E \(RIGHT-TO-LEFT OVERRIDE\)"),
        ({"kind": "grouped", "groups": ("\ud800",)}, r"holds U\+D800"),
        (
            {"kind": "grouped", "groups": tuple(map(str, range(4097)))},
            "groups has 4,097 names of 31,666 bytes in all, expected at most 4,096 of 32,768",
        ),
        (
            {"kind": "grouped", "groups": tuple(f"{number:0500}" for number in range(99))},
            "groups has 99 names of 49,896 bytes in all, .*; give fewer groups, or shorter names",
        ),
        ({"kind": "grouped", "groups": ("a",), "vision_place": "attention_pool"}, "Leave vision_place out"),
    ],
)
def test_config_that_cannot_be_grouped_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        PromptConfig(**arguments)


@pytest.mark.parametrize(("groups", "words"), [("cam_a", "expected a list of names"), ([1], "groups holds 1")])
def test_groups_that_are_no_names_are_refused(groups, words):
    with pytest.raises(TypeError, match=words):
        PromptConfig(kind="grouped", groups=groups)


def test_groups_start_alike_and_are_counted(clip):
    model = PromptedCLIP(clip, GROUPED)
    tokens = model.vision.prompts.tokens
    assert tokens.shape == (2, 3, 2, 32)
    assert torch.equal(tokens[0], tokens[1])
    assert sum(each.numel() for each in model.prompt_parameters()) == 2 * 3 * 2 * 32 + 3 * 2 * 24


def check_rows(clip, images, depth=None, **options):
    """Each image's features are those of a model whose only prompts are its group's."""
    arguments = {"vision_length": 2, "text_length": 0, "vision_depth": depth, **options}
    model = apart(PromptedCLIP(clip, PromptConfig(kind="grouped", groups=("cam_a", "cam_b"), **arguments)))
    tokens = model.vision.prompts.tokens.detach().clone()
    groups = ["cam_b", "cam_a", None, "cam_b"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model.encode_image(images, groups=groups)
        with torch.no_grad():
            torch.testing.assert_close(model.encode_image(images, groups=groups), found, rtol=1e-6, atol=1e-6)
    assert torch.equal(model.encode_image(images, groups=torch.tensor([1, 0, -1, 1])), found)
    bare = model.detach()
    for row, own in enumerate((tokens[1], tokens[0], tokens.mean(dim=0), tokens[1])):
        alone = PromptedCLIP(bare, PromptConfig(**arguments))
        alone.load_prompt_state_dict({**alone.prompt_state_dict(), "vision.prompts.tokens": own})
        torch.testing.assert_close(alone.encode_image(images)[row], found[row], rtol=1e-5, atol=1e-5)
        alone.detach()


@pytest.mark.parametrize("options", [{}, {"depth": 1}, {"depth": 2}, {"position_embedding": True}])
def test_every_image_has_the_prompts_of_its_group(clip, images, options):
    check_rows(clip, images[:4], **options)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "EVA02-B-16", "vit_relpos_medium_patch16_cls_224"])
def test_every_image_has_the_prompts_of_its_group_in_other_towers(zoo, name):
    with zoo.shrunk(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        clip = load_clip(name, image_size=(64, 32))
    check_rows(clip.eval(), torch.randn(4, 3, 64, 32))


def test_without_groups_every_image_has_the_mean(clip, images):
    model = apart(PromptedCLIP(clip, GROUPED, trim=False)).eval()  # open_clip's own method computes every token
    mean = model.encode_image(images)
    assert torch.equal(model.encode_image(images, groups=torch.full((5,), -1)), mean)
    assert not torch.allclose(model.encode_image(images, groups=["cam_a"] * 5), mean)
    assert torch.equal(model.clip.encode_image(images), mean), "open_clip's own method has no groups"


def test_unknown_group_is_warned_of_once(clip, images):
    model = apart(PromptedCLIP(clip, GROUPED))
    words = "trained for cam_a, cam_b, and not for 'roof', images without a camera: such images get the mean of the 2"
    with pytest.warns(UserWarning, match=words):
        model.encode_image(images, groups=["cam_a", "roof", "roof", None, "cam_b"])
    model.encode_image(images, groups=["cam_a", "roof", "roof", None, "cam_b"])
    with pytest.warns(UserWarning, match="not for 'cellar'"):
        model.encode_image(images, groups=["cellar"] * 5)


def test_groups_that_do_not_fit_are_refused(clip, images):
    model = PromptedCLIP(clip, GROUPED)
    with pytest.raises(ValueError, match=r"groups are \(2,\), expected one for each of 5 images"):
        model.encode_image(images, groups=["cam_a", "cam_b"])
    with pytest.raises(ValueError, match="groups run from 0 to 2, expected positions in the 2 groups"):
        model.encode_image(images, groups=torch.tensor([0, 1, 2, 0, 0]))
    model.attach(PromptConfig(2, 2))
    with pytest.raises(ValueError, match="these prompts are the same for all"):
        model.encode_image(images, groups=["cam_a"] * 5)


def test_gradient_reaches_the_group_of_the_image_alone(clip, images):
    model = apart(PromptedCLIP(clip, GROUPED))
    model.encode_image(images, groups=["cam_b"] * 5).square().sum().backward()
    gradient = model.vision.prompts.tokens.grad
    assert gradient[0].abs().max() == 0
    assert gradient[1].abs().sum(dim=-1).gt(0).all()


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("name", ["built-in", "ViT-B-16-SigLIP", "EVA02-B-16"])
def test_recomputed_blocks_have_the_groups_of_their_own_pass(zoo, clip, name):
    """Two passes before one backward: each block is computed again with its own batch's groups."""
    size = (32, 16)
    if name != "built-in":
        size = (64, 32)
        with zoo.shrunk():
            clip = load_clip(name, image_size=size)
    model = apart(PromptedCLIP(clip, GROUPED)).train()
    images, ids = torch.randn(4, 3, *size), torch.tensor([0, 1, -1, 1])
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        model.clip.visual.set_grad_checkpointing(checkpointing)
        first, second = (model.encode_image(images, groups=own) for own in (ids, ids.flip(0)))
        (first.square() - 3 * second).sum().backward()
        gradients.append(model.vision.prompts.tokens.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


def test_bare_images_need_no_groups(clip, images):
    bare = copy.deepcopy(clip).encode_image(images)
    model = apart(PromptedCLIP(clip, GROUPED))
    with model.disabled():
        torch.testing.assert_close(model.encode_image(images, groups=["roof"] * 5), bare, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_compiled_encoder_takes_groups(clip, images):
    model = apart(PromptedCLIP(clip, GROUPED)).eval()
    compiled = torch.compile(model.vision, backend="aot_eager")
    ids = torch.tensor([0, 1, -1, 1, 0])
    expected = model.encode_image(images, groups=ids)
    torch.testing.assert_close(compiled(images, groups=ids), expected, rtol=1e-5, atol=1e-5)


def test_saved_groups_load_by_themselves_and_save_alike(tmp_path):
    model = apart(PromptedCLIP(make_base(), GROUPED)).eval()
    folder = save_prompts(model, tmp_path / "m")
    assert json.loads((folder / "prompt_config.json").read_text())["prompts"]["groups"] == ["cam_a", "cam_b"]
    loaded = load_prompts(folder)
    images = torch.randn(2, 3, 32, 16)
    assert loaded.groups == ("cam_a", "cam_b")
    expected = model.encode_image(images, groups=["cam_a", "cam_b"])
    assert torch.equal(loaded.encode_image(images, groups=["cam_a", "cam_b"]), expected)
    again = save_prompts(loaded, tmp_path / "again")
    for name in ("prompt_config.json", "prompts.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    line = _prompts_line(parse_manifest((folder / "prompt_config.json").read_bytes(), source="f"))
    assert line == "2 a block in the text encoder, 2 in the image encoder for each of 2 groups (cam_a, cam_b)"


def test_files_and_runs_of_other_kinds_name_no_groups(tmp_path):
    model = PromptedCLIP(make_base())
    folder = save_prompts(model, tmp_path / "m")
    assert "groups" not in json.loads((folder / "prompt_config.json").read_text())["prompts"]
    assert "groups" not in run_identity(model, [])["prompts"]


def test_sets_are_switched_with_their_groups():
    model = PromptedCLIP(make_base()).eval()
    model.add_prompts("by camera", GROUPED)
    model.use("by camera")
    apart(model)
    images = torch.randn(2, 3, 32, 16)
    expected = model.encode_image(images, groups=["cam_a", "cam_b"])
    model.use("default")
    assert model.groups == ()
    model.use("by camera")
    assert torch.equal(model.encode_image(images, groups=["cam_a", "cam_b"]), expected)


def test_trainer_gives_each_camera_its_own_prompts(split, tmp_path):
    cameras = split.cameras
    assert len(cameras) > 1
    torch.manual_seed(0)
    config = PromptConfig(1, 1, kind="grouped", groups=cameras[:2])
    model = PromptedCLIP(make_base(), config)
    with pytest.warns(UserWarning, match="of 24 images of the test split come from none of the cameras"):
        pairs = CaptionedImages(split, transform=model.eval_transform, tokenizer=model.tokenizer, groups=model.groups)
    assert set(pairs.groups.tolist()) == {-1, 0, 1}
    stage = Stage("one", model, trains=["prompts"], losses={"contrastive": ContrastiveLoss()}, learning_rate=0.01)
    trained = {}
    for folder, chunk in (("whole", None), ("chunks", 4)):
        torch.manual_seed(0)
        model.attach(config)
        stage = Stage("one", model, trains=["prompts"], losses={"contrastive": ContrastiveLoss()}, learning_rate=0.01)
        Trainer(
            model, [stage], train_data=pairs, batch_size=12, output_dir=tmp_path / folder, steps_per_epoch=2,
            chunk_size=chunk, trackers=(), progress=False,
        ).fit()  # fmt: skip
        trained[folder] = model.vision.prompts.tokens.detach().clone()
    assert not torch.equal(trained["whole"][0], trained["whole"][1])
    torch.testing.assert_close(trained["chunks"], trained["whole"], rtol=1e-3, atol=1e-4)
    plain = CaptionedImages(split, transform=model.eval_transform, tokenizer=model.tokenizer)
    with pytest.raises(ValueError, match=r"items of train_data lack groups.*groups=model\.groups"):
        Trainer(model, [stage], train_data=plain, batch_size=12, output_dir=tmp_path / "none")


def test_evaluation_and_gallery_know_the_camera(split, tmp_path):
    model = apart(PromptedCLIP(make_base(), PromptConfig(1, 1, kind="grouped", groups=split.cameras))).eval()
    gallery = Gallery.build(model, split, progress=False)
    camera = split.records[0].camera
    hits = gallery.search("a woman in a red coat", k=30, where={"camera": camera})
    assert {hit.metadata["camera"] for hit in hits} == {camera}
    expected = torch.stack([
        model.encode_image(_pixels(model, record), groups=[record.camera])[0]
        for record in split.records
    ])  # fmt: skip
    expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(gallery.features, expected, rtol=1e-3, atol=2e-3)
    named = evaluate(model, split, progress=False)
    unnamed = ReIDSplit("test", [ImageRecord(r.path, r.person_id, r.captions, r.split) for r in split.records])
    with pytest.warns(UserWarning, match="images without a camera"):
        assert evaluate(model, unnamed, progress=False) != named
    again = Gallery.load(gallery.save(tmp_path / "g"), model)
    assert len(again.search("a man", k=3)) == 3
    other = PromptedCLIP(make_base(), PromptConfig(1, 1, kind="grouped", groups=split.cameras[::-1])).eval()
    other.load_prompt_state_dict(model.prompt_state_dict())
    with pytest.raises(ValueError, match="different: groups of image prompts"):
        Gallery.load(tmp_path / "g", other)


def test_gallery_of_a_folder_takes_sub_folders_for_groups(split, tmp_path):
    model = apart(PromptedCLIP(make_base(), PromptConfig(1, 1, kind="grouped", groups=("cam_a", "cam_b")))).eval()
    for name in ("cam_a", "cam_b"):
        (tmp_path / "crops" / name).mkdir(parents=True)
        (tmp_path / "crops" / name / "one.jpg").write_bytes(split.records[0].path.read_bytes())
    gallery = Gallery.build(model, tmp_path / "crops", progress=False)
    assert not torch.allclose(gallery.features[0].float(), gallery.features[1].float(), atol=1e-3)
    pixels = _pixels(model, split.records[0])
    expected = model.encode(list(torch.cat([pixels, pixels])), groups=["cam_a", "cam_b"], progress=False)
    torch.testing.assert_close(gallery.features.float(), expected, rtol=1e-3, atol=2e-3)


def _pixels(model, record):
    from PIL import Image

    return model.eval_transform(Image.open(record.path).convert("RGB")).unsqueeze(0)


def test_groups_for_sentences_are_refused():
    model = PromptedCLIP(make_base(), GROUPED)
    with pytest.raises(ValueError, match="inputs are sentences, which have none"):
        model.encode(["a man"], groups=["cam_a"])
    with pytest.raises(ValueError, match="groups are given for 2 images, but inputs are 1 images"):
        model.encode([torch.zeros(3, 32, 16)], groups=["cam_a", "cam_b"])


def test_stage_two_keeps_the_prompts_of_every_group(model_cfg, images, tokens):
    model = apart(PromptedCLIP(CLIP(**model_cfg), GROUPED))
    before = model.vision.prompts.tokens.detach().clone()
    stage = Stage("two", model, trains=["encoders"], losses={"contrastive": ContrastiveLoss()}, learning_rate=1e-2)
    stage.prepare()
    optimizer = stage.optimizer()
    output = model(images, tokens, torch.tensor([0, 1, -1, 0, 1]))
    stage.losses(output["image_features"], output["text_features"], torch.arange(5))["total"].backward()
    optimizer.step()
    assert torch.equal(model.vision.prompts.tokens, before)


def test_own_kind_may_use_the_groups(clip, images):
    with pytest.raises(ValueError, match="leave groups out"):
        PromptedVisionEncoder(clip, length=2)(images, groups=["cam_a"] * 5)
