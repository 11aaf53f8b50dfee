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
"""`vtb doctor`: checks an installation against the tested one and names a remedy for each problem."""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

TESTED: dict[str, tuple[str, str]] = {
    'nemo_toolkit': ('==3.0.0', '3.0.0'),
    'torch': ('>=2.9.1,<2.14', '2.13.0'),
    'lightning': ('>2.2.1,<=2.4.0', '2.4.0'),
    'peft': ('==0.18.0', '0.18.0'),
    'transformers': ('>=5.18,<5.24', '5.23.0'),
    'lhotse': ('>=1.33,<2', '1.33.0'),
    'hydra-core': ('>1.3,<=1.3.2', '1.3.2'),
    'omegaconf': ('>=2.3,<2.4', '2.3.0'),
    'jiwer': ('>=4,<5', '4.0.0'),
    'sacrebleu': ('>=2.4', '2.6.0'),
    'whisper_normalizer': ('>=0.1', '0.1.15'),
    'soundfile': ('>=0.12', ''),
    'rich': ('>=13', '15.0.0'),
    'matplotlib': ('>=3.8', '3.11.2'),
}
"""Package -> (required, tested), as in `setup.py` and `docs/versions.md`."""

# these were published with malicious code (docs/versions.md)
_MALICIOUS = {
    ('lightning', '2.6.2'),
    ('lightning', '2.6.3'),
    ('pytorch-lightning', '2.6.2'),
    ('pytorch-lightning', '2.6.3'),
}
_NEEDED_GB = 2.0
_STATES = {'ok': 'green', 'note': 'yellow', 'problem': 'bold red'}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Args:
        name: What was checked.
        state: 'ok', 'note' (works, but differs or lacks something optional) or 'problem'.
        found: What was found.
        remedy: What to do, '' if nothing.
    """

    name: str
    state: str
    found: str
    remedy: str = ''


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb doctor`; returns 0, or 1 where there is a problem."""
    parser = argparse.ArgumentParser(prog='vtb doctor', description='Check this installation.')
    parser.add_argument('--json', action='store_true', help='print the findings as a JSON list')
    parser.add_argument('--fast', action='store_true', help='do not import torch and NeMo, which takes seconds')
    parser.add_argument('--config', type=Path, help='forecast parameters, memory and step of this training instead')
    parser.add_argument('--tflops', type=float, help='with --config: rate of large bfloat16 products of one GPU')
    parser.add_argument('--share', type=float, help='with --config: share of that rate which a step reaches')
    parser.add_argument('--measure', action='store_true', help='with --config: measure the rate on this machine')
    parser.add_argument('overrides', nargs='*', help='with --config: key=value, as for the training')
    arguments = parser.parse_args(argv)
    from rich.console import Console

    console = Console()
    if arguments.config is not None:
        return _forecast(arguments, console)
    if arguments.overrides:
        parser.error('key=value needs --config FILE')
    findings = list(examine(fast=arguments.fast))
    problems = sum(f.state == 'problem' for f in findings)
    if arguments.json:
        console.out(json.dumps([asdict(f) for f in findings], ensure_ascii=False), highlight=False)
        return int(problems > 0)
    from rich.table import Table
    from rich.text import Text

    table = Table(title='vtb doctor', title_justify='left')
    for name in ('check', '', 'found', 'remedy'):
        table.add_column(name, overflow='fold')
    for f in findings:
        table.add_row(Text(f.name), Text(f.state, _STATES[f.state]), Text(f.found), Text(f.remedy, 'cyan'))
    console.print(table)
    console.print(
        'All is well.' if not problems else f'{problems} problem(s): see the remedies above.', highlight=False
    )
    return int(problems > 0)


def _forecast(arguments: argparse.Namespace, console: 'Console') -> int:
    from nemo_vtb.commands.training_config import compose_config
    from nemo_vtb.scripts import quiet_logs

    cfg = compose_config(arguments.config, arguments.overrides)
    from nemo_vtb.training.forecast import forecast, forecast_table
    from nemo_vtb.training.step_cost import Machine, cost_table, measured_tflops

    quiet_logs()
    outlook = forecast(cfg)
    console.print(forecast_table(' '.join([arguments.config.stem, *arguments.overrides]), outlook))
    console.print('Not included: activations of the encoder, and memory that the allocator reserves.', highlight=False)
    given = {'tflops': arguments.tflops, 'share': arguments.share}
    if arguments.measure:
        given['tflops'] = measured_tflops()
    machine = Machine(**{name: value for name, value in given.items() if value is not None})
    console.print(cost_table(outlook.step, machine))
    console.print('Counted, not measured; what is assumed: docs/step_costs.md.', highlight=False)
    return 0


def examine(*, fast: bool = False) -> Iterator[Finding]:
    """Check Python, packages, torch and NeMo, package clients, cache and disk.

    Args:
        fast: Skip the checks that import torch and NeMo.
    """
    yield _python()
    for name, (required, tested) in TESTED.items():
        yield _package(name, required, tested)
    yield from _malicious()
    if importlib.util.find_spec('torchao') is not None:
        yield Finding(
            'torchao', 'problem', 'installed: it breaks the LoRA layers of peft 0.18', 'pip uninstall torchao'
        )
    if not fast:
        yield _guarded('torch', _torch)
        yield _guarded('NeMo', _nemo)
    for client, purpose in (('npm', 'Whisper and other weights'), ('apt-get', 'the recorded prompts')):
        yield _client(client, purpose)
    yield from _cache()


def _python() -> Finding:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return Finding('Python', 'ok', f'{version}, {platform.system()} {platform.machine()}')
    return Finding('Python', 'problem', version, 'install Python 3.11, 3.12 or 3.13, then: make clean quickstart')


def _package(name: str, required: str, tested: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, 'problem', 'not installed', f"pip install '{name}{required}'")
    if not SpecifierSet(required).contains(found, prereleases=True):
        return Finding(name, 'problem', f'{found}, but {required} is required', f"pip install '{name}{required}'")
    if tested and found.split('+')[0] != tested:
        return Finding(name, 'note', f'{found}, tested with {tested}', 'none needed as long as the tests pass')
    return Finding(name, 'ok', found)


def _malicious() -> Iterator[Finding]:
    for name, version in sorted(_MALICIOUS):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if found == version:
            remedy = 'take this machine off the network, remove the environment, change its credentials'
            yield Finding(name, 'problem', f'{found} is a malicious release', remedy)


def _guarded(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything; the doctor reports it
        return Finding(
            name, 'problem', f'{type(error).__name__}: {str(error)[:200]}', 'make clean, then: make quickstart'
        )


def _torch() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ', '.join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding('GPU', 'ok', f'CUDA {torch.version.cuda}: {names}')
    found = f'none; {torch.get_num_threads()} CPU threads'
    if Path('/proc/driver/nvidia').exists() or shutil.which('nvidia-smi'):
        remedy = 'install the CUDA build of torch that fits the driver (TORCH_INDEX_URL, see the Makefile)'
        return Finding('GPU', 'problem', f'an NVIDIA driver, but torch {torch.__version__} does not see it', remedy)
    return Finding('GPU', 'ok', found)


def _nemo() -> Finding:
    from nemo_vtb.registry import NEMO_MODULE, is_registered

    importlib.import_module(NEMO_MODULE)

    if is_registered():
        return Finding('NeMo plugin', 'ok', 'nemo_vtb is on the list of targets that NeMo admits')
    return Finding('NeMo plugin', 'problem', 'NeMo does not admit our targets', 'import nemo_vtb before NeMo')


def _client(client: str, purpose: str) -> Finding:
    if path := shutil.which(client):
        return Finding(client, 'ok', path)
    remedy = {'npm': 'sudo apt-get install npm', 'apt-get': 'use Debian or Ubuntu, or do without'}[client]
    return Finding(client, 'note', f'not installed; {purpose} are skipped unless they are cached', remedy)


def _cache() -> Iterator[Finding]:
    from nemo_vtb.assets import names
    from nemo_vtb.assets.store import state
    from nemo_vtb.io import cache_dir

    folder = cache_dir()
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(nearest, os.W_OK):
        yield Finding('cache', 'problem', f'{folder} cannot be written', 'set NEMO_VTB_CACHE to a folder of your own')
    else:
        states = {name: state(name) for name in names()}
        ready = sum(s in ('ready', 'partial') for s in states.values())
        missing = [name for name, s in states.items() if s not in ('ready', 'partial')]
        yield Finding(
            'cache',
            'ok' if not missing else 'note',
            f'{folder}: {ready} of {len(states)} assets',
            f'to have the rest too: vtb assets ({", ".join(missing)})' if missing else '',
        )
    free_gb = shutil.disk_usage(nearest).free / 1e9
    if free_gb < _NEEDED_GB:
        remedy = (
            f'free {_NEEDED_GB:.0f} GB, or set NEMO_VTB_CACHE to a larger disk; vtb assets --remove-downloads helps'
        )
        yield Finding('disk', 'problem', f'{free_gb:.1f} GB free at {nearest}', remedy)
    else:
        yield Finding('disk', 'ok', f'{free_gb:.0f} GB free at {nearest}')
