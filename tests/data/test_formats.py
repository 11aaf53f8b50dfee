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
"""Formats that NeMo's users have beside its manifests: golden lines made by hand, as NeMo's own readers take them."""

import base64
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from data_helpers import consume, count_frames, write_jsonl, write_wav

from nemo_vtb.config.schema import UNREAD_TYPES
from nemo_vtb.data.conversation import Conversation, Text, task_of
from nemo_vtb.data.counting import Meter
from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.data.index import open_index
from nemo_vtb.data.sources import parse_input_cfg
from nemo_vtb.data.template import ChatRenderer
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.io import read_json_lines
from nemo_vtb.training.run_state import RunState

Entry = dict[str, Any]
Turns = list[tuple[str, list[str]]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NEMO_VTB_CACHE', str(tmp_path / 'cache'))


def wav_bytes(folder: Path, seconds: float) -> bytes:
    return write_wav(folder / 'made.wav', seconds).read_bytes()


def said(conversation: Conversation) -> Turns:
    return [
        (t.role, [p.text if isinstance(p, Text) else f'{p.duration_s}@{p.offset_s:g}' for p in t.parts])
        for t in conversation.turns
    ]


# ---- the formats, one small set of each


def parquet_file(path: Path, rows: list[dict[str, Any]], schema: pyarrow.Schema | None = None) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path, row_group_size=2)
    return path


def audio(folder: Path, seconds: float, name: str | None = 'x.wav') -> dict[str, Any]:
    return {'bytes': wav_bytes(folder, seconds), 'path': name}


def make_parquet(folder: Path) -> tuple[Entry, list[Turns]]:
    rows = [
        {'id': 'a', 'audio': audio(folder, 0.5), 'sentence': 'hello there', 'lang': 'en', 'seconds': 0.5},
        {'id': 'b', 'audio': audio(folder, 0.25, None), 'sentence': 'good bye', 'lang': 'en', 'seconds': 0.25},
        {'id': 'c', 'audio': audio(folder, 1.0), 'sentence': 'well', 'lang': 'de', 'seconds': 1.0},
    ]
    path = parquet_file(folder / 'train.parquet', rows)
    entry = {'type': 'parquet', 'manifest_filepath': str(path), 'text_field': 'sentence', 'duration_field': 'seconds'}
    ask = 'Transcribe the speech.'
    return entry, [
        [('user', [ask, '0.5@0']), ('assistant', ['hello there'])],
        [('user', [ask, '0.25@0']), ('assistant', ['good bye'])],
        [('user', [ask, '1.0@0']), ('assistant', ['well'])],
    ]


def make_webdataset(folder: Path) -> tuple[Entry, list[Turns]]:
    def chat(question: str, **keys: Any) -> dict[str, Any]:
        return {'conversations': [{'from': 'human', 'value': question, **keys}, {'from': 'gpt', 'value': 'yes'}]}

    members = [
        ('0.json', chat('Is it <sound> loud?', duration=0.25, offset=0.125)),
        ('0.wav', 0.5),
        ('1.wav', 0.75),
        ('1.json', chat('<speech>', duration=0.75)),
    ]
    for number in range(2):
        shard = folder / 'set' / '0' / f'shard-{number}.tar'
        shard.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(shard, 'w') as tar:
            for name, content in members:
                raw = (
                    json.dumps(content, indent=1).encode() if isinstance(content, dict) else wav_bytes(folder, content)
                )
                info = tarfile.TarInfo(name)
                info.size = len(raw)
                tar.addfile(info, io.BytesIO(raw))
    listed = {'shardlist': [{'url': f'0/shard-{number}.tar'} for number in range(2)]}
    (folder / 'set' / 'wids-meta.json').write_text(json.dumps(listed))
    found = [
        [('user', ['Is it', '0.25@0.125', 'loud?']), ('assistant', ['yes'])],
        [('user', ['0.75@0']), ('assistant', ['yes'])],
    ]
    return {'type': 'share_gpt_webdataset', 'data_dir': str(folder / 'set')}, found * 2


def make_txt(folder: Path) -> tuple[Entry, list[Turns]]:
    (folder / 'book.txt').write_text('the lamp is green\n\n  it was noon \n')
    return {'type': 'txt', 'paths': str(folder / 'book.txt'), 'language': 'en'}, [
        [('assistant', ['the lamp is green'])],
        [('assistant', ['it was noon'])],
    ]


def make_txt_jsonl(folder: Path) -> tuple[Entry, list[Turns]]:
    path = write_jsonl(folder / 'book.jsonl', [{'body': 'the lamp'}, {'id': 'x', 'body': 'it was noon'}])
    return {'type': 'txt_jsonl', 'paths': [str(path)], 'text_field': 'body', 'prompt': 'Write.'}, [
        [('user', ['Write.']), ('assistant', ['the lamp'])],
        [('user', ['Write.']), ('assistant', ['it was noon'])],
    ]


def make_txt_pair(folder: Path) -> tuple[Entry, list[Turns]]:
    (folder / 'en.txt').write_text('a lamp\na room\n')
    (folder / 'de.txt').write_text('eine Lampe\nein Raum\n')
    (folder / 'ask.txt').write_text('Translate to German:\n')
    keys = {'source_paths': 'en.txt', 'target_paths': 'de.txt', 'questions_path': 'ask.txt'}
    ask = 'Translate to German:'
    return {'type': 'txt_pair', **{key: str(folder / name) for key, name in keys.items()}}, [
        [('user', [ask, 'a lamp']), ('assistant', ['eine Lampe'])],
        [('user', [ask, 'a room']), ('assistant', ['ein Raum'])],
    ]


def make_s2s(folder: Path) -> tuple[Entry, list[Turns]]:
    write_wav(folder / 'call.wav', 3.0)

    def turn(number: int, who: str, start: float, seconds: float, words: str) -> dict[str, Any]:
        span = {'id': f's{number}', 'recording_id': 'call', 'start': start, 'duration': seconds, 'channel': 0}
        return span | {'text': words, 'speaker': who}

    source = {'type': 'file', 'channels': [0], 'source': str(folder / 'call.wav')}
    cut = {
        'id': 'call', 'type': 'MonoCut', 'start': 0.5, 'duration': 2.5, 'channel': 0,
        'recording': {
            'id': 'call', 'sources': [source], 'sampling_rate': 16000, 'num_samples': 48000, 'duration': 3.0,
        },
        'supervisions': [
            turn(0, 'user', 0.0, 0.5, '<|0|> is it <|3|> <|4|> noon <|6|>'),
            turn(1, 'agent', 0.5, 0.75, '<|6|> it is <|9|>'),
            turn(2, 'User', 1.25, 0.5, 'thanks'),
            turn(3, 'Assistant', 2.0, 0.25, 'good'),
        ],
    }  # fmt: skip
    path = write_jsonl(folder / 'cuts.jsonl', [cut])
    return {'type': 's2s_as_conversation', 'cuts_path': str(path)}, [
        [('user', ['0.5@0.5']), ('assistant', ['it is']), ('user', ['0.5@1.75']), ('assistant', ['good'])],
    ]


def make_messages(folder: Path) -> tuple[Entry, list[Turns]]:
    write_wav(folder / 'wav' / 'a.wav', 0.5)
    inside = base64.b64encode(wav_bytes(folder, 0.25)).decode()

    plain = {'type': 'audio', 'audio': 'wav/a.wav', 'duration': 0.5}

    def heard(value: str, **keys: Any) -> dict[str, Any]:
        return {'type': 'input_audio', 'input_audio': {'data': value, 'format': 'wav'}, **keys}

    ask, answer = {'type': 'text', 'text': 'What is this?'}, {'role': 'assistant', 'content': 'a lamp'}
    lines = [
        {'messages': [{'role': 'developer', 'content': 'Be brief.'}, {'role': 'user', 'content': 'hi'}, answer]},
        {'messages': [{'role': 'user', 'content': [ask, heard(inside, duration=0.25)]}, answer]},
        {'messages': [{'role': 'user', 'content': [heard('wav/a.wav', duration=0.5), ask]}, answer]},
        {'messages': [{'role': 'user', 'content': [
            {'type': 'audio_url', 'audio_url': {'url': f'data:audio/wav;base64,{inside}'}, 'duration': 0.25},
        ]}, answer]},
        {'messages': [{'role': 'user', 'content': [plain]}, answer]},
    ]  # fmt: skip
    path = write_jsonl(folder / 'chats.jsonl', lines)
    closing = ('assistant', ['a lamp'])
    return {'type': 'openai_messages', 'manifest_filepath': str(path), 'kind': 'speech_qa'}, [
        [('system', ['Be brief.']), ('user', ['hi']), closing],
        [('user', ['What is this?', '0.25@0']), closing],
        [('user', ['0.5@0', 'What is this?']), closing],
        [('user', ['0.25@0']), closing],
        [('user', ['0.5@0']), closing],
    ]


def make_canary(folder: Path) -> tuple[Entry, list[Turns]]:
    write_wav(folder / 'a.wav', 0.5)
    base = {'audio_filepath': 'a.wav', 'duration': 0.5, 'text': 'Yes.', 'source_lang': 'en', 'prompt_language': 'spl'}
    lines = [
        base | {'target_lang': 'en', 'taskname': 'asr', 'pnc': 'yes'},
        base | {'target_lang': '<|en|>', 'source_lang': '<|en|>', 'task': '<|transcribe|>', 'pnc': '<|nopnc|>'},
        base | {'target_lang': 'de', 'taskname': 's2t_translation', 'pnc': 'pnc', 'timestamp': 'yes', 'itn': 'no'},
        base | {'target_lang': 'en', 'taskname': 'asr', 'decodercontext': '', 'emotion': '<|emo:undefined|>'},
    ]
    asked = [
        'Transcribe the speech with punctuation and capitalization.',
        'Transcribe the speech without punctuation and capitalization.',
        'Translate the speech to German with punctuation and capitalization, with timestamps.',
        'Transcribe the speech.',
    ]
    path = write_jsonl(folder / 'canary.jsonl', lines)
    return {'type': 'nemo', 'manifest_filepath': str(path)}, [
        [('user', [ask, '0.5@0']), ('assistant', ['Yes.'])] for ask in asked
    ]


MAKERS: dict[str, Callable[[Path], tuple[Entry, list[Turns]]]] = {
    name.removeprefix('make_'): value for name, value in list(globals().items()) if name.startswith('make_')
}


@pytest.mark.parametrize('name', MAKERS)
def test_golden_turns_through_index_sampler_and_loader(
    tmp_path: Path, meter: Meter, renderer: ChatRenderer, name: str
) -> None:
    """By hand what each line means; counted alike with and without opening recordings; trained on once, as counted."""
    entry, expected = MAKERS[name](tmp_path)
    lengths = []
    for durations in ('probe', 'trust'):
        (spec,) = parse_input_cfg([entry | {'durations': durations}])
        index = open_index(spec, meter, tmp_path / durations, quiet=True)
        assert [said(index.read(n)) for n in range(len(index))] == expected
        assert not index.broken
        lengths.append(index.column('length').tolist())
    assert lengths[0] == lengths[1]
    data = VtbDataModule(
        {
            'train_ds': {'input_cfg': [entry | {'max_repeats': 1}]}, 'max_tokens': 256, 'num_workers': 0,
            'on_exhausted': 'drop', 'index_dir': str(tmp_path / 'index'),
        },
        renderer, count_frames,
    )  # fmt: skip
    data.setup('fit')
    rows = list(consume(data, state := RunState(tmp_path / 'run')))
    assert sum(len(row.ids) for row in rows) == len(expected) and not any(row.faults for row in rows)
    assert sum(row.num_tokens for row in rows) == sum(lengths[0])
    assert state.ledger is not None


@pytest.mark.parametrize('name', ['parquet', 'webdataset', 'txt', 'txt_pair', 's2s'])
def test_turns_are_those_of_nemos_own_readers(tmp_path: Path, name: str) -> None:
    """The same files through NeMo: the same texts and lengths of recordings, in the same order."""
    from nemo.collections.common.data.lhotse.cutset import get_parser_fn
    from nemo.collections.common.data.lhotse.text_adapters import NeMoMultimodalConversation, TextExample
    from omegaconf import OmegaConf

    entry, expected = MAKERS[name](tmp_path)
    loader = {'shuffle': False, 'shard_seed': 0, 'force_finite': True, 'audio_locator_tag': '<a>', 'language': 'en'}
    made, _ = get_parser_fn(entry['type'])(OmegaConf.create(loader | {'token_equivalent_duration': 0.08} | entry))

    def theirs(example: Any) -> list[str]:
        if isinstance(example, TextExample):
            return [example.text.strip()]
        if isinstance(example, NeMoMultimodalConversation):
            return [turn.value if hasattr(turn, 'value') else f'{turn.cut.duration:g}' for turn in example.turns]
        if hasattr(example, 'source'):
            return [example.question.text, example.source.text, example.target.text]
        return [f'{example.duration:g}', example.supervisions[0].text]

    def ours(turns: Turns) -> list[str]:
        parts = [part for _, parts in turns for part in parts if part != 'Transcribe the speech.']
        return [f'{float(part.split("@")[0]):g}' if '@' in part else part for part in parts]

    assert [found for example in made if any(found := theirs(example))] == list(map(ours, expected))


def test_a_canary_manifest_says_task_and_languages_to_the_evaluation(tmp_path: Path) -> None:
    entry, _ = make_canary(tmp_path)
    (spec,) = parse_input_cfg([entry])
    lines = [json.loads(line) for line in Path(spec.files[0]).read_text().splitlines()]
    found = [conversation for line in lines if (conversation := spec.read(line, 0, 'here'))]
    assert [task_of(conversation) for conversation in found] == ['asr', 'asr', 'ast', 'asr']
    assert [conversation.audios[0].text for conversation in found] == ['Yes.', 'Yes.', None, 'Yes.']


def test_an_instruction_of_ones_own_says_the_style_of_a_canary_manifest(tmp_path: Path) -> None:
    entry, _ = make_canary(tmp_path)
    (spec,) = parse_input_cfg([entry | {'prompt': 'Write it down {style}'}])
    line = json.loads(Path(spec.files[0]).read_text().splitlines()[1])
    assert said(spec.read(line, 0, 'here') or pytest.fail())[0][1][0] == (
        'Write it down without punctuation and capitalization'
    )


def test_chats_without_recordings_inside_are_read_where_they_are(tmp_path: Path) -> None:
    line = {'messages': [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]}
    path = write_jsonl(tmp_path / 'm.jsonl', [line])
    (spec,) = parse_input_cfg([{'type': 'openai_messages', 'manifest_filepath': str(path)}])
    assert spec.files == (str(path),) and spec.kind == 'text'


def test_chats_in_a_parquet_file_need_no_recordings(tmp_path: Path) -> None:
    rows = [
        {'messages': [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}], 'score': float('nan')}
    ]
    path = parquet_file(tmp_path / 'm.parquet', rows)
    (spec,) = parse_input_cfg([{'type': 'parquet', 'manifest_filepath': str(path)}])
    found = spec.read(json.loads(Path(spec.files[0]).read_text()), 0, 'here')
    assert found is not None and said(found) == [('user', ['a']), ('assistant', ['b'])] and spec.kind == 'text'


def test_a_changed_parquet_file_is_unpacked_anew(tmp_path: Path) -> None:
    entry, _ = make_parquet(tmp_path)
    first = parse_input_cfg([entry])[0].files
    assert parse_input_cfg([entry])[0].files == first
    parquet_file(tmp_path / 'train.parquet', [{'audio': audio(tmp_path, 0.5), 'sentence': 'b', 'seconds': 0.5}])
    assert parse_input_cfg([entry])[0].files != first


# ---- what is wrong with them


@pytest.mark.parametrize('type_', UNREAD_TYPES)
def test_the_other_types_of_nemo_are_refused_with_what_to_do(type_: str) -> None:
    with pytest.raises(VtbConfigError) as caught:
        parse_input_cfg([{'type': type_, 'manifest_filepath': 'a'}])
    assert caught.value.field == 'data.train_ds.input_cfg[0].type' and caught.value.remedy == UNREAD_TYPES[type_]


@pytest.mark.parametrize('size', [0, 3, 0.5, -8])
def test_a_cut_parquet_file_is_named(tmp_path: Path, size: float) -> None:
    entry, _ = make_parquet(tmp_path)
    path = tmp_path / 'train.parquet'
    raw = path.read_bytes()
    path.write_bytes(raw[: int(size * len(raw)) if 0 < size < 1 else int(size)])
    with pytest.raises(VtbDataError, match=r'train\.parquet') as caught:
        parse_input_cfg([entry])
    assert caught.value.field == 'manifest_filepath'
    assert not list((tmp_path / 'cache').rglob('*.jsonl'))


def test_damaged_pages_of_a_parquet_file_are_named(tmp_path: Path) -> None:
    entry, _ = make_parquet(tmp_path)
    path = tmp_path / 'train.parquet'
    raw = bytearray(path.read_bytes())
    raw[4:200] = bytes(196)
    path.write_bytes(bytes(raw))
    with pytest.raises(VtbDataError, match=r'train\.parquet'):
        parse_input_cfg([entry])


@pytest.mark.parametrize(('keys', 'field'), [
    ({'text_field': 'text'}, 'manifest_filepath'),
    ({'audio_field': 'sound'}, 'manifest_filepath'),
    ({'duration_field': 'length'}, 'manifest_filepath'),
    ({'audio_field': 'seconds'}, 'audio_field'),
])  # fmt: skip
def test_a_wrong_column_is_named_with_those_that_are_there(tmp_path: Path, keys: Entry, field: str) -> None:
    entry, _ = make_parquet(tmp_path)
    with pytest.raises(VtbConfigError) as caught:
        parse_input_cfg([entry | keys])
    assert str(caught.value.field).endswith(field) and caught.value.remedy
    assert 'sentence' in str(caught.value.allowed) or 'Audio' in str(caught.value.allowed)


def test_no_room_in_the_cache_is_said_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    entry, _ = make_parquet(tmp_path)
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr('shutil.disk_usage', lambda _: usage(10, 10, 0))
    with pytest.raises(VtbDataError) as caught:
        parse_input_cfg([entry])
    assert caught.value.field == 'NEMO_VTB_CACHE'


def faults_of(tmp_path: Path, meter: Meter, entry: Entry) -> tuple[int, Counter[str]]:
    (spec,) = parse_input_cfg([{'kind': 'speech_qa'} | entry])
    index = open_index(spec, meter, tmp_path / 'index', quiet=True)
    return len(index), Counter(fault['reason'] for fault in index.quarantined())


def test_rows_of_a_parquet_file_that_are_broken_cost_themselves(tmp_path: Path, meter: Meter) -> None:
    write_wav(tmp_path / 'beside.wav', 0.5)
    rows = [
        {'audio': audio(tmp_path, 0.5), 'text': 'good'},
        {'audio': {'bytes': None, 'path': 'beside.wav'}, 'text': 'good: not embedded'},
        {'audio': {'bytes': None, 'path': None}, 'text': 'no bytes'},
        {'audio': None, 'text': 'no recording'},
        {'audio': {'bytes': b'', 'path': 'x.wav'}, 'text': 'empty'},
        {'audio': {'bytes': b'rubbish' * 9, 'path': 'x.wav'}, 'text': 'no sound'},
        {'audio': {'bytes': wav_bytes(tmp_path, 0.5)[:30], 'path': 'x.wav'}, 'text': 'cut'},
        {'audio': audio(tmp_path, 0.5), 'text': None},
    ]
    path = parquet_file(tmp_path / 'm.parquet', rows)
    entry = {'type': 'parquet', 'manifest_filepath': str(path)}
    assert faults_of(tmp_path, meter, entry) == (
        2, {'missing_key': 3, 'audio_empty_file': 1, 'audio_unreadable': 2}
    )  # fmt: skip


def test_samples_of_a_webdataset_that_are_broken_cost_themselves(tmp_path: Path, meter: Meter) -> None:
    good = b'{"conversations": [{"from": "human", "value": "<sound>"}, {"from": "gpt", "value": "yes"}]}'
    members = {
        'good.json': good, 'good.wav': wav_bytes(tmp_path, 0.5),
        'alone.json': good, 'other.wav': wav_bytes(tmp_path, 0.5),
        'cut.json': good[:-4], 'cut.wav': wav_bytes(tmp_path, 0.5),
        'list.json': b'[1]', 'list.wav': wav_bytes(tmp_path, 0.5),
        'noise.json': good, 'noise.wav': b'noise' * 9,
    }  # fmt: skip
    (tmp_path / 'set').mkdir()
    with tarfile.open(tmp_path / 'set' / 'a.tar', 'w') as tar:
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    entry = {'type': 'share_gpt_webdataset', 'data_dir': str(tmp_path / 'set')}
    assert faults_of(tmp_path, meter, entry) == (
        1,
        {'placeholder_mismatch': 1, 'missing_key': 1, 'not_json': 1, 'not_an_object': 1, 'audio_unreadable': 1},
    )


@pytest.mark.parametrize('listed', ['{', '{"shardlist": [{}]}', '{"shardlist": [{"url": "none.tar"}]}'])
def test_a_list_of_shards_that_lies_is_refused(tmp_path: Path, listed: str) -> None:
    entry, _ = make_webdataset(tmp_path)
    (tmp_path / 'set' / 'wids-meta.json').write_text(listed)
    with pytest.raises(VtbDataError) as caught:
        parse_input_cfg([entry])
    assert 'data_dir' in str(caught.value.field)


@pytest.mark.parametrize('folder', [None, 'none', '.'])
def test_a_folder_without_shards_is_refused(tmp_path: Path, folder: str | None) -> None:
    with pytest.raises(VtbConfigError) as caught:
        parse_input_cfg([{'type': 'share_gpt_webdataset', 'data_dir': folder and str(tmp_path / folder)}])
    assert 'data_dir' in str(caught.value.field)


@pytest.mark.parametrize(('parts', 'reason'), [
    ({'type': 'input_audio', 'input_audio': {'data': 'no base64 at all!'}}, 'audio_unreadable'),
    ({'type': 'input_audio', 'input_audio': {'data': 'QUJD'}}, 'audio_unreadable'),
    ({'type': 'input_audio', 'input_audio': {'data': 'data:audio/wav;base64,%%%'}}, 'audio_unreadable'),
    ({'type': 'input_audio', 'input_audio': {'data': ''}}, 'missing_key'),
    ({'type': 'input_audio', 'input_audio': {'data': 'none.wav'}}, 'audio_missing'),
    ({'type': 'input_audio', 'input_audio': 'QUJD'}, 'unknown_turn_type'),
    ({'type': 'image_url', 'image_url': {'url': 'a.png'}}, 'unknown_turn_type'),
    ('a text', 'unknown_turn_type'),
    ({'type': 'text', 'text': None}, 'missing_key'),
    ({'type': 'audio', 'audio': 'pipe:cat a.wav'}, 'refused_path'),
])  # fmt: skip
def test_a_part_of_a_message_that_cannot_be_taken(tmp_path: Path, meter: Meter, parts: Any, reason: str) -> None:
    answer = {'role': 'assistant', 'content': 'b'}
    good = {'messages': [{'role': 'user', 'content': 'a'}, answer]}
    line = {'messages': [{'role': 'user', 'content': [parts]}, answer]}
    path = write_jsonl(tmp_path / 'm.jsonl', [good, line])
    entry = {'type': 'openai_messages', 'manifest_filepath': str(path)}
    assert faults_of(tmp_path, meter, entry) == (1, {reason: 1})


@pytest.mark.parametrize(('message', 'reason'), [
    ({'role': 'assistant', 'content': 'b', 'tool_calls': [{}]}, 'unread_part'),
    ({'role': 'assistant', 'content': 'b', 'weight': 0}, 'unread_part'),
    ({'role': 'assistant', 'content': 'b', 'reasoning_content': 'hm'}, 'unread_part'),
    ({'role': 'assistant', 'content': None, 'audio': {'id': 'x'}}, 'unread_part'),
    ({'role': 'tool', 'content': 'b'}, 'unknown_role'),
    ({'role': 'assistant', 'content': []}, 'missing_key'),
    ({'role': 'assistant', 'content': [{'type': 'audio', 'audio': 'a.wav'}]}, 'wrong_turns'),
    ('b', 'missing_key'),
])  # fmt: skip
def test_a_message_that_cannot_be_taken(tmp_path: Path, message: Any, reason: str) -> None:
    path = write_jsonl(tmp_path / 'm.jsonl', [{}])
    (spec,) = parse_input_cfg([{'type': 'openai_messages', 'kind': 'text', 'manifest_filepath': str(path)}])
    with pytest.raises(VtbDataError) as caught:
        spec.read({'messages': [{'role': 'user', 'content': 'a'}, message]}, 0, 'here')
    assert caught.value.reason == reason


@pytest.mark.parametrize(('keys', 'reason'), [
    ({'taskname': 'sing'}, 'missing_key'),
    ({'pnc': 'maybe'}, 'missing_key'),
    ({'taskname': 'ast', 'target_lang': None}, 'missing_key'),
    ({'decodercontext': 'before'}, 'unread_part'),
])  # fmt: skip
def test_a_canary_line_that_cannot_be_taken(tmp_path: Path, keys: Entry, reason: str) -> None:
    entry, _ = make_canary(tmp_path)
    (spec,) = parse_input_cfg([entry])
    line = json.loads(Path(spec.files[0]).read_text().splitlines()[0]) | keys
    with pytest.raises(VtbDataError) as caught:
        spec.read(line, 0, 'here')
    assert caught.value.reason == reason


@pytest.mark.parametrize(('change', 'reason'), [
    ({'speaker': 'narrator'}, 'unknown_role'),
    ({'start': 'soon'}, 'bad_span'),
    ({'start': -1.0}, 'bad_span'),
    ({'channel': 7}, 'audio_no_channel'),
    ({'text': None, 'speaker': 'agent'}, 'missing_key'),
    ({'speaker': 'agent'}, 'wrong_turns'),
])  # fmt: skip
def test_a_dialogue_that_cannot_be_taken(tmp_path: Path, change: Entry, reason: str) -> None:
    entry, _ = make_s2s(tmp_path)
    (spec,) = parse_input_cfg([entry])
    cut = json.loads(Path(spec.files[0]).read_text())
    cut['supervisions'][0] |= change
    with pytest.raises(VtbDataError) as caught:
        spec.read(cut, 0, 'here')
    assert caught.value.reason == reason


def test_speakers_of_a_dialogue_are_named_by_the_entry(tmp_path: Path) -> None:
    entry, _ = make_s2s(tmp_path)
    path = tmp_path / 'cuts.jsonl'
    path.write_text(path.read_text().replace('"user"', '"A"').replace('"User"', '"A"').replace('"agent"', '"B"'))
    roles = {'input_roles': ['A'], 'output_roles': ['B', 'Assistant'], 'strip_timestamp_tokens': False}
    (spec,) = parse_input_cfg([entry | roles])
    found = spec.read(json.loads(path.read_text()), 0, 'here')
    assert found is not None and [t.role for t in found.turns] == ['user', 'assistant'] * 2
    assert found.turns[1].text == '<|6|> it is <|9|>'


def test_texts_that_are_broken_cost_themselves(tmp_path: Path, meter: Meter) -> None:
    (tmp_path / 'a.txt').write_bytes(b'\xef\xbb\xbfgood\n\xff\xfe\n\nalso good\n')
    entry = {'type': 'txt', 'paths': str(tmp_path / 'a.txt'), 'kind': 'text'}
    assert faults_of(tmp_path, meter, entry) == (2, {'not_json': 1})
    (tmp_path / 's.txt').write_bytes(b'good\nno answer\n\xff\n\nalso good\n')
    (tmp_path / 't.txt').write_bytes(b'yes\n\nyes\n\nyes\n')
    entry = {'type': 'txt_pair', 'source_paths': str(tmp_path / 's.txt'), 'target_paths': str(tmp_path / 't.txt')}
    assert faults_of(tmp_path, meter, entry | {'kind': 'text'}) == (2, {'missing_key': 1, 'not_json': 1})
    entry = {'type': 'txt_jsonl', 'paths': str(write_jsonl(tmp_path / 'b.jsonl', [{'text': 'a'}, {}, {'text': 1}]))}
    assert faults_of(tmp_path, meter, entry | {'kind': 'text'}) == (1, {'missing_key': 2})


def test_files_of_a_pair_need_as_many_lines(tmp_path: Path) -> None:
    entry, _ = make_txt_pair(tmp_path)
    (tmp_path / 'de.txt').write_text('eine Lampe\n')
    with pytest.raises(VtbDataError) as caught:
        parse_input_cfg([entry])
    assert caught.value.field == 'target_paths'
    with pytest.raises(VtbConfigError) as refused:
        parse_input_cfg([entry | {'target_paths': [entry['target_paths']] * 2}])
    assert 'target_paths' in str(refused.value.field)


def test_a_recording_of_a_parquet_file_is_read_from_the_cache(tmp_path: Path, meter: Meter) -> None:
    """Bit by bit what the file had."""
    entry, _ = make_parquet(tmp_path)
    (spec,) = parse_input_cfg([entry])
    index = open_index(spec, meter, tmp_path / 'index', quiet=True)
    from nemo_vtb.data.audio import open_audio, read_audio

    clip = index.read(1).audios[0]
    opened = open_audio(clip.path)
    assert isinstance(opened, io.BytesIO) and opened.getvalue() == wav_bytes(tmp_path, 0.25)
    assert (read_audio(clip) == soundfile.read(io.BytesIO(opened.getvalue()), dtype='float32')[0]).all()


def test_faults_are_listed_with_file_and_line(tmp_path: Path, renderer: ChatRenderer) -> None:
    lines = [{'messages': [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]}] * 3 + [{}]
    path = write_jsonl(tmp_path / 'm.jsonl', lines)
    entry = {'type': 'openai_messages', 'manifest_filepath': str(path), 'max_repeats': 1}
    cfg = {'train_ds': {'input_cfg': [entry]}, 'max_tokens': 64, 'num_workers': 0, 'on_exhausted': 'drop'}
    data = VtbDataModule(cfg | {'max_skip_ratio': 1.0, 'index_dir': str(tmp_path / 'i')}, renderer, count_frames)
    data.setup('fit')
    assert sum(len(row.ids) for row in consume(data, RunState(tmp_path / 'run'))) == 3
    (listed,) = read_json_lines(tmp_path / 'run' / 'quarantine.jsonl')
    assert (listed['line'], listed['reason'], listed['file']) == (4, 'missing_key', str(path))
