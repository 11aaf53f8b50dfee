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
"""Megatron against Hugging Face and PEFT: logits, loss, gradients, weights, answers; for each family of LLM.

torchrun --nproc-per-node 2 benchmarks/megatron_parity.py     one size of the tensor-parallel group
python benchmarks/megatron_parity.py [--quick | --full]       sizes 1 and 2, or 1, 2 and 4, one after the other

With --answers, and in --full, also the pretrained SmolLM2-135M: greedy answers to 20 questions, token by token.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ |= {'HF_HUB_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false'}
if __name__ == '__main__':  # who imports this keeps the logs
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)

from rich.console import Console
from rich.table import Table

LLM = 'smollm2-135m-instruct'
TOLERANCE = 1e-4
"""Goal of the house: fp32, absolute."""
SIZES = {'quick': (1, 2), 'default': (1, 2), 'full': (1, 2, 4)}
QUESTIONS = (
    'What is the capital of France?', 'Name three colours.', 'How many days are in a week?', 'What do bees make?',
    'Translate "good morning" into Spanish.', 'Write one sentence about the sea.', 'What is 2 + 3?',
    'Who wrote Hamlet?', 'What is the opposite of hot?', 'Name an animal that can fly.', 'What is ice made of?',
    'Finish: The early bird', 'Why is the sky blue?', 'Give me a word that rhymes with light.',
    'What is the largest planet?', 'How do you boil an egg?', 'What is a noun?', 'Name a city in Italy.',
    'Which month comes after May?', 'Say hello in French.',
)  # fmt: skip


def measure(out: Path | None, answers: bool) -> dict[str, Any]:
    """All families on this group of ranks, or the answers of the pretrained LLM; rank 0 writes the result to `out`."""
    from nemo_vtb.backbone.megatron import runtime

    world = int(os.environ.get('WORLD_SIZE', 1))
    runtime.initialize(world)
    from megatron_cases import CASES, check, check_answers
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    flags = (False, True) if world > 1 else (False,)
    found: dict[str, Any] = {
        'families': [check(name, sequence_parallel=sp).to_dict() for name in CASES for sp in flags], 'answers': []
    }  # fmt: skip
    if answers:
        from nemo_vtb.assets import ensure

        found['answers'] = [check_answers(ensure(LLM, quiet=True)[LLM], QUESTIONS)]
    if out is not None and runtime.tp_rank() == 0:
        out.write_text(json.dumps(found), encoding='utf-8')
    return found


def launch(ranks: int, folder: Path, answers: bool) -> dict[str, Any]:
    """The same script on so many ranks."""
    out = folder / f'tp{ranks}.json'
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={ranks}']
    options = ['--out', str(out), *(['--answers'] if answers else [])]
    done = subprocess.run([*command, __file__, *options], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'{ranks} ranks failed:\n{done.stderr[-3000:]}')
    return json.loads(out.read_text(encoding='utf-8'))


def report(measured: Sequence[dict[str, Any]]) -> int:
    """The table, and the line of figures."""
    results = [family for each in measured for family in each['families']]
    table = Table(title='Megatron against Hugging Face + PEFT, fp32, largest absolute differences')
    for name in (
        'family',
        'TP',
        'SP',
        'logits',
        'loss',
        'LoRA gradients',
        'input gradients',
        'weights',
        'LoRA',
        'answers',
    ):
        table.add_column(name)
    for r in results:
        exact = ['exact' if r[key] else '[red]differ' for key in ('weights_exact', 'lora_exact')]
        numbers = [f'{r[key]:.1e}' for key in ('logits', 'loss', 'lora_gradients', 'input_gradients')]
        answers = 'equal' if r['answers_equal'] else '[red]differ'
        table.add_row(
            r['family'], str(r['ranks']), 'yes' if r['sequence_parallel'] else '-', *numbers, *exact, answers
        )
    Console(width=130).print(table)
    figures = {
        'tp': sorted({r['ranks'] for r in results}),
        'families': sorted({r['family'] for r in results}),
        'max_logit_diff': max(r['logits'] for r in results),
        'max_loss_diff': max(r['loss'] for r in results),
        'max_lora_grad_diff': max(r['lora_gradients'] for r in results),
        'max_input_grad_diff': max(r['input_gradients'] for r in results),
        'roundtrip_exact': all(r['weights_exact'] and r['lora_exact'] for r in results),
        'answers_equal': all(r['answers_equal'] for r in results),
    }
    real = [each for found in measured for each in found['answers']]
    for each in real:
        print(f'{LLM}, TP={each["ranks"]}: {each["equal"]} of {len(QUESTIONS)} answers as by generate of transformers')
    if real:
        print('\n'.join(f'  {q}  ->  {a!r}' for q, a in list(zip(QUESTIONS, real[0]['answers'], strict=True))[:5]))
        figures['real_answers_equal'] = min(each['equal'] for each in real)
        figures['real_answers'] = len(QUESTIONS)
    worst = max(value for key, value in figures.items() if key.endswith('_diff'))
    ok = worst <= TOLERANCE and figures['roundtrip_exact'] and figures['answers_equal']
    ok &= all(each['equal'] == len(QUESTIONS) for each in real)
    print(json.dumps({'benchmark': 'megatron_parity', 'ok': ok, **figures}))
    return 0 if ok else 1


def main() -> int:
    """Measure here, or launch the sizes; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--quick', action='store_const', dest='size', const='quick', help='1 and 2 ranks')
    size.add_argument('--full', action='store_const', dest='size', const='full', help='1, 2 and 4 ranks')
    parser.add_argument('--answers', action='store_true', help='also 20 answers of the pretrained SmolLM2-135M')
    parser.add_argument('--out', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.out is not None:
        measure(args.out, args.answers)
        return 0
    if 'WORLD_SIZE' in os.environ:
        results = measure(None, args.answers)
        return report([results]) if os.environ['RANK'] == '0' else 0
    with tempfile.TemporaryDirectory() as folder:
        # 135M weights on four ranks prove nothing that two do not
        sizes = [(n, n < 4 and (args.answers or args.size == 'full')) for n in SIZES[args.size or 'default']]
        return report([launch(ranks, Path(folder), answers) for ranks, answers in sizes])


if __name__ == '__main__':
    sys.exit(main())
