import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptreid import PromptConfig, PromptedCLIP
from promptreid.errors import CheckpointError
from promptreid.hub import manifest as manifest_module
from promptreid.hub.manifest import FORMAT_VERSION, parse_manifest
from promptreid.prompts import config as config_module
from promptreid.towers.loading import ClipSource


def edited(manifest, **changes) -> bytes:
    """The file with some values changed, and a checksum that fits them; `...` takes a key out."""
    values = json.loads(manifest.to_json())
    values.update(changes)
    values = {name: value for name, value in values.items() if value is not ...}
    values.pop("checksum")
    values["checksum"] = manifest_module._checksum(values)
    return json.dumps(values).encode()


def test_manifest_round_trips(make_manifest):
    manifest = make_manifest(
        prompts=PromptConfig(text_length=2, vision_depth=3, position_embedding=True),
        pretrained=None,
        encoders_fingerprint=(0.5, -0.2501, 1.0),
        base_fingerprint=(0.5, -0.25, 1.0),
        sha256={
            name: "a" * 64 for name in ("prompts.safetensors", "open_clip_model.safetensors", "open_clip_config.json")
        },
    )
    read = parse_manifest(manifest.to_json().encode(), source="f")
    assert read.prompts == manifest.prompts
    assert read.shapes == manifest.shapes
    assert read.sha256 == manifest.sha256
    assert read.pretrained is None
    assert read.encoders_fingerprint == pytest.approx(manifest.encoders_fingerprint, abs=1e-6)
    assert read.encoders_fingerprint != read.base_fingerprint


def test_size_of_a_file_of_weights_round_trips_and_is_left_out_where_it_is_not_stated(make_manifest):
    manifest = make_manifest(pretrained="own.pt", weights_size=(384, 128))
    read = parse_manifest(manifest.to_json().encode(), source="f")
    assert read.weights_size == (384, 128)
    assert read.source == ClipSource("ViT-B-16", "own.pt", (384, 128), weights_size=(384, 128))
    assert read.source.quick_gelu is True
    assert "weights_size" not in make_manifest().to_json()
    assert make_manifest().source == ClipSource("ViT-B-16", "openai", (384, 128))
    assert make_manifest().source.quick_gelu is None
    with pytest.raises(CheckpointError, match="weights_size is"):
        parse_manifest(make_manifest(weights_size=(0, 2)).to_json().encode(), source="f")


def test_projections_may_be_larger_than_prompts(make_manifest):
    """The largest that open_clip names: 32 blocks, from width 1280 to 1664."""
    shapes = {"vision.prompts.weight": (32, 1664, 1280)}
    coupled = PromptConfig(kind="coupled")
    read = parse_manifest(make_manifest(shapes=shapes, prompts=coupled).to_json().encode(), source="f")
    assert (read.shapes, read.prompts) == (shapes, coupled)
    with pytest.raises(CheckpointError, match="68,157,440 numbers, expected at most 8,388,608"):
        parse_manifest(make_manifest(shapes=shapes).to_json().encode(), source="f")
    larger = make_manifest(shapes={"vision.prompts.weight": (64, 1664, 1280)}, prompts=coupled).to_json().encode()
    with pytest.raises(CheckpointError, match="expected at most 134,217,728"):
        parse_manifest(larger, source="f")


def test_any_tensor_of_a_kind_is_named(make_manifest):
    names = [f"vision.prompts.blocks.{index}.Wave_2" for index in range(24)] + ["text.prompts.gate"]
    shapes = {name: (2, 3) if "blocks" in name else () for name in names}
    assert parse_manifest(make_manifest(shapes=shapes).to_json().encode(), source="f").shapes == shapes


def test_kinds_are_written_only_where_they_are_not_built_in(make_manifest):
    assert "kinds" not in json.loads(make_manifest().to_json())
    manifest = make_manifest(kinds={"text": "mine.prompts.Wave"})
    assert parse_manifest(manifest.to_json().encode(), source="f") == manifest


def test_manifest_of_a_base_as_it_was_keeps_one_fingerprint(make_manifest):
    values = json.loads(make_manifest().to_json())
    assert values["encoders_fingerprint"] is None
    read = parse_manifest(make_manifest().to_json().encode(), source="f")
    assert read.encoders_fingerprint == read.base_fingerprint


def test_spacing_and_order_do_not_matter(make_manifest):
    values = json.loads(make_manifest().to_json())
    turned = json.dumps(dict(reversed(values.items())), indent=3).encode()
    assert parse_manifest(turned, source="f") == parse_manifest(make_manifest().to_json().encode(), source="f")


def test_value_changed_by_hand_is_refused(make_manifest):
    content = make_manifest().to_json().replace("[384,128]", "[385,128]").encode()
    with pytest.raises(CheckpointError, match=r"f\.json is damaged or was changed by hand: its checksum"):
        parse_manifest(content, source="f.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 50_000, "not valid JSON"),
        (b'{"a":' * 12_000, "not valid JSON"),
        (b"9" * 60_000, "not valid JSON|holds int"),
        (b"[1]", "holds list, expected an object"),
        (b"null", "holds NoneType"),
        (b"{}", "format_version is 'None', expected 1 to 1"),
        (b'{"format_version": true}', "format_version is 'True'"),
        (b'{"format_version": 0}', "format_version is '0'"),
        (b'{"format_version": 1}', "checksum"),
        (b'{"format_version": 2}', "format version 2, this library reads up to 1; pip install --upgrade promptreid"),
        (b" " * 70_000, "70000 bytes"),
    ],
)
def test_file_that_is_no_manifest_is_refused(content, words):
    with pytest.raises(CheckpointError, match=words):
        parse_manifest(content, source="f")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_name": ...}, r"missing keys \['model_name'\], unknown keys none"),
        ({"pickle": 1}, r"unknown keys \['pickle'\]; pip install --upgrade"),
        ({"model_name": ""}, "model_name is ''"),
        ({"model_name": "a\nb"}, "expected a short line"),
        ({"model_name": "\ud800"}, "expected a short line"),
        ({"model_name": "x" * 600}, "expected a short line"),
        ({"pretrained": 3}, "pretrained is '3'"),
        ({"quick_gelu": 1}, "quick_gelu is '1', expected true or false"),
        ({"image_size": [1, 2, 3]}, "image_size is"),
        ({"image_size": [0, 2]}, "expected integers from 1 to 65536"),
        ({"image_size": [10**9, 2]}, "expected integers from 1 to 65536"),
        ({"image_size": [True, 2]}, "expected integers"),
        ({"image_size": 5}, "image_size is '5'"),
        ({"prompts": 5}, "prompts is '5'"),
        ({"prompts": {"depth": 1}}, r"unknown keys \['depth'\]; pip install --upgrade"),
        ({"prompts": {"text_length": -1}}, "text_length is -1"),
        ({"prompts": {"text_length": 10**9}}, "text_length is 1000000000, expected at most 4096"),
        ({"prompts": {"text_length": 2.5}}, "text_length is 2.5"),
        ({"prompts": {"text_initialization": ["normal"]}}, "expected one of"),
        ({"prompts": {"position_embedding": 1}}, "position_embedding is 1, expected True or False"),
        ({"shapes": []}, "shapes is"),
        ({"shapes": {}}, "shapes is"),
        ({"shapes": {f"text.prompts.{n}": [1] for n in range(257)}}, "1 to 256 tensors"),
        ({"shapes": {"clip.visual.proj": [1]}}, "which are not prompt tensors"),
        ({"shapes": {"text.prompts.tokens": [65536, 65536]}}, "4,294,967,296 numbers"),
        ({"shapes": {"text.prompts.tokens": [-1, 2, 3]}}, "expected integers from 0"),
        ({"shapes": {"text.prompts.tokens": [1, 2, 3, 4, 5]}}, "expected 0 or 1 or 2 or 3 or 4 integers"),
        ({"base_fingerprint": "f32:AAA"}, "a fingerprint"),
        ({"base_fingerprint": [1.0]}, "base_fingerprint is"),
        ({"encoders_fingerprint": "f32:AACAPw=="}, "fingerprints have 3 and 1 samples"),
        ({"sha256": {}}, "does not hold one digest"),
        ({"sha256": {"prompts.safetensors": "../x"}}, "does not hold one digest"),
        ({"sha256": {"prompts.safetensors": "a" * 64, "../../evil.pkl": "a" * 64}}, "does not hold one digest"),
        ({"sha256": {"prompts.safetensors": "a" * 64, "open_clip_model.safetensors": "a" * 64}}, "does not hold"),
        ({"kinds": {}}, "kinds is"),
        ({"kinds": {"image": "mine.Wave"}}, "kinds is .*expected the kind of prompts of vision or text"),
        ({"kinds": {"text": "a\nb"}}, "expected a short line"),
        ({"library_version": None}, "library_version is 'None'"),
    ],
)
def test_value_out_of_bounds_is_refused(make_manifest, changes, words):
    with pytest.raises(CheckpointError, match=words):
        parse_manifest(edited(make_manifest(), **changes), source="f")


def test_older_format_is_migrated_step_by_step(make_manifest, monkeypatch):
    old = edited(make_manifest(), quick_gelu=..., activation="QuickGELU")

    def to_two(values):
        values["gelu"] = values.pop("activation")
        return values

    def to_three(values):
        values["quick_gelu"] = values.pop("gelu") == "QuickGELU"
        return values

    monkeypatch.setattr(manifest_module, "FORMAT_VERSION", 3)
    monkeypatch.setattr(manifest_module, "MIGRATIONS", {1: to_two, 2: to_three})
    assert parse_manifest(old, source="f").quick_gelu
    assert json.loads(make_manifest().to_json())["format_version"] == 3


def test_every_older_format_has_a_migration():
    assert sorted(manifest_module.MIGRATIONS) == list(range(1, FORMAT_VERSION))


NUMBERS = st.integers(-2, 2) | st.integers(4000, 70_000)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "text_length": NUMBERS,
            "vision_length": NUMBERS,
            "text_depth": NUMBERS | st.none(),
            "vision_depth": NUMBERS | st.none(),
            "position_embedding": st.booleans() | NUMBERS | st.none(),
            "kind": st.sampled_from(["prefix", "grouped", "coupled"]),
            "groups": st.lists(st.text(st.characters() | st.sampled_from("ab\u00a0\t\u202e"), max_size=3), max_size=3),
        },
    )
)
def test_whatever_a_configuration_takes_is_read_from_a_file(settings):
    try:
        config = PromptConfig(**settings)
    except (ValueError, TypeError):
        return
    assert manifest_module.prompt_config(json.loads(json.dumps(config.as_dict()))) == config


def test_most_groups_that_a_configuration_takes_are_read_from_a_file(make_manifest):
    for names in ([f"{number:x}" for number in range(4000)], [f"{number:0500}" for number in range(64)]):
        config = PromptConfig(kind="grouped", groups=tuple(names))
        manifest = make_manifest(
            prompts=config,
            shapes={f"text.prompts.blocks.{number}.tokens": (64, 4096) for number in range(100)},
            base_fingerprint=(0.5,) * 2000,
            encoders_fingerprint=(0.25,) * 2000,
        )
        assert parse_manifest(manifest.to_json().encode(), source="f").prompts == config


@pytest.mark.parametrize("kind", ["prefix", "grouped"])
def test_prompts_too_large_to_be_saved_are_refused_when_they_are_made(clip, monkeypatch, kind):
    config = PromptConfig(kind=kind, groups=("a", "b") if kind == "grouped" else ())
    monkeypatch.setitem(manifest_module._MOST_ELEMENTS_OF, kind, 600)
    with pytest.raises(ValueError, match=r"prompts have [\d,]+ numbers, expected at most 600; give fewer"):
        PromptedCLIP(clip, config)
    monkeypatch.undo()
    PromptedCLIP(clip, config)  # it was left bare


@pytest.mark.parametrize("kind", ["independent", "prefix", "grouped", "coupled"])
def test_prompts_too_large_to_be_saved_are_refused_before_they_take_memory(clip, monkeypatch, kind):
    config = PromptConfig(kind=kind, groups=("a", "b") if kind == "grouped" else ())
    made = []
    for name in ("zeros", "ones", "randn"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *size, make=make, **how: made.append(make(*size, **how)) or made[-1])
    monkeypatch.setattr(manifest_module, "_MOST_ELEMENTS_OF", dict.fromkeys([kind], 100))
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"prompts have [\d,]+ numbers, expected at most 100; give fewer"):
        PromptedCLIP(clip, config)
    assert made
    assert all(tensor.is_meta for tensor in made)
    assert torch.equal(torch.get_rng_state(), random)


def test_prefix_of_more_numbers_than_a_file_holds_is_refused(clip):
    config = PromptConfig(kind="prefix", vision_length=65536)
    with pytest.raises(ValueError, match=r"prompts have [\d,]+ numbers, expected at most 8,388,608"):
        PromptedCLIP(clip, config)
    model = PromptedCLIP(clip, PromptConfig(kind="prefix", vision_length=1))
    before = model.prompt_state_dict()
    with pytest.raises(ValueError, match="expected at most 8,388,608"):
        model.attach(config)
    assert model.config.vision_length == 1
    assert all(torch.equal(value, before[name]) for name, value in model.prompt_state_dict().items())


def test_limits_are_stated_where_they_are_met():
    stated = " ".join(PromptConfig.__doc__.split())
    for most in (*config_module._MOST.values(), config_module.MOST_LAYERS, config_module._MOST_GROUPS):
        assert f"{most:,}" in stated
    assert f"{config_module._LONGEST_GROUP} letters" in stated
    assert f"{config_module._MOST_GROUP_BYTES:,} bytes" in stated
    for most in {manifest_module._MOST_ELEMENTS, *manifest_module._MOST_ELEMENTS_OF.values()}:
        assert f"{most:,}" in PromptedCLIP.__doc__


def test_border_of_many_pixels_is_read_from_a_file(make_manifest):
    """64 pixels around images of 512 x 512."""
    shapes = {"vision.prompts.tokens": (1, 512**2 - 384**2, 3)}
    assert parse_manifest(make_manifest(shapes=shapes).to_json().encode(), source="f").shapes == shapes


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.recursive(VALUES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_json_is_refused(value):
    with pytest.raises(CheckpointError):
        parse_manifest(json.dumps(value).encode(), source="f")


@pytest.mark.parametrize(
    "weights",
    [
        *("x", [], {"float32": "12"}, {"float32": 3}, {"float8": "0" * 16}, {"float32": "g" * 16}),
        *({"positions": "f32:AACAfw=="}, {"positions": "none"}, {"positions": None}),
    ],
)
def test_checksums_that_are_none_are_refused(make_manifest, weights):
    good = make_manifest(weights={"float32": "0" * 16, "positions": "f32:AACAPw=="})
    assert parse_manifest(good.to_json().encode(), source="f") == good
    with pytest.raises(CheckpointError, match=r"weights|fingerprint"):
        parse_manifest(edited(good, weights=weights), source="f")
