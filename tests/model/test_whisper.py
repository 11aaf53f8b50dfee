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
"""Whisper against HF transformers, and its independence of neighbours and padding."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel

from nemo_vtb.errors import VtbModelError
from nemo_vtb.model.whisper import (
    WhisperEncoder,
    WhisperMelPreprocessor,
    is_whisper_folder,
    load_whisper_encoder,
    whisper_sections,
)

SIZES = {'d_model': 64, 'n_layers': 2, 'n_heads': 4, 'ff': 96}


def hf_config(**keys: int) -> WhisperConfig:
    return WhisperConfig(
        vocab_size=64,
        d_model=64,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        **keys,
    )


@pytest.fixture(scope='module')
def hf_model() -> WhisperModel:
    torch.manual_seed(1)
    model = WhisperModel(hf_config()).eval()
    # random init leaves biases at 0 and norms at 1, which would hide an exchanged parameter
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'embed_positions' not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope='module')
def folder(hf_model: WhisperModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('whisper')
    hf_model.save_pretrained(path)
    return path


@pytest.fixture(scope='module')
def encoder(folder: Path) -> WhisperEncoder:
    module = WhisperEncoder(**SIZES)
    module.load_state_dict(load_whisper_encoder(folder))
    return module.eval()


def encode(encoder: WhisperEncoder, signal: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        mel, mel_len = WhisperMelPreprocessor()(input_signal=signal, length=length)
        return encoder(audio_signal=mel, length=mel_len)


@pytest.mark.unit
def test_thirty_seconds_equal_hf(hf_model: WhisperModel, encoder: WhisperEncoder) -> None:
    generator = torch.Generator().manual_seed(2)
    signal = 0.1 * torch.randn(480000, generator=generator)
    signal[-400:] = 0.0  # HF mirrors the very end, we see zeros behind every clip
    features = WhisperFeatureExtractor(feature_size=80)(signal.numpy(), sampling_rate=16000, return_tensors='pt')
    mel, mel_len = WhisperMelPreprocessor()(input_signal=signal[None], length=torch.tensor([480000]))
    assert mel_len.tolist() == [3000]
    assert (mel - features.input_features).abs().max() < 1e-4
    with torch.no_grad():
        want = hf_model.encoder(features.input_features).last_hidden_state
    got, got_len = encode(encoder, signal[None], torch.tensor([480000]))
    assert got_len.tolist() == [1500]
    assert (got.transpose(1, 2) - want).abs().max() < 1e-4


@pytest.mark.unit
def test_a_short_clip_has_the_features_that_hf_gives_its_beginning() -> None:
    signal = 0.1 * torch.randn(30000, generator=torch.Generator().manual_seed(3))
    features = WhisperFeatureExtractor(feature_size=80)(signal.numpy(), sampling_rate=16000, return_tensors='pt')
    mel, mel_len = WhisperMelPreprocessor()(input_signal=signal[None], length=torch.tensor([30000]))
    assert mel_len.tolist() == [192]
    assert (mel[0] - features.input_features[0, :, :192]).abs().max() < 1e-4


@pytest.mark.unit
def test_neighbours_and_padding_change_nothing(encoder: WhisperEncoder) -> None:
    lengths = torch.tensor([16000, 1, 52345, 20000, 0])
    signal = torch.randn(5, 70000, generator=torch.Generator().manual_seed(4))  # noise also behind each clip
    frames, frame_lens = encode(encoder, signal, lengths)
    assert frame_lens.tolist() == [-(-n // 1280) * 4 for n in lengths.tolist()]
    for row, (length, count) in enumerate(zip(lengths.tolist(), frame_lens.tolist(), strict=True)):
        assert not frames[row, :, count:].any()
        if length:
            alone, _ = encode(encoder, signal[row : row + 1, :length], lengths[row : row + 1])
            assert alone.shape[-1] == count
            assert (alone[0] - frames[row, :, :count]).abs().max() < 1e-5
    assert torch.isfinite(frames).all()


@pytest.mark.unit
@pytest.mark.parametrize('num_samples', [1, 1279, 1280, 1281, 16000, 47999])
def test_frames_come_in_fours(encoder: WhisperEncoder, num_samples: int) -> None:
    frames, frame_lens = encode(encoder, torch.randn(1, num_samples), torch.tensor([num_samples]))
    assert frames.shape[-1] == frame_lens.item() == -(-num_samples // 1280) * 4


@pytest.mark.unit
def test_long_clips_are_encoded_in_pieces_and_joined() -> None:
    torch.manual_seed(5)
    encoder = WhisperEncoder(**SIZES, max_positions=100).eval()
    mel = torch.randn(2, 80, 460)
    lengths = torch.tensor([460, 150])
    with torch.no_grad():
        frames, frame_lens = encoder(audio_signal=mel, length=lengths)
        pieces = [
            encoder(audio_signal=part, length=torch.tensor([part.shape[-1]]))[0] for part in mel[:1].split(200, -1)
        ]
        short, _ = encoder(audio_signal=mel[1:, :, :150], length=torch.tensor([150]))
    assert frame_lens.tolist() == [230, 75]
    assert torch.allclose(frames[:1], torch.cat(pieces, dim=-1), atol=1e-5)
    assert torch.allclose(frames[1, :, :75], short[0], atol=1e-5)
    assert not frames[1, :, 75:].any()


@pytest.mark.unit
def test_gradients_reach_all_but_the_positions() -> None:
    encoder = WhisperEncoder(**SIZES).train()
    frames, _ = encoder(audio_signal=torch.randn(1, 80, 64), length=torch.tensor([64]))
    frames.square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == ['embed_positions.weight']


@pytest.mark.unit
def test_features_stay_precise_in_a_bfloat16_module() -> None:
    signal = 0.1 * torch.randn(1, 16000, generator=torch.Generator().manual_seed(6))
    exact, _ = WhisperMelPreprocessor()(input_signal=signal, length=torch.tensor([16000]))
    rounded, _ = WhisperMelPreprocessor().to(torch.bfloat16)(input_signal=signal, length=torch.tensor([16000]))
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.to(torch.bfloat16))


@pytest.mark.unit
def test_a_generation_model_loads_too(tmp_path: Path, encoder: WhisperEncoder) -> None:
    WhisperForConditionalGeneration(hf_config()).save_pretrained(tmp_path, max_shard_size='100kB')
    assert (tmp_path / 'model.safetensors.index.json').exists()
    state = load_whisper_encoder(tmp_path)
    assert state.keys() == encoder.state_dict().keys()


@pytest.mark.unit
def test_the_sections_follow_the_folder(folder: Path) -> None:
    assert is_whisper_folder(folder) and not is_whisper_folder(folder.parent)
    sections = whisper_sections(folder)
    expected = {'feat_in': 80, 'd_model': 64, 'n_layers': 2, 'n_heads': 4, 'ff': 96, 'max_positions': 1500}
    assert expected.items() <= sections['encoder'].items()


@pytest.mark.unit
@pytest.mark.parametrize('damage', ['no folder', 'no weights', 'cut weights', 'other weights'])
def test_a_damaged_folder_is_named(damage: str, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / 'broken'
    if damage != 'no folder':
        broken.mkdir()
        (broken / 'config.json').write_bytes((folder / 'config.json').read_bytes())
    if damage == 'cut weights':
        (broken / 'model.safetensors').write_bytes((folder / 'model.safetensors').read_bytes()[:5000])
    if damage == 'other weights':
        from safetensors.numpy import save_file

        save_file({'lm.weight': np.zeros(3, np.float32)}, broken / 'model.safetensors')
    with pytest.raises(VtbModelError, match='broken'):
        load_whisper_encoder(broken)


@pytest.mark.unit
def test_a_broken_config_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(VtbModelError, match=r'config\.json'):
        whisper_sections(tmp_path)
    config = json.loads((folder / 'config.json').read_text())
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(VtbModelError, match='cannot be used'):
        whisper_sections(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'activation_function': 'relu'}))
    with pytest.raises(VtbModelError, match='relu'):
        whisper_sections(tmp_path)


@pytest.mark.unit
def test_impossible_sizes_are_named() -> None:
    with pytest.raises(VtbModelError, match='n_heads = 5'):
        WhisperEncoder(d_model=64, n_heads=5)
    with pytest.raises(VtbModelError, match='16000'):
        WhisperMelPreprocessor(sample_rate=8000)


@pytest.mark.real_weights
def test_real_speech_equals_hf_and_survives_slicing(assets: Callable[..., dict[str, Path]]) -> None:
    import soundfile

    found = assets('whisper-tiny.en', 'jfk')
    samples, rate = soundfile.read(next((found['jfk'] / 'wav').glob('*.wav')), dtype='float32')
    assert rate == 16000 and 10.9 < len(samples) / rate < 11.1
    encoder = WhisperEncoder(**_own_keys(found['whisper-tiny.en']))
    encoder.load_state_dict(load_whisper_encoder(found['whisper-tiny.en']))
    encoder.eval()
    signal = torch.from_numpy(samples)[None]
    padded = torch.nn.functional.pad(signal, (0, 480000 - signal.shape[1]))
    features = WhisperFeatureExtractor(feature_size=80)(samples, sampling_rate=rate, return_tensors='pt')
    with torch.no_grad():
        want = WhisperModel.from_pretrained(found['whisper-tiny.en']).eval().encoder(features.input_features)
    got, _ = encode(encoder, padded, torch.tensor([480000]))
    assert (got.transpose(1, 2) - want.last_hidden_state).abs().max() < 1e-3
    sliced, sliced_len = encode(encoder, signal, torch.tensor([len(samples)]))
    assert sliced_len.tolist() == [552]
    likeness = torch.cosine_similarity(sliced[0], got[0, :, :552], dim=0)
    assert likeness.mean() > 0.98


def _own_keys(folder: Path) -> dict[str, int]:
    return {key: value for key, value in whisper_sections(folder)['encoder'].items() if key != '_target_'}
