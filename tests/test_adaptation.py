"""The whole method in one call: what it scores, what it writes, which epochs it takes, and what it refuses."""

import json
import os
import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from promptreid import PromptConfig, PromptedCLIP, Recipe, Stage, adapt, load_clip, save_prompts
from promptreid import adaptation as module
from promptreid.adaptation import load_and_verify, preset_for
from promptreid.data.reader import load_cuhk_pedes
from promptreid.data.records import ReIDDataset
from promptreid.errors import CheckpointError
from promptreid.files import read_sealed_json
from promptreid.prompts.kind import PromptKind
from promptreid.synthetic import write_generated
from promptreid.towers.tiny import TINY_FOLDER, TINY_TAG
from promptreid.training import ablations
from promptreid.training.checkpoint import list_checkpoints, read_state
from promptreid.training.processes import in_precision

RECIPE = Recipe().with_stages(epochs=(1, 2), learning_rates=(5e-3, 3e-4))
QUIET: dict[str, Any] = {"batch_size": 8, "trackers": (), "progress": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReIDDataset:
    root = tmp_path_factory.mktemp("drawn") / "data"
    return load_cuhk_pedes(write_generated(root, num_identities=(4, 2, 3), seed=0, progress=False))


def make_model(config: PromptConfig | None = None) -> PromptedCLIP:
    torch.manual_seed(0)
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
    return PromptedCLIP(clip, config or PromptConfig(text_length=1, vision_length=1))


def test_adapt_scores_every_state_saves_the_model_and_resumes(data: ReIDDataset, tmp_path: Path) -> None:
    result = adapt(make_model(), data, RECIPE, output_dir=tmp_path, **QUIET)
    states = ["zero_shot", "stage_one", "stage_two"]
    assert list(result.scores) == list(result.encoded) == states
    assert {name: len(history) for name, history in result.histories.items()} == {
        "stage_one": 1,
        "stage_two": 2,
    }
    assert result.checkpoint_rule == "epoch with the best validation mAP"
    assert [history[-1]["chosen"]["rule"] for history in result.histories.values()] == ["highest mAP"] * 2
    written = read_sealed_json(tmp_path / "results.json")
    assert written == json.loads(json.dumps(result.as_dict()))
    assert list(written["results"]) == states
    assert written["model"] == str(tmp_path / "model")
    assert result.model_dir is not None
    bare = make_model(PromptConfig(text_length=0, vision_length=0))
    with torch.no_grad():
        first = bare.encode_image(bare.eval_transform(_image(data))[None], normalize=True)
    torch.testing.assert_close(result.encoded["zero_shot"].image_features[:1], first, rtol=1e-4, atol=1e-5)
    # Run again, it trains nothing and comes to the same scores.
    again = adapt(make_model(), data, RECIPE, output_dir=tmp_path, **QUIET)
    assert again.histories == result.histories
    assert again.scores == result.scores
    assert load_and_verify(result, data.test).image_size == (96, 48)


@pytest.mark.parametrize("changed", ["another annotation", "one byte of an image", "another base"])
def test_adapt_on_other_data_or_another_base_is_refused_before_anything_is_scored(
    data: ReIDDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    root = Path(shutil.copytree(data.root, tmp_path / "data", copy_function=shutil.copy2))
    run: dict[str, Any] = {"output_dir": tmp_path / "run", **QUIET}
    adapt(make_model(), load_cuhk_pedes(root), RECIPE.with_stages(epochs=(1, 0)), evaluate_test="never", **run)
    model = make_model()
    if changed == "another annotation":
        annotation = root / "reid_raw.json"
        annotation.write_text(annotation.read_text().replace("man", "person"))
        words = r"data\.train\.annotation was '\w+', is '\w+'"
    elif changed == "one byte of an image":
        image = min((root / "imgs").rglob("*.jpg"))
        content, status = bytearray(image.read_bytes()), image.stat()
        content[len(content) // 2] ^= 1
        image.write_bytes(content)
        os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        words = r"images\.content was '\w+', is"
    else:
        clip = load_clip("promptreid-tiny", pretrained=None, image_size=(96, 48))
        model, words = PromptedCLIP(clip, model.config), "base_fingerprint was"
    monkeypatch.setattr(module, "encode_split", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(CheckpointError, match=f"holds another run: .*{words}"):
        adapt(model, load_cuhk_pedes(root), RECIPE.with_stages(epochs=(1, 0)), **run)


def test_adapt_data_that_was_copied_to_another_folder_is_the_same(data: ReIDDataset, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(data.root, tmp_path / "moved", copy_function=shutil.copy))  # with times of their own
    os.utime(min((moved / "imgs").rglob("*.jpg")), (2e9, 2e9))
    assert load_cuhk_pedes(moved).identity() == data.identity()


def _image(data: ReIDDataset) -> Any:
    from promptreid.data.images import open_image

    return open_image(data.test.records[0].path)


def test_adapt_while_another_run_scores_the_bare_model_is_refused_and_leaves_that_run_whole(
    data: ReIDDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = load_cuhk_pedes(write_generated(tmp_path / "others", num_identities=(4, 2, 3), seed=1, progress=False))
    run: dict[str, Any] = {"output_dir": tmp_path / "run", "make_stages": lambda *_: [], "save": False, **QUIET}
    encode, asked = module.encode_split, []

    def begin_another(*given: Any, **options: Any) -> Any:
        if not asked:
            asked.append("once")
            with pytest.raises(TimeoutError, match=rf"another process is training in {tmp_path / 'run'}; wait for it"):
                adapt(make_model(), others, **run)
        return encode(*given, **options)

    monkeypatch.setattr(module, "encode_split", begin_another)
    adapt(make_model(), data, **run)
    assert asked
    adapt(make_model(), data, **run)  # the run that began first is still the folder's
    with pytest.raises(CheckpointError, match="holds another run"):
        adapt(make_model(), others, **run)


def test_adapt_without_validation_split_takes_the_last_epoch(data: ReIDDataset, tmp_path: Path) -> None:
    result = adapt(make_model(), replace(data, val=None), RECIPE, output_dir=tmp_path, **QUIET)
    assert result.checkpoint_rule == "last epoch"
    assert result.histories["stage_two"][-1]["chosen"] == {"rule": "last epoch", "epoch": 2, "step": 8}


def test_adapt_with_a_cache_trains_the_same(data: ReIDDataset, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    runs = {"files": {}, "cache": {"cache_dir": folder}}
    recipe = RECIPE.with_stages(epochs=(1, 1))
    results = {
        name: adapt(make_model(), data, recipe, output_dir=tmp_path / name, save=False, **more, **QUIET)
        for name, more in runs.items()
    }
    assert results["cache"].scores == results["files"].scores
    assert len(list(folder.glob("images-*.uint8"))) == len(list(folder.glob("tokens-*"))) == 1


@pytest.mark.parametrize(("evaluate_test", "states"), [("last", ["direct_fine_tuning"]), ("never", [])])
def test_adapt_runs_other_stages_with_settings_of_their_own_and_looks_at_the_test_split_only_if_asked(
    data: ReIDDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluate_test: Any, states: list[str]
) -> None:
    if evaluate_test == "never":
        monkeypatch.setattr(module, "encode_split", lambda *_, **__: pytest.fail("looked at the test split"))
    seen: list[int] = []
    result = adapt(
        make_model(PromptConfig(text_length=0, vision_length=0)),
        data,
        RECIPE,
        output_dir=tmp_path,
        make_stages=ablations.direct_fine_tuning,
        stage_settings=lambda stage: {"batch_size": 8 * stage.epochs},
        evaluate_test=evaluate_test,
        save=False,
        on_epoch_end=lambda entry, model: seen.append(entry["step"]),
        **QUIET,
    )
    assert list(result.scores) == states
    assert seen == [2, 4]  # 32 pairs in batches of 16
    assert result.model_dir is None
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("validated", [True, False])
def test_adapt_that_diverges_says_in_which_stage_and_goes_on_once_that_is_deleted(
    data: ReIDDataset, tmp_path: Path, validated: bool
) -> None:
    wild = RECIPE.with_stages(epochs=(1, 1), learning_rates=(5e-3, 1e9))
    used = data if validated else replace(data, val=None)
    with pytest.raises(FloatingPointError) as found:
        adapt(make_model(), used, wild, output_dir=tmp_path, **QUIET, steps_per_epoch=1)
    if validated:
        assert "step 0 (stage stage_two, epoch 1) left a model that cannot be scored" in str(found.value)
        assert "its epoch is not kept, and there is no checkpoint yet" in str(found.value)
    else:
        assert "stage two left a model whose features are NaN or infinity: training diverged" in str(found.value)
        assert str(found.value).endswith("clip the gradient (max_norm), in another output_dir")
        shutil.rmtree(tmp_path / "stage_two")
    calm = wild.with_stages(learning_rates=(5e-3, 3e-4))
    assert adapt(make_model(), used, calm, output_dir=tmp_path, **QUIET, steps_per_epoch=1).model_dir is not None


def test_adapt_without_stages_scores_the_bare_model(data: ReIDDataset, tmp_path: Path) -> None:
    result = adapt(make_model(), data, output_dir=tmp_path, make_stages=lambda *_: [], evaluate_test="last", save=False)
    assert list(result.scores) == ["zero_shot"]


def test_adapt_stages_of_one_name_are_refused(data: ReIDDataset, tmp_path: Path) -> None:
    def twice(model: PromptedCLIP, recipe: Recipe) -> list[Stage]:
        return [recipe.domain_adaptation(model)] * 2

    with pytest.raises(ValueError, match="give each stage its own name"):
        adapt(make_model(), data, output_dir=tmp_path, make_stages=twice)


def test_load_and_verify_notices_other_scores(
    data: ReIDDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE.with_stages(epochs=(1, 0))
    result = adapt(make_model(), data, recipe, output_dir=tmp_path, **QUIET)
    other = result.scores["zero_shot"]
    worse = replace(other, text_to_image=replace(other.text_to_image, mAP=other.text_to_image.mAP / 2))
    monkeypatch.setattr(module, "evaluate", lambda *_: worse)
    with pytest.raises(
        RuntimeError,
        match=r"the saved model scores \w+ [01]\.\d+, but it scored [01]\.\d+ before saving; do not publish",
    ):
        load_and_verify(result, data.test)
    with pytest.raises(ValueError, match="nothing to compare"):
        load_and_verify(replace(result, model_dir=None), data.test)


def test_preset_of_the_small_base_is_its_own() -> None:
    assert preset_for("promptreid-tiny").image_size == (96, 48)
    assert preset_for("promptreid-tiny").pretrained == TINY_TAG
    assert preset_for("ViT-B-16").recipe == Recipe()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"batch_size": 1000}, "batch_size is 1000, but"), ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'")],
)
def test_adapt_refuses_what_the_trainer_refuses_before_it_scores(
    data: ReIDDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(module, "encode_split", lambda *given, **options: pytest.fail("it began to score"))
    with pytest.raises(ValueError, match=message):
        adapt(make_model(), data, RECIPE, output_dir=tmp_path, **{**QUIET, **settings})


def on(device: str) -> Any:
    """A model of which nothing but its device is asked."""
    return SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device(device))]))


@pytest.mark.parametrize(
    ("where", "given", "device", "precision"),
    [
        ("cpu", {}, "cpu", "no"),
        ("cuda:1", {}, "cuda:1", "bf16"),
        ("cpu", {"device": "cuda"}, "cuda", "bf16"),
        ("cuda", {"device": "cpu"}, "cpu", "no"),
        ("cuda", {"mixed_precision": "fp16"}, "cuda", "fp16"),
    ],
)
def test_adapt_default_precision_is_that_of_the_device_it_trains_on(
    data: ReIDDataset, where: str, given: dict[str, Any], device: str, precision: str
) -> None:
    settings = module._with_defaults({"train_data": [], **given}, on(where), data, None, progress=False)
    assert (str(settings["device"]), settings["mixed_precision"]) == (device, precision)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is the best device")
def test_adapt_without_a_device_takes_the_best_one_and_its_precision(data: ReIDDataset) -> None:
    own = Accelerator()
    with in_precision("bf16"):
        settings = module._with_defaults({"train_data": [], "device": None}, on("cuda"), data, None, progress=False)
        assert own.mixed_precision == "bf16"  # asking changed nothing
    assert (str(settings["device"]), settings["mixed_precision"]) == ("cpu", "no")


@pytest.mark.parametrize("stages", [{}, {"make_stages": lambda *_: []}])
def test_adapt_moves_the_model_to_its_device_before_it_scores(
    data: ReIDDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: dict[str, Any]
) -> None:
    class Scored(Exception):
        pass

    def score_bare(*_: Any, **__: Any) -> None:
        raise Scored

    moved: list[str] = []
    model = make_model()
    monkeypatch.setattr(model, "to", lambda device: moved.append(str(device)))
    monkeypatch.setattr(module, "encode_split", score_bare)
    with pytest.raises(Scored):
        adapt(model, data, RECIPE, output_dir=tmp_path, device="cpu", **stages, **QUIET)
    assert moved == ["cpu"]


SHORT: dict[str, Any] = {"evaluate_test": "never", "save": False, "steps_per_epoch": 1, **QUIET}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"best_metric": "rank1"}, "epoch with the best validation rank1"),
        ({"best_metric": None}, "last epoch"),
        ({"best_metric": "own", "evaluate": lambda model: {"own": 1.0}}, "epoch with the best own"),
        (
            {"stage_settings": lambda stage: {"best_metric": None if stage.name == "stage_two" else "mINP"}},
            "stage one: epoch with the best validation mINP; stage two: last epoch",
        ),
    ],
)
def test_adapt_states_the_rule_by_which_each_stage_chose(
    data: ReIDDataset, tmp_path: Path, settings: dict[str, Any], rule: str
) -> None:
    result = adapt(make_model(), data, RECIPE.with_stages(epochs=(1, 1)), output_dir=tmp_path, **settings, **SHORT)
    assert result.checkpoint_rule == read_sealed_json(tmp_path / "results.json")["checkpoint_rule"] == rule


def test_adapt_states_which_stage_is_an_average(data: ReIDDataset, tmp_path: Path) -> None:
    recipe = replace(RECIPE.with_stages(epochs=(2, 1)), average_prompts=True)
    rule = "stage one: average of all epochs; stage two: epoch with the best validation mAP"
    assert adapt(make_model(), data, recipe, output_dir=tmp_path, **SHORT).checkpoint_rule == rule


def test_adapt_says_validation_only_of_its_own_scores(
    data: ReIDDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, loud = RECIPE.with_stages(epochs=(1, 0)), {**SHORT, "progress": True}
    adapt(make_model(), data, recipe, output_dir=tmp_path / "ours", **loud)
    said = capsys.readouterr().err
    assert "  val mAP " in said
    assert "kept epoch 1 of 1, the highest validation mAP, " in said
    adapt(make_model(), data, recipe, output_dir=tmp_path / "own", evaluate=lambda model: {"mAP": 0.5}, **loud)
    said = capsys.readouterr().err
    assert "stage one 1/1  mAP 50.00 (first) best" in said
    assert "kept epoch 1 of 1, the highest mAP, 50.00" in said


class Shift(PromptKind):
    """A kind of prompt of one's own: added to the image features."""

    def __init__(self, tower: Any) -> None:
        super().__init__(tower, length=1, width=128)
        self.shift = nn.Parameter(torch.zeros(128))

    def register_hooks(self) -> Generator[Any, None, None]:
        yield self.tower.module.register_forward_hook(self._add)

    def _add(self, module: Any, arguments: Any, output: Any) -> Any:
        return output + self.shift if self.active else None


def test_load_and_verify_loads_what_adapt_made_of_a_base_in_a_file(data: ReIDDataset, tmp_path: Path) -> None:
    file = Path(shutil.copy(TINY_FOLDER / "promptreid-tiny-v3.safetensors", tmp_path / "base.safetensors"))
    model = PromptedCLIP(load_clip("promptreid-tiny", pretrained=str(file), image_size=(96, 48)))
    short = {**SHORT, "evaluate_test": "last", "save": True}
    result = adapt(model, data, RECIPE.with_stages(epochs=(1, 0)), output_dir=tmp_path / "run", **short)
    assert load_and_verify(result, data.test).config == model.config


def test_load_and_verify_loads_a_base_in_a_file_that_needed_settings(data: ReIDDataset, tmp_path: Path) -> None:
    torch.save(make_model().detach().state_dict(), tmp_path / "base.pt")
    settings: dict[str, Any] = {"weights_size": (96, 48), "quick_gelu": True}
    model = PromptedCLIP(load_clip("promptreid-tiny", pretrained=tmp_path / "base.pt", image_size=(96, 48), **settings))
    short = {**SHORT, "evaluate_test": "last", "save": True}
    result = adapt(model, data, RECIPE.with_stages(epochs=(1, 0)), output_dir=tmp_path / "run", **short)
    assert load_and_verify(result, data.test).source == model.source


def test_load_and_verify_takes_what_makes_prompts_of_ones_own_kind(data: ReIDDataset, tmp_path: Path) -> None:
    clip = load_clip("promptreid-tiny", pretrained=TINY_TAG, image_size=(96, 48))
    model = PromptedCLIP(clip, vision_prompts=Shift)
    short = {**SHORT, "evaluate_test": "last", "save": True}
    result = adapt(model, data, RECIPE.with_stages(epochs=(1, 0)), output_dir=tmp_path, **short)
    loaded = load_and_verify(result, data.test, vision_prompts=Shift)
    assert isinstance(loaded.vision.prompts, Shift)


def test_adapt_trains_stages_in_different_precisions(data: ReIDDataset, tmp_path: Path) -> None:
    def precision(stage: Stage) -> dict[str, Any]:
        return {"mixed_precision": "bf16" if stage.name == "stage_two" else "no"}

    adapt(make_model(), data, RECIPE, output_dir=tmp_path, stage_settings=precision, **SHORT)
    kept = {
        name: read_state(list_checkpoints(tmp_path / name / "checkpoints")[-1])["settings"]["mixed_precision"]
        for name in ("stage_one", "stage_two")
    }
    assert kept == {"stage_one": "no", "stage_two": "bf16"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"batch_size": 1000}, "batch_size is 1000, but"),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'"),
        ({"best_metric": "mAP", "evaluate": None}, "best_metric='mAP' needs evaluate"),
    ],
)
def test_adapt_refuses_the_settings_of_a_later_stage_before_it_scores_or_trains(
    data: ReIDDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(module, "encode_split", lambda *given, **options: pytest.fail("it began to score"))
    monkeypatch.setattr(module.Trainer, "fit", lambda *given: pytest.fail("it began to train"))
    with pytest.raises(ValueError, match=message):
        adapt(
            make_model(),
            data,
            RECIPE,
            output_dir=tmp_path,
            stage_settings=lambda stage: bad if stage.name == "stage_two" else {},
            **QUIET,
        )


def test_adapt_refuses_before_it_scores_to_save_over_its_own_base(
    data: ReIDDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "encode_split", lambda *_, **__: pytest.fail("something was scored"))
    save_prompts(make_model(), tmp_path / "run" / "model", encoders="always")
    model = PromptedCLIP(load_clip(f"local-dir:{tmp_path / 'run' / 'model'}", image_size=(96, 48)))
    with pytest.raises(FileExistsError, match="holds the weights that these prompts are for"):
        adapt(model, data, output_dir=tmp_path / "run", progress=False)


def test_adapt_of_unknown_states_to_score_names_the_choices(data: ReIDDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="evaluate_test is 'none', expected one of always, last, never"):
        adapt(make_model(), data, output_dir=tmp_path, evaluate_test="none")  # pyright: ignore[reportArgumentType]


def test_adapt_takes_a_single_stage(data: ReIDDataset, tmp_path: Path) -> None:
    def one(model: PromptedCLIP, recipe: Recipe) -> Any:
        return recipe.with_stages(epochs=(1, 1)).domain_adaptation(model)

    assert list(adapt(make_model(), data, output_dir=tmp_path, make_stages=one, **SHORT).histories) == ["stage_one"]
