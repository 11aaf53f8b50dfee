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
"""Mixed-modal conversations: which sentences are spoken, that nothing of a chat is lost, and whole productions."""

from random import Random

import pytest
from factory_helpers import read_lines, read_wav, write_chats, write_jsonl

from nemo_vtb.config import read_settings
from nemo_vtb.data.conversation import conversation_from_dict
from nemo_vtb.factory.dataset_files import finish
from nemo_vtb.factory.language import pieces_of
from nemo_vtb.factory.mixed_modal import MixedModalStage, choose_spans, plan_turn
from nemo_vtb.factory.pipeline import make_stage, produce
from nemo_vtb.factory.settings import MixedModal

NO_ASR = {'verify': {'asr': None}, 'chunk': 4}
TURN = 'Hello there. Look at this: `x = 1`. What does it do? Please explain it. Thank you very much.'


def runs(chosen):
    return sum(number - 1 not in chosen for number in chosen)


@pytest.mark.parametrize('count', range(1, 8))
@pytest.mark.parametrize('policy', ['full_turn', 'sentences', 'multi_span'])
def test_policies(count, policy):
    seen = set()
    for seed in range(400):
        chosen = choose_spans(Random(seed), count, policy)
        assert chosen and chosen <= set(range(count))
        seen |= chosen
        if policy == 'full_turn':
            assert len(chosen) == count
        elif policy == 'sentences' or count < 3:
            assert runs(chosen) == 1
        else:
            assert runs(chosen) >= 2
    # with three sentences, two runs are the first and the last
    assert seen == ({0, 2} if policy == 'multi_span' and count == 3 else set(range(count)))


def test_nothing_of_a_turn_is_lost_and_code_stays_typed():
    pieces = pieces_of(TURN, 'en')
    for seed in range(50):
        for policy in ('full_turn', 'sentences', 'multi_span'):
            parts = plan_turn(Random(seed), pieces, policy)
            assert ' '.join(' '.join(part.text for part in parts).split()) == TURN
            assert any(part.spoken for part in parts)
            assert not any(part.spoken and '`' in part.text for part in parts)
            assert all(a.spoken != b.spoken for a, b in zip(parts, parts[1:], strict=False))


def chat(*texts, **more):
    return {'conversations': [{'from': ('human', 'gpt')[i % 2], 'value': t} for i, t in enumerate(texts)], **more}


@pytest.fixture
def made(tmp_path):
    rows = [
        chat(TURN, 'It sets x.', 'And what else? Tell me.', 'Nothing.'),
        chat('```\ncode alone\n```', 'Yes.'),
        chat('Hello, how are you?', 'Fine.', system='Be brief.'),
        chat('Cut?', 'word ' * 40),
    ]
    stage = make_stage('mixed_modal', [str(write_jsonl(tmp_path / 'c.jsonl', rows))], NO_ASR)
    return {outcome.id: outcome for outcome in stage.make(list(stage.items()), tmp_path)}, rows, tmp_path


def test_outcomes(made):
    outcomes, rows, out = made
    assert [one.reason for one in outcomes.values()] == ['kept', 'nothing_to_speak', 'kept', 'truncated']
    for name, row in (('c-0000000-v0', rows[0]), ('c-0000002-v0', rows[2])):
        line = outcomes[name].line
        found = conversation_from_dict(line, base_dir=out)
        assert found.kind == 'mixed_modal' and all(audio.text for audio in found.audios)
        typed = ' '.join(entry.get('text', entry['value']) for entry in line['conversations'])
        expected = ' '.join([row.get('system', ''), *(turn['value'] for turn in row['conversations'])])
        assert typed.split() == expected.split()
        for audio in found.audios:
            assert len(read_wav(out / audio.path if not audio.path.startswith('/') else audio.path)) > 1000
        assert len({span['voice'] for span in outcomes[name].facts['spans']}) == 1


def test_every_user_turn_may_be_spoken_or_some(tmp_path):
    path = write_jsonl(tmp_path / 'c.jsonl', [chat('Who are you?', 'Me.', 'Why is that?', 'Because.')] * 1)
    for share, turns in ((1.0, 2), (0.0, 1)):
        stage = make_stage('mixed_modal', [str(path)], {**NO_ASR, 'turn_share': share})
        (outcome,) = stage.make(list(stage.items()), tmp_path)
        spoken = [turn for turn in conversation_from_dict(outcome.line).turns if not isinstance(turn.parts[0], str)]
        assert sum(any(hasattr(part, 'path') for part in turn.parts) for turn in spoken) == turns


def test_a_failed_span_drops_or_types(tmp_path):
    # the second question is longer than the limit, spoken in one breath
    row = chat('Who are you?', 'Me.', 'Why is the river slow when it runs past the old mill in winter?', 'Cold.')
    path = write_jsonl(tmp_path / 'c.jsonl', [row])
    for choice in ('drop', 'type'):
        words = {'verify': {'asr': None, 'max_s': 2.0}, 'on_failed_span': choice}
        stage = MixedModalStage(read_settings(MixedModal, words), (str(path),))
        (outcome,) = stage.make(list(stage.items()), tmp_path)
        if choice == 'drop':
            assert (outcome.line, outcome.reason) == (None, 'too_long') and len(outcome.files) == 1
        else:
            types = [entry['type'] for entry in outcome.line['conversations']]
            assert types == ['audio', 'text', 'text', 'text']


@pytest.mark.real_weights
@pytest.mark.integration
def test_a_verified_production(tmp_path, assets):
    assets('whisper-tiny.en')
    stage = make_stage('mixed_modal', [str(write_chats(tmp_path / 'c.jsonl', 12))], {'chunk': 6})
    produce(stage, tmp_path / 'out')
    card = finish(stage, stage.settings, tmp_path / 'out').to_json()
    assert card['outcomes'] == 12 and card['kept'] >= 8
    assert card['wer']['n'] >= 12 and card['wer']['p50'] <= 0.1
    lines = [line for path in (tmp_path / 'out').glob('mixed_modal.*.jsonl') for line in read_lines(path)]
    assert all(line['custom']['wer'] <= 0.3 and line['custom']['voice'] for line in lines)
    assert set(card['reasons']) <= {'kept', 'wer'}
    for row in read_lines(tmp_path / 'out' / 'rejected.jsonl'):
        assert max(span['wer'] for span in row['spans']) > 0.3 and row['spans'][0]['heard']
