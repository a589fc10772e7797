"""Several ways under several seeds: hand-worked intervals, and the tables that papers and READMEs take."""

import json
import math

import pytest

from promptreid.evaluation.comparison import Comparison, write_comparison
from promptreid.training.seeds import SeedScores, t_quantile

DIRECT = SeedScores({0: {"rank1": 0.50, "mAP": 0.3}, 1: {"rank1": 0.54, "mAP": 0.3}, 2: {"rank1": 0.58, "mAP": 0.3}})
PD = SeedScores({0: {"rank1": 0.52, "mAP": 0.4}, 1: {"rank1": 0.56, "mAP": 0.4}, 2: {"rank1": 0.63, "mAP": 0.4}})
LABELS = {"direct": "direct_fine_tuning & more", "pd": "Prompt Decoupling"}


def test_interval_is_students_t_of_the_mean():
    # Standard deviation 4 points over 3 seeds: 4.3027 * 4 / sqrt(3) = 9.9366 points around 54.
    assert DIRECT.interval["rank1"] == pytest.approx((0.54 - 0.099366, 0.54 + 0.099366), abs=1e-5)
    assert all(math.isnan(end) for end in SeedScores({0: {"rank1": 0.5}}).interval["rank1"])
    # As a table of Student's distribution has them.
    assert [t_quantile(n) for n in (11, 30, 100)] == pytest.approx([2.20099, 2.04227, 1.98397], abs=2e-4)


def test_difference_is_that_of_the_seeds_in_pairs():
    found = Comparison({"direct": DIRECT, "pd": PD}, LABELS)
    # 2, 2 and 5 points: mean 3, standard deviation 1.7321, so 4.3027 * 1.7321 / sqrt(3) = 4.3027 around it.
    assert found.differences["pd"].interval["rank1"] == pytest.approx((0.03 - 0.043027, 0.03 + 0.043027), abs=1e-5)
    assert found.sentences() == [
        "pd less direct: Rank-1 +3.00 points, 95 % interval -1.30 to +7.30: not significantly different"
    ]
    assert json.loads(json.dumps(found.as_dict()))["differences"]["pd"]["mean"]["rank1"] == pytest.approx(0.03)


def test_ways_without_a_common_seed_have_no_difference():
    found = Comparison({"direct": DIRECT, "pd": SeedScores({7: {"rank1": 0.5}})}, LABELS)
    assert found.sentences() == []
    assert found.as_dict()["differences"]["pd"] == {"seeds": {}, "mean": {}, "std": {}, "interval": {}}
    assert len(found.table().splitlines()) == 3
    assert SeedScores({}).table() == "no seeds"


def test_tables_for_a_screen_a_readme_and_a_paper(tmp_path):
    found = Comparison({"direct": DIRECT, "pd": PD}, LABELS)
    assert found.table().splitlines()[1] == "direct      3  54.00 ± 4.00  30.00 ± 0.00  44.06 to 63.94"
    assert max(map(len, found.table().splitlines()[:3])) <= 80
    assert found.markdown().splitlines() == [
        "| | seeds | Rank-1 | mAP | 95 % interval |",
        "|---|---|---|---|---|",
        "| direct_fine_tuning & more | 3 | 54.00 ± 4.00 | 30.00 ± 0.00 | 44.06 to 63.94 |",
        "| Prompt Decoupling | 3 | 57.00 ± 5.57 | 40.00 ± 0.00 | 43.17 to 70.83 |",
    ]
    latex = found.latex(caption="people_1")
    assert r"direct\_fine\_tuning \& more & 3 & 54.00 $\pm$ 4.00 & 30.00 $\pm$ 0.00 & 44.06 to 63.94 \\" in latex
    assert r"& seeds & Rank-1 & mAP & 95 \% interval \\" in latex
    assert r"\caption{people\_1. Text to image, in percent" in latex
    assert latex.count("{") == latex.count("}")
    written = write_comparison(tmp_path, found, caption="people")
    assert [path.name for path in written] == ["comparison.json", "comparison.md", "comparison.tex"]
    single = Comparison({"pd": SeedScores({0: {"rank1": 0.5}})}, {})
    assert single.table().splitlines()[1] == "pd      1   50.00"


def test_caption_of_a_paper_shows_every_sign_of_a_name():
    single = Comparison({"pd": SeedScores({0: {"rank1": 0.5}})}, {"pd": "a^b"})
    latex = single.latex(caption=r"wei:rd | #1 ^~%_&$ {x} <y> \z")
    shown = (
        r"wei:rd \textbar{} \#1 \textasciicircum{}\textasciitilde{}\%\_\&\$ \{x\} \textless{}y\textgreater{} "
        r"\textbackslash{}z."
    )
    assert rf"\caption{{{shown} Text to image" in latex
    assert r"a\textasciicircum{}b & 1" in latex
