"""Which entries a test run takes: a third of all, and always the families that the README names.

Which third goes by the commit, so that all workers of a run take the same one, and all have their
turn. `SWEEP_THIRD=0` (1, 2) chooses it, `SWEEP_THIRD=all` takes everything.
"""

from __future__ import annotations

import os
import subprocess

from tests.sweep.table import ROOT

THIRDS = 3
README = frozenset(
    """
    llama llama4 llama4_text qwen2 qwen2_moe qwen3 qwen3_moe mistral mixtral gemma gemma2 gemma3
    gemma3_text phi3 deepseek_v3 gpt_oss cohere2 olmo2 smollm3 starcoder2 stablelm falcon gpt_neox
    gpt2 gptj gpt_bigcode codegen opt qwen2_vl whisper
    bloom mpt+cache falcon+alibi gpt_neo t5 bart lfm2
    mamba jamba qwen3_next llama+dynamic
    """.split()  # noqa: SIM905
)
"""The entries that the README's table of what is drafted names."""


def third() -> str:
    """The third of this run: "0", "1", "2" or "all"."""
    given = os.environ.get("SWEEP_THIRD")
    if given:
        return given
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return str(int(commit.strip() or "0", 16) % THIRDS)


def chosen(entries: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The entries of this run."""
    which = third()
    if which == "all":
        return entries
    return [
        entry for i, entry in enumerate(entries) if i % THIRDS == int(which) or entry[1] in README
    ]
