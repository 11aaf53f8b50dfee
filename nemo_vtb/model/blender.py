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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from nemo.collections.common.tokenizers import AutoTokenizer
from nemo.collections.speechlm2.models.salm import SALM
from nemo.collections.speechlm2.parts.optim_setup import freeze_and_subset, is_frozen
from nemo.collections.speechlm2.parts.pretrained import maybe_load_pretrained_models
from nemo.core import ModelPT
from nemo.core.classes.common import safe_instantiate
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from nemo_vtb.backbone.base import Backbone
from nemo_vtb.backbone.names import is_llm_weight
from nemo_vtb.backbone.spec import BackboneSpec
from nemo_vtb.checkpoint.llm_files import llm_files
from nemo_vtb.checkpoint.manifest import weights_digest
from nemo_vtb.checkpoint.nemo_file import NemoConnector, being_restored, extract_state, save_nemo
from nemo_vtb.checkpoint.run_settings import check_settings
from nemo_vtb.checkpoint.trained_state import (
    add_frozen_llm,
    canonical_state,
    check_finite,
    drop_frozen_llm,
    fill_frozen_llm,
    frozen_llm,
    load_trained_state,
    trained_state,
)
from nemo_vtb.config.schema import ModelConfig
from nemo_vtb.constants import IGNORE_INDEX, KINDS
from nemo_vtb.data.collate import PackedRow, require_packed
from nemo_vtb.data.conversation import Conversation
from nemo_vtb.data.template import AUDIO_SLOT, ChatRenderer
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.model import inference
from nemo_vtb.model.ctc import CtcObjective, Scores, ctc_objective
from nemo_vtb.model.frames import frame_counter
from nemo_vtb.model.loss import (
    ValidationSums,
    anchored_loss,
    base_hidden,
    conversation_nll,
    kind_nll,
    kind_sums,
    row_nll,
    text_divergence,
)
from nemo_vtb.model.perception import encode_row, setup_perception, silent_forward, splice
from nemo_vtb.model.step_watch import StepOutcome, StepWatch, settle_step
from nemo_vtb.parallel.accepted import check_strategy
from nemo_vtb.parallel.dims import ParallelDims
from nemo_vtb.parallel.strategies import backbone_class, build_backbone
from nemo_vtb.registry import register

_LORA_PATTERN = r'^.+\.lora_.+$'
_LOSS_UNIT = 100.0
"""Sums of token losses are divided by this before the backward pass: gradients stay near one until rescaled."""


class VoiceTextBlender(SALM, ModelPT):
    """A text LLM that hears: SALM in its config and its state dict, ModelPT in how it is saved and restored.

    Args:
        cfg: The keys of NeMo's SALM keep their meaning (`pretrained_llm`, `pretrained_asr`, `perception`, `lora`,
            `freeze_params`, `audio_locator_tag` ...); ours are `perception.adapter_init`, `lr_factors`, `loss_chunk`,
            `text_anchor`, `ctc_weight`.
        trainer: Lightning trainer, as for every ModelPT.

    Raises:
        VtbModelError: The LLM or the encoder is missing, corrupt, of an unknown family, or they do not fit together.
        VtbTemplateError: The LLM's tokenizer has no chat template.
    """

    backbone: Backbone
    """The LLM; None before `configure_model`."""
    extract_state_dict_from = classmethod(extract_state)
    step_outcome: StepOutcome | None = None  # what the last optimizer step came to
    ctc: CtcObjective | None = None  # the auxiliary loss of an aligned adapter, with `ctc_weight`

    def __init__(self, cfg: DictConfig | dict, trainer: Trainer | None = None) -> None:
        register()
        own_cfg = OmegaConf.create(OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else dict(cfg))
        ModelPT.__init__(self, own_cfg, trainer)
        OmegaConf.set_struct(self.cfg, False)
        restored = being_restored(self, cfg)
        pretrained = bool(self.cfg.get('pretrained_weights', ModelConfig.pretrained_weights)) and restored is None
        folder = llm_files(self, restored)
        self.audio_locator_tag: str | None = self.cfg.get('audio_locator_tag')
        self.tokenizer = AutoTokenizer(str(folder), use_fast=True)
        self.renderer = ChatRenderer(self.tokenizer.tokenizer, self.cfg.get('template_date'))
        if self.cfg.get('text_anchor') and not self.cfg.get('lora'):
            raise VtbConfigError(
                'Without LoRA there is no untouched LLM to hold text-only conversations to.',
                field='model.text_anchor',
                got=self.cfg.text_anchor,
                allowed='0, or any weight together with model.lora',
                remedy='model.text_anchor=0, or add model.lora',
            )
        base = restored.base_folder(self.cfg) if restored else None
        source = str(self.cfg.pretrained_llm) if pretrained else base or str(folder)
        self.spec = _plan(self.cfg, source, pretrained or base is not None, restored is not None).require_ids(
            self.tokenizer.tokenizer
        )
        check_strategy(trainer)
        backbone_class(trainer).check(self.spec)
        object.__setattr__(self, 'backbone', None)
        # where SALM has them, so that state dict and optimizer keep their order; `configure_model` fills them
        self.llm, self.embed_tokens = torch.nn.Module(), torch.nn.Module()
        widths = (self.spec.hidden_size, self.spec.embedding_std)
        self.perception = setup_perception(self.cfg, *widths, pretrained=pretrained, embeddings=self.spec.embeddings)
        self.frames = frame_counter(self.cfg.perception, chunk_s=self.cfg.get('encoder_chunk_size_seconds'))
        self._is_restored = restored is not None
        if not backbone_class(trainer).deferred:
            self.configure_model()
        self._base_digest: str | None = None
        self.provenance: dict[str, Any] = restored.provenance(self) if restored else {}
        self._use_fsdp = self._use_tp = False
        self.register_load_state_dict_pre_hook(fill_frozen_llm)
        self.step_watch, self._window_rows, self._window_buffers = StepWatch(), 0, dict[str, Tensor]()

    @property
    def is_built(self) -> bool:
        """Whether the LLM has been read: at construction, or under some strategies in `configure_model`."""
        return self.backbone is not None

    def configure_model(self) -> None:
        """Read this rank's part of the LLM; Lightning calls it when the ranks know one another."""
        if self.is_built:
            return
        backbone = build_backbone(self.spec, self._trainer)
        # not as a submodule, else each weight would have two names
        object.__setattr__(self, 'backbone', backbone)
        for name, module in backbone.salm_modules.items():
            setattr(self, name, module)
        if not self._is_restored:
            maybe_load_pretrained_models(self)
        self._freeze()

    def _freeze(self) -> None:
        # before DDP wraps the model: it waits for the gradient of every parameter that it saw as trainable
        patterns = (list(self.cfg.get(key) or []) for key in ('freeze_params', 'prevent_freeze_params'))
        # a deferred backbone trains LoRA alone, under names that the patterns do not know
        own = ((n, p) for n, p in self.named_parameters() if not (self.backbone.deferred and is_llm_weight(n)))
        list(freeze_and_subset(own, *patterns))
        if self.cfg.get('ctc_weight'):
            self.ctc = ctc_objective(self)

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

    # ---- answers

    def generate(
        self, prompts: Any, audios: Tensor | None = None, audio_lens: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Generate answers to prompts as NeMo's SALM takes them, see `nemo_vtb.model.inference.generate`."""
        return inference.generate(self, prompts, audios, audio_lens, **options)

    def answer(self, conversations: Sequence[Conversation], **options: Any) -> list[str]:
        """Answer conversations that end with a user turn, see `nemo_vtb.model.inference.answer`."""
        return inference.answer(self, conversations, **options)

    def next_token_logits(self, conversation: Conversation) -> Tensor:
        """Logits of the first token of the answer to a conversation that ends with a user turn: (V,) float32."""
        return inference.next_token_logits(self, conversation)

    # ---- forward

    def hidden_states(self, batch: PackedRow, heard: list[Scores] | None = None) -> tuple[PackedRow, Tensor]:
        """Run one packed row through perception, splice and LLM; `heard` gets what an aligned adapter scores.

        Returns:
            The row as the LLM got it, shorter where the adapter compresses, and (T, H) for its positions.
        """
        if batch.audios.shape[0]:
            chunk_s = self.cfg.get('encoder_chunk_size_seconds')
            group = self.backbone.clip_group
            batch, frames = encode_row(self.perception, batch, group, chunk_s=chunk_s, heard=heard)  # (F, H)
            embeds = splice(self.backbone.embed(batch.input_ids), frames, batch.audio_positions)  # (T, H)
        else:
            embeds = self.backbone.embed(batch.input_ids)
            if self.training and not is_frozen(self.perception):
                # every rank must take part in the reduction of the perception's gradients (NeMo 3.0 fails here)
                embeds = embeds + silent_forward(self.perception)
        return batch, self.backbone.forward(embeds, batch.position_ids, batch.cu_seqlens, batch.max_seqlen)

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
        perception = self.perception
        for module in (perception.preprocessor, perception.encoder, perception.modality_adapter, self.llm):
            if is_frozen(module):
                module.eval()
        heard: list[Scores] | None = [] if self.ctc else None
        anchor = float(self.cfg.get('text_anchor') or 0.0)
        # before the row itself: switching LoRA off must not happen between its forward and backward pass
        filled = bool(require_packed(batch).input_ids.numel())
        base = base_hidden(self.backbone, batch) if anchor and filled else None  # (M, H)
        if anchor and (base is None or not len(base)):
            with torch.no_grad():
                self.backbone.idle_pass(self.device)
        if filled:
            batch, hidden = self.hidden_states(batch, heard)  # (T, H)
        else:  # every conversation of the row was broken: this rank must take part in the reduction all the same
            hidden = self._no_hidden_states()
        nll = row_nll(hidden, batch.labels, self.backbone.nll, chunk=_loss_chunk(self, len(hidden)))  # (N,)
        sums, counts = kind_sums(nll, batch.labels, batch.label_kinds, len(KINDS))
        loss = nll.sum() if base is None else self._anchored(nll, base, hidden, batch, anchor)
        if heard and self.ctc:
            ctc, tokens = self.ctc(heard, batch.transcripts)
            loss = loss + float(self.cfg.ctc_weight) * ctc
            self.log('ctc', ctc.detach() / max(1, tokens), batch_size=1)
        targets = counts.sum()
        both = torch.stack([sums.sum() / targets.clamp(min=1), targets])
        mean, number, *figures = torch.cat([both, sums, counts]).tolist()  # the device is waited for once
        self.step_watch.add_row(batch, nll, number, mean)
        self.log('loss', mean, prog_bar=False, batch_size=1)
        for kind, total, count in zip(KINDS, figures, figures[len(KINDS) :], strict=False):
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
        chunk = self.cfg.get('loss_chunk', ModelConfig.loss_chunk)
        divergence = text_divergence(base, hidden, batch, self.backbone, chunk=chunk)  # (K,)
        if divergence.numel():
            self.log('text_divergence', divergence.detach().mean(), batch_size=1)
        return anchored_loss(nll, divergence, batch.label_kinds[batch.labels != IGNORE_INDEX], weight)

    def _no_hidden_states(self) -> Tensor:
        """(1, H) of zeros that every trained parameter has a zero gradient of."""
        zero = sum((p.flatten()[:1] * 0.0).sum() for p in self.parameters() if p.requires_grad)
        zero = zero + self.backbone.idle_pass(self.device)
        return torch.zeros(1, self.backbone.hidden_size, device=self.device) + zero

    def on_after_backward(self) -> None:
        """Note the gradient behind a row: where a step is not finite, it tells which row made it so."""
        self.step_watch.add_gradient(p for group in self.trainer.optimizers[0].param_groups for p in group['params'])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the summed gradients by the number of target tokens of the whole global batch, see `settle_step`."""
        self.step_outcome, self._window_rows = settle_step(self, optimizer, _LOSS_UNIT, self._window_buffers), 0

    # ---- validation

    def batch_nll(self, row: PackedRow, *, use_lora: bool = True) -> tuple[Tensor, Tensor]:
        """Sum of the losses and number of targets of one packed row, per kind: two float32 tensors of (4,)."""
        return kind_nll(self, row, use_lora=use_lora)

    def conversation_nll(self, row: PackedRow, *, use_lora: bool = True) -> tuple[Tensor, Tensor]:
        """Sum of the losses and number of targets of each of the N conversations of a packed row: two of (N,)."""
        return conversation_nll(self, row, use_lora=use_lora)

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the last validation."""
        self._validation = ValidationSums(self.device)

    def validation_step(self, batch: PackedRow, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """One packed row of the validation set named by `batch.dataset`; returns what it is made of, per kind."""
        batch, hidden = self.hidden_states(require_packed(batch))
        nll = self._validation.add(self.backbone, hidden, batch)  # (N,)
        sums, counts = kind_sums(nll, batch.labels, batch.label_kinds, len(KINDS))
        return {'kind_sums': sums, 'kind_counts': counts}

    def on_validation_epoch_end(self) -> None:
        """Log SALM's metrics as means over the tokens of a set: `val_loss_<set>`, `val_acc_<set>`, their means."""
        for name, value in self._validation.means(ParallelDims.of(self.trainer)).items():
            self.log(name, value, prog_bar=name == 'val_loss', rank_zero_only=False)

    # ---- saving and restoring

    def save_to(self, save_path: str | Path, *, include_llm: bool = True) -> None:
        """Write the `.nemo` file; the ranks that hold one LLM call it together, and the first one writes.

        Args:
            save_path: Where.
            include_llm: False leaves the base LLM out: a small file that can be restored only beside that LLM.

        Raises:
            VtbCheckpointError: The disk is full or the folder cannot be written to; or the LLM was trained itself, so
                that no base LLM could stand in for it.
            VtbNumericsError: Weights are NaN or infinite.
        """
        state, base = canonical_state(self), self.base_weights()
        check_finite(self, {name: value for name, value in state.items() if name not in base})
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

        The other arguments are NeMo's; only our connector knows the last two.

        Args:
            restore_path: The `.nemo` file.
            trust_remote_code: Run code that came with an LLM, if the file asks for it.
            base_llm: Folder of the base LLM, for a file without it.

        Raises:
            VtbCheckpointError: The file is cut off, changed or hostile, wants to run code, or belongs to another LLM.
        """
        connector = save_restore_connector or NemoConnector(trust_remote_code=trust_remote_code, base_llm=base_llm)
        given = (override_config_path, map_location, strict, return_config, connector, trainer)
        return super().restore_from(str(restore_path), *given, validate_access_integrity)

    def base_digest(self) -> str:
        """SHA-256 of the untouched LLM's weights; computed once, since they never change."""
        if self._base_digest is None:
            self._base_digest = weights_digest(self.base_weights())
        return self._base_digest

    def base_weights(self) -> dict[str, Tensor]:
        """The untouched LLM by its keys in the state dict; {} if it is trained itself."""
        return frozen_llm(self)

    def trained_state(self) -> dict[str, Tensor]:
        """See `checkpoint.trained_state`; the ranks of one LLM call it together."""
        return trained_state(self)

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `trained_state` gave, on any backbone and number of ranks, also before the backbone is built.

        Raises:
            VtbCheckpointError: Keys are missing or left over.
        """
        load_trained_state(self, state)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the untouched LLM out: it is in its own folder, and would be most of every checkpoint."""
        # saved within a global batch, which a resumed run begins again: its rows must not count twice in the
        # running statistics of batch norms (the state of the data and the random generators go back likewise)
        drop_frozen_llm(self, checkpoint, self._window_buffers if self._window_rows else {})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the LLM's own weights back into the checkpoint that is about to be loaded.

        Raises:
            VtbCheckpointError: The checkpoint belongs to another LLM, to another chat template or to other settings.
        """
        check_settings(self, checkpoint)
        add_frozen_llm(self, checkpoint)

    # ---- optimizer

    def configure_optimizers(self) -> dict[str, Any]:
        """NeMo's optimizer and schedule; with `lr_factors`, groups of parameters at a share of the learning rate."""
        if not self.cfg.get('lr_factors') and not self.backbone.deferred:
            return super().configure_optimizers()
        return grouped_optimizer(self)

    # ---- what ModelPT asks for

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Plain backward pass: SALM wraps it for its tensor-parallel loss, which is not used here."""
        loss.backward(*args, **kwargs)

    def setup_training_data(self, train_data_config: DictConfig | dict) -> None:
        """Data comes from `VtbDataModule`, not from the model."""

    setup_validation_data = setup_training_data

    @classmethod
    def list_available_models(cls) -> list:
        """No models are published."""
        return []


def _loss_chunk(model: VoiceTextBlender, length: int) -> int:
    """Targets of a row that reach the vocabulary at once; all where the backbone bounds the logits itself."""
    return length if model.backbone.bounds_logits else model.cfg.get('loss_chunk', ModelConfig.loss_chunk)


def _plan(cfg: DictConfig, source: str, pretrained: bool, restored: bool) -> BackboneSpec:
    patterns = list(cfg.get('prevent_freeze_params') or [])
    # NeMo 3.0 appends at every construction, so that the list grows by one with each save and load
    if cfg.get('lora') and _LORA_PATTERN not in patterns:
        cfg.prevent_freeze_params = patterns = [*patterns, _LORA_PATTERN]
    # what a file holds is restored in its own type, and on a machine of its own
    frozen_dtype, kernels = (
        'auto' if restored else str(cfg.get(key, getattr(ModelConfig, key))) for key in ('frozen_dtype', 'kernels')
    )
    return BackboneSpec.plan(
        source,
        lora=plain_dict(cfg.lora) if cfg.get('lora') else None,
        freeze=cfg.get('freeze_params') or (),
        keep=patterns,
        pretrained=pretrained,
        trust_remote_code=bool(cfg.get('trust_remote_code', False)),
        frozen_dtype=frozen_dtype,
        kernels=kernels,
        checkpoints_layers=bool(cfg.get('activation_checkpointing', ModelConfig.activation_checkpointing)),
        compiles_layers=bool(cfg.get('compile_layers', ModelConfig.compile_layers)),
    )


def grouped_optimizer(model: VoiceTextBlender) -> dict[str, Any]:
    """What Lightning's `configure_optimizers` returns; parameters in the order that optimizer states follow.

    Raises:
        VtbConfigError: A pattern of `lr_factors` matches no trained parameter.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad and not is_llm_weight(name)}
    trained = model.backbone.trainable_parameters() | own  # in the order that optimizer states follow
    groups: list[dict[str, Any]] = []
    for number, entry in enumerate(model.cfg.get('lr_factors') or ()):
        names = [name for name in trained if re.match(entry.match, name)]
        if not names:
            raise VtbConfigError(
                'The pattern matches no trained parameter that an earlier one has left over.',
                field=f'model.lr_factors[{number}].match',
                got=entry.match,
                allowed='a regular expression, e.g. ' + next(iter(trained), ''),
            )
        groups.append({'params': [trained.pop(n) for n in names], 'lr': model.cfg.optimizer.lr * entry.factor})
    groups.append({'params': list(trained.values())})
    optimizer = safe_instantiate(model.cfg.optimizer, groups, _convert_='all')
    if 'lr_scheduler' not in model.cfg:
        return {'optimizer': optimizer}
    scheduler = safe_instantiate(model.cfg.lr_scheduler, optimizer)
    return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': scheduler, 'interval': 'step', 'frequency': 1}}


def plain_dict(cfg: DictConfig) -> dict[str, Any]:
    """A section of the configuration as plain Python values, interpolations resolved."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    if not isinstance(plain, dict):
        raise VtbConfigError('A section with keys is wanted here.', field='model', got=plain, allowed='key: value')
    return {str(key): value for key, value in plain.items()}
