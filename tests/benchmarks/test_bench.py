"""What the benchmarks share: the record, turns, ratios, made-up pairs, and the file."""

import getpass
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

import _bench


def test_record_names_processor_versions_and_date_but_no_host_or_user():
    made = _bench.made_with()
    assert list(made) == ["machine", "versions", "date"]
    assert made["machine"]["processor"]
    assert made["machine"]["cores"] >= 1
    assert made["machine"]["threads"] >= 1
    assert {"python", "torch", "open_clip", "promptreid"} <= set(made["versions"])
    words = json.dumps(made)
    assert platform.node() not in words
    assert getpass.getuser() not in made["machine"].values()


def test_processor_is_the_model_name_of_linux(monkeypatch):
    lines = ["processor\t: 0", "model name\t: A Chip 9: 2 GHz", "processor\t: 1", "model name\t: A Chip 9: 2 GHz"]
    monkeypatch.setattr(_bench, "_processor_lines", lambda: lines)
    assert _bench.processor_model() == "A Chip 9: 2 GHz"
    monkeypatch.setattr(_bench, "_processor_lines", list)
    assert _bench.processor_model() == (platform.processor() or platform.machine())


def test_old_and_new_records_read_alike_in_words():
    old = {"machine": "x86_64, 2 threads", "torch": "2.14", "open_clip": "3.3", "date": "2026-11-25"}
    machine = {"processor": "A Chip", "architecture": "x86_64", "threads": 2, "gpu": "A Card"}
    new = {"machine": machine, "versions": {"torch": "2.14", "open_clip": "3.3"}, "date": "2026-11-25"}
    assert _bench.in_words(old) == "x86_64, 2 threads, torch 2.14, open_clip 3.3"
    assert _bench.in_words(new) == "A Chip, x86_64, 2 threads, A Card, torch 2.14, open_clip 3.3"


@pytest.mark.parametrize(("mirrored", "order"), [(False, "ababab"), (True, "abbaab")])
def test_variants_take_turns_and_warm_up_rounds_are_dropped(mirrored, order):
    calls = []

    def variant(name):
        return lambda: calls.append(name) or len(calls)

    found = _bench.take_turns({"a": variant("a"), "b": variant("b")}, rounds=2, warm_up=1, mirrored=mirrored)
    assert "".join(calls) == order
    positions = {name: [number for number, call in enumerate(order, start=1) if call == name] for name in "ab"}
    assert found == {name: at[1:] for name, at in positions.items()}


def test_ratio_is_taken_pair_by_pair_not_of_the_medians():
    # Pairs 1/1, 9/3, 8/2: 1, 3, 4. The medians alone, 8 and 2, would give 4.
    assert _bench.paired_ratio([1, 9, 8], [1, 3, 2]) == (3, 1, 4)
    with pytest.raises(ValueError, match="shorter"):
        _bench.paired_ratio([1, 2], [1])


def test_spread_is_rounded_in_all_its_parts():
    assert _bench.spread([1.23456, 2.0, 3.98765]).rounded(2) == (2.0, 1.23, 3.99)


def test_warm_up_calls_are_not_timed(monkeypatch):
    clock, calls = iter([10.0, 12.5]), []
    monkeypatch.setattr(_bench.time, "perf_counter", lambda: next(clock))
    assert _bench.seconds(lambda: calls.append(1), warm_up=2) == 2.5
    assert len(calls) == 3


@pytest.mark.slow
def test_work_in_its_own_process_runs_elsewhere():
    assert _bench.in_own_process(os.getpid) != os.getpid()


PARENT = """
import os, time
import _bench

def work(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    import sys
    _bench.in_own_process(work, sys.argv[1])
"""


def runs(process):
    """Whether a process has not ended; one that nobody has waited for has."""
    stat = Path(f"/proc/{process}/stat")
    return stat.is_file() and stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="asks Linux about processes")
def test_work_in_its_own_process_ends_when_the_parent_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    noted = tmp_path / "child"
    paths = os.pathsep.join([str(Path(_bench.__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(tmp_path / "parent.py"), str(noted)]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}) as parent:
        try:
            wait_until(lambda: noted.is_file() and noted.read_text().isdigit())
            assert runs(int(noted.read_text()))
        finally:
            parent.kill()
    wait_until(lambda: not runs(int(noted.read_text())))


def test_made_up_captions_stand_between_start_and_end():
    tokens = _bench.random_captions(2, words=[3, 5], context_length=8)
    assert tokens[:, 0].tolist() == [49406] * 2
    assert [row.tolist().index(49407) for row in tokens] == [4, 6]
    assert tokens[0, 5:].tolist() == [0, 0, 0]


def test_random_pairs_in_memory_are_made_once_and_the_others_each_time():
    kept, drawn = (_bench.RandomPairs(2, (4, 2), in_memory=in_memory) for in_memory in (True, False))
    assert kept[1]["images"].equal(kept[1]["images"])
    assert not drawn[1]["images"].equal(drawn[1]["images"])
    assert kept.person_ids.tolist() == [0, 1]
    assert kept[1]["images"].shape == (3, 4, 2)


def test_a_result_that_json_cannot_hold_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "new" / "result.json"
    _bench.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        _bench.write_json(path, {"a": Path()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_a_table_goes_between_its_own_marks_and_replaces_what_was_there(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\nkept\n<!-- end -->\n")
    _bench.write_between(page, "one", "| \\1 |")
    _bench.write_between(page, "one", "| \\1 |")
    assert page.read_text() == ("a\n<!-- one -->\n\n| \\1 |\n\n<!-- end -->\nb\n<!-- two -->\nkept\n<!-- end -->\n")
    with pytest.raises(ValueError, match="has no marks <!-- three -->"):
        _bench.write_between(page, "three", "text")


def test_the_table_of_kinds_shows_each_ratio_with_its_machine():
    import backbones_speed

    ratio = {"ratio": 1.042, "lowest": 1.0, "highest": 1.1}
    made = {**_bench.made_with(), "rounds": 3, "batch": 64, "machine_was_shared": True}
    kinds = {
        f"{kind} {work} / independent {work}": ratio for kind in backbones_speed.KINDS for work in ("forward", "step")
    }
    text = backbones_speed.kinds_table({"fp32": {"kinds": {**made, **kinds}}})
    assert "| kind | forward, fp32 | step, fp32 |" in text
    assert "| prefix | 1.04 (1.00 to 1.10) | 1.04 (1.00 to 1.10) |" in text
    assert "others used the machine meanwhile" in text
    assert "batch 64;" in text
