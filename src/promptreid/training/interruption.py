"""Ctrl-C and SIGTERM, held back until a checkpoint is written."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

_HELD = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While it is entered, the first SIGINT or SIGTERM is only noted; a second one acts at once.

    Signals reach the main thread alone, so in another thread nothing is held back.

    Args:
        device: Where processes tell each other that one was asked to stop.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _HELD}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._let_go()

    def wanted(self) -> bool:
        """Whether any process was asked to stop; every process has to ask."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            number = torch.tensor(self._number, device=self._device)
            dist.all_reduce(number, dist.ReduceOp.MAX)
            self._number = int(number)
        return self._number > 0

    def exit(self, message: str) -> None:
        """Leave the program with the status that a shell gives to this signal.

        Raises:
            SystemExit: Always.
        """
        name = signal.Signals(self._number).name
        _say(f"stopped by {name}: {message}")
        raise SystemExit(128 + self._number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        self._let_go()
        _say(f"{signal.Signals(number).name}: stopping after this step and its checkpoint; send it again to stop now")

    def _let_go(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _say(message: str) -> None:
    # Not through sys.stderr, which may be in the middle of a write that the signal has interrupted.
    os.write(2, f"\npromptreid: {message}\n".encode())
