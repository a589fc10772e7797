"""Ctrl-C and SIGTERM write a checkpoint and leave; the same command resumes and comes to the same end."""

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch

from promptreid.training.interruption import Interruption


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_trainer_interrupted_writes_a_checkpoint_and_resumes_to_the_same_end(
    start: Callable[..., str], tmp_path: Path
) -> None:
    first, *said, last = start("interrupted_run.py", tmp_path).strip().splitlines()
    assert first == str([128 + signal.SIGINT, 128 + signal.SIGTERM, 1])
    told = "\n".join(said)
    assert "SIGINT step-000000005" in told
    assert "stopped by SIGINT: the checkpoint is" in told
    assert "step-000000005; run the same command again to resume" in told
    assert "SIGTERM step-000000006" in told
    assert "stopped by SIGTERM" in told
    assert told.count("Traceback") == 1  # of the run that was told twice, which wrote nothing more
    assert "twice step-000000004" in told
    assert told.strip().endswith("KeyboardInterrupt")
    assert last == "[0, 0, 0]"
    finals = [max((tmp_path / name / "checkpoints").iterdir()) for name in ("SIGINT", "SIGTERM", "whole")]
    assert len({(path / "state.safetensors").read_bytes() for path in finals}) == 1


@pytest.fixture
def heeded() -> Generator[None, None, None]:
    """SIGINT as in a terminal; a test suite in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_interruption_leaves_alone_what_is_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruption(torch.device("cpu")) as held:
        signal.raise_signal(signal.SIGINT)
        assert not held.wanted()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_interruption_terminal_that_is_closed_is_a_wish_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> int:
        raise OSError(5, "Input/output error")

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a test suite in the background may ignore it
    try:
        with Interruption(torch.device("cpu")) as held:
            monkeypatch.setattr(os, "write", gone)
            signal.raise_signal(signal.SIGHUP)
            assert held.wanted()
            with pytest.raises(SystemExit, match="129"):
                held.exit("the checkpoint is whole")
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heeded")
def test_interruption_puts_the_handlers_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption(torch.device("cpu")) as held:
        assert signal.getsignal(signal.SIGTERM) != before[1]
        assert not held.wanted()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.usefixtures("heeded")
def test_interruption_under_torchrun_takes_a_signal_passed_on_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    with pytest.raises(KeyboardInterrupt), Interruption(torch.device("cpu")) as held:  # noqa: PT012
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert held.wanted()
        later = time.monotonic() + 4
        monkeypatch.setattr(time, "monotonic", lambda: later)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(SystemExit, match="143"):
        held.exit("the checkpoint is whole")


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
