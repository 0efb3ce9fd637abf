"""Every private name of transformers that the package uses is in `hf/`, listed here, and exists.

If a release of transformers removes one, a test here names it, and `grep` in `hf_specplug/hf/`
finds its only use.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CompileConfig, DynamicCache, GenerationConfig, LlamaConfig

import hf_specplug
from tests.helpers.zoo import make

ROOT = Path(hf_specplug.__file__).parent


@cache
def _layer(kind: str) -> Any:
    """A cache layer in use: some of its attributes are set by its first update."""
    layer = getattr(import_module("transformers.cache_utils"), kind)
    made = layer(max_cache_len=8) if kind.startswith("Static") else layer()
    states = torch.zeros(1, 1, 2, 4)
    made.update(states, states)
    return made


@cache
def _prepared() -> GenerationConfig:
    """The config that `generate` hands to a decoding method."""

    def take(model: Any, input_ids: Any, generation_config: GenerationConfig, **_: Any) -> Any:
        return generation_config

    return make("llama").generate(torch.tensor([[5]]), max_new_tokens=1, custom_generate=take)  # type: ignore[no-any-return]


OWNERS = {
    "a prepared config": _prepared,
    "a model": lambda: make("llama"),
    "its config": lambda: LlamaConfig(attn_implementation="sdpa"),
    "GenerationConfig": lambda: GenerationConfig,
    "CompileConfig": lambda: CompileConfig(),
    "DynamicCache": lambda: DynamicCache(),
    "DynamicLayer": lambda: _layer("DynamicLayer"),
    "StaticLayer": lambda: _layer("StaticLayer"),
    "T5's attention": lambda: make("t5").decoder.block[0].layer[0].SelfAttention,
}

PRIVATE = {
    "a model": [
        "_can_compile_fullgraph",
        "_optimize_model_for_decode",
        "_prefill",
        "_prepare_cache_for_generation",
        "_sample",
        "_supports_default_dynamic_cache",
        "_supports_attention_backend",
        "_update_model_kwargs_for_generation",
        "_valid_auto_compile_criteria",
    ],
    "its config": ["_attn_implementation", "_attn_implementation_internal"],
    "a prepared config": ["_pad_token_tensor"],
    "GenerationConfig": ["_get_default_generation_params"],
    "CompileConfig": ["_compile_all_devices"],
    "T5's attention": ["_relative_position_bucket"],
}
"""Names with an underscore, by owner."""

OPTIONAL = {
    "_beam_search": "a mode that generate may name; only compared with",
    "_is_user_defined": "of a cache that the caller gave, asked for with a default",
    "_is_stateful": "of recurrent models only, asked for with a default",
    "_hf_hook": "what accelerate leaves on an offloaded model, asked for with a default",
}
"""Names with an underscore that may be missing: nothing depends on their existence."""

UNDOCUMENTED = {
    "a model": ["get_compiled_call", "get_experts_implementation", "get_decoder"],
    "GenerationConfig": ["get_generation_mode"],
    "DynamicCache": ["activate_past_recording", "get_mask_sizes", "layers"],
    "DynamicLayer": ["keys", "values", "crop", "get_seq_length"],
    "StaticLayer": ["cumulative_length", "max_cache_len"],
    "T5's attention": [
        "relative_attention_bias",
        "relative_attention_max_distance",
        "relative_attention_num_buckets",
    ],
}
"""Names without an underscore that transformers does not document."""

MODULES = [
    ("transformers.activations", "ACT2FN"),
    ("transformers.cache_utils", "CacheLayerMixin"),
    ("transformers.cache_utils", "DynamicSlidingWindowLayer"),
    ("transformers.cache_utils", "StaticSlidingWindowLayer"),
    ("transformers.generation.candidate_generator", "CandidateGenerator"),
    ("transformers.generation.configuration_utils", "GenerationMode"),
    ("transformers.generation.streamers", "BaseStreamer"),
    ("transformers.generation.utils", "GENERATION_MODES_MAPPING"),
    ("transformers.generation.utils", "GenerateDecoderOnlyOutput"),
    ("transformers.generation.utils", "GenerateEncoderDecoderOutput"),
    ("transformers.integrations.deepspeed", "is_deepspeed_zero3_enabled"),
    ("transformers.integrations.fsdp", "is_fsdp_managed_module"),
    ("transformers.integrations.sdpa_attention", "sdpa_attention_forward"),
    ("transformers.masking_utils", "AttentionMaskInterface"),
    ("transformers.masking_utils", "sdpa_mask"),
]
"""Imports from submodules of transformers: (module, name)."""

OF_TORCH = {
    "_buffers",
    "_compiled_call_impl",
    "_dynamo",
    "_foreach_copy_",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_getframe",  # of sys
    "_is_avx512_bf16_supported",
    "_linear_pointwise",
    "_modules",
    "_parameters",
    "_reorder_linear_weight",
    "_version",
}


@pytest.mark.parametrize(
    ("owner", "name"),
    [(o, n) for table in (PRIVATE, UNDOCUMENTED) for o, names in table.items() for n in names],
)
def test_a_name_is_still_there(owner: str, name: str) -> None:
    assert hasattr(OWNERS[owner](), name), f"this transformers has no {name} on {owner} any more"


@pytest.mark.parametrize(("module", "name"), MODULES)
def test_a_module_still_has_it(module: str, name: str) -> None:
    assert hasattr(import_module(module), name), f"this transformers has no {module}.{name}"


def _files() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


@cache
def _own() -> frozenset[str]:
    """Names that the package itself defines."""
    own = set()
    for _, tree in _files():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                    own.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
    return frozenset(own)


def _private(tree: ast.Module) -> set[str]:
    """Private attributes of objects other than `self` and `cls`, and private names in strings."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return {n for n in names if n.startswith("_") and n[1:2] != "_" and n.isidentifier()}


LISTED = {name for names in PRIVATE.values() for name in names} | set(OPTIONAL)


def test_they_stand_in_one_folder_and_are_all_listed() -> None:
    used: set[str] = set()
    for path, tree in _files():
        private = _private(tree)
        if path.parent.name == "hf":
            used |= private & LISTED
            strange = private - LISTED - OF_TORCH - _own()
            assert not strange, f"{path.name} uses {sorted(strange)}: list them here"
        else:
            named = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)} & LISTED
            own = {
                n.attr
                for n in ast.walk(tree)
                if isinstance(n, ast.Attribute)
                and isinstance(n.value, ast.Name)
                and n.value.id in ("self", "cls")
            }
            assert not named - own, f"{path} uses {sorted(named - own)}, which belong in hf/"
            strange = {n for n in private if not n.startswith("_specplug")}
            strange -= LISTED | OF_TORCH | _own()
            assert not strange, f"{path} uses {sorted(strange)}"
    assert used == LISTED, f"no longer used: {sorted(LISTED - used)}"


def test_the_inside_of_transformers_is_imported_in_one_folder() -> None:
    found = set()
    for path, tree in _files():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers."):
                assert path.parent.name == "hf", f"{path} imports from {node.module}"
                found |= {(node.module, alias.name) for alias in node.names}
    documented = {"Cache", "DynamicCache", "DynamicLayer", "EncoderDecoderCache"}
    documented |= {"StaticCache", "StaticLayer"}
    assert {pair for pair in found if pair[1] not in documented} == set(MODULES)
