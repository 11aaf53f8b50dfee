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
"""The index counts exactly what the loader makes, is reused when nothing changed, and names what is broken."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import count_frames, count_frames_slowly, data_cfg, spoken, text, write_jsonl, write_wav
from transformers import AutoTokenizer

from nemo_vtb.data import index as module
from nemo_vtb.data import index_build, sources
from nemo_vtb.data.collate import Collator
from nemo_vtb.data.counting import Meter
from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.data.faults import Reason
from nemo_vtb.data.index import FittedSource, SourceIndex, keep_exchanges, open_index
from nemo_vtb.data.sources import parse_input_cfg
from nemo_vtb.data.template import ChatRenderer
from nemo_vtb.errors import VtbDataError
from nemo_vtb.testing import tiny_llm

Build = Callable[..., SourceIndex]


def chat(id_: object = 'c', *extra: dict[str, Any]) -> dict[str, Any]:
    return {'id': id_, 'conversations': [text('User', 'turn on the lamp'), *extra, text('Assistant', 'yes please')]}


@pytest.fixture
def build(tmp_path: Path, meter: Meter) -> Build:
    def make(lines: list[Any], *, meter: Meter = meter, workers: int = 0, **entry: Any) -> SourceIndex:
        path = write_jsonl(tmp_path / 'm.jsonl', lines)
        spec = parse_input_cfg(
            [{'type': 'multimodal_conversation', 'kind': 'speech_qa', 'manifest_filepath': str(path)} | entry]
        )[0]
        return open_index(spec, meter, tmp_path / 'index', workers=workers, quiet=True)

    return make


def reasons(index: SourceIndex) -> dict[str, int]:
    return index.meta['quarantined']


def test_lengths_are_what_the_loader_makes(small: Path, meter: Meter, renderer: ChatRenderer) -> None:
    collator = Collator(renderer, count_frames)
    for kind in ('text', 'asr_ast', 'mixed_modal'):
        spec = parse_input_cfg(
            [{'type': 'multimodal_conversation', 'kind': kind, 'manifest_filepath': str(small / f'{kind}.jsonl')}]
        )[0]
        index = open_index(spec, meter, small / 'index', quiet=True)
        for entry in range(len(index)):
            batch = collator([index.read(entry)])
            assert batch.num_tokens == index.column('length')[entry]
            assert (batch.labels != -100).sum() == index.column('supervised')[entry]
            assert batch.frame_lens.sum() == index.column('frames')[entry]
            assert batch.audio_lens.sum() / 16000 == pytest.approx(float(index.column('seconds')[entry]), abs=1e-4)
        assert index.meta['totals']['length'] == index.column('length').sum()


def test_an_index_is_reused_until_something_changes(
    build: Build, tmp_path: Path, meter: Meter, renderer: ChatRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [chat(n) for n in range(5)]
    first = build(lines)
    stamp = os.stat(tmp_path / 'm.jsonl')
    with monkeypatch.context() as patch:
        patch.setattr(module, 'build_index', lambda *_: pytest.fail('built again'))
        os.utime(tmp_path / 'm.jsonl', ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        spec = first.spec
        assert open_index(spec, meter, tmp_path / 'index').digest == first.digest
    other = Meter(renderer, count_frames_slowly)
    with pytest.raises(VtbDataError, match='no index of this source'):
        open_index(spec, other, tmp_path / 'index', build=False)
    assert open_index(spec, other, tmp_path / 'index', quiet=True).digest != first.digest
    changed = build([*lines[:4], chat('new')])
    assert changed.digest != first.digest
    assert changed.folder != first.folder


def test_an_index_of_another_tokenizer_or_template_is_not_used(build: Build, tmp_path: Path, meter: Meter) -> None:
    first = build([chat(n) for n in range(5)])
    for change in ('vocabulary', 'template'):
        tokenizer = AutoTokenizer.from_pretrained(tiny_llm(tmp_path / 'llm'))
        if change == 'vocabulary':
            tokenizer.add_tokens(['lamp'])
        else:
            tokenizer.chat_template = tokenizer.chat_template.replace('<|im_start|>', '<|im_start|><|im_start|>')
        other = Meter(ChatRenderer(tokenizer), count_frames)
        with pytest.raises(VtbDataError, match='no index of this source for the present files, template'):
            open_index(first.spec, other, tmp_path / 'index', build=False)
        again = open_index(first.spec, other, tmp_path / 'index', quiet=True)
        assert again.folder != first.folder
        assert again.meta['totals']['length'] != first.meta['totals']['length']


def test_touching_a_file_rebuilds_but_is_no_change_of_data(build: Build, tmp_path: Path) -> None:
    first = build([chat(n) for n in range(3)])
    os.utime(tmp_path / 'm.jsonl', ns=(1, 1))
    again = open_index(first.spec, Meter(*_parts(build)), tmp_path / 'index', quiet=True)
    assert again.folder != first.folder
    assert again.digest == first.digest


def _parts(build: Build) -> tuple[Any, Any]:
    meter = build.__kwdefaults__['meter']
    return meter.renderer, meter.frame_counter


def test_several_processes_make_the_same_index(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_build, '_CHUNK_BYTES', 700)
    lines = [chat(n) if n % 7 else '{broken' for n in range(60)]
    alone = build(lines, source='alone', workers=1)
    both = build(lines, source='both', workers=2)
    for name in ('offset', 'nbytes', 'length', 'supervised'):
        np.testing.assert_array_equal(alone.column(name), both.column(name))
    assert [f['line'] for f in alone.quarantined()] == [n + 1 for n in range(60) if n % 7 == 0]
    assert [f['line'] for f in both.quarantined()] == [f['line'] for f in alone.quarantined()]
    assert [both.read(n).id for n in range(len(both))] == [str(n) for n in range(60) if n % 7]


def test_a_killed_build_leaves_nothing(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_build, 'file_digest', lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build([chat()])
    assert not any((tmp_path / 'index').iterdir())


def test_broken_lines_are_named_and_the_good_ones_kept(build: Build) -> None:
    lines = [
        chat('good'),
        '{"id": "cut", "conversations": [{"fr',
        '["a list"]',
        b'{"id": "\xff\xfe"}',
        '{"id": NaN}',
        '',
        '   ',
        {'id': 'no turns'},
        {'id': 'empty', 'conversations': []},
        {'id': 'role', 'conversations': [text('Narrator', 'x'), text('Assistant', 'y')]},
        {'id': 'type', 'conversations': [{**text('User', 'x'), 'type': 'video'}, text('Assistant', 'y')]},
        {'id': 'null', 'conversations': [{**text('User', 'x'), 'value': None}, text('Assistant', 'y')]},
        {'id': 'blank', 'conversations': [text('User', ''), text('Assistant', 'y')]},
        {'id': 'users', 'conversations': [text('User', 'x')]},
        {'id': 'answers', 'conversations': [text('Assistant', 'y')]},
        {'id': 'speaks', 'conversations': [text('User', 'x'), spoken('a.wav') | {'from': 'Assistant'}]},
        chat('pipe', spoken('pipe:touch /tmp/x |')),
        chat('url', spoken('https://example.com/a.wav')),
        chat('seconds', spoken('a.wav', duration='long')),
        chat('skip') | {'custom': {'_skipme': True}},
    ]
    index = build(lines)
    assert len(index) == 1
    assert reasons(index) == {
        'not_json': 3,
        'not_an_object': 1,
        'missing_key': 4,
        'unknown_role': 1,
        'unknown_turn_type': 1,
        'wrong_turns': 3,
        'refused_path': 2,
        'bad_span': 1,
    }
    assert set(reasons(index)) <= set(Reason)
    assert index.meta['left_out'] == 1
    fault = next(f for f in index.quarantined() if f['id'] == 'role')
    assert fault['line'] == 10
    assert fault['reason'] == 'unknown_role'
    raw = Path(index.spec.files[0]).read_bytes()
    assert json.loads(raw[fault['byte_offset'] :].split(b'\n')[0])['id'] == 'role'


def test_a_byte_order_mark_and_a_missing_last_newline_are_repaired(build: Build, tmp_path: Path) -> None:
    raw = b'\xef\xbb\xbf' + json.dumps(chat('a')).encode() + b'\n\n' + json.dumps(chat('b')).encode()
    index = build([chat()])
    (tmp_path / 'm.jsonl').write_bytes(raw)
    index = open_index(index.spec, Meter(*_parts(build)), tmp_path / 'index', quiet=True)
    assert [index.read(n).id for n in range(len(index))] == ['a', 'b']
    assert not reasons(index)


def test_broken_recordings_are_named(build: Build, tmp_path: Path) -> None:
    good = write_wav(tmp_path / 'good.wav', 1.0)
    (tmp_path / 'zero.wav').write_bytes(b'')
    (tmp_path / 'text.wav').write_text('not a recording')
    (tmp_path / 'header.wav').write_bytes(good.read_bytes()[:44])
    write_wav(tmp_path / 'short.wav', 0.005)
    write_wav(tmp_path / 'stereo.wav', 0.5, channels=2)
    write_wav(tmp_path / 'slow.wav', 0.5, rate=8000)
    (tmp_path / 'cut.wav').write_bytes(good.read_bytes()[:20000])
    index = build(
        [
            chat('good', spoken('good.wav', duration=1.0)),
            chat('stereo', spoken('stereo.wav')),
            chat('slow', spoken('slow.wav')),
            chat('none', spoken('none.wav')),
            chat('zero', spoken('zero.wav')),
            chat('text', spoken('text.wav')),
            chat('header', spoken('header.wav')),
            chat('short', spoken('short.wav')),
            chat('cut', spoken('cut.wav', duration=1.0)),
            chat('long lie', spoken('good.wav', duration=1.5)),
            chat('short lie', spoken('good.wav', duration=0.5)),
            chat('beyond', spoken('good.wav', offset=3.0)),
            chat('negative', spoken('good.wav', offset=-1.0)),
            chat('segment', spoken('good.wav', offset=0.0, duration=0.5)),
        ]
    )
    assert [index.read(n).id for n in range(len(index))] == ['good', 'stereo', 'slow', 'segment']
    assert reasons(index) == {
        'audio_missing': 1,
        'audio_empty_file': 1,
        'audio_unreadable': 1,
        'audio_no_samples': 1,
        'audio_too_short': 1,
        'duration_mismatch': 3,
        'bad_span': 2,
    }
    assert index.column('frames').tolist() == [count_frames(n) for n in (16000, 8000, 8000, 8000)]


def test_rate_and_durations_can_be_treated_otherwise(build: Build, tmp_path: Path, renderer: ChatRenderer) -> None:
    write_wav(tmp_path / 'slow.wav', 0.5, rate=8000)
    assert reasons(build([chat('a', spoken('slow.wav'))], meter=Meter(renderer, count_frames, resample=False))) == {
        'audio_wrong_rate': 1
    }
    lie = [chat('a', spoken('slow.wav', duration=0.2))]
    with pytest.raises(VtbDataError, match='duration'):
        build(lie, meter=Meter(renderer, count_frames, on_duration_mismatch='error'))
    trusting = build(lie, meter=Meter(renderer, count_frames, on_duration_mismatch='segment'))
    assert trusting.column('frames').tolist() == [count_frames(3200)]


def test_too_much_that_is_broken_stops_with_a_table(build: Build) -> None:
    index = build([chat('a'), '{', '{', chat('b', spoken('none.wav'))])
    with pytest.raises(VtbDataError) as caught:
        index.check(0.5)
    message = str(caught.value)
    assert 'not_json' in message
    assert 'audio_missing' in message
    assert '3 of 4 (75.00%)' in message
    index.check(0.75)


def test_an_empty_source_is_named(build: Build) -> None:
    with pytest.raises(VtbDataError, match='no usable conversation'):
        build(['']).check(1.0)


def test_a_changed_line_is_noticed_when_it_is_read(build: Build, tmp_path: Path) -> None:
    index = build([chat('a'), chat('b')])
    (tmp_path / 'm.jsonl').write_bytes(b'x' * 10 + (tmp_path / 'm.jsonl').read_bytes())
    with pytest.raises(VtbDataError):
        index.read(1)


@pytest.mark.parametrize('type_', ['nemo_tarred', 'multimodal_conversation'])
def test_archives_are_indexed_like_files(build: Build, tmp_path: Path, type_: str) -> None:
    import tarfile

    with tarfile.open(tmp_path / 'audio.tar', 'w') as tar:
        for number in range(3):
            tar.add(write_wav(tmp_path / f'{number}.wav', 0.2 * (number + 1)), f'{number}.wav')
            (tmp_path / f'{number}.wav').unlink()
    if type_ == 'nemo_tarred':
        lines = [{'audio_filepath': f'{n}.wav', 'duration': 0.2 * (n + 1), 'text': 'yes'} for n in range(4)]
    else:
        lines = [chat(n, spoken(f'{n}.wav')) for n in range(4)]
    index = build(lines, type=type_, tarred_audio_filepaths=str(tmp_path / 'audio.tar'))
    assert index.column('frames').tolist() == [count_frames(round(3200 * (n + 1))) for n in range(3)]
    assert reasons(index) == {'audio_not_in_tar': 1}


def test_an_index_is_small_and_read_lazily(build: Build) -> None:
    import pickle

    index = build([chat(n) for n in range(50)])
    index.column('length')
    assert len(pickle.dumps(index)) < 5000


def long_chat(id_: str, exchanges: int, words: int = 6) -> dict[str, Any]:
    turns = [text('System', 'yes')]
    for _ in range(exchanges):
        turns += [text('User', 'turn on the lamp ' * words), spoken('a.wav'), text('Assistant', 'no ' * words)]
    return {'id': id_, 'conversations': turns}


def fitted(tmp_path: Path, meter: Meter, lines: list[Any], max_tokens: int, overlong: str) -> FittedSource:
    write_wav(tmp_path / 'a.wav', 0.5)
    path = write_jsonl(tmp_path / 'm.jsonl', lines)
    spec = parse_input_cfg(
        [{'type': 'multimodal_conversation', 'kind': 'mixed_modal', 'manifest_filepath': str(path)}]
    )[0]
    return FittedSource(open_index(spec, meter, tmp_path / 'index', quiet=True), meter, max_tokens, overlong)


LINES = [long_chat('short', 1), long_chat('long', 5), long_chat('huge', 1, 100), long_chat('also short', 1)]


def test_cut_keeps_whole_exchanges_and_the_system_turn(tmp_path: Path, meter: Meter) -> None:
    source = fitted(tmp_path, meter, LINES, 200, 'cut')
    collator = Collator(meter.renderer, count_frames)
    assert [source.read(n).id for n in range(len(source))] == ['short', 'long', 'also short']
    assert source.num_cut == 1
    cut = source.read(1)
    assert cut.turns[0].role == 'system'
    assert cut.turns[-1].role == 'assistant'
    tokens, supervised, seconds = source.measure(np.arange(3))
    for entry in range(3):
        batch = collator([source.read(entry)])
        assert batch.num_tokens == tokens[entry] <= 200
        assert (batch.labels != -100).sum() == supervised[entry]
        assert float(batch.audio_lens.sum()) / 16000 == pytest.approx(float(seconds[entry]))
    more = keep_exchanges(source.index.read(1), len(cut.audios) + 1)
    assert meter.measure(more)['length'] > 200
    assert [fault['id'] for fault in source.dropped] == ['huge']
    assert source.dropped[0]['reason'] == 'overlong'


def test_the_cut_is_remembered(tmp_path: Path, meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fitted(tmp_path, meter, LINES, 200, 'cut')
    monkeypatch.setattr(FittedSource, '_cut_to', lambda *_: pytest.fail('measured again'))
    again = FittedSource(first.index, meter, 200, 'cut')
    assert again.measure(np.arange(3))[0].tolist() == first.measure(np.arange(3))[0].tolist()


def test_drop_leaves_out_and_error_stops(tmp_path: Path, meter: Meter) -> None:
    source = fitted(tmp_path, meter, LINES, 200, 'drop')
    assert [source.read(n).id for n in range(len(source))] == ['short', 'also short']
    assert [fault['id'] for fault in source.dropped] == ['long', 'huge']
    assert source.locate(1)['byte_offset'] == source.index.column('offset')[3]
    with pytest.raises(VtbDataError, match='longer than a row'):
        fitted(tmp_path, meter, LINES, 200, 'error')


def test_a_source_of_nothing_but_too_long_conversations_is_named(tmp_path: Path, meter: Meter) -> None:
    with pytest.raises(VtbDataError, match='longer than a row'):
        fitted(tmp_path, meter, [long_chat('a', 3), long_chat('b', 4)], 60, 'drop')


class Peculiar(Exception):
    """An error that nobody expects."""


@pytest.mark.parametrize(
    'raised', [Peculiar('no'), StopIteration(), RecursionError(), OverflowError('x'), AttributeError()]
)
def test_whatever_a_reader_raises_costs_its_line_alone(
    build: Build, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    real = sources.SOURCE_TYPES['multimodal_conversation']

    def read(spec: Any, line: Any, base: str, where: str) -> Any:
        if line['id'] == 1:
            raise raised
        return real(spec, line, base, where)

    monkeypatch.setitem(sources.SOURCE_TYPES, 'multimodal_conversation', read)
    index = build([chat(0), chat(1), chat(2)])
    assert reasons(index) == {'other': 1}
    [fault] = index.quarantined()
    assert fault['line'] == 2 and fault['id'] == '1' and type(raised).__name__ in fault['detail']


@pytest.mark.parametrize('raised', [MemoryError, KeyboardInterrupt])
def test_what_no_line_is_to_blame_for_ends_the_index(
    build: Build, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    def read(*_: Any) -> Any:
        raise raised

    monkeypatch.setitem(sources.SOURCE_TYPES, 'multimodal_conversation', read)
    with pytest.raises(raised):
        build([chat(0)])


def test_a_template_that_stumbles_costs_its_conversation_alone(build: Build, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm(tmp_path / 'llm'))
    stumble = "{% for m in messages %}{% if 'stumble' in m['content'] %}{{ 1 // 0 }}{% endif %}{% endfor %}"
    tokenizer.chat_template = stumble + tokenizer.chat_template
    meter = Meter(ChatRenderer(tokenizer), count_frames)
    index = build([chat(0), chat(1, text('User', 'stumble'))], meter=meter)
    assert reasons(index) == {'template_refused': 1}
    assert 'ZeroDivisionError' in next(iter(index.quarantined()))['detail']


def test_numbers_that_no_column_holds_are_a_reason(build: Build, tmp_path: Path, renderer: ChatRenderer) -> None:
    write_wav(tmp_path / 'a.wav')
    meter = Meter(renderer, lambda _: 2**40)
    index = build([chat(0), chat(1, spoken('a.wav')), chat(2)], meter=meter)
    assert reasons(index) == {'overlong': 1}
    assert [len(index.column(name)) for name in ('length', 'frames', 'seconds')] == [2, 2, 2]


def test_the_quarantine_holds_any_text(build: Build) -> None:
    odd = ['\ud800', 'a\u2028b', 'c\u0085d', 'e\x1ef']
    lines = [{'id': id_, 'conversations': 5} for id_ in odd]
    index = build([chat(0), *(json.dumps(line) for line in lines)])
    assert [fault['id'] for fault in index.quarantined()] == odd


@pytest.mark.parametrize(('line', 'reason'), [
    ({'target_lang': 7}, 'missing_key'),
    ({'lang': ['en']}, 'missing_key'),
    ({'source_lang': {}}, 'missing_key'),
    ({'text': 42}, 'missing_key'),
    ({'audio_filepath': ['a.wav', 'b.wav']}, 'missing_key'),
    ({'duration': 10**400}, 'bad_span'),
    ({'duration': True}, 'bad_span'),
    ({'offset': 1e308}, 'bad_span'),
    ({'offset': -1e308}, 'bad_span'),
    ({'duration': '1.0'}, 'bad_span'),
    ({'custom': 'str'}, 'bad_custom'),
    ({'system_prompt': 5}, 'missing_key'),
    ({'id': '\udcff'}, 'not_unicode'),
])  # fmt: skip
def test_foreign_types_in_a_manifest_have_a_reason(
    build: Build, tmp_path: Path, line: dict[str, Any], reason: str
) -> None:
    write_wav(tmp_path / 'a.wav')
    good = {'audio_filepath': 'a.wav', 'text': 'turn on the lamp', 'lang': 'en'}
    assert reasons(build([good, good | line], type='nemo', kind='asr_ast')) == {reason: 1}


def test_blocks_are_stretches_of_files(
    build: Build, tmp_path: Path, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, '_BLOCK_BYTES', 40_000)  # of 1.1 s of sound or so
    for name in ('a', 'b'):
        write_wav(tmp_path / f'{name}.wav', 0.5)
        write_jsonl(tmp_path / f'{name}.jsonl', [chat(f'{name}{n}', spoken(f'{name}.wav')) for n in range(5)])
    files = [str(tmp_path / 'a.jsonl'), str(tmp_path / 'b.jsonl')]
    spec = parse_input_cfg([{'type': 'multimodal_conversation', 'manifest_filepath': files}])[0]
    index = open_index(spec, meter, tmp_path / 'index', quiet=True)
    assert index.blocks().tolist() == [0, 3, 5, 8]
    assert index.blocks(np.array([0, 1, 7, 8, 9])).tolist() == [0, 2]
    assert FittedSource(index, meter, 4096).blocks().tolist() == [0, 3, 5, 8]
    several = replace(spec, options={**spec.options, 'augment': {'perturb_speed': True}})
    index = open_index(several, meter, tmp_path / 'index', quiet=True)
    assert index.blocks().tolist() == [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28]


def test_a_data_module_draws_in_blocks(small: Path, renderer: ChatRenderer) -> None:
    """The first draws of a source are neighbours."""
    data = VtbDataModule(data_cfg(small, order='blocks', shuffle_window=8), renderer, count_frames, num_batches=4)
    data.setup('fit')
    assert data.plan is not None
    for number, source in enumerate(data.sources):
        stream = data.plan._streams[number]
        entries = [stream.draw(n)[0] for n in range(16)]
        assert max(entries[:8]) - min(entries[:8]) == 7, source.name
        assert sorted(stream.draw(n)[0] for n in range(len(source))) == list(range(len(source)))
