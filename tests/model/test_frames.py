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
"""Frame counts against the real modules, by brute force."""

import pickle
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
from nemo.collections.speechlm2.modules.perception import AudioPerceptionModule
from nemo.collections.speechlm2.parts.encoder_chunking import encode_audio_with_optional_chunking
from omegaconf import OmegaConf

import nemo_vtb
from nemo_vtb.errors import VtbConfigError, VtbModelError
from nemo_vtb.model.frames import Stage, chunk_spans, frame_counter, register_stages

ASR = 'nemo.collections.asr.modules.'
OURS = 'nemo_vtb.model.'
IDENTITY = {'_target_': 'nemo.collections.speechlm2.modules.perception.IdentityConnector', 'd_model': 8}
nemo_vtb.register()


def mel(**keys: Any) -> dict[str, Any]:
    sizes = {'sample_rate': 16000, 'features': 16, 'window_size': 0.025, 'window_stride': 0.01, 'n_fft': 512}
    return {'_target_': ASR + 'AudioToMelSpectrogramPreprocessor', **sizes, **keys}


def conformer(**keys: Any) -> dict[str, Any]:
    sizes = {'feat_in': 16, 'n_layers': 1, 'd_model': 8, 'n_heads': 2, 'conv_kernel_size': 5}
    return {'_target_': ASR + 'ConformerEncoder', **sizes, 'subsampling_conv_channels': 4, **keys}


def stacked_mlp(factor: int) -> dict[str, Any]:
    target = OURS + 'perception.StackedMLPAdapter'
    return {'_target_': target, 'feat_in': 8, 'd_model': 8, 'subsampling_factor': factor}


def perception_cfg(preprocessor: dict, encoder: dict, adapter: dict) -> Any:
    parts = {'preprocessor': preprocessor, 'encoder': encoder, 'modality_adapter': adapter, 'output_dim': 8}
    return OmegaConf.create(parts)


WHISPER_MEL = {'_target_': OURS + 'whisper.WhisperMelPreprocessor', 'features': 16}
WHISPER = {
    '_target_': OURS + 'whisper.WhisperEncoder',
    'feat_in': 16,
    'd_model': 8,
    'n_layers': 1,
    'n_heads': 2,
    'max_positions': 100,
}
PREPROCESSORS = [
    mel(),
    mel(pad_to=0),
    mel(pad_to=0, exact_pad=True),
    mel(n_fft=None, pad_to=8, window_size=0.02),
    mel(n_fft=401, pad_to=7),
    mel(window_size=None, window_stride=None, n_window_size=400, n_window_stride=200),
]
ENCODERS = [
    *(
        conformer(subsampling=kind, subsampling_factor=factor, causal_downsampling=causal)
        for kind in ('striding', 'dw_striding')
        for factor in (2, 4, 8)
        for causal in (False, True)
    ),
    *(
        conformer(subsampling=kind, subsampling_factor=factor)
        for kind in ('stacking', 'stacking_norm')
        for factor in (2, 3, 8)
    ),
    conformer(subsampling_factor=1),
    conformer(subsampling=None),
    conformer(reduction='pooling', reduction_factor=2, reduction_position=0),
    conformer(reduction='pooling', reduction_factor=4, reduction_position=-1),
    conformer(reduction='striding', reduction_factor=2, reduction_position=-1),
]
ADAPTERS = [
    IDENTITY,
    conformer(feat_in=8, subsampling_factor=1),
    conformer(feat_in=8, subsampling='stacking', subsampling_factor=3),
    conformer(feat_in=8, subsampling='dw_striding', subsampling_factor=2),
    stacked_mlp(3),
]
CASES = [
    *((PREPROCESSORS[1], encoder, ADAPTERS[2]) for encoder in ENCODERS),
    *((preprocessor, ENCODERS[4], ADAPTERS[1]) for preprocessor in PREPROCESSORS),
    *((preprocessor, ENCODERS[13], IDENTITY) for preprocessor in PREPROCESSORS),
    *((PREPROCESSORS[0], ENCODERS[10], adapter) for adapter in ADAPTERS),
    *((WHISPER_MEL, WHISPER, adapter) for adapter in ADAPTERS),
]


def frames_made(module: AudioPerceptionModule, num_samples: int) -> int:
    with torch.no_grad():
        frames, lens = module(
            input_signal=torch.randn(1, num_samples), input_signal_length=torch.tensor([num_samples])
        )
    return frames[0, : int(lens[0])].shape[0]


@pytest.mark.unit
@pytest.mark.parametrize('case', range(len(CASES)))
def test_the_count_equals_what_the_modules_make(case: int) -> None:
    cfg = perception_cfg(*CASES[case])
    module = AudioPerceptionModule(cfg).eval()
    count = frame_counter(cfg)
    draw = random.Random(case)
    # around the borders of hops, windows and 80 ms units, and anywhere up to 5 s
    lengths = [1279, 1280, 1281, 2560, 15999, 16000, 16001, *(draw.randint(1300, 80000) for _ in range(12))]
    if cfg.encoder.get('reduction') == 'pooling':
        lengths = [n for n in lengths if n > 6000]  # torch cannot pool less than one window
    assert [count(n) for n in lengths] == [frames_made(module, n) for n in lengths]


@pytest.mark.unit
def test_every_length_of_a_second_is_counted() -> None:
    cfg = perception_cfg(WHISPER_MEL, WHISPER, conformer(feat_in=8, subsampling='stacking', subsampling_factor=4))
    module, count = AudioPerceptionModule(cfg).eval(), frame_counter(cfg)
    for num_samples in range(1, 16000, 73):
        assert count(num_samples) == frames_made(module, num_samples) == -(-num_samples // 1280)
    assert count(0) == 0


@pytest.mark.unit
@pytest.mark.parametrize('num_samples', [3000, 16000, 16001, 16160, 16161, 40000, 47999, 48159])
def test_chunked_clips_count_as_nemo_chunks_them(num_samples: int) -> None:
    cfg = perception_cfg(mel(pad_to=0), ENCODERS[4], IDENTITY)
    module = AudioPerceptionModule(cfg).eval()
    with torch.no_grad():
        (frames,) = encode_audio_with_optional_chunking(
            module,
            torch.randn(1, num_samples),
            torch.tensor([num_samples]),
            chunk_size_seconds=1.0,
            sampling_rate=16000,
        )
    assert frame_counter(cfg, chunk_s=1.0)(num_samples) == frames.shape[0]


@pytest.mark.unit
def test_chunk_spans_join_a_tiny_rest() -> None:
    assert chunk_spans(10, None) == [(0, 10)]
    assert chunk_spans(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert chunk_spans(9, 4, 2) == [(0, 4), (4, 9)]
    assert chunk_spans(0, 4) == [(0, 0)]


@pytest.mark.unit
def test_the_counter_travels_to_loader_workers() -> None:
    counter = frame_counter(perception_cfg(*CASES[0]), chunk_s=2.0)
    assert pickle.loads(pickle.dumps(counter))(50000) == counter(50000)  # noqa: S301


@pytest.mark.unit
def test_counting_needs_no_torch() -> None:
    code = 'import sys, nemo_vtb.model.frames; sys.exit("torch" in sys.modules or "nemo" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


@pytest.mark.unit
@pytest.mark.parametrize('kind', ['vggnet', 'striding_conv1d'])
def test_subsamplings_that_nemo_cannot_run_are_refused(kind: str) -> None:
    cfg = perception_cfg(mel(), conformer(subsampling=kind), IDENTITY)
    with pytest.raises(TypeError):
        frames_made(AudioPerceptionModule(cfg).eval(), 16000)
    with pytest.raises(VtbModelError, match=kind):
        frame_counter(cfg)


@pytest.mark.unit
def test_an_unknown_encoder_is_named_with_the_way_out() -> None:
    cfg = perception_cfg(mel(), {'_target_': 'my_pkg.Encoder'}, IDENTITY)
    with pytest.raises(VtbModelError, match='register_stages') as caught:
        frame_counter(cfg)
    assert caught.value.field == 'perception.encoder._target_' and caught.value.got == 'my_pkg.Encoder'


@pytest.mark.unit
def test_a_registered_encoder_is_counted() -> None:
    register_stages('my_pkg.Third', lambda cfg: [Stage(lambda width, valid: (width // cfg['by'], valid // cfg['by']))])
    cfg = {
        'preprocessor': mel(pad_to=0),
        'encoder': {'_target_': 'my_pkg.Third', 'by': 3},
        'modality_adapter': IDENTITY,
    }
    assert frame_counter(cfg)(16000) == 33


@pytest.mark.unit
def test_incomplete_configurations_are_named() -> None:
    with pytest.raises(VtbModelError, match=r'perception\.encoder'):
        frame_counter({'preprocessor': mel(), 'modality_adapter': IDENTITY})
    with pytest.raises(VtbConfigError, match='encoder_chunk_size_seconds'):
        frame_counter(perception_cfg(*CASES[0]), chunk_s=0)
