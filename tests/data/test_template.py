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
"""The one renderer: golden texts and masks for each chat template; what an LLM learns is what it is asked for."""

import copy
import datetime
import itertools
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.data.template import AUDIO_SLOT, ChatRenderer, Rendered, TokenCount, _Counter
from nemo_vtb.errors import VtbConfigError, VtbTemplateError
from nemo_vtb.testing import CHATML, GEMMA, LLAMA3, tiny_llm

pytestmark = pytest.mark.unit
TAG = '<|audioplaceholder|>'

# the parts of Qwen3's own template that matter here: thinking only in the last turn, none when it is switched off
QWEN3 = """
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}
        {{- '<|im_end|>\n' }}
    {%- else %}{{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""
# Mistral: no generation prompt, a space in front of an answer, EOS as the end of a turn, system turns refused
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
SPECIAL = {
    'chatml': (CHATML, ['<|im_start|>', '<|im_end|>'], '<|im_end|>'),
    'qwen3': (QWEN3, ['<|im_start|>', '<|im_end|>'], '<|im_end|>'),
    'gemma': (GEMMA, ['<start_of_turn>', '<end_of_turn>'], '<end_of_turn>'),
    'llama3': (LLAMA3, ['<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'], '<|eot_id|>'),
    'mistral': (MISTRAL, [], '</s>'),
}


def build_tokenizer(name: str, *, pad: str = '<pad>', metaspace: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level (or SentencePiece-like) BPE tokenizer that knows the template's special tokens."""
    template, special, eos = SPECIAL[name]
    core = Tokenizer(models.BPE(unk_token='<unk>' if metaspace else None))
    core.pre_tokenizer = (
        pre_tokenizers.Metaspace(prepend_scheme='first')
        if metaspace
        else pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    core.decoder = decoders.Metaspace() if metaspace else decoders.ByteLevel()
    words = 'Be brief. Listen to and this. Which room? The kitchen. user assistant system [INST] [/INST] Bye Hello'
    alphabet = [chr(c) for c in range(33, 127)] + ['\n', '\u2581'] if metaspace else None
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=['<unk>', '<pad>', '<s>', '</s>', *special, TAG],
        initial_alphabet=alphabet or pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([words] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token='<s>', eos_token=eos, pad_token=eos if pad == 'eos' else pad
    )
    if name == 'qwen3':
        tokenizer.add_tokens(['<think>', '</think>'])  # as in Qwen3: added, but not declared special
    tokenizer.chat_template = template
    return tokenizer


TOKENIZERS = {name: build_tokenizer(name) for name in SPECIAL}
CASES = ('none', 'one', 'three')


def conversation(case: str, *, system: bool = False) -> Conversation:
    a, b, c = (Audio(f'{n}.wav') for n in 'abc')
    parts: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
        'none': ((Text('Hello'),), (Text('Which room?'),)),
        'one': ((Text('Listen to'), a), (Text('Which room?'),)),
        'three': ((a, Text('and'), b), (c,)),
    }
    first, second = parts[case]
    turns = [
        Turn('user', first), Turn('assistant', (Text('Bye'),)), Turn('user', second),
        Turn('assistant', (Text('The kitchen.'),)),
    ]  # fmt: skip
    return Conversation(case, (Turn('system', (Text('Be brief.'),)), *turns) if system else tuple(turns))


def show(rendered: Rendered, tokenizer: PreTrainedTokenizerFast) -> str:
    """What the tokens say, supervised runs in «», recordings as {n}: decoded from the ids, not taken from the text."""
    out, audio = '', itertools.count()
    pairs = zip(rendered.ids, rendered.supervised, strict=True)
    for supervised, run in itertools.groupby(pairs, key=lambda p: p[1]):
        text = ''
        for is_audio, group in itertools.groupby(run, key=lambda p: p[0] == AUDIO_SLOT):
            ids = [i for i, _ in group]
            text += ''.join(f'{{{next(audio)}}}' for _ in ids) if is_audio else tokenizer.decode(ids)
        out += f'«{text}»' if supervised else text
    return out


GOLDEN = {
    ('chatml', 'none'): '<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n«Bye<|im_end|>»\n'
    '<|im_start|>user\nWhich room?<|im_end|>\n<|im_start|>assistant\n«The kitchen.<|im_end|>»\n',
    ('chatml', 'one'): '<|im_start|>user\nListen to {0}<|im_end|>\n<|im_start|>assistant\n«Bye<|im_end|>»\n'
    '<|im_start|>user\nWhich room?<|im_end|>\n<|im_start|>assistant\n«The kitchen.<|im_end|>»\n',
    ('chatml', 'three'): '<|im_start|>user\n{0} and {1}<|im_end|>\n<|im_start|>assistant\n«Bye<|im_end|>»\n'
    '<|im_start|>user\n{2}<|im_end|>\n<|im_start|>assistant\n«The kitchen.<|im_end|>»\n',
    ('qwen3', 'none'): '<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n«Bye<|im_end|>»\n'
    '<|im_start|>user\nWhich room?<|im_end|>\n'
    '<|im_start|>assistant\n<think>\n\n</think>\n\n«The kitchen.<|im_end|>»\n',
    ('qwen3', 'one'): '<|im_start|>user\nListen to {0}<|im_end|>\n<|im_start|>assistant\n«Bye<|im_end|>»\n'
    '<|im_start|>user\nWhich room?<|im_end|>\n'
    '<|im_start|>assistant\n<think>\n\n</think>\n\n«The kitchen.<|im_end|>»\n',
    ('qwen3', 'three'): '<|im_start|>user\n{0} and {1}<|im_end|>\n<|im_start|>assistant\n«Bye<|im_end|>»\n'
    '<|im_start|>user\n{2}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n«The kitchen.<|im_end|>»\n',
    ('gemma', 'none'): '<s><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n«Bye<end_of_turn>»\n'
    '<start_of_turn>user\nWhich room?<end_of_turn>\n<start_of_turn>model\n«The kitchen.<end_of_turn>»\n',
    ('gemma', 'one'): '<s><start_of_turn>user\nListen to {0}<end_of_turn>\n<start_of_turn>model\n«Bye<end_of_turn>»\n'
    '<start_of_turn>user\nWhich room?<end_of_turn>\n<start_of_turn>model\n«The kitchen.<end_of_turn>»\n',
    ('gemma', 'three'): '<s><start_of_turn>user\n{0} and {1}<end_of_turn>\n<start_of_turn>model\n«Bye<end_of_turn>»\n'
    '<start_of_turn>user\n{2}<end_of_turn>\n<start_of_turn>model\n«The kitchen.<end_of_turn>»\n',
    ('llama3', 'none'): '<s><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\n«Bye<|eot_id|>»'
    '<|start_header_id|>user<|end_header_id|>\n\nWhich room?<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\n«The kitchen.<|eot_id|>»',
    ('llama3', 'one'): '<s><|start_header_id|>user<|end_header_id|>\n\nListen to {0}<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\n«Bye<|eot_id|>»'
    '<|start_header_id|>user<|end_header_id|>\n\nWhich room?<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\n«The kitchen.<|eot_id|>»',
    ('llama3', 'three'): '<s><|start_header_id|>user<|end_header_id|>\n\n{0} and {1}<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\n«Bye<|eot_id|>»'
    '<|start_header_id|>user<|end_header_id|>\n\n{2}<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\n«The kitchen.<|eot_id|>»',
    ('mistral', 'none'): '<s>[INST] Hello [/INST]« Bye</s>»[INST] Which room? [/INST]« The kitchen.</s>»',
    ('mistral', 'one'): '<s>[INST] Listen to {0} [/INST]« Bye</s>»[INST] Which room? [/INST]« The kitchen.</s>»',
    ('mistral', 'three'): '<s>[INST] {0} and {1} [/INST]« Bye</s>»[INST] {2} [/INST]« The kitchen.</s>»',
}


@pytest.mark.parametrize(('name', 'case'), GOLDEN, ids=['-'.join(k) for k in GOLDEN])
def test_golden_masks(name: str, case: str) -> None:
    tokenizer = TOKENIZERS[name]
    rendered = ChatRenderer(tokenizer).render(conversation(case))
    assert show(rendered, tokenizer) == GOLDEN[name, case]
    assert rendered.num_audios == rendered.ids.count(AUDIO_SLOT) == {'none': 0, 'one': 1, 'three': 3}[case]
    assert rendered.num_supervised == sum(rendered.supervised) > 0
    assert [s.audio for s in rendered.segments if s.audio is not None] == list(range(rendered.num_audios))


@pytest.mark.parametrize('name', SPECIAL)
@pytest.mark.parametrize('case', CASES)
def test_prompt_ids_are_a_prefix_of_training_ids(name: str, case: str) -> None:
    tokenizer = TOKENIZERS[name]
    renderer = ChatRenderer(tokenizer)
    whole = conversation(case)
    trained, asked = renderer.render(whole), renderer.render_prompt(whole.prompt)
    assert trained.ids[: len(asked.ids)] == asked.ids
    # the answer begins exactly where the prompt ends
    assert all(trained.supervised[len(asked.ids) : -1])
    assert trained.supervised[len(asked.ids) - 1] is False


def test_a_generation_prompt_that_training_never_shows_is_not_used() -> None:
    tokenizer = copy.deepcopy(TOKENIZERS['qwen3'])
    # MiniMind2: empty think tags in the generation prompt, never in a conversation
    tokenizer.chat_template = CHATML.replace('assistant\n{% endif %}', 'assistant\n<think>\n\n</think>\n\n{% endif %}')
    renderer = ChatRenderer(tokenizer)
    trained, asked = renderer.render(conversation('one')), renderer.render_prompt(conversation('one').prompt)
    assert trained.ids[: len(asked.ids)] == asked.ids
    assert asked.text.endswith('<|im_start|>assistant\n')


@pytest.mark.parametrize('name', ['chatml', 'gemma', 'llama3', 'mistral'])
def test_text_alone_is_what_transformers_renders(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    whole = conversation('none')
    messages = [{'role': t.role, 'content': t.text} for t in whole.turns]
    assert ChatRenderer(tokenizer).render(whole).text == tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize('name', SPECIAL)
def test_the_end_token_is_supervised_also_when_it_is_the_padding(name: str) -> None:
    tokenizer = build_tokenizer(name, pad='eos')
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rendered = ChatRenderer(tokenizer).render(conversation('one'))
    supervised = [i for i, s in zip(rendered.ids, rendered.supervised, strict=True) if s]
    assert supervised.count(tokenizer.eos_token_id) == 2
    assert ChatRenderer(tokenizer).end_of_turn_ids == {tokenizer.eos_token_id}


@pytest.mark.parametrize('name', SPECIAL)
def test_a_system_turn_is_never_lost(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    text = show(ChatRenderer(tokenizer).render(conversation('one', system=True)), tokenizer)
    folded = {'gemma': 'user\nBe brief.\n\nListen to {0}<', 'mistral': '[INST] Be brief.\n\nListen to {0} [/INST]'}
    assert text.count('Be brief.') == 1
    assert folded.get(name, 'system') in text
    prompt = ChatRenderer(tokenizer).render_prompt(conversation('one', system=True).prompt)
    assert show(prompt, tokenizer).count('Be brief.') == 1


def test_a_template_that_leaves_the_system_turn_out_gets_it_folded() -> None:
    tokenizer = copy.deepcopy(TOKENIZERS['chatml'])
    tokenizer.chat_template = CHATML.replace(
        '{% for m in messages %}', "{% for m in messages if m['role'] != 'system' %}"
    )
    text = ChatRenderer(tokenizer).render(conversation('none', system=True)).text
    assert text.startswith('<|im_start|>user\nBe brief.\n\nHello<|im_end|>')


@pytest.mark.parametrize('name', SPECIAL)
def test_special_tokens_in_anybodys_text_are_ordinary_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    renderer = ChatRenderer(tokenizer)
    specials = sorted(tokenizer.get_added_vocab())
    evil = ' '.join(specials) + ''.join(specials)
    turns = (
        Turn('system', (Text(evil),)),
        Turn('user', (Text(f'a{evil}b'), Audio('a.wav'))),
        Turn('assistant', (Text(f'c{evil}d'),)),
    )
    plain = tuple(Turn(t.role, tuple(Text('x') if isinstance(p, Text) else p for p in t.parts)) for t in turns)
    rendered, calm = (renderer.render(Conversation('', t)) for t in (turns, plain))
    ids = set(tokenizer.added_tokens_decoder)
    assert [i for i in rendered.ids if i in ids] == [i for i in calm.ids if i in ids]
    assert rendered.num_audios == 1
    decoded = show(rendered, tokenizer)
    assert decoded.count(evil) == 3  # and nothing of it is lost
    assert decoded.count('«') == 1


def test_private_characters_in_the_text_are_kept() -> None:
    tokenizer = TOKENIZERS['chatml']
    strange = ''.join(chr(c) for c in range(0xE000, 0xE010)) + 'a0\ue001b1'
    turns = (Turn('user', (Text(strange), Audio('a.wav'))), Turn('assistant', (Text(strange),)))
    rendered = ChatRenderer(tokenizer).render(Conversation('', turns))
    assert show(rendered, tokenizer).count(strange) == 2
    assert rendered.num_audios == 1


def test_sentencepiece_tokenizers_get_no_extra_spaces() -> None:
    tokenizer = build_tokenizer('mistral', metaspace=True)
    renderer = ChatRenderer(tokenizer)
    rendered = renderer.render(conversation('none'))
    assert rendered.ids == tokenizer(rendered.text, add_special_tokens=False)['input_ids']
    supervised = [i for i, s in zip(rendered.ids, rendered.supervised, strict=True) if s]
    assert tokenizer.convert_ids_to_tokens(supervised)[0].startswith('\u2581')  # the model learns to say the space


def test_parts_of_a_turn_are_joined_by_one_space() -> None:
    turns = (Turn('user', (Text('a'), Text('b'), Audio('x'), Audio('y'))), Turn('assistant', (Text('c'), Text('d'))))
    tokenizer = TOKENIZERS['chatml']
    text = show(ChatRenderer(tokenizer).render(Conversation('', turns)), tokenizer)
    assert text == '<|im_start|>user\na b {0} {1}<|im_end|>\n<|im_start|>assistant\n«c d<|im_end|>»\n'


def test_reasoning_in_an_answer_is_not_cut_out_in_silence() -> None:
    tokenizer = build_tokenizer('chatml')
    tokenizer.chat_template = QWEN3  # a template that edits answers, with a tokenizer that has no think tokens
    turns = (Turn('user', (Text('a'),)), Turn('assistant', (Text('<think>\nhm\n</think>\n\nb'),)))
    with pytest.raises(VtbTemplateError, match='drops or repeats'):
        ChatRenderer(tokenizer).render(Conversation('c7', turns))


# ---- what is refused


def test_no_chat_template(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm(tmp_path / 'llm'))
    tokenizer.chat_template = None
    with pytest.raises(VtbTemplateError, match='no chat template') as caught:
        ChatRenderer(tokenizer)
    assert 'chat_template.jinja' in str(caught.value)


@pytest.mark.parametrize('end', ['\n', ' END ', ''])
def test_a_template_without_an_end_of_turn_token(end: str) -> None:
    tokenizer = copy.deepcopy(TOKENIZERS['chatml'])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '" + end + "' }}{% endfor %}"
    )
    renderer = ChatRenderer(tokenizer)
    with pytest.raises(VtbTemplateError, match='could not learn to stop') as caught:
        renderer.render(conversation('one'))
    assert caught.value.field == 'conversation one'


def test_a_template_that_drops_or_repeats_a_recording() -> None:
    tokenizer = copy.deepcopy(TOKENIZERS['chatml'])
    for loop in ('{% for m in messages[-1:] %}', '{% for m in messages + messages %}'):
        tokenizer.chat_template = CHATML.replace('{% for m in messages %}', loop)
        with pytest.raises(VtbTemplateError, match='drops or repeats'):
            ChatRenderer(tokenizer).render(conversation('one'))


def test_a_template_that_refuses_the_order_of_roles() -> None:
    turns = (Turn('user', (Text('a'),)), Turn('user', (Text('b'),)), Turn('assistant', (Text('c'),)))
    with pytest.raises(VtbTemplateError, match='must alternate'):
        ChatRenderer(TOKENIZERS['mistral']).render(Conversation('', turns))


@pytest.mark.parametrize('turns', [(), (Turn('user', (Text('a'),)), Turn('assistant', (Text('b'),)))])
def test_a_prompt_ends_with_the_user(turns: tuple[Turn, ...]) -> None:
    with pytest.raises(VtbTemplateError, match='must end with a user turn'):
        ChatRenderer(TOKENIZERS['chatml']).render_prompt(Conversation('', turns))


# ---- the fingerprint


def test_fingerprint_names_template_and_tokenizer() -> None:
    first, again = (ChatRenderer(build_tokenizer('chatml')).fingerprint for _ in range(2))
    assert first == again
    changed = build_tokenizer('chatml')
    changed.chat_template += ' '
    grown = build_tokenizer('chatml')
    grown.add_tokens(['<extra>'])
    fingerprints = {first, ChatRenderer(changed).fingerprint, ChatRenderer(grown).fingerprint}
    fingerprints |= {ChatRenderer(TOKENIZERS[name]).fingerprint for name in ('gemma', 'llama3')}
    assert len(fingerprints) == 5


def dated(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm(folder))
    tokenizer.chat_template = "Today: {{ strftime_now('%d %b %Y') }}<|im_end|>" + tokenizer.chat_template
    return tokenizer


def test_a_template_says_the_date_that_is_set_on_every_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = dated(tmp_path)
    conversation = Conversation('c', (Turn('user', (Text('hi'),)), Turn('assistant', (Text('ho'),))))
    today = ChatRenderer(tokenizer)
    assert 'Today: 26 Jul 2024' in today.render(conversation).text

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> 'Later':
            return cls(2031, 1, 2)

    monkeypatch.setattr('transformers.utils.chat_template_utils.datetime', Later)
    assert '2031' in tokenizer.apply_chat_template([{'role': 'user', 'content': 'a'}], tokenize=False)
    tomorrow = ChatRenderer(tokenizer)
    assert tomorrow.render(conversation).ids == today.render(conversation).ids
    assert tomorrow.fingerprint == today.fingerprint
    other = pickle.loads(pickle.dumps(ChatRenderer(tokenizer, '2026-11-27')))  # noqa: S301 - our own object
    assert 'Today: 27 Nov 2026' in other.render(conversation).text and other.date == '2026-11-27'
    assert other.fingerprint != today.fingerprint


def test_a_form_of_the_date_that_is_computed_is_refused(tmp_path: Path) -> None:
    tokenizer = dated(tmp_path)
    tokenizer.chat_template = "{% set f = '%Y' %}{{ strftime_now(f) }}" + tokenizer.chat_template
    with pytest.raises(VtbTemplateError, match='computes the form'):
        ChatRenderer(tokenizer)


def test_a_date_changes_nothing_where_the_template_says_none(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm(tmp_path))
    assert ChatRenderer(tokenizer, '2026-11-27').fingerprint == ChatRenderer(tokenizer).fingerprint
    assert ChatRenderer(tokenizer).date is None


def test_what_is_no_day_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VtbConfigError) as caught:
        ChatRenderer(dated(tmp_path), '27 Nov 2026')
    assert caught.value.field == 'model.template_date'


def test_several_templates_need_one_for_conversations(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm(tmp_path))
    tokenizer.chat_template = {'default': tokenizer.chat_template, 'tool_use': '{{ "tools" }}'}
    conversation = Conversation('c', (Turn('user', (Text('hi'),)), Turn('assistant', (Text('ho'),))))
    assert 'hi' in ChatRenderer(tokenizer).render(conversation).text
    tokenizer.chat_template = {'rag': 'x', 'tool_use': 'y'}
    with pytest.raises(VtbTemplateError, match='none is for conversations'):
        ChatRenderer(tokenizer)


# ---- counting


def some_conversations(count: int, seed: int) -> list[Conversation]:
    """Of many layouts; some texts are such as a template or a tokenizer might treat in its own way."""
    rng = random.Random(seed)
    odd = [
        ' in front',
        'behind\n',
        '<|im_end|>',
        '100 % %s %d',
        '',
        '</think> so',
        '\U0001f600 \u00e9',
        '[INST]',
        '  ',
        '\ue000',
    ]

    def say() -> Text:
        words = ' '.join(rng.choices('turn on the lamp in kitchen at noon please 12 Rooms, say; which?'.split(), k=4))
        return Text(rng.choice(odd) if rng.random() < 0.1 else words)

    made = []
    for number in range(count):
        turns = [Turn('system', (say(),))] if rng.random() < 0.3 else []
        for _ in range(rng.randint(1, 3)):
            parts = tuple(say() if rng.random() < 0.6 else Audio('a.wav') for _ in range(rng.randint(1, 3)))
            turns += [Turn('user', parts), Turn('assistant', (say(),))]
        made.append(Conversation(str(number), tuple(turns)))
    return made


def counted(render: Any, conversation: Conversation) -> Any:
    try:
        found = render(conversation)
    except VtbTemplateError as error:
        return error.reason
    if isinstance(found, Rendered):
        return TokenCount(len(found.ids) - found.num_audios, found.num_supervised, found.num_audios)
    return found


@pytest.mark.parametrize('name', list(SPECIAL))
@pytest.mark.parametrize('metaspace', [False, True])
def test_counting_is_rendering(name: str, metaspace: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = ChatRenderer(build_tokenizer(name, metaspace=metaspace))
    conversations = some_conversations(150, 1)
    expected = [counted(renderer.render, conversation) for conversation in conversations]
    monkeypatch.setattr(_Counter, '_FIRST', 0)  # otherwise what was rendered would be compared with itself
    assert [counted(renderer.count, conversation) for conversation in conversations] == expected


def test_a_template_is_applied_once_for_each_layout(renderer: ChatRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = ChatRenderer(renderer.tokenizer)
    layout = [
        Conversation(str(n), (Turn('user', (Text(f'say {n}'),)), Turn('assistant', (Text('no'),)))) for n in range(200)
    ]
    calls: list[str] = []
    render = ChatRenderer.render
    monkeypatch.setattr(ChatRenderer, 'render', lambda self, c: (calls.append(c.id), render(self, c))[1])
    for conversation in layout:
        counter.count(conversation)
    assert len(calls) == 1 + _Counter._FIRST


def test_a_template_that_looks_at_texts_is_found() -> None:
    tokenizer = build_tokenizer('chatml')
    tokenizer.chat_template = CHATML.replace("m['content']", "m['content'].replace(' ', '')")
    renderer = ChatRenderer(tokenizer)
    conversations = [c for c in some_conversations(60, 2) if renderer.is_plain(c.turns[-1].text)]
    assert [counted(renderer.count, c) for c in conversations] == [counted(renderer.render, c) for c in conversations]
