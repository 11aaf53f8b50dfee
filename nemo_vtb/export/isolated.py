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
"""Answers a request from one export, as the sole program of a process: `python isolated.py FORM REQUEST OUT`.

Nothing of `nemo_vtb` is imported at the top: what is said to open in stock NeMo, transformers or PEFT must open there.
Each form writes `answers.json` and `numbers.safetensors` (one tensor for each prompt) into OUT.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

AUDIO_SLOT = -1  # nemo_vtb.data.template.AUDIO_SLOT, which must not be imported here

Request = dict[str, Any]
Answers = tuple[list[str], list[Any]]


def main() -> None:
    """Answer, and check that a form which needs no plugin has not loaded it."""
    form, request_file, out = sys.argv[1:4]
    request: Request = json.loads(Path(request_file).read_text(encoding='utf-8'))
    _forbid(request['forbidden'])
    texts, numbers = FORMS[form](request)
    if int(os.environ.get('RANK', '0')):
        return
    if not request['plugin'] and any(name.split('.')[0] == 'nemo_vtb' for name in sys.modules):
        raise RuntimeError(f'{form}: nemo_vtb was imported, so this proves nothing about stock NeMo')
    from safetensors.torch import save_file

    (Path(out) / 'answers.json').write_text(json.dumps(texts), encoding='utf-8')
    save_file(
        {str(i): n.detach().float().contiguous() for i, n in enumerate(numbers)}, Path(out) / 'numbers.safetensors'
    )


def _forbid(sources: list[str]) -> None:
    forbidden = tuple(str(Path(source).resolve()) for source in sources)

    def watch(event: str, args: tuple) -> None:
        if event == 'open' and isinstance(args[0], str | os.PathLike):
            path = os.path.realpath(args[0])
            if any(path == f or path.startswith(f + os.sep) for f in forbidden):
                raise PermissionError(f'{path} is a source of the model; what was exported must do without it')

    sys.addaudithook(watch)


def _nemo(request: Request) -> Answers:
    from nemo_vtb.data.conversation import conversation_from_dict
    from nemo_vtb.model.pretrained import restore

    model = restore(request['path'], 'cpu', base_llm=request.get('base_llm'))
    texts, numbers = [], []
    # a conversation ends with an answer, which `prompt` removes
    closing = {'type': 'text', 'from': 'Assistant', 'value': '-'}
    for prompt in request['prompts']:
        line = prompt['conversation']
        whole = {**line, 'conversations': [*line['conversations'], closing]}
        conversation = conversation_from_dict(whole, kind='mixed_modal').prompt
        numbers.append(model.next_token_logits(conversation))
        texts += model.answer([conversation], max_new_tokens=request['max_new_tokens'])
    return texts, numbers


def _salm(request: Request) -> Answers:
    import torch

    if request['plugin']:
        import nemo_vtb  # noqa: F401  makes its encoder and adapter known to NeMo
    from nemo.collections.speechlm2.models import SALM
    from nemo.collections.speechlm2.models.salm import replace_placeholders_and_build_targets
    from nemo.collections.speechlm2.parts.encoder_chunking import encode_audio_with_optional_chunking as encode
    from transformers import GenerationConfig

    model = SALM.from_pretrained(request['path']).eval()
    pad, tag = model.text_pad_id, model.audio_locator_tag_id
    generation = GenerationConfig(eos_token_id=request['stops'], pad_token_id=pad, do_sample=False)
    texts, numbers = [], []
    for prompt in request['prompts']:
        ids = torch.tensor([[tag if i == AUDIO_SLOT else i for i in prompt['ids']]])
        clips = [_samples(path) for path in prompt['audios']]
        lens = torch.tensor([len(clip) for clip in clips])
        audios = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True) if clips else None
        with torch.no_grad():
            options = {'chunk_size_seconds': model.cfg.get('encoder_chunk_size_seconds'), 'sampling_rate': 16000}
            # each by itself, as the live model did: padding to a common length would add roundings of its own
            frames = [
                encode(model.perception, c[None], n[None], **options)[0] for c, n in zip(clips, lens, strict=True)
            ]
            embeds, _, mask = replace_placeholders_and_build_targets(
                ids, model.embed_tokens(ids.where(ids != tag, 0)), pad, tag, frames
            )
            numbers.append(model(embeds, attention_mask=mask)['logits'][0, -1])
            given = {} if audios is None else {'audios': audios, 'audio_lens': lens}
            made = model.generate(ids, **given, generation_config=generation, max_new_tokens=request['max_new_tokens'])
        made = made[0] if clips else made[0, ids.shape[1] :]  # SALM returns a text-only prompt with its answer
        texts.append(model.tokenizer.tokenizer.decode(made, skip_special_tokens=True).strip())
    if request.get('messages'):
        _same_prompt(model, request)
    return texts, numbers


def _same_prompt(model: Any, request: Request) -> None:
    # examples/speechlm2/salm_generate.py of NeMo hands over messages, which NeMo's prompt format renders
    from nemo.collections.common.prompts import PromptFormatter

    formatter = PromptFormatter.resolve(model.cfg.prompt_format)(model.tokenizer)
    tag = model.audio_locator_tag_id
    for prompt, messages in zip(request['prompts'], request['messages'], strict=True):
        if messages is None:
            continue
        turns = [{'role': m['role'], 'slots': {'message': m['content']}} for m in messages]
        ids = [AUDIO_SLOT if i == tag else i for i in formatter.encode_dialog(turns)['input_ids'].tolist()]
        if ids != prompt['ids']:
            raise RuntimeError(f'prompt_format {model.cfg.prompt_format} renders {ids}, and we {prompt["ids"]}')


def _causal_lm(request: Request) -> Answers:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(request.get('base') or request['path'], dtype=torch.float32)
    if request.get('base'):
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, request['path'])
    tokenizer = AutoTokenizer.from_pretrained(request['path'])
    model = model.eval()
    texts, numbers = [], []
    for prompt in request['prompts']:
        ids = torch.tensor([prompt['ids']])
        with torch.no_grad():
            numbers.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1])
            made = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=request['max_new_tokens'],
                eos_token_id=request['stops'],
                pad_token_id=request['stops'][0],
            )[0, ids.shape[1] :]
        texts.append(tokenizer.decode(made, skip_special_tokens=True).strip())
    return texts, numbers


def _asr(request: Request) -> Answers:
    import torch
    from nemo.collections.asr.models import ASRModel

    model = ASRModel.restore_from(request['path'], map_location='cpu').eval()
    numbers = []
    for prompt in request['prompts']:
        for path in prompt['audios']:
            clip = _samples(path)
            with torch.no_grad():
                mel, lens = model.preprocessor(input_signal=clip[None], length=torch.tensor([len(clip)]))
                numbers.append(model.encoder(audio_signal=mel, length=lens)[0][0])
    return ['' for _ in numbers], numbers


def _megatron(request: Request) -> Answers:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from nemo_vtb.backbone.megatron import runtime

    runtime.initialize(tensor_parallel=int(os.environ['WORLD_SIZE']))
    from nemo_vtb.backbone.megatron.model import build_backbone

    backbone = build_backbone(request['base'], lora_config=request['lora']).eval()
    if request['lora']:
        backbone.load_lora(load_file(Path(request['path']) / 'adapter_model.safetensors'))
    frames = load_file(request['frames'])
    tokenizer = AutoTokenizer.from_pretrained(request['base'])
    texts, numbers = [], []
    for number, prompt in enumerate(request['prompts']):
        ids = torch.tensor(prompt['ids'])
        with torch.no_grad():
            rows = list(backbone.embed(ids.clamp(min=0)).split(1))
            for slot in (ids == AUDIO_SLOT).nonzero().flatten().tolist():
                rows[slot] = frames[f'{number}.{slot}']
            embeds = torch.cat(rows)  # (T, H)
            size = len(embeds)
            hidden = backbone(embeds, torch.arange(size), torch.tensor([0, size], dtype=torch.int32), size)
            numbers.append(backbone.head(hidden[-1:])[0])
            mask = torch.ones(1, size, dtype=torch.long)
            stops = request['stops']
            made = backbone.greedy(embeds[None], mask, request['max_new_tokens'], stops, stops[0])[0]
        texts.append(tokenizer.decode(made, skip_special_tokens=True).strip())
    return texts, numbers


def _samples(path: str) -> Any:
    import soundfile
    import torch

    samples, rate = soundfile.read(path, dtype='float32')
    if rate != 16000 or samples.ndim != 1:
        raise ValueError(f'{path}: {rate} Hz, {samples.ndim} channels; the clips of a request are 16 kHz mono')
    return torch.from_numpy(samples)


FORMS: dict[str, Callable[[Request], Answers]] = {
    'nemo': _nemo,
    'salm': _salm,
    'causal_lm': _causal_lm,
    'asr': _asr,
    'megatron': _megatron,
}


if __name__ == '__main__':
    main()
