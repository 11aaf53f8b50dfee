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
"""The model card (`README.md`) of an export: what it is, how to open it, and what was measured on it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.checkpoint.archive import in_order
from nemo_vtb.export.salm import NO_FORMAT, needs_plugin, prompt_format
from nemo_vtb.package_info import __version__

if TYPE_CHECKING:
    from nemo_vtb.export.parity import Parity
    from nemo_vtb.model.blender import VoiceTextBlender

_LIBRARIES = {'salm': 'nemo', 'vllm': 'nemo', 'hf-merged': 'transformers', 'peft': 'peft'}
_TASKS = {'salm': 'automatic-speech-recognition', 'vllm': 'automatic-speech-recognition'}

_OPENING = {
    'salm': """{plugin}from nemo.collections.speechlm2.models import SALM

model = SALM.from_pretrained("{name}").eval()
answer = model.generate(prompts=[{messages}], max_new_tokens=64)
print(model.tokenizer.ids_to_text(answer[0].tolist()))""",
    'vllm': """# with vLLM and nemo_toolkit[asr] installed; NeMo's plugin is found by itself
vllm serve {name} --trust-remote-code""",
    'hf-merged': """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")""",
    'peft': """from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{name}")""",
}


def write_card(model: 'VoiceTextBlender', folder: Path, target: str, parity: 'Parity | None') -> None:
    """Write `README.md` with the metadata that model hubs read.

    Args:
        model: What was exported.
        folder: The export.
        target: Its form.
        parity: The comparison with the live model, if it was made.
    """
    from huggingface_hub import ModelCard, ModelCardData

    base = str(model.cfg.pretrained_llm)
    # a path of somebody's disk is no name of a model
    public = [base] if '/' in base and not base.startswith(('/', '.', '~')) and base.count('/') == 1 else None
    data = ModelCardData(
        library_name=_LIBRARIES[target],
        pipeline_tag=_TASKS.get(target, 'text-generation'),
        base_model=public,
        tags=['nemo', 'nemo_vtb', 'speech-llm', 'voicetextblender', *(['lora'] if model.cfg.get('lora') else [])],
        model_name=folder.name,
    )
    parts = [f'---\n{data.to_yaml()}\n---', f'# {folder.name}', _what(model, target), _open(model, folder, target)]
    known = model.provenance
    parts += [_evaluation(known.get('evaluation')), _retention(known.get('retention')), _ledger(known.get('ledger'))]
    parts.append(_proof(parity))
    parts.append(
        f'Written by nemo_vtb {__version__}. The licences of the LLM, of the speech encoder and of the training data '
        'hold for these weights; they are not known to the program that wrote this card.'
    )
    card = ModelCard('\n\n'.join(part for part in parts if part) + '\n')
    card.save(folder / 'README.md')


def _what(model: 'VoiceTextBlender', target: str) -> str:
    kinds = {
        'salm': "A speech LLM in the layout of NeMo's SALM: LLM, LoRA (not merged), speech encoder and adapter.",
        'vllm': "A speech LLM in the layout of NeMo's vLLM plugin: LLM, LoRA (not merged), encoder and adapter.",
        'hf-merged': 'The LLM of a speech LLM, LoRA merged into its weights. Text only: audio is ignored.',
        'peft': 'The LoRA of a speech LLM for its untouched LLM. Text only: audio is ignored.',
    }
    lora = model.cfg.get('lora')
    rank = f' LoRA: r = {lora.r}, alpha = {lora.lora_alpha}.' if lora else ''
    return (
        f'{kinds[target]} Trained in one stage on text and speech together (VoiceTextBlender, Peng et al., NAACL 2025)'
        f' by nemo_vtb. LLM: `{Path(str(model.cfg.pretrained_llm)).name}`.{rank}'
    )


def _open(model: 'VoiceTextBlender', folder: Path, target: str) -> str:
    tag = model.audio_locator_tag or '<|audio|>'
    found = prompt_format(model, tag) if target in ('salm', 'vllm') else None
    turns: list[dict[str, Any]] = [{'role': 'system', 'content': found.system}] if found and found.system else []
    turns.append({'role': 'user', 'content': f'Transcribe the recording: {tag}', 'audio': ['recording.wav']})
    code = _OPENING[target].format(
        name=folder.name,
        base=model.cfg.pretrained_llm,
        messages=json.dumps(turns),
        plugin='import nemo_vtb  # its encoder or adapter is not one of NeMo\n' if needs_plugin(model) else '',
    )
    notes = []
    if target in ('salm', 'vllm') and found is None:
        notes.append(
            f"None of NeMo's prompt formats renders as the chat template of this LLM (`prompt_format: {NO_FORMAT}`): "
            'give `generate` token ids made with the chat template, the placeholder where a recording stands.'
        )
    elif found and found.system:
        notes.append(
            f'The chat template begins with the system turn `{found.system}`; the prompt format of NeMo does not: '
            'put it in front of each conversation, as above.'
        )
    if target == 'vllm':
        notes.append(
            '`pretrained_llm` in config.json is the path of `llm_backbone`: correct it when the folder moves.'
        )
    shell = 'bash' if target == 'vllm' else 'python'
    return '\n\n'.join([f'## How to open it\n\n```{shell}\n{code}\n```', *notes])


def _evaluation(evaluation: Mapping[str, Any] | None) -> str:
    rows: Sequence[Mapping[str, Any]] = (evaluation or {}).get('rows') or ()
    return '## Measured\n\n' + _table(rows) if rows else ''


def _retention(retention: Mapping[str, Any] | None) -> str:
    if not retention:
        return ''
    note = 'Percent of the base LLM, both with the same prompts.'
    return f'## Text ability kept\n\n{retention["sentence"]} {note}\n\n{_table(retention["kept"])}'


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = in_order(rows[0])
    lines = [names, ['---'] * len(names), *([_cell(row.get(name)) for name in names] for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _cell(value: Any) -> str:
    return '-' if value is None else f'{value:.4g}' if isinstance(value, float) else str(value).replace('|', '\\|')


def _ledger(ledger: Mapping[str, Any] | None) -> str:
    if not ledger:
        return ''
    lines = ['| source | kind | conversations | tokens |', '| --- | --- | --- | --- |']
    lines += [
        f'| {" | ".join(_cell(one.get(key)) for key in ("name", "kind", "conversations", "tokens"))} |'
        for one in ledger['sources']
    ]
    return '## Trained on\n\n' + '\n'.join(lines)


def _proof(parity: 'Parity | None') -> str:
    if parity is None:
        return '## Proof\n\nThis export was not compared with the model that it comes from.'
    lines = ['| form | questions | different answers | largest difference of logits |', '| --- | --- | --- | --- |']
    for way, form in parity.to_json()['forms'].items():
        lines.append(f'| {way} | {form["questions"]} | {form["different_answers"]} | {form["max_logit_diff"]:.1e} |')
    return (
        '## Proof\n\nAnswers in a process of its own, compared with those of the model that it comes from:\n\n'
        + '\n'.join(lines)
    )
