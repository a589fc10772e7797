"""The paper's recipe with ViT-B/16, at the field's 384 × 128: main table and ablations, one command each.

    python benchmarks/paper/reproduce.py data/CUHK-PEDES --device cuda
    python benchmarks/paper/reproduce.py data/ICFG-PEDES --device cuda
    python benchmarks/paper/reproduce.py data/RSTPReid --device cuda

It writes `runs/paper/<dataset>/tables.md`, row by row; after an interruption the same command resumes. A try without
data, weights or a GPU:

    python benchmarks/paper/reproduce.py --dry-run CUHK-PEDES --rows zero_shot direct pd
"""

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from paper_cost import known_cost
from paper_rows import ROWS, TABLES, Resources, Setting, make_model, make_stages, perform, rows_of
from paper_tables import PUBLISHED, write_tables
from promptreid.data.reader import load_dataset
from promptreid.data.records import ReIDDataset
from promptreid.files import write_bytes_atomically
from promptreid.synthetic import write_generated

LAYOUTS = tuple(PUBLISHED["CLIP, zero-shot"])
DRY = replace(Setting(), pretrained=None, batch_size=4, epochs=(1, 1))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="folder of CUHK-PEDES, ICFG-PEDES or RSTPReid")
    parser.add_argument("--dry-run", choices=LAYOUTS, help="a few drawn people in this layout, random weights")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="only these rows of the tables")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, help="default runs/paper/<dataset>")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--no-cache", action="store_true", help="decode images each time; else 5 GB for CUHK-PEDES")
    setting = parser.add_argument_group("what differs from the paper, for tests and other models")
    setting.add_argument("--model")
    setting.add_argument("--pretrained", help='open_clip tag; "none" for random weights')
    setting.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"))
    setting.add_argument("--batch-size", type=int)
    setting.add_argument("--epochs", type=int, nargs=2, metavar=("STAGE_1", "STAGE_2"))
    arguments = parser.parse_args()
    if (arguments.data is None) == (arguments.dry_run is None):
        parser.error("give either a dataset's folder, or --dry-run with a layout")
    return arguments


def setting_of(arguments: argparse.Namespace) -> Setting:
    """The paper's setting, or that of a dry run, with what the command line changes."""
    given = {name: getattr(arguments, name) for name in ("model", "pretrained", "image_size", "batch_size", "epochs")}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    changes |= {name: tuple(changes[name]) for name in ("image_size", "epochs") if name in changes}
    if changes.get("pretrained") == "none":
        changes["pretrained"] = None
    return replace(DRY if arguments.dry_run else Setting(), **changes)


def draw_few(layout: str, folder: Path) -> Path:
    """Eight training pairs in a dataset's layout, and a handful to test on."""
    captions = 1 if layout == "ICFG-PEDES" else 2
    identities = (4, 0 if layout == "ICFG-PEDES" else 2, 2)
    return write_generated(
        folder / "data", layout=layout, num_identities=identities, images_per_identity=3 - captions, progress=False
    )  # fmt: skip


def announce(rows: list[str], seeds: list[int], data: ReIDDataset, setting: Setting) -> None:
    """Say how long it takes on one GPU, and whether that was measured."""
    cost = known_cost()
    tiny = replace(setting, model="promptreid-tiny", pretrained=None, image_size=(96, 48))
    images = max(len(data.test), len(data.val or ()))
    hours: dict[str, float] = {}
    for row in rows:
        recipe = replace(setting.recipe(), num_identities=data.train.num_identities)
        stages = make_stages(row, make_model(row, 0, tiny, device="cpu"), recipe)
        hours[row] = cost.seconds(stages, data.train.num_captions, images=images) / 3600
    print(data.summary())
    print(f"expected on one GPU: {', '.join(f'{row} {value:.1f} h' for row, value in hours.items())};")
    print(f"{len(seeds) * sum(hours.values()):.0f} h for {len(seeds)} seed(s). Source: {cost.source}", flush=True)


def main() -> None:
    """Run every row that is not done yet and write the tables again after each."""
    arguments = parse_arguments()
    name = f"dry-run-{arguments.dry_run}" if arguments.dry_run else arguments.data.resolve().name
    output = arguments.output or Path("runs", "paper", name)
    data = load_dataset(draw_few(arguments.dry_run, output) if arguments.dry_run else arguments.data)
    if data.name not in LAYOUTS:
        raise SystemExit(f"error: {arguments.data} is {data.name}; the paper's datasets are {', '.join(LAYOUTS)}")
    setting, rows = setting_of(arguments), rows_of(arguments.tables)
    rows = [row for row in rows if arguments.rows is None or row in arguments.rows]
    resources = Resources(output, arguments.device, arguments.num_workers, not arguments.no_cache)
    announce(rows, arguments.seeds, data, setting)
    results: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for seed in arguments.seeds:
        for row in rows:
            print(f"row {row}, seed {seed}", flush=True)
            results[row].append(perform(row, seed, data, setting, resources))
            tables = write_tables(data.name, arguments.tables, results, drawn=arguments.dry_run is not None)
            write_bytes_atomically(output / "tables.md", tables.encode())
    print(f"the tables are in {output / 'tables.md'}")


if __name__ == "__main__":
    main()
