"""Every architecture that open_clip names, shrunk so that all of them fit on a laptop, without network.

The tests sweep over them, and `tools/coverage_table.py` describes them. Shrunk are layers, widths and vocabulary; the
kind of tower, its pooling, masks, positions and options stay those of the configuration.
"""

import copy
import importlib
import inspect
import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import open_clip
import open_clip.timm_model
import timm
import torch

WIDTH = 32
LAYERS = 3
VOCABULARY = 96
_create_timm_model = timm.create_model
_ConvStem = timm.models.vision_transformer_hybrid.ConvStem
_VitCfg = timm.models.vitamin.VitCfg


def names() -> list[str]:
    """open_clip's own models of images and text.

    Those that other packages registered are left out, and those without a tower for images, such as the audio models
    of open_clip 4.
    """
    return [
        name
        for name in open_clip.list_models()
        if not name.startswith("promptreid") and {"vision_cfg", "text_cfg"} <= open_clip.get_model_config(name).keys()
    ]


def rounds_attention(name: str) -> bool:
    """Whether the text tower rounds its attention to float32 in a float64 model, as T5 of old transformers does."""
    if "mt5" not in name:
        return False
    source = inspect.getsource(importlib.import_module("transformers.models.mt5.modeling_mt5"))
    return "softmax(scores.float()" in source


def shrunken_config(name: str) -> dict[str, Any]:
    """open_clip's configuration of `name` with few, narrow layers."""
    config: dict[str, Any] = copy.deepcopy(open_clip.get_model_config(name))
    config["embed_dim"] = WIDTH
    vision, text = config["vision_cfg"], config["text_cfg"]
    if isinstance(vision.get("layers"), list):
        vision.update(layers=[1, 1, 1, 1], width=8)
    elif "timm_model_name" not in vision:
        vision.update(layers=LAYERS, width=WIDTH, head_width=WIDTH // 2)
        vision.update({key: 2 for key in ("attn_pooler_heads",) if key in vision})
    if "hf_model_name" not in text:
        text.update(layers=LAYERS, width=WIDTH, heads=2, vocab_size=VOCABULARY)
    if "multimodal_cfg" in config:
        config["multimodal_cfg"].update(width=WIDTH, heads=2, layers=1, vocab_size=VOCABULARY)
    return config


def shrunken_timm(name: str, **arguments: Any) -> torch.nn.Module:
    """Stands in for `timm.create_model`: the same network, few and narrow layers."""
    if name.startswith("convnext"):
        arguments.update(depths=(1, 1, 1, 1), dims=(8, 16, 24, WIDTH))
    elif name.startswith("fastvit"):
        arguments.update(layers=_fastvit_layers(name), embed_dims=_fastvit_widths(name))
    elif name.startswith("swin"):
        arguments.update(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4))
    else:
        arguments.update(embed_dim=WIDTH, depth=LAYERS, num_heads=2)
    return _create_timm_model(name, **arguments)


def _fastvit_layers(name: str) -> tuple[int, ...]:
    return (1, 1, 1, 1, 1) if name.endswith(("mci3", "mci4")) else (1, 1, 1, 1)


def _fastvit_widths(name: str) -> tuple[int, ...]:
    return (16, 32, 64, 128, 256) if name.endswith(("mci3", "mci4")) else (8, 16, 32, 64)


def _narrow_stem(*, channels: tuple[int, ...], **arguments: Any) -> torch.nn.Module:
    return _ConvStem(channels=(8,) * (len(channels) - 1) + (WIDTH,), **arguments)


def _narrow_stages(**arguments: Any) -> Any:
    return _VitCfg(**{**arguments, "embed_dim": (8, 16, WIDTH), "depths": (1, 1, 1), "stem_width": 8})


def tiny_hugging_face_config(name: str, **_: Any) -> Any:
    """Stands in for `AutoConfig.from_pretrained`: the same kind of encoder, few and narrow layers."""
    import transformers

    small = {"num_hidden_layers": LAYERS, "vocab_size": VOCABULARY, "num_attention_heads": 2}
    small |= {"intermediate_size": 64, "hidden_size": WIDTH, "max_position_embeddings": 100}
    if "xlm-roberta" in name:
        return transformers.XLMRobertaConfig(**small)
    if "roberta" in name:
        return transformers.RobertaConfig(**small)
    if "mt5" in name:
        return transformers.MT5Config(
            vocab_size=VOCABULARY, d_model=WIDTH, d_kv=16, d_ff=64, num_layers=LAYERS, num_heads=2, num_decoder_layers=1
        )
    return transformers.M2M100Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        max_position_embeddings=100,
    )


@contextmanager
def shrunk() -> Generator[None, None, None]:
    """Inside the block open_clip makes shrunken models of every name, and asks nothing of the network."""
    logging.getLogger().addFilter(_silence)
    try:
        with (
            mock.patch.dict(open_clip.factory._MODEL_CONFIGS, {name: shrunken_config(name) for name in names()}),
            mock.patch.object(open_clip.timm_model.timm, "create_model", shrunken_timm),
            mock.patch("timm.models.vision_transformer_hybrid.ConvStem", _narrow_stem),
            mock.patch("timm.models.vitamin.VitCfg", _narrow_stages),
            mock.patch("open_clip.hf_model.AutoConfig.from_pretrained", tiny_hugging_face_config),
        ):
            yield
    finally:
        logging.getLogger().removeFilter(_silence)


def _silence(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("No pretrained weights loaded")


def tokens_for(name: str, *, batch: int = 3, seed: int = 0) -> torch.Tensor:
    """Captions of different length as the tower's own tokenizer would lay them out, (B, L) int64."""
    text = open_clip.get_model_config(name)["text_cfg"]
    family = text.get("hf_model_name", "")
    length = text.get("context_length", 77)
    pad = 1 if "roberta" in family or "nllb" in family else 0
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((batch, length), pad, dtype=torch.int64)
    for row in range(batch):
        words = min(3 + 4 * row, length - 2)
        tokens[row, 1 : 1 + words] = torch.randint(5, VOCABULARY - 2, (words,), generator=generator)
        tokens[row, 0] = VOCABULARY - 2 if not family else 3
        tokens[row, 1 + words] = text.get("eos_id", VOCABULARY - 1) if not family else 2
    return tokens
