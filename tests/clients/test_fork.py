"""A process that is forked while a thread generates: the child has no such thread."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import os, sys, threading, torch
    torch.set_num_threads(1)
    from transformers import LogitsProcessor
    from hf_specplug import attach
    from hf_specplug.verify import packed, packing_trial
    from tests.clients.same import GREEDY, NEW, tiny
    from tests.helpers.zoo import prompt

    packed.PACK_AFTER = 2
    packed.COMPARE_AFTER = 2
    packing_trial.WORTHWHILE = float("inf")
    model = tiny()
    inputs = prompt(model)
    settings = {"max_new_tokens": NEW, **GREEDY}
    expected = model.generate(**inputs, **settings).tolist()
    plug = attach(model, nodes=4)
    inside, go_on = threading.Event(), threading.Event()

    class Pause(LogitsProcessor):
        def __init__(self):
            self.calls = 0

        def __call__(self, ids, scores):
            self.calls += 1
            if self.calls == 15:
                inside.set()
                go_on.wait()
            return scores

    found = []
    call = lambda: found.append(model.generate(**inputs, **settings, logits_processor=[Pause()]))
    thread = threading.Thread(target=call)
    thread.start()
    inside.wait()
    child = os.fork()
    if not child:
        before = plug.stats.calls
        same = all(model.generate(**inputs, **settings).tolist() == expected for _ in range(2))
        busy = [reason for reason in plug.stats.fallbacks if "busy" in reason]
        patched = [name for name, layer in model.named_modules() if "forward" in vars(layer)]
        print(f"child same={same} drafted={plug.stats.calls - before} {busy=} {patched=}")
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    go_on.set()
    thread.join()
    assert status == 0, status
    print(f"parent same={found[0].tolist() == expected} drafted={plug.stats.calls}")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_forked_in_the_middle_of_a_call() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "child same=True drafted=2 busy=[] patched=[]" in result.stdout, result.stdout
    assert "parent same=True drafted=1" in result.stdout, result.stdout
