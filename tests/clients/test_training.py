"""Models in training: dropout, gradient checkpointing, TRL's GRPO, Seq2SeqTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from hf_specplug import DEMO_MODEL, SpecPlug, attach, detach
from tests.clients.same import GREEDY, NEW, assert_same, tiny
from tests.helpers.zoo import _decoder, prompt


@pytest.mark.parametrize("settings", [{"attention_dropout": 0.3}, {}], ids=["dropout", "none"])
def test_in_train_mode(settings: dict[str, Any]) -> None:
    """Dropout draws random numbers in each forward pass: only the same passes give the same."""
    model: Any = tiny_llama(**settings).train()
    inputs = prompt(model)
    outcome = assert_same(model, lambda **rest: model.generate(**inputs, **rest))
    assert outcome.reasons if settings else outcome.drafted


def test_dropout_counts_in_train_mode_only() -> None:
    model: Any = tiny_llama(attention_dropout=0.3)
    inputs = prompt(model)
    plug = attach(model, nodes=12)
    for training in (False, True, False):
        model.train(training)
        torch.manual_seed(0)
        expected = model.generate(**inputs, max_new_tokens=NEW, **GREEDY, assistant=None)
        torch.manual_seed(0)
        found = model.generate(**inputs, max_new_tokens=NEW, **GREEDY)
        assert found.tolist() == expected.tolist()
    assert plug.stats.calls == 2
    assert sum(plug.stats.fallbacks.values()) == 1


def test_a_dropout_module_of_an_adapter() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], lora_dropout=0.3)
    model = peft.get_peft_model(tiny(), config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.3 * torch.randn_like(weight)
    model.train()
    inputs = prompt(model.get_base_model())
    outcome = assert_same(model, lambda **rest: model.generate(**inputs, **rest))
    assert outcome.reasons


def test_gradient_checkpointing() -> None:
    model = tiny()
    model.gradient_checkpointing_enable()
    model.train()
    inputs = prompt(model)
    outcome = assert_same(model, lambda **rest: model.generate(**inputs, **rest))
    assert outcome.drafted or outcome.reasons


def tiny_llama(**settings: Any) -> Any:
    torch.manual_seed(0)
    model = _decoder("Llama", **settings)()
    model.generation_config.pad_token_id = 0
    return model


QUESTIONS = ["def add(a, b):", "import os\n", "class Stack:\n    def push(self,", "Sort a list."]


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "steps"), [(False, 20), (True, 4)], ids=["weights", "lora"])
def test_grpo(adapter: bool, steps: int, tmp_path: Path) -> None:
    """Groups of samples, left-padded; completions, losses and weights are equal to the last bit."""
    trl = pytest.importorskip("trl", reason='needs pip install "hf-specplug[test]"')
    datasets = pytest.importorskip("datasets")
    peft = pytest.importorskip("peft") if adapter else None
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    runs = []
    for with_plug in (False, True):
        model: Any = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
        completed: list[str] = []

        def reward(completions: list[str], completed: Any = completed, **_: Any) -> list[float]:
            completed.extend(completions)
            return [float(len(set(text))) for text in completions]

        plug = attach(model, nodes=8) if with_plug else None
        watch = Weights()
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=reward,
            train_dataset=datasets.Dataset.from_dict({"prompt": QUESTIONS}),
            processing_class=tokenizer,
            peft_config=peft and peft.LoraConfig(target_modules=["q_proj"], r=2),
            callbacks=[watch],
            args=trl.GRPOConfig(
                output_dir=str(tmp_path),
                per_device_train_batch_size=8,  # two groups
                num_generations=4,
                max_completion_length=24,
                max_steps=steps,
                learning_rate=1e-4,
                temperature=0.8,
                seed=0,
                report_to=[],
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                logging_steps=1,
            ),
        )
        trainer.train()
        clocks = ("step_time", "train_runtime", "_per_second")
        logged = [
            {key: value for key, value in line.items() if not key.endswith(clocks)}
            for line in trainer.state.log_history
        ]
        runs.append((completed, logged, watch.sums))
        if plug is not None:
            assert not plug.stats.fallbacks
            assert plug.stats.engines == {"tree, ragged": steps}
            assert max(plug.stats.batches) == 8
            assert plug.stats.accepted > 10 * steps
    assert runs[0] == runs[1]
    completed, logged, sums = runs[1]
    assert len(completed) == 8 * steps
    assert len({tuple(step) for step in sums}) == steps  # the weights changed at every step
    assert all("loss" in line and line["grad_norm"] > 0 for line in logged[:-1])


class Weights(TrainerCallback):  # type: ignore[misc]
    """Sums up each of the model's weights after every step of training."""

    def __init__(self) -> None:
        self.sums: list[list[float]] = []

    def on_step_end(self, *_: Any, model: Any, **rest: Any) -> None:
        self.sums.append([float(weight.double().sum()) for weight in model.parameters()])


@pytest.mark.parametrize("batch", [1, 2])
def test_seq2seq_trainer(batch: int, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = tiny("t5")
    data = []
    for seed in range(3):
        ids = prompt(model, seed=seed)["input_ids"][0].tolist()
        data.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids[:5]})
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(tmp_path),
            predict_with_generate=True,
            per_device_eval_batch_size=batch,
            use_cpu=True,
            report_to=[],
            generation_max_length=16,
        ),
    )
    expected = trainer.predict(data).predictions
    plug: SpecPlug = attach(model)
    found = trainer.predict(data).predictions
    detach(model)
    assert found.tolist() == expected.tolist()
    assert plug.stats.calls or plug.stats.fallbacks
