"""A tiny model of any entry of transformers' auto mappings: one recipe, by the names of sizes.

Every size field of a configuration and of the configurations inside it is set by its name, the same
name always to the same value, so that what has to fit together does. Layers are kept once for each
kind of layer there is. What no rule can know is in `exceptions.py`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from tests.sweep.exceptions import BUILD, CONFIGS, VARIANTS, stand_ins

MAPPINGS = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "image-text": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "speech": modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
}
ENTRIES = [(mapping, name) for mapping, names in MAPPINGS.items() for name in names]
ENTRIES += [("causal", name) for name in VARIANTS]

VOCAB = 128
WIDTH, FFN, HEADS, KV_HEADS, HEAD, RANK, EXPERTS, WINDOW = 32, 48, 4, 2, 8, 16, 4, 16
LONG = 256  # more than any text of the sweep
TEXT = range(4, 96)  # what prompts are made of: special tokens are below and above
FIXED = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}

# The first rule whose pattern is found in a field's name gives the largest value it may have.
RULES: list[tuple[re.Pattern[str], int]] = [
    (re.compile(pattern), value)
    for pattern, value in [
        (r"^(num_)?(hidden_|encoder_|decoder_|speech_\w+_|t2u_\w+_)?layers$|num_.*layers$", 2),
        (r"^(depth|n_layers?|num_blocks|resampler_depth|layers)$|num_layers_per_stack", 2),
        (r"num_(kv_shared|adapter|residual|conv|lstm|registers)", 1),
        (r"(kv|key_value)_(n_)?heads$|^kv_n_heads$|num_kv_heads", KV_HEADS),
        (r"index(er)?_n_heads", 16),  # with a few, ReLU leaves keys with a score of 0, tied
        (r"heads(_per_layer)?$|^n_head$|^head_num$|^num_groups$", HEADS),
        (r"qk_head_dim", 2 * HEAD),
        (r"rope_head_dim|head_(dim|size)$|^d_(kv|head)$|dim_head$|kv_channels|rotary_dim", HEAD),
        (r"lora_rank|_lowrank$|_rank$", RANK),
        (r"experts_per_tok|moe_(k|topk|top_k)$|^n_group$|num_selected", 2),
        (r"topk_group", 1),
        (r"query_(num|tokens)$|n_latents|num_latents", 4),
        (r"^(num|n)_(routed_|local_)?experts$|moe_num_experts|^zero_expert_num", EXPERTS),
        (r"shared_experts?$", 1),
        (r"first_k_dense_replace|num_dense_layers|num_mtp|num_nextn", 1),
        (r"vocab", VOCAB),
        (
            r"window$|(?<!keep_)window_size|chunk_size$|^local_radius|chunk_length$|window_len",
            WINDOW,
        ),
        (r"^index_topk$|keep_window_size", LONG),  # what crosses it is not drafted: see VARIANTS
        (r"state_size|_d_state$|ssm_state", HEAD),
        (r"intermediate|ffn_(dim|hidden)|feed_forward|^d_?ff$|dim_ff$|mlp_dim|_inner$", FFN),
        (
            r"hidden_(size|dim)$|^hidden_size|_hidden_size|^d_model|^n_embd|embed_dim|emb_dim$",
            WIDTH,
        ),
        (r"embedding_(size|dim)$|^dim$|projection_dim|(input|output)_dim|word_embed_proj", WIDTH),
        (r"(text|vision)_(hidden|output)|^width$|adapter_(in|out)|projector_(in|out)put", WIDTH),
        (r"patch_size$", 4),
        (r"(image|img|crop)_size$", 16),
        (r"mel_bins|feature_size|input_feat", 8),
    ]
]
KEEP = re.compile(r"^(num_labels|chunk_size_feed_forward|chunk_size_lm_head|num_channels)$")
"""Names that a rule would match, but that are no sizes of this kind."""
TOKEN = re.compile(r"(token|patch|start|end|newline)_(id|index)$")
OPTIONAL = {"head_dim": HEAD, "num_key_value_heads": KV_HEADS, "num_experts_per_tok": 2}
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "depth")
INDICES = frozenset({"moe_layers", "full_attn_idxs", "kv_source_layers", "rope_scaling_layers"})
"""Lists that have a value for some layers, by index."""


LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)


class Ids:
    """A token of its own for every special token of a model, the same for the same name."""

    def __init__(self) -> None:
        self.names: dict[str, int] = dict(FIXED)

    def of(self, name: str) -> int:
        return self.names.setdefault(name.replace("_index", "_id"), VOCAB - 1 - self._used)

    @property
    def _used(self) -> int:
        return len(self.names) - len(FIXED)


def shrunk(
    config: PreTrainedConfig, ids: Ids | None = None, changes: dict[str, Any] | None = None
) -> PreTrainedConfig:
    """A configuration of the same kind in the smallest sizes that mean something."""
    ids = ids or Ids()
    settings = _few_layers(config)
    for field in dataclasses.fields(config):
        try:
            value = getattr(config, field.name)
        except Exception:  # some differ by layer, and have no one value
            continue
        name = field.name
        if isinstance(value, PreTrainedConfig):
            settings[name] = shrunk(value, ids)
        elif name in settings:
            continue
        elif TOKEN.search(name) and isinstance(value, int | list) and not isinstance(value, bool):
            settings[name] = ids.of(name)
        elif name in OPTIONAL and value is None:
            settings[name] = OPTIONAL[name]
        elif name == "is_decoder":
            settings[name] = True
        elif isinstance(field.default, int) and not KEEP.match(name):
            settings[name] = _size(name, value, _heads(config))
    for rope in [config.__dict__.get("rope_parameters")]:
        if isinstance(rope, dict) and "mrope_section" in rope:
            settings["rope_parameters"] = {**rope, "mrope_section": [2, 1, 1]}
    settings |= CONFIGS.get(config.model_type, {}) | (changes or {})
    return type(config)(**settings)


def _heads(config: PreTrainedConfig) -> int | None:
    try:
        return getattr(config, "num_attention_heads", None)
    except Exception:  # it differs by layer
        return None


def _size(name: str, value: Any, heads: int | None) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    limit = next((limit for rule, limit in RULES if rule.search(name)), value)
    if limit == KV_HEADS and "heads" in name and value == heads:  # some have to be as many
        limit = HEADS
    return min(value, limit)


def _few_layers(config: PreTrainedConfig) -> dict[str, Any]:
    """Each kind of layer once, at least two layers, where lists say what kind each layer is."""
    own = {field.name for field in dataclasses.fields(config)}
    name = next((name for name in LAYERS if name in own), None)
    count = getattr(config, name, None) if name else None
    if not isinstance(count, int):
        return {}
    lists: dict[str, list[Any]] = {}
    for each in own - INDICES:
        value = config.__dict__.get(each)
        if (
            isinstance(value, list | tuple)
            and len(value) == count
            and not isinstance(value[0], list)
        ):
            lists[each] = list(value)
    if not lists:
        return {}
    kinds = list(zip(*lists.values(), strict=True))
    first = sorted({kind: kinds.index(kind) for kind in reversed(kinds)}.values())
    if len(first) < 2:
        first = list(range(min(2, count)))
    assert name is not None
    few = {key: [_size(key, value[i], None) for i in first] for key, value in lists.items()}
    return {name: len(first), **few}


def model_type(name: str) -> str:
    """The `model_type` of an entry, which for a variant is what comes before the "+"."""
    return name.partition("+")[0]


def config_of(name: str) -> PreTrainedConfig:
    """The tiny configuration of an entry."""
    kind = model_type(name)
    changes = VARIANTS.get(name, {})
    if kind in BUILD:
        return BUILD[kind](shrunk)
    return shrunk(CONFIG_MAPPING[kind](), changes=changes)


def build(mapping: str, name: str, seed: int = 0) -> PreTrainedModel:
    """The seeded model of an entry, in float32 and eval mode."""
    kind = getattr(transformers, MAPPINGS[mapping][model_type(name)])
    config = config_of(name)
    if not isinstance(config, kind.config_class):  # the part of it that writes text
        parts = [part for part in vars(config).values() if isinstance(part, kind.config_class)]
        config = parts[0] if parts else config
    torch.manual_seed(seed)
    with stand_ins():
        model = kind(config).float().eval()
    enliven(model)
    generation = model.generation_config
    generation.eos_token_id, generation.num_beams = None, 1
    for each in ("forced_bos_token_id", "forced_eos_token_id", "no_repeat_ngram_size"):
        setattr(generation, each, None)
    for each, value in FIXED.items():
        if each != "eos_token_id" and getattr(generation, each, None) is None:
            setattr(generation, each, value)
    return model


@torch.no_grad()
def enliven(model: PreTrainedModel, gain: float = 2.5) -> None:
    """Random weights whose greedy text is not one repeated token.

    The usual deviation of 0.02 makes a small model's logits nearly uniform, and zero gates hide
    what they gate. Rows are centered: activations such as GELU have a positive mean, which random
    weights turn into one vector, the same at every position. The head is not tied to the
    embeddings: a token would predict itself.
    """
    for name, module in model.named_modules():
        for key, weight in module.named_parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                weight.normal_(0, 1)
            elif isinstance(module, LINEAR) and weight.dim() > 1:
                rows = weight.t() if isinstance(module, Conv1D) else weight
                fan = rows[0].numel()
                rows.normal_(0, gain / fan**0.5)
                if fan > 1:
                    rows -= rows.flatten(1).mean(1).view(-1, *[1] * (rows.dim() - 1))
            elif "experts" in name and weight.dim() == 3:
                weight.normal_(0, gain / weight.shape[-1] ** 0.5)
            elif not weight.any() and weight.is_floating_point():
                weight.normal_(0, 0.05 if "bias" in key else 0.5)  # else a gate
            elif "norm" in f"{name}.{key}".lower() and weight.dim() == 1:
                weight *= 1 + 0.3 * torch.randn_like(weight)
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        head.weight = nn.Parameter(torch.randn_like(head.weight))
