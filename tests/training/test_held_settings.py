"""What a loss was set to is known however training has changed it since, also in copies, and by whom."""

import copy
import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from promptreid.errors import CheckpointError
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.run_identity import describe, repr_as_set, settings_held
from promptreid.training.stage import Stage

FEATURES = torch.ones(2, 3)


class Counting(nn.Module):
    """A loss that counts its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor, texts: Tensor, person_ids: Tensor) -> Tensor:
        self.calls += 1
        return (images - texts).square().mean()


class Cached(Counting):
    """A loss of parts, which keeps something while it trains and no longer holds something else."""

    def __init__(self, *margins: float) -> None:
        super().__init__()
        self.margin = 1.0
        self.parts = [SimpleNamespace(margin=margin, calls=0) for margin in margins]
        self.first = True

    def forward(self, images: Tensor, texts: Tensor, person_ids: Tensor) -> Tensor:
        self.kept = float(images.detach().mean())
        vars(self).pop("first", None)
        for part in self.parts:
            part.calls += 1
        return super().forward(images, texts, person_ids)


class Annealed(Counting):
    """A loss whose `repr` says what training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor, texts: Tensor, person_ids: Tensor) -> Tensor:
        self.drop.p *= 0.9
        return super().forward(self.drop(images), texts, person_ids)


class Compared(Counting):
    """A loss that is equal to others of its setting, which training changes."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Compared) and self.calls == other.calls

    def __hash__(self) -> int:
        return hash(self.calls)


class Growing(Counting):
    """A loss that puts in a larger part while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, images: Tensor, texts: Tensor, person_ids: Tensor) -> Tensor:
        self.head = nn.Linear(3, self.head.out_features + 1)
        return super().forward(images, texts, person_ids)


class Rising:
    """A factor that training raises."""

    def __init__(self) -> None:
        self.value = 0.0

    def __call__(self) -> float:
        self.value = 1.0
        return self.value


class Constant:
    """A factor that stays."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self) -> float:
        return self.value


class Scaled(Counting):
    """A loss with a factor."""

    def __init__(self, factor: Callable[[], float]) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: Tensor, texts: Tensor, person_ids: Tensor) -> Tensor:
        return self.factor() * super().forward(images, texts, person_ids)


def train(loss: nn.Module) -> None:
    with settings_held([loss]):
        loss(FEATURES, FEATURES, None)


def copied(loss: nn.Module) -> nn.Module:
    return copy.deepcopy(loss)


def saved(loss: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_settings_held_are_those_before_with_what_was_set_since() -> None:
    loss = Cached(1.0, 2.0)
    before = describe(loss)
    with settings_held([loss]):
        loss(FEATURES, FEATURES, None)
        assert describe(loss) == before
    assert describe(loss) == describe([loss])[0] == before
    loss.parts[1].margin = 9.0
    assert describe(loss) == describe(Cached(1.0, 9.0))
    train(loss)
    assert describe(loss) == describe(Cached(1.0, 9.0))
    loss.parts.append(SimpleNamespace(margin=3.0, calls=0))
    vars(loss)["more"] = "set"
    del loss.margin
    now = describe(loss)
    assert [part["margin"] for part in now["parts"]] == [1.0, 9.0, 3.0]
    assert now["more"] == "set"
    assert "margin" not in now
    assert "kept" not in now
    assert now["first"]


def test_settings_held_where_the_block_fails() -> None:
    loss = Counting()
    with pytest.raises(ZeroDivisionError), settings_held([loss]):
        loss.calls = 1 // 0
    loss.calls += 1
    assert describe(loss)["calls"] == 1


def test_settings_held_error_of_the_block_is_not_replaced() -> None:
    class Broken(Counting):
        def forward(self, images: Tensor, texts: Tensor, person_ids: Tensor) -> Tensor:
            self.settings = lambda: 1 / 0
            raise SystemExit

    with pytest.raises(SystemExit):
        train(Broken())


@pytest.mark.parametrize("move", [copied, saved])
def test_settings_held_of_a_copy(move: Callable[[nn.Module], nn.Module]) -> None:
    loss = Counting()
    train(loss)
    again = move(loss)
    assert describe(again) == describe(loss) == describe(Counting())
    vars(again)["calls"] = 7
    assert describe(again)["calls"] == 7
    assert describe(loss)["calls"] == 0


def test_settings_held_of_a_copy_made_while_it_trains_are_those_it_has() -> None:
    loss = Counting()
    with settings_held([loss]):
        loss.calls = 3
        assert describe(copied(loss))["calls"] == 3


def test_settings_held_of_losses_that_compare_equal() -> None:
    one, other = Compared(), Compared()
    train(one)
    other.calls = 1
    assert one == other
    assert describe(one)["calls"] == 0
    assert describe(other)["calls"] == 1


def test_settings_held_part_of_another_class_is_taken_as_it_is() -> None:
    loss = Scaled(Rising())
    train(loss)
    assert describe(loss) == describe(Scaled(Rising()))
    loss.factor = Constant(1.0)
    assert describe(loss) == describe(Scaled(Constant(1.0)))
    assert describe(loss) != describe(Scaled(Constant(0.0)))


def test_settings_held_tensor_is_one_setting() -> None:
    loss = Counting()
    loss.register_buffer("weight", torch.ones(3))
    with settings_held([loss]):
        loss.get_buffer("weight")[0] = 3.0
    assert describe(loss)["weight"] == [1.0, 1.0, 1.0]
    loss.weight = torch.tensor([3.0, 7.0, 7.0])
    assert describe(loss)["weight"] == [3.0, 7.0, 7.0]


def test_settings_held_repr() -> None:
    loss = Annealed()
    train(loss)
    assert repr_as_set(loss) == repr(Annealed())
    loss.drop.p = 0.25
    assert "p=0.25" in repr_as_set(loss)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_describe_takes_a_compiled_script() -> None:
    one, other, wider = (torch.jit.script(nn.BatchNorm1d(width)) for width in (3, 3, 4))
    assert describe(one) == describe(other) != describe(wider)


def one_stage(model: PromptedCLIP, loss: nn.Module) -> list[Stage]:
    return [Stage("first", model, trains=["prompts"], losses={"m": loss}, epochs=2)]


def interrupt(make: Any, stages: list[Stage]) -> None:
    """Train the first of two epochs, and begin the second."""

    def stop(entry: Any, _: Any) -> None:
        if entry["epoch"] == 2:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        make(model=stages[0].model, stages=stages, on_epoch_end=stop).fit()


@pytest.mark.parametrize("loss", [Annealed(), Compared(), Scaled(Rising())], ids=lambda loss: type(loss).__name__)
def test_trainer_made_again_in_one_process_resumes(make: Any, model: PromptedCLIP, loss: nn.Module) -> None:
    stages = one_stage(model, loss)
    interrupt(make, stages)
    assert len(make(stages=stages).fit()) == 2


def test_trainer_of_a_copied_stage_resumes(make: Any, model: PromptedCLIP) -> None:
    stages = one_stage(model, Counting())
    interrupt(make, stages)
    again = copy.deepcopy(stages)
    assert len(make(model=again[0].model, stages=again).fit()) == 2


def test_trainer_loss_with_parts_of_other_sizes_says_so(make: Any, model: PromptedCLIP) -> None:
    stages = one_stage(model, Growing())
    interrupt(make, stages)
    with pytest.raises(
        CheckpointError, match=r"losses of stage 'first' hold other tensors .*m\.head\.weight"
    ) as refused:
        make(stages=stages).fit()
    assert "delete" not in str(refused.value)


def of_its_own(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in {*vars(nn.Module()), "calls"}}


class Told(Counting):
    """A loss whose settings and `repr` are all that it holds."""

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def settings(self) -> dict[str, Any]:
        return of_its_own(self)

    def extra_repr(self) -> str:
        return str(of_its_own(self))


def test_settings_held_are_not_among_what_a_loss_says_of_itself() -> None:
    loss = Told()
    for _ in range(2):
        train(loss)
        assert describe(loss) == describe(Told())
        assert repr_as_set(loss) == repr(Told())
        assert repr_as_set(nn.Sequential(loss)) == repr(nn.Sequential(Told()))
    assert describe(copy.deepcopy(loss)) == describe(Told())
    loss.margin = 2.0
    assert describe(loss) == describe(Told(2.0))
    assert repr_as_set(loss) == repr(Told(2.0))
