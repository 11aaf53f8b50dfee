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
"""NeMo's own lhotse loader in front of our packed rows, to compare what each of them delivers.

    python benchmarks/study/nemo_loader.py [arguments of examples/speechllm_joint_sft.py]

One mini-batch of NeMo's sampler becomes one row, so that a row may be shorter or longer than `max_tokens`. NeMo draws
by example: an entry's weight is the token share that was requested of it. It neither holds the shares of tokens nor
goes on where a run stopped; the ledger shows the first, and a resumed run begins the data anew.
"""

import nemo_vtb

if __name__ == '__main__':
    nemo_vtb.start_script(nemo_vtb.TrainConfig)

import logging
import re
import runpy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from nemo_vtb.config.schema import DataSettings
from nemo_vtb.constants import IGNORE_INDEX
from nemo_vtb.data.collate import Collator, PackedRow, PackItem, pack_row
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn
from nemo_vtb.data.datamodule import RowCounter, VtbDataModule
from nemo_vtb.data.faults import Reason, audio_fault
from nemo_vtb.data.index import FittedSource
from nemo_vtb.data.ledger import Ledger, SourceAccount
from nemo_vtb.data.sampler import BatchPlan
from nemo_vtb.errors import VtbConfigError, VtbDataError

logger = logging.getLogger(__name__)

_TYPES = ('multimodal_conversation', 'share_gpt')
# what NeMo's loader is told where train_ds does not say it
_DEFAULTS = {
    'shuffle': True,
    'use_multimodal_sampling': True,
    'measure_total_length': True,
    'use_bucketing': False,
    'token_equivalent_duration': 0.08,
    'force_map_dataset': True,  # the sampler in the main process, else every loader process repeats the data
    'shuffle_buffer_size': 500,
    'shard_seed': 0,
}


class NemoLedger(RowCounter):
    """Counts what was trained on, where there is no plan, and writes `ledger.json`; it cannot resume the data.

    Args:
        folder: Where the ledger goes; None is the folder of the trainer's logger.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder, self._rows = folder, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count, or go on where a checkpoint was written."""
        self.folder = self.folder or trainer.log_dir or trainer.default_root_dir
        self._writes = trainer.is_global_zero
        loader = trainer.train_dataloader
        self.attach(loader)
        if loader.saved is not None:
            logger.warning('NeMo\'s loader cannot go on where a run stopped: its data begins anew.')
            self.ledger.load_state_dict(loader.saved)

    def attach(self, loader: 'NemoLoader') -> None:
        """Count the rows of a loader."""
        settings, self._sample_rate = loader.settings, loader.settings.sample_rate
        pairs = zip(loader.sources, loader.shares, strict=True)
        accounts = [SourceAccount(s.name, s.kind, share, len(s)) for s, share in pairs]
        self.ledger: Ledger = Ledger(accounts, settings.max_tokens, settings.unit)
        self._each = loader.batch.rows_per_rank

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: PackedRow, batch_idx: int
    ) -> None:
        """Count a row of this rank."""
        self.consume(batch)

    def consume(self, row: PackedRow) -> None:
        """Count a row that was trained on."""
        for source, tokens, supervised, seconds in _amounts(row, self._sample_rate):
            self.ledger.add(source, 1, tokens, supervised, seconds)
        for fault in row.faults:
            self.ledger.skip(fault['source'], fault['reason'])
        self._rows += 1
        if self._rows == self._each:
            self.ledger.close_batch(self._rows)
            self._rows = 0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the ledger."""
        if self._writes:
            self.ledger.save(Path(self.folder or '.') / 'ledger.json')
            self.ledger.plot(Path(self.folder or '.') / 'ledger.png')

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the ledger into a checkpoint; NeMo's sampler has no state that could be restored at once."""
        if self.ledger is not None:
            checkpoint[NemoDataModule.__qualname__] = self.ledger.to_json()


class NemoDataModule(VtbDataModule):
    """Draws the training rows by NeMo's loader; all else is as in `VtbDataModule`."""

    saved: dict[str, Any] | None = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the ledger of a checkpoint."""
        self.saved = state_dict

    def train_dataloader(self) -> 'NemoLoader':  # type: ignore[override]
        """Endless rows of this rank."""
        self.setup('fit')
        batch = BatchPlan.of(self.trainer, self.settings.rows_per_batch, self.dims.data_size)
        loader = NemoLoader(self, batch)
        loader.saved = self.saved
        return loader


class NemoLoader:
    """Endless packed rows from NeMo's loader; `trainer.max_steps` ends the run.

    Args:
        data: Sources, their shares, and who renders.
        batch: The global batch.

    Raises:
        VtbConfigError: A source is of a type that NeMo does not read as conversations.
    """

    def __init__(self, data: NemoDataModule, batch: BatchPlan) -> None:
        self.sources, self.shares, self.settings = data.sources, data.plan.shares, data.settings
        self.dims, self.collator, self.batch = data.dims, data.collator, batch
        self.saved: dict[str, Any] | None = None
        self.config = _nemo_config(self.sources, self.shares, self.settings)

    def __iter__(self) -> Iterator[PackedRow]:
        from nemo.collections.common.data.lhotse import get_lhotse_dataloader_from_config
        from nemo.collections.common.tokenizers import AutoTokenizer
        from omegaconf import OmegaConf

        # one of its own, since NeMo adds tokens to it
        tokenizer = AutoTokenizer(self.collator.renderer.tokenizer.name_or_path, use_fast=True)
        loader = get_lhotse_dataloader_from_config(
            OmegaConf.create(self.config),
            global_rank=self.dims.data_rank,
            world_size=self.dims.data_size,
            dataset=_Rows(self.collator, self.sources),
            tokenizer=tokenizer,
        )
        for index, batch in enumerate(loader):
            yield replace(batch, index=index)


class _Rows(torch.utils.data.Dataset):
    """lhotse's dataset: a mini-batch of NeMo's conversations -> one packed row."""

    def __init__(self, collator: Collator, sources: Sequence[FittedSource]) -> None:
        self.collator = collator
        self.kinds = {source.name: source.kind for source in sources}

    def __getitem__(self, conversations: Any) -> PackedRow:
        items, faults = [], []
        for conversation in conversations:
            source = conversation.vtb_source
            try:
                items.append(self._item(conversation, source))
            except VtbDataError as error:
                faults.append({'source': source, 'id': conversation.id, 'reason': str(error.reason)})
        return replace(pack_row(items), faults=faults)

    def _item(self, conversation: Any, source: str) -> PackItem:
        turns: list[Turn] = []
        clips: list[np.ndarray] = []
        for turn in conversation.turns:
            if hasattr(turn, 'cut'):
                clips.append(self._clip(turn.cut))
                part: Text | Audio = Audio(turn.cut.id, turn.cut.duration)
            else:
                part = Text(turn.value)
            if turns and turns[-1].role == turn.role:
                turns[-1] = Turn(turn.role, (*turns[-1].parts, part))
            else:
                turns.append(Turn(turn.role, (part,)))
        # NeMo's endless manifests number their rounds in the id
        id_ = re.sub(r'_repeat\d+$', '', conversation.id)
        ours = Conversation(id_, tuple(turns), self.kinds[source], source)
        frames = [self.collator.frame_counter(len(clip)) for clip in clips]
        return PackItem(self.collator.renderer.render(ours), clips, frames, ours.id, ours.kind, source)

    def _clip(self, cut: Any) -> np.ndarray:
        from lhotse.audio.utils import AudioLoadingError, DurationMismatchError

        try:
            samples = cut.resample(self.collator.sample_rate).load_audio()  # (channels, S)
        except (AudioLoadingError, DurationMismatchError) as error:
            raise audio_fault(
                Reason.AUDIO_UNREADABLE, field='audio', got=' '.join(str(error).split())[:200]
            ) from error
        return np.ascontiguousarray(samples.mean(axis=0), dtype=np.float32)


def _amounts(row: PackedRow, sample_rate: int) -> Iterator[tuple[str, int, int, float]]:
    """Source, tokens, supervised tokens and seconds of audio of each conversation."""
    ends = row.cu_seqlens.tolist()
    begins = row.audio_positions[row.frame_lens.cumsum(0) - row.frame_lens]  # (A,) first frame of each clip
    for source, start, end in zip(row.sources, ends, ends[1:], strict=False):
        supervised = int((row.labels[start:end] != IGNORE_INDEX).sum())
        samples = int(row.audio_lens[(begins >= start) & (begins < end)].sum())
        yield source, end - start, supervised, samples / sample_rate


def _nemo_config(sources: Sequence[FittedSource], shares: Sequence[float], settings: DataSettings) -> dict[str, Any]:
    """The user's `train_ds` with what is missing, and entries whose weights are the shares that were asked."""
    entries = []
    for number, (source, share) in enumerate(zip(sources, shares, strict=True)):
        spec = source.index.spec
        if spec.type not in _TYPES:
            raise VtbConfigError(
                'NeMo does not read this type as conversations.',
                field=f'data.train_ds.input_cfg[{number}].type',
                got=spec.type,
                allowed=', '.join(_TYPES),
                remedy='nemo_vtb.data.datamodule.VtbDataModule reads it',
            )
        if share > 0:
            tars = {'tarred_audio_filepaths': list(spec.tars)} if spec.tars else {}
            entry = {'type': spec.type, 'manifest_filepath': list(spec.files), 'weight': share, **tars}
            entries.append(entry | {'tags': {'vtb_source': source.name}})
    own = {key: value for key, value in settings.train_ds.items() if key != 'reweight_temperature'}
    fixed = {
        'input_cfg': entries,
        'sample_rate': settings.sample_rate,
        'seed': settings.seed,
        'num_workers': settings.num_workers,
    }
    config = _DEFAULTS | {'prompt_format': 'llama3', 'audio_locator_tag': '<|audioplaceholder|>'} | own | fixed
    if not {'batch_size', 'batch_tokens'} & own.keys():
        config['batch_tokens'] = settings.max_tokens
    return config


def main() -> None:
    """`examples/speechllm_joint_sft.py` with this loader: the same arguments, the same files."""
    build = nemo_vtb.build_trainer
    nemo_vtb.build_trainer = lambda cfg, callbacks: build(cfg, [*callbacks, NemoLedger()])
    nemo_vtb.VtbDataModule = NemoDataModule
    example = Path(__file__).resolve().parents[2] / 'examples' / 'speechllm_joint_sft.py'
    runpy.run_path(str(example), run_name='__main__')


if __name__ == '__main__':
    main()
