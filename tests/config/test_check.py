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
"""Configuration checks: each mistake is named with its full key and the nearest right one."""

import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from nemo_vtb.assets.resolve import register_resolvers
from nemo_vtb.config import check
from nemo_vtb.config.check import check_budget, check_config, check_keys, check_missing, check_values, unused_keys
from nemo_vtb.config.schema import CONFIGS, SOURCE_TYPES, UNREAD_TYPES, TrainConfig
from nemo_vtb.errors import VtbConfigError

CONF = Path(__file__).resolve().parents[2] / 'conf'
# conf/eval holds the configurations of the other scripts, which have their own tables of keys
OTHERS = sorted([*(CONF / 'eval').glob('*.yaml'), *(CONF / 'factory').glob('*.yaml')])
GROUPS = sorted(path for path in CONF.rglob('*.yaml') if path.parent != CONF and path not in OTHERS)
MAINS = sorted(CONF.glob('*.yaml'))
PAPER = ['+model=gemma2b_canary1b', '+data=paper_blend', '+trainer=slurm_8x8_h100']


def composed(*overrides: str, name: str | None = None) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base=None):
        return compose(config_name=name, overrides=list(overrides))


def small(**changes: Any) -> DictConfig:
    base: dict[str, Any] = {
        'name': 'x',
        'seed': 1,
        'model': {'pretrained_llm': 'llm', 'freeze_params': ['^llm\\..+$'], 'optimizer': {'lr': 1e-4}},
        'data': {
            'max_tokens': 512,
            'budget': {'text': 0.5, 'asr_ast': 0.5},
            'train_ds': {'input_cfg': [{'type': 'multimodal_conversation', 'kind': 'text', 'weight': 1.0}]},
        },
        'trainer': {'max_steps': 10},
    }
    cfg = OmegaConf.create(base)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace('__', '.'), value, force_add=True)
    return cfg


def test_small_config_passes() -> None:
    check_config(small())
    # NeMo also takes the path of a file with the list
    check_config(small(data__train_ds__input_cfg='blend.yaml'))


@pytest.mark.parametrize(
    'key, near',
    [
        ('data.max_token', 'data.max_tokens'),
        ('modell', 'model'),
        ('model.pretraned_llm', 'model.pretrained_llm'),
        ('data.budget.asr', None),
        ('data.train_ds.input_cfg.0.manifest_filepaths', 'data.train_ds.input_cfg[0].manifest_filepath'),
        # a right name in the wrong block
        ('model.max_tokens', 'data.max_tokens'),
    ],
)
def test_unknown_key_names_the_nearest(key: str, near: str | None) -> None:
    cfg = small()
    OmegaConf.update(cfg, key, 1, force_add=True)
    with pytest.raises(VtbConfigError) as caught:
        check_keys(cfg)
    assert caught.value.field == key.replace('.0.', '[0].')
    if near:
        assert f"did you mean '{near}'?" in str(caught.value)


def test_all_unknown_keys_are_reported_together() -> None:
    cfg = small(data__poolsize=3, trainr={'a': 1})
    with pytest.raises(VtbConfigError, match='data.poolsize') as caught:
        check_keys(cfg)
    assert caught.value.field == 'data.poolsize, trainr'


@pytest.mark.integration
@pytest.mark.parametrize(
    'block, key, near',
    [
        ('trainer', 'device', 'devices'),
        ('exp_manager', 'resume_if_exist', 'resume_if_exists'),
        ('exp_manager.checkpoint_callback_params', 'save_topk', 'save_top_k'),
        ('model.lora', 'lora_alfa', 'lora_alpha'),
        ('model.lora', 'use_rs_lora', 'use_rslora'),
        ('data.train_ds', 'batch_token', 'batch_tokens'),
        ('data', 'prefetch_factors', 'prefetch_factor'),
        ('model.perception.encoder', 'n_layer', 'n_layers'),
        ('model.perception.spec_augment', 'freq_mask', 'freq_masks'),
    ],
)
def test_keys_of_other_classes_come_from_their_signatures(block: str, key: str, near: str) -> None:
    check_keys(OmegaConf.create({}))
    cfg = OmegaConf.create({})
    OmegaConf.update(cfg, f'{block}.{near}', 1, force_add=True)
    check_keys(cfg)
    OmegaConf.update(cfg, f'{block}.{key}', 1, force_add=True)
    with pytest.raises(VtbConfigError, match=f"'{block}.{key}': did you mean '{block}.{near}'"):
        check_keys(cfg)


@pytest.mark.integration
@pytest.mark.parametrize(
    'block, target, right, wrong',
    [
        ('model.optimizer', 'torch.optim.AdamW', 'betas', 'beta'),
        # takes **kwargs and passes them to its base class
        ('model.lr_scheduler', 'nemo.core.optim.lr_scheduler.CosineAnnealing', 'warmup_steps', 'warmup_step'),
        (
            'model.perception.modality_adapter',
            'nemo.collections.asr.modules.ConformerEncoder',
            'xscaling',
            'x_scaling',
        ),
    ],
)
def test_keys_of_a_target_come_from_its_signature(block: str, target: str, right: str, wrong: str) -> None:
    cfg = OmegaConf.create({})
    OmegaConf.update(cfg, block, {'_target_': target, right: 1}, force_add=True)
    check_keys(cfg)
    OmegaConf.update(cfg, f'{block}.{wrong}', 1, force_add=True)
    with pytest.raises(VtbConfigError, match=f'{block}.{right}'):
        check_keys(cfg)


def test_targets_of_strangers_are_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'stranger.py').write_text('raise SystemExit("imported")\n')
    monkeypatch.syspath_prepend(tmp_path)
    check_keys(OmegaConf.create({'model': {'optimizer': {'_target_': 'stranger.Optimizer', 'anything': 1}}}))


def test_all_missing_values_are_reported_together() -> None:
    cfg = small(model__pretrained_asr='???', data__train_ds__input_cfg=[{'manifest_filepath': '???'}])
    with pytest.raises(VtbConfigError) as caught:
        check_missing(cfg)
    assert caught.value.field == 'model.pretrained_asr, data.train_ds.input_cfg[0].manifest_filepath'


@pytest.mark.parametrize(
    'key, value, words',
    [
        ('data.max_tokens', 0, 'at least 1'),
        ('data.max_tokens', 'many', 'int'),
        ('data.max_tokens', True, 'int'),
        ('data.max_tokens', None, 'null'),
        ('data.max_skip_ratio', 1.5, 'from 0 to 1'),
        ('data.overlong', 'dropp', "did you mean 'drop'"),
        ('data.unit', 'token', "did you mean 'tokens'"),
        ('data.temperature', 'hot', 'float'),
        ('data.train_ds', 'manifest.jsonl', 'block'),
        ('data.train_ds.input_cfg', {'type': 'nemo'}, 'list'),
        ('data.train_ds.input_cfg.0.kind', 'asr', 'asr_ast'),
        ('data.train_ds.input_cfg.0.type', 'multimodal', 'multimodal_conversation'),
        ('data.train_ds.sample_rate', 8000, '16000'),
        ('data.budget.text', -0.1, 'from 0 to 1'),
        ('model.optimizer.lr', '1e-4 ', 'float'),
        ('model.perception.adapter_init', 'matched', 'match_embeddings'),
        ('model.lora.r', 0, 'at least 1'),
        ('model.freeze_params', '^llm', 'list'),
        ('seed', -1, 'at least 0'),
    ],
)
def test_wrong_values_name_key_and_allowed(key: str, value: object, words: str) -> None:
    cfg = small()
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    with pytest.raises(VtbConfigError) as caught:
        check_values(cfg)
    assert str(caught.value.field).startswith(key.replace('.0.', '[0].'))
    assert words in str(caught.value)


def test_values_behind_interpolations_are_checked() -> None:
    check_values(small(data__max_tokens='${trainer.max_steps}'))
    with pytest.raises(VtbConfigError, match='at least 1'):
        check_values(small(data__max_tokens='${zero}', zero=0))
    with pytest.raises(VtbConfigError, match='not there'):
        check_values(small(data__max_tokens='${trainer.steps}'))


def test_broken_pattern() -> None:
    with pytest.raises(VtbConfigError, match='regular expression') as caught:
        check_values(small(model__freeze_params=['^llm(']))
    assert caught.value.field == 'model.freeze_params[0]'


def test_budget_must_sum_to_one() -> None:
    with pytest.raises(VtbConfigError, match='sum to 1.5') as caught:
        check_budget(small(data__budget={'text': 0.5, 'asr_ast': 1.0}))
    assert "{'text': 0.3333, 'asr_ast': 0.6667}" in str(caught.value)
    check_budget(small(data__budget={'text': 0.1, 'asr_ast': 0.2, 'speech_qa': 0.3, 'mixed_modal': 0.4}))


def test_loader_keys_without_effect_are_listed(caplog: pytest.LogCaptureFixture) -> None:
    cfg = small(data__train_ds__batch_size=4, data__validation_ds={'datasets': {'a': {'use_bucketing': True}}})
    assert unused_keys(cfg) == ['data.train_ds.batch_size', 'data.validation_ds.datasets.a.use_bucketing']
    check_config(cfg)
    assert 'data.train_ds.batch_size' in caplog.text


@pytest.mark.parametrize('type_', UNREAD_TYPES)
def test_types_that_nobody_reads_are_refused_by_name(type_: str) -> None:
    cfg = small(data__train_ds__input_cfg=[{'type': type_, 'manifest_filepath': 'a'}])
    with pytest.raises(VtbConfigError) as caught:
        check_values(cfg)
    assert caught.value.field == 'data.train_ds.input_cfg[0].type' and caught.value.got == type_
    assert caught.value.remedy == UNREAD_TYPES[type_]


def test_types_that_pass_have_a_reader() -> None:
    from nemo_vtb.data.sources import SOURCE_TYPES as READERS

    assert sorted(READERS) == sorted(SOURCE_TYPES)


@pytest.mark.integration
@pytest.mark.parametrize('path', GROUPS, ids=lambda p: f'{p.parent.name}/{p.stem}')
def test_every_group_file_has_known_keys_and_allowed_values(path: Path) -> None:
    cfg = composed(f'+{path.parent.name}={path.stem}', '++seed=1', '++trainer.max_steps=10')
    check_keys(cfg)
    check_values(cfg)
    check_budget(cfg)


@pytest.mark.integration
@pytest.mark.parametrize('path', MAINS, ids=lambda p: p.stem)
def test_every_main_file_runs_as_it_is(path: Path) -> None:
    check_config(composed(name=path.stem), CONFIGS.get(path.stem, TrainConfig))


@pytest.mark.integration
def test_paper_recipe_lacks_only_the_data_paths() -> None:
    cfg = composed(*PAPER)
    with pytest.raises(VtbConfigError) as caught:
        check_missing(cfg)
    missing = str(caught.value.field).split(', ')
    assert len(missing) == 11 and all(name.endswith('.manifest_filepath') for name in missing)
    for name in missing:
        OmegaConf.update(cfg, name, 'manifest.jsonl')
    check_config(cfg)


@pytest.mark.integration
def test_paper_recipe_has_the_papers_numbers() -> None:
    cfg = composed(*PAPER)
    lora, adapter, optimizer = cfg.model.lora, cfg.model.perception.modality_adapter, cfg.model.optimizer
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, len(lora.target_modules)) == (32, 32, 0.0, 7)
    assert (adapter.n_layers, adapter.d_model, adapter.n_heads, adapter.conv_kernel_size) == (2, 1024, 8, 9)
    assert (optimizer.lr, list(optimizer.betas), optimizer.weight_decay) == (1e-4, [0.9, 0.98], 1e-3)
    assert (cfg.model.lr_scheduler.warmup_steps, cfg.model.lr_scheduler.max_steps) == (2500, 100000)
    assert cfg.trainer.devices * cfg.trainer.num_nodes == cfg.data.rows_per_batch == 64
    speech = 0.85 / 2.3
    expected = {'text': 0.15, 'asr_ast': 2.0 * speech, 'speech_qa': 0.2 * speech, 'mixed_modal': 0.1 * speech}
    budget = dict(cfg.data.budget)
    assert budget.pop('auto') is None and budget == pytest.approx(expected, abs=5e-4)


@pytest.mark.integration
def test_paper_adapter_has_the_papers_size() -> None:
    from nemo.collections.asr.modules import ConformerEncoder

    adapter = OmegaConf.to_container(composed(*PAPER).model.perception.modality_adapter)
    assert isinstance(adapter, dict)
    adapter.pop('_target_')
    encoder = ConformerEncoder(**adapter)
    # 2 layers 50.4 M and the linear layer in place of subsampling 1.05 M
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(51.5e6, rel=0.005)
    assert encoder.subsampling_factor == 1


@pytest.mark.parametrize('path', [*GROUPS, *MAINS, *OTHERS], ids=lambda p: f'{p.parent.name}/{p.stem}')
def test_every_key_is_commented(path: Path) -> None:
    lines = path.read_text().splitlines()
    bare = []
    for number, line in enumerate(lines):
        # a block explains itself by its keys, an entry of a list by the comment above the list
        if not re.match(r'\s*[\w_]+: \S', line) or any('- ' in above for above in lines[max(0, number - 6) : number]):
            continue
        # one comment may stand for up to four keys that belong together, or for the small block that holds them
        depth = len(line) - len(line.lstrip())
        for above in lines[max(0, number - 5) : number][::-1]:
            if above.strip().startswith('#') or above.rstrip().endswith(':'):
                break
            if len(above) - len(above.lstrip()) != depth:
                bare.append(line.strip())
                break
        else:
            bare.append(line.strip())
    assert bare == []


def test_unknown_target_is_let_through() -> None:
    assert check.keys_of_class('torch.optim.DoesNotExist') is None
