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
"""The forms that SALM's YAML takes, written by hand with tiny local parts: nothing of ours is in them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

PERCEPTION = 'nemo.collections.speechlm2.modules.perception'

SALM = """
model:
  pretrained_llm: {llm}
  pretrained_asr: {asr}
  pretrained_weights: true
  init_from_checkpoint: null
  freeze_params:
    - "^llm\\\\..+$"
    - "^embed_tokens\\\\..+$"
    - "^perception\\\\.preprocessor\\\\..+$"
    - "^perception\\\\.encoder\\\\..+$"
  prevent_freeze_params: []
  prompt_format: qwen
  audio_locator_tag: "<|audioplaceholder|>"
  encoder_chunk_size_seconds: null
  perception:
    target: {perception}.AudioPerceptionModule
    output_dim: 64
    modality_adapter:
      _target_: {perception}.IdentityConnector
      d_model: 32
  optimizer:
    _target_: torch.optim.AdamW
    lr: 5e-4
    betas: [0.9, 0.98]
    weight_decay: 1e-3
    foreach: true
  lr_scheduler:
    _target_: nemo.core.optim.lr_scheduler.CosineAnnealing
    warmup_steps: 1
    min_lr: 1e-6
    max_steps: ${{trainer.max_steps}}
trainer:
  devices: 1
  accelerator: cpu
  num_nodes: 1
  precision: 32-true
  logger: false
  enable_checkpointing: false
  use_distributed_sampler: false
  max_steps: 2
  limit_train_batches: 1
  val_check_interval: ${{trainer.limit_train_batches}}
  limit_val_batches: 1
  log_every_n_steps: 1
  num_sanity_val_steps: 1
  gradient_clip_val: 1.0
  accumulate_grad_batches: 1
  strategy:
    _target_: lightning.pytorch.strategies.DDPStrategy
    gradient_as_bucket_view: true
    find_unused_parameters: true
data:
  train_ds:
    sample_rate: 16000
    prompt_format: ${{model.prompt_format}}
    token_equivalent_duration: 0.08
    input_cfg:
      - type: lhotse_as_conversation
        cuts_path: {cuts}
        audio_locator_tag: ${{model.audio_locator_tag}}
        tags:
          context: "Repeat after me, typing in lowercase."
    seed: 42
    shuffle: true
    shard_seed: "randomized"
    num_workers: 1
    batch_size: 4
  validation_ds:
    prompt_format: ${{model.prompt_format}}
    token_equivalent_duration: 0.08
    datasets:
      val_set_0:
        input_cfg:
          - type: lhotse_as_conversation
            cuts_path: {cuts}
            audio_locator_tag: ${{model.audio_locator_tag}}
            tags:
              context: "Repeat after me, typing in lowercase."
    sample_rate: 16000
    batch_size: 1
    seed: 42
    shard_seed: "randomized"
exp_manager:
  exp_dir: null
  explicit_log_dir: {runs}/salm_results/
  name: salm
  create_tensorboard_logger: false
  create_checkpoint_callback: true
  use_datetime_version: true
  max_time_per_run: 00:03:50:00
  resume_from_checkpoint: null
  resume_if_exists: true
  resume_ignore_no_checkpoint: true
  create_wandb_logger: false
  wandb_logger_kwargs:
    name: development-run
    project: salm
    resume: true
  checkpoint_callback_params:
    filename: "{{step}}"
    monitor: val_acc
    mode: max
    every_n_train_steps: null
    every_n_epochs: 1
    save_top_k: 1
    always_save_nemo: false
    save_nemo_on_train_end: false
"""
"""The `salm.yaml` of NeMo 3.0."""

CONFORMER_ADAPTER: dict[str, Any] = {
    '_target_': 'nemo.collections.asr.modules.ConformerEncoder', 'feat_in': 32, 'feat_out': -1, 'n_layers': 1,
    'd_model': 32, 'subsampling': 'dw_striding', 'subsampling_factor': 1, 'subsampling_conv_channels': 256,
    'causal_downsampling': False, 'ff_expansion_factor': 4, 'self_attention_model': 'rel_pos', 'n_heads': 4,
    'att_context_size': [-1, -1], 'att_context_style': 'regular', 'xscaling': True, 'untie_biases': True,
    'pos_emb_max_len': 5000, 'conv_kernel_size': 9, 'conv_norm_type': 'batch_norm', 'conv_context_size': None,
    'dropout': 0, 'dropout_pre_encoder': 0, 'dropout_emb': 0.0, 'dropout_att': 0,
}  # fmt: skip
BUCKETING = {
    'batch_size': None, 'use_bucketing': True, 'use_multimodal_sampling': True, 'measure_total_length': True,
    'batch_tokens': 96, 'max_tokens': 80, 'bucket_duration_bins': [32, 64, 80], 'num_buckets': 3,
    'bucket_buffer_size': 5000,
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    # NeMo 3.0
    'salm': {},
    # the generation of 2025-09: a Conformer as adapter, buckets in seconds
    'salm_2025_09': {
        'model.perception.modality_adapter': CONFORMER_ADAPTER,
        'model.perception.output_dim': None,
        'model.prompt_format': 'llama2',
        'data.train_ds.batch_size': None,
        'data.train_ds.batch_duration': 10,
        'data.train_ds.bucket_duration_bins': [2.0, 4.0, 8.0],
        'data.train_ds.use_bucketing': True,
        'data.train_ds.num_buckets': 3,
        'data.train_ds.bucket_buffer_size': 5000,
    },
    'bucketing': {f'data.train_ds.{key}': value for key, value in BUCKETING.items()},
    'lora': {
        'model.lora': {
            'task_type': 'CAUSAL_LM', 'r': 4, 'lora_alpha': 8, 'lora_dropout': 0.01,
            'target_modules': ['q_proj', 'v_proj'],
        },
        'trainer.accumulate_grad_batches': 2,
        'trainer.limit_train_batches': 2,
    },
    # fine-tuning of Canary-Qwen: model parallel, LoRA, the encoder trained as well
    'canary_qwen': {
        'model.lora': {
            'task_type': 'CAUSAL_LM', 'r': 4, 'lora_alpha': 8, 'lora_dropout': 0.01,
            'target_modules': ['q_proj', 'v_proj'],
        },
        'model.prompt_format': 'qwen',
        'model.freeze_params': ['^llm\\..+$', '^embed_tokens\\..+$'],
        'model.perception.spec_augment': {
            '_target_': 'nemo.collections.asr.modules.SpectrogramAugmentation', 'freq_masks': 2, 'time_masks': 2,
            'freq_width': 10, 'time_width': 5,
        },
        'trainer.strategy': {
            '_target_': 'lightning.pytorch.strategies.ModelParallelStrategy', 'tensor_parallel_size': 1,
            'data_parallel_size': 1,
        },
        'trainer.precision': 'bf16-true',
    },
}  # fmt: skip


def parts(folder: Path) -> dict[str, str]:
    """A tiny LLM, a tiny ASR `.nemo` and a manifest of lhotse's cuts; the values that the YAML wants."""
    from nemo_vtb.testing import tiny_corpus, tiny_llm

    corpus = tiny_corpus(folder / 'corpus', 4)
    cuts = folder / 'corpus' / 'cuts.jsonl'
    with cuts.open('w', encoding='utf-8') as stream:
        for number, path in enumerate(sorted((corpus.folder / 'wav').glob('train-asr_ast-*.wav'))):
            stream.write(json.dumps(cut(f'cut-{number}', path)) + '\n')
    return {
        'llm': str(tiny_llm(folder / 'llm', 'qwen3')),
        'asr': str(tiny_asr(folder / 'tiny-canary.nemo')),
        'cuts': str(cuts),
    }


def cut(name: str, path: Path) -> dict[str, Any]:
    """One line of a manifest of lhotse's cuts: a `MonoCut` of a whole file, with its transcript."""
    import soundfile

    samples = soundfile.info(path).frames
    return {
        'id': name, 'start': 0, 'duration': samples / 16000, 'channel': 0, 'type': 'MonoCut',
        'supervisions': [{
            'id': name, 'recording_id': name, 'start': 0, 'duration': samples / 16000, 'channel': 0,
            'text': f'this is number {name[-1]}', 'language': 'en',
        }],
        'recording': {
            'id': name, 'sources': [{'type': 'file', 'channels': [0], 'source': str(path)}], 'sampling_rate': 16000,
            'num_samples': samples, 'duration': samples / 16000, 'channel_ids': [0],
        },
    }  # fmt: skip


def tiny_asr(path: Path) -> Path:
    """A NeMo CTC model with the encoder that a SALM begins with."""
    from nemo.collections.asr.models import EncDecCTCModel

    from nemo_vtb.testing import tiny_perception_cfg

    perception = tiny_perception_cfg(d_model=32)
    decoder = {
        '_target_': 'nemo.collections.asr.modules.ConvASRDecoder', 'feat_in': 32, 'num_classes': 3,
        'vocabulary': [' ', 'a', 'b'],
    }  # fmt: skip
    model = EncDecCTCModel(
        OmegaConf.create(
            {
                'sample_rate': 16000, 'labels': [' ', 'a', 'b'], 'preprocessor': perception['preprocessor'],
                'encoder': perception['encoder'], 'decoder': decoder, 'optim': {'name': 'adamw', 'lr': 0.001},
            }
        )
    )  # fmt: skip
    model.save_to(path)
    return path


def salm_config(values: Mapping[str, str], runs: Path, changes: Mapping[str, Any]) -> Any:
    """One form of the YAML, as Hydra would compose it."""
    cfg = OmegaConf.create(SALM.format(**values, runs=runs, perception=PERCEPTION))
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    OmegaConf.set_struct(cfg, True)
    return cfg
