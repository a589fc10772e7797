"""The image encoder with prompts."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize as unit_length

from promptreid.model.encoder import PromptCarrier, PromptFactory, check_tensor, make_own, refuse_options
from promptreid.prompts.attention_pool_tokens import AttentionPoolTokens
from promptreid.prompts.block_tokens import BlockTokens
from promptreid.prompts.border_pixels import BorderPixels
from promptreid.prompts.config import VISION_PLACES, Initialization, VisionPlace
from promptreid.prompts.kind import PromptKind
from promptreid.towers.families import find_vision_tower
from promptreid.towers.initial_states import probe_images
from promptreid.towers.modes import constants_when_traced, is_traced
from promptreid.towers.tower import PixelTower, TokenTower, image_dtype_of, image_size_of
from promptreid.values import check_choice

# Of each image its group by name or position; `None` where they are not given.
ImageGroups = Sequence[str | None] | Tensor | None

# Normalised images stay within about -3 to 3; raw pixels of 0 to 255 are far beyond.
_LARGEST_VALUE = 50.0


class PromptedVisionEncoder(PromptCarrier):
    """The image encoder of an open_clip model with learnable prompts in its blocks.

    Block i works on `[class, P_i, patches]`; what it makes of the prompts is dropped and block i+1 gets its own
    (VPT-deep). Towers without a token sequence (ResNet, ConvNeXt, FastViT, Swin) get learnable pixels around the
    border of the image instead; `kind` names the tower. Use it by itself in your own loop, or through
    `PromptedCLIP` with both encoders.

    Args:
        clip: An open_clip model; it keeps its weights, keys and methods, and its `encode_image` is prompted.
        length: P, prompts per block; 0 gives the bare encoder. The border's width in pixels where there are no tokens.
        depth: Number of first blocks that own prompts, 1 for shallow prompts; `None` for every block.
        position_embedding: Add positions interpolated from the tower's grid to the prompts.
        initialization: `"normal"`, `"start_state"` or `"mean_state"`, see `PromptConfig`; `None` leaves them zero. A
            border starts at zero.
        place: `"auto"`, or `"attention_pool"` for prompts in the attention pool of a ModifiedResNet.
        sequence_first: Keep frozen attention fast (values change by rounding only); `detach` undoes it.
        trim: Compute the last block only for the class token in towers whose features are made of it.
        prompts: Makes your own kind of prompts from the tower's description, see `PromptKind`; `length` and the
            other options are then not used. `None` for the built-in kind that fits.

    Shape:
        - images: (B, 3, H, W) floating point of any precision, normalised
        - returns: (B, E) image features in the encoder's precision, of unit length if `normalize`

    Raises:
        UnsupportedTowerError: Prompts cannot be put into an image tower of this family.
        AttachmentError: The tower already carries prompts, was compiled, or is TorchScript.
        ValueError: `length`, `depth` or another option does not fit the tower or the kind of prompt; images of the
            wrong shape, or not normalised.
        TypeError: Images that are not floating point.

    Example:
        >>> import torch
        >>> from promptreid import load_clip
        >>> encoder = PromptedVisionEncoder(load_clip("promptreid-tiny", image_size=(96, 48)), length=4)
        >>> encoder(torch.zeros(2, 3, 96, 48)).shape
        torch.Size([2, 128])

    Source:
        Jia et al. 2022, Visual Prompt Tuning, arXiv 2203.12119; Li et al. 2024, arXiv 2401.02173.
    """

    tower: TokenTower | PixelTower

    def __init__(
        self,
        clip: nn.Module,
        length: int = 4,
        *,
        depth: int | None = None,
        position_embedding: bool = False,
        initialization: Initialization | None = "normal",
        place: VisionPlace = "auto",
        sequence_first: bool = True,
        trim: bool = True,
        prompts: PromptFactory | None = None,
    ) -> None:
        check_choice("place", place, VISION_PLACES)
        tower = find_vision_tower(clip)
        if prompts is not None:
            own = make_own(
                prompts,
                tower,
                depth=depth,
                position_embedding=position_embedding or None,
                place=None if place == "auto" else place,
            )
        else:
            own = fitting_prompts(
                tower,
                length,
                depth=depth,
                position_embedding=position_embedding,
                initialization=initialization,
                place=place,
                sequence_first=sequence_first,
            )
        encode: Any = clip.encode_image
        super().__init__(clip, own, initialization=initialization, probe=lambda: encode(probe_images(clip)), trim=trim)

    def forward(self, images: Tensor, *, normalize: bool = False, groups: ImageGroups = None) -> Tensor:
        """Encode a batch of images; `groups` are those of grouped prompts, see `GroupedTokens.for_groups`."""
        self._check(images)
        # Not len(images), which would make the batch's size a constant of an exported graph.
        read = self.last_block.reading(getattr(self.tower, "pooled_at", None) if self.trim else None)
        with constants_when_traced(self.clip), read, self.prompts.for_groups(groups, images.shape[0]):
            # Transforms make float32, which encoders of another precision refuse; of their own it is not copied.
            images = images.to(image_dtype_of(self.clip))
            features = self.clip.encode_image(images, normalize=False)  # pyright: ignore[reportCallIssue]
        return unit_length(features, dim=-1) if normalize else features

    def _check(self, images: Tensor) -> None:
        check_tensor(images, "images", "model.eval_transform")
        height, width = image_size_of(self.clip)
        if images.ndim != 4 or images.shape[1:] != (3, height, width):
            raise ValueError(
                f"images have shape {tuple(images.shape)}, expected (batch, 3, {height}, {width}); resize them with "
                "model.eval_transform, or load the model for your size: load_clip(..., image_size=(height, width))"
            )
        if not images.is_floating_point():
            raise TypeError(
                f"images have dtype {images.dtype}, expected floating point, normalised as model.eval_transform does"
            )
        # Looking at values would wait for the GPU at every step, and cannot be traced.
        if is_traced():
            return
        if len(images) == 0:
            raise ValueError("the batch holds no images: it is empty, and open_clip's towers take at least one")
        if images.device.type == "cpu":
            largest = float(images.detach().abs().amax())
            if math.isnan(largest):
                raise ValueError("images hold values that are not numbers (NaN); look at what loads or changes them")
            if largest > _LARGEST_VALUE:
                raise ValueError(
                    f"images hold values up to {largest:.0f}, expected about -3 to 3, as model.eval_transform makes "
                    "them; are these pixels of 0 to 255?"
                )


def fitting_prompts(
    tower: TokenTower | PixelTower,
    length: int,
    *,
    depth: int | None,
    position_embedding: bool,
    initialization: Initialization | None,
    place: VisionPlace,
    sequence_first: bool,
) -> PromptKind:
    """The built-in kind of separate prompts that fits an image tower; arguments as of `PromptedVisionEncoder`.

    Raises:
        ValueError: An option does not fit the tower.
    """
    if isinstance(tower, TokenTower) and place == "auto":
        return BlockTokens(
            tower, length, depth=depth, position_embedding=position_embedding, sequence_first=sequence_first
        )
    refuse_options(
        f"prompts of this {tower.kind} are not in blocks of tokens: it takes pixels on the image's border, or tokens "
        "in the attention pool of a ModifiedResNet",
        depth=None if depth == 1 else depth,
        position_embedding=position_embedding or None,
        initialization=None if initialization == "normal" else initialization,
    )
    if isinstance(tower, PixelTower) and place == "auto":
        return BorderPixels(tower, length)
    return AttentionPoolTokens(tower, length)
