"""How the attention of a block computes, so that it can be given further keys and values.

A hook on the attention module would see its input and its output only; keys and values are made in between, at another
point in each library. So each class of attention module that open_clip's towers are made of is written out here, from
its own weights, with one step more. What is not in the table is not guessed.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from promptreid.towers.modes import evaluating
from promptreid.towers.tower import TokenTower

# From the keys and the values of a batch, (B, heads, L, d) each, to those that attention is to see, P more in front.
Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class SelfAttention:
    """The attention of one block.

    Attributes:
        module: The attention module.
        heads: Number of heads.
        width: Size of the keys of all heads together.
        attend: From the module, an `Extend` and the module's own arguments, what the module would return.
    """

    module: nn.Module
    heads: int
    width: int
    attend: Callable[..., Any]


def attentions_of(tower: TokenTower) -> tuple[SelfAttention, ...]:
    """The attention of every block.

    Raises:
        ValueError: It is of a class whose keys and values are not known; says which.
    """
    return tuple(_attention_of(tower, block) for block in tower.blocks)


def _attention_of(tower: TokenTower, block: nn.Module) -> SelfAttention:
    for module in block.modules():
        kind = f"{type(module).__module__.split('.')[0]}.{type(module).__name__}"
        own: Any = module
        shared = getattr(own, "num_kv_groups", 1) > 1  # heads that share keys, which no tower of open_clip has
        if kind in _ATTENTIONS and not shared and not (kind.startswith("transformers.") and _before_transformers_5()):
            heads = next(int(getattr(own, name)) for name in _HEADS if hasattr(own, name))
            return SelfAttention(module, heads, heads * _head_width(own, heads), partial(_ATTENTIONS[kind], module))
    raise ValueError(
        f"the blocks of this {tower.kind} are of the class {type(block).__qualname__}, and no attention is found in "
        "them that can be given further keys and values (in Hugging Face towers: from transformers 5 on); choose "
        'kind="independent"'
    )


_HEADS = ("num_heads", "num_attention_heads", "n_heads")


def _head_width(own: Any, heads: int) -> int:
    for name in ("head_dim", "attention_head_size", "key_value_proj_dim"):
        if hasattr(own, name):
            return int(getattr(own, name))
    return int(own.embed_dim) // heads


def _before_transformers_5() -> bool:
    """Whether transformers is one whose attention modules take and return other things."""
    return int(sys.modules["transformers"].__version__.split(".")[0]) < 5


def block_states(tower: TokenTower, attentions: tuple[SelfAttention, ...], run: Callable[[], Any]) -> list[Tensor]:
    """The keys and the values that every block makes, heads side by side: (2, B, L, width) float32 each.

    Args:
        tower: The tower; it is run in eval mode and put back.
        attentions: Of its blocks.
        run: Sends a batch through the tower.
    """
    seen: list[Tensor] = []

    def note(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(rearrange(torch.stack([keys, values]), "s b h l d -> s b l (h d)").float())
        return keys, values

    stood_in = [vars(each.module).get("forward") for each in attentions]
    for each in attentions:
        vars(each.module)["forward"] = partial(each.attend, note)
    try:
        with evaluating(tower.module), torch.no_grad():
            run()
    finally:
        for each, before in zip(attentions, stood_in, strict=True):
            vars(each.module).pop("forward")
            if before is not None:
                vars(each.module)["forward"] = before
    return seen


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    extend: Extend,
    *,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    sequence_first: bool = False,
) -> Tensor:
    """Attention over the extended keys and values, which every query may look at.

    Shape:
        - queries: (B, heads, Q, d), keys, values: (B, heads, L, d)
        - mask: what spreads to (B, heads, Q, L); additive, or boolean where true may be looked at
        - returns: (B, Q, heads * d), or (Q, B, heads * d) for `sequence_first`, contiguous
    """
    more, more_values = extend(keys, values)
    if mask is not None:
        further = more.shape[-2] - keys.shape[-2]
        mask = F.pad(mask, (further, 0), value=1.0 if mask.dtype == torch.bool else 0.0)
        mask = mask if mask.dtype == torch.bool else mask.to(queries.dtype)
    found = F.scaled_dot_product_attention(queries, more, more_values, attn_mask=mask, dropout_p=dropout, scale=scale)
    return rearrange(found, "b h l d -> l b (h d)" if sequence_first else "b h l d -> b l (h d)").contiguous()


def _torch(
    module: Any,
    extend: Extend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    need_weights: bool = False,
    attn_mask: Tensor | None = None,
) -> tuple[Tensor, None]:
    """As `torch.nn.MultiheadAttention`, as open_clip's blocks call it: without weights, and `value` is `key`."""
    pattern = "b l (s h d) -> s b h l d" if module.batch_first else "l b (s h d) -> s b h l d"
    weight, bias, width = module.in_proj_weight, module.in_proj_bias, module.embed_dim
    if query is key:
        queries, keys, values = rearrange(F.linear(query, weight, bias), pattern, s=3, h=module.num_heads)
    else:  # queries of fewer tokens
        biases = (None, None) if bias is None else (bias[:width], bias[width:])
        (queries,) = rearrange(F.linear(query, weight[:width], biases[0]), pattern, s=1, h=module.num_heads)
        keys, values = rearrange(F.linear(key, weight[width:], biases[1]), pattern, s=2, h=module.num_heads)
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = rearrange(attn_mask, "(b h) q k -> b h q k", h=module.num_heads)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = ~attn_mask  # here true is what may not be looked at
    dropout, first = module.dropout if module.training else 0.0, not module.batch_first
    found = attend(queries, keys, values, extend, mask=attn_mask, dropout=dropout, sequence_first=first)
    # Its weight is taken, and it is not called, as in the module's own forward. What it is given is contiguous: with
    # a frozen weight, the gradient of a transposed one would take many times as long (see `runs_slow_when_frozen`).
    return F.linear(found, module.out_proj.weight, module.out_proj.bias), None


def _dropout(module: Any) -> float:
    return module.attn_drop.p if module.training else 0.0


def _timm(module: Any, extend: Extend, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """As timm's `Attention` of ViT, SigLIP and ViTamin."""
    queries, keys, values = rearrange(module.qkv(x), "b l (s h d) -> s b h l d", s=3, h=module.num_heads)
    found = attend(
        module.q_norm(queries), module.k_norm(keys), values, extend, mask=attn_mask, dropout=_dropout(module)
    )
    return _timm_output(module, x, found)


def _timm_output(module: Any, x: Tensor, found: Tensor) -> Tensor:
    if hasattr(module, "norm"):
        found = module.norm(found)
    if getattr(module, "gate", None) is not None:
        found = found * module.gate(x).sigmoid()
    return module.proj_drop(module.proj(found))


def _relative(module: Any, extend: Extend, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
    """As timm's `RelPosAttention`."""
    queries, keys, values = rearrange(module.qkv(x), "b l (s h d) -> s b h l d", s=3, h=module.num_heads)
    bias = shared_rel_pos if module.rel_pos is None else module.rel_pos.get_bias()
    found = attend(module.q_norm(queries), module.k_norm(keys), values, extend, mask=bias, dropout=_dropout(module))
    return _timm_output(module, x, found)


def _eva(
    module: Any,
    extend: Extend,
    x: Tensor,
    rope: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """As timm's `EvaAttention` and `AttentionRope` of EVA and PE: the patches' queries and keys are turned."""
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat

    if module.qkv is None:
        parts = [rearrange(each(x), "b l (h d) -> b h l d", h=module.num_heads)
                 for each in (module.q_proj, module.k_proj, module.v_proj)]  # fmt: skip
    else:
        states = module.qkv(x)
        if getattr(module, "q_bias", None) is not None:
            states = states + torch.cat((module.q_bias, module.k_bias, module.v_bias))
        parts = list(rearrange(states, "b l (s h d) -> s b h l d", s=3, h=module.num_heads))
    queries, keys, values = module.q_norm(parts[0]), module.k_norm(parts[1]), parts[2]
    if rope is not None:
        first, half = module.num_prefix_tokens, getattr(module, "rotate_half", False)
        turn: Any = partial(apply_rot_embed_cat, emb=rope, **({"half": True} if half else {}))  # older timm lacks it
        queries, keys = (
            torch.cat([part[:, :, :first], turn(part[:, :, first:])], dim=2).type_as(values) for part in (queries, keys)
        )
    found = attend(queries, keys, values, extend, mask=attn_mask, dropout=_dropout(module))
    return _timm_output(module, x, found)


def _split(module: Any, projections: tuple[str, str, str], states: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values by three projections of a Hugging Face attention."""
    heads = next(int(getattr(module, name)) for name in _HEADS if hasattr(module, name))
    return tuple(rearrange(getattr(module, name)(states), "b l (h d) -> b h l d", h=heads) for name in projections)


def _roberta(
    module: Any, extend: Extend, hidden_states: Tensor, attention_mask: Tensor | None = None, **rest: Any
) -> tuple[Tensor, None]:
    """As transformers' self-attention of BERT, RoBERTa and XLM-R."""
    queries, keys, values = _split(module, ("query", "key", "value"), hidden_states)
    dropout = module.dropout.p if module.training else 0.0
    return attend(queries, keys, values, extend, mask=attention_mask, dropout=dropout, scale=module.scaling), None


def _m2m(
    module: Any, extend: Extend, hidden_states: Tensor, attention_mask: Tensor | None = None, **rest: Any
) -> tuple[Tensor, None]:
    """As transformers' `M2M100Attention` of NLLB."""
    queries, keys, values = _split(module, ("q_proj", "k_proj", "v_proj"), hidden_states)
    dropout = module.dropout if module.training else 0.0
    found = attend(queries, keys, values, extend, mask=attention_mask, dropout=dropout, scale=module.scaling)
    return module.out_proj(found), None


def _t5(
    module: Any,
    extend: Extend,
    hidden_states: Tensor,
    mask: Tensor | None = None,
    key_value_states: None = None,
    position_bias: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, Tensor, None]:
    """As transformers' `T5Attention`; its first block makes the bias by position, and hands it on."""
    queries, keys, values = _split(module, ("q", "k", "v"), hidden_states)
    length = hidden_states.shape[1]
    bias: Tensor = (
        position_bias if position_bias is not None else module.compute_bias(length, length, device=hidden_states.device)
    )
    shown = bias
    if mask is not None:
        shown = shown.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else shown + mask
    dropout = module.dropout if module.training else 0.0
    found = attend(queries, keys, values, extend, mask=shown, dropout=dropout, scale=module.scaling)
    return module.o(found), bias, None


# By the package and the name of the class.
_ATTENTIONS: dict[str, Callable[..., Any]] = {
    "torch.MultiheadAttention": _torch,
    "timm.Attention": _timm,
    "timm.RelPosAttention": _relative,
    "timm.AttentionRope": _eva,
    "timm.EvaAttention": _eva,
    "transformers.BertSelfAttention": _roberta,
    "transformers.RobertaSelfAttention": _roberta,
    "transformers.XLMRobertaSelfAttention": _roberta,
    "transformers.M2M100Attention": _m2m,
    "transformers.T5Attention": _t5,
    "transformers.MT5Attention": _t5,
}
