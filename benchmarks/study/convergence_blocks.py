"""The sentences and tables that the study's page and its appendix are made of."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from comparison import (
    Difference,
    Results,
    direction_over_seeds,
    gains,
    have_a_pair,
    mean_and_std,
    rank1_difference,
    shared_seeds,
)
from convergence_plan import Limits
from convergence_results import PRIMARY_LEVEL, PRIMARY_NUMBERS
from curves import ended_by_limit, stages_of
from tables import cell, difference_cells, listed, markdown

COMMAND = "python benchmarks/study/convergence.py run"
NEITHER = "not significantly different"
LIMITS = Limits()
BETTER_BASE = "From a better base"  # title of a section of the appendix
EXPLORATORY = "exploratory, with 95 % intervals: with no true difference, nominally one in twenty excludes 0"
BUILT = """*Built by `python benchmarks/study/convergence_page.py` from `benchmarks/results/convergence`; not edited by
hand.*"""


@dataclass(frozen=True)
class Question:
    """One of the further questions.

    Attributes:
        title: Of its section in the appendix.
        arms: What its arms are, and what to know of them.
        pairs: Arm and baseline of each comparison.
        sentences: Arm and baseline → how a sentence on the page begins, and what it calls the baseline.
    """

    title: str
    arms: str
    pairs: tuple[tuple[str, str], ...]
    sentences: Mapping[tuple[str, str], tuple[str, str]]


FOUR_PROMPTS = "Four prompts a block alone are"
QUESTIONS = (
    Question(
        "What the identity loss adds",
        "`pd_no_id` is `pd` with the contrastive loss alone in stage 2. It was tuned later, over more runs, and its "
        "best [rates](#rates) are lower in both stages: the difference is not that of the loss alone.",
        (("pd", "pd_no_id"),),
        {("pd", "pd_no_id"): ("PD is", "PD without the identity loss")},
    ),
    Question(
        "What the decoupling adds",
        "`joint` trains prompts and encoders at once, with the losses of stage 2. It was tuned together with "
        "`pd_no_id`, over more runs than `pd` and `direct` ([rates](#rates)).",
        (("pd", "joint"), ("joint", "direct")),
        {("pd", "joint"): ("PD is", "prompts and encoders trained at once")},
    ),
    Question(
        "How far prompts alone get",
        "Prompts of a frozen model, 4, 16 or 64 a block in both towers, for at most 120 epochs.",
        (
            ("prompts_4", "zero_shot"), ("prompts_4", "direct"), ("prompts_16", "prompts_4"),
            ("prompts_64", "prompts_16"), ("prompts_64", "direct"),
        ),
        {
            ("prompts_4", "zero_shot"): (FOUR_PROMPTS, "the untrained model"),
            ("prompts_4", "direct"): (FOUR_PROMPTS, "direct fine-tuning"),
        },
    ),
)  # fmt: skip


def points(found: Difference) -> str:
    """A difference with its interval, in points of Rank-1.

    Example:
        >>> points(Difference(0.012, 0.01, -0.004, 0.03, 5))
        '+1.2 points, −0.4 to +3.0'
    """
    mean, low, high = (f"{100 * value:+.1f}".replace("-", "−") for value in (found.mean, found.low, found.high))
    return f"{mean} points, {low} to {high}"


def direction(found: Difference) -> int:
    """1 where it is above 0, -1 below, 0 where its interval holds 0."""
    return 0 if not found.found else 1 if found.mean > 0 else -1


def joined(differences: Mapping[int, Difference], words: Mapping[int, str], other: str) -> str:
    """What holds at every number of identities, those with the same words together; `other` is named once.

    Args:
        differences: By number of identities.
        words: What is said of a difference above 0 (1), below (-1) or of neither (0).
        other: What stands after the words.

    Example:
        >>> none = Difference(0.0, 0.01, -0.01, 0.01, 3)
        >>> joined({50: none}, {1: "beats", 0: "equals"}, "it all")
        'equals it all at 50 identities (+0.0 points, −1.0 to +1.0)'
    """
    groups: dict[int, dict[int, Difference]] = {}
    for identities, found in differences.items():
        groups.setdefault(direction(found), {})[identities] = found
    said: list[str] = []
    for way, group in groups.items():
        places = [f"at {identities} identities ({points(found)})" for identities, found in group.items()]
        said.append(f"{words[way]} {'it' if said else other} {listed(places)}")
    return listed(said)


def comparison_table(by_identities: Mapping[int, Results], pairs: Iterable[tuple[str, str]], *, levels: bool) -> str:
    """Rank-1 of one arm less that of another at each number of identities; empty without a pair.

    Args:
        by_identities: Results by number of identities.
        pairs: Arm and baseline.
        levels: Give each interval's level: the primary comparison's is above 95 %.
    """
    rows: list[list[str]] = []
    for arm, baseline in pairs:
        for number, results in by_identities.items():
            if not have_a_pair(results, arm, baseline):
                continue
            level = PRIMARY_LEVEL if (arm, baseline) == ("pd", "direct") and number in PRIMARY_NUMBERS else 0.95
            seeds = shared_seeds(results, arm, baseline)
            one, other = ([results[name][seed]["test"]["rank1"] for seed in seeds] for name in (arm, baseline))
            cells = difference_cells(rank1_difference(results, arm, baseline, level=level), neither=NEITHER)
            row = [str(number), f"`{arm}`", cell(one), f"`{baseline}`", cell(other), *cells]
            rows.append([*row, f"{100 * level:g} %"] if levels else row)
    head = ["identities", "arm", "Rank-1", "baseline", "Rank-1", "seeds", "difference, points", "interval", "verdict"]
    return markdown([*head, "level"] if levels else head, rows) if rows else ""


def not_by_seeds_alone(by_identities: Mapping[int, Results], pairs: Iterable[tuple[str, str]]) -> str:
    """The differences that the bootstrap finds and Student's t over the seeds does not; empty without one."""
    places: list[str] = []
    for arm, baseline in pairs:
        numbers: list[str] = []
        for number, results in by_identities.items():
            if have_a_pair(results, arm, baseline) and rank1_difference(results, arm, baseline).found:
                seeds = [mean_and_std(list(persons.values()))[0] for persons in gains(results, arm, baseline).values()]
                if not direction_over_seeds(seeds):
                    numbers.append(str(number))
        if numbers:
            places.append(f"`{arm}` less `{baseline}` at {listed(numbers)} identities")
    if not places:
        return ""
    said = "A t-test over seeds alone, stricter with so few, does not confirm the difference of"
    return f"{said} {' or of '.join(places)}."


def ended_by_limits(by_identities: Mapping[int, Results], arms: Iterable[str]) -> str:
    """Which runs used all epochs of a stage and were still within their patience, in a sentence."""
    places: list[str] = []
    for arm in arms:
        counts: list[str] = []
        for number, results in by_identities.items():
            runs = list(results.get(arm, {}).values())
            cut = sum(any(ended_by_limit(arm, entries) for entries in stages_of(run["history"])) for run in runs)
            if cut:
                counts.append(f"{cut} of {len(runs)} at {number}")
        if counts:
            places.append(f"`{arm}` {listed(counts)} identities")
    if not places:
        return "No run reached its epoch limit while still within patience."
    said = "Some runs reached their epoch limit while still within patience, and more might have helped"
    return f"{said}: {'; '.join(places)}."


def every(by_identities: Mapping[int, Results]) -> Results:
    """Results of all numbers of identities as of one condition, to name what made them."""
    return {f"{arm} {number}": seeds for number, found in by_identities.items() for arm, seeds in found.items()}
