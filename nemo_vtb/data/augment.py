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
"""The augmentations of NeMo's loader, made by lhotse on single clips: the same ones after every resume.

Speed is part of an entry of the index, since it decides the length of a conversation (`index.SourceIndex`). All else
keeps the length, and is drawn from a generator that is seeded by run, conversation and pass (docs/adr/0064).
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.data.audio import probe, read_audio
from nemo_vtb.data.conversation import Audio
from nemo_vtb.errors import VtbConfigError

SPEEDS = (1.0, 0.9, 1.1)
"""Of `perturb_speed`: a pass over a source then has each of its conversations at each of them."""

CODECS = ('opus', 'mp3', 'vorbis', 'gsm')

_DEFAULTS: dict[str, dict[str, Any]] = {
    'perturb_speed': {},
    'noise_path': {'noise_snr': (10.0, 20.0), 'noise_mix_prob': 0.5},
    'lowpass_enabled': {'lowpass_frequencies_interval': (3500.0, 8000.0), 'lowpass_prob': 0.5},
    'clipping_enabled': {
        'clipping_gain_db': (0.0, 24.0), 'clipping_normalize': True, 'clipping_oversampling': 2,
        'clipping_prob_hard': 0.5, 'clipping_prob': 0.5,
    },
    'rir_enabled': {'rir_path': None, 'rir_prob': 0.5},
    'compression_enabled': {
        'compression_prob': 0.5, 'compression_level_interval': (0.8, 0.99), 'compression_codecs': ('opus',),
        'compression_codec_weights': None,
    },
}  # fmt: skip
"""What switches an augmentation on -> its settings with NeMo's defaults, in the order in which they are applied."""

Samples = np.ndarray


def augmentations_of(loader: Mapping[str, Any], where: str = 'data.train_ds') -> dict[str, Any]:
    """The augmentations that a loader section switches on, with all their settings.

    Raises:
        VtbConfigError: An interval that is none, an unknown codec, or reverberation without recordings of rooms.
    """
    found: dict[str, Any] = {}
    for switch, defaults in _DEFAULTS.items():
        if loader.get(switch):
            found[switch] = loader[switch]
            found |= {key: default if loader.get(key) is None else loader[key] for key, default in defaults.items()}
    bounds = {
        'noise_snr': (-math.inf, math.inf), 'lowpass_frequencies_interval': (100.0, SAMPLE_RATE / 2),
        'clipping_gain_db': (-math.inf, math.inf), 'compression_level_interval': (0.0, 1.0),
    }  # fmt: skip
    for key, (low, high) in bounds.items():
        if key in found:
            found[key] = _interval(found[key], f'{where}.{key}', low, high)
    if 'compression_enabled' in found:
        _check_codecs(found, where)
    if 'rir_enabled' in found and not found['rir_path']:
        raise VtbConfigError(
            'Rooms that are made up on the fly cannot be repeated: lhotse draws them from a generator of all threads.',
            field=f'{where}.rir_path',
            got=None,
            allowed='a manifest of recordings of rooms, as `lhotse prepare rir-noise` writes it',
            remedy=f'{where}.rir_path=RECORDINGS.jsonl.gz, or {where}.rir_enabled=false',
        )
    return found


def _interval(value: Any, field: str, low: float, high: float) -> tuple[float, float]:
    pair = list(value) if isinstance(value, list | tuple) else [value, value]
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in pair)
    if len(pair) != 2 or not numbers or not low <= pair[0] <= pair[1] <= high:
        raise VtbConfigError(
            'An interval has a lower and an upper end.', field=field, got=value, allowed=f'[{low:g} ... {high:g}]'
        )
    return float(pair[0]), float(pair[1])


def _check_codecs(found: dict[str, Any], where: str) -> None:
    codecs, weights = found['compression_codecs'], found['compression_codec_weights']
    found['compression_codecs'] = codecs = [codecs] if isinstance(codecs, str) else list(codecs)
    if not codecs or set(codecs) - set(CODECS) or len(set(codecs)) < len(codecs):
        raise VtbConfigError(
            'Unknown codec.', field=f'{where}.compression_codecs', got=codecs, allowed=', '.join(CODECS)
        )
    good = weights is None or (
        len(weights) == len(codecs) and all(isinstance(w, int | float) and w >= 0 for w in weights) and any(weights)
    )
    if not good:
        raise VtbConfigError(
            'Each codec needs a weight, and one of them more than 0.',
            field=f'{where}.compression_codec_weights',
            got=weights,
            allowed=f'{len(codecs)} numbers, or null',
        )


class Augmenter:
    """Changes clips as a loader section says; picklable, it goes to the loader processes.

    Args:
        options: Of `augmentations_of`.
        seed: Of the run.
        noises: To mix in.
        rooms: Impulse responses.
        sample_rate: Of all clips, in Hz.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        seed: int,
        noises: Sequence[Audio] = (),
        rooms: Sequence[Audio] = (),
        sample_rate: int = SAMPLE_RATE,
    ) -> None:
        self.options, self.seed, self.sample_rate = dict(options), seed, sample_rate
        self.noises, self.rooms = list(noises), list(rooms)

    def of(self, heard: str) -> Callable[[str, Samples], Samples]:
        """The changes of the clips of one conversation in one pass over its source, which `heard` names."""
        return lambda clip, samples: self(f'{heard}:{clip}', samples)

    def __call__(self, what: str, samples: Samples) -> Samples:
        """The changed clip, as long as before.

        Args:
            what: Names conversation, pass and clip: the same name gives the same change.
            samples: (S,) float32.
        """
        steps: dict[str, tuple[str, Callable[[Samples, random.Random], Samples]]] = {
            'noise_path': ('noise_mix_prob', self._mix),
            'lowpass_enabled': ('lowpass_prob', self._lowpass),
            'clipping_enabled': ('clipping_prob', self._clip),
            'rir_enabled': ('rir_prob', self._reverberate),
            'compression_enabled': ('compression_prob', self._compress),
        }
        for switch, (probability, change) in steps.items():
            rng = random.Random(f'{self.seed}:{what}:{switch}')  # each its own: another setting leaves the others
            if switch in self.options and rng.random() < self.options[probability]:
                samples = _as_long(change(samples, rng), len(samples))
        return samples

    def _mix(self, samples: Samples, rng: random.Random) -> Samples:
        """Noise over the whole clip, at one ratio to it: as many noises as that takes."""
        from lhotse.audio.mixer import AudioMixer

        mixer = AudioMixer(samples[None], self.sample_rate)
        snr, covered = rng.uniform(*self.options['noise_snr']), 0
        while covered < len(samples):
            noise = self._part(rng.choice(self.noises), len(samples) - covered, rng)
            mixer.add_to_mix(noise[None], snr=snr, offset=covered / self.sample_rate)
            covered += len(noise)
        return mixer.mixed_audio[0]

    def _part(self, noise: Audio, count: int, rng: random.Random) -> Samples:
        """At most `count` samples of a noise, from anywhere in it."""
        length = noise.duration_s if noise.duration_s is not None else probe(noise.path).duration_s - noise.offset_s
        rest = length - count / self.sample_rate
        if rest > 0:
            noise = replace(noise, offset_s=noise.offset_s + rng.uniform(0, rest), duration_s=length - rest)
        return read_audio(noise, self.sample_rate)[:count]

    def _lowpass(self, samples: Samples, rng: random.Random) -> Samples:
        """Down to a lower rate and back; the highest frequency is uniform on a logarithmic scale."""
        low, high = self.options['lowpass_frequencies_interval']
        rate = 2 * int(math.exp(rng.uniform(math.log(low), math.log(high))))
        return self._at_rate(samples, rate, lambda part: part)

    def _clip(self, samples: Samples, rng: random.Random) -> Samples:
        from lhotse.augmentation.clipping import Clipping

        hard = rng.random() < self.options['clipping_prob_hard']
        gain = rng.uniform(*self.options['clipping_gain_db'])
        clipping = Clipping(hard=hard, gain_db=gain, normalize=bool(self.options['clipping_normalize']))
        rate = self.sample_rate * int(self.options['clipping_oversampling'] or 1)
        return self._at_rate(samples, rate, lambda part: clipping(part, rate))

    def _reverberate(self, samples: Samples, rng: random.Random) -> Samples:
        from lhotse.augmentation.rir import ReverbWithImpulseResponse

        room = read_audio(rng.choice(self.rooms), self.sample_rate)[None]
        return ReverbWithImpulseResponse(rir_generator=lambda nsource: room)(samples[None], self.sample_rate)[0]

    def _compress(self, samples: Samples, rng: random.Random) -> Samples:
        from lhotse.augmentation.compress import Compress

        level = rng.uniform(*self.options['compression_level_interval'])
        (codec,) = rng.choices(self.options['compression_codecs'], self.options['compression_codec_weights'])
        rate = 8000 if codec == 'gsm' else self.sample_rate
        compress = Compress(codec=codec, compression_level=level)
        return self._at_rate(samples, rate, lambda part: compress(part[None], rate)[0])

    def _at_rate(self, samples: Samples, rate: int, change: Callable[[Samples], Samples]) -> Samples:
        import soxr

        if rate == self.sample_rate:
            return change(samples)
        changed = change(soxr.resample(samples, self.sample_rate, rate))
        return soxr.resample(changed, rate, self.sample_rate)


def _as_long(samples: Samples, count: int) -> Samples:
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    return np.pad(samples, (0, count - len(samples))) if len(samples) < count else samples[:count]
