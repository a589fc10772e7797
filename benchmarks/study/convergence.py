"""The study at convergence (docs/protocol_convergence.md): tuning and runs, one JSON file a run.

    make study-convergence
    python benchmarks/study/convergence.py hours
    python benchmarks/study/convergence.py tune --jobs 2
    python benchmarks/study/convergence.py run --parts primary_100 primary_400 --jobs 2
    python benchmarks/study/convergence.py run --device cuda --jobs 6

After an interruption the same command does what is left; a run that was interrupted starts over. Results are committed:
`benchmarks/results/convergence`. Images and tokens stay in the device's memory, and several runs go side by side.
"""

import argparse
import math
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from convergence_plan import (
    CENTRES,
    COURSES,
    PART_NAMES,
    RATES,
    RESULTS,
    SEED,
    TUNED_TOGETHER,
    TUNING_RESULTS,
    Limits,
    LongRun,
    parts,
    read_rates,
)
from measures import first_hits, rank1_by_person
from promptreid import PromptedCLIP, Stage, load_clip
from promptreid.data.reader import load_cuhk_pedes
from promptreid.data.records import ReIDDataset, ReIDSplit
from promptreid.evaluation.evaluate import score
from promptreid.synthetic import write_generated
from promptreid.towers.tiny import TINY_FOLDER, TINY_WEIGHTS
from promptreid.training.recipe import Recipe
from resident import ResidentPairs, ResidentSplit
from runs import read_result, settings_of, validation_of, weights_hash
from shared import KEPT, end_with_parent, made_with, write_json
from tune import Grid, Rates, tune

History = list[dict[str, Any]]

BETTER_BASE = TINY_FOLDER / TINY_WEIGHTS["generated_v3"]


def perform(
    run: LongRun,
    results: Path,
    scratch: Path,
    *,
    device: str = "cpu",
    tuning: bool = False,
    weights: str = "generated",
) -> dict[str, Any]:
    """Train and score a run, or read its result if it is there.

    Args:
        run: The run.
        results: Gets `<condition>/<arm>-seed<n>.json`, which is to be committed.
        scratch: Gets the drawn data, which are not.
        device: Where.
        tuning: Score the validation split alone; the test split is not looked at while rates are tuned.
        weights: What `load_clip` takes for `pretrained`.

    Raises:
        FileExistsError: The file holds the result of another run.
    """
    found = read_result(run, results, tuning=tuning)
    if found is not None:
        return found
    data = make_data(run, scratch)
    torch.manual_seed(run.seed)
    course = COURSES[run.arm]
    clip = load_clip("promptreid-tiny", pretrained=weights, image_size=run.limits.image_size, device=device)
    model = PromptedCLIP(clip, course.prompts)
    started = time.perf_counter()
    validation = ResidentSplit(validation_of(data), model, device)
    history: History = []
    if course.stages is not None:
        pairs = ResidentPairs(data.train, model, device)
        for number, stage in enumerate(course.stages(model, make_recipe(run))):
            history += train_stage(stage, pairs, validation, run, number)
    result = {"run": settings_of(run), "seconds": round(time.perf_counter() - started, 1), "history": history}
    result["validation"] = score(validation.encode(model)).as_dict()
    if not tuning:
        encoded = ResidentSplit(data.test, model, device).encode(model)
        result["test"] = score(encoded).as_dict()
        result["rank1_by_person"] = rank1_by_person(first_hits(encoded), encoded.text_ids.tolist())
    result["made_with"] = made_with() | ({} if run.base == "shipped" else {"base_sha256": weights_hash(weights)})
    write_json(run.path(results, tuning=tuning), result, indent=1)
    return result


def make_data(run: LongRun, scratch: Path) -> ReIDDataset:
    """Draw the seed's data, or take what was drawn, and keep the first persons of the training split."""
    limits = run.limits
    count = limits.images_per_identity
    root = scratch / "data" / f"seed{run.seed}-{'-'.join(map(str, (*limits.persons, count)))}"
    write_generated(
        root, num_identities=limits.persons, images_per_identity=count, seed=run.seed, gap=1.0, progress=False
    )
    data = load_cuhk_pedes(root)
    kept = set(list(data.train.labels)[: run.identities])
    records = [record for record in data.train.records if record.person_id in kept]
    return replace(data, train=ReIDSplit("train", records))


def make_recipe(run: LongRun) -> Recipe:
    """The numbers of a run's stages."""
    one, two = run.epochs
    recipe = Recipe(num_identities=run.identities)
    return recipe.with_stages(epochs=(max(1, one), max(1, two)), learning_rates=run.rates)


def train_stage(stage: Stage, pairs: ResidentPairs, validation: ResidentSplit, run: LongRun, number: int) -> History:
    """Train until validation no longer improves, and end with the weights of the best epoch; an entry an epoch.

    A loss that is no longer finite ends the stage too: at such a rate it has no further epochs worth looking at.
    """
    stage.prepare()
    optimizer = stage.optimizer()
    batch_size = min(run.limits.batch_size, len(pairs))
    scheduler = stage.scheduler(optimizer, len(pairs) // batch_size)
    entries: History = []
    best, kept = -math.inf, _trained(stage)
    for epoch in range(1, stage.epochs + 1):
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(_seed(run.seed, number, epoch))
        sums: dict[str, torch.Tensor] = {}
        steps = 0
        for images, tokens, person_ids in pairs.epoch(batch_size, generator):
            out = stage.model(images, tokens)
            losses = stage.losses(out["image_features"], out["text_features"], person_ids)
            losses["total"].backward()
            if stage.max_norm is not None:
                torch.nn.utils.clip_grad_norm_(stage.parameters(), stage.max_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            # Summed on the device, and read once an epoch: reading waits for it.
            sums = {name: sums.get(name, 0.0) + value.detach() for name, value in losses.items()}
            steps += 1
        means = {name: round(float(value) / steps, 5) for name, value in sums.items()}
        entry: dict[str, Any] = {"stage": stage.name, "epoch": epoch, "steps": steps, "losses": means}
        entries.append(entry)
        finite = all(map(math.isfinite, means.values()))
        finite = finite and all(bool(value.isfinite().all()) for value in stage.parameters())
        if finite:
            entry["scores"] = score(validation.encode(stage.model)).text_to_image.as_dict()
        entry["seconds"] = round(time.perf_counter() - started, 3)
        if finite and entry["scores"]["mAP"] > best:
            best, kept, best_epoch = entry["scores"]["mAP"], _trained(stage), epoch
        elif not finite or epoch - best_epoch >= run.limits.patience:
            break
    with torch.no_grad():
        for name, parameter in stage.named_parameters():
            parameter.copy_(kept[name])
    return entries


def _trained(stage: Stage) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in stage.named_parameters()}


def _seed(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def prepare_worker() -> None:
    """Before its first run, have a worker end with the process that started it, and use all of float32."""
    end_with_parent()
    torch.backends.cudnn.allow_tf32 = False  # on a GPU as on the CPU


@contextmanager
def side_by_side(arguments: argparse.Namespace) -> Iterator[ProcessPoolExecutor]:
    """Processes that perform runs. If there are several, each has one thread."""
    jobs = arguments.jobs
    if jobs > 1:
        for name, value in ({"OMP_NUM_THREADS": "1"} | (KEPT if arguments.keep_memory else {})).items():
            os.environ.setdefault(name, value)  # read by a process when it starts
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=prepare_worker) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def perform_missing(runs: Iterable[LongRun], arguments: argparse.Namespace) -> None:
    """Perform the runs without a result, several at a time, in order."""
    left = [run for run in runs if read_result(run, arguments.results) is None]
    if not left:
        return
    with side_by_side(arguments) as pool:
        # Data are drawn once a seed, before processes would draw the same ones side by side.
        seeds = {run.seed: run for run in left}.values()
        for drawn in [pool.submit(make_data, run, arguments.scratch) for run in seeds]:
            drawn.result()
        futures = []
        for run in left:
            settings = {"device": arguments.device}
            if run.base != "shipped":
                settings["weights"] = str(arguments.base)
            futures.append(pool.submit(perform, run, arguments.results, arguments.scratch, **settings))
        for future in tqdm(as_completed(futures), total=len(left), unit="run"):
            future.result()


def tune_arms(arms: tuple[str, ...], arguments: argparse.Namespace) -> None:
    """Tune arms together, each over the same number of runs, and write their rates."""
    before = read_rates(arguments.rates)
    names = tuple(name for name in arms if name not in before["rates"])
    if not names:
        return
    start = tuple(Grid(*grid) for grid in before.get("grids", [(0, 0), (0, 0)]))
    tried: dict[str, set[Rates]] = {name: set() for name in names}
    make_data(LongRun(names[0], SEED, CENTRES, limits=arguments.limits), arguments.scratch)
    with side_by_side(arguments) as pool, ThreadPoolExecutor(arguments.jobs) as threads:

        def validation_map(arm: str, rates: Rates) -> float:
            tried[arm].add(rates)
            run = LongRun(arm, SEED, rates, limits=arguments.limits)
            done: Future[dict[str, Any]] = pool.submit(
                perform, run, arguments.tuning_results, arguments.scratch, device=arguments.device, tuning=True
            )
            return done.result()["validation"]["mAP"]

        kinds = {name: COURSES[name].tuned for name in names}
        found, grids = tune(names, validation_map, start=start, kinds=kinds, centres=CENTRES, each=threads.map)
    counts = {arm: len(rates) for arm, rates in tried.items()}
    if len(set(counts.values())) != 1:
        raise RuntimeError(f"arms were tuned over different numbers of runs: {counts}")
    content = {
        "seed": SEED,
        "grids": before.get("grids") or [(grid.low, grid.high) for grid in grids],
        "runs": before["runs"] | counts,
        "rates": before["rates"] | found,
    }
    write_json(arguments.rates, content)
    print(f"tuned {', '.join(names)} over {max(counts.values())} runs each")


def most_hours(runs: Iterable[LongRun], seconds: dict[str, float]) -> float:
    """Hours of some runs one after another, if none stops early.

    Args:
        runs: The runs.
        seconds: Of a step of stage 1, of stage 2, of direct and of joint training.
    """
    total = 0.0
    for run in runs:
        one, two = run.most_steps
        last = {"joint": "joint"}.get(run.arm, "direct" if run.arm.startswith("direct") else "stage_two")
        # Prompts make sequences longer: 64 a block more than double a step, 16 add a third.
        longer = {"prompts_64": 2.3, "prompts_16": 1.3}.get(run.arm, 1.0)
        total += longer * one * seconds["stage_one"] + two * seconds[last]
    return total / 3600


def announce_hours(device: str, limits: Limits) -> None:
    """Print how long tuning and every part take at most here, one run at a time."""
    from speed import measure_speed

    seconds = measure_speed(device, steps=5).step
    print("hours at most, one run at a time, if no stage stops early; two side by side take about half")
    print(f"(seconds a step: {', '.join(f'{kind} {taken:.2f}' for kind, taken in seconds.items())})")
    for arms in TUNED_TOGETHER:
        runs = [LongRun(arm, SEED, CENTRES, limits=limits) for arm in arms] * 5
        print(f"tuning {', '.join(arms)}: {most_hours(runs, seconds):.1f}")
    every = {"rates": dict.fromkeys(COURSES, CENTRES)}
    for name, runs in parts(every, base="other", limits=limits).items():
        print(f"{name}: {len(runs)} runs, {most_hours(runs, seconds):.1f}")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("hours", "tune", "run", "all"), help="all: tune, then every part in order")
    parser.add_argument("--parts", nargs="+", choices=PART_NAMES, default=PART_NAMES)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side; default %(default)s")
    parser.add_argument(
        "--keep-memory", action="store_true", help="jobs on the CPU keep their memory (benchmarks/side_by_side.py)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--base",
        type=Path,
        default=BETTER_BASE,
        help="weights for the part better_base; default: version 3 of the base",
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tuning-results", type=Path, default=TUNING_RESULTS)
    parser.add_argument("--scratch", type=Path, default=Path("runs/study"))
    parser.add_argument("--rates", type=Path, default=RATES)
    parser.add_argument("--persons", type=int, nargs=3, help="training, validation and test, to try it out")
    parser.add_argument("--most-epochs", type=int, help="of any stage, to try it out")
    arguments = parser.parse_args(words)
    if arguments.jobs < 1:
        parser.error(f"--jobs is {arguments.jobs}, expected at least 1")
    if arguments.task != "hours" and (arguments.persons or arguments.most_epochs):
        kept = {"--results": (arguments.results, RESULTS)}
        if arguments.task in ("tune", "all"):
            kept |= {
                "--tuning-results": (arguments.tuning_results, TUNING_RESULTS),
                "--rates": (arguments.rates, RATES),
            }
        same = [name for name, (given, committed) in kept.items() if given.resolve() == committed.resolve()]
        if same:
            parser.error(f"--persons and --most-epochs try the study out: give another path with {' and '.join(same)}")
    changes = {"persons": tuple(arguments.persons)} if arguments.persons else {}
    arguments.limits = Limits(most_epochs=arguments.most_epochs, **changes)
    return arguments


def main() -> None:
    """Do what is not done yet."""
    arguments = parse()
    if arguments.task == "hours":
        announce_hours(arguments.device, arguments.limits)
        return
    if arguments.task in ("tune", "all"):
        tune_arms(TUNED_TOGETHER[0], arguments)
    if arguments.task == "tune":
        for arms in TUNED_TOGETHER[1:]:
            tune_arms(arms, arguments)
        return
    base = weights_hash(arguments.base)[:8]
    chosen = [name for name in PART_NAMES if name in arguments.parts]
    later = [name for name in chosen if name.startswith(("parts", "better"))]
    # Arms of later parts are tuned after the primary comparison, which needs none of them.
    for names in ([name for name in chosen if name not in later], later):
        if arguments.task == "all" and any(name.startswith("parts") for name in names):
            for arms in TUNED_TOGETHER[1:]:
                tune_arms(arms, arguments)
        planned = parts(read_rates(arguments.rates), base=base, limits=arguments.limits)
        for name in names:
            print(f"{name}: {len(planned[name])} runs", flush=True)
        # In one go, so that no process waits for the last run of a part.
        perform_missing([run for name in names for run in planned[name]], arguments)
    print("done; python benchmarks/study/convergence_page.py builds the page")


if __name__ == "__main__":
    main()
