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
"""The one renderer: a conversation becomes token ids and a loss mask through the LLM's own chat template.

Training, evaluation, serving and `vtb inspect` all come through here: a model is prompted exactly as it was trained.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

from nemo_vtb.config.schema import ModelConfig
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.data.faults import Reason
from nemo_vtb.data.template_bounds import check_output, check_template
from nemo_vtb.errors import VtbConfigError, VtbTemplateError, first_line

AUDIO_SLOT = -1
"""Stands once in `Rendered.ids` where a recording stands; no vocabulary has this id, so no text collides with it."""

_NOW = re.compile(r'''strftime_now\(\s*(format\s*=\s*)?(?P<quote>['"])(?P<format>.*?)(?P=quote)\s*\)''')
_VERSION = '2'  # raise when the rendering of any conversation changes: it is part of the fingerprint


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens of one kind: context, supervised answer, or one recording (`audio` is its number)."""

    text: str
    ids: tuple[int, ...]
    supervised: bool = False
    audio: int | None = None


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered conversation: `segments` in order; `ids` and `supervised` are aligned, one entry a token."""

    segments: tuple[Segment, ...]

    @property
    def ids(self) -> list[int]:
        """Token ids, `AUDIO_SLOT` once for each recording."""
        return [i for s in self.segments for i in s.ids]

    @property
    def supervised(self) -> list[bool]:
        """Whether a token must be predicted: assistant turns with their end-of-turn token, nothing else."""
        return [s.supervised for s in self.segments for _ in s.ids]

    @property
    def text(self) -> str:
        """The text as the LLM reads it, `<audio N>` where recording N stands."""
        return ''.join(s.text if s.audio is None else f'<audio {s.audio}>' for s in self.segments)

    @property
    def num_audios(self) -> int:
        """How many recordings stand in it."""
        return sum(s.audio is not None for s in self.segments)

    @property
    def num_supervised(self) -> int:
        """How many tokens must be predicted."""
        return sum(len(s.ids) for s in self.segments if s.supervised)


class ChatRenderer:
    """Renders conversations through the chat template of a Hugging Face tokenizer.

    - Every assistant turn is supervised up to and including its end-of-turn token, also when that is the padding token
      (NeMo 3.0 trains the last turn alone under `qwen3`, and loses the end token when pad == eos).
    - A special token typed by a user (`<|im_end|>`, the audio placeholder ...) is encoded as ordinary text.
    - A system turn that the template refuses is put in front of the first user turn; it is never lost.

    - A template that asks for the date gets the same one in every run, on every day and after a restore.

    Args:
        tokenizer: A fast `transformers` tokenizer with a chat template.
        date: The day that such a template says, YYYY-MM-DD; None for the default of `model.template_date`.

    Raises:
        VtbConfigError: `date` is none.
        VtbTemplateError: The tokenizer has no chat template, or the template does not close assistant turns, or takes
            more time or memory than a template needs.
    """

    def __init__(self, tokenizer: Any, date: str | None = None) -> None:
        date = date or ModelConfig.template_date
        if not getattr(tokenizer, 'chat_template', None):
            raise VtbTemplateError(
                'The tokenizer has no chat template, so a conversation cannot be rendered.',
                field='model.pretrained_llm',
                got=getattr(tokenizer, 'name_or_path', tokenizer),
                allowed='an instruct or chat model',
                remedy='choose the chat version of the LLM, or put a chat_template.jinja into its folder',
            )
        templates = tokenizer.chat_template
        if isinstance(templates, dict) and 'default' not in templates:
            raise VtbTemplateError(
                'The tokenizer has several chat templates, and none is for conversations.',
                field='model.pretrained_llm',
                got=sorted(templates),
                allowed='one of the name "default"',
                remedy='call the one to train with "default" in the files of the tokenizer',
            )
        check_template(tokenizer)
        self._hf = tokenizer
        text = str(templates['default'] if isinstance(templates, dict) else templates)
        self.date: str | None = str(date) if 'strftime_now' in text else None
        "The day that the template says; None where it says none."
        self._template = {} if self.date is None else {'chat_template': _dated(text, self.date)}
        special = sorted({t.content for t in tokenizer.added_tokens_decoder.values()}, key=len, reverse=True)
        self._added = frozenset(tokenizer.added_tokens_decoder)
        self._special = re.compile('|'.join(re.escape(t) for t in special) or r'(?!)')
        self._anchor = tokenizer.eos_token or (special[-1] if special else '')

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != '_counter'}

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer that it renders for."""
        return self._hf

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the renderer's version, the chat template and the tokenizer; stored in every checkpoint."""
        backend = self._hf.backend_tokenizer.to_str()
        parts = (_VERSION, str(self._hf.chat_template), backend, *([self.date] if self.date else []))
        return hashlib.sha256('\0'.join(parts).encode()).hexdigest()

    @cached_property
    def end_of_turn_ids(self) -> frozenset[int]:
        """Ids with which the template closes an assistant turn: where a generated answer ends."""
        turns = (Turn('user', (Text('a'),)), Turn('assistant', (Text('b'),)))
        return frozenset([next(s for s in self.render(Conversation('', turns)).segments if s.supervised).ids[-1]])

    def render_prompt(self, conversation: Conversation) -> Rendered:
        """Render a conversation that ends with a user turn, up to the point where the answer begins."""
        if not conversation.turns or conversation.turns[-1].role != 'user':
            raise VtbTemplateError(
                'A prompt must end with a user turn.',
                field=f'conversation {conversation.id}',
                got=[t.role for t in conversation.turns],
                allowed='[..., user]',
                remedy='use conversation.prompt, which drops the last answer',
            )
        # the beginning of a rendered training example, not the template's own generation prompt: some templates put
        # there what they never put into a conversation (empty think tags), and a model is prompted as it was trained
        answered = replace(conversation, turns=(*conversation.turns, Turn('assistant', (Text('-'),))))
        segments = list(self.render(answered).segments)
        while not segments[-1].supervised:
            segments.pop()
        return Rendered(tuple(segments[:-1]))

    def render(self, conversation: Conversation) -> Rendered:
        """Render a whole conversation for training."""
        marks = _Marks(conversation)
        messages = [
            {'role': turn.role, 'content': self._content(turn, number, marks)}
            for number, turn in enumerate(conversation.turns)
        ]
        text = self._apply(messages, conversation.id)
        if sorted(marks.pattern.findall(text)) != sorted(marks.made):
            raise VtbTemplateError(
                'The chat template drops or repeats parts of the conversation.',
                reason=Reason.TEMPLATE_REFUSED,
                field=f'conversation {conversation.id}',
                got=marks.pattern.sub('', text)[:200],
                allowed='each recording and each answer once',
                remedy='compare the text with the template; reasoning in an answer is cut out by some templates',
            )
        return Rendered(tuple(s for s in self._segments(text, marks, conversation.id) if s.ids))

    def count(self, conversation: Conversation) -> 'TokenCount':
        """Count the tokens of a conversation as `render` makes them; ten times as fast, for building an index.

        Raises:
            VtbTemplateError: As `render` does.
        """
        return self._counter.count(conversation)

    @cached_property
    def _counter(self) -> '_Counter':
        return _Counter(self)

    def count_tokens(self, text: str) -> int:
        """Tokens of a segment with this text."""
        # the tokenizer itself: transformers spends more time around it than it takes
        backend = self._hf.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        found = backend.encode_batch_fast([self._anchor + text], add_special_tokens=False)[0]
        return len(found) - bool(self._anchor)

    def is_plain(self, text: str) -> bool:
        """Whether every chat template takes a text as it is: not empty, nothing to strip, no special token or tag."""
        return text != '' and text.strip() == text and '<' not in text and not self._special.search(text)

    def _content(self, turn: Turn, number: int, marks: '_Marks') -> str:
        pieces = []
        for part in turn.parts:
            if isinstance(part, Audio):
                pieces.append(marks.audio())
            else:
                pieces.append(self._special.sub(lambda m: marks.literal(m.group()), part.text))
        content = ' '.join(pieces)
        return marks.answer(content, number) if turn.role == 'assistant' else content

    def _apply(self, messages: list[dict[str, str]], id: str, prompt: bool = False) -> str:
        # enable_thinking: models that can think are taught to answer at once; templates without the switch ignore it
        options = {'tokenize': False, 'add_generation_prompt': prompt, 'enable_thinking': False}
        can_fold = messages[0]['role'] == 'system' and len(messages) > 1
        try:
            text = self._hf.apply_chat_template(messages, **options, **self._template)
            check_output(text, sum(len(m['content']) for m in messages), f'conversation {id}')
            # some templates leave a system turn out without a word
            if not can_fold or messages[0]['content'].strip() in text:
                return text
        except (MemoryError, VtbTemplateError):
            raise
        except Exception as error:  # TemplateError where it refuses; its own code can raise anything else
            if not can_fold:
                got = f'{[m["role"] for m in messages]}: {type(error).__name__}: {first_line(error)}'
                raise VtbTemplateError(
                    'The chat template refuses the conversation.',
                    reason=Reason.TEMPLATE_REFUSED,
                    field=f'conversation {id}',
                    got=got,
                    allowed='roles in the order that this LLM was trained on',
                ) from error
        system, first, *rest = messages
        folded = {'role': first['role'], 'content': f'{system["content"]}\n\n{first["content"]}'}
        return self._apply([folded, *rest], id, prompt)

    @cached_property
    def _lead(self) -> str:
        """What the template puts between generation prompt and answer (Mistral: a space): the model must say it."""
        mark = '\ue000'
        messages = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': mark}]
        prompt, whole = self._apply(messages[:1], 'probe', prompt=True), self._apply(messages, 'probe')
        return whole.partition(mark)[0].removeprefix(prompt) if whole.startswith(prompt) else ''

    def _segments(self, text: str, marks: '_Marks', id: str) -> Iterator[Segment]:
        """Cut the rendered text at the marks; an answer is a segment of its own, as it is when it is generated."""
        pieces = marks.pattern.split(text)  # text, mark, text, mark, ..., text
        supervised, rest = False, pieces[0]
        for mark, following in zip(pieces[1::2], pieces[2::2], strict=True):
            kind, number = mark[0], int(mark[1:])
            if kind == 'e':
                end = self._end_of_turn(following, id)
                yield self._segment(rest + following[:end], True)
                supervised, rest = False, following[end:]
            elif kind == 'b':
                lead = self._lead if rest.endswith(self._lead) else ''
                yield self._segment(rest.removesuffix(lead), False)
                supervised, rest = True, lead + following
            else:
                yield self._segment(rest, supervised)
                rest = following
                if kind == 'a':
                    yield Segment('', (AUDIO_SLOT,), audio=number)
                else:
                    yield self._literal(marks.literals[number], supervised)
        yield self._segment(rest, supervised)

    def _end_of_turn(self, following: str, id: str) -> int:
        """Where the end-of-turn token right behind an answer ends."""
        closing = re.match(rf'\s*(?:{self._special.pattern})', following)
        if closing is None:
            raise VtbTemplateError(
                'The chat template does not close an assistant turn with a special token, so that a model '
                'could not learn to stop.',
                reason=Reason.TEMPLATE_REFUSED,
                field=f'conversation {id}',
                got=following[:60],
                allowed='an end-of-turn token right after the answer',
                remedy='add the end-of-turn token to the template and to the tokenizer',
            )
        return closing.end()

    def _segment(self, text: str, supervised: bool) -> Segment:
        if not text:
            return Segment('', ())
        # behind a special token no tokenizer puts its leading space, just as inside one long text
        ids = self._hf(self._anchor + text, add_special_tokens=False)['input_ids'][1 if self._anchor else 0 :]
        return Segment(text, tuple(ids), supervised)

    def _literal(self, text: str, supervised: bool) -> Segment:
        """A token of the vocabulary's own, typed by somebody: encoded as the letters that it is made of."""
        ids = self._hf(text, add_special_tokens=False, split_special_tokens=True)['input_ids']
        if not self._added.isdisjoint(ids):
            # tokens that were added but not declared special (Qwen3's <think>) are found all the same
            ids = [i for part in (text[:1], text[1:]) for i in self._hf(part, add_special_tokens=False)['input_ids']]
        return Segment(text, tuple(ids), supervised)


def _dated(template: str, date: str) -> str:
    """The template with a fixed day in the place of its calls for today: transformers lets no function be passed in.

    Raises:
        VtbTemplateError: It computes the form of the date.
    """
    try:
        day = datetime.strptime(str(date), '%Y-%m-%d')
    except ValueError as error:
        raise VtbConfigError('Not a day.', field='model.template_date', got=date, allowed='YYYY-MM-DD') from error
    dated = _NOW.sub(lambda m: json.dumps(day.strftime(m['format'])), template)
    if re.search(r'strftime_now\s*\(', dated):
        raise VtbTemplateError(
            'The chat template computes the form of the date, so that no day can be set.',
            field='model.pretrained_llm',
            got=dated[dated.index('strftime_now') :][:80],
            allowed="strftime_now('%d %b %Y'), or another form written out",
            remedy='write the form out in the template',
        )
    return dated


class _Marks:
    """Marks that survive a chat template: private-use characters that occur nowhere in the conversation."""

    def __init__(self, conversation: Conversation) -> None:
        used = set(''.join(turn.text for turn in conversation.turns))
        free = (chr(c) for c in range(0xE000, 0xF8FF) if chr(c) not in used)
        self._open, self._close = next(free), next(free)
        self.pattern = re.compile(f'{self._open}([able]\\d+){self._close}')
        self.literals: list[str] = []
        self.made: list[str] = []
        self.num_audios = 0

    def audio(self) -> str:
        self.num_audios += 1
        return self._mark('a', self.num_audios - 1)

    def literal(self, text: str) -> str:
        self.literals.append(text)
        return self._mark('l', len(self.literals) - 1)

    def answer(self, text: str, number: int) -> str:
        return self._mark('b', number) + text + self._mark('e', number)

    def _mark(self, kind: str, number: int) -> str:
        self.made.append(f'{kind}{number}')
        return f'{self._open}{kind}{number}{self._close}'


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens of a rendered conversation without its recordings, how many of them are supervised, and recordings."""

    text: int
    supervised: int
    audios: int


class _Counter:
    """Counts tokens by the layout of a conversation: who speaks, and where the recordings stand.

    Conversations of one layout differ in their texts alone, so that the template is applied once for each layout, and
    most texts around the answers are those of the conversation before. A text that a template might change is
    rendered, and so is every `_CHECKED`-th conversation: a template that looks at texts is found by it. The loader
    renders all, and skips what differs from its count.
    """

    _LAYOUTS = 4096
    _FIRST = 4
    _CHECKED = 256

    def __init__(self, renderer: ChatRenderer) -> None:
        self._renderer = renderer
        self._layouts: dict[tuple, list[_Piece] | None] = {}
        self._seen: Counter[tuple] = Counter()
        self._tokens = lru_cache(maxsize=1 << 14)(renderer.count_tokens)

    def count(self, conversation: Conversation) -> TokenCount:
        texts = [part.text for turn in conversation.turns for part in turn.parts if isinstance(part, Text)]
        layout = tuple(
            (turn.role, tuple(isinstance(part, Audio) for part in turn.parts)) for turn in conversation.turns
        )
        if not all(map(self._renderer.is_plain, texts)) or (pieces := self._pieces(layout)) is None:
            return self._rendered(conversation)
        found = self._sum(pieces, texts)
        self._seen[layout] += 1
        if self._seen[layout] <= self._FIRST or self._seen[layout] % self._CHECKED == 0:
            if (expected := self._rendered(conversation)) != found:
                self._layouts[layout] = None
                return expected
        return found

    def _rendered(self, conversation: Conversation) -> TokenCount:
        rendered = self._renderer.render(conversation)
        return TokenCount(len(rendered.ids) - rendered.num_audios, rendered.num_supervised, rendered.num_audios)

    def _sum(self, pieces: Sequence['_Piece'], texts: Sequence[str]) -> TokenCount:
        text = supervised = audios = 0
        for piece in pieces:
            if piece.audio:
                audios += 1
                continue
            filled = piece.template % tuple(texts[n] for n in piece.slots)
            # answers are said once, instructions again and again
            count = self._renderer.count_tokens(filled) if piece.supervised else self._tokens(filled)
            text += count
            supervised += count if piece.supervised else 0
        return TokenCount(text, supervised, audios)

    def _pieces(self, layout: tuple) -> list['_Piece'] | None:
        """The segments of a layout, None where the template does not take texts as they are."""
        if layout not in self._layouts:
            if len(self._layouts) >= self._LAYOUTS:
                return None
            self._layouts[layout] = self._learn(layout)
        return self._layouts[layout]

    def _learn(self, layout: tuple) -> list['_Piece'] | None:
        turns, number = [], 0
        for role, parts in layout:
            made: list[Text | Audio] = []
            for is_audio in parts:
                made.append(Audio('') if is_audio else Text(f'\uf8fe{number}\uf8fe'))
                number += not is_audio
            turns.append(Turn(role, tuple(made)))
        try:
            rendered = self._renderer.render(Conversation('', tuple(turns)))
        except VtbTemplateError:
            return None  # each conversation is told so by itself
        pieces: list[_Piece] = []
        found: list[int] = []
        for segment in rendered.segments:
            parts = segment.text.split('\uf8fe')
            slots = tuple(map(int, parts[1::2]))
            template = '%s'.join(part.replace('%', '%%') for part in parts[::2])
            pieces.append(_Piece(template, slots, segment.supervised, segment.audio is not None))
            found += slots
        return pieces if found == list(range(number)) else None


@dataclass(frozen=True, slots=True)
class _Piece:
    """One segment of a layout: its text with `%s` where the texts of those numbers stand."""

    template: str
    slots: tuple[int, ...]
    supervised: bool
    audio: bool
