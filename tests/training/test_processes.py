"""Two processes with half a batch each do what one does with the whole."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from promptreid.training.processes import gather_batch, make_accelerator

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_gather_batch_one_process_gives_the_very_tensors() -> None:
    features, ids = torch.randn(3, 2, requires_grad=True), torch.arange(3)
    assert gather_batch(features, ids)[0] is features
    assert gather_batch(features, ids)[1] is ids


def test_processes_of_which_one_fails_fail_together_with_the_reason(start: Callable[..., str], tmp_path: Path) -> None:
    seconds = json.loads(start("failing_processes.py", tmp_path))
    assert max(seconds.values()) < 60  # nobody waits for a process that has gone
    said = {path.stem: path.read_text() for path in tmp_path.glob("*.txt")}
    for case, guilty, words in (
        ("one person", 1, "ValueError: train_data holds 1 identity"),
        ("another seed", 1, "ValueError: this process has other settings than the first: seed was 0, is 1"),
        ("disk full", 0, "OSError: no space left on the disk"),
        ("another folder", 1, "ValueError: this process has other settings than the first: output_dir was"),
    ):
        assert said.pop(f"{case}-{guilty}").startswith(words)
        other = said.pop(f"{case}-{1 - guilty}")
        assert other.startswith(f"PromptReidError: process {guilty} failed, and the others stop with it: {words}")
        assert "run the same command again" in other
    assert not said  # the whole run


@pytest.fixture(scope="module")
def runs(start: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_processes")
    start("two_processes.py", folder)
    return folder


def gradients(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {file.stem: load_file(file) for file in sorted(path.iterdir())}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, of a whole tensor: single gradients that cancel to nothing have no relative precision."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("way", ["plain", "3"])
def test_losses_and_gradients_of_two_processes_and_of_cached_chunks_are_those_of_one(
    runs: Path, dtype: str, bound: float, way: str
) -> None:
    one, two = gradients(runs / "gradients1"), gradients(runs / "gradients2")
    cases = [name.split("-") for name in one]
    assert len(cases) >= 4
    for sampler in {sampler for _, _, sampler, _ in cases}:
        # In float64, which rounding does not reach: in float32 that of each processor is another.
        expected = one[f"float64-plain-{sampler}-rank0"]
        whole = {"loss sdm", "loss identity", "losses.identity.classifier.weight", "text.prompts.tokens"}
        assert whole | {"held loss held", "held text.prompts.tokens"} <= set(expected)
        for found in (
            one[f"{dtype}-plain-{sampler}-rank0"],
            one[f"{dtype}-{way}-{sampler}-rank0"],
            *(two[f"{dtype}-{way}-{sampler}-rank{rank}"] for rank in range(2)),
        ):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert str(found[name].dtype) == f"torch.{dtype}"
                assert distance(found[name].double(), value) <= bound, name


def test_gradients_in_bf16_of_two_processes_and_of_cached_chunks_are_nearly_those_of_one(runs: Path) -> None:
    one, two = gradients(runs / "bf16-1"), gradients(runs / "bf16-2")
    exact, expected = gradients(runs / "gradients1"), one["float32-plain-identity-rank0"]

    def joined(found: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([found[name].flatten() for name in sorted(expected)])

    rounding = distance(joined(expected), joined(exact["float32-plain-identity-rank0"]))
    assert 1e-4 < rounding < 0.1  # bf16 it is
    assert len(two) == 4
    for found in (one["float32-3-identity-rank0"], *two.values()):
        assert all(str(value.dtype) == "torch.float32" for value in found.values())
        assert distance(joined(found), joined(expected)) < rounding


def test_trainer_two_processes_train_as_one_does(runs: Path) -> None:
    one = load_file(runs / "train1" / "rank0.safetensors")
    ranks = [load_file(runs / "train2" / f"rank{rank}.safetensors") for rank in range(2)]
    for name, value in one.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_trainer_two_processes_interrupted_and_resumed_end_with_the_same_bits(runs: Path) -> None:
    for rank in range(2):
        whole = load_file(runs / "whole" / f"rank{rank}.safetensors")
        broken = load_file(runs / "broken" / f"rank{rank}.safetensors")
        assert all(torch.equal(broken[name], value) for name, value in whole.items())


def test_another_device_than_that_of_the_process_is_refused_in_our_words(monkeypatch):
    Accelerator(cpu=True)
    for state in (PartialState, AcceleratorState):
        monkeypatch.setitem(state().__dict__, "device", torch.device("cuda", 0))
    with pytest.raises(ValueError, match="device is 'cpu', but accelerate is set to cuda in this process already"):
        make_accelerator("cpu", "no")


@pytest.mark.parametrize(("device", "chosen"), [("cuda", []), ("cuda:1", [1])])
def test_a_gpu_without_a_number_is_the_current_one(monkeypatch, device, chosen):
    """torch refuses to make "cuda" the current device, which `Trainer(device="cuda")` once asked for."""
    given = []

    def set_device(wanted):
        if wanted.index is None:
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{wanted}")
        given.append(wanted.index)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(accelerate, "Accelerator", lambda **_: SimpleNamespace(device=torch.device("cuda")))
    make_accelerator(device, "no")
    assert given == chosen
