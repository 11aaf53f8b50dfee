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
"""One line and one recording cost a bounded amount of work: what is larger is skipped by name."""

import gzip
import io
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from data_helpers import spoken, text, write_jsonl, write_wav

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.data.audio import probe, read_audio
from nemo_vtb.data.collate import Collator
from nemo_vtb.data.conversation import Audio
from nemo_vtb.data.counting import Meter
from nemo_vtb.data.faults import Reason
from nemo_vtb.data.index import SourceIndex, open_index
from nemo_vtb.data.limits import LIMITS, Limits, read_line
from nemo_vtb.data.manifest_files import unpack_gzip
from nemo_vtb.data.sources import parse_input_cfg
from nemo_vtb.errors import VtbDataError

SMALL = Limits(max_line_bytes=2000, max_turns=8, max_clip_seconds=1.0)


@pytest.fixture
def alarm() -> Iterator[None]:
    """Ends what waits for ever; it is no measure of time."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)


def chat(id_: str, *turns: dict[str, Any]) -> dict[str, Any]:
    return {'id': id_, 'conversations': [*turns, text('User', 'say it'), text('Assistant', 'yes')]}


def index_of(path: Path, meter: Meter) -> SourceIndex:
    spec = parse_input_cfg([{'type': 'multimodal_conversation', 'kind': 'text', 'manifest_filepath': str(path)}])[0]
    return open_index(spec, meter, path.parent / 'index', quiet=True)


def test_each_bound_skips_what_is_beyond_it_and_nothing_else(tmp_path: Path, meter: Meter) -> None:
    write_wav(tmp_path / 'long.wav', 1.5)
    write_wav(tmp_path / 'short.wav', 0.9)
    write_wav(tmp_path / 'many.wav', 0.9, channels=8, rate=16000)
    lines = [
        chat('good', spoken('short.wav')),
        chat('wide', text('User', 'lamp ' * 1000)),
        chat('turns', *[turn for _ in range(4) for turn in (text('User', 'a'), text('Assistant', 'b'))]),
        chat('clip', spoken('long.wav')),
        chat('segment', spoken('long.wav', offset=0.2, duration=0.8)),
        chat('channels', spoken('many.wav')),
        chat('last'),
    ]
    path = write_jsonl(tmp_path / 'm.jsonl', lines)
    index = index_of(path, replace(meter, limits=SMALL))
    assert [index.read(n).id for n in range(len(index))] == ['good', 'segment', 'last']
    assert index.meta['quarantined'] == {
        Reason.LINE_TOO_LONG: 1, Reason.TOO_MANY_TURNS: 1, Reason.CLIP_TOO_LARGE: 2,
    }  # fmt: skip
    assert len(index_of(path, meter)) == len(lines), 'the default bounds are far away, and the index is another one'


def test_a_line_longer_than_the_stretches_of_a_file_is_read_once(
    tmp_path: Path, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('nemo_vtb.data.index_build._CHUNK_BYTES', 500)
    lines = [chat('first'), chat('wide', text('User', 'x' * 9000)), chat('last')]
    index = index_of(write_jsonl(tmp_path / 'm.jsonl', lines), replace(meter, limits=SMALL))
    assert [index.read(n).id for n in range(len(index))] == ['first', 'last']
    faults = list(index.quarantined())
    assert [(f['reason'], f['line']) for f in faults] == [(Reason.LINE_TOO_LONG, 2)]


def test_read_line_keeps_the_beginning_and_counts_all() -> None:
    stream = io.BytesIO(b'abcdefgh\nij\n\nkl')
    assert [read_line(stream, 4) for _ in range(5)] == [(b'abcde', 9), (b'ij\n', 3), (b'\n', 1), (b'kl', 2), (b'', 0)]


def test_the_settings_reach_index_and_loader(tmp_path: Path, renderer: Any) -> None:
    settings = DataSettings.from_config({'max_turns': 3, 'max_line_bytes': 9, 'max_clip_seconds': 0.5})
    limits = Meter.of(settings, renderer, len).limits
    assert limits == Limits(9, 3, 0.5)
    clip = Audio(str(write_wav(tmp_path / 'a.wav', 1.0)))
    with pytest.raises(VtbDataError) as caught:
        read_audio(clip, limits=limits)
    assert caught.value.reason == Reason.CLIP_TOO_LARGE
    assert Collator(renderer, len).limits == LIMITS


def test_runs_from_before_the_bounds_go_on(meter: Meter) -> None:
    assert 'limits' not in meter.fingerprint()
    assert 'limits' in replace(meter, limits=SMALL).fingerprint()


def test_a_small_file_that_decodes_to_gigabytes_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / 'bomb.flac'
    soundfile.write(path, np.zeros((65536, 8), np.int16), 655350)
    raw = bytearray(path.read_bytes())
    # STREAMINFO: the last 36 of the 64 bits behind 'fLaC', the block header and the block and frame sizes
    raw[21] &= 0xF0
    raw[22:26] = (1 << 25).to_bytes(4, 'big')
    path.write_bytes(raw)
    with pytest.raises(VtbDataError) as caught:
        read_audio(Audio(str(path)))
    assert caught.value.reason == Reason.CLIP_TOO_LARGE


@pytest.mark.parametrize('name', ['pipe.wav', 'pipe.tar!/a.wav'])
def test_a_pipe_is_no_recording_and_is_not_waited_for(tmp_path: Path, name: str, alarm: None) -> None:
    os.mkfifo(tmp_path / name.partition('!')[0])
    with pytest.raises(VtbDataError) as caught:
        probe(tmp_path / name)
    assert caught.value.reason == Reason.AUDIO_NOT_A_FILE


def test_a_pipe_among_the_archives_is_refused(tmp_path: Path, alarm: None) -> None:
    os.mkfifo(tmp_path / 'a.tar')
    manifest = write_jsonl(tmp_path / 'm.jsonl', [{'audio_filepath': 'a.wav', 'text': 'yes'}])
    entry = {'type': 'nemo_tarred', 'manifest_filepath': str(manifest)}
    with pytest.raises(VtbDataError, match='tarred_audio_filepaths'):
        parse_input_cfg([entry | {'tarred_audio_filepaths': str(tmp_path / 'a.tar')}])


def test_a_manifest_that_grows_without_end_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NEMO_VTB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr('nemo_vtb.data.manifest_files._FREE_GROWTH', 1 << 16)
    line = json.dumps(chat('a')).encode() + b'\n'
    (tmp_path / 'good.jsonl.gz').write_bytes(gzip.compress(line * 9))
    (tmp_path / 'bomb.jsonl.gz').write_bytes(gzip.compress(b' ' * (1 << 24)))
    assert Path(unpack_gzip(str(tmp_path / 'good.jsonl.gz'))).read_bytes() == line * 9
    with pytest.raises(VtbDataError, match='bomb'):
        unpack_gzip(str(tmp_path / 'bomb.jsonl.gz'))
    assert not list((tmp_path / 'cache').rglob('*bomb*'))
