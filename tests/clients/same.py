"""A client's `generate` with and without a plug: the same tokens and the same random state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hf_specplug import SpecPlug, attach, detach
from hf_specplug.plug import DEFAULT_DRAFTERS
from tests.helpers.oracle import Replay
from tests.helpers.zoo import FAMILIES

GREEDY: dict[str, Any] = {"do_sample": False}
SEEDED: dict[str, Any] = {"do_sample": True, "temperature": 0.9, "top_k": 40}
NEW = 24  # tokens
NODES = 12  # of a tree: enough that a row could disturb others


def tiny(family: str = "llama", **settings: Any) -> Any:
    """A model of its own, for a client to change."""
    torch.manual_seed(0)
    model: Any = FAMILIES[family].build().eval()
    config = model.generation_config
    config.eos_token_id, config.pad_token_id, config.bos_token_id = None, 0, 1
    config.update(**settings)
    return model


def assert_same(
    target: Any,
    generate: Callable[..., torch.Tensor],
    settings: tuple[dict[str, Any], ...] = (GREEDY, SEEDED),
) -> Outcome:
    """Attach a plug to `target` and call `generate(max_new_tokens=..., ...)` twice with it.

    Half of the plugs know the answer beforehand and draft it among wrong siblings, so that wide
    trees are checked and most of their tokens accepted.
    """
    outcome = Outcome()
    for setting in settings:
        expected, state = _call(generate, setting)
        again, _ = _call(generate, setting)
        assert again.tolist() == expected.tolist(), "the client itself repeats nothing"
        answer = expected[0, -NEW:].tolist()
        for drafters in (Replay(answer), list(DEFAULT_DRAFTERS)):
            plug = attach(target, drafters=drafters, nodes=NODES)  # type: ignore[arg-type]
            outcome.plugs.append(plug)
            try:
                for _ in range(2):
                    found, after = _call(generate, setting)
                    assert found.tolist() == expected.tolist(), dict(plug.stats.fallbacks)
                    assert torch.equal(after, state)
            finally:
                detach(target)
            assert not plug.stats.dropped
            assert plug.stats.calls or plug.stats.fallbacks, "neither drafted nor said why not"
    return outcome


class Outcome:
    """What the plugs of one comparison did."""

    def __init__(self) -> None:
        self.plugs: list[SpecPlug] = []

    @property
    def drafted(self) -> bool:
        """Whether all calls checked trees, and the right drafts saved forward passes."""
        oracle = self.plugs[0].stats
        return not self.reasons and oracle.accept_length > 2

    @property
    def reasons(self) -> list[str]:
        """Why calls were not drafted as trees."""
        return sorted({reason for plug in self.plugs for reason in plug.stats.fallbacks})


def _call(
    generate: Callable[..., torch.Tensor], setting: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    output = generate(max_new_tokens=NEW, **setting)
    return output, torch.get_rng_state()
