"""Makes a prompted model again from a folder or the Hub."""

from pathlib import Path

import torch
from torch import nn

from promptreid.model.prompted_clip import PromptedCLIP


def load_prompts(
    repo_or_directory: str | Path,
    *,
    model: nn.Module | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    trust_base: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> PromptedCLIP:
    """Load a model that `save_prompts` or `push_prompts` wrote; its scores equal the saver's.

    Prompts belong to the weights, the activation and the image size they were trained with, and a `model` that
    differs in any of them is refused. To use them at another image size all the same, at other scores, set them
    yourself: `PromptedCLIP(clip, saved.config).load_prompt_state_dict(saved.prompt_state_dict())`.

    Args:
        repo_or_directory: A folder, or else the id of a repository on the Hub.
        model: A bare open_clip model to put the prompts into; `None` makes the right one, from the folder's own
            weights if it has them, else from the base's pretrained tag.
        revision: Branch, tag or commit of the repository; `None` for main.
        token: Access token for it; `None` for the one that is logged in.
        cache_dir: huggingface_hub's cache, and the folder for a base that is downloaded; `None` for their defaults.
        local_files_only: Take the repository from the cache alone.
        trust_base: Make the base even if open_clip does not list its architecture or weights: a file on your disk,
            say. Somebody you do not know could then make open_clip load what they like.
        device: Where the model is put; `None` leaves it on the CPU, or where `model` is.
        dtype: Precision of the encoders; prompts stay float32, as in training.

    Returns:
        The prompted model, in eval mode.

    Raises:
        CheckpointError: A file is missing or corrupt, the base is not one that open_clip lists, or the prompts do
            not belong to `model`; says what differs.
        HubError: The repository, its revision or a file is not there or may not be seen, or the Hub is not reached.
        AttachmentError: `model` carries prompts already.
        FileNotFoundError: There is no such folder, and it is no repository's id either.
        TypeError: `model` is no open_clip model, or `dtype` is not floating point.
        ValueError: `revision` was given for a folder.
    """
    return PromptedCLIP.from_pretrained(
        repo_or_directory,
        model=model,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        trust_base=trust_base,
        device=device,
        dtype=dtype,
    )
