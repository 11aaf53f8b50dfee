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
"""Answers token by token: new prompts and answers in the making share one packed pass, without padding.

Letters: T prompt length in tokens (text tokens and audio frames), H width, V vocabulary.
"""

import sys
from collections.abc import Hashable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_vtb.backbone.hf import HFBackbone
from nemo_vtb.backbone.kv_cache import KVCache
from nemo_vtb.data.faults import Reason, audio_fault
from nemo_vtb.data.template import AUDIO_SLOT
from nemo_vtb.errors import VtbConfigError, VtbModelError
from nemo_vtb.model.inference import encode_clips, generation_defaults

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

_INCOMPLETE = '\ufffd'


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the tokens of an answer are chosen, and where it ends.

    Args:
        max_new_tokens: Longest answer in tokens; one that reaches it ends with the reason `length`.
        temperature: 0 takes the most likely token.
        top_p: Only the most likely tokens that together have this probability.
        seed: Of the random numbers of this answer alone; None for others each time.
        stop: Texts before which the answer ends.

    Raises:
        VtbConfigError: A value is out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, ok, allowed in (
            ('max_new_tokens', self.max_new_tokens >= 1, 'at least 1'),
            ('temperature', 0.0 <= self.temperature <= 10.0, '0 to 10'),
            ('top_p', 0.0 < self.top_p <= 1.0, 'above 0, at most 1'),
            ('stop', all(self.stop), 'texts that are not empty'),
            ('seed', self.seed is None or -(2**63) <= self.seed < 2**63, 'an integer of 64 bits'),
        ):
            if not ok:
                raise VtbConfigError(
                    'A sampling setting is out of range.', field=name, got=getattr(self, name), allowed=allowed
                )


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt: `keys` says what stands at each of the T positions, `embeds` is (T, H).

    Equal keys mean equal embeddings: a token id, or a frame of a recording as (recording, number).
    """

    keys: tuple[Hashable, ...]
    embeds: Tensor

    def __len__(self) -> int:
        return len(self.keys)


class Generation:
    """One answer in the making.

    Args:
        prompt: What is answered.
        sampling: How.
        tokenizer: Of the LLM.
        stop_ids: Tokens that end an answer.
        cache: Keys and values of the first positions of the prompt; at least one position must be left.
        use_lora: False lets the untouched base LLM answer.
    """

    def __init__(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        tokenizer: 'object',
        stop_ids: frozenset[int],
        cache: KVCache | None = None,
        use_lora: bool = True,
    ) -> None:
        self.prompt, self.sampling, self.use_lora = prompt, sampling, use_lora
        self.cache = KVCache() if cache is None else cache
        self.reused = self.cache.length
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self._tokenizer, self._stop_ids = tokenizer, stop_ids
        self._random = torch.Generator()
        self._random.seed() if sampling.seed is None else self._random.manual_seed(sampling.seed)
        self._text, self._given = '', 0

    @property
    def text(self) -> str:
        """The answer so far, without special tokens and outer white space."""
        return self._text

    def new_text(self) -> str:
        """What has become certain since the last call: no half characters, nothing that a stop text may take back."""
        held = 0 if self.finish_reason else max((len(stop) - 1 for stop in self.sampling.stop), default=0)
        certain = self._text[: len(self._text) - held] if held else self._text
        piece = certain[self._given :]
        self._given += len(piece)
        return piece

    def choose(self, logits: Tensor) -> None:
        """Add the next token, chosen from its logits (V,), float32 on any device."""
        token = int(logits.argmax()) if self.sampling.temperature == 0 else self._sample(logits.cpu())
        if token in self._stop_ids:
            self.finish_reason = 'stop'
            return
        self.tokens.append(token)
        text = self._tokenizer.decode(self.tokens, skip_special_tokens=True)  # type: ignore[attr-defined]
        self._text = text.lstrip().rstrip(_INCOMPLETE).rstrip()
        found = [place for place in (self._text.find(stop) for stop in self.sampling.stop) if place >= 0]
        if found:
            self._text, self.finish_reason = self._text[: min(found)].rstrip(), 'stop'
        elif len(self.tokens) >= self.sampling.max_new_tokens:
            self._text, self.finish_reason = text.strip(), 'length'

    def _sample(self, logits: Tensor) -> int:
        probabilities = torch.softmax(logits.double() / self.sampling.temperature, -1)
        order = probabilities.argsort(descending=True, stable=True)
        cumulative = probabilities[order].cumsum(0)
        kept = int((cumulative - probabilities[order] < self.sampling.top_p).sum())
        point = torch.rand((), generator=self._random, dtype=torch.float64) * cumulative[kept - 1]
        return int(order[min(int(torch.searchsorted(cumulative[:kept], point, right=True)), kept - 1)])


class Engine:
    """A model that answers many prompts of unlike length at once.

    Args:
        model: A restored model, whose LLM is one of transformers. `context` is how many tokens it can read.

    Raises:
        VtbModelError: The LLM is of another backbone.
    """

    def __init__(self, model: 'VoiceTextBlender') -> None:
        if not isinstance(model.backbone, HFBackbone):
            raise VtbModelError(
                'This backbone cannot keep a conversation.',
                field='model',
                got=type(model.backbone).__name__,
                allowed='HFBackbone',
                remedy='restore the .nemo file without a trainer',
            )
        self.model = model.eval()
        self._backbone = model.backbone
        self.tokenizer = model.tokenizer.tokenizer
        self._stop_ids = frozenset(generation_defaults(model)['eos_token_id'])
        penalty = getattr(getattr(model.llm, 'generation_config', None), 'repetition_penalty', None)
        self._repetition_penalty = float(penalty or 1.0)
        positions = getattr(model.llm.config.get_text_config(), 'max_position_embeddings', None)
        self.context = int(positions or sys.maxsize)

    def frames(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Frames of clips, (S,) float32 each at the rate of the encoder, as the LLM reads them: (F_i, H) each.

        Raises:
            VtbAudioError: A clip is shorter than one frame.
        """
        for clip in clips:
            if self.model.frames(len(clip)) < 1:
                raise audio_fault(Reason.AUDIO_TOO_SHORT, field='audio', got=f'{len(clip)} samples')
        with torch.no_grad():
            return list(encode_clips(self.model, list(clips)))

    def prompt(self, ids: Sequence[int], names: Sequence[Hashable], frames: Sequence[Tensor]) -> Prompt:
        """Put the frames of recordings in the place of their slots.

        Args:
            ids: Token ids of a rendered prompt, `AUDIO_SLOT` for each recording.
            names: What tells the recordings apart.
            frames: Of each, (F_i, H).
        """
        keys, pieces = list[Hashable](), list[Tensor]()
        left = iter(zip(names, frames, strict=True))
        for is_slot, run in _runs(ids):
            if is_slot:
                for _ in run:
                    name, part = next(left)
                    keys += [(name, number) for number in range(len(part))]
                    pieces.append(part)
            else:
                keys += run
                with torch.no_grad():
                    pieces.append(self._backbone.embed(torch.tensor(run, device=self.model.device)))
        return Prompt(tuple(keys), torch.cat([piece.to(pieces[0].dtype) for piece in pieces]))

    def begin(
        self, prompt: Prompt, sampling: Sampling, *, cache: KVCache | None = None, use_lora: bool = True
    ) -> Generation:
        """Make an answer that `step` goes on with; `cache` holds the first positions of the prompt, never all."""
        stops, tokenizer = self._stop_ids, self.tokenizer
        return Generation(prompt, sampling, tokenizer=tokenizer, stop_ids=stops, cache=cache, use_lora=use_lora)

    def step(self, generations: Sequence[Generation]) -> None:
        """Give each answer its next token, in one packed pass: all of a new prompt, or the token before."""
        for use_lora in (True, False):
            group = [g for g in generations if g.use_lora == use_lora and g.finish_reason is None]
            if group:
                with torch.no_grad(), nullcontext() if use_lora else self._backbone.without_lora():
                    self._step(group)

    def answer(self, generation: Generation) -> Iterator[str]:
        """Run one answer to its end; yields pieces of its text."""
        while generation.finish_reason is None:
            self.step([generation])
            if piece := generation.new_text():
                yield piece

    def _step(self, group: Sequence[Generation]) -> None:
        pieces = [self._pending(generation) for generation in group]
        lengths = [len(piece) for piece in pieces]
        hidden = self._backbone.extend(torch.cat(pieces), lengths, [g.cache for g in group])  # (T, H)
        last = torch.tensor(lengths, device=hidden.device).cumsum(0) - 1
        for generation, logits in zip(group, self._backbone.head(hidden[last]).float(), strict=True):
            generation.choose(self._penalised(logits, generation.tokens))

    def _pending(self, generation: Generation) -> Tensor:
        """(n, H) of what the LLM has not read yet."""
        if generation.tokens:
            return self._backbone.embed(torch.tensor(generation.tokens[-1:], device=self.model.device))
        return generation.prompt.embeds[generation.cache.length :]

    def _penalised(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        """Logits (V,) with the repetition penalty of the LLM's own generation config, as transformers applies it."""
        if self._repetition_penalty == 1.0 or not tokens:
            return logits
        seen = torch.tensor(sorted(set(tokens)), device=logits.device)
        score = logits[seen]
        score = torch.where(score < 0, score * self._repetition_penalty, score / self._repetition_penalty)
        return logits.scatter(0, seen, score)


def shared_length(old: Sequence[Hashable], new: Sequence[Hashable]) -> int:
    """How many first positions two prompts share."""
    for place, (one, other) in enumerate(zip(old, new, strict=False)):
        if one != other:
            return place
    return min(len(old), len(new))


def _runs(ids: Sequence[int]) -> Iterator[tuple[bool, list[int]]]:
    """Runs of slots and runs of tokens, in order."""
    run = list[int]()
    for number in ids:
        if run and (run[-1] == AUDIO_SLOT) != (number == AUDIO_SLOT):
            yield run[0] == AUDIO_SLOT, run
            run = []
        run.append(number)
    if run:
        yield run[0] == AUDIO_SLOT, run
