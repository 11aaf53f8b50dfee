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
"""What a stranger's configuration may describe: small YAML, sizes that fit the weights, expressions that end."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from nemo_vtb.checkpoint.foreign_config import allow, check_asr, check_model, check_own_targets, opening
from nemo_vtb.checkpoint.foreign_limits import check_interpolations, check_patterns, check_sizes, parse_yaml
from nemo_vtb.errors import VtbCheckpointError, VtbConfigError, VtbModelError
from nemo_vtb.testing import tiny_perception_cfg

CONF = Path(__file__).resolve().parents[2] / 'conf'


@pytest.mark.parametrize(
    'text',
    [
        'a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]',
        'a: &a [*a]',
        '[' * 100 + ']' * 100,
        'a: ' + '[' * 200_000,
        'x' * (1 << 24),
        'a: [',
        '- ' * 100,
        'a: !!python/object/apply:os.getpid []',
        'a: {1: 2}: 3',
    ],
)
def test_yaml_that_grows_or_is_none_is_refused(text: str) -> None:
    with pytest.raises(VtbCheckpointError):
        parse_yaml(text)


def test_the_yaml_of_a_configuration_is_read_as_it_is() -> None:
    value = {'model': {'perception': tiny_perception_cfg(), 'names': ['x'] * 5000, 'text': '&a *b', 'none': None}}
    assert parse_yaml(yaml.safe_dump(value)) == value


@pytest.mark.parametrize('path', sorted(CONF.rglob('*.yaml')), ids=lambda p: p.stem)
def test_our_own_recipes_stay_within_the_bounds(path: Path) -> None:
    value = parse_yaml(path.read_text(encoding='utf-8')) or {}
    check_patterns(value)
    model = value.get('model')
    check_sizes('perception', model.get('perception') if isinstance(model, dict) else None, 0)


@pytest.mark.parametrize(
    ('change', 'field'),
    [
        ({'n_layers': 10**9}, 'perception.encoder.n_layers'),
        ({'d_model': 10**9}, 'perception.encoder.d_model'),
        ({'d_model': 1 << 19, 'feat_in': 1 << 18}, 'perception.encoder.feat_in'),
        ({'att_context_size': [[1 << 30, 1]]}, 'perception.encoder.att_context_size'),
        ({'deep': {'conv_blocks': 10**6}}, 'perception.encoder.deep.conv_blocks'),
    ],
)
def test_sizes_without_end_are_refused_by_their_place(change: dict[str, Any], field: str) -> None:
    perception = tiny_perception_cfg()
    check_model({'perception': perception}, 0)
    perception['encoder'] |= change
    with pytest.raises(VtbCheckpointError) as caught:
        check_model({'perception': perception}, 0)
    assert caught.value.field == field


def test_large_sizes_want_large_weights() -> None:
    section = {'d_model': 10_000, 'feat_in': 10_000}
    check_sizes('encoder', section, 10**8)
    with pytest.raises(VtbCheckpointError):
        check_sizes('encoder', section, 10**6)


def test_a_reference_names_one_value_of_the_same_file() -> None:
    plain = {'rate': 16000, 'a': {'b': '${rate}', 'c': {'d': '${.e}', 'e': 1, 'f': '${..g}'}, 'g': 2}}
    check_interpolations(plain)
    assert OmegaConf.to_container(OmegaConf.create(plain), resolve=True)['a']['c'] == {'d': 1, 'e': 1, 'f': 2}  # type: ignore
    for bad in (
        '${oc.env:HOME}',
        '${vtb_asset:x}',
        '${a}',
        '${rate}${rate}',
        'x${rate}',
        '${other}',
        '${none.x}',
        '${b}',
    ):
        with pytest.raises(VtbCheckpointError):
            check_interpolations({'rate': 1, 'a': {'c': bad}, 'b': '${rate}'})
    with pytest.raises(VtbCheckpointError):
        check_interpolations({'a': [{'${oc.env:HOME}': 1}]})


@pytest.mark.parametrize(
    'pattern', [r'^llm\..+$', r'^.+\.lora_.+$', '.*(q_proj|v_proj)$', r'[a-z*+(]+\(x*\)', '(a|b)?c*']
)
def test_expressions_of_real_recipes_pass(pattern: str) -> None:
    check_patterns({'freeze_params': [pattern], 'lora': {'target_modules': pattern, 'rank_pattern': {pattern: 4}}})


@pytest.mark.parametrize('pattern', ['(a+)+$', '(a|a)*b', '((x|y)z){9}q', '(?:(?:.*)*)*', '.*.*.*.*x', 'a' * 2000])
@pytest.mark.parametrize('place', ['freeze_params', 'lora.target_modules', 'lora.rank_pattern', 'lr_factors'])
def test_expressions_that_match_for_ever_are_refused(pattern: str, place: str) -> None:
    config: dict[str, Any] = {
        'freeze_params': {'freeze_params': ['x', pattern]},
        'lora.target_modules': {'lora': {'target_modules': pattern}},
        'lora.rank_pattern': {'lora': {'rank_pattern': {pattern: 1}}},
        'lr_factors': {'lr_factors': [{'match': pattern, 'factor': 1.0}]},
    }[place]
    with pytest.raises(VtbCheckpointError):
        check_model(config, 0)


@pytest.mark.parametrize(
    'config',
    [
        {'optimizer': {'_target_': 'torch.optim.optimizer.register_optimizer_step_pre_hook'}},
        {'optimizer': {'_target_': 'torch.optim.AdamW', 'lr': {'_target_': 'x'}}},
        {'lr_scheduler': {'_target_': 'torch.optim.AdamW'}},
        {'lora': {'init': [{'_target_': 'x'}]}},
        {'_target_': 'x'},
        {'perception': ['x']},
        ['x'],
    ],
)
def test_no_other_place_of_a_model_builds_anything(config: Any) -> None:
    with pytest.raises(VtbCheckpointError):
        check_model(config, 0)


def test_known_optimizers_and_ones_own_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    check_model({'optimizer': {'_target_': 'torch.optim.AdamW', 'lr': 1e-4, 'betas': [0.9, 0.98]}}, 0)
    check_model({'lr_scheduler': {'_target_': 'nemo.core.optim.lr_scheduler.CosineAnnealing', 'warmup_steps': 9}}, 0)
    own = {'lr_scheduler': {'_target_': f'{Own.__module__}.Own'}}
    with pytest.raises(VtbCheckpointError):
        check_model(own, 0)
    from nemo_vtb.checkpoint import foreign_config

    monkeypatch.setattr(foreign_config, '_allowed', {k: set(v) for k, v in foreign_config._allowed.items()})
    allow('lr_scheduler', Own)
    check_model(own, 0)


class Own:
    """Of a user."""


@pytest.mark.parametrize(
    'config',
    [
        {'target': 'nemo.collections.tts.models.FastPitchModel'},
        {'target': 'nemo.collections.asr.models.multitalker_asr_models.EncDecMultiTalkerRNNTBPEModel'},
        {'tokenizer': {'custom_tokenizer': {'_target_': 'nemo.collections.common.tokenizers.AutoTokenizer'}}},
        {'train_ds': {'a': [{'_target_': 'x'}]}},
        {'encoder': {'_target_': 'nemo.collections.asr.modules.ConformerEncoder', 'n_layers': 10**9}},
        {'_target_': 'x'},
        ['x'],
    ],
)
def test_no_other_place_of_an_asr_model_builds_anything(config: Any) -> None:
    with pytest.raises(VtbCheckpointError):
        check_asr(config, 0)


def test_a_hybrid_asr_model_passes() -> None:
    decoder = {'_target_': 'nemo.collections.asr.modules.ConvASRDecoder', 'feat_in': '${encoder.d_model}'}
    encoder = {'_target_': 'nemo.collections.asr.modules.ConformerEncoder', 'd_model': 512}
    config = {'target': 'nemo.collections.asr.models.hybrid_rnnt_ctc_bpe_models.EncDecHybridRNNTCTCBPEModel'}
    check_asr({**config, 'encoder': encoder, 'aux_ctc': {'decoder': decoder}, 'optim': {'max_steps': 10**7}}, 0)


# ---- a YAML of one's own


@pytest.mark.parametrize(
    'config',
    [
        {
            'model': {
                'perception': {
                    'encoder': {'_target_': 'nemo.collections.asr.modules.transformer.get_nemo_transformer'}
                }
            }
        },
        {'trainer': {'strategy': {'_target_': 'nemo.collections.asr.parts.utils.manifest_utils.write_manifest'}}},
        {'trainer': {'callbacks': [{'_target_': 'torch.nn.Linear', 'in_features': 1, 'out_features': 1}]}},
        {'trainer': {'strategy': {'_target_': 'lightning.pytorch.callbacks.Timer'}}},
        {
            'model': {
                'optimizer': {'a': [{'_target_': 'nemo.collections.asr.parts.utils.manifest_utils.write_manifest'}]}
            }
        },
    ],
)
def test_a_run_names_classes_of_the_right_kind_and_no_functions(config: Any) -> None:
    with pytest.raises(VtbConfigError) as caught:
        check_own_targets(OmegaConf.create(config), '')
    assert str(caught.value.field).endswith('_target_')


def test_a_run_names_any_class_that_nemo_admits() -> None:
    config = {
        'model': {'perception': tiny_perception_cfg(), 'optimizer': {'_target_': 'torch.optim.AdamW'}},
        'trainer': {
            'strategy': {'_target_': 'lightning.pytorch.strategies.DDPStrategy'},
            'callbacks': [{'_target_': 'lightning.pytorch.callbacks.Timer'}],
            'logger': False,
        },
    }
    check_own_targets(config, '')
    check_own_targets({'trainer': {'callbacks': [{'_target_': 'os.system'}]}}, '')  # NeMo refuses it, and says so


def test_what_other_libraries_raise_names_the_file() -> None:
    with pytest.raises(VtbModelError, match='some.nemo') as caught, opening('some.nemo'):
        time.strptime('x', 'y')
    assert caught.value.field == 'model'
    with pytest.raises(VtbCheckpointError), opening('some.nemo'):
        raise VtbCheckpointError('ours')
