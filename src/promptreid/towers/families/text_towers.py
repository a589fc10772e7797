"""Finds the text tower of an open_clip model."""

from typing import Any

from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from promptreid.errors import UnsupportedTowerError
from promptreid.towers.tower import TextTower, Trim, refuse_compiled


def find_text_tower(clip: nn.Module) -> TextTower:
    """Describe the text tower of `clip` to a prompt.

    Args:
        clip: An open_clip model.

    Returns:
        The tower; prompts go in right after the start-of-sequence token.

    Raises:
        UnsupportedTowerError: The tower is not of a kind that prompts can be put into.
        AttachmentError: The model is TorchScript or compiled.
    """
    refuse_compiled(clip)
    text: Any = clip if isinstance(clip, CLIP) else getattr(clip, "text", None)
    if isinstance(text, CLIP | TextTransformer):
        return _built_in_tower(text)
    if isinstance(text, HFTextEncoder):
        return _hugging_face_tower(text)
    text = clip if text is None else text
    raise UnsupportedTowerError(
        f"no prompts for a text tower of class {type(text).__module__}.{type(text).__qualname__}: known are "
        "open_clip's built-in text Transformers and its Hugging Face encoders. Pass an open_clip model, for example "
        'promptreid.load_clip("ViT-B-16").'
    )


def _built_in_tower(text: Any) -> TextTower:
    causal = text.attn_mask is not None
    pool_type: str = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", "argmax")
    class_token = getattr(text, "cls_emb", None) is not None
    end_pooled = pool_type in ("argmax", "eos") and not class_token
    trim: Trim = "never"
    # Places after the end of the caption can reach the feature only if attention looks ahead or the pooling reads
    # the last place; a class token at the end sees just the places that are no padding, and the one after them.
    if causal and class_token:
        trim = "class_at_end"
    elif causal and end_pooled:
        trim = "end"
    end_id = getattr(text, "text_eos_id", None) or getattr(text, "eos_id", None)
    return TextTower(
        kind=f"open_clip.{type(text).__name__}",
        container=text.transformer,
        blocks=tuple(text.transformer.resblocks),
        width=text.transformer.width,
        length=int(text.positional_embedding.shape[0]),
        slot=1,
        pooling="class token at the end" if class_token else pool_type,
        position_owner=text,
        module=text,
        looks_back=causal,
        trim=trim,
        context_length=int(text.context_length),
        vocabulary=int(text.vocab_size),
        pad_id=int(getattr(text, "pad_id", 0)),
        end_id=end_id if pool_type == "eos" else None,
        end_pooled=end_pooled,
        embedding=text.token_embedding,
    )


def _hugging_face_tower(text: Any) -> TextTower:
    encoder = getattr(text.transformer, "encoder", text.transformer)
    rows = [getattr(encoder, name) for name in ("layer", "block", "layers") if hasattr(encoder, name)]
    if not rows:
        raise UnsupportedTowerError(
            f"no prompts for a Hugging Face text tower of class {type(text.transformer).__qualname__}: its encoder "
            f"{type(encoder).__qualname__} has none of the lists layer, block or layers. Choose a model whose text "
            "tower is RoBERTa, XLM-R, BERT, T5 or M2M100."
        )
    config = text.config
    longest = int(getattr(config, "max_position_embeddings", 0) or 0)
    if longest and config.model_type in ("roberta", "xlm-roberta"):
        longest -= config.pad_token_id + 1  # their position table starts after the padding's place
    context = min(longest, DEFAULT_CONTEXT_LENGTH) if longest else DEFAULT_CONTEXT_LENGTH
    return TextTower(
        kind=f"huggingface.{config.model_type}",
        container=encoder,
        blocks=tuple(rows[0]),
        width=int(getattr(config, "d_model", None) or config.hidden_size),
        length=context,
        slot=1,
        pooling=type(text.pooler).__name__,
        mask_arguments=("attention_mask",),
        bias_arguments=("position_bias",),
        drops_blocks=bool(getattr(encoder, "layerdrop", 0.0)),
        module=text,
        looks_back=False,
        trim="slice",
        context_length=longest or 0,
        shortest_too=True,
        vocabulary=int(text.vocab_size),
        pad_id=int(config.pad_token_id),
    )


def caption_end(tower: TextTower, tokens: Tensor) -> Tensor:
    """Position of the token that the text feature is pooled from, for each caption.

    Args:
        tower: A text tower that pools at the end of the caption.
        tokens: Token ids.

    Shape:
        - tokens: (B, L) int64
        - returns: (B,) int64, in [0, L)
    """
    if tower.end_id is not None:
        return (tokens == tower.end_id).int().argmax(dim=-1)
    return tokens.argmax(dim=-1)


def longest_caption(tower: TextTower, tokens: Tensor) -> int:
    """Number of places, from the first, that hold everything a feature of the batch can depend on.

    Shape:
        - tokens: (B, L) int64
    """
    if tokens.shape[0] == 0 or tower.trim == "never":
        return tokens.shape[1]
    if tower.trim == "end":
        return int(caption_end(tower, tokens).max()) + 1
    used = (tokens != tower.pad_id).any(dim=0).nonzero()
    return int(used.max()) + 1 if len(used) else 1
