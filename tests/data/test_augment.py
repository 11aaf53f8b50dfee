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
"""NeMo's augmentations change what is heard and nothing else: lengths stay exact, and a resume hears the same."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from data_helpers import data_cfg, input_cfg, write_jsonl, write_wav

from nemo_vtb.data.audio import clip_span, probe, read_audio, trusted_samples
from nemo_vtb.data.augment import SPEEDS, Augmenter, augmentations_of
from nemo_vtb.data.conversation import Audio
from nemo_vtb.data.cut_sampler import cut_of
from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.data.index import FittedSource, open_index
from nemo_vtb.data.sources import train_augmenter, train_specs
from nemo_vtb.errors import VtbConfigError, VtbDataError

Make = Callable[..., VtbDataModule]
ALWAYS: dict[str, dict[str, Any]] = {
    'noise_path': {'noise_mix_prob': 1.0, 'noise_snr': [5, 5]},
    'lowpass_enabled': {'lowpass_prob': 1.0, 'lowpass_frequencies_interval': [1000, 1000]},
    'clipping_enabled': {'clipping_prob': 1.0, 'clipping_gain_db': [20, 24]},
    'rir_enabled': {'rir_prob': 1.0},
    'compression_enabled': {'compression_prob': 1.0, 'compression_codecs': ['opus', 'gsm', 'mp3', 'vorbis']},
}


@pytest.fixture(scope='module')
def sounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The keys that name noises (a NeMo manifest without texts) and a room (a lhotse manifest of recordings)."""
    folder = tmp_path_factory.mktemp('sounds')
    rng = np.random.default_rng(0)
    noises = []
    for name, seconds in (('a', 0.2), ('b', 3.0)):
        soundfile.write(folder / f'{name}.wav', rng.normal(0, 0.1, round(seconds * 16000)), 16000)
        noises.append({'audio_filepath': f'{name}.wav', 'duration': seconds})
    room = np.exp(-np.arange(4000) / 400) * rng.normal(0, 1, 4000)
    room[0] = 4
    soundfile.write(folder / 'room.wav', room / 8, 16000)
    recording = {
        'id': 'room', 'sources': [{'type': 'file', 'channels': [0], 'source': str(folder / 'room.wav')}],
        'sampling_rate': 16000, 'num_samples': 4000, 'duration': 0.25,
    }  # fmt: skip
    return {
        'noise_path': str(write_jsonl(folder / 'noises.json', noises)),
        'rir_path': str(write_jsonl(folder / 'rooms.jsonl', [recording])),
    }


def switched_on(sounds: dict[str, Any], *names: str) -> dict[str, Any]:
    on: dict[str, Any] = {}
    for name in names:
        on |= {name: sounds.get(name, True)} | ALWAYS.get(name, {})
    return on | ({'rir_path': sounds['rir_path']} if 'rir_enabled' in names else {})


def loaded(data: VtbDataModule, count: int = 8) -> list[tuple[list[str], torch.Tensor]]:
    rows = list(islice(data.train_dataloader(), count))
    assert not [fault for row in rows for fault in row.faults]
    return [(row.ids, row.audios) for row in rows]


@pytest.mark.parametrize('name', ALWAYS)
def test_an_augmentation_changes_the_sound_and_can_be_repeated(name: str, sounds: dict[str, Any]) -> None:
    from nemo_vtb.config.schema import DataSettings

    loader = switched_on(sounds, name)
    augmenter = train_augmenter(DataSettings.from_config({'train_ds': loader}))
    assert augmenter is not None
    clip = (0.2 * np.random.default_rng(1).normal(size=9001)).astype(np.float32)
    one, again, other = (augmenter.of(heard)('0:1', clip) for heard in ('c:0', 'c:0', 'c:1'))
    assert one.shape == clip.shape and one.dtype == np.float32 and np.isfinite(one).all()
    assert np.array_equal(one, again) and np.abs(one - clip).max() > 0.01
    if name not in ('lowpass_enabled', 'rir_enabled'):  # one frequency, and one room
        assert not np.array_equal(one, other)  # another pass over the data
    if name == 'noise_path':
        assert 10 * np.log10((clip**2).mean() / ((one - clip) ** 2).mean()) == pytest.approx(5, abs=0.3)
    if name == 'lowpass_enabled':
        spectrum = np.abs(np.fft.rfft(one))
        assert (spectrum[len(spectrum) // 5 :] ** 2).sum() < 0.01 * (spectrum**2).sum()
    probability = next(key for key in augmenter.options if key.endswith('_prob'))
    never = Augmenter(augmenter.options | {probability: 0.0}, 1, augmenter.noises, augmenter.rooms)
    assert never.of('c:0')('0:1', clip) is clip


@pytest.mark.parametrize('workers', [0, 2])
def test_a_resume_hears_the_same_and_rows_are_as_planned(
    module: Make, small: Path, sounds: dict[str, Any], workers: int
) -> None:
    """Every row is checked against its plan while it is loaded: an inexact length would be a fault."""
    train = {'input_cfg': input_cfg(small), 'seed': 7} | switched_on(sounds, 'perturb_speed', *ALWAYS)
    whole = module(train_ds=train, num_workers=0)
    rows = loaded(whole)
    assert any(not torch.equal(a, b) for (_, a), (_, b) in zip(rows, loaded(module(num_workers=0)), strict=True))

    begun, resumed = (module(train_ds=train, num_workers=workers) for _ in range(2))
    begun.train_dataloader()
    assert begun.sampler is not None
    for _ in islice(begun.sampler, 3):
        begun.sampler.take_batch()
    loader = resumed.train_dataloader()
    assert resumed.sampler is not None
    resumed.sampler.load_state_dict(json.loads(json.dumps(begun.sampler.state_dict())))
    rest = [(row.ids, row.audios) for row in islice(loader, len(rows) - 3)]
    assert [ids for ids, _ in rest] == [ids for ids, _ in rows[3:]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(rest, rows[3:], strict=True))


def test_each_speed_once_in_a_pass_with_its_exact_length(small: Path, meter: Any) -> None:
    settings = module_settings(small, perturb_speed=True)
    (spec,) = train_specs(settings)
    index = open_index(spec, meter, small / 'index', quiet=True)
    plain = open_index(train_specs(module_settings(small))[0], meter, small / 'index', quiet=True)
    assert len(index) == 3 * len(plain) and index.folder != plain.folder
    source = FittedSource(index, meter, 4096)
    heard = Counter((c.id, c.audios[0].speed) for c in map(source.read, range(len(source))))
    assert set(heard.values()) == {1} and {speed for _, speed in heard} == set(SPEEDS)
    tokens, _, seconds = source.measure(np.arange(len(source)))
    for entry in range(0, len(source), 7):
        measured = meter.measure(source.read(entry))
        assert (measured['length'], measured['frames']) == (tokens[entry], source.frames(entry))
        assert measured['seconds'] == pytest.approx(seconds[entry], abs=1e-3)
    noisy = train_specs(module_settings(small, perturb_speed=True, lowpass_enabled=True))[0]
    same = open_index(noisy, meter, small / 'index', build=False)  # what keeps lengths needs no other index ...
    assert FittedSource(same, meter, 4096).digest != source.digest  # ... but is another run


def module_settings(small: Path, **loader: Any) -> Any:
    from nemo_vtb.config.schema import DataSettings

    section = {'input_cfg': input_cfg(small, ('mixed_modal',)), **loader}
    return DataSettings.from_config(data_cfg(small) | {'train_ds': section})


@pytest.mark.parametrize(('rate', 'speed'), [(16000, 0.9), (16000, 1.1), (44100, 1.1)])
def test_a_faster_recording_is_shorter_and_higher(tmp_path: Path, rate: int, speed: float) -> None:
    audio = Audio(str(write_wav(tmp_path / 'a.wav', 1.0, rate=rate)))
    fast = replace(audio, speed=speed)
    clip = read_audio(fast)
    assert len(clip) == clip_span(fast, probe(audio.path)).num_samples == round(16000 / speed)
    trusted = replace(fast, duration_s=1.0, trusted=True, whole=True)
    assert trusted_samples(trusted) == len(read_audio(trusted)) == len(clip)
    assert np.abs(np.fft.rfft(clip)).argmax() * 16000 / len(clip) == pytest.approx(220 * speed, abs=1.0)
    cut = cut_of(fast, 'c').resample(16000)  # as lhotse hears it
    assert abs(cut.load_audio().shape[1] - len(clip)) <= 1


@pytest.mark.parametrize(
    ('loader', 'field'),
    [
        ({'rir_enabled': True}, 'data.train_ds.rir_path'),
        ({'noise_path': 'x', 'noise_snr': [20, 10]}, 'data.train_ds.noise_snr'),
        ({'lowpass_enabled': True, 'lowpass_frequencies_interval': [3500, 9000]},
         'data.train_ds.lowpass_frequencies_interval'),
        ({'compression_enabled': True, 'compression_codecs': ['opus', 'flac']}, 'data.train_ds.compression_codecs'),
        ({'compression_enabled': True, 'compression_codec_weights': [1, 2]},
         'data.train_ds.compression_codec_weights'),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(loader: dict[str, Any], field: str) -> None:
    with pytest.raises(VtbConfigError) as caught:
        augmentations_of(loader)
    assert caught.value.field == field


def test_noises_are_looked_at_before_training(small: Path, tmp_path: Path) -> None:
    lines = [{'audio_filepath': 'gone.wav', 'duration': 1.0}]
    for noise_path in (str(write_jsonl(tmp_path / 'n.json', lines)), {'manifest_filepath': str(tmp_path / 'n.json')}):
        with pytest.raises(VtbDataError, match=r'gone\.wav'):
            train_augmenter(module_settings(small, noise_path=noise_path))
    for bad in ('curl http://x |', 'pipe:cat x'):
        write_jsonl(tmp_path / 'n.json', [{'audio_filepath': bad, 'duration': 1.0}])
        with pytest.raises(VtbDataError, match='path'):
            train_augmenter(module_settings(small, noise_path=str(tmp_path / 'n.json')))
