"""Index a folder of crops into a store on a Ray cluster, with a model on every GPU.

    pip install "promptreid[store]" "ray[data]"
    python examples/index_on_ray.py crops s3://bucket/crops

Every machine must see the folder under the same name, and have the object store's credentials in its environment. Ray
restarts an actor that dies; images that it had committed are not encoded again. Without a Ray cluster this runs
on `ACTORS` processors of one machine; if that is all you need, `torchrun` is enough (docs/scale.md).
"""

import sys
from pathlib import Path
from typing import Any

import ray

from promptreid import load_prompts
from promptreid.data.image_files import list_images, no_images_in
from promptreid.errors import DatasetError
from promptreid.retrieval.filling import COMMIT_ROWS
from promptreid.retrieval.stored_gallery import StoredGallery
from promptreid.towers.tiny import tiny_prompts

MODEL = str(tiny_prompts())  # or a folder that save_prompts wrote, which every machine sees, or USER/NAME on the Hub
ACTORS = 2  # as many as there are GPUs
GPUS_EACH = 0  # 1 where there are GPUs


class Indexer:
    """One model, which puts the images that it is given into the store."""

    def __init__(self, model: str, revision: str | None, url: str) -> None:
        device = "cuda" if GPUS_EACH else "cpu"
        self.gallery = StoredGallery.load(url, load_prompts(model, revision=revision, device=device))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encode those images that the store does not have yet."""
        known = [{"folder": folder} for folder in batch["folder"]]
        changes = self.gallery.update(list(map(str, batch["path"])), metadata=known, progress=False)
        return {"added": [changes.added], "unchanged": [changes.unchanged], "unreadable": [len(changes.unreadable)]}


def main() -> None:
    """Make the store, fill it, and build its index."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    folder, url = Path(sys.argv[1]).resolve(), sys.argv[2]
    try:
        paths = list_images(folder)  # before anything is made
    except DatasetError as error:
        raise SystemExit(f"error: {error}") from None
    if not paths:
        raise SystemExit(f"error: {no_images_in(folder)}")
    model = load_prompts(MODEL)
    noted = {"model": MODEL, "revision": model.commit}  # a repository may be pushed to later
    try:
        gallery = StoredGallery.create(url, model, notes={"model": noted})
    except FileExistsError:
        gallery = StoredGallery.load(url)
        if gallery.notes.get("model", {}).get("model") == MODEL:
            noted = gallery.notes["model"]
    images = ray.data.from_items(
        [{"path": str(path), "folder": path.parent.relative_to(folder).as_posix()} for path in paths]
    )
    done = images.map_batches(
        Indexer,
        fn_constructor_args=(MODEL, noted.get("revision"), url),
        batch_size=COMMIT_ROWS,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=ACTORS),
        num_gpus=GPUS_EACH,
    )
    totals = done.sum(["added", "unchanged", "unreadable"])
    gallery.optimize()
    print(f"{totals}; {len(gallery)} images are in {url}")


if __name__ == "__main__":
    main()
