"""A run is resumed only with what went into it, by one process at a time, and from files that are what was written."""

import copy
import json
import logging
import os
import random
import shutil
import sys
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file

from promptreid.data.samplers import EpochSampler, IdentitySampler
from promptreid.errors import CheckpointError
from promptreid.losses.contrastive import ContrastiveLoss, NITCLoss, SDMLoss
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.prompts.config import PromptConfig, PromptForm
from promptreid.training.checkpoint import list_checkpoints
from promptreid.training.run_folder import RunFolder
from promptreid.training.run_identity import describe, differences, evaluate_identity
from promptreid.training.stage import Stage
from promptreid.training.trainer import Trainer


class Margin(torch.nn.Module):
    """A loss from outside the package, which says nothing of its settings."""

    def __init__(self, margin: float, *, weight: float = 1.0) -> None:
        super().__init__()
        self.margin = margin
        self.register_buffer("weight", torch.full((3,), weight))

    def forward(self, images: torch.Tensor, texts: torch.Tensor, person_ids: torch.Tensor) -> torch.Tensor:
        return (self.margin - images.mean()).square() * self.weight.sum()


def prompts_only(model: PromptedCLIP, loss: torch.nn.Module, epochs: int = 1) -> list[Stage]:
    return [Stage("first", model, trains=["prompts"], losses={"m": loss}, epochs=epochs)]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Margin(50.0), r"losses\.0\.m\.margin was 1\.0, is 50\.0"),
        (Margin(1.0, weight=2.0), r"losses\.0\.m\.weight\.0 was 1\.0, is 2\.0"),
    ],
)
def test_trainer_loss_of_other_settings_is_refused(make: Any, model: PromptedCLIP, other: Margin, message: str) -> None:
    make(stages=prompts_only(model, Margin(1.0))).fit()
    make(stages=prompts_only(model, Margin(1.0))).fit()
    with pytest.raises(CheckpointError, match=message):
        make(stages=prompts_only(model, other))


@pytest.mark.parametrize("change", ["added", "replaced", "edited"])
def test_trainer_takes_the_losses_as_they_are_when_it_is_made(
    make: Any, model: PromptedCLIP, tmp_path: Path, change: str
) -> None:
    stages = prompts_only(model, Margin(2.0))
    make(stages=stages, output_dir=tmp_path / "first")  # made, and not run
    losses: Any = stages[0].losses
    if change == "edited":
        losses["m"].margin = 7.0
    else:
        losses["m" if change == "replaced" else "more"] = Margin(7.0)
    make(stages=stages).fit()
    make(stages=stages).fit()

    def anew(margin: float) -> list[Stage]:  # as another process makes them
        again = prompts_only(model, Margin(2.0))
        again[0].losses["more" if change == "added" else "m"] = Margin(margin)
        return again

    make(stages=anew(7.0)).fit()
    with pytest.raises(CheckpointError, match=r"losses\.0\.(m|more)\.margin was 7\.0, is 2\.0"):
        make(stages=anew(2.0))


class Remembering(Margin):
    """A loss that changes while it trains: in what a checkpoint keeps, and in what it does not."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.calls = 0

    def forward(self, images: torch.Tensor, texts: torch.Tensor, person_ids: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.weight += 1
        return super().forward(images, texts, person_ids)


def test_trainer_made_again_in_one_process_does_not_mind_what_training_changed(make: Any, model: PromptedCLIP) -> None:
    stages = prompts_only(model, Remembering(), epochs=2)
    with pytest.raises(RuntimeError, match="stop"):
        make(stages=stages, on_epoch_end=stop).fit()
    for _ in range(2):
        make(stages=stages).fit()
    again = prompts_only(model, Remembering(), epochs=2)
    for _ in range(2):  # the first loads the weights of the run that ended into the loss
        make(stages=again).fit()
    assert again[0].losses["m"].weight[0] > 1


@pytest.mark.parametrize("make_loss", [lambda: Margin(1.0), Remembering], ids=["plain", "remembering"])
def test_trainer_takes_a_loss_that_is_edited_after_training_as_it_is_then(
    make: Any, model: PromptedCLIP, tmp_path: Path, make_loss: Any
) -> None:
    first = {"stages": prompts_only(model, make_loss()), "output_dir": tmp_path / "first"}
    make(**first).fit()
    loss: Any = first["stages"][0].losses["m"]
    loss.margin = 5.0
    with pytest.raises(CheckpointError, match=r"run: losses\.0\.m\.margin was 1\.0, is 5\.0\. Use"):
        make(**first)
    second = make(stages=first["stages"])
    second.fit()
    make(stages=first["stages"]).fit()
    state = json.loads((second.last_checkpoint / "state.json").read_text())
    again: Any = make_loss()  # as another process makes it
    with pytest.raises(CheckpointError, match=r"margin was 5\.0, is 1\.0"):
        make(stages=prompts_only(model, again))
    again.margin = 5.0
    assert state["identity"]["losses"] == [{"m": describe(again)}]
    make(stages=prompts_only(model, again)).fit()
    loss.margin = 1.0  # put back
    make(**first).fit()


def test_trainer_takes_a_built_in_loss_that_counts_steps_and_is_edited_after_training(
    make: Any, model: PromptedCLIP, tmp_path: Path
) -> None:
    loss = NITCLoss(rising_steps=10)
    stages = prompts_only(model, loss)
    make(stages=stages, output_dir=tmp_path / "first").fit()
    assert loss.steps > 0
    loss.soft_labels = 0.25
    make(stages=stages).fit()
    make(stages=prompts_only(model, NITCLoss(rising_steps=10, soft_labels=0.25))).fit()


@pytest.mark.parametrize("make_loss", [ContrastiveLoss, Remembering, lambda: NITCLoss(rising_steps=10)])
@pytest.mark.parametrize("hold", [lambda stage: stage.losses, lambda stage: stage.losses["m"], lambda stage: stage])
def test_trainer_made_again_takes_a_function_that_holds_the_losses(
    make: Any, model: PromptedCLIP, make_loss: Any, hold: Any
) -> None:
    def run(stages: list[Stage], weight: float = 1.0) -> None:
        held = hold(stages[0])
        stages[0].weights["m"] = weight
        make(stages=stages, evaluate=lambda _: {"x": float(bool(held))}).fit()

    stages = prompts_only(model, make_loss())
    run(stages)
    run(stages)
    run(prompts_only(model, make_loss()))  # as in another process
    with pytest.raises(CheckpointError, match=r"weights\.m was 1\.0, is 2\.0"):
        run(stages, weight=2.0)


def test_trainer_made_again_takes_a_loss_that_two_stages_share(make: Any, model: PromptedCLIP) -> None:
    def shared() -> list[Stage]:
        loss = Remembering()
        return [Stage(name, model, trains=["prompts"], losses={"m": loss}) for name in ("first", "second")]

    stages = shared()
    make(stages=stages).fit()
    make(stages=stages).fit()
    make(stages=shared()).fit()


def test_description_passes_over_a_trainer_wherever_its_class_is(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Trainer):
        pass

    monkeypatch.setattr(Trainer, "__module__", "somewhere.else")
    for kind in (Trainer, Own):
        assert describe({"trainer": object.__new__(kind)}) == {"trainer": None}


def stop(entry: Any, _: Any) -> None:
    if entry["epoch"] == 2:
        raise RuntimeError("stop")


class Told:
    """A callable object; its address must not count, its settings must."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self) -> None: ...


class Plain:
    """An object that is neither callable nor a dataclass."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def distance(self) -> float:
        return self.scale


class Slotted:
    """An object without a dictionary, which says in its `repr` what it holds."""

    __slots__ = ("scale",)

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __repr__(self) -> str:
        return f"Slotted({self.scale})"


def jagged(*parts: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor(list(parts), layout=torch.jagged)


class Unreadable(torch.Tensor):
    """A kind of tensor that does not give its numbers, and shows them."""

    def contiguous(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("there are none")


def keyword_default(scale: float) -> Any:
    def double(x: float, *, factor: float = scale) -> float:
        return x * factor

    return double


def test_describe_of_what_only_happens_does_not_differ(tmp_path: Path) -> None:
    one, other = logging.getLogger("one"), logging.getLogger("other")
    other.setLevel("ERROR")
    assert describe(one) == describe(other)
    with (tmp_path / "a").open("w") as first, (tmp_path / "b").open("w") as second:
        assert describe({"log": first}) == describe({"log": second})
    assert describe(object()) == describe(object())


def test_describe_of_a_large_object_is_short(tmp_path: Path) -> None:
    words = {str(number): number for number in range(5000)}
    one, other = (describe(SimpleNamespace(words={**words, "last": last})) for last in (1, 2))
    assert len(json.dumps(one)) < 200
    assert differences(one, other)


@pytest.mark.parametrize(
    "make_value",
    [
        lambda scale: Told(scale),
        lambda scale: partial(Told, scale),
        lambda scale: lambda: scale,
        lambda scale: torch.full((99,), scale),
        lambda scale: {"a": [Path("b"), {scale}, torch.float16, float("nan")]},
        lambda scale: torch.nn.Sequential(torch.nn.Dropout(scale / 10)),
        lambda scale: [scale] * 99,
        lambda scale: SimpleNamespace(margin=scale),
        lambda scale: Plain(scale),
        lambda scale: Plain(scale).distance,
        lambda scale: lambda x, factor=scale: x * factor,
        lambda scale: keyword_default(scale),
        lambda scale: Fraction(scale),
        lambda scale: complex(scale),
        lambda scale: timedelta(seconds=scale),
        lambda scale: Slotted(scale),
        lambda scale: np.array(["cam_a", f"cam_{scale}"]),
        lambda scale: np.array([[f"cam_{scale}"] * 9] * 9),
        lambda scale: np.array([b"cam", str(scale).encode()]),
        lambda scale: np.array(["cam", None, Plain(scale)], dtype=object),
        lambda scale: np.array([f"202{int(scale)}-01-01"], dtype="datetime64[s]"),
        lambda scale: np.timedelta64(1, "s" if scale == 1 else "ns"),
        lambda scale: np.array([("cam", scale)], dtype=[("name", "U9"), ("share", float)]),
        lambda scale: np.longdouble(scale),
        lambda scale: np.arange(4)[:: int(-scale)],
        lambda scale: np.full(4, scale, dtype=">f4"),
        lambda scale: np.broadcast_to(np.float32(scale), (4, 9)),
        lambda scale: (scale * torch.eye(9)).to_sparse(),
        lambda scale: torch.full((99,), complex(0, scale)).conj(),
        lambda scale: torch.empty(int(scale), device="meta"),
        lambda scale: jagged(torch.full((2,), scale), torch.ones(3)),
        lambda scale: jagged(*[torch.full((2,), scale)] * 20),
        lambda scale: torch.full((2, 2), scale).to_mkldnn(),
        lambda scale: torch.tensor([0, int(scale)], dtype=torch.uint8).view(torch.uint4),
        lambda scale: Unreadable(torch.full((3,), scale)),
        lambda scale: np.ma.array([5.0, 6.0], mask=[scale == 1.0, True]),
        lambda scale: np.ma.array(["a", "b"], mask=[False, True], fill_value=str(int(scale))),
        lambda scale: np.ma.array([("a", scale)], mask=[(True, False)], dtype=[("name", "U9"), ("share", ">f4")]),
        lambda scale: np.ma.masked if scale == 1.0 else np.ma.array(0.0),
    ],
)
def test_describe_differs_where_a_setting_does_and_nowhere_else(make_value: Any) -> None:
    one, same, other = (json.loads(json.dumps(describe(make_value(scale)))) for scale in (1.0, 1.0, 2.0))
    assert one == same
    assert differences(one, other)


@pytest.mark.skipif(not hasattr(np, "dtypes") or not hasattr(np.dtypes, "StringDType"), reason="numpy before 2.0")
def test_describe_of_an_array_of_strings_of_any_length_is_that_of_its_words() -> None:
    kind = np.dtypes.StringDType()
    assert describe(np.array(["a", "long"], dtype=kind)) == ["a", "long"]
    assert describe(np.array("a", dtype=kind)) == "a"


def test_describe_of_a_masked_array_is_that_of_what_is_seen() -> None:
    assert describe(np.ma.array([1.0, 2.0])) == describe(np.ma.array([1.0, 2.0], mask=[False, False])) == [1.0, 2.0]
    hidden = [describe(np.ma.array([1.0, under], mask=[False, True])) for under in (2.0, 3.0)]
    assert hidden[0] == hidden[1] == {"filled": [1.0, 1e20], "mask": [False, True]}


def test_describe_of_an_array_that_holds_itself_ends() -> None:
    array = np.array([None], dtype=object)
    array[0] = array
    assert describe(array) == describe(array)


def test_describe_of_an_array_is_that_of_its_values_in_any_layout() -> None:
    for values, expected in (([1.5, 2.0], [1.5, 2.0]), (["a", "b"], ["a", "b"]), (np.str_("a"), "a")):
        array = np.array(values)
        array.flags.writeable = False
        assert describe(array) == expected
    large = np.arange(99.0, dtype=np.float32)
    expected = describe(torch.arange(99.0))
    assert expected == describe(large) == describe(large.astype(">f4")) == describe(large[::-1].copy()[::-1])


class Named(Margin):
    """A loss that holds names, as of cameras."""

    def __init__(self, *names: str) -> None:
        super().__init__(1.0)
        self.names = np.array(names)


def test_trainer_takes_losses_and_functions_that_hold_names(make: Any, model: PromptedCLIP) -> None:
    def named(*names: str) -> Any:
        evaluate = partial(lambda _, *, names: {"x": float(len(names))}, names=np.array(names))
        return make(stages=prompts_only(model, Named(*names)), evaluate=evaluate)

    named("cam_a", "cam_b").fit()
    named("cam_a", "cam_b").fit()
    with pytest.raises(CheckpointError, match=r"names\.1 was 'cam_b', is 'cam_c'.*names\.1 was 'cam_b', is 'cam_c'"):
        named("cam_a", "cam_c")


def test_trainer_takes_functions_that_read_the_trainer(make: Any, model: PromptedCLIP) -> None:
    def run(scale: float) -> Any:
        def loss(images: torch.Tensor, texts: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return scale * images.square().mean() * (1 + trainer.position.step)

        def evaluate(_: Any) -> dict[str, float]:
            return {"x": float(trainer.position.step)}

        for _ in range(2):  # the trainer before is none of the second one's settings
            trainer = make(stages=prompts_only(model, loss), evaluate=evaluate)
            history = trainer.fit()
        return history

    assert run(1.0)[-1]["scores"] == {"x": 2.0}
    run(1.0)
    with pytest.raises(CheckpointError, match=r"closure\.0 was 1\.0, is 2\.0"):
        run(2.0)


def nested(scale: float, levels: int, wrap: Any) -> Any:
    return scale if levels == 0 else wrap(nested(scale, levels - 1, wrap))


@pytest.mark.parametrize("wrap", [lambda x: {"a": [x]}, lambda x: SimpleNamespace(inner=x), Told, lambda x: (x,)])
@pytest.mark.parametrize("levels", [3, 4, 7, 12])
def test_describe_differs_however_deep_a_setting_lies(wrap: Any, levels: int) -> None:
    if wrap is Told and levels > 7:  # objects that say nothing of themselves
        return
    one, same, other = (json.loads(json.dumps(describe(nested(scale, levels, wrap)))) for scale in (1.0, 1.0, 2.0))
    assert one == same
    assert differences(one, other)


def test_describe_of_a_model_however_deep_it_lies(model: PromptedCLIP) -> None:
    for levels in range(12):
        assert describe(nested(model, levels, Told))


def test_describe_of_objects_that_hold_each_other_ends_soon() -> None:
    all_of_them = [SimpleNamespace(number=number) for number in range(60)]
    for each in all_of_them:
        each.others = all_of_them
    assert describe(all_of_them[0]) == describe(all_of_them[0])


class Known(torch.utils.data.Dataset[Any]):
    """Data that says what it is."""

    def __init__(self, pairs: Any, content: str) -> None:
        self.pairs, self.content = pairs, content

    def identity(self) -> dict[str, str]:
        return {"annotation": self.content}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        return self.pairs[index]


def test_trainer_other_data_is_refused_also_behind_a_subset(make: Any, pairs: Any) -> None:
    def some(content: str, *, first: int = 0) -> Any:
        return torch.utils.data.Subset(Known(pairs, content), [first, *range(1, 8)])

    make(train_data=some("one")).fit()
    make(train_data=some("one")).fit()
    with pytest.raises(CheckpointError, match=r"data\.annotation was 'one', is 'two'"):
        make(train_data=some("two"))
    with pytest.raises(CheckpointError, match=r"data\.indices\.0 was 0, is 9"):
        make(train_data=some("one", first=9))


def sampler(pairs: Any, identities: int) -> Any:
    return partial(
        IdentitySampler, pairs.person_ids, identities_per_batch=identities, pairs_per_identity=4 // identities
    )


def test_trainer_every_difference_is_listed(make: Any, model: PromptedCLIP, pairs: Any) -> None:
    scored = {"evaluate": lambda _: {"mAP": 0.5}, "evaluate_every_epoch": True, "best_metric": "mAP"}
    make(**scored, make_sampler=sampler(pairs, 2)).fit()
    model.clip.visual.patch_dropout = torch.nn.Dropout(0.25)
    with pytest.raises(CheckpointError) as caught:
        make(chunk_size=2, make_sampler=sampler(pairs, 4))
    for words in (
        "best_metric was 'mAP', is None",
        "chunk_size was None, is 2",
        "dropout.visual.patch_dropout.p was None, is 0.25",
        "evaluate was True, is False",
        "evaluate_every_epoch was True, is False",
        "make_sampler.identities_per_batch was 2, is 4",
    ):
        assert words in str(caught.value)


def scorer(k: int, *, halved: bool = False) -> Any:
    def score(_: Any) -> dict[str, float]:
        return {"mAP": 0.5 / k}

    def score_halved(_: Any) -> dict[str, float]:
        return {"mAP": 0.5 / k / 2}

    score_halved.__qualname__ = score.__qualname__
    return score_halved if halved else score


SCALE = 0.5


def scaled(_: Any) -> float:
    return helper() * SCALE


def helper() -> float:
    return 1.0


def other_helper() -> float:
    return 2.0


class Scorer:
    """An object that scores."""

    def __init__(self, split: str) -> None:
        self.split = split

    def __call__(self, _: Any) -> dict[str, float]:
        return {"mAP": float(len(self.split))}

    def score(self, _: Any) -> dict[str, float]:
        return {"mAP": 0.0}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (scorer(1), scorer(2)),
        (scorer(1), scorer(1, halved=True)),
        (scorer(1), scaled),
        (lambda _: {"mAP": 0.5}, lambda _: {"mAP": 0.25}),
        (lambda _: {"mAP": 0.5}, lambda _: {"rank1": 0.5}),
        (partial(scorer(1), 1), partial(scorer(1), 2)),
        (Scorer("val"), Scorer("test")),
        (Scorer("val").score, Scorer("test").score),
        (Known([], "val").identity, Known([], "test").identity),
    ],
)
def test_evaluate_identity_differs_where_the_function_does_and_nowhere_else(before: Any, now: Any) -> None:
    one, same, other = (json.loads(json.dumps(evaluate_identity(each))) for each in (before, before, now))
    assert one == same
    assert differences(one, other)


def test_evaluate_identity_knows_what_a_function_calls_and_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = evaluate_identity(scaled)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 0.25)
    assert differences(before, evaluate_identity(scaled))
    monkeypatch.undo()
    assert evaluate_identity(scaled) == before
    monkeypatch.setattr(sys.modules[__name__], "helper", other_helper)
    assert differences(before, evaluate_identity(scaled))


def test_evaluate_identity_of_another_python_and_of_a_named_function_is_the_same() -> None:
    one = evaluate_identity(scaled)
    other = {**one, "code": {"python 3.9": "0"}}
    assert not differences(one, other)
    first, second = scorer(1), scorer(2)
    for function in (first, second):
        function.settings = lambda: {"version": 1}
    assert evaluate_identity(first) == evaluate_identity(second)
    assert "code" not in json.dumps(evaluate_identity(torch.nn.functional.mse_loss))  # installed, and so known by name


def test_trainer_another_evaluate_is_refused_and_one_that_holds_the_model_is_not(
    make: Any, model: PromptedCLIP
) -> None:
    def settings(loss: torch.nn.Module, k: float) -> dict[str, Any]:
        evaluate = lambda _: {"mAP": float(model.training) + k}  # noqa: E731
        return {"stages": prompts_only(model, loss), "evaluate": evaluate, "best_metric": "mAP"}

    make(**settings(Margin(1.0), 0.5)).fit()
    make(**settings(Margin(1.0), 0.5)).fit()
    with pytest.raises(CheckpointError, match=r"function\.closure\.0 was 0\.5, is 0\.25.*evaluate\.settings ="):
        make(**settings(Margin(1.0), 0.25))


def test_trainer_loss_function_of_other_code_is_refused(make: Any, model: PromptedCLIP) -> None:
    make(stages=prompts_only(model, lambda images, texts, ids: images.mean())).fit()
    with pytest.raises(CheckpointError, match=r"losses\.0\.m\.function\.code\.python .* was '\w+', is '\w+'"):
        make(stages=prompts_only(model, lambda images, texts, ids: texts.mean()))


def test_trainer_another_base_is_refused(make: Any, model: PromptedCLIP) -> None:
    make(stages=prompts_only(model, Margin(1.0))).fit()
    clip = copy.deepcopy(model).detach()
    torch.nn.init.normal_(clip.visual.proj)
    other = PromptedCLIP(clip, model.config)
    with pytest.raises(CheckpointError, match="base_fingerprint was"):
        make(model=other, stages=prompts_only(other, Margin(1.0)))


def test_trainer_frozen_encoders_are_not_kept_but_must_be_the_same(
    make: Any, model: PromptedCLIP, tmp_path: Path
) -> None:
    scored = {"evaluate": lambda _: {"mAP": 0.5}, "best_metric": "mAP"}
    trainer = make(stages=prompts_only(model, Margin(1.0)), **scored)
    trainer.fit()
    (path,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    names = {name for name in load_file(path / "state.safetensors") if name.startswith("model.")}
    assert names == {"model.vision.prompts.tokens", "model.text.prompts.tokens"}
    learnt = model.prompt_state_dict()["text.prompts.tokens"].clone()
    for again in (make(stages=prompts_only(model, Margin(1.0)), **scored).fit, trainer.load_best):
        torch.nn.init.zeros_(model.text.prompts.tokens)
        again()
        assert torch.equal(model.prompt_state_dict()["text.prompts.tokens"], learnt)
    torch.nn.init.normal_(model.clip.visual.proj)  # trained meanwhile, by somebody else
    with pytest.raises(CheckpointError, match="it holds only prompts, and the encoders of this model are not those"):
        make(stages=prompts_only(model, Margin(1.0)), **scored).fit()


def test_trainer_batch_of_one_is_refused_by_losses_that_compare(make: Any, model: PromptedCLIP) -> None:
    with pytest.raises(ValueError, match=r"batch_size is 1, but the loss 'contrastive' .* give at least 2"):
        make(batch_size=1)
    make(batch_size=1, stages=prompts_only(model, Margin(1.0))).fit()


class Alone(torch.utils.data.Dataset[Any]):
    """Pairs in the order of their persons: two of each of the first two, then as many as are left of the third."""

    def __init__(self, pairs: Any, persons: list[int]) -> None:
        self.pairs, self.person_ids = pairs, torch.tensor(persons)

    def __len__(self) -> int:
        return len(self.person_ids)

    def __getitem__(self, index: int) -> Any:
        return self.pairs[index] | {"person_ids": self.person_ids[index]}


def in_order(length: int) -> Any:
    return partial(EpochSampler, length, batch_size=4, shuffle=False)


def matched(model: PromptedCLIP, loss: torch.nn.Module, epochs: int = 2) -> list[Stage]:
    return [Stage("first", model, trains=["prompts"], losses={"match": loss}, epochs=epochs)]


@pytest.mark.parametrize("loss", [ContrastiveLoss(), ContrastiveLoss(same_person="positive"), SDMLoss(), NITCLoss()])
def test_trainer_one_person_a_batch_is_refused_by_losses_that_tell_persons_apart(
    make: Any, model: PromptedCLIP, pairs: Any, loss: torch.nn.Module
) -> None:
    with pytest.raises(ValueError, match=r"identities_per_batch=1, but the loss 'match' of stage .* at least 2"):
        make(stages=matched(model, loss), make_sampler=sampler(pairs, 1))
    alone = Alone(pairs, [0, 0, 0, 0, 1, 1, 1, 1])
    trainer = make(stages=matched(model, loss), train_data=alone, make_sampler=in_order(8))
    with pytest.raises(ValueError, match=r"2 of 2 batches in epoch 1 of stage 'first' held only one person.*match"):
        trainer.fit()


@pytest.mark.parametrize("loss", [ContrastiveLoss(same_person="negative"), Margin(1.0)])
def test_trainer_one_person_a_batch_is_let_through_where_the_loss_compares_pairs(
    make: Any, model: PromptedCLIP, pairs: Any, loss: torch.nn.Module
) -> None:
    (entry,) = make(stages=matched(model, loss, 1), make_sampler=sampler(pairs, 1)).fit()
    assert "one_person_batches" not in entry


def test_trainer_batches_of_one_person_by_chance_are_counted_once_an_epoch_also_when_resumed(
    make: Any, model: PromptedCLIP, pairs: Any
) -> None:
    alone = Alone(pairs, [0, 0, 0, 0, 0, 1, 1, 1])
    settings = {"train_data": alone, "make_sampler": in_order(8), "checkpoint_every_steps": 1}
    trainer = make(stages=matched(model, ContrastiveLoss()), **settings)
    step = trainer._step

    def killed(*args: Any) -> float:
        if trainer.position.step == 1:
            raise KeyboardInterrupt
        return step(*args)

    trainer._step = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    with pytest.warns(UserWarning, match=r"1 of 2 batches in epoch \d of stage 'first' held only one person") as caught:
        history = make(stages=matched(model, ContrastiveLoss()), **settings).fit()
    assert [entry["one_person_batches"] for entry in history] == [1, 1]
    assert len(caught) == 2


def test_trainer_folder_in_which_another_process_trains_is_refused(make: Any, fork: Any, tmp_path: Path) -> None:
    trainer = make()
    program = (
        f"import sys\nfrom promptreid.training.run_folder import RunFolder\nwith RunFolder({str(tmp_path / 'run')!r})"
        ".held(None):\n    print('in', flush=True)\n    sys.stdin.read()"
    )
    with fork(program) as other:
        assert other.stdout.readline() == "in\n"
        message = rf"another process is training in .*run; wait for it or end it \(process {other.pid}\), and"
        for _ in range(2):  # the one that was kept out leaves the number where it was
            with pytest.raises(TimeoutError, match=message):
                trainer.fit()
    late = make()
    trainer.fit()
    with pytest.raises(CheckpointError, match=r"another process has trained in .*run since this trainer was made"):
        late.fit()


def test_trainer_folder_deleted_during_the_run_is_noticed(make: Any, tmp_path: Path) -> None:
    trainer = make(on_epoch_end=lambda *_: shutil.rmtree(tmp_path / "run", ignore_errors=True))
    with pytest.raises(CheckpointError, match="was deleted or replaced while the run trained in it"):
        trainer.fit()


def test_trainer_killed_between_best_and_checkpoint_keeps_the_best_of_the_checkpoint(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.9, 0.1, 0.2, 0.1])  # epoch 2 is repeated, and comes out worse than before
    settings = {"evaluate": lambda _: {"mAP": next(scores)}, "evaluate_every_epoch": True, "best_metric": "mAP"}
    save = RunFolder.save

    def killed(self: RunFolder, *args: Any, step: int) -> Path:
        if step == 4:
            raise KeyboardInterrupt
        return save(self, *args, step=step)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            make(**settings).fit()
    first = (tmp_path / "run" / "best.safetensors").read_bytes()
    trainer = make(**settings)
    seen: list[bytes] = []
    trainer.on_epoch_end = lambda *_: seen.append((tmp_path / "run" / "best.safetensors").read_bytes())
    history = trainer.fit()
    assert history[1]["chosen"] == {"rule": "highest mAP", "epoch": 1, "step": 2, "mAP": 0.5}
    assert seen[0] == first
    assert not list((tmp_path / "run").glob("best*"))
    (tmp_path / "run" / "best.safetensors").write_bytes(first)  # of another epoch than the log says
    with pytest.raises(CheckpointError, match=r"best\.safetensors: its SHA-256 is not the one that the checkpoint"):
        trainer.load_best()


def test_trainer_copies_beside_checkpoints_are_left_alone(make: Any, tmp_path: Path) -> None:
    make(keep_checkpoints=1, stages=None or make().stages[:1]).fit()
    folder = tmp_path / "run" / "checkpoints"
    (newest,) = list_checkpoints(folder)
    for name in (f"{newest.name}-good", "step-best", "unfinished-thesis"):
        shutil.copytree(newest, folder / name)
    trainer = make(keep_checkpoints=1, stages=make(output_dir=tmp_path / "b").stages[:1])
    assert trainer.last_checkpoint == newest
    trainer.fit()
    assert {path.name for path in folder.iterdir()} == {
        newest.name, f"{newest.name}-good", "step-best", "unfinished-thesis"
    }  # fmt: skip


def test_trainer_killed_before_the_first_checkpoint_leaves_no_scratch_files(make: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in (".steps.jsonl-0123456789abcdef", ".best.next.safetensors-0123456789abcdef", "best.next.safetensors"):
        (tmp_path / "run" / name).touch()
    make().fit()
    names = {path.name for path in (tmp_path / "run").iterdir()} - {".training.lock"}
    assert names == {"checkpoints", "log.jsonl", "steps.jsonl"}


def mutations(value: Any, draw: random.Random) -> Any:
    """The same JSON with one value of it replaced by another kind."""
    if isinstance(value, dict | list) and value and draw.random() < 0.9:
        other = copy.copy(value)
        key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
        other[key] = mutations(value[key], draw)
        return other
    return draw.choice([None, -1, "x", [], {}, [[]], 1e300, {"a": None}])


@pytest.mark.parametrize("old", [False, True])
def test_trainer_mutated_checkpoints_are_refused_in_our_words(
    make: Any, model: PromptedCLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    stages = prompts_only(model, Margin(1.0), epochs=2)
    monkeypatch.setattr(RunFolder, "tidy", lambda _: None)  # as if it had been killed before
    make(stages=stages, checkpoint_every_steps=1, keep_checkpoints=9).fit()
    for path in list_checkpoints(tmp_path / "run" / "checkpoints")[1:]:
        shutil.rmtree(path)
    file = tmp_path / "run" / "checkpoints" / "step-000000001" / "state.json"
    whole, draw = json.loads(file.read_text()), random.Random(0)
    if old:
        whole = {name: value for name, value in whole.items() if name not in ("digest", "identity")} | {"version": 1}
    loaded = 0
    for _ in range(40):
        if os.path.exists(tmp_path / "try"):
            shutil.rmtree(tmp_path / "try")
        shutil.copytree(tmp_path / "run", tmp_path / "try")
        changed = mutations(whole, draw)
        (tmp_path / "try" / "checkpoints" / "step-000000001" / "state.json").write_text(json.dumps(changed))
        try:
            make(stages=stages, output_dir=tmp_path / "try").fit()
            loaded += changed != whole
        except CheckpointError:
            pass
    assert old or loaded == 0  # without a digest a number may be another number
    file.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"state\.json cannot be read"):
        make(stages=stages)


def stopping_trainer(stage: Stage, pairs: Any, folder: Path, stop_at: int | None) -> Trainer:
    """A trainer of one stage that fails after epoch `stop_at`, as if it had been interrupted there."""

    def interrupt(entry: dict[str, Any], _: Any) -> None:
        if entry["epoch"] == stop_at:
            raise RuntimeError("interrupted")

    options: dict[str, Any] = {"trackers": (), "progress": False, "device": "cpu", "on_epoch_end": interrupt}
    return Trainer(stage.model, [stage], train_data=pairs, batch_size=4, output_dir=folder, **options)


def check_that_resuming_changes_nothing(trainer: Callable[..., Trainer]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every weight before training, and after it, which an interrupted and resumed run ends with bit for bit."""
    whole = trainer("whole")
    start = {name: value.clone() for name, value in whole.model.state_dict().items()}
    whole.fit()
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer("stopped", stop_at=2).fit()
    resumed = trainer("stopped")
    assert resumed.last_checkpoint is not None
    resumed.fit()
    after, expected = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in expected.items())
    return start, expected


def test_adapters_resume_bit_for_bit_and_other_settings_of_them_are_refused(
    model_cfg: dict[str, Any], pairs: Any, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")

    def trainer(folder: str, *, stop_at: int | None = None, **settings: Any) -> Trainer:
        torch.manual_seed(0)
        model = PromptedCLIP(CLIP(**model_cfg), PromptConfig(text_length=2, vision_length=2))
        config = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": ["attn", "c_fc"], **settings}
        peft.get_peft_model(model.clip, peft.LoraConfig(**config))
        losses = {"contrastive": ContrastiveLoss()}
        stage = Stage("lora", model, trains=lambda name, _: "lora_" in name, losses=losses, epochs=2, learning_rate=0.1)
        return stopping_trainer(stage, pairs, tmp_path / folder, stop_at)

    _, trained = check_that_resuming_changes_nothing(trainer)
    assert any("lora_B" in name and value.any() for name, value in trained.items())
    for settings, message in (
        ({"lora_alpha": 8}, r"adapters\.0\.scaling\.default was 2\.0, is 4\.0"),
        ({"lora_dropout": 0.2}, r"dropout\.\S*lora_dropout\S* was 0\.1, is 0\.2"),
        ({"target_modules": ["c_fc"]}, r"stages\.0\.trains"),
    ):
        with pytest.raises(CheckpointError, match=message):
            trainer("stopped", **settings)


def test_coupled_prompts_resume_bit_for_bit_and_another_kind_is_refused(
    model_cfg: dict[str, Any], pairs: Any, tmp_path: Path
) -> None:
    def trainer(folder: str, *, stop_at: int | None = None, kind: PromptForm = "coupled") -> Trainer:
        torch.manual_seed(0)
        model = PromptedCLIP(CLIP(**model_cfg), PromptConfig(text_length=2, vision_length=2, kind=kind))
        losses = {"contrastive": ContrastiveLoss()}
        stage = Stage("one", model, trains=["prompts"], losses=losses, epochs=2, learning_rate=0.1)
        return stopping_trainer(stage, pairs, tmp_path / folder, stop_at)

    start, trained = check_that_resuming_changes_nothing(trainer)
    assert not torch.equal(start["vision.prompts.weight"], trained["vision.prompts.weight"])
    with pytest.raises(CheckpointError, match=r"prompts\.kind was 'coupled', is 'independent'"):
        trainer("stopped", kind="independent")
