"""What the rows of a batch share: all that drafters learn, from the first call on."""

from __future__ import annotations

import torch

from hf_specplug import SpecPlug
from tests.helpers.zoo import make, prompt


def test_rows_share_what_they_learn_from_the_first_call_on() -> None:
    """A plug that has seen no vocabulary yet: each row would otherwise begin tables of its own."""
    model, inputs = make("llama"), prompt(make("llama"))
    batch = {key: value.repeat(3, 1) for key, value in inputs.items()}
    plug = SpecPlug(nodes=8)
    torch.manual_seed(0)
    model.generate(**batch, max_new_tokens=12, do_sample=True, custom_generate=plug)
    assert plug.stats.batches[3]
    sets = [plug._ensemble.acquire() for _ in range(3)]
    first, *others = [{each.name: each for each in one.drafters} for one in sets]
    for other in others:
        assert other["stand"].table is first["stand"].table
        assert other["sparse"].table is first["sparse"].table
        assert other["recycling"].ids is first["recycling"].ids
        assert other["frequency"].weights is first["frequency"].weights
        assert other["gumbel"].weights is first["gumbel"].weights
