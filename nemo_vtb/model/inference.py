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
"""Answers to prompts of text and speech, as SALM takes them, batched (letters: B batch, T prompt length, H width)."""

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from nemo_vtb.data.audio import read_audio
from nemo_vtb.data.conversation import Audio, Conversation, conversation_from_messages
from nemo_vtb.data.template import AUDIO_SLOT
from nemo_vtb.errors import VtbDataError
from nemo_vtb.model.perception import encode, evaluating

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

_TENSOR = 'tensor:'
_TOKENS_A_POSITION, _SPARE_TOKENS = 1.25, 5
_ABOUT_RECORDINGS = ('asr_ast', 'speech_qa')
NOTHING_HEARD = '[nothing heard]'
"""The answer where an adapter that hears words heard none: an LLM would invent some."""


@torch.no_grad()
def generate(
    model: 'VoiceTextBlender',
    prompts: list[list[dict[str, Any]]] | Tensor,
    audios: Tensor | None = None,
    audio_lens: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    enable_thinking: bool | None = None,
    **generation_kwargs: Any,
) -> Tensor:
    """Generate answers; unlike SALM, a text-only prompt too returns the answer alone.

    Args:
        prompts: Per example a list of messages `{"role", "content", "audio": [paths]}` with one
            `audio_locator_tag` in the content for each recording; or token ids (B, T), left-padded.
        audios: (A, S) float32 at 16 kHz, for prompts whose tags name no files.
        audio_lens: (A,) int64, samples of each.
        generation_config: Replaces the default (the tokenizer's end, padding and end-of-turn tokens).
        enable_thinking: Accepted for SALM's sake; prompts are rendered for an immediate answer.
        generation_kwargs: Passed on to transformers' `generate`.

    Returns:
        (B, new tokens) int64, padded on the right.

    Raises:
        VtbDataError: Tags and recordings do not match.
    """
    if isinstance(prompts, Tensor):
        rows = [_strip_padding(model, row) for row in prompts]
        clips = _rows_of(audios, audio_lens)
    else:
        conversations = _read_prompts(model, prompts, given=0 if audios is None else audios.shape[0])
        rows = [model.renderer.render_prompt(c).ids for c in conversations]
        tensors = _rows_of(audios, audio_lens)
        clips = [
            tensors[int(a.path.removeprefix(_TENSOR))] if a.path.startswith(_TENSOR) else load_clip(model, a)
            for c in conversations
            for a in c.audios
        ]
    return _generate(model, rows, clips, generation_config, **generation_kwargs)


@torch.no_grad()
def answer(
    model: 'VoiceTextBlender',
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 8,
    use_lora: bool = True,
    **generation_kwargs: Any,
) -> list[str]:
    """Answer conversations that end with a user turn, greedily unless told otherwise, in their order.

    Args:
        conversations: What is asked.
        max_new_tokens: Longest answer.
        batch_size: How many are answered at once; examples of similar length go together.
        use_lora: False lets the untouched base LLM answer.
        generation_kwargs: Passed on to transformers' `generate`.

    Returns:
        One text for each conversation, without special tokens. With an adapter that compresses (docs/hearing.md) a
        transcript is no longer than its recordings allow, and `NOTHING_HEARD` if there was no word in them.
    """
    rows = [model.renderer.render_prompt(c).ids for c in conversations]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    answers = [''] * len(rows)
    options = {'do_sample': False, 'max_new_tokens': max_new_tokens} | generation_kwargs
    with nullcontext() if use_lora else model.backbone.without_lora():
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            clips = [load_clip(model, a) for i in chosen for a in conversations[i].audios]
            kinds = [conversations[i].kind for i in chosen]
            ids = _generate(model, [rows[i] for i in chosen], clips, None, kinds, **options)
            texts = model.tokenizer.tokenizer.batch_decode(ids, skip_special_tokens=True)
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = text.strip()
    return answers


@torch.no_grad()
def next_token_logits(model: 'VoiceTextBlender', conversation: Conversation) -> Tensor:
    """Logits of the first token of the answer to a conversation that ends with a user turn: (V,) float32."""
    rows, clips = [model.renderer.render_prompt(conversation).ids], [load_clip(model, a) for a in conversation.audios]
    # each recording by itself: padding to a common length would add roundings of its own
    [embeds] = embed_prompts(model, rows, clips, together=False)  # (T, H)
    return model.backbone.first_logits(embeds)


# ---- parts


def _generate(
    model: 'VoiceTextBlender',
    rows: list[list[int]],
    clips: list[Tensor],
    config: GenerationConfig | None,
    kinds: Sequence[str] = (),
    **kw: Any,
) -> Tensor:
    """(B, new tokens); with `kinds` of the conversations, recordings bound what is said to be in them."""
    with evaluating(model):
        prompts = embed_prompts(model, rows, clips)
        adapter = model.perception.modality_adapter
        compressed = bool(kinds) and getattr(adapter, 'compresses', False)
        limits = _limits(rows, prompts, kinds) if compressed else []
        if limits and 'max_new_tokens' in kw:
            kw['max_new_tokens'] = min(kw['max_new_tokens'], max(limits))
        embeds, mask = _left_pad(prompts)  # (B, T, H), (B, T)
        # transformers 5 wants one of the two: a config, or single options
        options = {'generation_config': config} if config else generation_defaults(model)
        ids = model.backbone.generate(embeds, mask, **options, **kw)
        for number, limit in enumerate(limits):
            ids[number, limit:] = model.text_pad_id
            if kinds[number] in _ABOUT_RECORDINGS and _nothing_heard(adapter, rows[number], prompts[number]):
                answer = model.tokenizer.tokenizer.encode(NOTHING_HEARD, add_special_tokens=False)
                ids = _replaced(ids, number, answer, model.text_pad_id)
    return ids


def _limits(rows: list[list[int]], prompts: list[Tensor], kinds: Sequence[str]) -> list[int]:
    """Most tokens of each answer: a transcript has about one token for each position that is left of its recording.

    One that is much longer goes round in circles. Answers of other kinds are not bounded.
    """
    positions = [len(p) - sum(i != AUDIO_SLOT for i in row) for row, p in zip(rows, prompts, strict=True)]
    bounds = [_SPARE_TOKENS + math.ceil(_TOKENS_A_POSITION * number) for number in positions]
    return [bound if kind == 'asr_ast' else sys.maxsize for bound, kind in zip(bounds, kinds, strict=True)]


def _nothing_heard(adapter: Any, row: list[int], prompt: Tensor) -> bool:
    """Whether each recording of a prompt became one frame, and that one is a blank."""
    slots = [place for place, number in enumerate(row) if number == AUDIO_SLOT]
    return bool(slots) and len(prompt) == len(row) and all(adapter.is_blank(prompt[place]) for place in slots)


def _replaced(ids: Tensor, row: int, answer: list[int], pad: int) -> Tensor:
    """Generated tokens (B, N) with another answer in one row."""
    ids = torch.nn.functional.pad(ids, (0, max(0, len(answer) - ids.shape[1])), value=pad)
    ids[row] = pad
    ids[row, : len(answer)] = torch.tensor(answer, device=ids.device)
    return ids


def embed_prompts(
    model: 'VoiceTextBlender', rows: list[list[int]], clips: list[Tensor], *, together: bool = True
) -> list[Tensor]:
    """Embed each prompt with the frames of its recordings in place of the slots: list of (T_i, H)."""
    slots = sum(row.count(AUDIO_SLOT) for row in rows)
    if slots != len(clips):
        raise VtbDataError(
            'The placeholders in the prompts do not match the recordings.',
            field='prompts',
            got=f'{slots} placeholders for {len(clips)} recordings',
            allowed='one placeholder for each recording',
        )
    groups = [clips] if together else [[clip] for clip in clips]
    frames = iter([frames for group in groups for frames in encode_clips(model, group)])
    out = []
    for row in rows:
        ids = torch.tensor(row, device=model.device)
        text = model.backbone.embed(ids.clamp(min=0))  # (T, H)
        pieces, begin = [], 0
        for slot in (ids == AUDIO_SLOT).nonzero().flatten().tolist():
            pieces += [text[begin:slot], next(frames).to(text.dtype)]
            begin = slot + 1
        out.append(torch.cat([*pieces, text[begin:]]))
    return out


def encode_clips(model: 'VoiceTextBlender', clips: list[Tensor]) -> Sequence[Tensor]:
    """Frames of each clip, encoded together: A tensors of (F_i, H)."""
    if not clips:
        return []
    lens = torch.tensor([c.numel() for c in clips], device=model.device)
    audios = torch.nn.utils.rnn.pad_sequence([c.to(model.device) for c in clips], batch_first=True)  # (A, S)
    chunk_s = model.cfg.get('encoder_chunk_size_seconds')
    frames, frame_lens = encode(model.perception, audios, lens, chunk_s=chunk_s)  # (F, H), (A,)
    return frames.split(frame_lens.tolist())


def generation_defaults(model: 'VoiceTextBlender') -> dict[str, Any]:
    """Options of transformers' `generate` that end an answer: the tokenizer's end, padding and end-of-turn tokens."""
    stops = sorted({i for i in (model.text_eos_id, *model.renderer.end_of_turn_ids) if i is not None})
    return {'bos_token_id': model.text_bos_id, 'eos_token_id': stops, 'pad_token_id': model.text_pad_id}


def _read_prompts(model: 'VoiceTextBlender', prompts: list[list[dict[str, Any]]], given: int) -> list[Conversation]:
    """Messages to conversations; tags without files take the given tensors one after the other."""
    conversations, used = [], 0
    for number, messages in enumerate(prompts):
        filled = []
        for message in messages:
            content = message.get('content', message.get('slots', {}).get('message', ''))
            tags = content.count(model.audio_locator_tag) if model.audio_locator_tag else 0
            if given and tags and not message.get('audio'):
                message = message | {'audio': [Audio(f'{_TENSOR}{used + i}') for i in range(tags)]}
                used += tags
            filled.append(message)
        conversations.append(
            conversation_from_messages(filled, audio_tag=model.audio_locator_tag, id=f'prompt {number}')
        )
    if used != given:
        raise VtbDataError(
            'The placeholders in the prompts do not match the recordings.',
            field='audios',
            got=f'{used} placeholders for {given} recordings',
            allowed=f'one {model.audio_locator_tag} for each recording',
        )
    return conversations


def _strip_padding(model: 'VoiceTextBlender', row: Tensor) -> list[int]:
    ids = row.tolist()
    while ids and ids[0] == model.text_pad_id:
        ids.pop(0)
    tag = model.audio_locator_tag_id
    return [AUDIO_SLOT if i == tag else i for i in ids]


def load_clip(model: 'VoiceTextBlender', audio: Audio) -> Tensor:
    """Samples of a recording at the rate of the encoder: (S,) float32 on the CPU."""
    samples = read_audio(audio, sample_rate=model.sampling_rate)
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def _rows_of(audios: Tensor | None, audio_lens: Tensor | None) -> list[Tensor]:
    if audios is None:
        return []
    lens = [audios.shape[1]] * audios.shape[0] if audio_lens is None else audio_lens.tolist()
    return [audio[:length] for audio, length in zip(audios, lens, strict=True)]


def _left_pad(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(T_i, H) each to (B, T, H) with zeros on the left, and the (B, T) mask of what is real."""
    longest = max(row.shape[0] for row in rows)
    embeds = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])  # (B, T, H)
    mask = torch.zeros(len(rows), longest, dtype=torch.long, device=embeds.device)  # (B, T)
    for i, row in enumerate(rows):
        embeds[i, longest - row.shape[0] :] = row
        mask[i, longest - row.shape[0] :] = 1
    return embeds, mask
