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
warnings.filterwarnings('ignore')
logging.disable(logging.WARNING)

from rich.console import Console
from rich.table import Table

TOLERANCE = 1e-4
"""Goal of the house: fp32, absolute."""
SIZES = {'quick': (1, 2), 'default': (1, 2), 'full': (1, 2, 4)}


def measure(out: Path | None) -> list[dict[str, Any]]:
    """All families on this group of ranks; rank 0 writes the results to `out`."""
    from nemo_vtb.backbone.megatron import parallel

    world = int(os.environ.get('WORLD_SIZE', 1))
    parallel.initialize(world)
    from transformers.utils import logging as hf_logging

    from nemo_vtb.testing.megatron_parity import CASES, check

    hf_logging.disable_progress_bar()
    found = [
        check(name, sequence_parallel=sp).to_dict()
        for name in CASES
        for sp in ((False, True) if world > 1 else (False,))
    ]
    if out is not None and parallel.tp_rank() == 0:
        out.write_text(json.dumps(found), encoding='utf-8')
    return found


def launch(ranks: int, folder: Path) -> list[dict[str, Any]]:
    """The same script on so many ranks."""
    out = folder / f'tp{ranks}.json'
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={ranks}']
    done = subprocess.run([*command, __file__, '--out', str(out)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'{ranks} ranks failed:\n{done.stderr[-3000:]}')
    return json.loads(out.read_text(encoding='utf-8'))


def report(results: Sequence[dict[str, Any]]) -> int:
    """The table, and the line of figures."""
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
    worst = max(value for key, value in figures.items() if key.endswith('_diff'))
    ok = worst <= TOLERANCE and figures['roundtrip_exact'] and figures['answers_equal']
    print(json.dumps({'benchmark': 'megatron_parity', 'ok': ok, **figures}))
    return 0 if ok else 1


def main() -> int:
    """Measure here, or launch the sizes; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--quick', action='store_const', dest='size', const='quick', help='1 and 2 ranks')
    size.add_argument('--full', action='store_const', dest='size', const='full', help='1, 2 and 4 ranks')
    parser.add_argument('--out', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.out is not None:
        measure(args.out)
        return 0
    if 'WORLD_SIZE' in os.environ:
        results = measure(None)
        return report(results) if os.environ['RANK'] == '0' else 0
    with tempfile.TemporaryDirectory() as folder:
        return report([r for ranks in SIZES[args.size or 'default'] for r in launch(ranks, Path(folder))])


if __name__ == '__main__':
    sys.exit(main())
