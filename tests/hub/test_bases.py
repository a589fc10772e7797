"""Bases on the Hub: every family's tag under the id and file name that open_clip asks for, and transformers' models."""

import hashlib
import io
import json
import sys
import warnings

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save

from promptreid import PromptedCLIP, load_clip, load_prompts, push_prompts
from promptreid.cli.options import ModelChoice, load_model, notes_of
from promptreid.errors import CheckpointError, HubError, WeightsError
from promptreid.towers.converting import convert_weights
from promptreid.towers.families import resize_images
from promptreid.towers.transformers_names import to_transformers

ALICE = "hf_aliceAliceAlice0"
SIZE = (384, 128)
# A tag of each family.
TAGS = {
    "ViT, OpenAI": ("ViT-B-16", "openai"),
    "ViT, LAION": ("ViT-B-16", "laion2b_s34b_b88k"),
    "ViT, DFN": ("ViT-B-16", "dfn2b"),
    "ViT, DataComp": ("ViT-B-16", "datacomp_xl_s13b_b90k"),
    "ViT, MetaCLIP": ("ViT-B-16", "metaclip_400m"),
    "SigLIP": ("ViT-B-16-SigLIP", "webli"),
    "SigLIP 2": ("ViT-B-16-SigLIP2", "webli"),
    "EVA02": ("EVA02-B-16", "merged2b_s8b_b131k"),
    "MobileCLIP2": ("MobileCLIP2-S0", "dfndr2b"),
    "MobileCLIP2, ViT": ("MobileCLIP2-B", "dfndr2b"),
    "ResNet": ("RN50", "openai"),
    "CoCa": ("coca_ViT-B-32", "laion2b_s13b_b90k"),
    "ConvNeXt": ("convnext_base", "laion400m_s13b_b51k"),
    "XLM-R": ("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k"),
    "ViTamin": ("ViTamin-S", "datacomp1b"),
}
TRUE_SIZE = ("ViT, OpenAI", "SigLIP", "EVA02", "MobileCLIP2", "ResNet", "CoCa", "ConvNeXt")


def publish(hub, repo_id, files):
    """Files in a repository of the Hub's, put there without a client; returns the commit."""
    repo = hub.repos.setdefault(repo_id, sys.modules["hub_server"].Repo(repo_id, private=False))
    tree = {**repo.find("main").tree, **files}
    hub.large |= {hashlib.sha256(content).hexdigest(): content for content in files.values()}
    repo.refs["refs/heads/main"] = repo.commit(repo.refs["refs/heads/main"], tree, "files")
    return repo.refs["refs/heads/main"]


def asked_for(name, tag):
    """The repository and the file that open_clip downloads for a tag."""
    stated = open_clip.get_pretrained_cfg(name, tag)
    repo_id, _, file = stated["hf_hub"].rpartition("/")
    return repo_id, file or "open_clip_model.safetensors"


def serve_random(hub, name, tag):
    """Random weights in the format of the tag's file."""
    torch.manual_seed(0)
    quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    clip = open_clip.create_model(name, force_quick_gelu=quick, pretrained_text=False)
    with torch.no_grad():
        for value in clip.state_dict().values():
            if value.is_floating_point():  # away from the zeros and ones that some layers begin with
                value.copy_(value.nan_to_num().clamp(-4, 4) + 0.01 * torch.randn_like(value).abs())
    repo_id, file = asked_for(name, tag)
    state = clip.state_dict()
    if file.endswith(".bin"):
        content = io.BytesIO()
        torch.save(state, content)
        publish(hub, repo_id, {file: content.getvalue()})
    else:
        publish(hub, repo_id, {file: save(state)})


def check_tag(hub, zoo, name, tag):
    """`load_clip` gives what open_clip gives for the tag, resized by us."""
    serve_random(hub, name, tag)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))  # of which open_clip only warns
        plain = open_clip.create_model(name, pretrained=tag, force_quick_gelu=quick).eval()
    assert any("/resolve/" in path for _, path, _ in hub.log)
    native = plain.visual.image_size
    native = (native, native) if isinstance(native, int) else tuple(native)
    ours = load_clip(name, pretrained=tag, image_size=native)
    tokens = zoo.tokens_for(name)
    images = torch.randn(2, 3, *native)
    with torch.no_grad():
        assert torch.equal(ours.encode_image(images), plain.encode_image(images))
        assert torch.equal(ours.encode_text(tokens), plain.encode_text(tokens))
    del ours
    resize_images(plain, SIZE)
    wide = load_clip(name, pretrained=tag, image_size=SIZE)
    images = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(wide.encode_image(images), plain.encode_image(images))
        assert torch.equal(wide.encode_text(tokens), plain.encode_text(tokens))
    stated = open_clip.get_pretrained_cfg(name, tag)
    transform = PromptedCLIP(wide).eval_transform
    assert (transform.mean, transform.interpolation) == (stated["mean"], stated["interpolation"])


@pytest.mark.parametrize("family", TAGS)
def test_tag_of_every_family_gives_open_clips_features_and_our_resize(hub, zoo, family):
    with zoo.shrunk():
        check_tag(hub, zoo, *TAGS[family])


@pytest.mark.slow
@pytest.mark.parametrize("family", TRUE_SIZE)
def test_tag_at_true_size_gives_open_clips_features_and_our_resize(hub, zoo, family):
    check_tag(hub, zoo, *TAGS[family])


@pytest.fixture
def foreign(hub, zoo, tmp_path):
    """A CLIPModel of transformers on the Hub, whole and in shards, its commit, and the model as open_clip's."""
    pytest.importorskip("transformers")
    with zoo.shrunk():
        clip = load_clip("ViT-B-16", image_size=(64, 64), quick_gelu=True)
        to_transformers(clip).save_pretrained(tmp_path / "whole")
        to_transformers(clip).save_pretrained(tmp_path / "shards", max_shard_size="50KB")
        (tmp_path / "shards" / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "resample": 2}')
        commits = [
            publish(hub, f"bob/{name}", {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
            for name in ("whole", "shards")
        ]
        yield clip, commits[0]


def same_weights(one, other):
    state = other.state_dict()
    return one.state_dict().keys() == state.keys() and all(
        torch.equal(v, state[k]) for k, v in one.state_dict().items()
    )


@pytest.mark.parametrize("repository", ["whole", "shards"])
def test_repository_of_transformers_is_loaded_by_its_id(hub, foreign, repository):
    clip, _ = foreign
    named = load_clip("ViT-B-16", pretrained=f"bob/{repository}", image_size=(64, 64))
    assert same_weights(named, clip)
    assert same_weights(load_clip(f"hf-hub:bob/{repository}", image_size=(64, 64)), clip)
    if repository == "shards":
        transform = PromptedCLIP(named).eval_transform
        assert (transform.mean, transform.interpolation) == ((0.1, 0.2, 0.3), "bilinear")


def test_source_is_pinned_to_the_commit_so_that_it_is_made_again_as_it_was(hub, foreign, zoo):
    clip, commit = foreign
    loaded = load_clip("ViT-B-16", pretrained="bob/whole", image_size=(64, 64))
    source = loaded.promptreid_source
    assert source.pretrained == f"bob/whole@{commit}"
    changed = {name: value + 1 for name, value in to_transformers(clip).state_dict().items()}
    publish(hub, "bob/whole", {"model.safetensors": save(changed)})
    again = load_clip(source.name, pretrained=source.pretrained, image_size=source.image_size)
    assert same_weights(again, clip)
    assert not same_weights(load_clip("ViT-B-16", pretrained="bob/whole", image_size=(64, 64)), clip)


def test_gallery_notes_the_commit_of_a_repository_of_weights(hub, foreign, zoo):
    clip, commit = foreign
    choice = ModelChoice("ViT-B-16", "bob/whole", (64, 64))
    noted = notes_of(choice, load_model(choice, device="cpu"))
    assert (noted["pretrained"], noted["image_size"]) == (f"bob/whole@{commit}", [64, 64])
    changed = {name: value + 1 for name, value in to_transformers(clip).state_dict().items()}
    publish(hub, "bob/whole", {"model.safetensors": save(changed)})
    again = load_model(ModelChoice(noted["model"], noted["pretrained"], (64, 64)), device="cpu")
    assert same_weights(again.clip, clip)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("trains", [False, True])
def test_prompts_on_a_repository_of_weights_are_published_by_name_and_commit(hub, foreign, trains):
    commit = foreign[1]
    model = PromptedCLIP(load_clip("ViT-B-16", pretrained="bob/whole", image_size=(64, 64))).eval()
    if trains:
        with torch.no_grad():
            model.clip.text_projection.add_(1e-3)
    push_prompts(model, "alice/m", token=ALICE, private=False)
    files = hub.repos["alice/m"].files()
    assert ("open_clip_model.safetensors" in files) == trains
    card = files["README.md"].decode()
    assert "base_model: bob/whole\n" in card
    assert f"`ViT-B-16` with the weights of `bob/whole` on the Hub at commit `{commit}`" in card
    assert json.loads(files["prompt_config.json"])["pretrained"] == f"bob/whole@{commit}"
    if not trains:
        with pytest.raises(CheckpointError, match=r"tagged 'bob/whole@\w{40}'\. .* pass trust_base=True"):
            load_prompts("alice/m")
    loaded = load_prompts("alice/m", trust_base=True)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded.encode_image(images), model.encode_image(images))


def test_repository_in_the_cache_is_loaded_while_the_hub_is_away(hub, foreign):
    clip, _ = foreign
    for name in ("whole", "shards"):
        load_clip("ViT-B-16", pretrained=f"bob/{name}", image_size=(64, 64))
    hub.faults.append(lambda *_: "close")
    for name in ("whole", "shards"):
        assert same_weights(load_clip("ViT-B-16", pretrained=f"bob/{name}", image_size=(64, 64)), clip)


def test_damaged_shard_in_the_cache_is_downloaded_once_more(hub, foreign, cache):
    clip, _ = foreign
    load_clip("ViT-B-16", pretrained="bob/shards", image_size=(64, 64))
    next(cache.glob("models--bob--shards/snapshots/*/model-00001-*")).resolve().write_bytes(b"x" * 100)
    assert same_weights(load_clip("ViT-B-16", pretrained="bob/shards", image_size=(64, 64)), clip)


def test_what_is_not_on_the_hub_is_named(hub, foreign):
    publish(hub, "bob/empty", {"notes.txt": b""})
    with pytest.raises(HubError, match=r"bob/empty on the Hub has no open_clip_config\.json or config\.json; expected"):
        load_clip("ViT-B-16", pretrained="bob/empty")
    with pytest.raises(HubError, match=r"of bob/gone cannot be downloaded"):
        load_clip("ViT-B-16", pretrained="bob/gone")
    with pytest.raises(ValueError, match=r"no pretrained weights tagged 'weights/a\.pt', and there is no file"):
        load_clip("ViT-B-16", pretrained="weights/a.pt")
    publish(
        hub, "bob/other", {"config.json": b'{"model_type": "bert"}', "model.safetensors": save({"a": torch.ones(1)})}
    )
    with pytest.raises(WeightsError, match="no image encoder of a known kind: only a"):
        load_clip("ViT-B-16", pretrained="bob/other")


def test_repository_is_converted_and_is_a_model_of_the_command_line(hub, foreign, tmp_path):
    clip, _ = foreign
    made = convert_weights(f"bob/shards@{hub.repos['bob/shards'].refs['refs/heads/main']}", tmp_path / "out")
    assert (made.title, made.image_size) == ("transformers", (64, 64))
    stored = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert all(torch.equal(value, clip.state_dict()[name]) for name, value in stored.items())
    assert json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["preprocess_cfg"]["mean"] == [
        0.1,
        0.2,
        0.3,
    ]
    choice = ModelChoice("ViT-B-16", pretrained="bob/whole", image_size=(64, 64))
    assert same_weights(load_model(choice, device="cpu").clip, clip)
