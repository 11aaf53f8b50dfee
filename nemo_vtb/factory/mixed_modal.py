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
"""Text-only to mixed-modal conversations: chosen sentences of user turns are synthesised, the rest stays text."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from nemo_vtb.factory.language import Piece, pieces_of, spoken_form
from nemo_vtb.factory.prompts import draw
from nemo_vtb.factory.settings import MixedModal
from nemo_vtb.factory.stage import KEPT, InputStage, Item, Outcome, attempt, audio_turn, file_name, text_turn
from nemo_vtb.factory.synthesis import Span, SynthesizedSpan, Synthesizer
from nemo_vtb.factory.text import Chat, chat_items, read_chat


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a user turn: text or speech.

    Args:
        text: As in the source.
        spoken: Whether it is to be spoken.
    """

    text: str
    spoken: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """A chat whose spoken spans are chosen."""

    item: Item
    chat: Chat
    turns: tuple[tuple[str, tuple[Part, ...]], ...]
    policies: tuple[str, ...]

    def spans(self, voice: str, lang: str) -> list[Span]:
        """What is to be spoken, in order."""
        folder = hashlib.sha256(self.item.id.encode()).hexdigest()[:2]
        name = file_name(self.item.id)
        spoken = [part for _, parts in self.turns for part in parts if part.spoken]
        return [
            Span(f'{folder}/{name}-{number}', spoken_form(part.text, lang), voice)
            for number, part in enumerate(spoken)
        ]


@dataclass
class MixedModalStage(InputStage):
    """Makes `mixed_modal` conversations.

    Args:
        settings: What to make.
        inputs: Files of chats.
    """

    settings: MixedModal
    kind: str = 'mixed_modal'

    def items(self) -> Iterator[Item]:
        """One item for each variant of each chat."""
        broken: list[Item] = []
        for item in chat_items(self.inputs, broken):
            for variant in range(self.settings.variants):
                yield Item(f'{item.id}-v{variant}', item.group, item.data)
        yield from broken

    @cached_property
    def _synthesizer(self) -> Synthesizer:
        settings = self.settings
        return Synthesizer(settings.lang, settings.seed, settings.tts, settings.verify, settings.augment)

    def _make_all(self, items: Sequence[Item], out: Path) -> list[Outcome]:
        """Choose, speak and verify the spans of one chunk, all in the same batches."""
        plans = [attempt(item, self._plan) for item in items]
        spans: list[Span] = []
        for plan in plans:
            if isinstance(plan, _Plan):
                spans += plan.spans(self._synthesizer.voice_of(plan.item.group), self.settings.lang)
        spoken = {one.span.key: one for one in self._synthesizer.synthesize(spans, out)}
        return [self._finish(plan, spoken) if isinstance(plan, _Plan) else plan for plan in plans]

    def _plan(self, item: Item) -> _Plan | Outcome:
        settings = self.settings
        chat, reason = read_chat(item.data, settings, self.avoid_list)
        if reason is not None or chat is None:
            return Outcome(item.id, item.group, None, reason or 'not_text')
        rng = Random(f'{settings.seed}:{item.id}')
        users = [number for number, (role, _) in enumerate(chat.turns) if role == 'user']
        pieces = {n: pieces_of(chat.turns[n][1], settings.lang, settings.max_span_words) for n in users}
        possible = [n for n in users if any(piece.speakable for piece in pieces[n])]
        if not possible:
            return Outcome(item.id, item.group, None, 'nothing_to_speak')
        chosen = {n for n in possible if rng.random() < settings.turn_share} or {rng.choice(possible)}
        turns: list[tuple[str, tuple[Part, ...]]] = []
        policies = []
        for number, (role, text) in enumerate(chat.turns):
            if number in chosen:
                policy = draw(rng, settings.policies, 'policies')
                policies.append(policy)
                turns.append((role, plan_turn(rng, pieces[number], policy)))
            elif text:
                turns.append((role, (Part(text, False),)))
        return _Plan(item, chat, tuple(turns), tuple(policies))

    def _finish(self, plan: _Plan, spoken: dict[str, SynthesizedSpan]) -> Outcome:
        item, settings = plan.item, self.settings
        mine = [spoken[span.key] for span in plan.spans('', settings.lang)]
        facts: dict[str, Any] = {
            'lang': settings.lang, 'policy': '+'.join(sorted(set(plan.policies))), 'format': plan.chat.format,
            'spans': [{'text': one.span.text, 'reason': one.reason, **one.facts} for one in mine],
        }  # fmt: skip
        facts['voice'] = mine[0].facts['voice']
        files = tuple(one.file for one in mine if one.file)
        failed = [one for one in mine if one.reason != KEPT]
        if failed and (settings.on_failed_span == 'drop' or len(failed) == len(mine)):
            # recordings of a rejected conversation are nobody's: `finish` removes them
            return Outcome(item.id, item.group, None, failed[0].reason, facts, files)
        entries: list[dict[str, Any]] = []
        queue = iter(mine)
        for role, parts in plan.turns:
            for part in parts:
                one = next(queue) if part.spoken else None
                if one is not None and one.file:
                    entries.append(audio_turn(one.file, one.seconds, part.text))
                else:
                    entries.append(text_turn(role, part.text))
        wers = [one.facts['wer'] for one in mine if 'wer' in one.facts and one.file]
        custom = {
            'kind': self.kind, 'lang': settings.lang, 'source': item.group.rpartition('-')[0], 'task': 'chat',
            'policy': facts['policy'], 'voice': facts['voice'], **({'wer': max(wers)} if wers else {}),
        }  # fmt: skip
        said = '\n'.join(f'{entry["type"]} {entry.get("text", entry["value"])}'.lower() for entry in entries)
        return Outcome(
            item.id, item.group, {'id': item.id, 'conversations': entries, 'custom': custom}, KEPT, facts, files, said
        )


def plan_turn(rng: Random, pieces: Sequence[Piece], policy: str) -> tuple[Part, ...]:
    """Decide which pieces of a turn are spoken, and join neighbours of one sort.

    Args:
        rng: Source of randomness.
        pieces: The turn; at least one can be spoken.
        policy: `full_turn`: all that can be; `sentences`: one run of sentences, begin and end drawn evenly, as in the
            paper; `multi_span`: two or more runs with text between them, where there are enough sentences.

    Returns:
        The parts in their order; at least one is spoken.
    """
    able = [number for number, piece in enumerate(pieces) if piece.speakable]
    chosen = choose_spans(rng, len(able), policy)
    spoken = {able[number] for number in chosen}
    parts: list[Part] = []
    for number, piece in enumerate(pieces):
        is_spoken = number in spoken
        if parts and parts[-1].spoken == is_spoken:
            glue = ' ' if piece.speakable and pieces[number - 1].speakable else '\n'
            parts[-1] = Part(f'{parts[-1].text}{glue}{piece.text}', is_spoken)
        else:
            parts.append(Part(piece.text, is_spoken))
    return tuple(parts)


def choose_spans(rng: Random, count: int, policy: str) -> set[int]:
    """Which of `count` sentences are spoken; see `plan_turn`."""
    if policy == 'full_turn' or count == 1:
        return set(range(count))
    if policy == 'multi_span' and count >= 3:
        # at least one text sentence stands between two spoken ones
        runs = rng.randint(2, (count + 1) // 2)
        edges = sorted(rng.sample(range(count + 1 - runs), runs))
        starts = [edge + number for number, edge in enumerate(edges)]
        chosen: set[int] = set()
        for number, start in enumerate(starts):
            limit = starts[number + 1] - 1 if number + 1 < runs else count
            chosen |= set(range(start, rng.randint(start + 1, max(start + 1, limit))))
        return chosen
    begin = rng.randrange(count)
    return set(range(begin, rng.randint(begin + 1, count)))
