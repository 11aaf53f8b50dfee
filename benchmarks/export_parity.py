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
"""Every export of one trained model, its sources deleted, on the same questions as the model itself.

python benchmarks/export_parity.py --quick    # a tiny model, 20 steps, one rank
python benchmarks/export_parity.py            # and Megatron on 1 and 2 ranks, and our own encoder in SALM
python benchmarks/export_parity.py --full     # and SmolLM2-135M-Instruct with Whisper tiny.en: real weights, 20 steps

There is no peer to run beside: NeMo's SALM has no `.nemo`, and its folder does not open without the LLM's.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ |= {'OMP_NUM_THREADS': '1', 'TOKENIZERS_PARALLELISM': 'false', 'HF_HUB_OFFLINE': '1', 'MPLBACKEND': 'Agg'}
ROOT = Path(__file__).resolve().parent.parent

from nemo_vtb.scripts import quiet_logs, start_script

start_script()

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from nemo_vtb.assets import ensure
from nemo_vtb.assets.resolve import register_resolvers
from nemo_vtb.export.export import export_forms
from nemo_vtb.export.parity import TOLERANCES, Answered, Parity, compare
from nemo_vtb.export.questions import default_questions
from nemo_vtb.model.pretrained import restore
from nemo_vtb.testing import tiny_corpus, tiny_model_cfg

STEPS = 20
FORMS = ('salm', 'vllm', 'hf-merged', 'peft', 'asr')
MERGED = ('hf-merged', 'megatron')
console = Console()


def train(folder: Path, model: dict[str, Any], corpus: Any) -> Path:
    """Run examples/speechllm_joint_sft.py for some steps in a process of its own; returns its `.nemo`."""
    cfg = OmegaConf.load(ROOT / 'conf/speechllm_joint_sft.yaml')
    del cfg.defaults
    sets = {entry['kind']: {'input_cfg': [entry]} for entry in corpus.input_cfg('validation')[:1]}
    data = {
        'train_ds': {'sample_rate': 16000, 'seed': 1, 'input_cfg': corpus.input_cfg('train')},
        'validation_ds': {'sample_rate': 16000, 'datasets': sets},
        'budget': dict.fromkeys(('text', 'asr_ast', 'speech_qa', 'mixed_modal'), 0.25),
        'max_tokens': 256,
        'rows_per_batch': 1,
        'num_workers': 0,
        'index_dir': str(folder / 'index'),
    }
    cfg.update({'model': model, 'data': data, 'trainer': OmegaConf.load(ROOT / 'conf/trainer/cpu_quick.yaml')})
    cfg.trainer.update({'max_steps': STEPS, 'devices': 1, 'limit_val_batches': 1, 'val_check_interval': STEPS})
    cfg.exp_manager.explicit_log_dir = str(folder / 'run')
    cfg.exp_manager.create_tensorboard_logger = False
    OmegaConf.save(cfg, folder / 'train.yaml')
    script = str(ROOT / 'examples/speechllm_joint_sft.py')
    command = [
        sys.executable,
        script,
        '--config-path',
        str(folder),
        '--config-name',
        'train',
        f'hydra.run.dir={folder}',
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    file = folder / 'run/checkpoints/quickstart.nemo'
    if done.returncode or not file.is_file():
        raise SystemExit(f'the training failed:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}')
    return file


def check(title: str, folder: Path, model: dict[str, Any], sources: Sequence[Path], ranks: Sequence[int]) -> Parity:
    """Train, export in every form, delete the sources, compare."""
    folder.mkdir()
    console.rule(title)
    corpus = tiny_corpus(folder / 'corpus', 8)
    file = train(folder, model, corpus)
    questions = default_questions(folder / 'clips')
    live = restore(file, 'cpu')
    forms = {'nemo': file, **export_forms(live, folder, FORMS, console)}
    for source in sources:
        shutil.rmtree(source)
    console.print(
        f'{STEPS} steps trained, {len(forms)} forms made, deleted: {", ".join(s.name for s in sources) or "-"}'
    )
    parity = compare(live, forms, questions=questions, tensor_parallel=ranks, together=2)
    console.print(parity.table())
    return parity


def real_model(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """SmolLM2 with Whisper, the LLM copied so that it can be deleted."""
    folder.mkdir()
    names = ('smollm2-135m-instruct', 'whisper-tiny.en')
    for name, path in ensure(*names, quiet=True).items():
        shutil.copytree(path, folder / name)
    register_resolvers()
    with initialize_config_dir(str(ROOT / 'conf'), version_base=None):
        whole = compose('speechllm_joint_sft', ['model=smollm2_whisper_tiny_en', f'trainer.max_steps={STEPS}'])
    cfg: Any = OmegaConf.to_container(whole.model, resolve=True)
    cfg |= {'pretrained_llm': str(folder / names[0]), 'pretrained_asr': str(folder / names[1])}
    return cfg, [folder / name for name in names]


def main() -> int:
    """Print the tables, then one JSON object; status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='a tiny model, without Megatron')
    parser.add_argument('--full', action='store_true', help='real weights as well')
    arguments = parser.parse_args()
    quiet_logs()
    ranks = [] if arguments.quick else [1, 2]
    found: list[Parity] = []
    with tempfile.TemporaryDirectory(prefix='export_parity_') as name:
        folder = Path(name)
        sources = folder / 'sources'
        found.append(check('encoder of NeMo', folder / 'stock', tiny_model_cfg(sources), [sources], ranks))
        if not arguments.quick:
            model = tiny_model_cfg(sources, encoder='whisper', family='gemma')
            found.append(check('our encoder, Gemma', folder / 'ours', model, [sources], []))
        if arguments.full:
            model, copies = real_model(folder / 'real')
            found.append(check('SmolLM2-135M-Instruct, Whisper tiny.en', folder / 'smollm2', model, copies, [2]))
    rows: list[Answered] = [row for parity in found for row in parity.rows]
    worst = {
        merged: max((r.difference for r in rows if (r.way.split()[0] in MERGED) == merged), default=0.0)
        for merged in (False, True)
    }
    result = {
        'benchmark': 'export_parity',
        'ok': all(parity.ok for parity in found),
        'exports': sorted({row.way for row in rows}),
        'questions': len(rows),
        'greedy_mismatches': sum(row.live != row.other for row in rows),
        'max_logit_diff_unmerged': worst[False],
        'max_logit_diff_merged': worst[True],
        'goal_unmerged': TOLERANCES['salm'],
        'goal_merged': TOLERANCES['hf-merged'],
    }
    print(json.dumps(result))
    return 0 if result['ok'] else 1


if __name__ == '__main__':
    sys.exit(main())
