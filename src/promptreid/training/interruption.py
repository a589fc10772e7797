"""Ctrl-C, SIGTERM and SIGHUP, held back until a checkpoint has been written."""

import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from promptreid.defaults import ENDING

HELD: tuple[signal.Signals, ...] = (signal.SIGINT, *ENDING)
# Ctrl-C in a terminal, and a scheduler's SIGTERM, reach every process; torchrun, and accelerate which uses it, then
# send the same signal to their processes again. A second signal counts only after this time.
_PASSED_ON_SECONDS = 3.0


class Interruption:
    """Inside the block the first SIGINT, SIGTERM or SIGHUP is only noted; a second one acts at once.

    Under `torchrun` a second one counts from three seconds after the first, because its launcher passes each on.
    Signals reach only the main thread, so in another thread nothing is held back.

    Args:
        device: Device on which processes tell each other that one was asked to stop.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._number = 0
        self._first: float | None = None
        self._launched = "TORCHELASTIC_RUN_ID" in os.environ
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            # An ignored signal stays ignored: a shell hides the terminal's Ctrl-C from background programs.
            heeded = [number for number in HELD if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    def wanted(self) -> bool:
        """Whether any process was asked to stop; every process must call this."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            number = torch.tensor(self._number, device=self._device)
            dist.all_reduce(number, dist.ReduceOp.MAX)
            self._number = int(number)
        return self._number > 0

    def exit(self, message: str) -> None:
        """Leave the program with the exit status that a shell gives to this signal.

        Raises:
            SystemExit: Always.
        """
        name = signal.Signals(self._number).name
        _say(f"stopped by {name}: {message}")
        raise SystemExit(128 + self._number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._number = now, number
            again = f"send it again {'in a few seconds ' if self._launched else ''}to stop now"
            _say(f"{signal.Signals(number).name}: stopping after this step and its checkpoint; {again}")
        elif now - self._first > _PASSED_ON_SECONDS:
            self._let_go()
            signal.raise_signal(number)
        if not self._launched:
            self._let_go()

    def _let_go(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _say(message: str) -> None:
    # Not through sys.stderr: the signal may have interrupted a write to it.
    with suppress(OSError):  # the terminal may be what was closed
        os.write(2, f"\npromptreid: {message}\n".encode())
