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
"""The engine: what it answers is what `generate` answers, whoever else is answered at the same time."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from serving_helpers import make_model

from nemo_vtb.backbone.kv_cache import KVCache
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.model.inference import load_clip
from nemo_vtb.serving.engine import Engine, Generation, Sampling, shared_length

pytestmark = pytest.mark.unit


def asked(wavs: Sequence[str]) -> list[Conversation]:
    texts = ['Open the door.', 'Tell me a long story of the sea and the mountain in the rain at midnight, please.']
    prompts = [Conversation(t, (Turn('user', (Text(t),)),)) for t in texts]
    prompts.append(Conversation('one', (Turn('user', (Audio(wavs[0]),)),)))
    prompts.append(Conversation('two', (Turn('user', (Audio(wavs[1]), Audio(wavs[2]), Text('Which?'))),)))
    turns = (Turn('system', (Text('Be brief.'),)), Turn('user', (Audio(wavs[3]),)), Turn('assistant', (Text('Sea.'),)))
    return [*prompts, Conversation('three', (*turns, Turn('user', (Text('And now'), Audio(wavs[4])))))]


def begin(engine: Engine, conversation: Conversation, sampling: Sampling, **options: Any) -> Generation:
    frames = [engine.frames([load_clip(engine.model, audio)])[0] for audio in conversation.audios]
    ids = engine.model.renderer.render_prompt(conversation).ids
    return engine.begin(engine.prompt(ids, [a.path for a in conversation.audios], frames), sampling, **options)


def tokens_of(model: Any, conversation: Conversation, count: int) -> list[int]:
    """What the uncached `generate` of the model says, token by token, to the end of the turn."""
    from nemo_vtb.model import inference

    row, clips = model.renderer.render_prompt(conversation).ids, [load_clip(model, a) for a in conversation.audios]
    options = {'do_sample': False, 'max_new_tokens': count, 'use_cache': False}
    out = inference._generate(model, [row], clips, None, **options)[0].tolist()
    stops = inference.generation_defaults(model)['eos_token_id']
    return out[: next((place for place, token in enumerate(out) if token in stops), len(out))]


@pytest.mark.parametrize('family', ['llama', 'gemma2', 'gemma3_text', 'qwen3', 'granite'])
def test_tokens_are_those_of_the_uncached_generate(family: str, wavs: list[str], tmp_path: Path) -> None:
    model = make_model(tmp_path, family)
    engine = Engine(model)
    for conversation in asked(wavs):
        generation = begin(engine, conversation, Sampling(max_new_tokens=12))
        list(engine.answer(generation))
        assert generation.tokens == tokens_of(model, conversation, 12), conversation.id


def test_answers_at_once_are_answers_alone(engine: Engine, wavs: list[str]) -> None:
    conversations, sampling = asked(wavs), Sampling(max_new_tokens=10)
    alone = []
    for conversation in conversations:
        generation = begin(engine, conversation, sampling)
        list(engine.answer(generation))
        alone.append(generation.tokens)
    assert len({tuple(tokens) for tokens in alone}) >= 4, 'the model does listen'
    running, waiting = list[Generation](), [begin(engine, c, sampling) for c in conversations]
    generations = list(waiting)
    while waiting or any(g.finish_reason is None for g in running):
        running += [waiting.pop(0)] if waiting else []  # each joins while others are in the middle of their answers
        engine.step(running)
    assert [g.tokens for g in generations] == alone


def test_the_base_llm_beside_lora(engine: Engine, wavs: list[str]) -> None:
    conversations = asked(wavs)
    both = [
        begin(engine, c, Sampling(max_new_tokens=8), use_lora=lora) for c in conversations for lora in (True, False)
    ]
    while any(g.finish_reason is None for g in both):
        engine.step(both)
    for place, use_lora in ((0, True), (1, False)):
        expected = engine.model.answer(conversations, max_new_tokens=8, use_lora=use_lora)
        assert [g.text for g in both[place::2]] == expected


def test_a_kept_prefix_changes_nothing(engine: Engine, wavs: list[str]) -> None:
    conversation, sampling = asked(wavs)[4], Sampling(max_new_tokens=8)
    whole = begin(engine, conversation, sampling)
    list(engine.answer(whole))
    for kept in (1, 7, len(whole.prompt) - 1):
        cache = whole.cache
        cache.truncate(kept)
        again = begin(engine, conversation, sampling, cache=cache)
        list(engine.answer(again))
        assert again.reused == kept and again.tokens == whole.tokens


def test_seeds_belong_to_one_answer(engine: Engine, wavs: list[str]) -> None:
    conversation = asked(wavs)[0]

    def run(seeds: list[int], **options: Any) -> list[list[int]]:
        made = [
            begin(engine, conversation, Sampling(max_new_tokens=8, temperature=2.0, seed=s, **options)) for s in seeds
        ]
        while any(g.finish_reason is None for g in made):
            engine.step(made)
        return [g.tokens for g in made]

    one, two = run([1]), run([2])
    assert run([2, 1, 1]) == [*two, *one, *one] and one != two
    greedy = begin(engine, conversation, Sampling(max_new_tokens=8))
    list(engine.answer(greedy))
    assert run([3], top_p=1e-6) == [greedy.tokens]


def test_the_probabilities_are_those_of_the_model(engine: Engine, wavs: list[str]) -> None:
    generation = begin(engine, asked(wavs)[0], Sampling(temperature=0.7, top_p=0.8, seed=0))
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, 1.5])
    drawn = torch.tensor([generation._sample(logits) for _ in range(4000)]).bincount(minlength=5) / 4000
    expected = torch.softmax(logits / 0.7, -1)
    expected[[2, 3]] = 0.0  # 0.59 + 0.29 are more than 0.8 already
    expected[1] = 0.0
    assert (drawn - expected / expected.sum()).abs().max() < 0.03


def test_an_answer_ends_before_a_stop_text(engine: Engine, wavs: list[str]) -> None:
    conversation = asked(wavs)[1]
    free = begin(engine, conversation, Sampling(max_new_tokens=16))
    streamed = ''.join(engine.answer(free))
    assert streamed == free.text and free.finish_reason in ('stop', 'length') and len(free.text) > 8
    run = max(re.findall('[ -~]+', free.text), key=len)  # random weights say half characters, too
    for stop in (run[1], run[:3], run[1:]):  # also over several tokens
        ended = begin(engine, conversation, Sampling(max_new_tokens=16, stop=('absent', stop)))
        pieces = ''.join(engine.answer(ended))
        assert pieces == ended.text == free.text.partition(stop)[0].rstrip() and ended.finish_reason == 'stop'
    other = begin(engine, conversation, Sampling(max_new_tokens=16, stop=('absent',)))
    assert ''.join(engine.answer(other)) == free.text and other.tokens == free.tokens


def test_the_limit_of_tokens_is_named(engine: Engine, wavs: list[str]) -> None:
    generation = begin(engine, asked(wavs)[0], Sampling(max_new_tokens=1))
    list(engine.answer(generation))
    assert generation.finish_reason == 'length' and len(generation.tokens) == 1


@pytest.mark.parametrize(
    ('field', 'value'),
    [('max_new_tokens', 0), ('temperature', -0.1), ('temperature', float('nan')), ('top_p', 0.0), ('top_p', 1.5),
     ('stop', ('',)), ('seed', 2**70)],
)  # fmt: skip
def test_settings_out_of_range(field: str, value: object) -> None:
    with pytest.raises(VtbConfigError) as caught:
        Sampling(**{field: value})
    assert caught.value.field == field


def test_a_clip_without_a_frame(engine: Engine) -> None:
    with pytest.raises(VtbDataError) as caught:
        engine.frames([torch.zeros(0)])
    assert caught.value.reason == 'audio_too_short'


def test_shared_length() -> None:
    assert [shared_length(a, b) for a, b in (('abc', 'abd'), ('abc', 'ab'), ('', 'a'), ('x', 'a'))] == [2, 2, 0, 0]


def test_the_cache_grows_and_forgets() -> None:
    cache, kept = KVCache(), list[torch.Tensor]()
    for count in (3, 70, 1, 200):
        new = torch.randn(1, 2, count, 4)
        kept.append(new)
        key, value = cache.append(0, new, new + 1)
        cache.commit(count)
        assert torch.equal(key, torch.cat(kept, 2)) and torch.equal(value, key + 1)
    cache.truncate(73)
    new = torch.randn(1, 2, 2, 4)
    assert torch.equal(cache.append(0, new, new)[0], torch.cat([*kept[:2], new], 2))
