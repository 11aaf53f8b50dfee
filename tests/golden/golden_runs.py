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
"""Runs the example scripts in processes forked after the imports, and writes down what came out.

Usage: python golden_runs.py FOLDER JOB [JOB ...]     (`golden.measure` starts it, with the arithmetic pinned)

No module of the library is imported here but by the scripts: losses are heard by a callback of Lightning's, ledger,
checkpoints and answers are read from the files that a run leaves.
"""

import hashlib
import json
import logging
import math
import os
import platform
import re
import runpy
import socket
import struct
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from golden_jobs import HALF, JOBS, NEMO_FILE, ROOT, STEPS, Job

sys.path.insert(0, str(ROOT / 'examples'))
import speechllm_generate  # noqa: F401
import speechllm_joint_sft  # noqa: F401
import torch
from lightning.pytorch import Callback, Trainer

import nemo_vtb

# the imports are paid for once: every run is forked from here
for _name in nemo_vtb.__all__:
    getattr(nemo_vtb, _name)

PACKAGES = ('torch', 'numpy', 'transformers', 'peft', 'lightning', 'nemo_toolkit', 'megatron-core')
FLAGS = ('sse4_2', 'avx', 'fma', 'avx2', 'avx512f', 'avx512bw', 'avx512vl', 'avx512_bf16', 'amx_tile')
GATE = ('gated_loss', 'retention', 'hearing')


class Recorder(Callback):
    """Writes the loss of every row, the metrics of every validation and the sum of the trained weights, bit by bit."""

    def __init__(self, path: Path) -> None:
        self.stream = path.open('w', encoding='utf-8')
        self.step, self.rows = 0, list[str]()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """A resumed run goes on counting."""
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """One line per optimizer step."""
        self.rows.append(bits(float(outputs['loss'])))
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self._write({'step': self.step, 'losses': self.rows})
            self.rows = []

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """What was logged under a name that ours and NeMo's users know."""
        named = {k: v for k, v in trainer.callback_metrics.items() if k.startswith('val_') or k in GATE}
        self._write({'step': self.step, 'metrics': {name: bits(float(named[name])) for name in sorted(named)}})

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """A sum that depends neither on the names nor on the order of the parameters."""
        sums = [p.detach().double().abs().sum().item() for p in pl_module.parameters() if p.requires_grad]
        self._write({'step': self.step, 'weights': bits(math.fsum(sums))})

    def _write(self, record: Mapping[str, Any]) -> None:
        self.stream.write(json.dumps(record) + '\n')
        self.stream.flush()


def bits(value: float) -> str:
    """The raw bits in hexadecimal: 8 digits where it is a float32, else the 16 of a float64."""
    short = struct.pack('>f', value)
    return short.hex() if struct.unpack('>f', short)[0] == value else struct.pack('>d', value).hex()


def run(name: str, job: Job) -> dict[str, Any]:
    """Run a job on all its ranks; what it left."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    children = [_fork(name, job, rank, port) for rank in range(job.ranks)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(statuses):
        logs = [Path(f'{name}.{rank}.log').read_text(errors='replace')[-3000:] for rank in range(job.ranks)]
        raise SystemExit('\n'.join([f'{name} ended with {statuses}', *logs]))
    if job.script == 'restore':
        return json.loads(Path(f'{name}.json').read_text(encoding='utf-8'))
    if job.script == 'speechllm_generate':
        lines = Path(f'{name}.jsonl').read_text(encoding='utf-8').splitlines()
        return {'answers': [json.loads(line)['answer'] for line in lines]}
    return _training(name, job)


def _fork(name: str, job: Job, rank: int, port: int) -> int:
    sys.stdout.flush()
    if child := os.fork():
        return child
    log = os.open(f'{name}.{rank}.log', os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        if job.script == 'restore':
            Path(f'{name}.json').write_text(json.dumps(restore()), encoding='utf-8')
        else:
            _prepare(name, job, rank, port)
            runpy.run_path(str(ROOT / 'examples' / f'{job.script}.py'), run_name='__main__')
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        logging.exception('the run failed')
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _prepare(name: str, job: Job, rank: int, port: int) -> None:
    """Command line and environment as torchrun and a shell would make them, and the recorder in every fit."""
    where = f'output={name}.jsonl' if job.script == 'speechllm_generate' else f'exp_manager.explicit_log_dir={name}'
    sys.argv = [f'{job.script}.py', *job.words, where]
    if job.ranks > 1:
        ranks = {'WORLD_SIZE': job.ranks, 'LOCAL_WORLD_SIZE': job.ranks, 'RANK': rank, 'LOCAL_RANK': rank}
        ranks |= {'GROUP_RANK': 0, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'TORCHELASTIC_RUN_ID': name}
        os.environ |= {key: str(value) for key, value in ranks.items()}
    fit = Trainer.fit

    def watched(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        trainer.callbacks.append(Recorder(Path(f'{name}.{rank}.jsonl')))
        fit(trainer, *args, **kwargs)

    Trainer.fit = watched


def restore() -> dict[str, Any]:
    """The `.nemo` file as another NeMo pipeline opens it: names and bytes of all of its weights."""
    from nemo.core import ModelPT

    import nemo_vtb  # noqa: F401

    state = ModelPT.restore_from(NEMO_FILE, map_location=torch.device('cpu')).state_dict()
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f'{name} {state[name].dtype} {tuple(state[name].shape)}'.encode())
        digest.update(state[name].contiguous().flatten().view(torch.uint8).numpy())
    return {'tensors': len(state), 'sha256': digest.hexdigest()}


def _training(name: str, job: Job) -> dict[str, Any]:
    """Records of all ranks, ledger, and the plan at each checkpoint."""
    found: dict[str, Any] = {'losses': {}, 'metrics': {}, 'weights': []}
    for rank in range(job.ranks):
        for line in Path(f'{name}.{rank}.jsonl').read_text(encoding='utf-8').splitlines():
            record = json.loads(line)
            if 'losses' in record:
                found['losses'].setdefault(str(record['step']), []).append(record['losses'])
            elif 'metrics' in record and rank == 0:
                found['metrics'][str(record['step'])] = record['metrics']
            elif 'weights' in record:
                found['weights'].append(record['weights'])
    found['ledger'] = json.loads(Path(name, 'ledger.json').read_text(encoding='utf-8'))
    for step in (HALF, STEPS):
        for path in Path(name, 'checkpoints').glob(f'step={step}-*[0-9].ckpt'):
            found.setdefault('plan_sha256', {})[str(step)] = plan_digest(path)
    return found


def plan_digest(path: Path) -> str:
    """SHA-256 of the plan in a checkpoint, as JSON; it is the entry of whichever data module has one."""
    checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    (plan,) = [v['plan'] for v in checkpoint.values() if isinstance(v, Mapping) and 'plan' in v]
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def fingerprint() -> dict[str, Any]:
    """All that can change a bit of a sum in floating point: packages, kernels, processor."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    build = torch.__config__.show()
    libraries = re.findall(r'- (.*(?:Math Kernel|MKL-DNN).*)', build)
    return {
        'packages': versions,
        'kernels': [torch.backends.cpu.get_cpu_capability(), *libraries],
        'libc': list(platform.libc_ver()),
        'processor': _processor(),
    }


def _processor() -> dict[str, str]:
    info = Path('/proc/cpuinfo')
    text = info.read_text(encoding='utf-8') if info.is_file() else ''
    found = dict(reversed(re.findall(r'^([^\t\n]+?)\s*: (.*)$', text, re.MULTILINE)))
    flags = found.get('flags', '').split()
    values = {name: found.get(name, '') for name in ('vendor_id', 'cpu family', 'model')}
    return {'machine': platform.machine(), **values, 'flags': ' '.join(flag for flag in FLAGS if flag in flags)}


def main() -> None:
    """Run the jobs in their order; `results.json` holds all of it."""
    os.chdir(sys.argv[1])
    torch.set_num_threads(1)
    results = {name: run(name, JOBS[name]) for name in sys.argv[2:]}
    Path('results.json').write_text(json.dumps({'fingerprint': fingerprint(), 'runs': results}), encoding='utf-8')


if __name__ == '__main__':
    main()
