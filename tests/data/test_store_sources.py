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
"""Sources whose files lie in stores, from their entry in a configuration to the samples that are heard."""

import gzip
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from data_helpers import count_frames, data_cfg, put_folder, spoken, text, write_jsonl, write_tar, write_wav
from lhotse import CutSet, Recording, SupervisionSegment

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.data import counting
from nemo_vtb.data.audio import probe, read_audio
from nemo_vtb.data.collate import Collator
from nemo_vtb.data.conversation import Audio
from nemo_vtb.data.datamodule import RowDataset, VtbDataModule
from nemo_vtb.data.faults import Reason
from nemo_vtb.data.index import FittedSource, SourceIndex, index_path, open_index
from nemo_vtb.data.sampler import RowPlan
from nemo_vtb.data.sources import SourceSpec, parse_input_cfg, train_specs
from nemo_vtb.errors import VtbConfigError, VtbDataError, VtbStoreError
from nemo_vtb.testing.s3_server import S3Server, StoreFault, serve_s3

COUNT = 6


def chat(name: str, value: str, **span: Any) -> dict[str, Any]:
    return {'id': name, 'conversations': [spoken(value, **span), text('Assistant', 'yes please')]}


def wav(number: int, folder: Path) -> bytes:
    return write_wav(folder / 'wav' / f'{number}.wav', 0.5, level=0.1 * (number + 1)).read_bytes()


def specs(entry: dict[str, Any], **settings: Any) -> list[SourceSpec]:
    return train_specs(DataSettings(train_ds={'input_cfg': [{'kind': 'asr_ast', **entry}]}, **settings))


def levels(index: SourceIndex) -> dict[str, float]:
    """How loud each conversation is heard."""
    found = {}
    for entry in range(len(index)):
        conversation = index.read(entry)
        found[conversation.id] = round(float(np.abs(read_audio(conversation.audios[0])).max()), 1)
    return found


def row_of(index: SourceIndex, meter: Any) -> Any:
    """All its conversations in one row, as a loader process makes it."""
    source = FittedSource(index, meter, 4096)
    rows = RowDataset([source], Collator(meter.renderer, count_frames))
    return rows[RowPlan(0, tuple((0, entry) for entry in range(len(source))), 0, 0.0)]


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('nemo_vtb.data.datamodule._RETRY_S', 0.0)


@pytest.fixture
def filled(s3: S3Server, tmp_path: Path) -> S3Server:
    """Conversations, an ASR manifest with its archives, and lhotse's cuts, all in `bucket`."""
    folder = tmp_path / 'data'
    wavs = [wav(number, folder) for number in range(COUNT)]
    lines = [chat(str(number), f'wav/{number}.wav', duration=0.5) for number in range(COUNT)]
    write_jsonl(folder / 'chats.jsonl', lines)
    (folder / 'chats.jsonl.gz').write_bytes(gzip.compress((folder / 'chats.jsonl').read_bytes()))
    for shard in range(2):
        numbers = range(3 * shard, 3 * shard + 3)
        write_tar(folder / f'audio_{shard}.tar', {f'{number}.wav': wavs[number] for number in numbers})
        asr = [
            {'id': str(n), 'audio_filepath': f'{n}.wav', 'duration': 0.5, 'text': f'word {n}', 'shard_id': shard}
            for n in numbers
        ]
        write_jsonl(folder / f'manifest_{shard}.json', asr)
    cuts = [
        Recording.from_file(folder / 'wav' / f'{n}.wav').to_cut().with_id(str(n)).map_supervisions(lambda s: s)
        for n in range(COUNT)
    ]
    for cut in cuts:
        cut.supervisions = [SupervisionSegment(f's{cut.id}', cut.recording_id, 0.0, 0.5, text=f'word {cut.id}')]
    (folder / 'shar').mkdir()
    CutSet.from_cuts(cuts).to_shar(folder / 'shar', fields={'recording': 'flac'}, shard_size=4)
    for cut in cuts:
        cut.recording.sources[0].type, name = 'url', Path(cut.recording.sources[0].source).name
        cut.recording.sources[0].source = f's3://bucket/wav/{name}'
    CutSet.from_cuts(cuts).to_file(folder / 'cuts.jsonl')
    put_folder(s3, folder, 'bucket')
    return s3


ENTRIES = {
    'conversations': {'type': 'multimodal_conversation', 'manifest_filepath': 's3://bucket/chats.jsonl'},
    'gzip': {'type': 'multimodal_conversation', 'manifest_filepath': 's3://bucket/chats.jsonl.gz'},
    'tarred': {
        'type': 'nemo_tarred',
        'manifest_filepath': 's3://bucket/manifest__OP_0..1_CL_.json',
        'tarred_audio_filepaths': 's3://bucket/audio_{0..1}.tar',
    },
    'cuts': {'type': 'lhotse_as_conversation', 'cuts_path': 's3://bucket/cuts.jsonl'},
    'shar': {'type': 'lhotse_shar', 'shar_path': 's3://bucket/shar'},
    'shar by name': {
        'type': 'lhotse_shar',
        'shar_path': {
            'cuts': 's3://bucket/shar/cuts.00000{0..1}.jsonl.gz',
            'recording': 's3://bucket/shar/recording.00000{0..1}.tar',
        },
    },
}


@pytest.mark.parametrize('cached', [False, True])
@pytest.mark.parametrize('name', ENTRIES)
def test_each_format_is_heard(filled: S3Server, tmp_path: Path, meter: Any, name: str, cached: bool) -> None:
    cache = {'store_cache': str(tmp_path / 'objects')} if cached else {}
    (spec,) = specs(ENTRIES[name], **cache)
    index = open_index(spec, meter, tmp_path / 'index', quiet=True)
    assert index.broken == 0 and len(index) == COUNT
    assert levels(index) == {str(number): round(0.1 * (number + 1), 1) for number in range(COUNT)}
    assert not row_of(index, meter).faults
    before = index_path(spec, meter, tmp_path / 'index')
    filled.forget()
    assert index_path(specs(ENTRIES[name], **cache)[0], meter, tmp_path / 'index') == before, 'it is found again'


@pytest.mark.parametrize('name', ['tarred', 'cuts', 'shar'])
def test_trust_opens_nothing(
    filled: S3Server, tmp_path: Path, meter: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, 'probe', lambda path: pytest.fail(f'opened {path}'))
    (spec,) = specs(ENTRIES[name], durations='trust')
    index = open_index(spec, meter, tmp_path / 'index', quiet=True)
    assert not filled.of('.tar', 'GET') and not filled.of('.wav')
    row = row_of(index, meter)
    assert not row.faults and row.audio_lens.tolist() == [8000] * COUNT


def test_a_recording_is_fetched_once(filled: S3Server, tmp_path: Path, meter: Any) -> None:
    """Its header and its samples are one request; the members of an archive are found once for all processes."""
    (spec,) = specs(ENTRIES['tarred'], durations='trust')
    index = open_index(spec, meter, tmp_path / 'index', quiet=True)
    row_of(index, meter)
    size = len(filled.objects['bucket/wav/0.wav'])
    assert sum(each.sent == size for each in filled.of('.tar', 'GET')) == COUNT
    before = len(filled.of('.tar', 'GET'))
    filled.forget()
    row_of(index, meter)
    assert len(filled.of('.tar', 'GET')) - before == COUNT, 'the table of members is kept'


def test_a_long_recording_is_read_by_ranges(s3: S3Server, tmp_path: Path) -> None:
    long = tmp_path / 'long.wav'
    soundfile.write(long, np.arange(12_000_000, dtype=np.int16), 16000, subtype='PCM_16')
    s3.put('bucket/long.wav', long.read_bytes())
    audio = Audio('s3://bucket/long.wav', 2.0, 300.0)
    assert np.array_equal(read_audio(audio), read_audio(Audio(str(long), 2.0, 300.0)))
    assert sum(each.sent for each in s3.requests) < 3 << 20
    s3.faults[:] = [StoreFault(status=503, times=-1)]
    s3.forget()
    with pytest.raises(VtbStoreError):
        read_audio(audio)


@pytest.mark.parametrize('suffix', ['wav', 'flac', 'mp3', 'ogg', 'opus'])
def test_codecs_from_a_store(s3: S3Server, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f'x.{suffix}'
    tone = (0.3 * np.sin(np.arange(16000) / 20)).astype(np.float32)
    keys = {'format': 'OGG', 'subtype': 'OPUS'} if suffix == 'opus' else {}
    soundfile.write(path, tone, 16000, **keys)
    s3.put(f'bucket/x.{suffix}', path.read_bytes())
    s3.put('bucket/x.tar', write_tar(tmp_path / 'x.tar', {path.name: path.read_bytes()}).read_bytes())
    expected = read_audio(Audio(str(path)))
    assert np.array_equal(read_audio(Audio(f's3://bucket/x.{suffix}')), expected)
    assert np.array_equal(read_audio(Audio(f's3://bucket/x.tar!/x.{suffix}')), expected)


# ---- who may be asked


def test_a_strangers_manifest_makes_nobody_call(s3: S3Server, tmp_path: Path, meter: Any) -> None:
    """Whatever its lines name: the other server hears nothing, and each line is filed."""
    with serve_s3(keys={}) as other:
        other.put('x/a.wav', wav(0, tmp_path))
        s3.put('other/a.wav', wav(0, tmp_path))
        s3.put('bucket/a.wav', wav(0, tmp_path))
        named = [
            f'{other.url}/x/a.wav', f'{other.url.replace("127.0.0.1", "localhost")}/x/a.wav', 's3://other/a.wav',
            'http://169.254.169.254/latest/meta-data/iam', f'simplecache::{other.url}/x/a.wav', 'file:///etc/hostname',
            f's3://bucket@{other.url.removeprefix("http://")}/x/a.wav', 'pipe:curl ' + other.url, f'cat {other.url} |',
            's3://bucket/../other/a.wav', f'{other.url}\\@bucket/a.wav',
        ]  # fmt: skip
        lines = [chat(str(number), value, duration=0.5) for number, value in enumerate(named)]
        lines.append(chat('own', 's3://bucket/a.wav', duration=0.5))
        write_jsonl(tmp_path / 'm.jsonl', lines)
        s3.put('bucket/m.jsonl', (tmp_path / 'm.jsonl').read_bytes())
        entry = {'type': 'multimodal_conversation', 'manifest_filepath': 's3://bucket/m.jsonl'}
        index = open_index(specs(entry)[0], meter, tmp_path / 'index', quiet=True)
        assert index.meta['quarantined'] == {'refused_path': len(named)} and len(index) == 1
        local = {'type': 'multimodal_conversation', 'manifest_filepath': str(tmp_path / 'm.jsonl')}
        assert open_index(specs(local)[0], meter, tmp_path / 'index', quiet=True).broken == len(named) + 1
        assert other.requests == [] and not s3.of('other/')
        allowed = [f'{other.url}/x/', 's3://bucket/a.wav']
        index = open_index(specs(local, allowed_urls=allowed)[0], meter, tmp_path / 'index', quiet=True)
        assert index.broken == len(named) - 1 and len(index) == 2
        assert {each.path for each in other.requests} == {'x/a.wav'}


@pytest.mark.parametrize(
    'value', ['pipe:aws s3 cp s3://b/x -', 'file:///x', 's3://bucket', 'x::s3://b/y', 's3://b/../c/d']
)
def test_what_a_configuration_may_not_name(value: str) -> None:
    for key in ('manifest_filepath', 'tarred_audio_filepaths'):
        entry = {'type': 'nemo', 'manifest_filepath': __file__} | {key: value}
        with pytest.raises(VtbConfigError, match=key):
            specs(entry)


@pytest.mark.parametrize('value', [['bucket'], 'bucket', [3]])
def test_allowed_urls_are_addresses(value: Any) -> None:
    with pytest.raises(VtbConfigError, match='allowed_urls'):
        specs({'type': 'nemo', 'manifest_filepath': __file__}, allowed_urls=value)


def test_no_credential_is_in_the_index(s3: S3Server, tmp_path: Path, meter: Any) -> None:
    s3.keys = {}
    url = s3.url.replace('http://', 'http://user:passw0rd@') + '/bucket'
    write_jsonl(tmp_path / 'm.jsonl', [chat('a', 'a.wav'), chat('b', 'b.wav'), chat('c', f'{url}/c.wav?sig=5ecret')])
    s3.put('bucket/m.jsonl', (tmp_path / 'm.jsonl').read_bytes())
    s3.put('bucket/a.wav', wav(0, tmp_path))
    entry = {'type': 'multimodal_conversation', 'manifest_filepath': f'{url}/m.jsonl?X-Amz-Signature=5ecret'}
    index = open_index(specs(entry)[0], meter, tmp_path / 'index', quiet=True)
    assert index.meta['quarantined'] == {'audio_missing': 2}
    s3.objects.pop('bucket/a.wav')
    s3.forget()
    faults = row_of(index, meter).faults
    assert [fault['reason'] for fault in faults] == [Reason.AUDIO_MISSING]
    written = [path.read_bytes() for path in tmp_path.rglob('index/**/*') if path.is_file()]
    for content in [*written, json.dumps(faults).encode()]:
        assert b'passw0rd' not in content and b'5ecret' not in content


# ---- what goes wrong


def test_what_is_wrong_at_the_start_is_named(filled: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    tarred = ENTRIES['tarred']
    with pytest.raises(VtbDataError) as missing:
        specs(
            tarred
            | {
                'tarred_audio_filepaths': 's3://bucket/audio_{0..2}.tar',
                'manifest_filepath': 3 * ['s3://bucket/manifest_0.json'],
            }
        )
    assert missing.value.got == 's3://bucket/audio_2.tar'
    with pytest.raises(VtbStoreError, match='no bucket none'):
        specs(tarred | {'tarred_audio_filepaths': 's3://none/audio_{0..1}.tar'})
    filled.expired.add('gone')
    filled.forget()
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'gone')
    with pytest.raises(VtbStoreError, match='renew the credentials'):
        specs(tarred)


SECOND = 'bucket/audio_1.tar'
HARM: dict[str, tuple[Callable[[S3Server], Any], Reason]] = {
    'gone': (lambda store: store.objects.pop(SECOND), Reason.AUDIO_MISSING),
    'shrank': (lambda store: store.put(SECOND, store.objects[SECOND][:9000]), Reason.AUDIO_CHANGED),
    'another': (lambda store: store.put(SECOND, store.objects[SECOND][::-1]), Reason.AUDIO_CHANGED),
    'outage': (lambda store: store.faults.append(StoreFault(SECOND, 503, times=-1)), Reason.STORE_FAILED),
    'denied': (
        lambda store: store.faults.append(StoreFault(SECOND, 403, 'AccessDenied', times=-1)),
        Reason.AUDIO_NO_PERMISSION,
    ),
}


@pytest.mark.parametrize('name', HARM)
def test_a_shard_that_is_harmed_after_the_index(filled: S3Server, tmp_path: Path, meter: Any, name: str) -> None:
    harm, reason = HARM[name]
    (spec,) = specs(ENTRIES['tarred'], durations='trust')
    index = open_index(spec, meter, tmp_path / 'index', quiet=True)
    harm(filled)
    row = row_of(index, meter)
    assert row.ids == ['0', '1', '2']
    assert [fault['reason'] for fault in row.faults] == [reason] * 3


def test_a_shard_that_shrank_before_the_start_is_another_index(filled: S3Server, tmp_path: Path, meter: Any) -> None:
    (spec,) = specs(ENTRIES['tarred'])
    before = index_path(spec, meter, tmp_path)
    filled.put('bucket/audio_1.tar', filled.objects['bucket/audio_1.tar'][:20_000])
    filled.forget()
    (spec,) = specs(ENTRIES['tarred'])
    assert index_path(spec, meter, tmp_path) != before
    assert open_index(spec, meter, tmp_path / 'index', quiet=True).meta['quarantined'] == {'audio_not_in_tar': 2}


def test_a_recording_that_changed_is_noticed_after_a_restart(filled: S3Server, tmp_path: Path, meter: Any) -> None:
    (spec,) = specs(ENTRIES['conversations'])
    index = open_index(spec, meter, tmp_path / 'index', quiet=True)
    filled.put('bucket/wav/2.wav', filled.objects['bucket/wav/3.wav'])  # as long as before
    filled.forget()
    assert [fault['reason'] for fault in row_of(index, meter).faults] == [Reason.AUDIO_CHANGED]


def test_durations_that_lie_in_a_store_are_counted(filled: S3Server, tmp_path: Path, meter: Any) -> None:
    lines = [json.loads(line) for line in filled.objects['bucket/manifest_0.json'].splitlines()]
    write_jsonl(tmp_path / 'm.json', [line | {'duration': 0.3 + 0.1 * n} for n, line in enumerate(lines)])
    filled.put('bucket/manifest_0.json', (tmp_path / 'm.json').read_bytes())
    (spec,) = specs(ENTRIES['tarred'], durations='trust')
    row = row_of(open_index(spec, meter, tmp_path / 'index', quiet=True), meter)
    assert [fault['reason'] for fault in row.faults] == [Reason.DURATION_MISMATCH]


def test_credentials_that_expire_end_the_run(
    filled: S3Server, tmp_path: Path, meter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skipping all that follows would train on what is left; the run resumes when they are renewed."""
    (spec,) = specs(ENTRIES['tarred'], durations='trust')
    index = open_index(spec, meter, tmp_path / 'index', quiet=True)
    filled.expired.add(next(iter(filled.keys)))
    with pytest.raises(VtbStoreError) as caught:
        row_of(index, meter)
    assert not caught.value.busy


def test_an_outage_ends_the_building_of_an_index(filled: S3Server, tmp_path: Path, meter: Any) -> None:
    """It would list as broken what is whole."""
    (spec,) = specs(ENTRIES['conversations'])
    filled.faults[:] = [StoreFault('wav/', status=503, times=-1)]
    with pytest.raises(VtbStoreError):
        open_index(spec, meter, tmp_path / 'index', quiet=True)
    filled.faults.clear()
    assert open_index(spec, meter, tmp_path / 'index', quiet=True).broken == 0


def test_one_slow_answer_delays_one_of_many(filled: S3Server, tmp_path: Path, meter: Any) -> None:
    """The recordings of a row are asked for at the same time."""
    (spec,) = specs(ENTRIES['conversations'], durations='trust')
    index = open_index(spec, meter, tmp_path / 'index', quiet=True)
    together = threading.Barrier(COUNT, timeout=30)  # the server answers when all of them have asked
    filled.before_answer = lambda served: together.wait() if served.method == 'GET' else None
    assert not row_of(index, meter).faults
    assert len(filled.of('wav/', 'GET')) == COUNT


@pytest.mark.parametrize('workers', [0, 2])
def test_a_run_over_a_store_is_the_run_over_the_disk(
    s3: S3Server, small: Path, renderer: Any, tmp_path: Path, workers: int
) -> None:
    """The same rows of the same samples, with `blocks`, in the process itself and in forked ones."""
    put_folder(s3, small, 'bucket')

    def rows(cfg: dict[str, Any]) -> list[Any]:
        data = VtbDataModule(cfg, renderer, count_frames, num_batches=4)
        data.setup('fit')
        found = []
        for row in data.train_dataloader():
            found.append((row.ids, row.audios.numpy().tobytes(), row.faults))
        return found

    keys = {'order': 'blocks', 'shuffle_window': 8, 'num_workers': workers, 'index_dir': str(tmp_path / 'index')}
    local = data_cfg(small, **keys)
    stored = json.loads(
        json.dumps(local).replace(f'{small}/', 's3://bucket/').replace('s3://bucket/index', str(tmp_path))
    )
    assert rows(stored) == rows(local)


def test_a_header_is_probed(filled: S3Server) -> None:
    assert probe('s3://bucket/audio_0.tar!/1.wav') == probe('s3://bucket/wav/1.wav')
    with pytest.raises(VtbDataError) as caught:
        probe('s3://bucket/wav/none.wav')
    assert caught.value.reason == Reason.AUDIO_MISSING


def test_groups_and_names(filled: S3Server) -> None:
    (spec,) = parse_input_cfg([{'type': 'group', 'kind': 'asr_ast', 'input_cfg': [ENTRIES['conversations']]}])
    assert spec.name == 'chats' and spec.stores == ('s3://bucket',)
