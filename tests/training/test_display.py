"""The line of an epoch."""

from typing import Any

from promptreid.training.display import epoch_line


def line(label: str = "stage one 2/3", **changes: Any) -> str:
    options: dict[str, Any] = {
        "name": "mAP", "on_validation": True, "is_best": False, "loss": 3.92, "left": "02:20",
        "scores": {"mAP": 0.1602}, "before": {"mAP": 0.1531},
    }  # fmt: skip
    return epoch_line(label, **{**options, **changes})


def test_epoch_line_says_score_change_best_loss_and_time_left() -> None:
    assert line() == "stage one 2/3  val mAP 16.02 (+0.71)       loss 3.920  02:20 left"
    assert line(is_best=True) == "stage one 2/3  val mAP 16.02 (+0.71) best  loss 3.920  02:20 left"
    assert line(before={}) == "stage one 2/3  val mAP 16.02 (first)       loss 3.920  02:20 left"
    assert line(before={"mAP": None}) == line(before={})
    other = {"before": {"mAP": 0.2}, "on_validation": False}
    assert line(**other) == "stage one 2/3  mAP 16.02 (-3.98)       loss 3.920  02:20 left"
    assert line(name="energy", scores={"energy": -1234.5}).startswith("stage one 2/3  val energy -1234 (first)")
    assert line(scores={}) == "stage one 2/3  loss 3.920  02:20 left"


def test_epoch_line_fits_80_columns_whatever_the_stage_is_called() -> None:
    widest = {"scores": {"mAP": 1.0}, "before": {"mAP": 0.0}, "is_best": True, "loss": 123.456, "left": "100:02:20"}
    assert len(line("a stage with a very long name that says everything 12/60", **widest)) == 80
