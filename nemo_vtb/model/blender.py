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
"""VoiceTextBlender: one stage of joint supervised fine-tuning of a text LLM on text and speech.

Source: Peng et al., VoiceTextBlender, NAACL 2025 (long paper 298). Letters: T row length, F audio frames, A clips,
S samples, H LLM width, N targets.
"""

import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from nemo.collections.common.tokenizers import AutoTokenizer
from nemo.collections.speechlm2.models.salm import SALM
from nemo.collections.speechlm2.parts.optim_setup import freeze_and_subset, is_frozen
from nemo.collections.speechlm2.parts.pretrained import maybe_load_pretrained_models, move_embedding
from nemo.core import ModelPT
from nemo.core.classes.common import safe_instantiate
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from nemo_vtb.backbone.base import Backbone
from nemo_vtb.backbone.hf import HFBackbone, load_llm
from nemo_vtb.backbone.names import Portable, base_fingerprint
from nemo_vtb.backbone.spec import SplitLLM
from nemo_vtb.checkpoint.llm_files import llm_files
from nemo_vtb.checkpoint.manifest import weights_digest
from nemo_vtb.checkpoint.nemo_file import NemoConnector, being_restored, save_nemo
from nemo_vtb.constants import IGNORE_INDEX, KINDS
from nemo_vtb.data.collate import PackedRow
from nemo_vtb.data.template import AUDIO_SLOT, ChatRenderer
from nemo_vtb.errors import VtbCheckpointError, VtbConfigError, VtbModelError
from nemo_vtb.model.frames import frame_counter
from nemo_vtb.model.inference import Generation
from nemo_vtb.model.loss import anchored_loss, base_hidden, kind_sums, row_nll, text_divergence
from nemo_vtb.model.perception import encode, setup_perception, silent_forward, spread_encode
from nemo_vtb.model.splice import splice
from nemo_vtb.parallel.fully_sharded import FullyShardedStrategy
from nemo_vtb.parallel.megatron import MegatronStrategy
from nemo_vtb.registry import register

_LOSS_UNIT = 100.0
"""Sums of token losses are divided by this before the backward pass: gradients stay near one until rescaled."""


class VoiceTextBlender(Portable, Generation, SplitLLM, SALM, ModelPT):
    """A text LLM that hears: SALM in its config and its state dict, ModelPT in how it is saved and restored.

    Args:
        cfg: The keys of NeMo's SALM keep their meaning (`pretrained_llm`, `pretrained_asr`, `perception`, `lora`,
            `freeze_params`, `audio_locator_tag` ...); ours are `perception.adapter_init`, `lr_factors`, `loss_chunk`,
            `text_anchor`.
        trainer: Lightning trainer, as for every ModelPT.

    Raises:
        VtbModelError: The LLM or the encoder is missing, corrupt, of an unknown family, or they do not fit together.
        VtbTemplateError: The LLM's tokenizer has no chat template.
    """

    def __init__(self, cfg: DictConfig | dict, trainer: Trainer | None = None) -> None:
        register()
        own_cfg = OmegaConf.create(OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else dict(cfg))
        ModelPT.__init__(self, own_cfg, trainer)
        OmegaConf.set_struct(self.cfg, False)
        restored = being_restored(self, cfg)
        pretrained = bool(self.cfg.get('pretrained_weights', True)) and restored is None
        folder = llm_files(self, restoring=restored is not None)
        self.audio_locator_tag: str | None = self.cfg.get('audio_locator_tag')
        self.tokenizer = AutoTokenizer(str(folder), use_fast=True)
        self.renderer = ChatRenderer(self.tokenizer.tokenizer)
        if self.cfg.get('text_anchor') and not self.cfg.get('lora'):
            raise VtbConfigError(
                'Without LoRA there is no untouched LLM to hold typed chats to.',
                field='model.text_anchor',
                got=self.cfg.text_anchor,
                allowed='0, or any weight together with model.lora',
                remedy='model.text_anchor=0, or add model.lora',
            )
        # tensor parallelism: the LLM is built in `configure_model`, when the ranks know one another
        self.is_split = trainer is not None and isinstance(trainer.strategy, MegatronStrategy)
        base = restored.base_folder(self.cfg) if restored else None
        source = str(self.cfg.pretrained_llm) if pretrained else base or str(folder)
        self.is_sharded = trainer is not None and isinstance(trainer.strategy, FullyShardedStrategy)
        if self.is_sharded:
            self._check_shardable(source, pretrained or base is not None)
        (self._plan_llm if self.is_split else self._build_llm)(source, pretrained or base is not None)
        self.perception = setup_perception(self.cfg, *self._llm_scale, pretrained=pretrained)
        self.frames = frame_counter(self.cfg.perception, chunk_s=self.cfg.get('encoder_chunk_size_seconds'))
        if restored is None:
            maybe_load_pretrained_models(self)
        self._freeze()
        if self.is_sharded:
            self._check_frozen()
        self._base_digest: str | None = None
        self.provenance: dict[str, Any] = restored.provenance(self) if restored else {}
        self._use_fsdp = self._use_tp = False
        self._window_targets = 0.0
        self._window_rows, self._window_buffers = 0, dict[str, Tensor]()

    def _build_llm(self, source: str, pretrained: bool) -> None:
        trust = bool(self.cfg.get('trust_remote_code', False))
        self.llm = load_llm(source, pretrained=pretrained, trust_remote_code=trust)
        # as SALM: the embedding stands outside, where FSDP and the splice can reach it
        self.embed_tokens = self.llm.model.embed_tokens
        del self.llm.model.embed_tokens
        if self.cfg.get('lora'):
            with move_embedding(self):
                self.llm = self._with_lora(self.llm)
        self.backbone: Backbone = HFBackbone(self.llm, self.embed_tokens)
        sample = self.embed_tokens(torch.arange(min(1000, self.embed_tokens.num_embeddings))).detach()
        self._llm_scale = (self.backbone.hidden_size, float(sample.std()))

    def _with_lora(self, llm: torch.nn.Module) -> torch.nn.Module:
        from peft import LoraConfig, get_peft_model

        try:
            self.lora_config = LoraConfig(**plain_dict(self.cfg.lora))
            llm = get_peft_model(llm, self.lora_config)
        except (TypeError, ValueError) as error:
            raise VtbModelError(
                'LoRA cannot be put on this LLM.',
                field='model.lora',
                got=f'{OmegaConf.to_container(self.cfg.lora)}: {error}',
                allowed='the fields of peft.LoraConfig; target_modules that occur in the LLM, or all-linear',
            ) from error
        keep = r'^.+\.lora_.+$'
        patterns = list(self.cfg.get('prevent_freeze_params') or [])
        # NeMo 3.0 appends at every construction, so that the list grows by one with each save and load
        self.cfg.prevent_freeze_params = patterns if keep in patterns else [*patterns, keep]
        return llm

    def _freeze(self) -> None:
        # before DDP wraps the model: it waits for the gradient of every parameter that it saw as trainable
        exclude, keep = self.cfg.get('freeze_params') or [], self.cfg.get('prevent_freeze_params') or []
        list(freeze_and_subset(self.named_parameters(), list(exclude), list(keep)))

    @property
    def audio_locator_tag_id(self) -> int:
        """Id of the placeholder if the vocabulary has it; it is never added, so that no id changes its meaning."""
        vocabulary = self.tokenizer.tokenizer.get_vocab()
        return vocabulary.get(self.audio_locator_tag, AUDIO_SLOT)

    @property
    def oomptimizer_schema(self) -> dict:
        """Packed rows have one size by construction, so that there is nothing to calibrate per length."""
        raise VtbConfigError(
            'OOMptimizer looks for batch sizes per length; a packed row has one size.',
            field='data.max_tokens',
            allowed='an integer',
            remedy='raise data.max_tokens until the memory is full',
        )

    # ---- forward

    def hidden_states(self, batch: PackedRow) -> Tensor:
        """Run one packed row through perception, splice and LLM; returns (T, H)."""
        embeds = self.backbone.embed(batch.input_ids)  # (T, H)
        if batch.audios.shape[0]:
            embeds = splice(embeds, self._frames_of(batch), batch.audio_positions)
        elif self.training and not is_frozen(self.perception):
            # every rank must take part in the reduction of the perception's gradients (NeMo 3.0 fails here)
            embeds = embeds + silent_forward(self.perception)
        return self.backbone.forward(embeds, batch.position_ids, batch.cu_seqlens, batch.max_seqlen)

    def _frames_of(self, batch: PackedRow) -> Tensor:
        chunk_s = self.cfg.get('encoder_chunk_size_seconds')
        clips = (self.perception, batch.audios, batch.audio_lens)
        if (group := self.spread_group) is not None:
            return spread_encode(*clips, batch.frame_lens, group, chunk_s=chunk_s)
        return encode(*clips, chunk_s=chunk_s)[0]  # (F, H)

    def on_train_batch_start(self, batch: PackedRow, batch_idx: int) -> None:
        """Remember the running statistics at the beginning of a global batch, see `on_save_checkpoint`."""
        if not self._window_rows:
            buffers = self.perception.named_buffers(prefix='perception')
            self._window_buffers = {name: value.detach().clone() for name, value in buffers}
        self._window_rows += 1

    def training_step(self, batch: PackedRow, batch_idx: int) -> dict[str, Any]:
        """One packed row.

        The gradient of a step is that of the sum over all target tokens of the global batch divided by their count,
        whatever the number of rows and ranks: rows sum here, `on_before_optimizer_step` divides.
        """
        for module in (self.perception.preprocessor, self.perception.encoder, self.llm):
            if is_frozen(module):
                module.eval()
        anchor = float(self.cfg.get('text_anchor') or 0.0)
        # before the row itself: switching LoRA off must not happen between its forward and backward pass
        filled = bool(batch.input_ids.numel())
        base = base_hidden(self.backbone, batch) if anchor and filled else None  # (M, H)
        if anchor and self.is_sharded and (base is None or not len(base)):
            with torch.no_grad():
                self._one_token()
        if filled:
            hidden = self.hidden_states(batch)  # (T, H)
        else:  # every conversation of the row was broken: this rank must take part in the reduction all the same
            hidden = self._nothing()
        nll = row_nll(hidden, batch.labels, self.backbone.nll, chunk=self.cfg.get('loss_chunk', 1024))  # (N,)
        sums, counts = kind_sums(nll, batch.labels, batch.label_kinds, len(KINDS))
        self._window_targets += float(counts.sum())
        loss = nll.sum() if base is None else self._anchored(nll, base, hidden, batch, anchor)
        mean = float(sums.sum() / counts.sum().clamp(min=1))
        self.log('loss', mean, prog_bar=False, batch_size=1)
        for kind, total, count in zip(KINDS, sums.tolist(), counts.tolist(), strict=True):
            if count:
                self.log(f'loss/{kind}', total / count, batch_size=1)
        return {
            'loss': loss / _LOSS_UNIT,
            'mean_loss': mean,
            'kind_sums': sums,
            'kind_counts': counts,
            'num_tokens': int(batch.input_ids.shape[0]),
        }

    def _anchored(self, nll: Tensor, base: Tensor, hidden: Tensor, batch: PackedRow, weight: float) -> Tensor:
        chunk = self.cfg.get('loss_chunk', 1024)
        divergence = text_divergence(base, hidden, batch, self.backbone, chunk=chunk)  # (K,)
        if divergence.numel():
            self.log('text_divergence', divergence.detach().mean(), batch_size=1)
        return anchored_loss(nll, divergence, batch.label_kinds[batch.labels != IGNORE_INDEX], weight)

    def _nothing(self) -> Tensor:
        """(1, H) of zeros that every trained parameter has a zero gradient of."""
        zero = sum((p.flatten()[:1] * 0.0).sum() for p in self.parameters() if p.requires_grad)
        if self.is_sharded:
            zero = zero + (self._one_token() * 0.0).sum()
        return torch.zeros(1, self.backbone.hidden_size, device=self.device) + zero

    def _one_token(self) -> Tensor:
        """(1, H): a pass for ranks that have nothing to run, since the others wait for their parts of the layers."""
        one = torch.zeros(1, dtype=torch.int64, device=self.device)
        borders = torch.tensor([0, 1], dtype=torch.int32, device=self.device)
        return self.backbone.forward(self.backbone.embed(one), one, borders, 1)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the summed gradients by the number of target tokens of the whole global batch."""
        total = torch.tensor(self._window_targets, device=self.device, dtype=torch.float64)
        world = self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        # DDP has averaged over ranks and Lightning over accumulated rows; both factors are taken back here
        factor = _LOSS_UNIT * world * self.trainer.accumulate_grad_batches / max(float(total), 1.0)
        for group in optimizer.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        self._window_targets, self._window_rows = 0.0, 0

    # ---- validation

    @torch.no_grad()
    def batch_nll(self, batch: PackedRow, *, use_lora: bool = True) -> tuple[Tensor, Tensor]:
        """Sum of the losses and number of targets of one packed row, per kind: two float32 tensors of (4,)."""
        nll = self._nll_of_targets(batch, use_lora)
        return kind_sums(nll, batch.labels, batch.label_kinds, len(KINDS))

    @torch.no_grad()
    def conversation_nll(self, batch: PackedRow, *, use_lora: bool = True) -> tuple[Tensor, Tensor]:
        """Sum of the losses and number of targets of each of the N conversations of a packed row: two of (N,)."""
        nll = self._nll_of_targets(batch, use_lora)  # (targets,)
        places = (batch.labels.flatten() != -100).nonzero().flatten()
        ends = batch.cu_seqlens[1:].to(places)
        owners = torch.bucketize(places, ends, right=True)
        zeros = torch.zeros(len(ends), dtype=torch.float32, device=nll.device)
        return zeros.index_add(0, owners, nll.float()), zeros.index_add(0, owners, torch.ones_like(nll.float()))

    def _nll_of_targets(self, batch: PackedRow, use_lora: bool) -> Tensor:
        if use_lora:
            hidden = self.hidden_states(batch)
        else:
            with self.backbone.without_lora():
                hidden = self.hidden_states(batch)
        return row_nll(hidden, batch.labels, self.backbone.nll, chunk=self.cfg.get('loss_chunk', 1024))

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the last validation."""
        # float64: a set may have more tokens than a smaller type can count
        zeros = partial(torch.zeros, 3, dtype=torch.float64, device=self.device)
        self._val_sums: dict[str, Tensor] = defaultdict(zeros)

    def validation_step(self, batch: PackedRow, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """One packed row of the validation set named by `batch.dataset`; returns what it is made of, per kind."""
        hits: list[Tensor] = []

        def score(hidden: Tensor, of: Tensor) -> Tensor:
            nll, right = self.backbone.score(hidden, of)
            hits.append(right)
            return nll

        targets = batch.labels[batch.labels != IGNORE_INDEX]  # (N,)
        nll = row_nll(self.hidden_states(batch), batch.labels, score)
        right = torch.cat(hits).sum() if hits else targets.sum() * 0
        counts = torch.full_like(right, targets.numel())
        sums = torch.stack([nll.double().sum(), right.double(), counts.double()])
        self._val_sums[batch.dataset or 'validation'] += sums
        of_kinds, targets_of_kinds = kind_sums(nll, batch.labels, batch.label_kinds, len(KINDS))
        return {'kind_sums': of_kinds, 'kind_counts': targets_of_kinds}

    def on_validation_epoch_end(self) -> None:
        """Log SALM's metrics as means over the tokens of a set: `val_loss_<set>`, `val_acc_<set>`, their means."""
        names = self._names_of_all_ranks(sorted(self._val_sums))
        losses, accuracies = [], []
        for name in names:
            sums = self._val_sums[name]
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(sums)
            loss, accuracy = sums[0] / sums[2].clamp(min=1), sums[1] / sums[2].clamp(min=1)
            losses.append(loss)
            accuracies.append(accuracy)
            self.log(f'val_loss_{name}', loss.float(), rank_zero_only=False)
            self.log(f'val_acc_{name}', accuracy.float(), rank_zero_only=False)
        if losses:
            self.log('val_loss', torch.stack(losses).mean().float(), prog_bar=True)
            self.log('val_acc', torch.stack(accuracies).mean().float())
        self._val_sums.clear()

    @staticmethod
    def _names_of_all_ranks(names: list[str]) -> list[str]:
        """A rank may have had no row of a set, but must take part in its reduction."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return names
        gathered: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(gathered, names)
        return sorted({name for some in gathered for name in some})

    # ---- saving and restoring

    def save_to(self, save_path: str | Path, *, include_llm: bool = True) -> None:
        """Write the `.nemo` file; the ranks that hold one LLM call it together, and the first one writes.

        Args:
            save_path: Where.
            include_llm: False leaves the base LLM out: a small file that can be restored only beside that LLM.

        Raises:
            VtbCheckpointError: The disk is full or the folder cannot be written to; or the LLM was trained itself, so
                that no base LLM could stand in for it.
        """
        base = self.base_weights()
        spread = self.is_split or (self.is_sharded and self._built)
        state = {**base, **self.trained_state()} if spread else self.state_dict()
        save_nemo(self, save_path, state, base, include_llm=include_llm)

    @classmethod
    def restore_from(
        cls,
        restore_path: str | Path,
        override_config_path: Any = None,
        map_location: Any = None,
        strict: bool = True,
        return_config: bool = False,
        save_restore_connector: SaveRestoreConnector | None = None,
        trainer: Trainer | None = None,
        validate_access_integrity: bool = True,
        *,
        trust_remote_code: bool = False,
        base_llm: str | Path | None = None,
    ) -> Any:
        """NeMo's `restore_from`, with each member compared with its SHA-256 and nothing unusual in the archive.

        Args:
            restore_path: The `.nemo` file.
            override_config_path: As in NeMo.
            map_location: As in NeMo.
            strict: As in NeMo.
            return_config: As in NeMo: the configuration alone.
            save_restore_connector: As in NeMo; ours where it is left out, and only ours knows the last two arguments.
            trainer: As in NeMo.
            validate_access_integrity: As in NeMo.
            trust_remote_code: Run code that came with an LLM, if the file asks for it.
            base_llm: Folder of the base LLM, for a file without it.

        Raises:
            VtbCheckpointError: The file is cut off, changed or hostile, wants to run code, or belongs to another LLM.
        """
        connector = save_restore_connector or NemoConnector(trust_remote_code=trust_remote_code, base_llm=base_llm)
        return super().restore_from(
            str(restore_path),
            override_config_path,
            map_location,
            strict,
            return_config,
            connector,
            trainer,
            validate_access_integrity,
        )

    def base_digest(self) -> str:
        """SHA-256 of the untouched LLM's weights; computed once, since they never change."""
        if self._base_digest is None:
            self._base_digest = weights_digest(self.base_weights())
        return self._base_digest

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the untouched LLM out: it is in its own folder, and would be most of every checkpoint."""
        state = checkpoint['state_dict']
        if self._window_rows:
            # saved within a global batch, which a resumed run begins again: its rows must not count twice in the
            # running statistics of batch norms (the state of the data and the random generators go back likewise)
            state.update({name: value for name, value in self._window_buffers.items() if name in state})
        # plain values, so that the file can be read without running code that is in it
        checkpoint.pop(self.CHECKPOINT_HYPER_PARAMS_TYPE, None)
        if isinstance(stored := checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY), DictConfig):
            checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = plain_dict(stored)
        base = self.base_weights()
        checkpoint['base_fingerprint'] = base_fingerprint(base)
        checkpoint['template_fingerprint'] = self.renderer.fingerprint
        for name in base:
            state.pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the LLM's own weights back into the checkpoint that is about to be loaded.

        Raises:
            VtbCheckpointError: The checkpoint belongs to another LLM or to another chat template.
        """
        base = self.base_weights()
        for key, what, now in (
            ('base_fingerprint', 'LLM', base_fingerprint(base)),
            ('template_fingerprint', 'tokenizer or chat template', self.renderer.fingerprint),
        ):
            if checkpoint.get(key, now) != now:
                raise VtbCheckpointError(
                    f'The checkpoint was trained on another {what}.',
                    field='model.pretrained_llm',
                    got=self.cfg.pretrained_llm,
                    allowed=f'the {what} with fingerprint {checkpoint[key][:12]}; this one has {now[:12]}',
                    remedy='name the LLM of that run, or start in another folder (exp_manager.explicit_log_dir=...)',
                )
        if self.is_split or (self.is_sharded and self._built):
            return  # has read it already, each rank its part
        for name, value in base.items():
            checkpoint['state_dict'].setdefault(name, value)

    # ---- optimizer

    def configure_optimizers(self) -> dict[str, Any]:
        """NeMo's optimizer and schedule; with `lr_factors`, groups of parameters at a share of the learning rate.

        Raises:
            VtbConfigError: A pattern of `lr_factors` matches no trained parameter.
        """
        if not self.cfg.get('lr_factors') and not self.is_split:
            return super().configure_optimizers()
        trained = self.trained_parameters()
        groups: list[dict[str, Any]] = []
        for number, entry in enumerate(self.cfg.get('lr_factors') or ()):
            names = [name for name in trained if re.match(entry.match, name)]
            if not names:
                raise VtbConfigError(
                    'The pattern matches no trained parameter that an earlier one has left over.',
                    field=f'model.lr_factors[{number}].match',
                    got=entry.match,
                    allowed='a regular expression, e.g. ' + next(iter(trained), ''),
                )
            groups.append({'params': [trained.pop(n) for n in names], 'lr': self.cfg.optimizer.lr * entry.factor})
        groups.append({'params': list(trained.values())})
        optimizer = safe_instantiate(self.cfg.optimizer, groups, _convert_='all')
        if 'lr_scheduler' not in self.cfg:
            return {'optimizer': optimizer}
        scheduler = safe_instantiate(self.cfg.lr_scheduler, optimizer)
        return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': scheduler, 'interval': 'step', 'frequency': 1}}

    # ---- what ModelPT asks for

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Plain backward pass: SALM wraps it for its tensor-parallel loss, which is not used here."""
        loss.backward(*args, **kwargs)

    def setup_training_data(self, train_data_config: DictConfig | dict) -> None:
        """Data comes from `VtbDataModule`, not from the model."""

    def setup_validation_data(self, val_data_config: DictConfig | dict) -> None:
        """Data comes from `VtbDataModule`, not from the model."""

    @classmethod
    def list_available_models(cls) -> list:
        """No models are published."""
        return []


def plain_dict(cfg: DictConfig) -> dict[str, Any]:
    """A section of the configuration as plain Python values, interpolations resolved."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    if not isinstance(plain, dict):
        raise VtbConfigError('A section with keys is wanted here.', field='model', got=plain, allowed='key: value')
    return {str(key): value for key, value in plain.items()}
