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
"""What a client may send: OpenAI's fields, each with what is allowed; anything else is refused by name."""

import base64
import binascii
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from torch import Tensor

from nemo_vtb.config.schema import ServeConfig
from nemo_vtb.data.audio import clip_span, probe, read_audio
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn, infer_kind
from nemo_vtb.errors import VtbAudioError
from nemo_vtb.serving.batcher import Refusal

_MAX_CHANNELS, _MAX_RATE = 8, 192_000
_ROLES = {'developer': 'system', 'system': 'system', 'user': 'user', 'assistant': 'assistant'}


class _Strict(BaseModel):
    model_config = ConfigDict(extra='forbid', strict=True)


class _InputAudio(_Strict):
    data: str
    format: Literal['wav', 'mp3', 'flac', 'ogg']


class _AudioPart(_Strict):
    type: Literal['input_audio']
    input_audio: _InputAudio


class _TextPart(_Strict):
    type: Literal['text']
    text: str


def _as_parts(content: object) -> object:
    """A text is a list of one part."""
    return [{'type': 'text', 'text': content}] if isinstance(content, str) else content


_Part = Annotated[_TextPart | _AudioPart, Field(discriminator='type')]


class _Message(_Strict):
    role: Literal['developer', 'system', 'user', 'assistant']
    content: Annotated[list[_Part], BeforeValidator(_as_parts)]
    name: str | None = None


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class _ResponseFormat(_Strict):
    type: Literal['text']


class ChatRequest(_Strict):
    """The body of `/v1/chat/completions`."""

    model: str
    messages: list[_Message] = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=10)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    # allowed at the value that changes nothing
    n: Literal[1] | None = 1
    presence_penalty: Literal[0] | None = 0
    frequency_penalty: Literal[0] | None = 0
    logprobs: Literal[False] | None = False
    modalities: list[Literal['text']] | None = None
    response_format: _ResponseFormat | None = None
    store: Literal[False] | None = False


@dataclass(frozen=True, slots=True)
class Heard:
    """A conversation with the samples of its recordings, (S,) float32 at the rate of the encoder."""

    conversation: Conversation
    clips: tuple[Tensor, ...]
    seconds: float


def parse_chat(body: bytes) -> ChatRequest:
    """Read the body of a request.

    Raises:
        Refusal: It is not JSON, or a field is unknown, missing or out of range (400, with its name).
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = '.'.join(str(part) for part in first['loc'] if part not in ('text', 'input_audio')) or 'body'
        raise Refusal(400, field, f'{field}: {first["msg"]}') from error
    except RecursionError as error:
        raise Refusal(400, 'body', 'body: nested too deeply') from error


def hear(request: ChatRequest, settings: ServeConfig, sample_rate: int) -> Heard:
    """Decode the recordings of a request and put its messages into turns.

    Raises:
        Refusal: A recording cannot be read, or a limit is exceeded; the code names the field or the limit.
    """
    turns, clips, seconds = list[tuple[str, list[Text | Audio]]](), list[Tensor](), 0.0
    for number, message in enumerate(request.messages):
        parts = list[Text | Audio]()
        role = _ROLES[message.role]
        for place, part in enumerate(message.content):
            where = f'messages.{number}.content.{place}'
            if isinstance(part, _TextPart):
                parts.append(Text(part.text))
                continue
            if role != 'user':
                raise Refusal(400, where, f'{where}: recordings stand in user messages alone')
            if len(clips) >= settings.max_recordings:
                raise Refusal(
                    400, 'max_recordings', f'More than {settings.max_recordings} recordings (max_recordings).'
                )
            data = _decoded(part.input_audio.data, f'{where}.input_audio.data')
            clip = read_clip(data, sample_rate, settings.max_audio_s - seconds, where)
            clips.append(clip)
            seconds += len(clip) / sample_rate
            parts.append(Audio(where))
        if not parts:
            raise Refusal(400, f'messages.{number}.content', f'messages.{number}.content: empty')
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(parts)
        else:
            turns.append((role, parts))
    return Heard(_conversation(turns), tuple(clips), seconds)


def _conversation(turns: Sequence[tuple[str, list[Text | Audio]]]) -> Conversation:
    roles = [role for role, _ in turns]
    if roles[-1] != 'user' or 'system' in roles[1:]:
        raise Refusal(
            400, 'messages', f'messages: a user message at the end, a system message first alone; got {roles}'
        )
    made = tuple(Turn(role, tuple(parts)) for role, parts in turns)
    return Conversation('request', made, infer_kind(made))


def _decoded(data: str, where: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, where, f'{where}: not base64 ({error})') from error


def read_clip(data: bytes, sample_rate: int, max_s: float, where: str) -> Tensor:
    """Samples (S,) of a recording that came as bytes.

    Args:
        data: WAV, FLAC, MP3 or Ogg; what it is stands in the bytes, not in a name.
        sample_rate: Rate of the encoder in Hz.
        max_s: Seconds that are left of the limit; checked before anything is decoded.
        where: Field for messages.

    Raises:
        Refusal: It cannot be read, or is too long.
    """
    # one decoder for training, evaluation and requests: it reads files
    with tempfile.NamedTemporaryFile(prefix='vtb-') as file:
        file.write(data)
        file.flush()
        audio = Audio(file.name)
        try:
            header = probe(audio.path)
            if header.duration_s > max_s:
                raise Refusal(400, 'max_audio_s', f'{where}: more recorded seconds than max_audio_s allows')
            if header.num_channels > _MAX_CHANNELS or not 1000 <= header.sample_rate <= _MAX_RATE:
                got = f'{header.num_channels} channels at {header.sample_rate} Hz'
                raise Refusal(400, where, f'{where}: {got}; allowed: {_MAX_CHANNELS} channels, 1 to 192 kHz')
            clip_span(audio, header, sample_rate)
            samples = read_audio(audio, sample_rate=sample_rate)
        except VtbAudioError as error:
            meaning = getattr(error.reason, 'meaning', 'the recording cannot be read')
            raise Refusal(400, where, f'{where}: {meaning} ({error.reason})') from error
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def transcription_prompt(language: str | None, prompt: str | None) -> str:
    """The instruction for `/v1/audio/transcriptions`: the client's own words, else those of training's data."""
    return prompt or (f'Transcribe the speech. The language is {language}.' if language else 'Transcribe the speech.')


def verbose(text: str, seconds: float, language: str | None) -> dict[str, Any]:
    """`response_format=verbose_json`; one segment, since the model gives no times."""
    segment = {'id': 0, 'start': 0.0, 'end': seconds, 'text': text, 'tokens': [], 'seek': 0, 'temperature': 0.0}
    segment |= {'avg_logprob': 0.0, 'compression_ratio': 0.0, 'no_speech_prob': 0.0}
    return {'task': 'transcribe', 'language': language or '', 'duration': seconds, 'text': text, 'segments': [segment]}
