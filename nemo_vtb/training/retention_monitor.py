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
"""The retention monitor: at each validation, what the model kept of its text ability, and whether it uses the audio.

Three small fixed probes, all on rows that are packed as in training, so that every backbone and strategy runs them;
retention is that of `nemo_vtb/training/retention.py`:

| logged | what it is |
|---|---|
| `retention/choices` | probability of the right one of four choices by that of the base LLM, mean of five parts |
| `retention/chats` | perplexity of the base LLM on text-only conversations by ours, the least of the validation sets |
| `retention` | the smaller of the two |
| `hearing` | share of the loss on rows with audio that goes when the audio is there (0: audio ignored) |
| `gated_loss` | loss of the speech kinds, with a penalty as long as `retention` is under the limit |
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.resources import files
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from nemo_vtb.config.schema import MonitorKeys
from nemo_vtb.constants import KINDS
from nemo_vtb.data.collate import Collator, PackedRow, PackItem, fill_rows, pack_row
from nemo_vtb.data.conversation import Conversation, Text, Turn
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.io import parse_json_lines
from nemo_vtb.parallel.dims import ParallelDims
from nemo_vtb.training.retention import kept_of_chats, kept_of_tasks, retention
from nemo_vtb.training.run_state import RunState

MONITOR_METRICS = ('gated_loss', 'hearing', 'retention', 'retention/accuracy', 'retention/chats', 'retention/choices')
"""What the monitor logs; `gated_loss` is made for `exp_manager.checkpoint_callback_params.monitor`."""

PENALTY = 100.0
"""Added to `gated_loss` under the limit: more than any loss of a token, so that what forgot is never the best."""

_TEXT = KINDS.index('text')
_ROW_TOKENS = 1024
_SILENT_ROWS = 4


class RetentionMonitor(pl.Callback):
    """Measures retention and hearing at each validation; the base LLM is scored once, at the first.

    Args:
        limit: Least retention [share].
        items: Multiple-choice items, taken evenly from the 200 of the text suite; 0 leaves that probe out.
        min_hearing: Below it a warning says that the audio is ignored [share].

    Raises:
        VtbConfigError: A number is out of range.
    """

    def __init__(
        self,
        limit: float = MonitorKeys.limit,
        items: int = MonitorKeys.items,
        min_hearing: float = MonitorKeys.min_hearing,
    ) -> None:
        if not 0 < limit <= 1:
            raise VtbConfigError('A limit is a share.', field='gate.limit', got=limit, allowed='above 0, at most 1')
        self.limit, self.min_hearing = limit, min_hearing
        every = retention_items()
        # evenly over the parts, which stand one behind the other
        self.items = [every[i * len(every) // items] for i in range(min(items, len(every)))] if items else []
        self.values: dict[str, float] = {}
        self._base_choices: dict[str, float] | None = None
        self._base_chats: list[list[float]] | None = None
        self._rows: list[list[PackItem]] = []

    # ---- what Lightning calls

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Refuse an LLM whose untouched form is lost.

        Raises:
            VtbConfigError: The LLM itself is trained, without LoRA.
        """
        llm = [p for name, p in pl_module.named_parameters() if name.startswith('llm.')]
        if not pl_module.cfg.get('lora') and any(p.requires_grad for p in llm):
            raise VtbConfigError(
                'Without LoRA there is no untouched LLM to compare with.',
                field='gate.enabled',
                got=True,
                allowed='false, or model.lora, or a frozen LLM',
                remedy='gate.enabled=false exp_manager.checkpoint_callback_params.monitor=val_loss',
            )

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Forget the sums of the last validation."""
        self._rows = self._rows or choice_rows(self.items, Collator(pl_module.renderer, pl_module.frames))
        self._kinds = torch.zeros(2, len(KINDS), dtype=torch.float64)  # sums and targets of ours
        # on text-only conversations of each set: sums and targets of ours, and of the base LLM
        self._chats = torch.zeros(len(trainer.num_val_batches), 4, dtype=torch.float64)
        self._sound = torch.zeros(2, 2, dtype=torch.float64)  # with and without sound: sums and targets

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: PackedRow,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a row; score text-only ones by the base LLM (once), and the first ones with audio without it."""
        if trainer.sanity_checking or not isinstance(outputs, dict) or 'kind_sums' not in outputs:
            return
        sums, counts = outputs['kind_sums'].double().cpu(), outputs['kind_counts'].double().cpu()
        self._kinds += torch.stack([sums, counts])
        chats = self._chats[dataloader_idx]
        chats[:2] += torch.stack([sums[_TEXT], counts[_TEXT]])
        # ranks need not run the LLM equally often: a strategy that shards it gathers it for a validation
        with trainer.precision_plugin.val_step_context():
            if self._base_chats is None and counts[_TEXT]:
                base, targets = pl_module.batch_nll(batch, use_lora=False)
                chats[2:] += torch.stack([base[_TEXT], targets[_TEXT]]).double().cpu()
            if batch_idx < _SILENT_ROWS and len(batch.audios):
                silent, _ = pl_module.batch_nll(_without_sound(batch))
                speech = _speech(torch.stack([sums, silent.double().cpu()]))
                self._sound += torch.stack([speech, _speech(counts).expand(2)], dim=1)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Answer the questions, put the numbers together and log them."""
        if trainer.sanity_checking:
            return
        choices = self._choices(trainer, pl_module) if self._rows else None
        parts = (self._kinds, self._sound, self._chats)
        sums = ParallelDims.of(trainer).sum(torch.cat([part.flatten() for part in parts]))
        kinds, sound, chats = sums[:8].view(2, 4), sums[8:12].view(2, 2), sums[12:].view(-1, 4)
        if self._base_chats is None:
            self._base_chats = chats[:, 2:].tolist()
        self.values = self._numbers(kinds, sound, choices, chats[:, :2].tolist())
        for name, value in self.values.items():
            pl_module.log(name, torch.tensor(value, dtype=torch.float32), prog_bar=name == 'retention')
        # a run of `trainer.validate` changes nothing
        if trainer.state.fn == TrainerFn.FITTING and (state := RunState.of(trainer)) is not None:
            state.on_retention(self.values.get('retention', 1.0), self.limit)

    # ---- for people

    @property
    def problems(self) -> list[str]:
        """Short warnings of the last validation; [] if all is well."""
        found = []
        retention, hearing = self.values.get('retention'), self.values.get('hearing')
        if retention is not None and retention < self.limit:
            found.append(f'retention {100 * retention:.1f} % below limit {100 * self.limit:.0f} %')
        elif retention is not None and retention < (1 + self.limit) / 2:
            found.append(f'retention {100 * retention:.1f} % near limit {100 * self.limit:.0f} %')
        if hearing is not None and hearing < self.min_hearing:
            found.append(f'hearing {100 * hearing:.1f} %: audio ignored')
        return found

    def short(self) -> str:
        """A few words for the progress line; '' before the first validation."""
        if not self.values:
            return ''
        retention = self.values.get('retention')
        return ', '.join(self.problems) or ('' if retention is None else f'retention {100 * retention:.1f} %')

    # ---- parts

    def _choices(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, float]:
        """`_score` of ours; scores the base LLM, too, if that was not done yet."""
        with trainer.precision_plugin.val_step_context():
            if self._base_choices is None:
                self._base_choices = self._score(trainer, pl_module, pl_module.backbone.without_lora())
            return self._score(trainer, pl_module, nullcontext())

    def _score(self, trainer: pl.Trainer, pl_module: Any, llm: AbstractContextManager) -> dict[str, float]:
        """Mean probability of the right choice of each part of the items, and `accuracy` over all."""
        dims = ParallelDims.of(trainer)
        peers, rank = dims.data_size, dims.data_rank
        scores = torch.zeros(len(self.items), 4, dtype=torch.float64)
        with llm:
            for begin in range(0, len(self._rows), peers):
                # a rank without a row of its own repeats the first: all must run the LLM equally often
                own = begin + rank < len(self._rows)
                row = self._rows[begin + rank if own else 0]
                nll = choice_scores(pl_module, row)
                for item, value in zip(row, nll.tolist() if own else [], strict=False):
                    number, choice = map(int, item.id.split(':'))
                    scores[number, choice] = value
        scores = dims.sum(scores)
        right = torch.tensor([item['answer'] for item in self.items])
        chance = torch.softmax(-scores, dim=1).gather(1, right[:, None])  # (items, 1)
        parts = [item['part'] for item in self.items]
        found = {p: float(chance[[p == other for other in parts]].mean()) for p in dict.fromkeys(parts)}
        return found | {'accuracy': float((scores.argmin(1) == right).double().mean())}

    def _numbers(
        self,
        kinds: Tensor,
        sound: Tensor,
        choices: Mapping[str, float] | None,
        chats: Sequence[Sequence[float]],
    ) -> dict[str, float]:
        values: dict[str, float] = {}
        if choices and self._base_choices:
            ours, first = dict(choices), dict(self._base_choices)
            values['retention/accuracy'] = ours.pop('accuracy') / max(first.pop('accuracy'), 1e-9)
            values['retention/choices'] = kept_of_tasks(ours, first) or 0.0
        sets = [
            kept_of_chats(base / base_targets, nll / targets, 1.0)
            for (nll, targets), (base, base_targets) in zip(chats, self._base_chats or (), strict=False)
            if targets and base_targets
        ]
        if sets:
            values['retention/chats'] = min(sets)
        kept = retention({key: values.get(key) for key in ('retention/choices', 'retention/chats')})
        if sound[0, 1] and sound[1, 0]:
            values['hearing'] = 1.0 - float(sound[0, 0] / sound[1, 0])
        # without speech in the validation sets the loss of all kinds decides
        total, count = (_speech(row) for row in kinds) if _speech(kinds[1]) else kinds.sum(1)
        loss = float(total / count) if count else 0.0
        if kept is not None:
            values['retention'] = kept
        missing = max(0.0, self.limit - values.get('retention', 1.0))
        values['gated_loss'] = loss + (PENALTY * (1.0 + missing) if missing else 0.0)
        return values


def retention_monitor_of(cfg: Mapping[str, Any]) -> list[RetentionMonitor]:
    """The monitor that the section `gate` of a configuration describes, or none."""
    section = dict(cfg.get('gate') or {})
    return [RetentionMonitor(**section)] if section.pop('enabled', False) else []


def retention_items() -> list[dict[str, Any]]:
    """The 200 multiple-choice items `{id, part, question, choices, answer}` of the text suite, 40 of each part."""
    text = files('nemo_vtb.training').joinpath('retention_items.jsonl').read_text(encoding='utf-8')
    return parse_json_lines(text)


def choice_rows(items: Sequence[Mapping[str, Any]], collator: Collator) -> list[list[PackItem]]:
    """Each choice as the answer of a chat, `NUMBER:CHOICE`, packed into rows."""
    return list(fill_rows((collator.prepare(chat) for chat in _chats(items)), _ROW_TOKENS))


def choice_scores(model: Any, row: Sequence[PackItem]) -> Tensor:
    """Negative log-likelihood of each answer of a packed row: (N,) float64 on the CPU."""
    return model.conversation_nll(pack_row(row).to(model.device))[0].double().cpu()


def _chats(items: Sequence[Mapping[str, Any]]) -> Iterator[Conversation]:
    for number, item in enumerate(items):
        question = Turn('user', (Text(item['question']),))
        for choice, text in enumerate(item['choices']):
            yield Conversation(f'{number}:{choice}', (question, Turn('assistant', (Text(text),))), 'text', 'retention')


def _without_sound(row: PackedRow) -> PackedRow:
    """The same row with nothing heard: its frames keep their places and hold the same token everywhere."""
    return replace(row, audios=row.audios[:0], audio_lens=row.audio_lens[:0])


def _speech(values: Tensor) -> Tensor:
    """The sum over the kinds with speech of (..., 4)."""
    return values.sum(-1) - values[..., _TEXT]
