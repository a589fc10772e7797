"""Ctrl-C and SIGTERM write a checkpoint and leave; the same command goes on to the same end."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from promptreid.training.interruption import Interruption

sys.path.insert(0, str(Path(__file__).parent))
DRIVER = Path(__file__).with_name("interrupted_run.py")


def run(folder: Path, *, at_step: int, number: int = 0, times: int = 1) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DRIVER), str(folder), str(at_step), str(number), str(times)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize(
    ("number", "at_step", "checkpoint"),
    # Three steps an epoch: step 4 is the second of epoch 2, step 5 its last, which ends the epoch first.
    [(signal.SIGINT, 4, "step-000000005"), (signal.SIGTERM, 5, "step-000000006")],
)
def test_trainer_interrupted_writes_a_checkpoint_and_goes_on_to_the_same_end(
    tmp_path: Path, number: int, at_step: int, checkpoint: str
) -> None:
    stopped = run(tmp_path / "stopped", at_step=at_step, number=number)
    assert stopped.returncode == 128 + number
    assert "Traceback" not in stopped.stderr
    assert f"stopped by {signal.Signals(number).name}" in stopped.stderr
    assert checkpoint in stopped.stderr
    assert "give the same command again to go on" in stopped.stderr
    last = max((tmp_path / "stopped" / "checkpoints").iterdir())
    assert last.name == checkpoint
    ended, whole = run(tmp_path / "stopped", at_step=-1), run(tmp_path / "whole", at_step=-1)
    assert ended.stdout == whole.stdout == "ended True\n", ended.stderr
    finals = [max((tmp_path / name / "checkpoints").iterdir()) / "state.safetensors" for name in ("stopped", "whole")]
    assert finals[0].read_bytes() == finals[1].read_bytes()


def test_trainer_interrupted_twice_stops_at_once(tmp_path: Path) -> None:
    stopped = run(tmp_path, at_step=4, number=signal.SIGINT, times=2)
    assert stopped.returncode != 0
    assert "KeyboardInterrupt" in stopped.stderr
    assert max((tmp_path / "checkpoints").iterdir()).name == "step-000000004"


def test_interruption_puts_the_handlers_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption(torch.device("cpu")) as held:
        assert signal.getsignal(signal.SIGTERM) != before[1]
        assert not held.wanted()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_interruption_in_another_thread_holds_nothing_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def enter() -> None:
        with Interruption(torch.device("cpu")) as held:
            seen.append((held.wanted(), signal.getsignal(signal.SIGINT) == before))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(False, True)]
