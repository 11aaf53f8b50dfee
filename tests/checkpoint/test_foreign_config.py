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
"""What the configuration of a stranger's file may name: classes by their place, arguments that build nothing."""

from collections.abc import Iterator
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_vtb.checkpoint import foreign_config
from nemo_vtb.checkpoint.foreign_config import PERCEPTION, allow, check_asr, check_perception
from nemo_vtb.errors import VtbCheckpointError

pytestmark = pytest.mark.unit

ASR = 'nemo.collections.asr.modules.'
ENCODER = {'_target_': f'{ASR}ConformerEncoder', 'att_context_size': [-1, -1], 'd_model': 16}


def target(name: str) -> dict[str, Any]:
    return {'_target_': name}


@pytest.mark.parametrize('place', PERCEPTION)
def test_known_classes_pass_in_their_place(place: str) -> None:
    for name in PERCEPTION[place]:
        check_perception({place: target(name)})
        check_perception(OmegaConf.create({place: target(name)}))


def test_a_whole_perception_passes() -> None:
    check_perception(
        {
            'target': 'nemo.collections.speechlm2.modules.perception.AudioPerceptionModule',
            'output_dim': 64,
            'adapter_init': 'default',
            'preprocessor': {'_target_': f'{ASR}AudioToMelSpectrogramPreprocessor', 'features': 80},
            'encoder': ENCODER,
            'modality_adapter': {**ENCODER, 'subsampling_factor': 1},
            'spec_augment': None,
        }
    )


@pytest.mark.parametrize(
    ('perception', 'field'),
    [
        ({'encoder': target('torch.load')}, 'perception.encoder._target_'),
        ({'encoder': target('nemo.core.classes.common.import_class_by_path')}, 'perception.encoder._target_'),
        # a known class, in another's place
        ({'encoder': target(f'{ASR}SpectrogramAugmentation')}, 'perception.encoder._target_'),
        ({'encoder': {**ENCODER, 'd_model': target('os.getpid')}}, 'perception.encoder.d_model._target_'),
        ({'encoder': {**ENCODER, 'a': [{'b': [target('x')]}]}}, 'perception.encoder.a[0].b[0]._target_'),
        ({'encoder': {**ENCODER, '_partial_': True}}, 'perception.encoder._partial_'),
        ({'encoder': {**ENCODER, '_args_': ['/etc/passwd']}}, 'perception.encoder._args_'),
        ({'something_else': {'deep': target('x')}}, 'perception.something_else.something_else.deep._target_'),
        ({'preprocessor': ['x']}, 'perception.preprocessor'),
    ],
)
def test_all_else_is_refused_by_its_place(perception: Any, field: str) -> None:
    with pytest.raises(VtbCheckpointError) as caught:
        check_perception(perception)
    assert caught.value.field == field


@pytest.fixture
def restored_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(foreign_config, '_allowed', {k: set(v) for k, v in foreign_config._allowed.items()})
    yield


class OwnEncoder:
    """Of a user."""


def test_a_class_of_ones_own_is_admitted_by_name(restored_table: None) -> None:
    name = f'{OwnEncoder.__module__}.OwnEncoder'
    with pytest.raises(VtbCheckpointError, match='allow'):
        check_perception({'encoder': target(name)})
    allow('encoder', OwnEncoder)
    check_perception({'encoder': target(name)})
    with pytest.raises(VtbCheckpointError):
        check_perception({'preprocessor': target(name)})


@pytest.mark.parametrize(
    'name',
    [
        f'{ASR}ConvASRDecoder',
        f'{ASR}conformer_encoder.ConformerEncoder',
        f'{ASR}transformer.get_nemo_transformer',
        'nemo.collections.asr.parts.submodules.token_classifier.TokenClassifier',
        'nemo.collections.common.losses.smoothed_cross_entropy.SmoothedCrossEntropyLoss',
    ],
)
def test_parts_of_asr_models_pass(name: str) -> None:
    check_asr(
        {'sample_rate': 16000, 'part': {'_target_': name, 'config_dict': {'size': 3}}, 'tokenizer': {'dir': 'x'}}, 0
    )


@pytest.mark.parametrize(
    'section',
    [
        target('nemo.collections.asr.parts.utils.manifest_utils.write_manifest'),
        target(f'{ASR}BeamSearchDecoderWithLM'),
        target(f'{ASR}beam_search_decoder.BeamSearchDecoderWithLM'),
        target('torch.utils.data.datapipes.utils.decoder.basichandlers'),
        {**target(f'{ASR}transformer.get_nemo_transformer'), 'pretrained': True},
        {**target(f'{ASR}ConformerEncoder'), 'feat_in': target(f'{ASR}ConformerEncoder')},
    ],
)
def test_an_asr_model_that_builds_more_is_refused(section: Any) -> None:
    with pytest.raises(VtbCheckpointError, match='ASR model'):
        check_asr({'encoder': section}, 0)
