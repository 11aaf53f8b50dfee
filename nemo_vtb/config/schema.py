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
"""The keys of every configuration: training, evaluation, generation, export.

These dataclasses are the only list of keys. They stand here and not in `conf/`, so that an installed package checks
the same way as a checkout; a test composes every file of `conf/` against them. The factory's are in
`factory/settings.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_vtb.config.keys import NO_DEFAULT, Key, key, section_of
from nemo_vtb.constants import KINDS, SAMPLE_RATE
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.io import cache_dir

SOURCE_TYPES = (
    'multimodal_conversation',
    'lhotse_as_conversation',
    'share_gpt',
    'sqa_as_conversation',
    'nemo',
    'nemo_tarred',
    'nemo_sft_jsonl',
    'lhotse',
    'lhotse_shar',
    'openai_messages',
    'parquet',
    's2s_as_conversation',
    'share_gpt_webdataset',
    'txt',
    'txt_jsonl',
    'txt_pair',
)
"""The `type` of an `input_cfg` entry, by NeMo's names: `nemo_vtb.data.readers` has a reader for each."""

_DUPLEX = 'speech that overlaps is not trained: write the cuts with one supervision for each turn, s2s_as_conversation'
UNREAD_TYPES = {
    'lhotse_magpietts_data_as_continuation': 'spoken answers are not trained: name the cuts as lhotse_as_conversation',
    'multi_speaker_simulator': 'write the mixtures out as recordings with a manifest of type nemo',
    'nemo_tarred_to_duplex': 'it adds silent answers for duplex models: name the same files as nemo_tarred',
    's2s_duplex_overlap_as_s2s_duplex': _DUPLEX,
    's2s_duplex_reverse_role': _DUPLEX,
}
"""NeMo's types that are refused by name -> what to do instead."""

NEMO_ENTRY_KEYS = (
    'language', 'source_language', 'target_language', 'questions_language', 'sampling_rate', 'audio_locator_tag',
    'token_equivalent_duration', 'audio_prompt_mapping', 'shuffle',
    'shuffle_shards', 'shard_seed', 'slice_length', 'metadata_only', 'force_finite', 'force_map_dataset',
    'force_iterable_dataset', 'max_open_streams', 'skip_missing_manifest_entries', 'tarred_random_access', 'indexed',
)  # fmt: skip
"""Keys of NeMo's entries that its own loader reads and the token budget does not need."""


REFUSED_LOADER_KEYS = {
    'channel_selector': None, 'clipping_enabled': False, 'compression_enabled': False, 'concatenate_samples': False,
    'cut_into_windows_duration': None, 'cut_text_into_windows_tokens': None, 'lowpass_enabled': False,
    'multi_config': False, 'noise_path': None, 'pad_min_duration': None, 'perturb_speed': False, 'rir_enabled': False,
    'truncate_duration': None,
}  # fmt: skip
"""Keys of NeMo's loader that change the data -> the value that does nothing: refused where nobody reads them."""


@dataclass(frozen=True, kw_only=True)
class ClassKeys:
    """A block with the arguments of another class, known by its signature."""


# ---- data


@dataclass(frozen=True, kw_only=True)
class EntryKeys:
    """One source: an entry of NeMo's `input_cfg`."""

    type: str = key(
        NO_DEFAULT, "NeMo's name of the format; `group` holds an input_cfg of its own",
        choices=(*SOURCE_TYPES, 'group'), refused=UNREAD_TYPES,
    )  # fmt: skip
    kind: str | None = key(None, 'Kind whose share it draws on; null: of its first conversation', choices=KINDS)
    source: str | None = key(None, "Name in logs and in the ledger; null: the manifest's name")
    weight: float | None = key(1.0, 'Share within its kind, relative to the others', low=0.0)
    max_repeats: int | None = key(None, 'Most passes over the source; null: no limit', unit='passes', low=1)
    manifest_filepath: Any = key(NO_DEFAULT, 'JSON lines', unit='path, pattern or list')
    tarred_audio_filepaths: Any = key(None, 'Archives with the recordings, one for each manifest', unit='as above')
    cuts_path: Any = key(None, "A manifest of lhotse's cuts", unit='as above')
    shar_path: Any = key(None, "lhotse's Shar shards", unit='folder, list or mapping')
    audio_root: str | None = key(None, 'Where relative paths of recordings begin; null: beside the manifest')
    audio_placeholders: Any = key(None, 'share_gpt: what stands for a recording', unit='text or list')
    paths: Any = key(None, "NeMo's name of manifest_filepath for txt, txt_jsonl, nemo_sft_jsonl", unit='as above')
    source_paths: Any = key(None, 'txt_pair: texts of the user, one on each line', unit='as above')
    target_paths: Any = key(None, 'txt_pair: the answers, line by line', unit='as above')
    questions_path: str | None = key(None, 'txt_pair: instructions, one of which stands before each text')
    data_dir: str | None = key(None, 'share_gpt_webdataset: folder of the shards')
    text_field: str | None = key('text', 'Field of an ASR manifest with the transcript')
    lang_field: str | None = key('lang', 'Field of an ASR manifest with the language')
    pnc: bool | None = key(
        None, 'false: transcripts are learnt without punctuation and capitalization; null: as they are'
    )
    audio_field: str | None = key('audio', 'parquet: column of the recordings')
    duration_field: str | None = key('duration', 'parquet: column of their durations')
    input_roles: Any = key(None, 's2s_as_conversation: speakers that are heard; null: user, User', unit='list')
    output_roles: Any = key(
        None, 's2s_as_conversation: speakers whose text is learnt; null: assistant, agent and capitalized', unit='list'
    )
    strip_timestamp_tokens: bool = key(True, 's2s_as_conversation: whether tokens as <|3|> are taken out of the text')
    durations: str | None = key(
        None, 'Whether recordings are opened to count frames; null: as data.durations', choices=('probe', 'trust')
    )
    system_prompt: str | None = key(None, 'System prompt for conversations without one')
    context: str | None = key(None, 'Text before a first turn that begins with speech')
    prompt: Any = key(
        None, 'Instructions for ASR manifests, with {source_lang}, {target_lang} and {style}', unit='text or list'
    )
    tags: Mapping[str, Any] | None = key(None, "Where NeMo has system_prompt and context")
    reweight_temperature: Any = key(None, 'group: weights inside it are raised to this power', unit='number or list')
    input_cfg: 'list[EntryKeys] | None' = key(None, 'group: its sources', more='entry')


@dataclass(frozen=True, kw_only=True)
class LoaderKeys:
    """What is read of a loader section. Batch sizes and shuffling of NeMo's are replaced by the token budget."""

    input_cfg: list[EntryKeys] | str | None = key(NO_DEFAULT, 'Sources, or a YAML file with them', more='entry')
    sample_rate: int = key(SAMPLE_RATE, 'Rate of all recordings after loading', unit='Hz', choices=(SAMPLE_RATE,))
    seed: Any = key(42, 'Seed of the order of the data')
    text_field: str | None = key(None, 'Field of an ASR manifest with the transcript, for entries that name none')
    lang_field: str | None = key(None, 'Field of an ASR manifest with the language, for entries that name none')
    manifest_filepath: Any = key(None, 'NeMo manifests, instead of an input_cfg', unit='path, pattern or list')
    tarred_audio_filepaths: Any = key(None, 'Archives with their recordings', unit='as above')
    cuts_path: Any = key(None, "A manifest of lhotse's cuts, instead of an input_cfg", unit='as above')
    shar_path: Any = key(None, "lhotse's Shar shards, instead of an input_cfg", unit='folder, list or mapping')
    min_duration: float | None = key(None, 'Filter: least audio of a conversation with recordings', unit='s')
    max_duration: float | None = key(None, 'Filter: most audio of a conversation with recordings', unit='s')
    min_tps: float | None = key(None, 'Filter: least supervised tokens for a second of audio', unit='tokens/s')
    max_tps: Any = key(None, 'Filter: most supervised tokens for a second of audio', unit='tokens/s')
    min_tokens: int | None = key(None, 'Filter: least length of a conversation', unit='tokens')
    max_tokens: int | None = key(None, 'Filter: most length of a conversation', unit='tokens')
    min_tpt: float | None = key(None, 'Filter: least supervised tokens for another one, text only', unit='ratio')
    max_tpt: Any = key(None, 'Filter: most supervised tokens for another one, text only', unit='ratio')
    max_cer: float | None = key(None, 'Filter: highest `cer` that a line notes', unit='share')
    min_context_speaker_similarity: float | None = key(None, 'Filter: least value that a line notes')
    keep: str | None = key('pass', 'Filter: the `validation_status` that stays, of lines that note one')
    num_workers: int | None = key(2, 'Loader processes of each rank', unit='processes', low=0)
    reweight_temperature: Any = key(
        None, 'Weights of each level of groups are raised to this power', unit='number or list'
    )


@dataclass(frozen=True, kw_only=True)
class TrainLoaderKeys(LoaderKeys):
    """The loader section of the training data: lhotse's augmentations too, with NeMo's defaults."""

    perturb_speed: bool | None = key(False, 'Each recording at 1, 0.9 and 1.1 of its speed, in each pass')
    noise_path: Any = key(None, 'Recordings to mix in: a manifest, or a block with one', unit='path or block')
    noise_snr: Any = key((10.0, 20.0), 'Ratio of speech to noise', unit='dB, dB')
    noise_mix_prob: float | None = key(0.5, 'Clips with noise', unit='share', low=0.0, high=1.0)
    lowpass_enabled: bool | None = key(False, 'Narrow the band, by resampling to a lower rate and back')
    lowpass_frequencies_interval: Any = key((3500.0, 8000.0), 'Highest frequency that stays', unit='Hz, Hz')
    lowpass_prob: float | None = key(0.5, 'Clips with a narrow band', unit='share', low=0.0, high=1.0)
    clipping_enabled: bool | None = key(False, 'Saturate loud samples')
    clipping_gain_db: Any = key((0.0, 24.0), 'Gain before saturation, undone after it', unit='dB, dB')
    clipping_normalize: bool | None = key(True, 'Whether the loudest sample is 1 before that gain')
    clipping_oversampling: int | None = key(2, 'Rate while clipping, as a multiple', low=1)
    clipping_prob_hard: float | None = key(0.5, 'Of these, cut off hard', unit='share', low=0.0, high=1.0)
    clipping_prob: float | None = key(0.5, 'Clips that are saturated', unit='share', low=0.0, high=1.0)
    rir_enabled: bool | None = key(False, 'Reverberate by recordings of rooms')
    rir_path: str | None = key(None, "The rooms: a manifest of lhotse's recordings")
    rir_prob: float | None = key(0.5, 'Clips with reverberation', unit='share', low=0.0, high=1.0)
    compression_enabled: bool | None = key(False, 'Pass through a lossy codec')
    compression_prob: float | None = key(0.5, 'Clips that are compressed', unit='share', low=0.0, high=1.0)
    compression_level_interval: Any = key((0.8, 0.99), 'Strength, 1 being the lowest bit rate', unit='0 ... 1')
    compression_codecs: Any = key(('opus',), 'Of opus, mp3, vorbis, gsm', unit='names')
    compression_codec_weights: Any = key(None, 'How often each is taken; null: equally often', unit='numbers')


@dataclass(frozen=True, kw_only=True)
class EvalLoaderKeys(LoaderKeys):
    """A loader section with named sets."""

    datasets: Mapping[str, LoaderKeys] | None = key(None, 'Named sets, each measured by itself', more='loader')


@dataclass(frozen=True, kw_only=True)
class BudgetKeys:
    """Shares of the training tokens."""

    text: float = key(NO_DEFAULT, 'Text-only conversations', unit='share', low=0.0, high=1.0)
    asr_ast: float = key(NO_DEFAULT, 'Recognition and translation', unit='share', low=0.0, high=1.0)
    speech_qa: float = key(NO_DEFAULT, 'Questions about recordings', unit='share', low=0.0, high=1.0)
    mixed_modal: float = key(NO_DEFAULT, 'Chats with spoken and typed parts', unit='share', low=0.0, high=1.0)
    auto: float | None = key(
        None, 'Added to text after each validation under `gate.limit`, until text has 0.5; null: never',
        unit='share', low=0.0, high=0.5,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What the data engine reads from `data`. Shares are counted in `unit`; lengths are tokens."""

    train_ds: Mapping[str, Any] = key({}, 'Training data, as in NeMo', keys=TrainLoaderKeys, more='loader')
    validation_ds: Mapping[str, Any] = key({}, 'Validation data, as in NeMo', keys=EvalLoaderKeys, more='loader')
    test_ds: Mapping[str, Any] = key({}, 'Test data, as in NeMo', keys=EvalLoaderKeys, more='loader')
    budget: Mapping[str, float] | None = key(
        None, 'Share of the training tokens of each kind, sum 1; null: in proportion to what each has', keys=BudgetKeys
    )
    budget_auto: float | None = None
    'The value of `data.budget.auto`.'
    unit: str = key(
        'tokens', 'What shares are counted in: text tokens and audio frames, or supervised text',
        choices=('tokens', 'supervised_tokens'),
    )  # fmt: skip
    sampler: str = key(
        'budget', 'What draws the conversations', choices=('budget',),
        refused={'nemo': "NeMo's loader is there to compare: benchmarks/study/nemo_loader.py, same arguments"},
    )  # fmt: skip
    max_tokens: int = key(4096, 'Length of a packed row', unit='tokens', low=1)
    rows_per_batch: int | None = key(
        None, 'Rows of a global batch; null: data-parallel ranks times trainer.accumulate_grad_batches',
        unit='rows', low=1,
    )  # fmt: skip
    pool_size: int = key(512, 'Conversations that packing chooses from, over all sources', unit='conversations', low=1)
    num_workers: int = key(2, 'Loader processes of each rank', unit='processes', low=0)
    prefetch_factor: int = key(4, 'Rows that each loader process keeps ready', unit='rows')
    seed: int = key(42, 'Seed of the order inside the sources; data.train_ds.seed wins')
    temperature: float = key(1.0, 'Weights inside a kind are raised to this power')
    order: str = key(
        'shuffle', 'How a source is drawn: from all over it, or in blocks of neighbours (a tar shard, or 64 MiB), '
        'so that each file is read front to back',
        choices=('shuffle', 'blocks'),
    )  # fmt: skip
    shuffle_window: int = key(
        1024, 'order blocks: neighbours that are shuffled among one another', unit='conversations', low=1
    )
    overlong: str = key(
        'cut', 'A conversation longer than a row: cut between turns, dropped, or an error',
        choices=('cut', 'drop', 'error'),
    )  # fmt: skip
    on_exhausted: str = key(
        'stop', 'A source has reached max_repeats: stop the run, or drop the source', choices=('stop', 'drop')
    )
    on_duration_mismatch: str = key(
        'quarantine', 'A duration that differs from the file: quarantine it, an error, or a segment from its start',
        choices=('quarantine', 'error', 'segment'),
    )  # fmt: skip
    durations: str = key(
        'probe', 'What gives the frames of a recording when an index is built: its header, or `duration` in the '
        'manifest, which is then checked when the recording is read',
        choices=('probe', 'trust'),
    )  # fmt: skip
    allowed_urls: Any = key(
        (), 'Addresses that manifests may name beside what is in their own store: a store, or a folder in one',
        unit='list',
    )  # fmt: skip
    store_cache: str | None = key(
        None, 'Folder that keeps whole objects of stores, for all processes of a node; null: read by ranges'
    )
    store_cache_gb: float = key(100.0, 'store_cache: most that it takes; the least used goes', unit='GB', low=0.0)
    max_line_bytes: int = key(1 << 21, 'Longest line of a manifest; a longer one is skipped', unit='bytes', low=1)
    max_turns: int = key(1000, 'Most turns of a conversation; one with more is skipped', unit='turns', low=1)
    max_clip_seconds: float = key(
        3600.0, 'Longest clip, judged by the header; with several channels or a high rate the samples at 48 kHz count',
        unit='s', low=0.0,
    )  # fmt: skip
    max_skip_ratio: float = key(0.01, 'Broken lines of a source before the run stops', unit='share', low=0.0, high=1.0)
    max_bad_steps: int = key(
        3, 'Steps in a row that are left out, since loss or gradient is not finite, before the run ends',
        unit='optimizer steps', low=1,
    )  # fmt: skip
    sample_rate: int = key(SAMPLE_RATE, 'Rate at which the encoder reads', unit='Hz', low=1)
    resample: bool = key(True, 'Whether recordings of another rate are resampled, or skipped')
    balance: bool = key(True, 'Whether the rows of a global batch are dealt to the ranks by cost, or in turn')
    refund_batches: int = key(
        32, 'A conversation that fails while it is loaded is compensated for after so many global batches',
        unit='batches', low=1,
    )  # fmt: skip
    plan_ahead: int | None = key(
        None, 'Global batches that one process of the job plans ahead for all ranks; 0: each rank plans for itself, '
        'when it loads; null: 4 if a global batch has 16 rows or more',
        unit='batches', low=0,
    )  # fmt: skip
    index_dir: str | None = key(None, 'Folder of the indexes; null: `index` in the cache')
    index_workers: int = key(
        0, 'Processes that build an index; 0: one for each core if files are large', unit='processes'
    )
    build_index: bool = key(True, 'Whether a missing or outdated index is built, or an error')
    quarantine: str | None = key(None, "File that lists what was skipped; null: the run's quarantine.jsonl")
    allow_changed: bool = key(
        False,
        'Whether a checkpoint may be resumed with other files, shares, template, optimizer, precision or clipping',
    )

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> 'DataSettings':
        """Read the section; keys of NeMo's own loader are not looked at.

        Raises:
            VtbConfigError: A value is not allowed.
        """
        plain: dict[str, Any] = (
            OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)  # type: ignore[assignment]
        )
        own = section_of(cls).keys  # type: ignore[arg-type]
        train = plain.get('train_ds') or {}
        # a loader key in train_ds is where a SALM user has it
        merged = {k: v for k, v in train.items() if k in ('seed', 'sample_rate', 'num_workers') and v is not None}
        merged |= {k: v for k, v in plain.items() if k in own and (v is not None or k not in merged)}
        merged |= {'seed': train['seed']} if isinstance(train.get('seed'), int) else {}
        if not isinstance(merged.get('seed', 0), int):
            del merged['seed']  # NeMo's 'trng' and 'randomized' cannot be repeated: our default seed is taken
        for name in ('train_ds', 'validation_ds', 'test_ds'):
            merged[name] = merged.get(name) or {}
        for name, value in merged.items():
            if isinstance(own[name], Key):
                own[name].check(f'data.{name}', value)  # type: ignore[union-attr]
        budget = merged.get('budget')
        if isinstance(budget, Mapping) and 'auto' in budget:
            merged['budget_auto'] = budget['auto']
            merged['budget'] = {kind: share for kind, share in budget.items() if kind != 'auto'} or None
        settings = cls(**merged)
        auto = settings.budget_auto
        if auto is not None and not 0 < auto <= 0.5:
            raise VtbConfigError(
                'The share of text cannot be raised like this.', field='data.budget.auto', got=auto,
                allowed='null, or above 0 and at most 0.5',
            )  # fmt: skip
        return settings

    @property
    def index_folder(self) -> Path:
        """Where indexes are kept."""
        return Path(self.index_dir) if self.index_dir else cache_dir() / 'index'


# ---- model


@dataclass(frozen=True, kw_only=True)
class PerceptionKeys:
    """Preprocessor, encoder, adapter and projection."""

    target: str | None = key(NO_DEFAULT, "NeMo's class that holds them")
    _target_: str | None = key(NO_DEFAULT, 'As `target`')
    output_dim: int | None = key(None, "Width of the projection's output; null: the LLM's", unit='features', low=1)
    adapter_init: str | None = key(
        'match_embeddings',
        "First weights: projection at the scale of the LLM's embeddings, or torch's own; aligned: adapter from a file",
        choices=('default', 'match_embeddings', 'aligned'),
    )  # fmt: skip
    init_adapter: str | None = key(
        None, 'adapter_init aligned: the file that examples/speechllm_align_adapter.py wrote; it brings its adapter'
    )
    preprocessor: ClassKeys = key(ClassKeys, 'Spectrogram; null: as the encoder was trained', more='preprocessor')
    encoder: ClassKeys = key(ClassKeys, "Changes to the encoder's arguments", more='encoder')
    modality_adapter: ClassKeys = key(ClassKeys, 'The adapter', more='encoder')
    spec_augment: ClassKeys = key(ClassKeys, 'Masks on the spectrogram, in training', more='spec_augment')


@dataclass(frozen=True, kw_only=True)
class LoraKeys:
    """PEFT's LoraConfig; its other fields pass."""

    r: int | None = key(8, 'Rank', unit='dimensions', low=1)
    lora_alpha: float | None = key(8, 'Numerator of the scale lora_alpha / r', low=0.0)
    lora_dropout: float | None = key(0.0, 'Dropout before A', unit='share', low=0.0, high=1.0)
    target_modules: Any = key(None, 'Layers that get LoRA; null: those that PEFT knows of the family', unit='list')
    task_type: str | None = key('CAUSAL_LM', 'What PEFT adapts', choices=('CAUSAL_LM',))


@dataclass(frozen=True, kw_only=True)
class OptimizerKeys:
    """`_target_` and the arguments of that class."""

    lr: float | None = key(NO_DEFAULT, 'Highest learning rate', unit='1/step', low=0.0)
    weight_decay: float | None = key(NO_DEFAULT, 'Decoupled weight decay', unit='1/step, times lr', low=0.0)


@dataclass(frozen=True, kw_only=True)
class SchedulerKeys:
    """`_target_` and the arguments of that class."""

    warmup_steps: int | None = key(NO_DEFAULT, 'Linear warm-up', unit='steps', low=0)
    min_lr: float | None = key(NO_DEFAULT, 'Lowest learning rate', unit='1/step', low=0.0)


@dataclass(frozen=True, kw_only=True)
class RateKeys:
    """Parameters that learn at their own rate."""

    match: str = key(NO_DEFAULT, 'Regular expression of their names')
    factor: float | None = key(NO_DEFAULT, 'Their rate, relative to lr', low=0.0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """SALM's `model` section, and what is ours in it; class attributes are the defaults."""

    pretrained_llm: str | None = key(NO_DEFAULT, 'Name or folder of the LLM, with tokenizer and chat template')
    pretrained_asr: str | None = key(NO_DEFAULT, 'NeMo ASR model (.nemo or name) or Whisper folder with the encoder')
    pretrained_weights: bool = key(True, 'Whether their weights are loaded; false: random ones')
    init_from_checkpoint: str | None = key(None, "SALM's, kept for its files")
    prompt_format: str | None = key(None, "SALM's prompt format; only recorded: the LLM's chat template renders")
    audio_locator_tag: str | None = key(None, 'What stands for a recording in the prompts of `generate`')
    tokenizer_path: str | None = key(None, "Another tokenizer; null: the LLM's")
    template_date: str = key(
        '2024-07-26',
        'The day that a chat template with a date in it says, in training and ever after',
        unit='YYYY-MM-DD',
    )
    trust_remote_code: bool = key(False, "Whether transformers may run code of the LLM's folder")
    encoder_chunk_size_seconds: float | None = key(
        None, 'Longer recordings are encoded in pieces, as in SALM; null: never', unit='s', low=0.0
    )
    frozen_dtype: str = key(
        'auto',
        "Type of the frozen LLM's weights; auto: bfloat16 under bf16-mixed where the device "
        'multiplies it, else that of trainer.precision',
        choices=('auto', 'float32', 'bfloat16'),
    )
    activation_checkpointing: bool = key(
        False,
        "Hugging Face backbone: decoder layers are computed again in the backward pass; Megatron's is `recompute`",
    )
    kernels: str = key(
        'auto', "Hugging Face backbone: liger is Liger's fused norms, rotary embedding, gated activation and loss; "
        "auto takes them on GPUs where it is installed. Megatron's are `trainer.strategy.kernels`",
        choices=('auto', 'liger', 'torch'),
    )  # fmt: skip
    compile_layers: bool = key(
        False, 'Hugging Face backbone: decoder layers are compiled by torch, once for rows of any length'
    )
    freeze_params: list[str] | None = key(None, 'Parameters that are not trained', unit='regular expressions')
    prevent_freeze_params: list[str] | None = key(None, 'Parameters that are trained all the same', unit='as above')
    lr_factors: list[RateKeys] | None = key(None, 'Parameters that learn at a rate of their own')
    loss_chunk: int = key(1024, 'Supervised positions that reach the vocabulary at once', unit='positions', low=1)
    text_anchor: float | None = key(
        0.0, 'Text-only conversations: likelihood counts max(0, 1 - w), KL(LLM without LoRA || model) counts w',
        unit='w', low=0.0,
    )  # fmt: skip
    ctc_weight: float | None = key(
        0.0, 'Aligned adapter that is trained: CTC of recordings whose transcript is known, added so many times',
        unit='w', low=0.0,
    )  # fmt: skip
    perception: PerceptionKeys = key(PerceptionKeys, 'Preprocessor, encoder, adapter and projection')
    lora: LoraKeys = key(LoraKeys, "LoRA on the LLM: the fields of PEFT's LoraConfig", more='lora')
    optimizer: OptimizerKeys = key(OptimizerKeys, '`_target_` and the arguments of that class', more='target')
    lr_scheduler: SchedulerKeys = key(SchedulerKeys, '`_target_` and the arguments of that class', more='target')
    target: str | None = key(None, 'Written by NeMo into saved configurations')
    nemo_version: str | None = key(None, 'Written by NeMo into saved configurations')


# ---- whole configurations


@dataclass(frozen=True, kw_only=True)
class TrainerKeys:
    """Lightning's Trainer; its other arguments pass."""

    max_steps: int = key(-1, 'Length of the run; -1: no end', unit='optimizer steps', low=-1)
    num_nodes: int | None = key(1, 'Nodes', unit='nodes', low=1)
    precision: Any = key(
        '32-true', 'Arithmetic; auto: bf16-mixed where the device multiplies bfloat16, else 32-true',
        unit="Lightning's names, or auto",
    )  # fmt: skip
    accumulate_grad_batches: int | None = key(1, 'Rows of each rank for a step', unit='rows', low=1)
    gradient_clip_val: float | None = key(None, 'Gradients are scaled down to this norm', low=0.0)
    callbacks: Any = key(None, 'Further callbacks')
    watchdog_s: float | None = key(
        1200.0, 'Without any movement for so long, all ranks end with stacks and a table, exit code 124; null: never',
        unit='s', low=1.0,
    )  # fmt: skip
    strategy: Any = key(
        'auto', 'How the ranks work together, see docs/megatron.md', unit='name or block with _target_'
    )


@dataclass(frozen=True, kw_only=True)
class MonitorKeys:
    """The retention monitor, measured at each validation."""

    enabled: bool = key(False, 'Whether it is measured')
    limit: float = key(0.98, 'Least retention: text ability by that of the base LLM', unit='share', low=0.0, high=1.0)
    items: int = key(200, 'Multiple-choice questions of the probe', unit='questions', low=0, high=200)
    min_hearing: float = key(
        0.02,
        'Less of its loss goes with the sound: a warning says that audio is ignored',
        unit='share',
        low=0.0,
        high=1.0,
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """`conf/speechllm_joint_sft.yaml` with one file of each group."""

    name: str | None = key(NO_DEFAULT, 'Name of the run, and of its folder under runs/')
    seed: int | None = key(NO_DEFAULT, 'Seed of weights and of the order of the data', low=0)
    init_from_nemo: str | None = key(None, 'Warm start: weights of a .nemo file, with a fresh optimizer')
    model: ModelConfig = key(ModelConfig, 'The speech LLM')
    data: DataSettings = key(DataSettings, 'Sources, shares and packing')
    trainer: TrainerKeys = key(TrainerKeys, "Arguments of Lightning's Trainer", more='trainer')
    exp_manager: ClassKeys = key(ClassKeys, "NeMo's folder, logs, checkpoints, resuming", more='exp_manager')
    gate: MonitorKeys = key(MonitorKeys, 'The retention monitor: what the LLM keeps of its text ability')


@dataclass(frozen=True, kw_only=True)
class AlignKeys:
    """The aligned adapter and its training, see docs/hearing.md."""

    subsampling_factor: int = key(4, 'Encoder frames per frame that is scored', unit='ratio', low=1)
    hidden: int = key(512, 'Width inside the adapter', unit='features', low=1)
    num_blocks: int = key(3, 'Residual blocks', unit='blocks', low=0)
    kernel_size: int = key(7, 'Frames that a convolution sees, odd', unit='frames', low=1)
    expansion: int = key(3, 'Inner width of a feed-forward layer over `hidden`', unit='ratio', low=1)
    dropout: float = key(0.1, 'Dropout in the adapter', unit='share', low=0.0, high=0.9)
    blank_threshold: float = key(
        0.5, 'Frames whose blank is at least as probable are dropped; 1: all are kept', unit='share', low=0.5, high=1
    )
    init_adapter: str | None = key(
        None, 'Go on from this aligned adapter, with its sizes, on the recordings of this run; null: from nothing',
        unit='path',
    )  # fmt: skip
    passes: int = key(3, 'How often each recording is heard', unit='passes', low=1)
    repeats: dict[str, int] | None = key(
        None, 'How often the recordings of a source are heard in one pass; others once', unit='source: times', low=0
    )
    batch_frames: int = key(1400, 'Frames of a batch, padding included', unit='frames', low=1)
    precision: str = key(
        '32-true', 'Arithmetic; bf16-mixed takes half the time on processors with bf16 instructions',
        choices=('32-true', 'bf16-mixed'),
    )  # fmt: skip
    lr: float = key(1.5e-3, 'Highest learning rate', unit='1/step', low=0.0)
    weight_decay: float = key(0.01, 'Decoupled weight decay', unit='1/step, times lr', low=0.0)
    time_mask: float = key(
        0.7, 'Stretches of up to 0.24 s that are masked, about one a second', unit='share', low=0.0, high=1
    )
    noise: float = key(
        0.35, 'Most noise on the frames, relative to their spread; half of the clips have some', low=0.0
    )
    check_every: int = key(200, 'Between two checkpoints and measurements', unit='steps', low=1)


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """`conf/speechllm_align_adapter.yaml` with one file of the groups `model` and `data`."""

    name: str | None = key(NO_DEFAULT, 'Name of the run, and of its folder under runs/')
    seed: int | None = key(NO_DEFAULT, 'Seed of weights and of the order of the data', low=0)
    output: str | None = key(None, "The adapter's file; null: NAME.safetensors in the run's folder", unit='path')
    model: ModelConfig = key(ModelConfig, 'The LLM and the encoder; nothing else of it is read')
    data: DataSettings = key(DataSettings, 'Recordings with transcripts; shares and packing are not read')
    align: AlignKeys = key(AlignKeys, 'The adapter and its training')


@dataclass(frozen=True, kw_only=True)
class JudgeKeys:
    """A language model that judges answers."""

    url: str | None = key(None, 'Its OpenAI-compatible server, as http://localhost:8000/v1; null: nobody judges')
    model: str | None = key(None, 'Its name there')
    api_key_env: str = key('OPENAI_API_KEY', 'Environment variable with the key of the server')
    structured: str = key(
        'json_schema', 'How the form of a verdict is requested; none for servers that know neither',
        choices=('json_schema', 'json_object', 'none'),
    )  # fmt: skip
    temperature: float | None = key(0.0, 'Sampling temperature; null: not sent, for models that refuse it', low=0)
    max_tokens: int | None = key(
        512, 'Longest verdict; null: not sent, for models that refuse it', unit='tokens', low=1
    )
    concurrency: int = key(8, 'Requests in flight at once', unit='requests', low=1)
    requests_per_minute: int | None = key(None, 'Rate limit; null: none', unit='requests per minute', low=1)
    timeout_s: float = key(60.0, 'How long a verdict may take', unit='s', low=0.1)
    tries: int = key(6, 'How often a request is sent to a server that is busy, slow or broken', unit='times', low=1)
    invalid_tries: int = key(
        3, 'How often a verdict is requested until it has the form; then the answer is unjudged', unit='times', low=1
    )


_MODEL = 'runs/quickstart/checkpoints/quickstart.nemo'


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """`conf/eval/speechllm_eval.yaml`"""

    model: str = key(_MODEL, 'The model: a .nemo file', unit='path')
    suite: str = key(
        'speech',
        'What is measured, see docs/evaluation.md (speech, text, instruct, emergent, ladder, all; or a benchmark)',
    )
    data_root: str | None = key(
        None, 'Folder with the data of public benchmarks, in the layouts that they publish', unit='path'
    )
    tasks: tuple[str, ...] = key((), 'Tasks, groups or YAML files of lm-eval; none: those of the package', unit='list')
    include: tuple[str, ...] = key((), 'Folders with YAML tasks of lm-eval of your own', unit='list of paths')
    chat_template: bool = key(True, "Ask lm-eval's questions as user turns of the LLM's chat template", unit='flag')
    data: tuple[str, ...] = key(
        tuple(
            f'asset:demo-corpus/{name}.test.jsonl'
            for name in ('asr_ast', 'speech_qa', 'mixed_modal', 'text', 'text_reference')
        ),
        'Held-out data: JSON lines of conversations, folders (their *.test.jsonl), or asset:NAME[/FILE]', unit='list',
    )  # fmt: skip
    limit: int | None = key(None, 'Most conversations of each source and task; null: all', unit='conversations', low=1)
    batch_size: int = key(8, 'Prompts answered at once', unit='prompts', low=1)
    max_new_tokens: int = key(64, 'Longest answer', unit='tokens', low=1)
    num_beams: int = key(1, 'Beams of the search for an answer; 1: greedy', unit='beams', low=1)
    no_repeat_ngram_size: int = key(0, 'No answer has so many tokens in a row twice; 0: it may', unit='tokens', low=0)
    judge: JudgeKeys = key(JudgeKeys, 'A language model that judges the answers about speech, see docs/evaluation.md')
    examples: bool = key(True, 'Show single questions with their answers, too', unit='flag')
    output: str | None = key(
        None, 'File of the numbers and all answers; null: NAME.eval.jsonl beside the model (JSON lines)', unit='path'
    )
    tensorboard: str | None = key(
        None, "Folder whose TensorBoard shows the numbers, too, as that of the model's run; null: none", unit='path'
    )
    record: bool = key(
        False, 'Write the numbers into the metadata of the .nemo file, too; exports show them in their model card',
        unit='flag',
    )  # fmt: skip
    device: str = key('auto', 'Where it runs: cpu, cuda, cuda:1 ...; auto: the GPU if there is one')


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """`conf/eval/speechllm_generate.yaml`"""

    model: str = key(_MODEL, 'The model: a .nemo file', unit='path')
    audio: tuple[str, ...] = key(
        tuple(f'asset:demo-corpus/wav/command-{name}.wav' for name in ('test-00001', 'test-00002', 'train-00001')),
        'Recordings, any rate, mono or stereo', unit='list of paths or asset:NAME/FILE',
    )  # fmt: skip
    prompt: str = key(
        'Transcribe the speech.',
        'Prompt for each recording; {audio} says where it stands, else at the end. Quote commas: "\'a, b\'"',
        unit='text',
    )  # fmt: skip
    manifest: str | None = key(
        None, 'Instead of recordings: conversations or an ASR manifest, one JSON object per line', unit='path'
    )
    batch_size: int = key(8, 'Prompts answered at once', unit='prompts', low=1)
    max_new_tokens: int = key(64, 'Longest answer', unit='tokens', low=1)
    num_beams: int = key(1, 'Beams of the search for an answer; 1: greedy', unit='beams', low=1)
    no_repeat_ngram_size: int = key(0, 'No answer has so many tokens in a row twice; 0: it may', unit='tokens', low=0)
    use_lora: bool | None = key(
        True, 'false: the untouched LLM answers, for comparison on text-only questions', unit='flag'
    )
    output: str | None = key(None, 'File of the answers, one JSON object per line; null: only the screen', unit='path')
    device: str = key('auto', 'Where it runs: cpu, cuda, cuda:1 ...; auto: the GPU if there is one')


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """`conf/eval/speechllm_export.yaml`"""

    model: str = key(_MODEL, 'The trained model: a .nemo file', unit='path')
    to: str = key(
        'nemo', 'The form; docs/files.md says what each is',
        choices=('nemo', 'salm', 'vllm', 'hf-merged', 'peft', 'asr'),
    )  # fmt: skip
    output: str | None = key(None, 'File or folder; null: beside the model', unit='path')
    overwrite: bool = key(False, 'Replace what stands at `output`', unit='flag')
    check: bool = key(True, 'Compare answers in a process that cannot open the sources of the model', unit='flag')
    asr: str | None = key(None, 'For asr: the ASR model (.nemo) whose decoder is kept', unit='path')
    without_llm: bool = key(False, 'For nemo: a small file that refers to its LLM', unit='flag')
    base_llm: str | None = key(None, 'Folder of the LLM, where the model does not contain it', unit='path')
    prompts: tuple[str, ...] = key(
        (), 'Conversations to prove it on, each without its last answer; none: twelve about synthetic sounds',
        unit='list of multimodal_conversation files',
    )  # fmt: skip
    num_prompts: int = key(2, 'How many of each file', unit='conversations', low=1)
    max_new_tokens: int = key(16, 'Longest answer', unit='tokens', low=1)


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """What `vtb serve` and `vtb web` share; everything that a client may ask for has an upper end."""

    model: str = key(_MODEL, 'The model: a .nemo file, the folder of a run, or a SALM folder', unit='path')
    name: str | None = key(None, 'Name of the model for clients; null: that of the file')
    host: str = key('127.0.0.1', 'Address to listen at; 0.0.0.0: reachable from other machines')
    port: int = key(8000, 'Port to listen at; 0: any free one', low=0, high=65535)
    device: str = key('auto', 'Where it runs: cpu, cuda, cuda:1 ...; auto: the GPU if there is one')
    base_llm: str | None = key(None, 'Folder of the LLM, where the model does not contain it', unit='path')
    max_queue: int = key(64, 'Requests that may wait; further ones are refused', unit='requests', low=0)
    max_body_mb: float = key(32.0, 'Largest request', unit='MB', low=0.001)
    max_recordings: int = key(8, 'Recordings of a request', unit='recordings', low=0)
    max_audio_s: float = key(120.0, 'Recordings of a request together', unit='s', low=0.0)
    max_prompt_tokens: int = key(4096, 'Prompt, audio frames included', unit='tokens', low=1)
    max_new_tokens: int = key(512, 'Longest answer that may be asked for', unit='tokens', low=1)

    @property
    def shown_name(self) -> str:
        """What clients call the model: `name`, or the name of its file."""
        return self.name or Path(self.model).name.removesuffix('.nemo')


@dataclass(frozen=True, kw_only=True)
class ServeConfig(HostConfig):
    """`vtb serve`"""

    api_key_env: str = key('VTB_API_KEY', 'Environment variable with the key that clients must send; unset: none')
    max_batch: int = key(8, 'Answers in the making at once', unit='requests', low=1)
    timeout_s: float = key(120.0, 'From the request to the end of its answer', unit='s', low=0.1)
    drain_s: float = key(60.0, 'Time for running answers after SIGTERM', unit='s', low=0.0)


@dataclass(frozen=True, kw_only=True)
class WebConfig(HostConfig):
    """`vtb web`"""

    port: int = key(7860, 'Port to listen at; 0: any free one', low=0, high=65535)
    auth: str | None = key(None, 'USER:PASSWORD that the page asks for; null: $VTB_WEB_AUTH, or none')
    share: bool = key(False, "A public address through Gradio's servers; needs `auth`", unit='flag')
    examples: str | None = key(
        None, 'Manifest of questions to try; null: held-out ones of the demonstration corpus, if it is there',
        unit='path',
    )  # fmt: skip
    max_pages: int = key(16, 'Open pages whose conversation is kept in memory', unit='pages', low=1)


CONFIGS = {
    'speechllm_joint_sft': TrainConfig,
    'speechllm_align_adapter': AlignConfig,
    'speechllm_eval': EvalConfig,
    'speechllm_generate': GenerateConfig,
    'speechllm_export': ExportConfig,
}
"""Script of `examples/` -> its keys."""
