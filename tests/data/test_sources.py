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
"""NeMo's formats are read unchanged; what is not one of them is refused by name."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from data_helpers import spoken, text, write_jsonl, write_wav

from nemo_vtb.data.audio import read_audio
from nemo_vtb.data.conversation import Audio, Conversation, Text
from nemo_vtb.data.cut_sampler import cut_of
from nemo_vtb.data.sources import SourceSpec, parse_input_cfg
from nemo_vtb.errors import VtbConfigError, VtbDataError

CHAT = {'id': 'c', 'conversations': [text('User', 'hi'), text('Assistant', 'hello')]}


def read(folder: Path, line: Any, **entry: Any) -> Conversation | None:
    path = write_jsonl(folder / 'm.jsonl', [line])
    spec = parse_input_cfg([{'type': 'multimodal_conversation', 'manifest_filepath': str(path), **entry}])[0]
    return spec.read(json.loads(path.read_text()), 0, 'here')


def said(conversation: Conversation | None) -> list[tuple[str, list[str]]]:
    assert conversation is not None
    return [
        (t.role, [p.text if isinstance(p, Text) else Path(p.path).name for p in t.parts]) for t in conversation.turns
    ]


def test_a_conversation_is_named_after_its_file_and_paths_are_relative_to_it(tmp_path: Path) -> None:
    line = {
        'id': 'x',
        'conversations': [text('User', 'say'), spoken('wav/a.wav', duration=1.0), text('Assistant', 'b')],
    }
    conversation = read(tmp_path, line, kind='speech_qa')
    assert conversation is not None
    assert (conversation.source, conversation.kind, conversation.id) == ('m', 'speech_qa', 'x')
    assert conversation.audios == [Audio(str(tmp_path / 'wav/a.wav'), 1.0)]


def test_kind_is_inferred_from_the_first_usable_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / 'm.jsonl', ['{', CHAT])
    assert parse_input_cfg([{'type': 'multimodal_conversation', 'manifest_filepath': str(path)}])[0].kind == 'text'
    path = write_jsonl(tmp_path / 'n.jsonl', [CHAT | {'custom': {'kind': 'mixed_modal'}}])
    spec = parse_input_cfg([{'type': 'multimodal_conversation', 'manifest_filepath': str(path)}])[0]
    assert spec.kind == 'mixed_modal'


def test_tags_of_nemo_are_honoured(tmp_path: Path) -> None:
    line = {'id': 'x', 'conversations': [spoken('a.wav'), text('Assistant', 'b')]}
    conversation = read(tmp_path, line, kind='asr_ast', tags={'context': 'Transcribe:', 'system_prompt': 'Be brief.'})
    assert said(conversation)[:2] == [('system', ['Be brief.']), ('user', ['Transcribe:', 'a.wav'])]
    assert said(read(tmp_path, CHAT, system_prompt='Be kind.'))[0] == ('system', ['Be kind.'])


def test_a_line_can_say_that_it_is_skipped(tmp_path: Path) -> None:
    assert read(tmp_path, CHAT | {'custom': {'_skipme': True}}, kind='text') is None


def test_share_gpt_with_one_and_with_several_recordings(tmp_path: Path) -> None:
    one = {
        'id': 1,
        'sound': 'a.wav',
        'conversations': [{'from': 'human', 'value': 'Hear <sound> and say'}, {'from': 'gpt', 'value': 'ok'}],
    }
    assert said(read(tmp_path, one, type='share_gpt', kind='speech_qa')) == [
        ('user', ['Hear', 'a.wav', 'and say']),
        ('assistant', ['ok']),
    ]
    two = {
        'id': 2,
        'audios': ['a.wav', 'b.wav'],
        'conversations': [
            {'from': 'system', 'value': 'Listen.'},
            {'from': 'human', 'value': '<audio> then <audio>'},
            {'from': 'gpt', 'value': 'an <audio> is only a word here'},
        ],
    }
    assert said(read(tmp_path, two, type='share_gpt', kind='speech_qa')) == [
        ('system', ['Listen.']),
        ('user', ['a.wav', 'then', 'b.wav']),
        ('assistant', ['an <audio> is only a word here']),
    ]
    plain = {'conversations': [{'from': 'human', 'value': 'hi'}, {'from': 'gpt', 'value': 'ho'}]}
    assert said(read(tmp_path, plain, type='share_gpt')) == [('user', ['hi']), ('assistant', ['ho'])]


@pytest.mark.parametrize('audios', [[], ['a.wav', 'b.wav']])
def test_share_gpt_needs_a_recording_for_each_placeholder(tmp_path: Path, audios: list[str]) -> None:
    line = {'audios': audios, 'conversations': [{'from': 'human', 'value': '<audio>'}, {'from': 'gpt', 'value': 'ok'}]}
    with pytest.raises(VtbDataError) as caught:
        read(tmp_path, line, type='share_gpt', kind='speech_qa')
    assert caught.value.reason == 'placeholder_mismatch'


def test_a_nemo_manifest_becomes_transcription_translation_or_answer(tmp_path: Path) -> None:
    asr = {'audio_filepath': 'a.wav', 'duration': 1.5, 'offset': 2.0, 'text': 'hello', 'lang': 'en'}
    conversation = read(tmp_path, asr, type='nemo')
    assert said(conversation) == [('user', ['Transcribe the speech.', 'a.wav']), ('assistant', ['hello'])]
    assert conversation is not None
    assert conversation.kind == 'asr_ast'
    assert conversation.audios == [Audio(str(tmp_path / 'a.wav'), 1.5, 2.0, 'hello')]
    ast = {**asr, 'source_lang': 'en', 'target_lang': 'fr', 'target_text': 'bonjour'}
    assert said(read(tmp_path, ast, type='nemo')) == [
        ('user', ['Translate the speech to French.', 'a.wav']),
        ('assistant', ['bonjour']),
    ]
    qa = {**asr, 'question': 'What is said?', 'answer': 'a greeting', 'system_prompt': 'Be brief.'}
    assert said(read(tmp_path, qa, type='sqa_as_conversation')) == [
        ('system', ['Be brief.']),
        ('user', ['What is said?', 'a.wav']),
        ('assistant', ['a greeting']),
    ]


def test_prompts_of_a_source_are_spread_over_its_lines_and_stay(tmp_path: Path) -> None:
    prompts = ['Write down {source_lang}.', 'Transcribe:', 'What is said?']
    lines = [{'audio_filepath': f'{n}.wav', 'duration': 1.0, 'text': 'x', 'lang': 'de'} for n in range(60)]
    asked = [said(read(tmp_path, line, type='nemo', prompt=prompts))[0][1][0] for line in lines]
    assert asked == [said(read(tmp_path, line, type='nemo', prompt=prompts))[0][1][0] for line in lines]
    assert set(asked) == {'Write down German.', 'Transcribe:', 'What is said?'}


def test_transcripts_are_learnt_without_punctuation_and_capitalization_on_request(tmp_path: Path) -> None:
    line = {
        'id': 'x',
        'conversations': [text('User', 'Say it:'), spoken('a.wav'), text('Assistant', "It's Bob, No. 3!")],
    }
    plain = read(tmp_path, line, kind='asr_ast', pnc=False)
    assert said(plain) == [('user', ['Say it:', 'a.wav']), ('assistant', ["it's bob no 3"])]
    assert said(read(tmp_path, line, kind='asr_ast'))[1] == ('assistant', ["It's Bob, No. 3!"])
    assert said(read(tmp_path, line, kind='speech_qa', pnc=False))[1] == ('assistant', ["It's Bob, No. 3!"])
    into_german = line | {'custom': {'source_lang': 'en', 'target_lang': 'de'}}
    assert said(read(tmp_path, into_german, kind='asr_ast', pnc=False))[1] == ('assistant', ["It's Bob, No. 3!"])
    path = write_jsonl(
        tmp_path / 'a.jsonl', [{'audio_filepath': 'a.wav', 'text': 'Hi, Bob.', 'duration': 1, 'pnc': 'yes'}]
    )
    entry = {'type': 'nemo', 'manifest_filepath': str(path), 'pnc': False, 'prompt': 'Write it {style}:'}
    [spec] = parse_input_cfg([entry])
    asked = said(spec.read(json.loads(path.read_text()), 0, 'here'))
    assert asked[0][1][0] == 'Write it without punctuation and capitalization:' and asked[1][1] == ['hi bob']
    line['conversations'][-1] = text('Assistant', '...')
    with pytest.raises(VtbDataError) as caught:
        read(tmp_path, line, kind='asr_ast', pnc=False)
    assert caught.value.reason == 'nothing_to_learn'


@pytest.mark.parametrize('missing', ['audio_filepath', 'text'])
def test_a_manifest_line_needs_its_keys(tmp_path: Path, missing: str) -> None:
    line = {'audio_filepath': 'a.wav', 'duration': 1.0, 'text': 'x'}
    del line[missing]
    with pytest.raises(VtbDataError) as caught:
        read(tmp_path, line, type='nemo')
    assert caught.value.reason == 'missing_key'


def test_a_lhotse_cut_becomes_a_conversation(tmp_path: Path) -> None:
    """The manifest is written by lhotse itself."""
    from lhotse import CutSet, Recording, SupervisionSegment

    wav = write_wav(tmp_path / 'a.wav', 2.0)
    cut = Recording.from_file(wav).to_cut().truncate(offset=0.5, duration=1.0)
    cut.supervisions = [SupervisionSegment('s', cut.recording_id, 0.0, 1.0, text='hello', language='en')]
    cut.context = 'Write down:'
    CutSet([cut]).to_file(tmp_path / 'cuts.jsonl')
    spec = parse_input_cfg([{'type': 'lhotse_as_conversation', 'cuts_path': str(tmp_path / 'cuts.jsonl')}])[0]
    line = json.loads((tmp_path / 'cuts.jsonl').read_text())
    conversation = spec.read(line, 0, 'here')
    assert said(conversation) == [('user', ['Write down:', 'a.wav']), ('assistant', ['hello'])]
    assert conversation is not None
    assert conversation.audios == [Audio(str(wav), 1.0, 0.5, 'hello')]
    line['recording']['sources'][0]['type'] = 'command'
    with pytest.raises(VtbDataError) as caught:
        spec.read(line, 0, 'here')
    assert caught.value.reason == 'refused_path'


def test_nemo_text_sft(tmp_path: Path) -> None:
    line = {'system': 'Be good.', 'mask': 'User', 'conversations': [text('User', 'hi'), text('Assistant', 'ho')]}
    assert said(read(tmp_path, line, type='nemo_sft_jsonl'))[0] == ('system', ['Be good.'])


def test_groups_are_flattened_and_names_made_unique(tmp_path: Path) -> None:
    """As NeMo's nested mux: what is inside a group shares the weight of the group."""
    path = str(write_jsonl(tmp_path / 'm.jsonl', [CHAT]))
    leaf = {'type': 'multimodal_conversation', 'manifest_filepath': path, 'weight': 3.0}
    specs = parse_input_cfg([{'type': 'group', 'weight': 0.5, 'kind': 'text', 'input_cfg': [leaf, leaf]}, leaf])
    assert [(s.name, s.weight) for s in specs] == [('m', 0.25), ('m.2', 0.25), ('m.3', 3.0)]


@pytest.mark.parametrize(
    ('temperature', 'own', 'expected'),
    [
        (None, None, [8 * 0.1, 8 * 0.9, 2]),
        (1.0, None, [8 * 0.1, 8 * 0.9, 2]),
        (0.0, None, [0.5, 0.5, 1]),
        ([1.0, 0.0], None, [4, 4, 2]),
        ([0.5, 1.0], None, [8**0.5 * 0.1, 8**0.5 * 0.9, 2**0.5]),
        (None, 0.5, [8 * 0.25, 8 * 0.75, 2]),
    ],
)
def test_temperatures_are_those_of_nemo(tmp_path: Path, temperature: Any, own: Any, expected: list[float]) -> None:
    path = str(write_jsonl(tmp_path / 'm.jsonl', [CHAT]))
    leaf = {'type': 'multimodal_conversation', 'manifest_filepath': path}
    group: dict[str, Any] = {'type': 'group', 'weight': 8, 'input_cfg': [leaf | {'weight': w} for w in (10, 90)]}
    group |= {} if own is None else {'reweight_temperature': own}
    specs = parse_input_cfg([group, leaf | {'weight': 2}], temperature=temperature)
    assert [s.weight for s in specs] == pytest.approx(expected)


@pytest.mark.parametrize('temperature', [[1.0], [1.0, 0.5, 0.5], -1, 'warm'])
def test_temperatures_that_fit_no_level_are_refused(tmp_path: Path, temperature: Any) -> None:
    path = str(write_jsonl(tmp_path / 'm.jsonl', [CHAT]))
    leaf = {'type': 'multimodal_conversation', 'manifest_filepath': path}
    with pytest.raises(VtbConfigError, match='reweight_temperature'):
        parse_input_cfg([{'type': 'group', 'input_cfg': [leaf]}], temperature=temperature)


@pytest.mark.parametrize(
    ('entry', 'named'),
    [
        ({'type': 'nemo_tared'}, 'multimodal_conversation'),
        ({'type': 'multi_speaker_simulator', 'manifest_filepath': 'M'}, 'lhotse_shar'),
        ({'type': 'multimodal_conversation'}, 'manifest_filepath'),
        ({'type': 'multimodal_conversation', 'manifest_filepath': 'M', 'kind': 'speech'}, 'Unknown kind'),
        ({'type': 'nemo_tarred', 'manifest_filepath': 'M', 'tarred_audio_filepaths': ['a', 'b']}, '2 archives'),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, entry: dict[str, Any], named: str) -> None:
    path = str(write_jsonl(tmp_path / 'm.jsonl', [CHAT]))
    if 'manifest_filepath' in entry:
        entry = entry | {'manifest_filepath': path}
    with pytest.raises(VtbConfigError, match=named):
        parse_input_cfg([entry])


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(VtbDataError, match=r'none\.jsonl'):
        parse_input_cfg([{'type': 'nemo', 'manifest_filepath': str(tmp_path / 'none.jsonl')}])


def cut_line(wav: Path, **changes: Any) -> dict[str, Any]:
    """A `MonoCut` of the first second, as lhotse writes it, with some keys of cut or recording changed."""
    from lhotse import Recording, SupervisionSegment

    cut = Recording.from_file(wav).to_cut()
    supervision = SupervisionSegment('s', cut.recording_id, 0.0, 1.0, text='hello', language='en')
    line = {**cut.to_dict(), 'type': 'MonoCut', 'channel': 0, 'supervisions': [supervision.to_dict()]}
    line['recording'] |= changes.pop('recording', {})
    return json.loads(json.dumps(line | changes))


@pytest.mark.parametrize('channel', [0, 1])
@pytest.mark.parametrize('files', [1, 2])
def test_a_cut_is_heard_as_lhotse_hears_it(tmp_path: Path, channel: int, files: int) -> None:
    from lhotse.cut.set import deserialize_cut

    sound = np.stack([np.sin(np.arange(32000) / n) for n in (9, 31)], axis=1).astype(np.float32)
    soundfile.write(tmp_path / 'call.wav', sound, 16000, subtype='FLOAT')
    line = cut_line(tmp_path / 'call.wav', channel=channel, start=0.5, duration=1.0)
    if files == 2:
        for n in range(2):
            soundfile.write(tmp_path / f'{n}.wav', sound[:, n], 16000, subtype='FLOAT')
        sources = [{'type': 'file', 'channels': [n], 'source': str(tmp_path / f'{n}.wav')} for n in range(2)]
        line['recording']['sources'] = sources
    conversation = read(tmp_path, line, type='lhotse')
    assert conversation is not None
    expected = deserialize_cut(json.loads(json.dumps(line))).load_audio()[0]
    assert np.array_equal(read_audio(conversation.audios[0]), expected)
    # the meter, the loader and NeMo's conversations hear the same
    assert np.array_equal(cut_of(conversation.audios[0], 'x').load_audio()[0], expected)


def test_a_resampled_cut_is_the_recording_itself(tmp_path: Path) -> None:
    wav = write_wav(tmp_path / 'a.wav', 1.0, rate=8000)
    transform = {'name': 'Resample', 'kwargs': {'source_sampling_rate': 8000, 'target_sampling_rate': 16000}}
    line = cut_line(wav, recording={'transforms': [transform], 'sampling_rate': 16000, 'num_samples': 16000})
    conversation = read(tmp_path, line, type='lhotse')
    assert conversation is not None and conversation.audios == [Audio(str(wav), 1.0, 0.0, 'hello')]


SUPERVISION = {'id': 's', 'recording_id': 'a', 'start': 0.0, 'duration': 1.0, 'channel': 0, 'text': 'bye'}


@pytest.mark.parametrize(('changes', 'reason'), [
    ({'recording': {'transforms': [{'name': 'Speed', 'kwargs': {'factor': 1.1}}]}}, 'unsupported_cut'),
    ({'recording': {'transforms': [{'name': 'Volume', 'kwargs': {'factor': 0.1}}]}}, 'unsupported_cut'),
    ({'recording': {'transforms': [{'name': 'Resample', 'kwargs': {'target_sampling_rate': 8}}]}}, 'unsupported_cut'),
    ({'recording': {'transforms': ['Speed']}}, 'unsupported_cut'),
    ({'type': 'MixedCut', 'tracks': [], 'recording': {}}, 'unsupported_cut'),
    ({'type': 'PaddingCut'}, 'unsupported_cut'),
    ({'type': 'MultiCut', 'channel': [0, 1]}, 'unsupported_cut'),
    ({'channel': 'left'}, 'unsupported_cut'),
    ({'channel': 3}, 'audio_no_channel'),
    ({'supervisions': [SUPERVISION, SUPERVISION]}, 'unsupported_cut'),
    ({'supervisions': []}, 'missing_key'),
    ({'supervisions': [3]}, 'missing_key'),
    ({'supervisions': {'text': 'a'}}, 'missing_key'),
    ({'recording': {'sources': []}}, 'missing_key'),
    ({'recording': {'sources': 'a.wav'}}, 'missing_key'),
    ({'recording': {'sources': [{'type': 'url', 'channels': [0], 'source': 'a.wav'}]}}, 'refused_path'),
    ({'recording': {'sources': [{'type': 'memory', 'channels': [0], 'source': 'a'}]}}, 'refused_path'),
])  # fmt: skip
def test_a_cut_that_would_sound_otherwise_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    line = cut_line(write_wav(tmp_path / 'a.wav', 1.0), **changes)
    with pytest.raises(VtbDataError) as caught:
        read(tmp_path, line, type='lhotse')
    assert caught.value.reason == reason


@pytest.mark.parametrize('line', [
    {'id': 'm', 'type': 'MixedCut', 'tracks': [{'cut': {}, 'offset': 0.0}]},
    {'id': 'p', 'type': 'PaddingCut', 'duration': 1.0},
    {'id': 'f', 'type': 'MonoCut', 'features': {}, 'start': 0.0, 'duration': 1.0, 'channel': 0},
    {'id': 'n', 'type': 'MonoCut', 'recording': None, 'start': 0.0, 'duration': 1.0, 'channel': 0},
])  # fmt: skip
def test_a_cut_without_a_recording_is_refused(tmp_path: Path, line: dict[str, Any]) -> None:
    with pytest.raises(VtbDataError) as caught:
        read(tmp_path, line, type='lhotse_as_conversation')
    assert caught.value.reason == 'unsupported_cut' and 'lhotse' in str(caught.value.remedy)


def test_a_channel_that_the_file_lacks_is_named(tmp_path: Path) -> None:
    wav = write_wav(tmp_path / 'a.wav', 1.0)
    sources = [{'type': 'file', 'channels': [0, 1], 'source': str(wav)}]
    conversation = read(tmp_path, cut_line(wav, channel=1, recording={'sources': sources}), type='lhotse')
    assert conversation is not None
    with pytest.raises(VtbDataError) as caught:
        read_audio(conversation.audios[0])
    assert caught.value.reason == 'audio_no_channel'


HUMAN, GPT = {'from': 'human', 'value': 'What is said?'}, {'from': 'gpt', 'value': 'one'}


@pytest.mark.parametrize('line', [
    {'sound': 'a.wav', 'conversations': [HUMAN, GPT]},
    {'ori_sound': 'a.wav', 'conversations': [HUMAN, GPT]},
    {'audios': ['a.wav'], 'conversations': [HUMAN, GPT]},
    {'audios': 'a.wav', 'conversations': [HUMAN, GPT]},
    {'audios': 7, 'conversations': [HUMAN, GPT]},
    {'sound': 'a.wav', 'conversations': [HUMAN, {'from': 'gpt', 'value': '<sound>'}]},
])  # fmt: skip
def test_share_gpt_drops_no_recording(tmp_path: Path, line: dict[str, Any]) -> None:
    with pytest.raises(VtbDataError) as caught:
        read(tmp_path, line, type='share_gpt', kind='speech_qa')
    assert caught.value.reason == 'placeholder_mismatch'


def test_share_gpt_reads_a_system_prompt_and_one_recording_without_a_list(tmp_path: Path) -> None:
    asked = {'from': 'human', 'value': '<audio>What is said?'}
    line = {'system': 'Be a pirate.', 'audios': 'a.wav', 'conversations': [asked, GPT]}
    expected = [('system', ['Be a pirate.']), ('user', ['a.wav', 'What is said?']), ('assistant', ['one'])]
    assert said(read(tmp_path, line, type='share_gpt')) == expected


def test_an_audio_tag_is_a_word_where_there_is_no_recording(tmp_path: Path) -> None:
    line = {'conversations': [{'from': 'human', 'value': 'What does <audio> do in HTML?'}, GPT]}
    assert said(read(tmp_path, line, type='share_gpt'))[0] == ('user', ['What does <audio> do in HTML?'])


def test_a_system_prompt_beside_the_turns_is_read(tmp_path: Path) -> None:
    line = CHAT | {'system': 'Be a pirate.'}
    assert said(read(tmp_path, line))[0] == ('system', ['Be a pirate.'])
    turns = [text('System', 'x'), *CHAT['conversations']]
    for broken in (line | {'conversations': turns}, line | {'system': ['x']}):
        with pytest.raises(VtbDataError):
            read(tmp_path, broken, kind='text')


@pytest.mark.parametrize('key', ['sound', 'audios', 'audio', 'images', 'tools', 'video'])
def test_a_part_that_a_type_does_not_read_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(VtbDataError) as caught:
        read(tmp_path, CHAT | {key: 'a.wav'}, kind='text')
    assert caught.value.reason == 'unread_part' and key in str(caught.value.field)
    assert said(read(tmp_path, CHAT | {key: None}, kind='text'))


@pytest.mark.parametrize(('line', 'hint'), [
    ({'messages': [{'role': 'user', 'content': 'a'}]}, 'vtb data make text'),
    ({'instruction': 'a', 'output': 'b'}, 'vtb data make text'),
    ({'query': 'a', 'response': 'b'}, 'vtb data make text'),
    ({'audio_filepath': 'a.wav', 'text': 'b'}, 'type: nemo'),
    ({'recording': {}, 'supervisions': []}, 'type: lhotse_as_conversation'),
    ({'conversations': [{'role': 'user', 'content': 'a'}]}, 'vtb data make text'),
])  # fmt: skip
@pytest.mark.parametrize('type_', ['multimodal_conversation', 'share_gpt', 'nemo_sft_jsonl'])
def test_a_known_foreign_layout_is_pointed_to_its_reader(
    tmp_path: Path, line: dict[str, Any], hint: str, type_: str
) -> None:
    if type_ == 'share_gpt' and 'conversations' in line:
        return  # its entries have another check
    with pytest.raises(VtbDataError) as caught:
        read(tmp_path, line, type=type_, kind='text')
    assert hint in str(caught.value.remedy)


def test_conversations_given_as_a_manifest_are_pointed_to_their_reader(tmp_path: Path) -> None:
    with pytest.raises(VtbDataError, match='type: multimodal_conversation'):
        read(tmp_path, CHAT, type='nemo')


# ---- NeMo's tarred sets


def shard(folder: Path, number: int, names: list[str], suffix: str = '.tar', mode: str = 'w') -> Path:
    """An archive with a recording of its own length for each name."""
    path = folder / f'audio_{number}{suffix}'
    with tarfile.open(path, mode) as tar:
        for place, name in enumerate(names):
            wav = write_wav(folder / 'plain' / name, 0.5 + 0.25 * place + 0.05 * number)
            tar.add(wav, name)
    return path


def audio_line(name: str, **keys: Any) -> dict[str, Any]:
    return {'audio_filepath': name, 'duration': 0.25, 'text': 'hello', **keys}


def heard(spec: SourceSpec, line: dict[str, Any], file: int = 0) -> np.ndarray:
    conversation = spec.read(line, file, 'here')
    assert conversation is not None
    return read_audio(conversation.audios[0])


def tarred(**entry: Any) -> SourceSpec:
    return parse_input_cfg([{'type': 'nemo_tarred', **entry}])[0]


def test_segments_are_found_in_their_recording(tmp_path: Path) -> None:
    tar = shard(tmp_path, 0, ['call.wav', 'call_b.wav', 'own-sub1.wav'])
    lines = [audio_line('call-sub2.wav', offset=0.2), audio_line('own-sub1.wav'), audio_line('none-sub1.wav')]
    spec = tarred(manifest_filepath=str(write_jsonl(tmp_path / 'm.json', lines)), tarred_audio_filepaths=str(tar))
    whole = read_audio(Audio(str(tmp_path / 'plain' / 'call.wav'), 0.25, 0.2))
    assert np.array_equal(heard(spec, lines[0]), whole)
    assert len(heard(spec, lines[1])) == 4000
    with pytest.raises(VtbDataError) as caught:
        heard(spec, lines[2])
    assert caught.value.reason == 'audio_not_in_tar'


def test_one_manifest_names_its_archives_by_shard_id(tmp_path: Path) -> None:
    tars = [shard(tmp_path, number, ['a.wav']) for number in (3, 1)]
    lines = [audio_line('a.wav', shard_id=n, duration=None) for n in (1, 3)]
    manifest = write_jsonl(tmp_path / 'tarred_audio_manifest.json', lines)
    spec = tarred(manifest_filepath=str(manifest), tarred_audio_filepaths=[str(t) for t in tars])
    assert [len(heard(spec, line)) for line in lines] == [8800, 10400]
    for number in (2, None, '1', True):
        with pytest.raises(VtbDataError) as caught:
            spec.read(audio_line('a.wav', shard_id=number), 0, 'here')
        assert caught.value.reason == 'audio_not_in_tar'


def test_manifests_and_archives_are_paired_by_their_numbers(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path, number, ['a.wav'])
        write_jsonl(tmp_path / f'manifest_{number}.json', [audio_line('a.wav', duration=None)])
    files = [str(tmp_path / f'manifest_{n}.json') for n in (2, 0, 1)]
    spec = tarred(manifest_filepath=files, tarred_audio_filepaths=str(tmp_path / 'audio__OP_0..2_CL_.tar'))
    assert [len(heard(spec, audio_line('a.wav', duration=None), file)) for file in range(3)] == [9600, 8000, 8800]
    with pytest.raises(VtbConfigError, match='other numbers'):
        tarred(manifest_filepath=files[:2], tarred_audio_filepaths=[str(tmp_path / f'audio_{n}.tar') for n in (0, 1)])


@pytest.mark.parametrize(
    ('suffix', 'mode'),
    [('.tar.gz', 'w:gz'), ('.tgz', 'w:gz'), ('.tar', 'w:gz'), ('.tar.bz2', 'w:bz2'), ('.tar.xz', 'w:xz')],
)
def test_a_compressed_archive_is_unpacked_once(tmp_path: Path, suffix: str, mode: str) -> None:
    tar = shard(tmp_path, 0, ['a.wav'], suffix, mode)
    manifest = write_jsonl(tmp_path / 'm.json', [audio_line('a.wav')])
    spec = tarred(manifest_filepath=str(manifest), tarred_audio_filepaths=str(tar))
    assert len(heard(spec, audio_line('a.wav'))) == 4000
    tar.write_bytes(tar.read_bytes()[:-40])
    with pytest.raises(VtbDataError, match='cut off or damaged'):
        tarred(manifest_filepath=str(manifest), tarred_audio_filepaths=str(tar))


def test_json_lines_are_known_by_their_content(tmp_path: Path) -> None:
    lines = [audio_line('a.wav'), audio_line('b.wav')]
    spec = parse_input_cfg([{'type': 'nemo', 'manifest_filepath': str(write_jsonl(tmp_path / 'm.json', lines))}])[0]
    assert spec.name == 'm'
    for number, content in enumerate((
        json.dumps(lines), json.dumps(lines, indent=1), json.dumps(lines[0], indent=1), 'PAR1' + 'x' * 600,
    )):  # fmt: skip
        (tmp_path / f'{number}.json').write_text(content)
        with pytest.raises(VtbConfigError) as caught:
            parse_input_cfg([{'type': 'nemo', 'manifest_filepath': str(tmp_path / f'{number}.json')}])
        assert caught.value.field == 'data.train_ds.input_cfg[0].manifest_filepath'
    (tmp_path / 'x.json').write_bytes(shard(tmp_path, 0, ['a.wav']).read_bytes())
    with pytest.raises(VtbConfigError, match='an archive'):
        parse_input_cfg([{'type': 'nemo', 'manifest_filepath': str(tmp_path / 'x.json')}])


def test_nested_lists_are_those_of_nemo(tmp_path: Path) -> None:
    files = [str(write_jsonl(tmp_path / f'{name}.json', [audio_line('a.wav')])) for name in 'abc']
    plain = parse_input_cfg([{'type': 'nemo', 'manifest_filepath': [[file] for file in files]}])
    assert [(s.files, s.weight) for s in plain] == [(tuple(files), 1.0)]
    weighted = {'type': 'nemo', 'manifest_filepath': [[file, w] for file, w in zip(files, (1, 2, 5), strict=True)]}
    found = parse_input_cfg([weighted | {'weight': 2.0}])
    assert [(s.files, s.weight) for s in found] == [((file,), w / 4) for file, w in zip(files, (1, 2, 5), strict=True)]
    assert [s.name for s in found] == ['a', 'b', 'c']


@pytest.mark.parametrize('value', [
    [['a.json', 1.0], 'b.json'], [['a.json', 'b.json']], [['a.json', 1.0, 2.0]], [[]], [['a.json', -1.0]],
    [[1.0, 'a.json']], [['a.json', True]], [{'a.json': 1.0}],
])  # fmt: skip
def test_another_shape_of_list_is_refused(tmp_path: Path, value: list) -> None:
    with pytest.raises(VtbConfigError) as caught:
        parse_input_cfg([{'type': 'nemo', 'manifest_filepath': value}])
    assert caught.value.field == 'data.train_ds.input_cfg[0].manifest_filepath'


@pytest.mark.parametrize('path', ['pipe:cat a.tar', 's3://bucket', 'file:///a.tar', 'cat a.tar |'])
@pytest.mark.parametrize('key', ['manifest_filepath', 'tarred_audio_filepaths'])
def test_a_command_or_an_address_is_refused_by_name(tmp_path: Path, key: str, path: str) -> None:
    entry = {'manifest_filepath': str(write_jsonl(tmp_path / 'm.json', [audio_line('a.wav')])), key: path}
    with pytest.raises(VtbConfigError) as caught:
        tarred(**entry)
    assert caught.value.field == f'data.train_ds.input_cfg[0].{key}'


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    manifest = str(write_jsonl(tmp_path / 'm.json', [audio_line('a.wav')]))
    with pytest.raises(VtbDataError) as caught:
        tarred(manifest_filepath=manifest, tarred_audio_filepaths=str(tmp_path / 'audio_0.tar'))
    assert caught.value.field == 'data.train_ds.input_cfg[0].tarred_audio_filepaths'
