"""open_clip's own text Transformers, causal or not."""

from typing import Any

from open_clip.model import CLIP
from open_clip.transformer import TextTransformer

from promptreid.towers.tower import TextTower, Trim


def matches(text: Any) -> bool:
    """Whether a text tower is of this family."""
    return isinstance(text, CLIP | TextTransformer)


def describe(text: Any) -> TextTower:
    """Describe the tower to the prompts."""
    causal = text.attn_mask is not None
    pool_type: str = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", "argmax")
    class_token = getattr(text, "cls_emb", None) is not None
    end_pooled = pool_type in ("argmax", "eos") and not class_token
    trim: Trim = "never"
    # Positions after the end of the caption can reach the feature only if attention looks ahead or the pooling reads
    # the last one; a class token at the end sees only the positions that are not padding, and the one after them.
    if causal and class_token:
        trim = "class_at_end"
    elif causal and end_pooled:
        trim = "end"
    end_id = getattr(text, "text_eos_id", None) or getattr(text, "eos_id", None)
    blocks = tuple(text.transformer.resblocks)
    return TextTower(
        kind=f"open_clip.{type(text).__name__}",
        module=text,
        container=text.transformer,
        blocks=blocks,
        width=text.transformer.width,
        length=int(text.positional_embedding.shape[0]),
        slot=1,
        pooling="class token at the end" if class_token else pool_type,
        position_owner=text,
        causal=causal,
        trim=trim,
        context_length=int(text.context_length),
        vocabulary=int(text.vocab_size),
        pad_id=int(getattr(text, "pad_id", 0)),
        end_id=end_id if pool_type == "eos" else None,
        end_pooled=end_pooled,
        embedding=text.token_embedding,
        heads=int(blocks[0].attn.num_heads),
        behind=int(class_token),
        pooled_at=-1 if class_token else {"first": 0, "last": -1}.get(pool_type),
    )
