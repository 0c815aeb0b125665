"""CLIPs as transformers lays them out (openai/clip-vit-*, PickScore, google/siglip-*), renamed to open_clip's layout."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# transformers → open_clip, in order
_CLIP_VISION = [
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^visual_projection\.weight$", "visual.proj"),
]
_SIGLIP_VISION = [
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.trunk.patch_embed.proj."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.trunk.pos_embed"),
    (r"^vision_model\.post_layernorm\.", "visual.trunk.norm."),
    (r"^vision_model\.encoder\.layers\.", "visual.trunk.blocks."),
    (r"^vision_model\.head\.probe$", "visual.trunk.attn_pool.latent"),
    (r"^vision_model\.head\.attention\.out_proj\.", "visual.trunk.attn_pool.proj."),
    (r"^vision_model\.head\.layernorm\.", "visual.trunk.attn_pool.norm."),
    (r"^vision_model\.head\.", "visual.trunk.attn_pool."),
]
_TEXT = [
    (r"^text_model\.embeddings\.token_embedding\.", "text.token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "text.positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "text.ln_final."),
    (r"^text_model\.encoder\.layers\.", "text.transformer.resblocks."),
    (r"^text_model\.head\.", "text.text_projection."),
    (r"^text_projection\.weight$", "text.text_projection"),
]
_BLOCK = [
    (r"\.self_attn\.qkv\.", ".attn.in_proj_"),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]
_TIMM_BLOCK = [
    (r"\.self_attn\.qkv\.", ".attn.qkv."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.layer_norm([12])\.", r".norm\1."),
]
_QKV = re.compile(r"^(.*\.self_attn)\.([qkv])_proj\.(weight|bias)$")
_POOL = "visual.trunk.attn_pool"


def is_transformers_layout(state_dict: Mapping[str, Tensor]) -> bool:
    """Return true if these are both towers of a CLIP or SigLIP as transformers names them."""
    return all(any(name.startswith(tower) for name in state_dict) for tower in ("vision_model.", "text_model."))


def transformers_to_open_clip(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a CLIP or SigLIP of transformers; a state_dict in another layout comes back as it is.

    Queries, keys and values, three tensors there, are one here. Positions that are only counted (`position_ids`) are left out.
    """
    if not is_transformers_layout(state_dict):
        return dict(state_dict)
    siglip = any(name.startswith("vision_model.head.") for name in state_dict)
    tensors = {name: tensor for name, tensor in state_dict.items() if not name.endswith("position_ids")}
    renamed: dict[str, Tensor] = {}
    for name, tensor in _joined(tensors).items():
        new = _rename(name, [*(_SIGLIP_VISION if siglip else _CLIP_VISION), *_TEXT])
        renamed[_rename(new, _TIMM_BLOCK if new.startswith("visual.trunk.") else _BLOCK)] = tensor
    return _split_pool(renamed) if siglip else _turned(renamed)


def _rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One tensor where q, k and v have one each; where one is missing or of another shape all stay, and whoever checks the names says so."""
    joined: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = _QKV.match(name)
        parts = [tensors.get(f"{found[1]}.{part}_proj.{found[3]}") for part in "qkv"] if found else []
        whole = [part for part in parts if part is not None]
        if found is None or len(whole) < 3 or len({(part.shape, part.dtype) for part in whole}) > 1 or tensor.ndim == 0:
            joined[name] = tensor
        elif found[2] == "q":
            joined[f"{found[1]}.qkv.{found[3]}"] = torch.cat(whole)
    return joined


def _turned(renamed: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's projections are matrices from the right here, and layers there."""
    for name in ("visual.proj", "text.text_projection"):
        if name in renamed and renamed[name].ndim == 2:
            renamed[name] = renamed[name].T.contiguous()
    return renamed


def _split_pool(renamed: dict[str, Tensor]) -> dict[str, Tensor]:
    """SigLIP's pooling attention has its query apart here, its positions have a batch, and its temperature is a number."""
    for kind in ("weight", "bias"):
        name = f"{_POOL}.attention.in_proj_{kind}"
        if name in renamed and renamed[name].shape[:1].numel() % 3 == 0:  # any other stays, and whoever checks the names says so
            whole = renamed.pop(name)
            query, key, value = whole.chunk(3)
            renamed[f"{_POOL}.q.{kind}"], renamed[f"{_POOL}.kv.{kind}"] = query.clone(), torch.cat([key, value])
    if (positions := renamed.get("visual.trunk.pos_embed")) is not None and positions.ndim == 2:
        renamed["visual.trunk.pos_embed"] = positions.unsqueeze(0)
    return renamed


def config_of_transformers(config: Mapping) -> dict:
    """The open_clip config of a CLIP's config.json; what transformers leaves out there has its default.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is not such a config.
    """
    vision = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", **(config.get("vision_config") or {}),
    }  # fmt: skip
    text = {
        "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
        "max_position_embeddings": 77, "vocab_size": 49408, "hidden_act": "quick_gelu", **(config.get("text_config") or {}),
    }  # fmt: skip
    if vision["hidden_act"] != text["hidden_act"] or text["hidden_act"] not in ("quick_gelu", "gelu"):
        raise ValueError(
            f"its activations are {vision['hidden_act']!r} and {text['hidden_act']!r}, expected gelu or quick_gelu"
        )
    return {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": text["hidden_act"] == "quick_gelu",
        "vision_cfg": {
            "image_size": vision["image_size"],
            "layers": vision["num_hidden_layers"],
            "width": vision["hidden_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            "patch_size": vision["patch_size"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
        },
    }
