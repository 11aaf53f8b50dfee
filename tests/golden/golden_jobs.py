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
"""What is run: configurations and command lines of the example scripts, as a user would write them.

Paths are relative to the folder of the runs, so that files made there name no machine.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golden_corpus import KINDS
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(__file__).parent / 'fixtures'
STEPS, HALF, NEW_TOKENS = 20, 10, 16
HALF_CHECKPOINT, NEMO_FILE = 'fixtures/tiny.ckpt', 'fixtures/tiny.nemo'

TRAIN = (
    '--config-dir=conf', f'trainer.max_steps={STEPS}', f'trainer.val_check_interval={HALF}', 'trainer.accelerator=cpu',
    'exp_manager.create_tensorboard_logger=false', 'exp_manager.checkpoint_callback_params.save_top_k=-1',
    'exp_manager.checkpoint_callback_params.monitor=val_loss', 'name=tiny',
)  # fmt: skip
TINY = ('model=golden', 'data=golden')
UNGATED = ('gate.enabled=false',)
GATED = ('gate.items=6',)
QUICK = (
    '--config-dir=conf', 'data=golden_demo', 'data.max_tokens=320', 'trainer.devices=1', 'trainer.max_steps=2',
    'trainer.val_check_interval=2', 'model.optimizer.fused=true', 'gate.enabled=false', 'name=quick',
    'exp_manager.create_tensorboard_logger=false', 'exp_manager.checkpoint_callback_params.monitor=val_loss',
)  # fmt: skip
QUESTIONS = ('{audio}', '{audio} What does the speaker want?')
HEARD = ('command-test-00001', 'command-test-00003', 'asterisk-en-sorry')


@dataclass(frozen=True)
class Job:
    """One command line.

    Args:
        script: Of `examples/`, without its ending; or `restore` (`golden_runs.restore`).
        words: Overrides.
        ranks: Processes, as torchrun starts them.
    """

    script: str
    words: tuple[str, ...]
    ranks: int = 1


def _train(trainer: str, *words: str, ranks: int = 1) -> Job:
    return Job('speechllm_joint_sft', (*TRAIN, f'trainer={trainer}', f'trainer.devices={ranks}', *words), ranks)


def _ask(*words: str) -> Job:
    return Job('speechllm_generate', (f'max_new_tokens={NEW_TOKENS}', 'device=cpu', *words))


def _ask_quick(question: str) -> Job:
    audio = ','.join(f'asset:demo-corpus/wav/{name}.wav' for name in HEARD)
    return _ask('model=quick/checkpoints/quick.nemo', f'audio=[{audio}]', f"prompt='{question}'")


JOBS = {
    'hf': _train('cpu_quick', *TINY, *GATED),
    'conformer': _train('cpu_quick', 'model=golden_conformer', 'data=golden', *UNGATED),
    'tp2': _train('megatron_tp2', *TINY, *UNGATED, ranks=2),
    'fsdp2': _train('fully_sharded', *TINY, *GATED, ranks=2),
    'resumed': _train('cpu_quick', *TINY, *GATED, f'exp_manager.resume_from_checkpoint={HALF_CHECKPOINT}'),
    'answers': _ask(f'model={NEMO_FILE}', 'manifest=questions.jsonl'),
    'restored': Job('restore', ()),
    'quick': Job('speechllm_joint_sft', QUICK),
    **{f'quick_answers_{number}': _ask_quick(question) for number, question in enumerate(QUESTIONS)},
}
QUICK_JOBS = tuple(name for name in JOBS if name.startswith('quick'))
TINY_JOBS = tuple(name for name in JOBS if name not in QUICK_JOBS)


def write_configs(folder: Path) -> None:
    """Files of the groups `model` and `data`, made of those in `conf/`."""
    groups = {
        'model/golden': _model(),
        'model/golden_conformer': _conformer_model(),
        'data/golden': _data(),
        'data/golden_demo': _demo_data(),
    }
    for name, cfg in groups.items():
        path = folder / 'conf' / f'{name}.yaml'
        path.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, path)


def _model() -> Any:
    """The quickstart's model, with a tiny LLM and a tiny Whisper."""
    cfg = OmegaConf.load(ROOT / 'conf/model/minimind2_whisper_tiny_en.yaml')
    cfg.pretrained_llm, cfg.pretrained_asr = 'fixtures/llm', 'fixtures/whisper'
    cfg.perception.modality_adapter.feat_in, cfg.perception.modality_adapter.d_model = 16, 48
    cfg.lora.r = cfg.lora.lora_alpha = 4
    # the only square roots of the other path are those of a library that has several kernels, which differ by a bit
    cfg.optimizer.fused = True
    cfg.loss_chunk, cfg.lr_scheduler.warmup_steps = 32, 2
    return cfg


def _conformer_model() -> Any:
    """A random FastConformer that is trained too; dropout, dither and SpecAugment draw from the random generators."""
    cfg = _model()
    cfg.pretrained_asr, cfg.pretrained_weights, cfg.lora.lora_dropout, cfg.text_anchor = None, False, 0.1, 0.0
    cfg.freeze_params = [r'^llm\..+$', r'^embed_tokens\..+$']
    asr = 'nemo.collections.asr.modules.'
    layer = {
        '_target_': f'{asr}ConformerEncoder', 'feat_out': -1, 'd_model': 16, 'subsampling': 'dw_striding',
        'subsampling_conv_channels': 8, 'ff_expansion_factor': 2, 'n_heads': 2, 'conv_kernel_size': 5,
        'dropout': 0.1, 'dropout_pre_encoder': 0.1, 'dropout_att': 0.1,
    }  # fmt: skip
    cfg.perception = {
        'target': cfg.perception.target,
        'preprocessor': {
            '_target_': f'{asr}AudioToMelSpectrogramPreprocessor', 'sample_rate': 16000, 'normalize': 'per_feature',
            'window_size': 0.025, 'window_stride': 0.01, 'features': 80, 'n_fft': 512, 'dither': 1e-5, 'pad_to': 0,
        },
        'spec_augment': {
            '_target_': f'{asr}SpectrogramAugmentation', 'freq_masks': 2, 'time_masks': 2, 'freq_width': 8,
            'time_width': 0.05,
        },
        'encoder': {**layer, 'feat_in': 80, 'n_layers': 2, 'subsampling_factor': 8},
        'modality_adapter': {**layer, 'feat_in': 16, 'n_layers': 1, 'subsampling_factor': 1},
    }  # fmt: skip
    return cfg


def _data() -> Any:
    """The four kinds, a quarter of the tokens each."""
    cfg = OmegaConf.load(ROOT / 'conf/data/demo.yaml')
    cfg.train_ds.input_cfg = [_entry(kind, 'train') for kind in KINDS]
    cfg.validation_ds.datasets = {kind: {'input_cfg': [_entry(kind, 'validation')]} for kind in KINDS[:2]}
    cfg.budget = dict.fromkeys(KINDS, 0.25)
    cfg.max_tokens, cfg.rows_per_batch, cfg.num_workers, cfg.max_skip_ratio = 192, 2, 0, 0.2
    cfg.index_dir = 'index'
    return cfg


def _demo_data() -> Any:
    """A few recordings of the demonstration corpus, by name: what else is in it depends on what models answered."""
    cfg = OmegaConf.load(ROOT / 'conf/data/demo.yaml')
    entry = {'type': 'multimodal_conversation', 'kind': 'asr_ast', 'audio_root': '${vtb_asset:demo-corpus}'}
    cfg.train_ds.input_cfg = [{**entry, 'source': 'asr', 'manifest_filepath': 'fixtures/quick.train.jsonl'}]
    held_out = {**entry, 'manifest_filepath': 'fixtures/quick.validation.jsonl'}
    cfg.validation_ds.datasets = {'asr_ast': {'input_cfg': [held_out]}}
    cfg.budget, cfg.num_workers, cfg.index_dir = {'asr_ast': 1.0}, 0, 'index'
    return cfg


def _entry(kind: str, split: str) -> dict[str, str]:
    path = f'corpus/{kind}.{split}.jsonl'
    return {'type': 'multimodal_conversation', 'kind': kind, 'source': f'tiny-{kind}', 'manifest_filepath': path}
