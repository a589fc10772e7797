"""Checkpoints on disk: whole or not there, and refused when damaged."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from promptreid.errors import CheckpointError
from promptreid.files import locked
from promptreid.training import checkpoint as module
from promptreid.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from promptreid.training.run_folder import RunFolder


@pytest.fixture
def checkpoint() -> Checkpoint:
    made = Checkpoint(state={"settings": {}, "position": {"step": 3}, "random": [], "rate": 0.1})
    shared = torch.randn(4, 3)
    made.add("model", {"weight": shared, "tied": shared, "a.b": torch.tensor(2.0, dtype=torch.float64)})
    made.add("mode", {"empty": torch.zeros(2, 0, 3)})
    return made


def test_checkpoint_saved_and_loaded_is_equal(checkpoint: Checkpoint, tmp_path: Path) -> None:
    loaded = load_checkpoint(save_checkpoint(checkpoint, tmp_path, step=3))
    assert loaded.tensors.keys() == checkpoint.tensors.keys()
    for name, value in checkpoint.tensors.items():
        assert loaded.tensors[name].dtype == value.dtype
        assert torch.equal(loaded.tensors[name], value)
    assert loaded.state["rate"] == 0.1
    assert set(loaded.take("model")) == {"weight", "tied", "a.b"}
    assert set(loaded.take("mode")) == {"empty"}


def test_save_checkpoint_keeps_the_last_ones_only(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for step in (5, 10, 1_000, 999):
        save_checkpoint(checkpoint, tmp_path, step=step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000999", "step-000001000"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000999", "step-000001000"]


def test_save_checkpoint_same_step_again_replaces_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(checkpoint, tmp_path, step=1)
    checkpoint.state["rate"] = 0.2
    assert load_checkpoint(save_checkpoint(checkpoint, tmp_path, step=1)).state["rate"] == 0.2


@pytest.mark.parametrize("where", ["write_tensors_atomically", "file_digest", "write_bytes_atomically"])
def test_save_checkpoint_interrupted_leaves_the_one_before(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    save_checkpoint(checkpoint, tmp_path, step=1)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, where, killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(checkpoint, tmp_path, step=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000001"]
    load_checkpoint(list_checkpoints(tmp_path)[0])
    save_checkpoint(checkpoint, tmp_path, step=2)
    assert len(list(tmp_path.iterdir())) == 2


def test_save_checkpoint_interrupted_while_removing_leaves_no_half_one(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(checkpoint, tmp_path, step=1, keep=1)

    def killed(path: Path) -> None:
        (path / "state.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(checkpoint, tmp_path, step=2, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000002"]


def damage(path: Path, how: str) -> None:
    tensors, state = path / "state.safetensors", path / "state.json"
    if how == "truncated tensors":
        tensors.write_bytes(tensors.read_bytes()[:-1])
    elif how == "one bit":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif how == "no tensors":
        tensors.unlink()
    elif how == "no state":
        state.unlink()
    elif how == "truncated state":
        state.write_bytes(state.read_bytes()[:-5])
    elif how == "not text":
        state.write_bytes(b"\xff\xfe\x00")
    else:
        whole = json.loads(state.read_text())
        lacking = {name: value for name, value in whole.items() if name != "position"}
        others = {"a list": [], "foreign": {"step": 3}, "newer": whole | {"version": 99}, "no position": lacking}
        state.write_text(json.dumps(others[how]))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated tensors", "truncated or damaged"),
        ("one bit", "truncated or damaged"),
        ("no tensors", "state.safetensors cannot be read"),
        ("no state", "state.json cannot be read"),
        ("truncated state", "state.json cannot be read"),
        ("not text", "state.json cannot be read"),
        ("a list", "does not say that it is of format"),
        ("foreign", "does not say that it is of format"),
        ("no position", "state.json has no position"),
        ("newer", "is of version 99, this promptreid reads versions 1 to 2"),
    ],
)
def test_load_checkpoint_damaged_is_refused_with_file_and_mend(
    checkpoint: Checkpoint, tmp_path: Path, how: str, message: str
) -> None:
    path = save_checkpoint(checkpoint, tmp_path, step=7)
    damage(path, how)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "delete it to start over" in str(caught.value)


def test_load_checkpoint_damaged_names_the_one_before(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(checkpoint, tmp_path, step=6)
    path = save_checkpoint(checkpoint, tmp_path, step=7)
    damage(path, "one bit")
    with pytest.raises(CheckpointError, match="delete it to resume from step-000000006"):
        load_checkpoint(path)


def test_save_checkpoint_killed_while_replacing_keeps_the_one_replaced(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.state["position"] = asdict(module.Position())
    folder = RunFolder(tmp_path, keep=1)
    folder.save(checkpoint, [], step=1)
    rename = module.rename_over

    def killed(scratch: Path, path: Path) -> None:
        if path.name == "step-000000001":
            raise KeyboardInterrupt
        rename(scratch, path)

    with monkeypatch.context() as patch:
        patch.setattr(module, "rename_over", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.save(checkpoint, [], step=1)
    with locked(tmp_path / ".training.lock", action="training"):  # by the run itself, which has not been killed yet
        assert RunFolder(tmp_path, keep=1).find({}, {}, resume=True) is None
    found = RunFolder(tmp_path, keep=1).find({}, {}, resume=True)
    assert found is not None
    assert load_checkpoint(found).state["rate"] == 0.1
    folder.save(checkpoint, [], step=1)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000000001"]


def test_clear_unfinished_restores_what_was_replaced_and_nothing_half_removed(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    for step, end in ((1, "replaced"), (2, "old")):
        path = save_checkpoint(checkpoint, tmp_path, step=step)
        path.rename(tmp_path / f"unfinished-{path.name}-{end}")
    (tmp_path / "my-best-of-step-000000003-replaced").mkdir()  # not ours
    module.clear_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my-best-of-step-000000003-replaced", "step-000000001"]
