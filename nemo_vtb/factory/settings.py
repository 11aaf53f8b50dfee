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
"""Settings of the factory: a dataclass for each kind of data; defaults, types and ranges stand here and nowhere else.

`conf/factory/*.yaml` shows every key with its meaning; a test holds those files to this one.
"""

from dataclasses import dataclass

from nemo_vtb.config.keys import key


@dataclass(frozen=True, slots=True, kw_only=True)
class Avoid:
    """Evaluation sets that the product must not overlap with."""

    files: tuple[str, ...] = key((), 'Manifests, conversations, chats, texts or recordings', unit='list of files')
    ngram: int = key(
        8,
        'Words in a row that count as the same text; shorter texts count as a whole, from four words on',
        unit='words',
        low=2,
    )
    audio: bool = key(True, 'Whether recordings are compared by fingerprint')
    max_bit_errors: float = key(0.35, 'Bits of two fingerprints that may differ', unit='share', low=0.0, high=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What every kind of data has."""

    seed: int = key(0, 'Seed of every draw', low=0)
    chunk: int = key(
        16,
        'Items made as one unit of work: what an interruption can lose; scores depend on it in their last digit',
        unit='items',
        low=1,
    )
    validation_share: float = key(
        0.05, 'Recordings or chats for validation, with all that is made from them', unit='share', low=0.0, high=1.0
    )
    test_share: float = key(0.0, 'The same for test; the rest is for training', unit='share', low=0.0, high=1.0)
    form: str = key(
        'jsonl',
        'Lines and plain recordings, or manifest_N.jsonl with audio_N.tar; both with .idx',
        choices=('jsonl', 'tar'),
    )
    shard_size: int = key(1000, 'Conversations of an archive', unit='conversations', low=1)
    lang: str = key('en', 'Language of inputs that name none', unit='two-letter code')
    avoid: Avoid = key(Avoid, 'Evaluation sets that must not be trained on')


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """The checks of speech. Without `asr` nothing is transcribed back."""

    asr: str | None = key(
        'asset:whisper-tiny.en',
        'What transcribes it back: a Whisper folder, asset:NAME (whisper-base for other languages than English) '
        'or a .nemo file; null: nothing',
    )
    max_wer: float = key(0.3, 'Word error rate up to which a span is kept', unit='errors per word', low=0.0)
    min_s: float = key(0.3, 'Shortest span', unit='s', low=0.0)
    max_s: float = key(30.0, 'Longest span', unit='s', low=0.0)
    max_silence: float = key(0.6, 'Part of a span that may be silent', unit='share', low=0.0, high=1.0)
    max_clipping: float = key(0.001, 'Samples of a span that may be at full scale', unit='share', low=0.0, high=1.0)
    check_language: bool = key(True, 'Whether a multilingual listener must recognise the right language')
    tries: int = key(
        2, 'How often a span is spoken, each time a little differently, before it is rejected', unit='times', low=1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tts:
    """The engine that speaks, and how much its voice may vary."""

    engine: str = key(
        'pico',
        "pico (embedded; en, de, es, fr, it), a server with OpenAI's /audio/speech, or nemo (FastPitch, HiFi-GAN)",
        choices=('pico', 'endpoint', 'nemo'),
    )
    url: str | None = key(None, 'Address of the server, as in http://localhost:8000/v1')
    model: str | None = key(None, "Name of a model of the server, or NeMo's FastPitch", unit='name or .nemo')
    voices: tuple[str, ...] = key(
        (), "Voices of the server, or numbers of NeMo's speakers; none: all of NeMo's", unit='list'
    )
    vocoder: str | None = key(None, "NeMo's vocoder", unit='.nemo')
    api_key_env: str = key('OPENAI_API_KEY', 'Environment variable that holds the key of the server')
    speakers: int = key(16, 'Different speakers of the corpus; each conversation has one', unit='speakers', low=1)
    speed: tuple[float, ...] = key((0.9, 1.1), 'Range from which the speed of each span is drawn', unit='factor')
    gain_db: tuple[float, ...] = key((-6.0, 0.0), 'Range from which its loudness is drawn', unit='dB')
    concurrency: int = key(8, 'Requests in flight at once', unit='requests', low=1)
    timeout_s: float = key(60.0, 'How long to wait for one', unit='s', low=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Noise and rooms, mixed in by lhotse; nothing without files."""

    noise: tuple[str, ...] = key((), 'Recordings of noise', unit='list of files')
    noise_share: float = key(0.5, 'Spans that get one', unit='share', low=0.0, high=1.0)
    snr_db: tuple[float, ...] = key((10.0, 30.0), 'Range from which its level is drawn', unit='dB of SNR')
    rir: tuple[str, ...] = key((), 'Impulse responses of rooms', unit='list of files')
    rir_share: float = key(0.3, 'Spans that get one', unit='share', low=0.0, high=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Llm:
    """The language model that writes: an OpenAI-compatible endpoint, or a local Hugging Face folder."""

    model: str = key(
        'asset:smollm2-135m-instruct',
        'A Hugging Face folder or asset:NAME; with `url`, the name of a model of that server',
    )
    url: str | None = key(
        None, 'Base address of an OpenAI-compatible server, as in http://localhost:8000/v1; null: a local model'
    )
    api_key_env: str = key('OPENAI_API_KEY', 'Environment variable that holds the key of the server')
    structured: str = key(
        'json_schema', 'How the server is told the form of an answer', choices=('json_schema', 'json_object', 'none')
    )
    temperature: float = key(0.7, 'Sampling temperature; 0: greedy', low=0.0)
    max_tokens: int = key(256, 'Longest answer; of each field for a local model', unit='tokens', low=1)
    concurrency: int = key(16, 'Requests in flight at once, of each worker process', unit='requests', low=1)
    requests_per_minute: int | None = key(
        None, 'Rate limit of each worker process; null: none', unit='requests per minute', low=1
    )
    timeout_s: float = key(60.0, 'How long to wait for an answer', unit='s', low=0.0)
    tries: int = key(6, 'How often a request is sent before the run stops', unit='times', low=1)
    invalid_tries: int = key(2, 'How often an answer without the right form is requested again', unit='times', low=1)
    price_prompt: float = key(0.0, 'Price for the counter of costs', unit='currency per million tokens', low=0.0)
    price_completion: float = key(0.0, 'The same for answers', unit='currency per million tokens', low=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AsrAst(Common):
    """ASR and AST manifests to conversations."""

    tasks: tuple[str, ...] = key(
        ('asr', 'ast'),
        'What is made of each recording: its transcript; its translation, where the manifest has one',
        unit='list',
        choices=('asr', 'ast'),
    )
    bank: str | None = key(
        None,
        'Your own instructions: a YAML file, or a folder of LANG.yaml; null: those of nemo_vtb/factory/banks',
        unit='path',
    )
    instruction_lang: str = key(
        'source',
        'Language of the instructions: that of the recording, English, or any of the banks',
        choices=('source', 'en', 'any'),
    )
    positions: dict[str, float] = key(
        {'before': 0.4, 'after': 0.3, 'around': 0.3}, 'Where the instruction stands', unit='relative shares', low=0.0
    )
    forms: dict[str, float] = key(
        {'plain': 0.8, 'json': 0.1, 'timestamps': 0.1},
        'What the answer looks like; timestamps only where the manifest has times of words',
        unit='relative shares',
        low=0.0,
    )
    named_share: float = key(0.5, 'Instructions that name the spoken language', unit='share', low=0.0, high=1.0)
    punctuation_share: float = key(
        0.2, 'Instructions that request punctuation, or none', unit='share', low=0.0, high=1.0
    )
    min_words: int = key(1, 'Fewest words of a transcript', unit='words', low=0)
    min_s: float = key(0.1, 'Shortest recording', unit='s', low=0.0)
    max_s: float = key(40.0, 'Longest recording', unit='s', low=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechQa(Common):
    """Transcripts to questions and answers."""

    questions: int = key(1, 'Questions of each recording, of different types', unit='questions', low=1)
    types: dict[str, float] = key(
        {'factual': 0.5, 'inference': 0.2, 'summary': 0.15, 'unanswerable': 0.15},
        'Types of questions; the answer to an unanswerable one is a refusal',
        unit='relative shares',
        low=0.0,
    )
    llm: Llm = key(Llm, 'The language model that writes')
    judge: str = key(
        'overlap',
        'Who decides whether a question can be answered by listening: overlap of words, a second request, or none',
        choices=('overlap', 'llm', 'none'),
    )
    min_overlap: float = key(
        0.5, 'Words of a factual answer that must be said, for overlap', unit='share', low=0.0, high=1.0
    )
    max_copy: float = key(0.8, 'Part of a longer recording that an answer may repeat', unit='share', low=0.0, high=1.0)
    min_words: int = key(6, 'Fewest words of a transcript', unit='words', low=1)
    max_words: int = key(400, 'Most words of a transcript', unit='words', low=1)
    max_question_words: int = key(40, 'Longest question', unit='words', low=1)
    max_answer_words: int = key(80, 'Longest answer', unit='words', low=1)
    min_s: float = key(0.1, 'Shortest recording', unit='s', low=0.0)
    max_s: float = key(40.0, 'Longest recording', unit='s', low=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChats(Common):
    """Text-only conversations, cleaned."""

    keep_categories: tuple[str, ...] = key(
        (),
        'Topics to keep, by the name that the source gives them (task_category or category); none: all',
        unit='list',
    )
    drop_categories: tuple[str, ...] = key((), 'Topics to skip', unit='list')
    max_turns: int = key(20, 'Longest conversation', unit='pairs of question and answer', low=1)
    max_user_words: int = key(1000, 'Longest user turn', unit='words', low=1)
    max_answer_words: int = key(2000, 'Longest answer', unit='words', low=1)
    check_language: bool = key(True, 'Whether chats in another language are skipped')


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedModal(TextChats):
    """Text-only conversations to conversations in which spans of user turns are spoken."""

    max_user_words: int = key(100, 'Longest user turn', unit='words', low=1)
    max_answer_words: int = key(700, 'Longest answer', unit='words', low=1)
    variants: int = key(
        1, 'Conversations made of each chat, with other spans spoken in each', unit='conversations', low=1
    )
    policies: dict[str, float] = key(
        {'full_turn': 0.25, 'sentences': 0.5, 'multi_span': 0.25},
        'Which sentences of a turn are spoken: all; one run of them; several runs with typed text between',
        unit='relative shares',
        low=0.0,
    )
    turn_share: float = key(
        1.0,
        'User turns in which something is spoken; at least one of each conversation',
        unit='share',
        low=0.0,
        high=1.0,
    )
    max_span_words: int = key(60, 'Longest sentence that is spoken', unit='words', low=1)
    on_failed_span: str = key(
        'drop',
        'What becomes of a conversation with a rejected span; type: the span stays typed',
        choices=('drop', 'type'),
    )
    tts: Tts = key(Tts, 'The engine that speaks')
    verify: Verify = key(Verify, 'Checks of every synthesised span')
    augment: Noise = key(Noise, 'Noise and rooms, mixed in by lhotse')


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """The demonstration corpus: counts are [train, validation, test]."""

    seed: int = key(0, 'Seed of every draw', low=0)
    chunk: int = key(16, 'Spans made as one unit of work; twice as many chats', unit='spans', low=1)
    commands: tuple[int, ...] = key((600, 40, 40), 'Recorded commands: train, validation, test', unit='recordings')
    speech_qa: tuple[int, ...] = key((600, 40, 40), 'Conversations: train, validation, test', unit='conversations')
    mixed_modal: tuple[int, ...] = key((500, 40, 40), 'Conversations: train, validation, test', unit='conversations')
    text: tuple[int, ...] = key((441, 40, 60), 'Conversations: train, validation, test', unit='conversations')
    prefixes: tuple[str, ...] = key(
        ('',), 'Polite openings that commands may have: none, please, could you', unit='list'
    )
    llm: str | None = key(
        'minimind2-small',
        'Asset whose own answers become the text-only conversations; null: the chats that a person has answered',
        unit='name',
    )
    max_new_tokens: int = key(64, 'Longest answer', unit='tokens', low=1)
    spare_chats: float = key(
        1.25, 'Chats answered for each that is used: those that end by themselves are preferred', unit='chats', low=1.0
    )
    bank_share: float = key(
        0.0,
        'Transcriptions whose instruction is from the bank instead of the five of the domain: more ways to ask, and '
        'longer training until each is understood',
        unit='share',
        low=0.0,
        high=1.0,
    )
    verify: Verify = key(Verify(max_s=20.0), 'Checks of every synthesised span')
