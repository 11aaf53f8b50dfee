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
"""The same answers from every form of a model, in processes that have nothing but the exported form.

The live model answers first. Then each form is opened by the software that it is for (stock NeMo, transformers, PEFT,
Megatron-core, this toolkit), which may not open the model's sources; logits and greedy answers are compared.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.export import isolated
from nemo_vtb.export.hf import write_llm
from nemo_vtb.export.peft import write_peft
from nemo_vtb.export.questions import Question, default_questions
from nemo_vtb.export.salm import messages_of, needs_plugin, prompt_format
from nemo_vtb.model.inference import encode_clips, generation_defaults, load_clip

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from nemo_vtb.model.blender import VoiceTextBlender

WAYS = ('nemo', 'salm', 'vllm', 'hf-merged', 'peft', 'asr', 'megatron')

TOLERANCES = {'nemo': 1e-5, 'salm': 1e-5, 'vllm': 1e-5, 'peft': 1e-5, 'asr': 1e-5, 'hf-merged': 1e-4, 'megatron': 1e-4}
"""Largest difference of fp32 logits, relative to logits beyond 10: merged weights and split sums round differently."""

_SCRIPTS = {'vllm': 'salm', 'hf-merged': 'causal_lm', 'peft': 'causal_lm'}
_TEXT_ONLY = ('hf-merged', 'peft')


@dataclass(frozen=True, slots=True)
class Answered:
    """One question answered by the live model and by one form of it.

    Args:
        way: The form, one of `WAYS`; `megatron` with its number of ranks.
        question: Its name.
        live: Answer of the live model; '' for forms that answer nothing (asr).
        other: Answer of the form.
        difference: Largest absolute difference of the logits, divided by a tenth of the largest logit beyond 10.
        tolerance: What it may be.
    """

    way: str
    question: str
    live: str
    other: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether it may count as the same answer; NaN is none."""
        return self.live == self.other and self.difference <= self.tolerance


@dataclass(frozen=True, slots=True)
class Parity:
    """All answers of all forms."""

    rows: tuple[Answered, ...]

    @property
    def ok(self) -> bool:
        """Whether there are answers and each is the same."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def of(self, way: str) -> list[Answered]:
        """Answers of one form."""
        return [row for row in self.rows if row.way == way]

    def to_json(self) -> dict[str, Any]:
        """For the manifest: per form, how many questions, largest difference, answers that differ."""
        forms = {}
        for way in dict.fromkeys(row.way for row in self.rows):
            rows = self.of(way)
            forms[way] = {
                'questions': len(rows),
                'max_logit_diff': max(row.difference for row in rows),
                'tolerance': rows[0].tolerance,
                'different_answers': sum(row.live != row.other for row in rows),
            }
        return {'ok': self.ok, 'forms': forms, 'failed': [asdict(row) for row in self.rows if not row.ok]}

    def table(self) -> 'Table':
        """One line for each form."""
        from rich.table import Table

        table = Table(title='The same answers from every form', title_justify='left')
        table.add_column('form')
        for name in ('questions', 'same answers', 'largest difference', 'allowed', 'ok'):
            table.add_column(name, justify='right')
        for way, form in self.to_json()['forms'].items():
            same = form['questions'] - form['different_answers']
            fine = all(row.ok for row in self.of(way))
            answers = 'frames' if way == 'asr' else f'{same} of {form["questions"]}'
            numbers = (f'{form["max_logit_diff"]:.1e}', f'{form["tolerance"]:.0e}')
            table.add_row(way, str(form['questions']), answers, *numbers, '[green]yes[/]' if fine else '[red]NO[/]')
        return table

    def answers_table(self) -> 'Table':
        """One line for each answer."""
        from rich.table import Table
        from rich.text import Text

        table = Table('form', 'question', 'live model', 'exported', 'equal', title='Answers', title_justify='left')
        for row in self.rows:
            cells = [Text(value) for value in (row.way, row.question, row.live, row.other)]
            table.add_row(*cells, '[green]yes[/]' if row.ok else '[red]NO[/]')
        return table


def compare(
    model: 'VoiceTextBlender',
    forms: Mapping[str, str | Path],
    *,
    questions: Sequence[Question] | None = None,
    tensor_parallel: Sequence[int] = (),
    max_new_tokens: int = 16,
    base_llm: str | Path | None = None,
    together: int = 1,
) -> Parity:
    """Compare the answers of the live model and of each form of it to the same questions.

    Args:
        model: The live model; it is put into evaluation mode.
        forms: Form -> its file or folder, `WAYS` without megatron.
        questions: The prompts; None: `default_questions`.
        tensor_parallel: Numbers of ranks on which Megatron-core answers as well.
        max_new_tokens: Longest answer.
        base_llm: Folder of the LLM for a `.nemo` without it.
        together: How many forms answer at once; each holds a whole model in memory.

    Raises:
        VtbCheckpointError: A form cannot be opened.
    """
    model.eval()
    with tempfile.TemporaryDirectory(prefix='nemo_vtb_parity_') as name:
        workspace = Path(name)
        chosen = list(questions) if questions is not None else default_questions(workspace / 'clips')
        live = _live(model, chosen, max_new_tokens)
        reference = _Reference(model, chosen, live, max_new_tokens, workspace)
        jobs: list[tuple[Any, ...]] = []
        for way, path in forms.items():
            extra = {'base_llm': str(base_llm)} if base_llm and way == 'nemo' else {}
            if way == 'peft':
                extra = {'base': str(_base(model, workspace))}
            jobs.append((way, way, Path(path), reference, extra))
        for ranks in tensor_parallel:
            extra, adapter = _megatron_request(model, chosen, workspace)
            jobs.append(('megatron', f'megatron TP={ranks}', adapter, reference, extra, ranks))
        with ThreadPoolExecutor(max_workers=together) as pool:
            rows = [row for answers in pool.map(lambda job: _answers_of(*job), jobs) for row in answers]
    return Parity(tuple(rows))


@dataclass(frozen=True, slots=True)
class _Reference:
    model: 'VoiceTextBlender'
    questions: Sequence[Question]
    live: Sequence[tuple[str, 'Tensor']]
    max_new_tokens: int
    workspace: Path


def _live(model: 'VoiceTextBlender', questions: Sequence[Question], max_new_tokens: int) -> list[tuple[str, 'Tensor']]:
    # one after the other: padding would add roundings of its own; of a kind whose answers our inference does not bound
    asked = [replace(q.conversation, kind='mixed_modal') for q in questions]
    return [(model.answer([c], max_new_tokens=max_new_tokens)[0], model.next_token_logits(c)) for c in asked]


def _answers_of(
    way: str, name: str, path: Path, reference: _Reference, extra: Mapping[str, Any], ranks: int = 0
) -> list[Answered]:
    import torch
    from safetensors.torch import load_file

    chosen = [i for i, q in enumerate(reference.questions) if way not in _TEXT_ONLY or not q.conversation.audios]
    texts_out, numbers_out = _run(way, path, reference, chosen, extra, ranks)
    texts: list[str] = json.loads(texts_out.read_text(encoding='utf-8'))
    numbers = [value for _, value in sorted(load_file(numbers_out).items(), key=lambda item: int(item[0]))]
    if way == 'asr':
        return _same_frames(reference, numbers)
    rows = []
    for place, (text, logits) in zip(chosen, zip(texts, numbers, strict=True), strict=True):
        answer, own = reference.live[place]
        size = min(len(own), len(logits))  # a vocabulary may be padded
        scale = max(1.0, float(own.abs().max()) / 10)
        difference = float((own[:size].cpu() - logits[:size]).abs().max()) / scale
        if not bool(torch.isfinite(logits[:size]).all()):
            difference = float('nan')
        rows.append(Answered(name, reference.questions[place].name, answer, text, difference, TOLERANCES[way]))
    return rows


def _same_frames(reference: _Reference, numbers: Sequence['Tensor']) -> list[Answered]:
    import torch

    perception = reference.model.perception
    rows, found = [], iter(numbers)
    for question in reference.questions:
        for number, audio in enumerate(question.conversation.audios):
            clip = load_clip(reference.model, audio)
            with torch.no_grad():
                mel, lens = perception.preprocessor(input_signal=clip[None], length=torch.tensor([len(clip)]))
                own = perception.encoder(audio_signal=mel, length=lens)[0][0]
            difference = float((own - next(found)).abs().max())
            rows.append(Answered('asr', f'{question.name} {number}', '', '', difference, TOLERANCES['asr']))
    return rows


def _run(
    way: str, path: Path, reference: _Reference, chosen: Sequence[int], extra: Mapping[str, Any], ranks: int
) -> tuple[Path, Path]:
    model, workspace = reference.model, reference.workspace
    questions = [reference.questions[i] for i in chosen]
    request = {
        'path': str(path.resolve()),
        'plugin': way in ('nemo', 'megatron') or (way in ('salm', 'vllm') and needs_plugin(model)),
        # a file without its LLM reads it from where it was; what only this process made is no source
        'forbidden': [] if way == 'nemo' and 'base_llm' in extra else sources_of(model),
        'prompts': [question.request(model) for question in questions],
        'messages': _messages(model, path, questions) if way in ('salm', 'vllm') else None,
        'stops': sorted(generation_defaults(model)['eos_token_id']),
        'max_new_tokens': reference.max_new_tokens,
        **extra,
    }
    out = workspace / f'{way}-{ranks}'
    out.mkdir()
    (out / 'request.json').write_text(json.dumps(request), encoding='utf-8')
    script = [isolated.__file__, _SCRIPTS.get(way, way), str(out / 'request.json'), str(out)]
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(ranks)] if ranks else []
    # an empty cache: the embedded assets are out of reach too; a safe path: `peft` is the package, not our module
    env = os.environ | {'NEMO_VTB_CACHE': str(workspace / 'cache'), 'HF_HUB_OFFLINE': '1', 'PYTHONSAFEPATH': '1'}
    done = subprocess.run([sys.executable, *launch, *script], capture_output=True, text=True, env=env, cwd=out)
    files = out / 'answers.json', out / 'numbers.safetensors'
    if done.returncode or not all(file.is_file() for file in files):
        raise VtbCheckpointError(
            f'The model exported as {way} does not answer in a process of its own.',
            field=way,
            got=f'{path}: {_reason(done.stderr)}',
            allowed='a complete export of this model',
            remedy='export it again; if it fails again, report this as a bug with the lines above',
        )
    return files


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # a library may wrap what the guard of `isolated` said
    guarded = [line for line in lines if 'is a source of the model' in line]
    # of torchrun's report the line with the exception itself
    errors = [line for line in lines if re.match(r'(\[rank\d+\]: ?)?[\w.]*(Error|Exception)\b', line)]
    return (guarded or errors or lines or ['no message'])[-1]


def _messages(model: 'VoiceTextBlender', path: Path, questions: Sequence[Question]) -> list[Any] | None:
    """The questions as the messages that NeMo renders by itself; None where it has no format for them."""
    tag = str(json.loads((path / 'config.json').read_text(encoding='utf-8'))['audio_locator_tag'])
    if (found := prompt_format(model, tag)) is None:
        return None
    # a format without system turns cannot say one
    fits = [found.system is not None or q.conversation.turns[0].role != 'system' for q in questions]
    return [
        messages_of(q.conversation, tag, found.system) if f else None for q, f in zip(questions, fits, strict=True)
    ]


def sources_of(model: 'VoiceTextBlender') -> list[str]:
    """The folders and files that the model was built from, as far as they are paths."""
    paths = [model.cfg.get(key) for key in ('pretrained_llm', 'pretrained_asr', 'tokenizer_path')]
    return [str(p) for p in paths if p and Path(str(p)).exists()]


def _base(model: 'VoiceTextBlender', workspace: Path) -> Path:
    """The LLM as it was before, out of the model itself: an adapter is opened upon it."""
    folder = workspace / 'base'
    if not folder.exists():
        folder.mkdir()
        write_llm(model, folder, merge=False)
    return folder


def _megatron_request(
    model: 'VoiceTextBlender', questions: Sequence[Question], workspace: Path
) -> tuple[dict[str, Any], Path]:
    from safetensors.torch import save_file

    from nemo_vtb.data.template import AUDIO_SLOT
    from nemo_vtb.model.blender import plain_dict

    frames, adapter, file = {}, workspace / 'adapter', workspace / 'frames.safetensors'
    lora = plain_dict(model.cfg.lora) if model.cfg.get('lora') else None
    if not file.exists():
        for number, question in enumerate(questions):
            ids = model.renderer.render_prompt(question.conversation).ids
            slots = [place for place, i in enumerate(ids) if i == AUDIO_SLOT]
            encoded = [encode_clips(model, [load_clip(model, a)])[0] for a in question.conversation.audios]
            for slot, clip in zip(slots, encoded, strict=True):
                frames[f'{number}.{slot}'] = clip.detach().cpu().contiguous()
        save_file(frames, file)
        adapter.mkdir()
        if lora:
            write_peft(model, adapter)
    return {'base': str(_base(model, workspace)), 'lora': lora, 'frames': str(file)}, adapter
