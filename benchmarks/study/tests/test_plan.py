"""What is compared, with which steps."""

import pytest

import plan

EVERY = [
    "zero_shot", "direct", "pd", "joint", "stage_one", "prompts_both", "pd_no_id", "direct_short",
    "direct_equal_time", "direct_random_prompts", "direct_start_prompts", "norms_stage_one", "direct_id_warmup",
    "pd_length_1", "pd_length_2", "pd_length_8", "pd_length_16", "pd_text_8_image_2", "pd_text_2_image_8",
    "pd_shallow", "pd_random_start", "pd_positions", "pd_before_end", "pd_text_prompts", "pd_image_prompts",
    "pd_dot_product", "pd_temperature_01", "pd_temperature_05",
]  # fmt: skip


def rates(*arms):
    return {"costs": (0.8, 1.1), "rates": dict.fromkeys(arms, (5e-3, 3e-4))}


def test_every_arm_of_the_protocol_is_there():
    assert list(plan.ARMS) == EVERY


def test_main_arms_have_equal_steps_in_all():
    runs = {run.arm: run for run in plan.plan(plan.MAIN, [0], rates(*plan.MAIN))}
    budget = plan.BUDGET
    total = budget.stage_one_steps + budget.stage_two_steps
    assert runs["direct"].last_steps == runs["joint"].last_steps == total
    two_stages = {runs[arm].last_steps for arm in ("pd", "prompts_both", "pd_no_id")}
    assert two_stages == {budget.stage_two_steps}


def test_equal_time_counts_what_both_stages_cost():
    # 0.8 · 120 + 1.1 · 240 = 360 steps of direct fine-tuning.
    [run] = plan.plan(["direct_equal_time"], [0], rates("direct_equal_time"))
    assert run.last_steps == 360


def test_long_runs_have_twice_the_steps_and_a_folder_of_their_own(tmp_path):
    runs = {run.arm: run for run in plan.parts(rates("direct", "pd"))["long"] if run.seed == 0}
    assert {arm: run.last_steps for arm, run in runs.items()} == {"direct": 720, "pd": 600}
    assert runs["pd"].path(tmp_path) == tmp_path / "gap1-share1-long" / "pd-seed0.json"


def test_untuned_arms_are_left_out_and_counted_as_expected():
    assert {run.arm for run in plan.parts(rates("direct", "pd"))["main"]} == {"zero_shot", "direct", "pd"}
    assert plan.expected("main") == 70
    assert plan.expected("gap") == 40


def test_an_unknown_arm_is_named():
    with pytest.raises(KeyError, match="unknown arm 'direkt'"):
        plan.plan(["direkt"], [0], rates())


def test_missing_rates_say_how_to_tune(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tune the rates first, with python benchmarks/study/tune\.py"):
        plan.read_rates(tmp_path / "rates.json")


def test_a_result_has_one_file_and_tuning_runs_are_apart(tmp_path):
    [run] = plan.plan(["pd"], [3], rates("pd"), gap=0.5, share=0.01)
    assert run.path(tmp_path) == tmp_path / "gap0.5-share0.01" / "pd-seed3.json"
    assert run.path(tmp_path, tuning=True).name == "pd-seed3-rates0.005-0.0003.json"
