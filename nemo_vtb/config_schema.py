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
"""The keys that a configuration may have: ours with their types and ranges, NeMo's and Lightning's by their names.

This table is the only list of keys. It stands here and not in `conf/`, so that an installed package checks the same
way as a checkout; a test composes every file of `conf/` against it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nemo_vtb.constants import KINDS


@dataclass(frozen=True, slots=True)
class Key:
    """One value: the types it may have (none given: anything), its range or choices, and whether it may be null."""

    types: tuple[type, ...] = ()
    low: float | None = None
    high: float | None = None
    choices: tuple[object, ...] = ()
    null: bool = True


@dataclass(frozen=True, slots=True)
class Section:
    """A block of known keys. `more` names a provider of further keys in `config.py` (a class's own signature)."""

    keys: Mapping[str, 'Node'] = field(default_factory=dict)
    more: str | None = None


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list whose entries all follow one node; `or_text`: or the path of a YAML file that holds it."""

    item: 'Node'
    or_text: bool = False


@dataclass(frozen=True, slots=True)
class MapOf:
    """A block whose names the user chooses, and whose values all follow one node."""

    item: 'Node'


Node = Key | Section | ListOf | MapOf

ANY = Key()
FLAG = Key((bool,), null=False)
TEXT = Key((str,))
COUNT = Key((int,), low=1)
NOT_NEGATIVE = Key((int,), low=0)
SHARE = Key((float, int), low=0.0, high=1.0)
POSITIVE = Key((float, int), low=0.0)

DATA_TYPES = (
    'multimodal_conversation',
    'lhotse_as_conversation',
    'share_gpt',
    'share_gpt_webdataset',
    'sqa_as_conversation',
    's2s_as_conversation',
    'nemo',
    'nemo_tarred',
    'nemo_sft_jsonl',
    'txt',
    'txt_jsonl',
    'txt_pair',
    'lhotse',
    'lhotse_shar',
    'parquet',
    'group',
)
"""NeMo's names for the `type` of an `input_cfg` entry."""

_ENTRY_KEYS: dict[str, Node] = {
    'type': Key((str,), choices=DATA_TYPES, null=False),
    'kind': Key((str,), choices=KINDS),
    'source': TEXT,
    'weight': POSITIVE,
    'max_repeats': COUNT,
    'manifest_filepath': ANY,
    'tarred_audio_filepaths': ANY,
    'cuts_path': ANY,
    'shar_path': ANY,
    'paths': ANY,
    'language': TEXT,
    'audio_locator_tag': TEXT,
    'token_equivalent_duration': POSITIVE,
    'audio_root': TEXT,
    'audio_placeholders': ANY,
    'audio_prompt_mapping': ANY,
    'text_field': TEXT,
    'lang_field': TEXT,
    'system_prompt': TEXT,
    'context': TEXT,
    'prompt': TEXT,
    'tags': MapOf(ANY),
    'shuffle': FLAG,
    'shuffle_shards': FLAG,
    'shard_seed': ANY,
    'slice_length': COUNT,
    'metadata_only': FLAG,
    'force_finite': FLAG,
    'force_map_dataset': FLAG,
    'force_iterable_dataset': FLAG,
    'max_open_streams': COUNT,
    'skip_missing_manifest_entries': FLAG,
    'tarred_random_access': FLAG,
    'reweight_temperature': ANY,
    'indexed': FLAG,
}
ENTRY = Section(_ENTRY_KEYS)
# groups nest: an entry of type `group` holds an input_cfg of its own
_ENTRY_KEYS['input_cfg'] = ListOf(ENTRY)

LOADER_KEYS: dict[str, Node] = {
    'input_cfg': ListOf(ENTRY, or_text=True),
    'sample_rate': Key((int,), choices=(16000,), null=False),
    'seed': ANY,
    'num_workers': NOT_NEGATIVE,
    'reweight_temperature': ANY,
}

_MODEL_KEYS: dict[str, Node] = {
    'pretrained_llm': TEXT,
    'pretrained_asr': TEXT,
    'pretrained_weights': FLAG,
    'init_from_checkpoint': TEXT,
    'prompt_format': TEXT,
    'audio_locator_tag': TEXT,
    'tokenizer_path': TEXT,
    'trust_remote_code': FLAG,
    'encoder_chunk_size_seconds': POSITIVE,
    'freeze_params': ListOf(Key((str,), null=False)),
    'prevent_freeze_params': ListOf(Key((str,), null=False)),
    'lr_factors': ListOf(Section({'match': Key((str,), null=False), 'factor': POSITIVE})),
    'loss_chunk': COUNT,
    'text_anchor': POSITIVE,
    'perception': Section(
        {
            'target': TEXT,
            '_target_': TEXT,
            'output_dim': COUNT,
            'adapter_init': Key((str,), choices=('default', 'match_embeddings')),
            'preprocessor': Section(more='preprocessor'),
            'encoder': Section(more='encoder'),
            'modality_adapter': Section(more='encoder'),
            'spec_augment': Section(more='spec_augment'),
        }
    ),
    'lora': Section(
        {
            'r': COUNT,
            'lora_alpha': POSITIVE,
            'lora_dropout': SHARE,
            'target_modules': ANY,
            'task_type': Key((str,), choices=('CAUSAL_LM',)),
        },
        more='lora',
    ),
    'optimizer': Section({'lr': POSITIVE, 'weight_decay': POSITIVE}, more='target'),
    'lr_scheduler': Section({'warmup_steps': NOT_NEGATIVE, 'min_lr': POSITIVE}, more='target'),
    # NeMo writes these two into every saved configuration
    'target': TEXT,
    'nemo_version': TEXT,
}

_DATA_KEYS: dict[str, Node] = {
    'train_ds': Section(LOADER_KEYS, more='loader'),
    'validation_ds': Section(
        LOADER_KEYS | {'datasets': MapOf(Section(LOADER_KEYS, more='loader'))},
        more='loader',
    ),
    'test_ds': Section(
        LOADER_KEYS | {'datasets': MapOf(Section(LOADER_KEYS, more='loader'))},
        more='loader',
    ),
    'budget': Section(
        {kind: Key((float, int), low=0.0, high=1.0, null=False) for kind in KINDS}
        | {'auto': Key((float, int), low=0.0, high=0.5)}
    ),
    'max_tokens': Key((int,), low=1, null=False),
    'rows_per_batch': COUNT,
    'num_workers': NOT_NEGATIVE,
    'pool_size': Key((int,), low=1, null=False),
    'max_skip_ratio': Key((float, int), low=0.0, high=1.0, null=False),
    'overlong': Key((str,), choices=('cut', 'drop', 'error'), null=False),
}

SCHEMA = Section(
    {
        'name': TEXT,
        'seed': NOT_NEGATIVE,
        'init_from_nemo': TEXT,
        'model': Section(_MODEL_KEYS),
        'data': Section(_DATA_KEYS, more='data'),
        'trainer': Section(
            {
                'max_steps': Key((int,), low=-1, null=False),
                'num_nodes': COUNT,
                'accumulate_grad_batches': COUNT,
                'gradient_clip_val': POSITIVE,
                'callbacks': ANY,
                'strategy': ANY,
            },
            more='trainer',
        ),
        'exp_manager': Section(more='exp_manager'),
        'gate': Section(
            {
                'enabled': FLAG,
                'limit': Key((float, int), low=0.0, high=1.0, null=False),
                'items': Key((int,), low=0, high=200, null=False),
                'min_hearing': Key((float, int), low=0.0, high=1.0, null=False),
            }
        ),
    }
)
"""The whole configuration of a training; the other scripts have small tables of their own."""
