"""What a tiny model is asked: text with repetition in it, padded text, pictures, sound.

How a family takes pictures is found by trying: the usual shapes, and as many placeholders as its
own `get_image_features` gives vectors. What is not found so is in `media.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from tests.sweep import media
from tests.sweep.recipe import TEXT

Inputs = dict[str, Any]


class NotFed(Exception):
    """No way was found to give a model a picture or sound."""


def text(model: PreTrainedModel, length: int = 24, seed: int = 1, pads: int = 0) -> Inputs:
    """Random tokens, some of which come again; `pads` of padding on the left."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(TEXT.start, TEXT.stop, (1, length), generator=generator)
    ids[0, -4:] = ids[0, 2:6]
    ids[0, 10:14] = ids[0, 2:6]
    mask = torch.ones_like(ids)
    ids[0, :pads] = model.generation_config.pad_token_id or 0
    mask[0, :pads] = 0
    return {"input_ids": ids, "attention_mask": mask}


def prompt(model: PreTrainedModel) -> Inputs:
    """Text, with what a model cannot do without, or only that."""
    needed = media.NEEDED.get(model.config.model_type)
    if needed is not None:
        return needed(text(model))
    name, kind = model.main_input_name, type(model).__name__
    hears = model.config.is_encoder_decoder and name != "input_ids"
    if kind.endswith("ForSpeechToText") or (hears and not kind.endswith("ForTextToText")):
        ways = _pixels(model) if "pixel" in name else list(_sounds(model))
        return first_that_runs(model, ways)
    words = text(model)
    try:
        return first_that_runs(model, [words])
    except Exception:
        shown = pictures(model)
        if shown is None:
            raise
        return shown


def pictures(model: PreTrainedModel) -> Inputs | None:
    """A prompt with a picture or sound in it; None if the model takes none, or always has it."""
    kind = model.config.model_type
    names = _names(model)
    if kind in media.NEEDED or model.config.is_encoder_decoder:
        return None
    ways: list[tuple[Inputs, str]] = []
    if kind in media.PICTURES:
        ways = [(media.PICTURES[kind](model), "image")]
    elif "pixel_values" in names:
        ways = [(way, "image") for way in _pixels(model)]
    elif {"input_features", "input_values"} & names:
        ways = [(way, "audio") for way in _sounds(model)]
    if not ways:
        return None
    problems: list[str] = []
    for way, what in ways:
        try:
            return first_that_runs(model, _with_placeholders(model, way, what))
        except Exception as problem:
            problems.append(f"{type(problem).__name__}: {str(problem)[:120]}")
    raise NotFed(min(problems, key=lambda said: "match" not in said))


def first_that_runs(model: PreTrainedModel, ways: list[Inputs]) -> Inputs:
    problem: Exception = NotFed("nothing to try")
    for way in ways:
        try:
            type(model).generate(model, **way, max_new_tokens=2, do_sample=False)
            return way
        except Exception as error:
            if isinstance(problem, NotFed):
                problem = error
    raise problem


def _names(model: PreTrainedModel) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def _pixels(model: PreTrainedModel) -> list[Inputs]:
    """Pictures in the usual shapes."""
    names = _names(model)
    vision = getattr(model.config, "vision_config", model.config)
    patch = getattr(vision, "patch_size", 4)
    patch = patch if isinstance(patch, int) else patch[0]
    if "image_grid_thw" in names:
        thick = getattr(vision, "temporal_patch_size", None) or 1
        grid = torch.tensor([[1, 4, 4]])
        extra = {"image_merge_sizes": torch.tensor([2])} if "image_merge_sizes" in names else {}
        shapes = [(16, 3 * thick * patch**2), (16, 3, patch, patch), (16, 6 * patch**2)]
        return [{"pixel_values": _noise(*s), "image_grid_thw": grid, **extra} for s in shapes]
    sizes = [getattr(vision, "image_size", 16), 16, 32]
    ways = []
    for size in dict.fromkeys(size if isinstance(size, int) else size[0] for size in sizes):
        for lead in ((1,), (1, 1), (1, 2)):
            pixels = {"pixel_values": _noise(*lead, 3, size, size)}
            if "image_sizes" in names:
                ways.append({**pixels, "image_sizes": torch.tensor([[size, size]])})
            ways.append(pixels)
    return ways


def _sounds(model: PreTrainedModel) -> Iterator[Inputs]:
    """Sound in the usual shapes: mel bins by frames, the other way around, or a wave."""
    names = _names(model)
    if "input_features" in names:
        masks = {"input_features_mask", "feature_attention_mask"} & names
        parts = [model.config, *vars(model.config).values()]
        limits = [getattr(part, "max_source_positions", None) for part in parts]
        frames = [2 * limit for limit in limits if isinstance(limit, int)]
        bins = [getattr(part, "num_mel_bins", None) for part in parts]
        bins = [each for each in bins if isinstance(each, int)]
        for count in dict.fromkeys([*frames, 64, 80]):
            for mel in dict.fromkeys([*bins, 8, 32, 80]):
                mask = dict.fromkeys(masks, torch.ones(1, count, dtype=torch.long))
                for shape in ((1, mel, count), (1, count, mel)):
                    yield {"input_features": _noise(*shape), **mask}
    if {"input_values", "inputs"} & names:
        yield {"input_values": _noise(1, 1600)}
        yield {"input_values": _noise(1, 16000)}


def _with_placeholders(model: PreTrainedModel, way: Inputs, what: str) -> list[Inputs]:
    """Prompts with as many placeholders as there are vectors; where nobody says, all up to 40."""
    token = next(
        (
            value
            for name in (f"{what}_token_id", f"{what}_token_index", f"{what}_patch_id")
            if (value := getattr(model.config, name, None)) is not None
        ),
        None,
    )
    if token is None:
        return [{**text(model), **way}]
    count = _count(model, way, what)
    counts = range(1, 41) if count is None else [count]
    return [_around(model, int(token), each, way) for each in counts]


def _around(model: PreTrainedModel, token: int, count: int, way: Inputs) -> Inputs:
    names = _names(model)
    ids = text(model)["input_ids"]
    ids = torch.cat([ids[:, :8], torch.full((1, count), token), ids[:, 8:]], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **way}
    for name in ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"):
        if name in names:
            inputs[name] = (ids == token).long()
    return inputs


@torch.no_grad()
def _count(model: PreTrainedModel, way: Inputs, what: str) -> int | None:
    """How many vectors a picture or sound becomes."""
    for part in (model, getattr(model, "model", None)):
        method = getattr(part, f"get_{what}_features", None)
        if method is None:
            continue
        taken = inspect.signature(method).parameters
        rest = {"args", "kwargs"} <= set(taken)
        try:
            found = method(**{k: v for k, v in way.items() if rest or k in taken})
        except Exception:  # it may be used in another way
            continue
        found = getattr(found, "pooler_output", found)
        parts = found if isinstance(found, list | tuple) else [found]
        if all(isinstance(each, torch.Tensor) for each in parts):
            return sum(each.numel() // each.shape[-1] for each in parts)
    return None
