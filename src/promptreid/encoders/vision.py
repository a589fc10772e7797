"""The image encoder with prompts."""

from torch import Tensor, nn
from torch.nn.functional import normalize as unit_length

from promptreid.backbones.probing import probe_images
from promptreid.backbones.vision import find_vision_tower, image_size_of
from promptreid.encoders.tower_encoder import PromptCarrier
from promptreid.prompts import Initialization, Prompts


class PromptedVisionEncoder(PromptCarrier):
    """The image encoder of an open_clip model with learnable prompts in its blocks.

    Block i works on `[class, P_i, patches]`; what it makes of the prompts is dropped and block i+1 gets its own
    (VPT-deep). Use it alone in your own loop, or through `PromptedCLIP` with both encoders.

    Args:
        clip: An open_clip model; it keeps its weights, keys and methods, and its `encode_image` is prompted.
        length: P, prompts a block; 0 gives the bare encoder.
        depth: Number of first blocks that own prompts, 1 for shallow prompts; `None` for every block.
        position_embedding: Add positions interpolated from the tower's grid to the prompts.
        initialization: `"normal"`, `"start_state"` or `"mean_state"`, see `PromptConfig`; `None` leaves them zero.
        sequence_first: Keep frozen attention fast (values change by rounding only); `detach` undoes it.

    Shape:
        - images: (B, 3, H, W) floating point, normalised
        - returns: (B, E) image features, of unit length if `normalize`

    Raises:
        UnsupportedTowerError: The image tower is of a kind that prompts cannot be put into.
        AttachmentError: The tower already carries prompts, or was compiled.
        ValueError: `length` or `depth` do not fit the tower; images of the wrong shape.
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

    def __init__(
        self,
        clip: nn.Module,
        length: int = 4,
        *,
        depth: int | None = None,
        position_embedding: bool = False,
        initialization: Initialization | None = "normal",
        sequence_first: bool = True,
    ) -> None:
        tower = find_vision_tower(clip)
        super().__init__(
            clip,
            tower,
            Prompts(tower, length, depth=depth, position_embedding=position_embedding),
            probe=lambda: clip.encode_image(probe_images(clip)),  # pyright: ignore[reportCallIssue]
            initialization=initialization,
            sequence_first=sequence_first,
        )

    def forward(self, images: Tensor, *, normalize: bool = False) -> Tensor:
        """Encode a batch of images."""
        self._check(images)
        features = self.clip.encode_image(images, normalize=False)  # pyright: ignore[reportCallIssue]
        return unit_length(features, dim=-1) if normalize else features

    def _check(self, images: Tensor) -> None:
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
