"""What the study at convergence has found: results by number of identities, and differences between arms."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from comparison import Difference, Results, gains, gather, paired_difference, rank1_difference, shared_seeds
from convergence_plan import LongRun, parts

PRIMARY_LEVEL = 0.975  # two comparisons, so that both hold together at 95 %
PRIMARY_NUMBERS = (100, 400)


class ConvergenceResults:
    """The committed results of one folder.

    Args:
        rates: What `read_rates` returned.
        folder: Where the results are.

    Attributes:
        rates: The same.
        folder: The same.
        parts: Planned runs by part; of `better_base`, those from the base that the folder has results of.
        better: First digits of that base's SHA-256; None without such results.
        from_version_2: Results by number of identities, from the base that the study is about.
        from_better_base: Results by number of identities.

    Raises:
        ValueError: The folder has results from several better bases, or a file is damaged.
        FileExistsError: A file holds the result of another run, such as one at other rates.
    """

    def __init__(self, rates: dict[str, Any], folder: Path) -> None:
        self.rates, self.folder = rates, folder
        bases = sorted({path.name.partition("-base-")[2] for path in folder.glob("identities*-base-*")})
        if len(bases) > 1:
            raise ValueError(f"{folder} holds results from several other bases, {', '.join(bases)}; keep those of one")
        self.better = bases[0] if bases else None
        self.parts = parts(rates, base=self.better)
        runs = [run for part in self.parts.values() for run in part]
        self._shipped = [run for run in runs if run.base == "shipped"]
        self.from_version_2 = self._gather(self._shipped)
        self.from_better_base = self._gather([run for run in runs if run.base != "shipped"])

    def _gather(self, runs: list[LongRun]) -> dict[int, Results]:
        every = {
            number: gather([run for run in runs if run.identities == number], self.folder)  # pyright: ignore[reportArgumentType]
            for number in sorted({run.identities for run in runs})
        }
        return {number: results for number, results in every.items() if results}

    def is_complete(self, number: int, arm: str, baseline: str) -> bool:
        """Whether every planned seed has both arms: no sentence is written while some are missing."""
        planned = {run.seed for run in self._shipped if run.identities == number}
        return bool(planned) and shared_seeds(self.from_version_2.get(number, {}), arm, baseline) >= planned

    def complete(self, arm: str, baseline: str) -> dict[int, Results]:
        """Results at the numbers of identities where every planned seed has both arms."""
        return {
            number: results
            for number, results in self.from_version_2.items()
            if self.is_complete(number, arm, baseline)
        }

    def differences(
        self, arm: str, baseline: str, numbers: Iterable[int] | None = None, *, level: float = 0.95
    ) -> dict[int, Difference]:
        """Rank-1 of `arm` less that of `baseline` by number of identities, where both are complete."""
        return {
            number: rank1_difference(results, arm, baseline, level=level)
            for number, results in self.complete(arm, baseline).items()
            if numbers is None or number in numbers
        }

    def trend(self) -> Difference | None:
        """`pd` less `direct` at 400 identities, less that at 50; None where one of them is not complete."""
        few, many = (gains(self.from_version_2.get(number, {}), "pd", "direct") for number in (50, 400))
        both = all(self.is_complete(number, "pd", "direct") for number in (50, 400))
        return paired_difference(many, few) if both else None

    def differences_from_better_base(self) -> dict[int, Difference]:
        """Rank-1 of `pd` less that of `direct` from the better base, where every planned seed has both."""
        planned = {run.seed for run in self.parts["better_base"]}
        return {
            number: rank1_difference(results, "pd", "direct")
            for number, results in self.from_better_base.items()
            if shared_seeds(results, "pd", "direct") >= planned
        }

    def change_from_version_2(self, number: int) -> Difference | None:
        """How much larger `pd` less `direct` is from the better base; None without a seed that was run from both."""
        better = gains(self.from_better_base.get(number, {}), "pd", "direct")
        before = gains(self.from_version_2.get(number, {}), "pd", "direct")
        return paired_difference(better, before) if better.keys() & before.keys() else None
