# Copyright (c) 2026, The nemo_vtb authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The runs of the study: which data, which trainable parts, how many stages; and the size of the study."""

from collections.abc import Mapping
from dataclasses import dataclass

SPEECH = {'asr_ast': 0.5, 'speech_qa': 0.22, 'mixed_modal': 0.18}
JOINT = {'text': 0.1, **SPEECH}
STAGE_ONE = 'stage1'
LORA_FACTOR = 0.12
STAGE_ONE_SHARE = 0.7
# the paper's is a fifth, for 15,000 steps; within some tens of steps LoRA would stay where it began
STAGE_TWO_LR = 0.5
_LORA_PATTERN = r"'^llm\..+\.lora_.+$'"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the comparison.

    Args:
        title: What a table calls it.
        shares: Kind -> share of all tokens, scaled to sum to 1.
        lora: Whether the LLM is trained (through LoRA), or frozen.
        init: The run whose model it starts from.
        anchor: Whether `model.text_anchor` is on; it acts on text-only conversations alone.
        sampler: What draws the conversations: our token budget, or NeMo's loader (`nemo_loader.py`).
    """

    title: str
    shares: Mapping[str, float]
    lora: bool = True
    init: str | None = None
    anchor: bool = True
    sampler: str = 'budget'


RUNS: dict[str, Run] = {
    STAGE_ONE: Run('stage 1 of C and D: ASR + AST, LLM frozen', {'asr_ast': 1.0}, lora=False),
    'A': Run('A: one stage, joint, LoRA', JOINT),
    'B': Run('B: one stage, speech only, LLM frozen', SPEECH, lora=False),
    'C': Run('C: two stages, speech only', SPEECH, init=STAGE_ONE),
    'D': Run(
        'D: two stages, speech + text', {'text': 0.9, **SPEECH}, init=STAGE_ONE
    ),  # half of the second stage is text
    'E': Run('E: one stage, speech only, LoRA', SPEECH),
    'M': Run('M: as A, mixed by example count', JOINT, sampler='nemo'),
    'N': Run("N: as A, the chats' own words as targets", JOINT, anchor=False),
    'O': Run('O: as N, as many examples of each kind', dict.fromkeys(JOINT, 0.25), anchor=False, sampler='nemo'),
}


@dataclass(frozen=True, slots=True)
class Size:
    """How large the study is.

    Args:
        config: Hydra overrides that all runs share.
        corpus: Asset with the data.
        steps: Optimizer steps of a run, its stages together.
        warmup: Steps of warm-up of a run that begins from nothing.
        anchor: `model.text_anchor` of the runs that have it.
        examples: Conversations that fill a row on average.
        evaluation: Overrides of the evaluation.
    """

    config: tuple[str, ...]
    corpus: str
    steps: int
    warmup: int
    anchor: float
    examples: int
    evaluation: tuple[str, ...]


_SMALL = ('trainer.devices=1', 'data.rows_per_batch=1', 'data.max_tokens=768', 'data.num_workers=0')
_PAPERS = (
    'model=smollm2_whisper_tiny_en', 'data=demo_long', 'trainer=cpu_long', 'trainer.accelerator=gpu',
    'trainer.devices=1', 'trainer.precision=bf16-mixed', 'data.max_tokens=4096', 'data.rows_per_batch=2',
    # a leg that is ended costs 50 steps at most
    '++exp_manager.checkpoint_callback_params.every_n_train_steps=50',
    'exp_manager.checkpoint_callback_params.every_n_epochs=null',
)  # fmt: skip
SIZES = {
    'quick': Size(
        (*_SMALL, 'trainer.limit_val_batches=1'), 'demo-corpus', 3, 1, 15.0, 8, ('limit=2', 'max_new_tokens=8')
    ),
    'cpu': Size(
        (*_SMALL, 'trainer.limit_val_batches=1'), 'demo-corpus', 120, 10, 15.0, 8, ('limit=30', 'max_new_tokens=24')
    ),
    'full': Size(_PAPERS, 'demo-corpus-smollm2', 2000, 100, 25.0, 40, ()),
}


def steps_of(run: Run, size: Size) -> int:
    """Optimizer steps of this run alone: the two stages of a run together have as many as a run of one stage."""
    first = round(STAGE_ONE_SHARE * size.steps)
    if run.init:
        return size.steps - first
    return first if run is RUNS[STAGE_ONE] else size.steps


def overrides(run: Run, size: Size, seed: int, init_from: str | None = None) -> list[str]:
    """Hydra overrides that make `examples/speechllm_joint_sft.py` this run.

    Args:
        run: One of `RUNS`.
        size: One of `SIZES`.
        seed: Of weights and of the order of the data.
        init_from: The `.nemo` file of the run that it starts from.
    """
    steps = steps_of(run, size)
    total = sum(run.shares.values())
    shares = {kind: run.shares.get(kind, 0.0) / total for kind in JOINT}
    lines = [
        *size.config,
        f'seed={seed}',
        *(f'data.budget.{kind}={share:.9f}' for kind, share in shares.items()),
        f'trainer.max_steps={steps}',
        f'trainer.val_check_interval={min(steps, 500)}',
        f'model.text_anchor={size.anchor if run.anchor and "text" in run.shares else 0.0}',
        f'model.lr_factors=[{{match:{_LORA_PATTERN},factor:{LORA_FACTOR if run.lora else 0.0}}}]',
        f'model.lr_scheduler.warmup_steps={max(1, size.warmup // 2) if run.init else size.warmup}',
        # a lowest rate would move the LLM of a run whose LoRA has none
        'model.lr_scheduler.min_lr=0.0',
        'exp_manager.create_tensorboard_logger=false',
    ]
    if run.init:
        lines += [f'init_from_nemo={init_from}', f'model.optimizer.lr={2e-3 * STAGE_TWO_LR}']
    if run.sampler == 'nemo':
        # NeMo's rows are as long as their examples; so many make as long a row as ours on these corpora
        lines += [f'++data.train_ds.shard_seed={seed}', f'++data.train_ds.batch_size={size.examples}']
    return lines
