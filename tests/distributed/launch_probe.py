"""What the processes of a launch do in test_launched_trainer.py: two steps of TRL's GRPOTrainer.

accelerate launch ... launch_probe.py CHECKPOINT FOLDER     writes FOLDER/rank-N.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from rlroute.files import write_atomic


def score_length(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Reward even numbers of even tokens: differs from one sample to the next."""
    return [sum(token % 2 for token in row) / max(1, len(row)) for row in completion_ids]


def count_held(parameters: list[torch.nn.Parameter]) -> int:
    """Return how many weights this process holds: its share only where ZeRO-3 shares them out."""
    return sum(
        (p.ds_tensor if hasattr(p, "ds_tensor") else p).numel()  # type: ignore[attr-defined]
        for p in parameters
    )


def main(checkpoint: str, folder: str) -> None:
    """Train, and write what this process found."""
    state = PartialState(cpu=True)  # without cpu=True each process takes itself for the only one
    assert state.num_processes == int(os.environ["WORLD_SIZE"])
    config = GRPOConfig(
        output_dir=f"{folder}/output",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=6,
        max_steps=2,
        learning_rate=1e-2,
        gradient_checkpointing=False,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
        reward_funcs=score_length,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["1 + 2", "Answer: 3", "Sort", "apple"]}),
    )
    trainer.train()
    accelerator = trainer.accelerator
    weights = accelerator.get_state_dict(trainer.model_wrapped)
    facts = {
        "processes": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "device": accelerator.device.type,
        "steps": trainer.state.global_step,
        "held": count_held(list(trainer.model.parameters())),
        "checksum": sum(float(w.double().abs().sum()) for w in weights.values())
        if weights
        else None,
    }
    write_atomic(Path(folder) / f"rank-{accelerator.process_index}.json", json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
