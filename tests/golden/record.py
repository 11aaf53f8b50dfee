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
"""Records golden.json; run it before a change that must leave every number as it is.

Usage: python tests/golden/record.py [--fixtures]

Everything is run twice with the pinned arithmetic, and must give the same bits; then once with the fastest kernels of
this processor, which shows by how much rounding alone moves each run. `--fixtures` also makes the checkpoint and the
`.nemo` file anew: without it those of an earlier release stay, which is what they are for.
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from golden import FIXTURE_FILES, GOLDEN, differences, distance, measure, prepare
from golden_jobs import FIXTURES, HALF, HALF_CHECKPOINT, JOBS, NEMO_FILE

logger = logging.getLogger('record')


def make_fixtures(folder: Path) -> None:
    """The checkpoint in the middle of the first run and its `.nemo` file; no path of this machine stays in them."""
    prepare(folder)
    measure(folder, ['hf'])
    checkpoints = folder / 'hf' / 'checkpoints'
    (half,) = checkpoints.glob(f'step={HALF}-*[0-9].ckpt')
    checkpoint = torch.load(half, map_location='cpu', weights_only=True)
    for prefix in (f'{folder}/', f'{tempfile.gettempdir()}/'):
        checkpoint = _without(prefix, checkpoint)
    torch.save(checkpoint, FIXTURES / FIXTURE_FILES[HALF_CHECKPOINT])
    shutil.copyfile(checkpoints / 'tiny.nemo', FIXTURES / FIXTURE_FILES[NEMO_FILE])


def _without(prefix: str, value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(prefix, '')
    if isinstance(value, dict):
        return type(value)((_without(prefix, k), _without(prefix, v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_without(prefix, item) for item in value)
    return value


def record(folder: Path) -> dict[str, Any]:
    """All numbers, and what rounding does to them.

    Raises:
        SystemExit: Two runs of the same thing differ, or answers depend on the kernels.
    """
    found = []
    for name, pinned in (('first', True), ('second', True), ('native', False)):
        logger.info('%s run', name)
        (folder / name).mkdir()
        prepare(folder / name)
        found.append(measure(folder / name, list(JOBS), pinned=pinned))
    first, second, native = (each['runs'] for each in found)
    wrong = list(differences(first, second, None))
    wrong += list(differences(_discrete(first), _discrete(native), None))
    if wrong:
        raise SystemExit('\n'.join(['These cannot be golden:', *wrong]))
    resumed = first.pop('resumed')
    if wrong := [line for step, rows in resumed['losses'].items() if (line := _unlike(first['hf'], step, rows))]:
        raise SystemExit('\n'.join(['The run does not go on as it was:', *wrong]))
    trained = {name: run for name, run in first.items() if 'losses' in run}
    rounding = {name: distance(_continuous(run), _continuous(native[name])) for name, run in trained.items()}
    return {'fingerprint': found[0]['fingerprint'], 'rounding': rounding, 'runs': first}


def _continuous(run: Mapping[str, Any]) -> dict[str, Any]:
    return {key: run[key] for key in ('losses', 'metrics', 'weights')}


def _discrete(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What must not depend on the machine: answers, plans, the weights in a file."""
    return {
        name: {key: run[key] for key in ('answers', 'plan_sha256', 'sha256') if key in run}
        for name, run in runs.items()
    }


def _unlike(whole: Mapping[str, Any], step: str, rows: Any) -> str | None:
    return None if whole['losses'][step] == rows else f'step {step}: {rows} instead of {whole["losses"][step]}'


def as_text(golden: Mapping[str, Any]) -> str:
    """JSON with a line for each step, so that a change of one number is a change of one line."""
    return _lines(golden, depth=4) + '\n'


def _lines(value: Any, depth: int, indent: str = '') -> str:
    if not isinstance(value, Mapping) or not depth or not value:
        return json.dumps(value)
    inner = f'{indent} '
    items = [f'{inner}{json.dumps(key)}: {_lines(each, depth - 1, inner)}' for key, each in value.items()]
    return '{\n' + ',\n'.join(items) + f'\n{indent}}}'


def main() -> None:
    """Record and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--fixtures', action='store_true', help='make the checkpoint and the .nemo file anew')
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        if args.fixtures:
            (folder / 'fixtures').mkdir()
            make_fixtures(folder / 'fixtures')
        golden = record(folder)
    GOLDEN.write_text(as_text(golden), encoding='utf-8')
    logger.info('%s\nrounding: %s', GOLDEN, golden['rounding'])


if __name__ == '__main__':
    sys.exit(main())
