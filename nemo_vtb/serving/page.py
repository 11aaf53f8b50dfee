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
"""The page of `vtb web`: each open page is a `ChatSession`, as the terminal has; Gradio shows it."""

import html
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from nemo_vtb.assets.resolve import PREFIX, resolve_asset
from nemo_vtb.assets.store import state
from nemo_vtb.config.schema import WebConfig
from nemo_vtb.data.conversation import Audio, Text, Turn
from nemo_vtb.errors import VtbAudioError, VtbConfigError, VtbDataError, VtbError
from nemo_vtb.evaluation.inputs import conversations_from_manifest
from nemo_vtb.serving.chat import ChatSession
from nemo_vtb.serving.engine import Engine, Sampling
from nemo_vtb.serving.terminal import AUDIO_SUFFIXES

logger = logging.getLogger(__name__)
Updates = dict[Any, Any]
_QUIET, _NOTHING = gr.update(visible=False), '<p>Nothing yet.</p>'
_EXAMPLES, _EXAMPLE_PROMPT, _NUM_EXAMPLES = 'demo-corpus', 'Transcribe the speech.', 4
_MODEL = 'model'  # everything that runs the model waits for its turn


class Visit:
    """One open page.

    Args:
        session: Its conversation.
    """

    def __init__(self, session: ChatSession) -> None:
        self.session = session
        # what the base LLM said in place of the turn of that number
        self.base_answers: dict[int, str] = {}

    def messages(self, *, base: bool = False) -> list[dict[str, Any]]:
        """The conversation as Gradio shows it, with the answers of one of both."""
        turns = enumerate(self.session.turns)
        return [_message(turn, self.base_answers.get(number, '-') if base else None) for number, turn in turns]


class Page:
    """What the page shows and what happens on it.

    Args:
        engine: The model.
        settings: Of `vtb web`.
    """

    def __init__(self, engine: Engine, settings: WebConfig) -> None:
        self._engine, self._settings = engine, settings
        self.name = settings.shown_name
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._lock = threading.Lock()
        # queue and title belong to it; analytics are off, and nothing is shown of other addresses
        self.blocks = gr.Blocks(title=f'{self.name} - nemo_vtb', analytics_enabled=False, delete_cache=(3600, 86400))
        with self.blocks:
            self._lay_out(read_examples(settings.examples))
            self._connect()
        self.blocks.queue(max_size=settings.max_queue or 1, api_open=False, default_concurrency_limit=None)

    # ---- layout

    def _lay_out(self, examples: Sequence[tuple[str, dict[str, Any]]]) -> None:
        limit = self._settings.max_new_tokens
        gr.HTML(_header(self.name, self._engine), elem_id='head')
        with gr.Row(equal_height=True, elem_id='chats'):
            self.ours = _chatbot(self.name, 'ours')
            self.base = _chatbot('Base LLM, LoRA off', 'base', visible=False)
        self.notice = gr.HTML(visible=False, elem_id='notice')
        self.question = gr.MultimodalTextbox(
            placeholder='Ask something, or add a recording',
            sources=['upload', 'microphone'], file_types=['audio', *AUDIO_SUFFIXES], file_count='multiple',
            max_plain_text_length=100_000, label='Question', show_label=False, autofocus=True, elem_id='question',
        )  # fmt: skip
        with gr.Row(elem_id='actions'):
            self.again = gr.Button('Answer again', size='sm', min_width=90)
            self.back = gr.Button('Take back', size='sm', min_width=90)
            self.new = gr.Button('New conversation', size='sm', min_width=90)
            self.beside = gr.Checkbox(label='Base LLM beside', container=False, min_width=150, elem_id='beside')
        if examples:
            labels, values = zip(*examples, strict=True)
            gr.Examples([[value] for value in values], [self.question], label='Try', example_labels=list(labels))
        with gr.Accordion('Settings', open=False, elem_id='settings'):
            self.system = gr.Textbox(label='System prompt', lines=2, placeholder='none')
            with gr.Row():
                self.temperature = gr.Slider(0, 2, 0, step=0.05, label='Temperature', info='0: the most likely tokens')
                self.top_p = gr.Slider(0.05, 1, 1, step=0.05, label='Top p', info='share of the probability')
            with gr.Row():
                self.max_new_tokens = gr.Slider(
                    1, limit, min(256, limit), step=1, label='Longest answer', info='tokens'
                )
                self.seed = gr.Textbox(label='Seed', info='empty: another answer each time', max_lines=1)
        with gr.Accordion('What the LLM reads', open=False, elem_id='prompt'):
            self.facts = gr.HTML(_NOTHING, elem_id='facts')
            self.prompt = gr.Textbox(show_label=False, lines=6, max_lines=24, interactive=False, buttons=['copy'])

    def _connect(self) -> None:
        settings = [self.system, self.temperature, self.top_p, self.max_new_tokens, self.seed, self.beside]
        shown = [self.ours, self.base, self.notice, self.question, self.facts, self.prompt]
        options: dict[str, Any] = {'outputs': shown, 'api_visibility': 'private', 'show_progress': 'hidden'}
        model = options | {'concurrency_id': _MODEL, 'concurrency_limit': 1}
        answers: list[Any] = [
            self.question.submit(self._ask, [self.question, *settings], **model),
            self.again.click(self._retry, settings, **model),
        ]
        self.question.stop(self._show, None, cancels=list(answers), **options)
        self.back.click(self._undo, None, **model)
        self.new.click(self._reset, None, **model)
        self.blocks.unload(self._forget)
        self.beside.change(
            lambda on: (gr.Chatbot(show_label=on), gr.Chatbot(visible=on, show_label=on)),
            self.beside, [self.ours, self.base],
            api_visibility='private', show_progress='hidden', queue=False,
        )  # fmt: skip

    # ---- what happens

    def _visit(self, request: gr.Request) -> Visit:
        name = str(request.session_hash)
        with self._lock:
            if name not in self._visits:
                limit = self._settings.max_prompt_tokens
                self._visits[name] = Visit(ChatSession(self._engine, max_prompt_tokens=limit))
            self._visits.move_to_end(name)
            while len(self._visits) > self._settings.max_pages:
                self._visits.popitem(last=False)
            return self._visits[name]

    def _forget(self, request: gr.Request) -> None:
        with self._lock:
            self._visits.pop(str(request.session_hash), None)

    def _ask(self, question: dict[str, Any], request: gr.Request, *settings: Any) -> Iterator[Updates]:
        yield from self._told(request, self._asked(self._visit(request), question, *settings), question)

    def _retry(self, request: gr.Request, *settings: Any) -> Iterator[Updates]:
        yield from self._told(request, self._retried(self._visit(request), *settings))

    def _told(
        self, request: gr.Request, updates: Iterator[Updates], question: dict[str, Any] | None = None
    ) -> Iterator[Updates]:
        """Whatever fails is said on the page, where the conversation is as before and the question can be mended."""
        try:
            yield from updates
        except Exception as error:
            if not isinstance(error, VtbError):
                logger.exception('An answer failed.')
            # out of memory, a kernel that fails: the next answer may succeed
            back: dict[str, Any] = {} if question is None else {'value': question}
            files = [] if question is None else question['files']
            yield self._show(request) | {self.question: _box(busy=False, **back), self.notice: _alert(error, files)}

    def _asked(self, visit: Visit, question: dict[str, Any], *settings: Any) -> Iterator[Updates]:
        beside = self._adjust(visit.session, *settings)
        parts = self._recordings(visit.session, question['files'])
        if text := question['text'].strip():
            parts.append(Text(text))
        asked = [*visit.messages(), _message(Turn('user', tuple(parts)))]
        yield {self.notice: _QUIET, self.question: _box(busy=True, value=None), self.ours: asked}
        yield from self._stream(visit, visit.session.ask(parts), asked, beside)

    def _retried(self, visit: Visit, *settings: Any) -> Iterator[Updates]:
        beside = self._adjust(visit.session, *settings)
        asked = visit.messages()[: len(visit.session.turns) - 1]
        yield {self.notice: _QUIET, self.question: _box(busy=True), self.ours: asked}
        yield from self._stream(visit, visit.session.retry(), asked, beside)

    def _stream(
        self, visit: Visit, pieces: Iterator[str], asked: list[dict[str, Any]], beside: bool
    ) -> Iterator[Updates]:
        text = ''
        for piece in pieces:
            text += piece
            yield {self.ours: [*asked, _said(text)]}
        number = len(visit.session.turns) - 1
        visit.base_answers.pop(number, None)
        if beside:
            yield self._shown(visit) | {self.question: _box(busy=True)}
            asked, text = visit.messages(base=True)[:number], ''
            for piece in visit.session.base_answer():
                text += piece
                yield {self.base: [*asked, _said(text)]}
            visit.base_answers[number] = text
        yield self._shown(visit)

    def _undo(self, request: gr.Request) -> Updates:
        visit = self._visit(request)
        try:
            question = visit.session.undo()
        except VtbError as error:
            return self._show(request) | {self.notice: _alert(error)}
        visit.base_answers = {n: t for n, t in visit.base_answers.items() if n < len(visit.session.turns)}
        texts = [part.text for part in question.parts if isinstance(part, Text)]
        files = [part.path for part in question.parts if isinstance(part, Audio)]
        return self._shown(visit) | {self.question: _box(value={'text': ' '.join(texts), 'files': files})}

    def _reset(self, request: gr.Request) -> Updates:
        self._forget(request)
        return self._show(request) | {self.question: _box(value=None)}

    def _show(self, request: gr.Request) -> Updates:
        return self._shown(self._visit(request))

    def _shown(self, visit: Visit) -> Updates:
        """The page as it is between two questions."""
        session = visit.session
        return {
            self.notice: _QUIET,
            self.ours: visit.messages(),
            self.base: visit.messages(base=True),
            self.question: _box(),
            self.facts: _facts(session),
            self.prompt: session.show() if session.turns else '',
        }

    def _adjust(
        self, session: ChatSession, system: str | None, temperature: float, top_p: float, max_new_tokens: float,
        seed: str | None, beside: bool,
    ) -> bool:  # fmt: skip
        """Take over the settings of the page; returns whether the base LLM is asked, too."""
        session.system = (system or '').strip() or None
        session.sampling = Sampling(
            max_new_tokens=int(max_new_tokens),
            temperature=temperature,
            top_p=top_p,
            seed=_whole_number(seed or ''),
        )
        return beside

    def _recordings(self, session: ChatSession, files: Sequence[str]) -> list[Text | Audio]:
        limits, made = self._settings, [session.recording(path) for path in files]
        seconds = sum(audio.duration_s or 0.0 for audio in made)
        for field, got, allowed in (
            ('max_recordings', len(made), limits.max_recordings),
            ('max_audio_s', round(seconds, 1), limits.max_audio_s),
        ):
            if got > allowed:
                raise VtbDataError('Too much is asked at once.', field=field, got=got, allowed=f'at most {allowed:g}')
        return list(made)


def read_examples(manifest: str | None) -> list[tuple[str, dict[str, Any]]]:
    """Label and value of questions to try.

    Args:
        manifest: Their file; None: held-out questions of the demonstration corpus, if it has been made.

    Raises:
        VtbDataError: The file is missing or has no usable line.
    """
    if manifest is None:
        if state(_EXAMPLES) == 'missing':
            return []
        manifest = resolve_asset(f'{PREFIX}{_EXAMPLES}/speech_qa.test.jsonl')
    made, seen = list[tuple[str, dict[str, Any]]](), set[str]()
    for conversation in conversations_from_manifest(manifest, _EXAMPLE_PROMPT)[0]:
        first = next(turn for turn in conversation.turns if turn.role == 'user')
        texts = [part.text for part in first.parts if isinstance(part, Text)]
        files = [part.path for part in first.parts if isinstance(part, Audio)]
        # the page puts recordings in front of the one text
        if files and len(texts) == 1 and texts[0] not in seen and len(made) < _NUM_EXAMPLES:
            seen.add(texts[0])
            made.append((texts[0], {'text': texts[0], 'files': files}))
    return made


def _whole_number(seed: str) -> int | None:
    try:
        return int(seed) if seed.strip() else None
    except ValueError:
        raise VtbConfigError(
            'This is no seed.', field='seed', got=seed, allowed='a whole number, or nothing'
        ) from None


def _chatbot(label: str, elem_id: str, visible: bool = True) -> gr.Chatbot:
    return gr.Chatbot(
        label=label, elem_id=elem_id, visible=visible, height=None, min_height='11rem', max_height='min(62vh, 40rem)',
        show_label=False, min_width=280, buttons=['copy'],
        # what was said is shown as it is
        render_markdown=False, latex_delimiters=[], allow_tags=True, feedback_options=None,
        placeholder='The base LLM answers here' if elem_id == 'base' else 'Nothing has been said yet',
    )  # fmt: skip


def _box(busy: bool = False, **changes: Any) -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(submit_btn=not busy, stop_btn=busy, **changes)


def _said(text: str) -> dict[str, Any]:
    return {'role': 'assistant', 'content': text}


def _message(turn: Turn, text: str | None = None) -> dict[str, Any]:
    if turn.role == 'assistant':
        return _said(turn.text if text is None else text)
    content = [part.text if isinstance(part, Text) else {'path': part.path} for part in turn.parts]
    return {'role': 'user', 'content': content}


def _alert(error: Exception, files: Sequence[str] = ()) -> gr.HTML:
    """What is wrong, with the names that a person gave, not with paths of this machine."""
    text = str(error) if isinstance(error, VtbError) else f'The model failed: {type(error).__name__}.'
    if isinstance(error, VtbAudioError):
        name = next((Path(file).name for file in files if file in text), 'The recording')
        text = f'{name}: {getattr(error.reason, "meaning", "the recording cannot be read")}'
    for file in files:
        text = text.replace(file, Path(file).name)
    return gr.HTML(f'<p role="alert">{html.escape(text)}</p>', visible=True)


def _facts(session: ChatSession) -> str:
    last = session.last if session.turns else None
    if last is None:
        return _NOTHING
    end = ', ended by the limit' if last.finish_reason == 'length' else ''
    return (
        f'<p>Prompt {last.prompt_tokens} tokens, {last.reused} of them kept from before; first token after '
        f'{last.first_token_s:.2f} s; answer {last.new_tokens} tokens{end}.</p>'
    )


def _header(name: str, engine: Engine) -> str:
    base = html.escape(engine.model.llm.config.model_type)
    return f'<h1>{html.escape(name)}</h1><p>A speech LLM on {base}: it reads text and hears recordings.</p>'
