"""The bar of one epoch."""

from collections.abc import Mapping
from types import TracebackType

from tqdm.auto import tqdm


class EpochBar:
    """Batches done, this epoch's mean losses, and the time left for the epoch and for the whole run.

    Args:
        label: Stage and epoch.
        batches: Of a whole epoch.
        done: Batches of it that were done before.
        left_after: Batches of the run after this epoch.
        shown: Whether there is a bar at all.
    """

    def __init__(self, label: str, *, batches: int, done: int, left_after: int, shown: bool) -> None:
        self._bar = tqdm(total=batches, initial=done, desc=label, unit="batch", disable=not shown)
        self._left_after = left_after
        self._done = 0

    def __enter__(self) -> "EpochBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, means: Mapping[str, float]) -> None:
        """Show one more batch."""
        if self._bar.disable:
            return
        self._done += 1
        left = self._bar.total - self._bar.n - 1 + self._left_after
        seconds = self._bar.format_dict["elapsed"] / self._done * left
        shown = {name: f"{value:.4f}" for name, value in means.items()}
        self._bar.set_postfix({**shown, "run_left": tqdm.format_interval(seconds)}, refresh=False)
        self._bar.update()
