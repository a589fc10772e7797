"""A split after encoding, by one process or by several that share the work."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from promptreid.data.dataset import CaptionsOnly, ImagesOnly
from promptreid.data.records import ReIDSplit, check_split
from promptreid.defaults import BATCH_SIZE
from promptreid.model.encoding import check_prompted, finished_features
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.towers.modes import evaluating
from promptreid.values import whole_number

# Of each image its camera; `None` where it does not matter.
Cameras = Sequence[str | None] | None


@dataclass(frozen=True)
class EncodedSplit:
    """Features of every image and caption of a split, of unit length, on the CPU.

    Attributes:
        split: What was encoded.
        image_features: (images, E) float32.
        text_features: (captions, E) float32.
        image_ids: (images,) int64, the annotation's person numbers.
        text_ids: (captions,) int64.
        captions: The sentences, in the order of `text_features`.
    """

    split: ReIDSplit
    image_features: Tensor
    text_features: Tensor
    image_ids: Tensor
    text_ids: Tensor
    captions: list[str]


def encode_split(
    model: PromptedCLIP, split: ReIDSplit, *, batch_size: int = BATCH_SIZE, num_workers: int = 0, progress: bool = True
) -> EncodedSplit:
    """Encode every image and every caption of a split once, on the model's device.

    Grouped prompts are given the camera of each image.
    Under `torchrun` or `accelerate launch` each process encodes its share, and all get all features.

    Args:
        model: The model; its train or eval mode is put back afterwards.
        split: The images and captions.
        batch_size: Items at a time, in each process.
        num_workers: Processes that load images.
        progress: Show progress bars.

    Returns:
        The features.

    Raises:
        DatasetError: An image cannot be read.
        TypeError: `model` or `split` is something else, as when a whole dataset is given; `batch_size` is no whole
            number.
        ValueError: `batch_size` is not positive.
    """
    check_prompted(model)
    check_split(split)
    batch_size = whole_number("batch_size", batch_size, minimum=1)
    images = ImagesOnly(split, transform=model.eval_transform)
    captions = CaptionsOnly(split, tokenizer=model.tokenizer)
    shown = progress and is_main_process()

    def encode(
        function: Callable[..., Tensor], items: Dataset[Tensor], kind: str, workers: int, cameras: Cameras = None
    ) -> Tensor:
        device = next(model.parameters()).device
        total = len(items)  # pyright: ignore[reportArgumentType]
        share = own_shard(total)
        loader = DataLoader(
            Subset(items, share),
            batch_size=batch_size,
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )
        bar = tqdm(
            loader, desc=f"encoding {kind} of {split.name}", unit="batch", disable=not shown, leave=False, delay=1
        )
        features: list[Tensor] = [torch.empty(0, model.embed_dim)]
        with torch.inference_mode():
            for start, batch in zip(count(share.start, batch_size), bar, strict=False):
                own = {} if cameras is None else {"groups": cameras[start : start + len(batch)]}
                features.append(finished_features(function(batch.to(device, non_blocking=True), **own), normalize=True))
        # A clone made outside of inference mode may take part in autograd later.
        return join_shards(torch.cat(features).clone(), total)

    with evaluating(model):
        cameras = [record.camera for record in split.records] if model.groups else None
        image_features = encode(model.encode_image, images, "images", num_workers, cameras)
        text_features = encode(model.encode_text, captions, "captions", 0)
    return EncodedSplit(split, image_features, text_features, images.person_ids, captions.person_ids, captions.captions)


def is_main_process() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return _rank_and_processes()[0] == 0


def own_shard(total: int, rank: int | None = None) -> range:
    """The share of `total` items of this process, or of that of a rank: neighbours, as even as can be."""
    own, processes = _rank_and_processes()
    rank = own if rank is None else rank
    return range(total * rank // processes, total * (rank + 1) // processes)


def join_shards(share: Tensor, total: int) -> Tensor:
    """Every process's share in order, in every process: from (len(own_shard(total)), E) to (total, E), on the CPU."""
    processes = _rank_and_processes()[1]
    if processes == 1:
        return share
    # NCCL moves nothing but GPU memory, and all_gather wants shares of one size.
    device = torch.device("cuda") if dist.get_backend() == "nccl" else share.device
    padded = share.new_zeros(-(-total // processes), *share.shape[1:])
    padded[: len(share)] = share
    parts = [torch.empty_like(padded, device=device) for _ in range(processes)]
    dist.all_gather(parts, padded.to(device))
    return torch.cat([part[: len(own_shard(total, rank))].cpu() for rank, part in enumerate(parts)])


def _rank_and_processes() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()
