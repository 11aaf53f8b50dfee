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
"""Step `summary`: a short table of all lines, the last of the output."""

import json
from collections.abc import Callable
from typing import Any

from gpu.results import OUT

Line = dict[str, Any]


def run() -> None:
    """Print it; a missing field is a dash, since a step may have been cut off."""
    lines = [json.loads(text) for text in (OUT / 'results.jsonl').read_text().splitlines() if text.strip()]
    known: dict[str, Callable[[Line], str]] = {
        'env.gpu': _plain, 'env.ceilings': _plain, 'env.fp8': _plain, 'env.groups': _plain, 'env.import': _import,
        'ops.attention': _op, 'ops.loss': _op, 'ops.norm': _op, 'table': _step, 'joint': _joint,
        'resume': _plain, 'profile': _profile,
    }  # fmt: skip
    for line in lines:
        if (show := known.get(line['step'])) and (text := show(line)):
            print(text)
    _parity([line for line in lines if line['step'] == 'parity' and 'skipped' not in line])
    for line in lines:
        if line['step'] == 'step' and line['rc']:
            print('step', line['name'], 'ended with', line['rc'], f'after {line["s"]} s')


def _plain(line: Line) -> str:
    return str({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items() if k != 't'})


def _import(line: Line) -> str:
    return '' if line['ok'] else f'cannot import {line["module"]}: {line["why"]}'


def _op(line: Line) -> str:
    what = [str(line[key]) for key in ('shape', 'way', 'zero_centred') if key in line]
    if 'error' in line:
        return ' '.join([line['step'], *what, line['error'][:150]])
    cold = f'new lengths {line["cold_ms"]:.1f} ms' if 'cold_ms' in line else ''
    return ' '.join([line['step'], *what, f'{line["ms"]:.2f} ms', cold, *(f'{e:.0e}' for e in line['errors'])])


def _step(line: Line) -> str:
    if 'step_s' not in line:
        return f'{line["shape"]} {line["way"]} {line.get("error", "")[:200]}'
    memory = f'{line["peak_gb"]:.1f} GB' if line.get('peak_gb') else ''
    return (
        f'{line["shape"]:12} {line["way"]:26} {line["step_s"]:.4f} s {line["tokens_per_s"]:9,.0f} tok/s '
        f'{line["tflops"]:6.1f} TF {line["mfu"]:4.0%} cold {line["cold_s"]:.3f} s {memory} loss {line["loss"]:.4f}'
    )


def _joint(line: Line) -> str:
    if 'step_s' not in line:
        return f'joint {line["case"]} {line.get("error", "")[:250]} {line.get("at", [])[-2:]}'
    memory = f'{line["peak_gb"]:.1f} GB' if line.get('peak_gb') else ''
    speed = f'{line["step_s"]:.3f} s {line["tokens_per_s"]:,.0f} tok/s'
    return f'joint {line["case"]} {speed} {memory} {line["loss"][:4]} answer: {line.get("answer_error", "ok")[:120]}'


def _profile(line: Line) -> str:
    if 'top' not in line:
        return f'profile {line["way"]} {line.get("error", "")[:200]}'
    top = ', '.join(f'{name[:40]} {ms}' for name, ms, _ in line['top'][:10])
    return f'profile {line["shape"]} {line["way"]} {line["total_ms"]} ms: {top}'


def _parity(cases: list[Line]) -> None:
    good = [case for case in cases if case.get('ok')]
    print(f'parity: {len(good)} of {len(cases)} cases are good')
    named = ('family', 'way', 'kernels', 'dtype', 'autocast', 'recompute_granularity', 'fp8', 'answers_equal')
    for case in (c for c in cases if not c.get('ok')):
        errors = {k: case[k] for k in ('by_logits', 'by_parts', 'hf_in_this_type') if k in case}
        what = {k: case[k] for k in named if k in case}
        print('  ', what, case.get('error', '')[:200], case.get('at', [])[-2:], errors)
