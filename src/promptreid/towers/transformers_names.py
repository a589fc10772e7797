"""transformers' CLIPModel and SiglipModel, and open_clip's: names and layout of weights, one table read both ways."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from promptreid.errors import UnsupportedTowerError, explain_missing_transformers
from promptreid.towers.names import siglip_config
from promptreid.towers.tower import image_size_of

# Of SiglipModel where nothing beside the weights says it; CLIPModel's are those that open_clip takes unasked.
SIGLIP_PREPROCESSING: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
MARK = r"vision_model\.embeddings\."

SIGLIP_MARK = "vision_model.head.probe"

_BLOCKS = {
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.": ".attn.in_proj_",  # of query, key and value, which open_clip stacks
}
_TEXT = {
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
}
_CLIP = _TEXT | {
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
}
_SIGLIP = {name: f"text.{own}" for name, own in _TEXT.items()} | {
    "text_model.head.": "text.text_projection.",
    "vision_model.encoder.layers.": "visual.trunk.blocks.",
    "vision_model.embeddings.patch_embedding.": "visual.trunk.patch_embed.proj.",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.post_layernorm.": "visual.trunk.norm.",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.out_proj.": "visual.trunk.attn_pool.proj.",
    "vision_model.head.attention.": "visual.trunk.attn_pool.",
    "vision_model.head.layernorm.": "visual.trunk.attn_pool.norm.",
    "vision_model.head.mlp.": "visual.trunk.attn_pool.mlp.",
}
_TIMM_BLOCKS = {
    ".self_attn.out_proj.": ".attn.proj.",
    ".layer_norm1.": ".norm1.",
    ".layer_norm2.": ".norm2.",
    ".self_attn.": ".attn.qkv.",
}
_PARTS = ("q_proj", "k_proj", "v_proj")
_POOL = "vision_model.head.attention.in_proj_"  # transformers stacks what open_clip keeps as q and kv
_TRANSPOSED = ("text_projection", "visual.proj")


def open_clip_name(name: str, *, siglip: bool) -> tuple[str, int | None]:
    """open_clip's name of a weight of transformers', and which third of it that is; `None` for the whole.

    Example:
        >>> open_clip_name("text_model.encoder.layers.3.self_attn.k_proj.bias", siglip=False)
        ('transformer.resblocks.3.attn.in_proj_bias', 1)
    """
    table = _SIGLIP if siglip else _CLIP
    part = next((index for index, each in enumerate(_PARTS) if f".{each}." in name and ".layers." in name), None)
    own = re.sub(r"\.[qkv]_proj\.", ".", name) if part is not None else name
    own = next((own.replace(start, other, 1) for start, other in table.items() if own.startswith(start)), own)
    blocks = _TIMM_BLOCKS if own.startswith("visual.trunk.blocks.") else _BLOCKS
    if ".resblocks." in own or ".blocks." in own:
        own = next((own.replace(middle, other, 1) for middle, other in blocks.items() if middle in own), own)
    return own, part


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a CLIPModel or SiglipModel under open_clip's names, in its layout."""
    siglip = SIGLIP_MARK in tensors
    whole: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(_POOL):
            kind = name.removeprefix(_POOL)
            width = value.shape[0] // 3
            whole[f"visual.trunk.attn_pool.q.{kind}"], whole[f"visual.trunk.attn_pool.kv.{kind}"] = (
                value[:width],
                value[width:],
            )
            continue
        own, part = open_clip_name(name, siglip=siglip)
        if part is not None:
            parts.setdefault(own, {})[part] = value
        else:
            whole[own] = _laid_out(own, value)
    return whole | {name: torch.cat([each[index] for index in sorted(each)]) for name, each in parts.items()}


def to_transformers(clip: nn.Module) -> Any:
    """An open_clip model as transformers' `CLIPModel` or `SiglipModel`, so that what was fine-tuned is used there.

    Args:
        clip: A bare open_clip model with OpenAI's or SigLIP's towers, for square images.

    Returns:
        The model of transformers, in eval mode; it has its own weights.

    Raises:
        UnsupportedTowerError: transformers has no such towers, or takes no images that are not square.
        MissingExtraError: transformers is not installed.

    Example:
        >>> from promptreid import load_clip
        >>> clip = load_clip("promptreid-tiny", pretrained="generated_v3", image_size=(64, 64))
        >>> type(to_transformers(clip)).__name__  # doctest: +SKIP
        'CLIPModel'
    """
    state = clip.state_dict()
    siglip = "visual.trunk.attn_pool.latent" in state
    height, width = image_size_of(clip)
    if height != width:
        raise UnsupportedTowerError(
            f"this model takes images of ({height}, {width}), and transformers' CLIP square ones; load it again with a "
            f"square image_size, such as ({max(height, width)}, {max(height, width)})"
        )
    with explain_missing_transformers("to_transformers"):
        import transformers  # an extra, and slow to import
    try:
        text, vision, rest = _foreign_setup(clip, state, siglip=siglip)
        make = "Siglip" if siglip else "CLIP"
        config = getattr(transformers, f"{make}Config")(text_config=text, vision_config=vision, **rest)
        model = getattr(transformers, f"{make}Model")(config)
        own = model.state_dict()
        weights = _under_their_names(state, own, siglip=siglip)
        if from_transformers(weights).keys() != state.keys():
            raise KeyError(*sorted(state.keys() - from_transformers(weights).keys()))
        model.load_state_dict(weights)
    except (KeyError, AttributeError, RuntimeError) as error:
        raise UnsupportedTowerError(
            "transformers has no CLIPModel or SiglipModel with the towers of this model; OpenAI's and SigLIP's towers "
            f"can be converted ({type(error).__name__}: {error})"
        ) from error
    return model.eval()


def _foreign_setup(
    clip: Any, state: Mapping[str, Tensor], *, siglip: bool
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Arguments of transformers' configurations: of the text tower, of the image tower, of both."""
    side = "text." if siglip else ""
    tower = getattr(clip, "text", clip)
    if siglip:
        blocks, patches, feed = "visual.trunk.blocks.", "visual.trunk.patch_embed.proj.weight", "mlp.fc1.weight"
    else:
        blocks, patches, feed = "visual.transformer.resblocks.", "visual.conv1.weight", "mlp.c_fc.weight"
    image_heads: int = clip.get_submodule(f"{blocks}0.attn").num_heads

    def shared(prefix: str, hidden: str, heads: int) -> dict[str, Any]:
        rows, width = state[f"{prefix}0.{hidden}"].shape
        depth = len({name.split(".")[prefix.count(".")] for name in state if name.startswith(prefix)})
        return {
            "hidden_size": width,
            "intermediate_size": rows,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "hidden_act": _activation(clip.get_submodule(f"{prefix}0.mlp")),
        }

    resblocks = f"{side}transformer.resblocks."
    text = shared(resblocks, "mlp.c_fc.weight", tower.transformer.resblocks[0].attn.num_heads)
    text["vocab_size"] = state[f"{side}token_embedding.weight"].shape[0]
    text["max_position_embeddings"] = state[f"{side}positional_embedding"].shape[0]
    vision = shared(blocks, feed, image_heads)
    vision |= {"image_size": image_size_of(clip)[0], "patch_size": state[patches].shape[-1]}
    if siglip:
        return text, vision, {}
    # transformers pools at the largest token id, as open_clip does, where the end token's id is stated to be 2.
    return text | {"eos_token_id": 2}, vision, {"projection_dim": state["text_projection"].shape[1]}


def _activation(layer: nn.Module) -> str:
    """Transformers' name of what a block computes between its two linear layers."""
    for part in layer.children():
        if isinstance(part, QuickGELU):
            return "quick_gelu"
        if type(part).__name__ == "GELUTanh" or getattr(part, "approximate", "") == "tanh":
            return "gelu_pytorch_tanh"
    return "gelu"


def _under_their_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, siglip: bool) -> dict[str, Tensor]:
    """open_clip's weights under transformers' names, in its layout; `KeyError` if one is not there."""
    out: dict[str, Tensor] = {}
    for name, like in own.items():
        if name.startswith(_POOL):
            kind = name.removeprefix(_POOL)
            out[name] = torch.cat([state[f"visual.trunk.attn_pool.{each}.{kind}"] for each in ("q", "kv")])
        else:
            theirs, part = open_clip_name(name, siglip=siglip)
            value = state[theirs]
            out[name] = _laid_out(theirs, value, back=True) if part is None else value.chunk(3)[part]
            if name.startswith("logit_"):
                out[name] = out[name].reshape(like.shape)
    return out


def _laid_out(own: str, value: Tensor, *, back: bool = False) -> Tensor:
    """A weight in the other library's layout."""
    if own in _TRANSPOSED:
        return value.t().contiguous()
    if own == "visual.trunk.pos_embed":
        return value[0] if back else value.unsqueeze(0)
    return value


def open_clip_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's model configuration of the `config.json` of a CLIPModel, or of a SiglipModel that open_clip lists.

    Raises:
        KeyError, TypeError, ValueError, ZeroDivisionError: The configuration is of another model.
    """
    if config.get("model_type") == "siglip":
        found = siglip_config(config)
        if found is None:
            raise ValueError("open_clip lists no SigLIP with these numbers of layers, widths, patches and tokens")
        return found
    vision, text = config["vision_config"], config["text_config"]

    def tower(stated: Mapping[str, Any], width: int, layers: int, heads: int) -> dict[str, Any]:
        size = int(stated.get("hidden_size", width))
        return {
            "width": size,
            "layers": int(stated.get("num_hidden_layers", layers)),
            "heads": int(stated.get("num_attention_heads", heads)),
            "mlp_ratio": stated.get("intermediate_size", 4 * width) / size,
        }

    image = tower(vision, 768, 12, 12)
    image["head_width"] = image["width"] // image.pop("heads")
    return {
        "embed_dim": int(config.get("projection_dim", 512)),
        "quick_gelu": says_quick_gelu(config),
        "vision_cfg": {
            **image,
            "image_size": vision.get("image_size", 224),
            "patch_size": vision.get("patch_size", 32),
        },
        "text_cfg": {
            **tower(text, 512, 12, 8),
            "context_length": text.get("max_position_embeddings", 77),
            "vocab_size": text.get("vocab_size", 49408),
        },
    }


def says_quick_gelu(config: Mapping[str, Any]) -> bool:
    """Whether transformers' configuration of a model computes QuickGELU, which is CLIPModel's default.

    Raises:
        ValueError: Its towers compute different activations, or one that open_clip does not have.
    """
    default = "quick_gelu" if config.get("model_type", "clip") == "clip" else "gelu_pytorch_tanh"
    towers: list[Mapping[str, Any]] = [config.get(f"{tower}_config") or {} for tower in ("text", "vision")]
    found = [str(tower.get("hidden_act", default)) for tower in towers]
    if (
        any(name != "quick_gelu" and not name.startswith("gelu") for name in found)
        or len({name == "quick_gelu" for name in found}) > 1
    ):
        raise ValueError(f"its towers compute {' and '.join(found)}; open_clip computes QuickGELU or GELU in both")
    return found[0] == "quick_gelu"
