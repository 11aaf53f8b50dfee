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
"""A conversation with a model: turns of text and recordings, streamed answers, keys and values kept between turns."""

import json
import os
import time
from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from nemo_vtb.assets.resolve import resolve_asset
from nemo_vtb.backbone.kv_cache import KVCache
from nemo_vtb.data.audio import clip_span, probe
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn, conversation_to_dict, infer_kind
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.io import write_atomically
from nemo_vtb.model.inference import load_clip
from nemo_vtb.serving.engine import Engine, Prompt, Sampling, shared_length


@dataclass(frozen=True, slots=True)
class Answered:
    """How the last answer came about.

    Args:
        text: The answer.
        finish_reason: `stop`, or `length` if the limit of tokens ended it.
        prompt_tokens: Length of the prompt, audio frames included.
        reused: How many of them the kept keys and values held already.
        new_tokens: Tokens of the answer.
        first_token_s: Seconds from the question to the first token.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    reused: int
    new_tokens: int
    first_token_s: float


@dataclass(slots=True)
class _Kept:
    """Keys and values, and what stands at their positions."""

    cache: KVCache
    keys: tuple[Hashable, ...] = ()


class ChatSession:
    """One conversation; an error leaves it as it was.

    Args:
        engine: The model.
        sampling: How answers are chosen.
        system: System turn in front of everything.
        keep_cache: False reads the whole conversation again for each answer, recordings too.
        max_prompt_tokens: Longest conversation in tokens, audio frames included; None: what the LLM can read.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        sampling: Sampling | None = None,
        system: str | None = None,
        keep_cache: bool = True,
        max_prompt_tokens: int | None = None,
    ) -> None:
        self.engine, self.sampling, self.use_lora = engine, sampling or Sampling(), True
        self._max_prompt_tokens = min(max_prompt_tokens or engine.context, engine.context - 1)
        self.last: Answered | None = None
        self.turns: list[Turn] = []
        self.system = system
        self._keep_cache = keep_cache
        self._kept: dict[bool, _Kept] = {}
        self._frames: dict[Hashable, Tensor] = {}

    # ---- turns

    def recording(self, path: str) -> Audio:
        """A recording for the next turn, with its length from the header.

        Args:
            path: File, or `asset:NAME/FILE`.

        Raises:
            VtbAudioError: Missing, empty or not decodable; `reason` says which.
        """
        file = str(Path(resolve_asset(path)).expanduser().absolute())
        return Audio(file, probe(file).duration_s)

    def ask(self, parts: Sequence[Text | Audio]) -> Iterator[str]:
        """Add a user turn and yield pieces of the answer; when all are taken, both turns stand in the conversation.

        Args:
            parts: Text and recordings in the order in which they are said.

        Raises:
            VtbAudioError: A recording cannot be read.
            VtbDataError: There is nothing to ask.
        """
        if not any(isinstance(part, Audio) or part.text.strip() for part in parts):
            raise VtbDataError(
                'There is nothing to answer.', field='turn', got=list(parts), allowed='text or recordings'
            )
        yield from self._answer([*self.turns, Turn('user', tuple(parts))])

    def retry(self) -> Iterator[str]:
        """Answer the last user turn once more.

        Raises:
            VtbDataError: There is none.
        """
        yield from self._answer(self._without_last_answer('retry'))

    def undo(self) -> Turn:
        """Take the last question and its answer back; returns the question.

        Raises:
            VtbDataError: There is none.
        """
        *rest, question = self._without_last_answer('undo')
        self.turns = rest
        return question

    def _without_last_answer(self, what: str) -> list[Turn]:
        if not self.turns:
            raise VtbDataError(f'There is nothing to {what}.', field=what, got='an empty conversation')
        return self.turns[:-1] if self.turns[-1].role == 'assistant' else list(self.turns)

    def base_answer(self) -> Generator[str, None, Answered]:
        """What the base LLM, LoRA switched off, says to the last question; the conversation stays as it is.

        Raises:
            VtbDataError: There is none.
        """
        return self._generate(self._without_last_answer('compare'), use_lora=False)

    def _answer(self, turns: list[Turn]) -> Iterator[str]:
        answered = yield from self._generate(turns, self.use_lora)
        self.turns = [*turns, Turn('assistant', (Text(answered.text),))]
        self.last = answered

    def _generate(self, turns: list[Turn], use_lora: bool) -> Generator[str, None, Answered]:
        began = time.perf_counter()
        prompt = self._prompt(self._conversation(turns))
        kept = self._kept.pop(use_lora, None) or _Kept(KVCache())
        # at least one position is left, which says what comes next
        kept.cache.truncate(min(shared_length(kept.keys, prompt.keys), len(prompt) - 1) if self._keep_cache else 0)
        sampling = replace(
            self.sampling, max_new_tokens=min(self.sampling.max_new_tokens, self.engine.context - len(prompt))
        )
        generation = self.engine.begin(prompt, sampling, cache=kept.cache, use_lora=use_lora)
        first_token_s = 0.0
        while generation.finish_reason is None:
            self.engine.step([generation])
            first_token_s = first_token_s or time.perf_counter() - began
            if piece := generation.new_text():
                yield piece
        # the last token has been chosen, not read
        keys = (*prompt.keys, *generation.tokens)
        self._kept[use_lora] = _Kept(kept.cache, keys[: kept.cache.length])
        return Answered(
            generation.text,
            generation.finish_reason,
            len(prompt),
            generation.reused,
            len(generation.tokens),
            first_token_s,
        )

    def _conversation(self, turns: Sequence[Turn]) -> Conversation:
        first = [Turn('system', (Text(self.system),))] if self.system else []
        whole = (*first, *turns)
        return Conversation('chat', whole, infer_kind(whole))

    def _prompt(self, conversation: Conversation) -> Prompt:
        rendered = self.engine.model.renderer.render_prompt(conversation)
        # before any frame is computed
        count = len(rendered.ids) + sum(self._length(audio)[1] - 1 for audio in conversation.audios)
        if count > self._max_prompt_tokens:
            raise VtbDataError(
                'The conversation is too long.',
                field='max_prompt_tokens',
                got=f'{count} tokens, audio included',
                allowed=f'at most {self._max_prompt_tokens}',
                remedy='shorter recordings, or a new conversation',
            )
        if not self._keep_cache:
            self._frames = {}
        names = [self._name(audio) for audio in conversation.audios]
        for name, audio in zip(names, conversation.audios, strict=True):
            if name not in self._frames:
                [self._frames[name]] = self.engine.frames([load_clip(self.engine.model, audio)])
        self._frames = {name: self._frames[name] for name in names}
        return self.engine.prompt(rendered.ids, names, [self._frames[name] for name in names])

    def _length(self, audio: Audio) -> tuple[float, int]:
        """Seconds and tokens of a recording, from its header."""
        samples = clip_span(audio, probe(audio.path), self.engine.model.sampling_rate).num_samples
        return samples / self.engine.model.sampling_rate, self.engine.model.frames(samples)

    def _name(self, audio: Audio) -> Hashable:
        """What tells a recording apart; a file that was written anew is another one."""
        probe(audio.path)
        facts = os.stat(audio.path.partition('.tar!/')[0] + ('.tar' if '.tar!/' in audio.path else ''))
        return audio.path, audio.offset_s, audio.duration_s, facts.st_mtime_ns, facts.st_size

    # ---- what a person looks at

    def show(self) -> str:
        """The conversation as the LLM reads it; recordings with their seconds and tokens.

        Raises:
            VtbDataError: Nothing has been said yet.
        """
        if not self.turns:
            raise VtbDataError('There is nothing to show.', field='show', got='an empty conversation')
        conversation = self._conversation(self.turns)
        rendered = self.engine.model.renderer.render(conversation)
        pieces, tokens = list[str](), 0
        for segment in rendered.segments:
            if segment.audio is None:
                pieces.append(segment.text)
                tokens += len(segment.ids)
                continue
            audio = conversation.audios[segment.audio]
            seconds, bound = self._length(audio)
            heard = self._frames.get(self._name(audio))
            count = bound if heard is None else len(heard)  # an adapter that compresses gives fewer
            pieces.append(f'<audio {Path(audio.path).name}: {seconds:.2f} s, {count} tokens>')
            tokens += count
        return f'{"".join(pieces)}\n[{tokens} tokens]'

    def save(self, path: str | Path) -> int:
        """Append the conversation to a file of NeMo's `multimodal_conversation` lines; returns the number of its line.

        Raises:
            VtbDataError: Nothing has been answered, or an answer is empty, which no reader takes.
            VtbConfigError: The file cannot be written.
        """
        if not self.turns or any(turn.role == 'assistant' and not turn.text for turn in self.turns):
            raise VtbDataError(
                'There is no whole conversation to save.',
                field='save',
                got='an empty answer' if self.turns else 'an empty conversation',
                remedy='ask something first; /undo takes a question without an answer back',
            )
        path = Path(path).expanduser()
        try:
            before = path.read_text(encoding='utf-8') if path.exists() else ''
            lines = before.splitlines()
            record = conversation_to_dict(self._conversation(self.turns)) | {'id': f'{path.stem}-{len(lines) + 1}'}
            record['custom'] = {'kind': infer_kind(tuple(self.turns)), 'source': 'chat'}
            write_atomically(path, '\n'.join([*lines, json.dumps(record, ensure_ascii=False)]) + '\n')
        except (OSError, UnicodeDecodeError) as error:
            raise VtbConfigError('The conversation cannot be saved.', field='save', got=f'{path}: {error}') from error
        return len(lines) + 1
