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
"""The demonstration corpus: all four kinds, made by the factory from the embedded recordings, texts and voices.

`vtb data make demo` makes it in any folder, and the assets `demo-corpus` and `demo-corpus-smollm2` are made here too:
each synthesised span is transcribed back and checked, an interrupted build is resumed, and there is a data card.
"""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from nemo_vtb.assets import ensure
from nemo_vtb.config import read_settings, settings_dict
from nemo_vtb.factory.asr_ast import word_request
from nemo_vtb.factory.dataset_files import DataCard, ordered_outcomes
from nemo_vtb.factory.demo.corpus import SPLITS, CorpusMaker, CorpusSize, best_chats, check_corpus, text_line
from nemo_vtb.factory.demo.dialogues import Recorder
from nemo_vtb.factory.demo.household import PREFIXES
from nemo_vtb.factory.demo.text_only import PromptChat, chat_prompts, generate_text_chats, reference_chats
from nemo_vtb.factory.pipeline import produce
from nemo_vtb.factory.settings import AsrAst, Demo, Noise, Tts
from nemo_vtb.factory.stage import KEPT, WORK, Item, Outcome, Stage, text_turn
from nemo_vtb.factory.synthesis import Span, Synthesizer
from nemo_vtb.io import json_line, write_atomically

if TYPE_CHECKING:
    from nemo_vtb.assets.store import Job

_WORDING = AsrAst(forms={'plain': 1.0}, punctuation_share=0.0)


@dataclass
class ChatStage:
    """Lets the base language model answer the prompts of the bank.

    Args:
        settings: Which model, how many chats.
    """

    settings: Demo
    kind: str = 'chats'

    @property
    def chunk(self) -> int:
        """Chats that are answered in one batch."""
        return 2 * self.settings.chunk

    def describe(self) -> dict[str, Any]:
        """Model and counts."""
        names = ('seed', 'text', 'llm', 'max_new_tokens', 'spare_chats')
        return {'settings': {name: settings_dict(self.settings)[name] for name in names}}

    def items(self) -> Iterator[Item]:
        """The prompts of each split, with spare ones."""
        prompts = chat_prompts(self.settings.seed)
        for split, wanted in zip(SPLITS, self.settings.text, strict=True):
            for number, chat in enumerate(prompts[split][: round(wanted * self.settings.spare_chats)]):
                yield Item(f'{split}-{number:05d}', split, {'prompts': list(chat.prompts)})

    def make(self, items: Sequence[Item], out: Path) -> list[Outcome]:
        """Answer one batch."""
        assert self.settings.llm is not None
        folder = ensure(self.settings.llm, quiet=True)[self.settings.llm]
        prompts = [PromptChat(tuple(item.data['prompts'])) for item in items]
        answered = generate_text_chats(
            folder, prompts, max_new_tokens=self.settings.max_new_tokens, batch_size=len(prompts)
        )
        return [
            Outcome(item.id, item.group, facts={'answers': list(chat.answers), 'complete': chat.complete})
            for item, chat in zip(items, answered, strict=True)
        ]


@dataclass
class SpanStage:
    """Speaks and verifies what the conversations need.

    Args:
        settings: Seed and checks.
        spans: (key, text, voice, speed) each.
    """

    settings: Demo
    spans: tuple[tuple[str, str, str, float], ...]
    kind: str = 'spans'

    @property
    def chunk(self) -> int:
        """Spans that are transcribed in one batch."""
        return self.settings.chunk

    def describe(self) -> dict[str, Any]:
        """All that decides the spans."""
        return {'settings': settings_dict(self.settings)}

    def items(self) -> Iterator[Item]:
        """One item for each span."""
        for key, text, voice, speed in self.spans:
            yield Item(key, key, {'text': text, 'voice': voice, 'speed': speed})

    def make(self, items: Sequence[Item], out: Path) -> list[Outcome]:
        """Speak one batch."""
        spans = [Span(item.id, **item.data) for item in items]
        return [
            Outcome(one.span.key, one.span.key, None, one.reason, {'seconds': one.seconds, **one.facts})
            for one in self._synthesizer.synthesize(spans, out)
        ]

    @cached_property
    def _synthesizer(self) -> Synthesizer:
        return Synthesizer('en', self.settings.seed, Tts(), self.settings.verify, Noise())


SIZES: Mapping[str, Mapping[str, Any]] = {
    'quick': {},
    'long': {
        'commands': (3000, 100, 150),
        'speech_qa': (1200, 100, 100),
        'mixed_modal': (1200, 100, 100),
        'text': (441, 60, 91),
        'prefixes': PREFIXES,
        'spare_chats': 1.0,
    },
}
"""What the sizes of the assets change in the settings."""


def build_demo_corpus(job: 'Job') -> None:
    """Make the corpus as an asset.

    Args:
        job: Needed assets `asterisk-<lang>`; parameters `size` (key of `SIZES`) and `llm` (the asset that answers
            prompts).

    Raises:
        VtbAssetError: A voice or a recording is missing.
    """
    recordings = {
        name.removeprefix('asterisk-'): path for name, path in job.assets.items() if name.startswith('asterisk-')
    }
    settings = read_settings(Demo, {**SIZES[str(job.params['size'])], 'llm': job.params['llm']})
    make_demo(settings, job.into, recordings=recordings, workers=os.cpu_count() or 1, say=job.say)
    # an asset is complete or absent: there is nothing to resume
    shutil.rmtree(job.into / WORK, ignore_errors=True)


def make_demo(
    settings: Demo,
    out: Path,
    *,
    workers: int,
    say: Callable[[str], None],
    recordings: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Make the demonstration corpus; an interrupted build in the same folder is resumed.

    Args:
        settings: Sizes, models, checks.
        out: The output folder.
        workers: Processes.
        say: Receives one line for each step.
        recordings: Folders of real prompts by language; None: the English ones.

    Returns:
        The card.

    Raises:
        VtbAssetError: A recording, a voice or a model is not available.
        VtbDataError: The folder holds another data set, or the corpus does not pass its check.
    """
    begin = time.perf_counter()
    if recordings is None:
        recordings = {'en': ensure('asterisk-en', quiet=True)['asterisk-en']}
    say('1/3 text-only conversations: the base language model answers')
    planner = Recorder(out)
    counted = {kind: tuple(getattr(settings, kind)) for kind in ('commands', 'speech_qa', 'mixed_modal', 'text')}
    size = CorpusSize(**counted, prefixes=tuple(settings.prefixes))
    script = CorpusMaker(size, recordings, settings.seed, planner)
    chats = _chats(settings, out, workers) if settings.llm else script.reference_chats()
    for number, split in enumerate(SPLITS):
        script.write_split(number, split, chats[split])
    if settings.llm is not None:
        lines = [text_line(f'ref-{i:03d}', chat, 'reference') for i, chat in enumerate(reference_chats())]
        script.write('text_reference.test', lines)
    say(f'2/3 {len(planner.spans)} spans: spoken, and transcribed back')
    stage = SpanStage(settings, tuple(planner.spans))
    made = produce(stage, out, workers=workers)
    spoken = {outcome.id: outcome for outcome in ordered_outcomes(out, made.chunks)}
    say('3/3 files, checks and the card')
    card = DataCard('demo', stage.describe())
    counts: Counter[str] = Counter()
    for name, lines in script.lines.items():
        kept = [_worded(line, settings) for line in lines if _fill(line, spoken, card, name)]
        counts[name] = len(lines) - len(kept)
        text = ''.join(map(json_line, kept))
        write_atomically(out / f'{name}.jsonl', text)
    for outcome in spoken.values():
        card.wers[str(outcome.facts['voice']).partition('@')[0]].append(outcome.facts.get('wer', 1.0))
    rejected = [{'id': o.id, 'reason': o.reason, **o.facts} for o in spoken.values() if o.reason != KEPT]
    write_atomically(out / 'rejected.jsonl', ''.join(map(json_line, rejected)))
    card.write(out)
    facts = json.loads((out / 'card.json').read_text(encoding='utf-8'))
    facts |= {
        'name': 'nemo_vtb demonstration corpus, made by the factory', 'seed': settings.seed,
        'text_answers_by': settings.llm or 'hand-written answers', 'left_out': script.left_out,
        'licences': script.licences(), 'spans': len(spoken), 'spans_rejected': len(rejected),
        'lines_left_out': {name: count for name, count in counts.items() if count}, **check_corpus(out),
    }  # fmt: skip
    write_atomically(out / 'card.json', json.dumps(facts, indent=2, ensure_ascii=False) + '\n')
    seconds = time.perf_counter() - begin
    say(
        f'{sum(len(lines) for lines in script.lines.values()) - sum(counts.values())} conversations, '
        f'{len(spoken) - len(rejected)} of {len(spoken)} spans kept, {seconds:.0f} s'
    )
    return facts


def _chats(settings: Demo, out: Path, workers: int) -> dict[str, list[PromptChat]]:
    """Answered chats by split."""
    stage: Stage = ChatStage(settings)
    folder = out / WORK / 'chats'
    made = produce(stage, folder, workers=workers)
    prompts = {item.id: tuple(item.data['prompts']) for item in stage.items()}
    found: dict[str, list[PromptChat]] = {split: [] for split in SPLITS}
    for outcome in ordered_outcomes(folder, made.chunks):
        answers = tuple(outcome.facts['answers'])
        found[outcome.group].append(PromptChat(prompts[outcome.id], answers, outcome.facts['complete']))
    return {split: best_chats(found[split], wanted) for split, wanted in zip(SPLITS, settings.text, strict=True)}


def _fill(line: dict[str, Any], spoken: Mapping[str, Outcome], card: DataCard, name: str) -> bool:
    """Put the durations into a line and count it; False if one of its spans was rejected."""
    reason = KEPT
    for entry in line['conversations']:
        outcome = spoken.get(Path(entry['value']).stem) if entry['type'] == 'audio' else None
        if outcome is not None:
            entry['duration'] = outcome.facts['seconds']
            reason = outcome.reason if outcome.reason != KEPT else reason
    facts = {key: line['custom'].get(key) for key in ('lang', 'source', 'task')}
    card.add(Outcome(line['id'], line['id'], line, reason, facts), name.rpartition('.')[2])
    return reason == KEPT


def _worded(line: dict[str, Any], settings: Demo) -> dict[str, Any]:
    """Give a share of the transcriptions an instruction of the bank."""
    rng = Random(f'{settings.seed}:wording:{line["id"]}')
    if line['custom']['task'] != 'asr' or rng.random() >= settings.bank_share:
        return line
    audio = next(entry for entry in line['conversations'] if entry['type'] == 'audio')
    row = {'task': 'asr', 'lang': line['custom']['lang'], 'text': audio['text']}
    answer, parts, _ = word_request(rng, row, _WORDING)
    user = [text_turn('User', part) if part else audio for part in parts]
    return {**line, 'conversations': [*user, text_turn('Assistant', answer)]}
