"""Every model class of the library that is installed, built tiny, with inputs for its forward."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import pkgutil
import re
from collections.abc import Callable, Iterator
from typing import Any

import paddle
from paddle import nn

LIBRARY = "paddlenlp" if importlib.util.find_spec("paddlenlp") else "paddleformers"

#: What a number in a configuration becomes, by its name.
SMALL = [
    (r"(vocab_size|n_words|.*_vocab_size|vocab_size_or|padded_vocab_size)", 99),
    (r"(num_(hidden_|encoder_|decoder_)?layers|n_layers?|(encoder|decoder)_layers)", 3),
    (r"((num_|encoder_|decoder_)?(encoder_|decoder_)?attention_heads|num_\w*heads|n_heads?)", 4),
    (r"(n_head_kv|num_key_value_heads|multi_query_group_num)", 2),
    (r"(\w+_)?(hidden_size|embedding_size|d_model|n_embd|n_embed|emb_dim|projection_dim)", 32),
    (r"(dim|emb_size|embed_proj_dim|word_embed_proj_dim|input_embedding_size|fit_size)", 32),
    (r"(intermediate_size|d_ff|dff|d_inner|n_inner|ffn_dim|\w+_ffn_dim|ffn_hidden_size)", 36),
    (r"(inner_hidden_size|moe_intermediate_size|shared_expert_intermediate_size)", 36),
    (r"(d_kv|d_head|head_dim|kv_channels|attention_head_size|size_per_head)", 8),
    (r"(max_position_embeddings|n_positions|n_ctx|max_len|max_2d_position_embeddings)", 64),
    (r"(seq_length|max_sequence_length|seq_len)", 32),
    (r"(image_size)", 32),
    (r"(patch_size)", 8),
    (r"(rotary_dim|num_landmarks|segment_means_seq_len|num_query_tokens)", 4),
    (r"(conv_kernel_size)", 5),
    (r"(mem_len|memory_len|coordinate_size|shape_size)", 8),
    (r"(num_local_experts|n_routed_experts|num_experts|moe_num_experts)", 2),
    (r"(num_experts_per_tok|n_shared_experts|moe_k|first_k_dense_replace)", 1),
    (r"(n_group|topk_group)", 1),
    (r"(q_lora_rank|kv_lora_rank|qk_nope_head_dim|v_head_dim|qk_rope_head_dim)", 8),
    (r"(type_vocab_size)", 4),
    (r"(entity_vocab_size)", 20),
    (r"(entity_emb_size)", 16),
    (r"(bos_token_id|decoder_start_token_id)", 1),
    (r"(eos_token_id|forced_eos_token_id)", 2),
    (r"(pad_token_id)", 0),
    (r"(mask_token_id|gmask_token_id|sep_token_id|cls_token_id|unk_token_id)", 5),
]
_POOLER = {"pooler_hidden_size": 32, "pooler_dropout": 0.0, "pooler_hidden_act": "gelu"}
_BOXES = {"coordinate_size": 6, "shape_size": 4, "max_2d_position_embeddings": 256}
#: What the rules above get wrong, by configuration class.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "MobileBertConfig": {"true_hidden_size": 16, "intra_bottleneck_size": 16},
    "ReformerConfig": {
        "axial_pos_shape": (4, 16),
        "axial_pos_embds_dim": (16, 16),
        "attn_layers": ["local", "lsh", "local"],
        "feed_forward_size": 36,
        "lsh_attn_chunk_length": 8,
        "local_attn_chunk_length": 8,
        "num_buckets": 2,
        "is_decoder": False,
    },
    "SqueezeBertConfig": {
        "intermediate_size": 64,
        **{f"{one}_groups": 2 for one in ("q", "k", "v")},
        "intermediate_groups": 1,
        "output_groups": 1,
    },
    "FunnelConfig": {"block_sizes": [1, 2, 1], "num_decoder_layers": 2, "block_repeats": [1, 1, 1]},
    "DebertaConfig": _POOLER,
    "DebertaV2Config": _POOLER,
    "NeZhaConfig": {"use_relative_position": True},
    "ErnieLayoutConfig": _BOXES,
    "LayoutXLMConfig": _BOXES,
    "BigBirdConfig": {"block_size": 4, "num_rand_blocks": 1, "window_size": 3},
    "ConvBertConfig": {"num_groups": 1, "head_ratio": 2},
    "LayoutLMv2Config": {**_BOXES, "use_visual_backbone": False},
    "BitConfig": {"embedding_size": 32, "hidden_sizes": [32, 32, 64, 64], "depths": [1, 1, 2, 1]},
    "DPTConfig": {
        "num_hidden_layers": 4,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [4, 8, 8, 8],
        "fusion_hidden_size": 8,
        "is_hybrid": False,
    },
    "SpeechT5Config": {
        "conv_dim": [8, 8],
        "conv_stride": [5, 2],
        "conv_kernel": [10, 3],
        "speech_decoder_prenet_units": 16,
        "speech_decoder_postnet_units": 16,
        "speaker_embedding_dim": 8,
        "encoder_max_relative_position": 8,
    },
    "ChatGLMv2Config": {"num_attention_heads": 4},
    "CLIPSegConfig": {
        "extract_layers": [0, 1, 2],
        "reduce_dim": 8,
        "decoder_intermediate_size": 16,
    },
    "CLIPConfig": {},
    "CTRLConfig": {"embedding_size": 32, "hidden_size": 32},
    "QWenConfig": {"intermediate_size": 64, "seq_length": 32},
    "AlbertConfig": {"num_hidden_groups": 1, "inner_group_num": 1},
    "ErnieConfig": {"use_task_id": True, "task_type_vocab_size": 3},
}
#: Classes that are no networks of their own.
NOT_MEANT = re.compile(r".*(PretrainedModel|PreTrainedModel)$|Auto\w+|.*Pipe$|\w+Inference\w*")


def modules() -> Iterator[Any]:
    logging.disable(logging.CRITICAL)
    try:
        package = importlib.import_module(f"{LIBRARY}.transformers")
        for found in pkgutil.walk_packages(package.__path__, f"{LIBRARY}.transformers."):
            if found.name.rsplit(".", 1)[-1] == "modeling":
                try:
                    yield importlib.import_module(found.name)
                except Exception:
                    continue
    finally:
        logging.disable(logging.NOTSET)


def classes() -> dict[str, type[nn.Layer]]:
    """Every model class by ``family.Class``."""
    base = importlib.import_module(f"{LIBRARY}.transformers").PretrainedModel
    found: dict[str, type[nn.Layer]] = {}
    for module in modules():
        family = module.__name__.split(".")[-2]
        for name, one in vars(module).items():
            if (
                inspect.isclass(one)
                and issubclass(one, base)
                and one.__module__ == module.__name__
                and not NOT_MEANT.fullmatch(name)
                and one.config_class is not None
            ):
                found[f"{family}.{name}"] = one
    return dict(sorted(found.items()))


def small(known: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a configuration, made small; parts that are configurations, too."""
    chosen: dict[str, Any] = {}
    for name, value in known.items():
        if isinstance(value, dict) and name.endswith("_config"):
            chosen[name] = {**value, **small(value)}
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            for pattern, size in SMALL:
                if re.fullmatch(pattern, name):
                    chosen[name] = size if value is not None or "token" not in name else None
        if "dropout" in name and isinstance(value, float):
            chosen[name] = 0.0
    return {name: value for name, value in chosen.items() if value is not None}


def configuration(owner: type) -> Any:
    """The smallest configuration of a model class."""
    kind = owner.config_class
    signature = inspect.signature(kind.__init__).parameters.values()
    known = {one.name: one.default for one in signature if one.default is not one.empty}
    default = kind()
    known.update(default.to_dict())
    chosen = {**small(known), **EXCEPTIONS.get(kind.__name__, {})}
    allowed = {one.name for one in signature} | set(getattr(kind, "attribute_map", {}))
    config = kind(**{name: one for name, one in chosen.items() if name in allowed or name in known})
    for name, one in EXCEPTIONS.get(kind.__name__, {}).items():
        setattr(config, name, one)
    return config


def build(name: str, owner: type) -> nn.Layer:
    """A tiny network of a class."""
    config = configuration(owner)
    if "QFormer" in name and hasattr(config, "qformer_config"):
        config = config.qformer_config
    if name.endswith("WithLMHead"):
        config.is_decoder = True
    asked = inspect.signature(owner.__init__).parameters
    more = [3 for one in ("num_classes", "num_labels") if one in asked]
    return owner(config, *more)


def call(network: nn.Layer) -> Callable[[], Any]:
    """A forward of a network of a library with inputs that its signature asks for."""
    names = inspect.signature(network.forward).parameters
    kind = type(network).__name__
    length = 32 if kind.startswith("BigBird") else 8
    ids = paddle.arange(8, 8 + 2 * length).reshape([2, length])
    ids[:, -1] = 2  # where some look for the end
    places = paddle.arange(length).tile([2, 1])
    ones = paddle.ones([2, length], "int64")
    known: dict[str, Any] = {
        "input_ids": paddle.stack([ids, ids], axis=1) if "MultipleChoice" in kind else ids,
        "token_type_ids": None,
        "decoder_input_ids": ids,
        "pixel_values": paddle.rand([2, 3, 32, 32]),
        "bbox": paddle.zeros([2, 8, 4], "int64"),
        "image": paddle.rand([2, 3, 224, 224]),
        "entity_ids": paddle.ones([2, 2], "int64"),
        "entity_position_ids": paddle.ones([2, 2, 4], "int64"),
        "entity_attention_mask": paddle.ones([2, 2]),
        "entity_start_positions": paddle.ones([2, 2], "int64"),
        "entity_end_positions": paddle.ones([2, 2], "int64"),
        "pinyin_ids": paddle.zeros([2, 8, 8], "int64"),
        "generator_labels": ids,
        "raw_input_ids": ids,
        "candidate_ids": paddle.ones([2, 8, 5], "int64"),
        "input_values": paddle.rand([2, 400]),
        "decoder_input_values": paddle.rand([2, 8, 80]),
        "speaker_embeddings": paddle.rand([2, 8]),
        "input_features": paddle.rand([2, 1, 128, 64]),
    }
    if kind.startswith("ErnieDoc"):
        known["memories"] = [paddle.zeros([2, 8, 32]) for _ in range(3)]
        known["input_ids"] = ids.unsqueeze(-1)
        known["token_type_ids"] = paddle.zeros([2, 8, 1], "int64")
        known["position_ids"] = paddle.arange(24).reshape([1, 24, 1]).tile([2, 1, 1])
        known["attn_mask"] = paddle.ones([2, 8, 1])
    if kind.startswith(("UNIMO", "UnifiedTransformer")):
        known["position_ids"] = places
    if kind.startswith(("ErnieCtm", "GPTJ", "Mixtral")):
        known["attention_mask"] = ones
    if kind.startswith(("UTC", "ErnieLayout", "UIEX")):
        known |= {"token_type_ids": ones * 0, "position_ids": places, "attention_mask": ones}
        known |= {"omask_positions": ones[:, :2].unsqueeze(0), "cls_positions": ones[:, :1]}
    if kind.startswith(("ChatGLM", "GLM")):
        known["attention_mask"] = paddle.ones([2, 1, 8, 8])
        known["position_ids"] = paddle.stack([places, places], axis=1)
    given = {name: one for name, one in known.items() if name in names and one is not None}
    if "input_ids" not in names and "pixel_values" not in names:
        first = next(iter(names))
        given = {first: ids, **given}
    return lambda: network(**given)
