"""A real tokenizer without a download: byte-level BPE that has not merged anything yet."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BYTES = 256
FIRST = ("<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|end|>")


def byte_tokenizer(special: Sequence[str] = (), **named: str) -> PreTrainedTokenizerFast:
    """Bytes, then `FIRST`, then the special tokens of a family.

    Args:
        special: further special tokens.
        named: special tokens that processors look for by name: `image_token="<image>"` is then
            `tokenizer.image_token`.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*FIRST, *special, *named.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        extra_special_tokens=named,
    )
