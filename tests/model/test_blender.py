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
"""VoiceTextBlender: packed as alone, one gradient however rows are split, honest metrics, whole files or none."""

import copy
import json
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from nemo.core import ModelPT
from salm_peer import spoken_conversation, write_tones
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from nemo_vtb.backbone.names import is_base_weight
from nemo_vtb.checkpoint.checkpoint_io import AtomicCheckpointIO
from nemo_vtb.constants import KINDS
from nemo_vtb.data.collate import Collator, PackedRow, pack_row
from nemo_vtb.data.conversation import Conversation, Text, Turn, conversation_from_dict, read_jsonl
from nemo_vtb.errors import VtbCheckpointError, VtbConfigError, VtbModelError, VtbNumericsError
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import TinyCorpus, tiny_llm, tiny_model_cfg

pytestmark = pytest.mark.unit
State = dict[str, Tensor]


def build(root: Path, **changes: Any) -> VoiceTextBlender:
    """A tiny model with LoRA far from zero."""
    torch.manual_seed(0)
    model = VoiceTextBlender(tiny_model_cfg(root) | changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if '.lora_B.' in name:
                parameter.normal_(std=0.05)
    return model


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('blender')


@pytest.fixture(scope='module')
def shared(root: Path) -> VoiceTextBlender:
    """In evaluation mode; a test that changes it builds its own."""
    return build(root).eval()


@pytest.fixture(scope='module')
def conversations(corpus: TinyCorpus) -> list[Conversation]:
    """Two of each kind."""
    return [
        conversation_from_dict(d, kind=kind, base_dir=corpus.folder)
        for kind in KINDS
        for number, _, d in read_jsonl(corpus.path(kind))
        if number <= 2
    ]


def rows_of(model: VoiceTextBlender, groups: Sequence[Sequence[Conversation]]) -> list[PackedRow]:
    collate = Collator(model.renderer, model.frames)
    return [collate(group, index) for index, group in enumerate(groups)]


def gradients(model: VoiceTextBlender) -> State:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def trainer(**options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        'accelerator': 'cpu', 'devices': 1, 'logger': False, 'enable_checkpointing': False, 'max_steps': 1,
        'enable_progress_bar': False, 'enable_model_summary': False, 'limit_val_batches': 0,
        'num_sanity_val_steps': 0, 'use_distributed_sampler': False, 'barebones': False,
    }  # fmt: skip
    return Trainer(**defaults | options)


def loader(rows: Sequence[Any]) -> DataLoader:
    return DataLoader(rows, batch_size=None)


# ---- loss and gradients


def test_packed_equals_each_alone(shared: VoiceTextBlender, conversations: list[Conversation]) -> None:
    (packed,) = rows_of(shared, [conversations])
    alone = rows_of(shared, [[c] for c in conversations])
    shared.zero_grad()
    sums, counts = shared.batch_nll(packed)
    shared.training_step(packed, 0)['loss'].backward()
    whole = gradients(shared)
    shared.zero_grad()
    for row in alone:
        shared.training_step(row, 0)['loss'].backward()
    parts = [shared.batch_nll(row) for row in alone]
    torch.testing.assert_close(sums, sum(p[0] for p in parts), atol=1e-3, rtol=1e-5)
    assert torch.equal(counts, sum(p[1] for p in parts))
    assert counts.count_nonzero() == 4
    # the same losses by conversation: in the row, and alone
    with torch.no_grad():
        each, targets = shared.conversation_nll(packed)
        torch.testing.assert_close(each, torch.stack([p[0].sum() for p in parts]).detach(), atol=1e-3, rtol=1e-5)
        assert targets.tolist() == [float(p[1].sum()) for p in parts]
    assert any('.lora_' in n for n in whole) and any(n.startswith('perception.') for n in whole)
    for name, gradient in gradients(shared).items():
        torch.testing.assert_close(whole[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


class KeepGradients(Callback):
    """The gradients with which the optimizer has just stepped."""

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step:
            self.gradients = gradients(module)


@pytest.fixture(scope='module')
def step_of_one_row(root: Path, conversations: list[Conversation]) -> State:
    return step(root, [conversations])


def step(root: Path, groups: Sequence[Sequence[Conversation]], **options: Any) -> State:
    model = build(root)
    model.perception.eval()  # batch statistics depend on what is encoded together, here they must not
    keep = KeepGradients()
    options = {'accumulate_grad_batches': len(groups), 'callbacks': [keep]} | options
    trainer(**options).fit(model, loader(rows_of(model, groups)))
    return keep.gradients


@pytest.mark.parametrize('rows', [2, 4, 8])
def test_the_gradient_does_not_depend_on_how_rows_are_split(
    root: Path, conversations: list[Conversation], step_of_one_row: State, rows: int
) -> None:
    groups = [conversations[i::rows] for i in range(rows)]
    split = step(root, groups)
    assert split.keys() == step_of_one_row.keys()
    for name, gradient in split.items():
        torch.testing.assert_close(gradient, step_of_one_row[name], atol=1e-6, rtol=1e-4, msg=name)


def test_the_gradient_is_that_of_the_mean_over_all_targets(
    root: Path, conversations: list[Conversation], step_of_one_row: State
) -> None:
    model = build(root).eval()
    (row,) = rows_of(model, [conversations])
    logits = model.backbone.head(model.hidden_states(row)[1])
    cross_entropy(logits, row.labels, ignore_index=-100).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(step_of_one_row[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_a_window_cut_short_by_the_end_of_the_data(root: Path, conversations: list[Conversation]) -> None:
    """Lightning divides by the rows it expected; the mean is over the targets that came."""
    short = step(root, [conversations[:4]], accumulate_grad_batches=4)
    full = step(root, [conversations[:4]])
    for name, gradient in full.items():
        torch.testing.assert_close(short[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


class SaveWithinABatch(Callback):
    """Saves after the first row of the second global batch; keeps the statistics from before and after that row."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.before = {n: b.clone() for n, b in module.named_buffers() if 'running_' in n}

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.after = {n: b.clone() for n, b in module.named_buffers() if 'running_' in n}
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_within_a_global_batch_is_that_of_its_beginning(
    root: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    """A resumed run trains on the rows of the open batch again: batch norms must not have seen them already."""
    model, saver = build(root), SaveWithinABatch(tmp_path / 'within.ckpt')
    rows = rows_of(model, [conversations[i::4] for i in range(4)])
    trainer(accumulate_grad_batches=2, max_steps=2, callbacks=[saver]).fit(model, loader(rows))
    state = torch.load(saver.path, weights_only=True)['state_dict']
    assert saver.before and any(not torch.equal(saver.before[name], saver.after[name]) for name in saver.before)
    for name, value in saver.before.items():
        assert torch.equal(state[name], value), name


def test_clipping_sees_the_final_gradient(root: Path, conversations: list[Conversation]) -> None:
    clipped = step(root, [conversations], gradient_clip_val=0.25)
    norm = torch.stack([g.norm() for g in clipped.values()]).norm()
    assert abs(float(norm) - 0.25) < 1e-4


def test_per_kind_losses_are_logged(shared: VoiceTextBlender, conversations: list[Conversation]) -> None:
    logged: dict[str, float] = {}
    (row,) = rows_of(shared, [conversations])
    sums, counts = shared.batch_nll(row)
    original, shared.log = shared.log, lambda name, value, **_: logged.update({name: float(value)})  # type: ignore
    try:
        out = shared.training_step(row, 0)
    finally:
        shared.log = original  # type: ignore[method-assign]
    for kind, total, count in zip(KINDS, sums, counts, strict=True):
        assert logged[f'loss/{kind}'] == pytest.approx(float(total / count), rel=1e-5)
    assert logged['loss'] == pytest.approx(float(sums.sum() / counts.sum()), rel=1e-5)
    assert out['num_tokens'] == row.num_tokens


@pytest.mark.parametrize('precision', ['32-true', 'bf16-true', 'bf16-mixed'])
@pytest.mark.parametrize('encoder', ['fastconformer', 'whisper'])
def test_a_few_steps_learn(
    root: Path, conversations: list[Conversation], encoder: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = VoiceTextBlender(tiny_model_cfg(root, encoder=encoder))
    losses: list[float] = []
    monkeypatch.setattr(model, 'log', lambda name, value, **_: losses.append(float(value)) if name == 'loss' else None)
    text = [c for c in conversations if c.is_text_only]
    rows = rows_of(model, [conversations, text])  # the second has no audio
    fit = trainer(max_steps=24, precision=precision)
    fit.fit(model, loader(rows * 12))
    assert fit.global_step == 24
    # each falls by more than 1.3, of which the roundings of bfloat16 take 0.4 at most
    assert losses[-2] < losses[0] - 0.4 and losses[-1] < losses[1] - 0.4


# ---- what is trained


@pytest.mark.parametrize(
    ('freeze', 'keep', 'trained', 'frozen'),
    [
        ([r'^llm\..+$', r'^embed_tokens\..+$'], [], ['.lora_', 'perception.encoder'], ['base_layer', 'embed_tokens']),
        ([r'^llm\..+$', r'^perception\.encoder\..+$'], [], ['.lora_', 'perception.proj'], ['perception.encoder']),
        ([r'^perception\..+$'], [], ['.lora_'], ['perception.', 'embed_tokens']),  # PEFT freezes the LLM
        ([r'^.+$'], [r'^perception\.proj\..+$'], ['perception.proj', '.lora_'], ['perception.encoder', 'embed_tok']),
    ],
)  # fmt: skip
def test_each_part_can_be_switched(
    root: Path,
    conversations: list[Conversation],
    freeze: list[str],
    keep: list[str],
    trained: list[str],
    frozen: list[str],
) -> None:
    model = build(root, freeze_params=freeze, prevent_freeze_params=keep)
    before = copy.deepcopy(model.state_dict())
    trainer().fit(model, loader(rows_of(model, [conversations])))
    parameters = dict(model.named_parameters())
    changed = {n for n, v in model.state_dict().items() if n in parameters and not torch.equal(v, before[n])}
    assert changed == {n for n, p in parameters.items() if p.requires_grad and p.grad is not None and p.grad.any()}
    assert all(any(part in n for n in changed) for part in trained)
    assert not any(part in n for n in changed for part in frozen)


def test_frozen_parts_stay_in_evaluation_mode(root: Path, conversations: list[Conversation]) -> None:
    model = build(root, freeze_params=[r'^perception\.encoder\..+$']).train()
    buffers = {n: b.clone() for n, b in model.perception.encoder.named_buffers()}
    model.training_step(rows_of(model, [conversations])[0], 0)
    assert not model.perception.encoder.training
    assert model.perception.modality_adapter.training
    assert all(torch.equal(b, buffers[n]) for n, b in model.perception.encoder.named_buffers())


def test_a_row_without_audio_leaves_batch_statistics_and_random_state(
    root: Path, conversations: list[Conversation]
) -> None:
    model = build(root).train()
    text, spoken = rows_of(model, [conversations[:1], conversations[2:3]])
    assert text.audios.shape[0] == 0
    buffers = {n: b.clone() for n, b in model.perception.named_buffers()}
    assert any('running_mean' in n for n in buffers)
    state = torch.get_rng_state()
    model.training_step(text, 0)['loss'].backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(b, buffers[n]) for n, b in model.perception.named_buffers())
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    model.training_step(spoken, 0)
    assert not all(torch.equal(b, buffers[n]) for n, b in model.perception.named_buffers())


def test_the_same_parameters_get_gradients_with_and_without_audio(
    root: Path, conversations: list[Conversation]
) -> None:
    model = build(root).train()
    names = []
    for row in rows_of(model, [conversations[:1], conversations[2:4]]):
        model.zero_grad(set_to_none=True)
        model.training_step(row, 0)['loss'].backward()
        names.append(set(gradients(model)))
    assert names[0] == names[1]


# ---- validation


def test_validation_metrics_are_means_over_tokens(root: Path, conversations: list[Conversation]) -> None:
    model = build(root)
    long = Conversation('long', (Turn('user', (Text('a'),)), Turn('assistant', (Text('story of rain ' * 30),))))
    rows = rows_of(model, [conversations[:3], [long], conversations[3:]])
    for row, name in zip(rows, ['talk', 'talk', 'other'], strict=True):
        row.dataset = name
    expected: dict[str, list[Tensor]] = {'talk': [], 'other': []}
    model.eval()
    for row in rows:
        targets = row.labels[row.labels != -100]
        with torch.no_grad():
            logits = model.backbone.head(model.hidden_states(row)[1])[row.labels != -100]
        nll = cross_entropy(logits, targets, reduction='none')
        expected[row.dataset].append(torch.stack([nll, (logits.argmax(-1) == targets).float()]))
    metrics = trainer(limit_val_batches=3).validate(model, loader(rows), verbose=False)[0]
    means = {name: torch.cat(parts, dim=1).mean(1) for name, parts in expected.items()}
    for name, (loss, accuracy) in means.items():
        assert metrics[f'val_loss_{name}'] == pytest.approx(float(loss), rel=1e-5)
        assert metrics[f'val_acc_{name}'] == pytest.approx(float(accuracy), rel=1e-5, abs=1e-7)
    assert metrics['val_loss'] == pytest.approx(float(torch.stack([m[0] for m in means.values()]).mean()), rel=1e-5)


def test_the_base_llms_loss_on_text(shared: VoiceTextBlender, conversations: list[Conversation]) -> None:
    (row,) = rows_of(shared, [conversations[:2]])
    with_lora, base = shared.batch_nll(row)[0], shared.batch_nll(row, use_lora=False)[0]
    assert not torch.allclose(with_lora, base, atol=1e-3)
    lora = {k: v.clone() for k, v in shared.backbone.lora_state().items()}
    shared.backbone.load_lora({k: torch.zeros_like(v) for k, v in lora.items()})
    without = shared.batch_nll(row)[0]
    shared.backbone.load_lora(lora)
    torch.testing.assert_close(without, base)


# ---- checkpoints


def save_checkpoint(model: VoiceTextBlender, rows: list[Any], path: Path) -> Trainer:
    fit = trainer(max_steps=2, plugins=[AtomicCheckpointIO()])
    fit.fit(model, loader(rows))
    fit.save_checkpoint(path)
    return fit


def test_a_checkpoint_leaves_the_llm_out_and_loads_back(
    root: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    model = build(root)
    rows = rows_of(model, [conversations, conversations[:3]])
    save_checkpoint(model, rows, tmp_path / 'a.ckpt')
    stored = AtomicCheckpointIO().load_checkpoint(tmp_path / 'a.ckpt')['state_dict']
    assert not any(is_base_weight(name) for name in stored)
    assert stored.keys() == {name for name in model.state_dict() if not is_base_weight(name)}
    other = build(root)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if not is_base_weight(name):
                parameter.zero_()
    resumed = trainer(max_steps=2, plugins=[AtomicCheckpointIO()])
    resumed.fit(other, loader(rows), ckpt_path=tmp_path / 'a.ckpt')
    assert resumed.global_step == 2
    assert all(torch.equal(v, other.state_dict()[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize('what', ['LLM', 'tokenizer or chat template'])
def test_a_checkpoint_of_another_llm_is_refused(
    root: Path, conversations: list[Conversation], tmp_path: Path, what: str
) -> None:
    model = build(root)
    save_checkpoint(model, rows_of(model, [conversations[:2]]), tmp_path / 'a.ckpt')
    folder = tiny_llm(tmp_path / 'llm', template='llama3' if what != 'LLM' else None)
    other = build(root, pretrained_llm=str(folder))
    if what == 'LLM':
        with torch.no_grad():
            other.embed_tokens.weight.add_(1.0)
    else:
        other.load_state_dict(model.state_dict(), strict=True)
    fit = trainer(max_steps=3, plugins=[AtomicCheckpointIO()])
    with pytest.raises(VtbCheckpointError, match=f'trained on another {what}'):
        fit.fit(other, loader(rows_of(other, [conversations[:2]])), ckpt_path=tmp_path / 'a.ckpt')


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file can grow beyond the limit: writing past it fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_nemo_file(shared: VoiceTextBlender, tmp_path: Path) -> None:
    path = tmp_path / 'model.nemo'
    path.write_bytes(b'the old one')
    with full_disk(100_000), pytest.raises(VtbCheckpointError, match='cannot be written') as caught:
        shared.save_to(path)
    assert 'untouched' in str(caught.value) and str(path) in str(caught.value)
    assert path.read_bytes() == b'the old one'
    assert [p.name for p in tmp_path.iterdir()] == ['model.nemo']
    shared.save_to(path)
    assert path.stat().st_size > 100_000


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / 'a.ckpt'
    io.save_checkpoint({'state': torch.zeros(10)}, path)
    before = path.read_bytes()
    with full_disk(50_000), pytest.raises(VtbCheckpointError, match='cannot be written'):
        io.save_checkpoint({'state': torch.zeros(100_000)}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['a.ckpt']
    path.write_bytes(before[: len(before) // 2])
    with pytest.raises(VtbCheckpointError, match='cannot be read'):
        io.load_checkpoint(path)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_model_that_is_not_finite_is_not_saved(
    root: Path, conversations: list[Conversation], tmp_path: Path, value: float
) -> None:
    model = build(root)
    fit = save_checkpoint(model, rows_of(model, [conversations[:2]]), tmp_path / 'a.ckpt')
    name, buffer = next((n, b) for n, b in model.named_buffers() if n.endswith('running_var'))
    weight = dict(model.named_parameters())[next(n for n, _ in model.named_parameters() if 'lora_B' in n)]
    for tensor in (buffer, weight.data):
        kept = tensor.clone()
        tensor.view(-1)[0] = value
        with pytest.raises(VtbNumericsError, match='not saved') as caught:
            fit.save_checkpoint(tmp_path / 'b.ckpt')
        assert caught.value.field == 'state_dict' and (tensor is not buffer or name in str(caught.value))
        with pytest.raises(VtbNumericsError, match='not saved'):
            model.save_to(tmp_path / 'b.nemo')
        tensor.copy_(kept)
    assert sorted(p.name for p in tmp_path.glob('b.*')) == []
    fit.save_checkpoint(tmp_path / 'b.ckpt')


def test_a_folder_that_cannot_be_written_to(shared: VoiceTextBlender, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(VtbCheckpointError, match='cannot be written'):
        shared.save_to(tmp_path / 'file' / 'model.nemo')


@pytest.mark.parametrize('encoder', ['fastconformer', 'whisper'])
def test_a_nemo_file_restores_twice_without_its_sources(
    conversations: list[Conversation], tmp_path: Path, encoder: str
) -> None:
    model = VoiceTextBlender(tiny_model_cfg(tmp_path / 'sources', encoder=encoder)).eval()
    (row,) = rows_of(model, [conversations])
    expected = model.batch_nll(row)[0]
    answers = model.answer([c.prompt for c in conversations[:3]], max_new_tokens=4)
    model.save_to(tmp_path / 'first.nemo')
    (tmp_path / 'sources').rename(tmp_path / 'gone')
    first = ModelPT.restore_from(str(tmp_path / 'first.nemo'))
    first.save_to(tmp_path / 'second.nemo')
    (tmp_path / 'first.nemo').unlink()
    second = VoiceTextBlender.restore_from(str(tmp_path / 'second.nemo'))
    for restored in (first.eval(), second.eval()):
        assert type(restored) is VoiceTextBlender
        assert restored.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(v, restored.state_dict()[n]) for n, v in model.state_dict().items())
        assert torch.equal(restored.batch_nll(row)[0], expected)
        assert restored.renderer.fingerprint == model.renderer.fingerprint
        assert restored.answer([c.prompt for c in conversations[:3]], max_new_tokens=4) == answers
        trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        assert {n for n, p in restored.named_parameters() if p.requires_grad} == trainable
        assert torch.equal(rows_of(restored, [conversations])[0].labels, row.labels)


# ---- the rest of the face


def test_counting_batch_sizes_per_length_is_refused(shared: VoiceTextBlender) -> None:
    with pytest.raises(VtbConfigError, match='max_tokens'):
        _ = shared.oomptimizer_schema
    assert VoiceTextBlender.list_available_models() == []


def test_a_conversation_whose_frames_were_counted_by_another_model(shared: VoiceTextBlender, tmp_path: Path) -> None:
    tone = write_tones(tmp_path, [1.0])
    wrong = Collator(shared.renderer, lambda samples: shared.frames(samples) + 1)([spoken_conversation(tone)])
    with pytest.raises(Exception, match='number of frames'):
        shared.training_step(wrong, 0)


# ---- what is trained, and how fast


def test_groups_learn_at_a_share_of_the_rate(root: Path) -> None:
    model = build(root, lr_factors=[{'match': r'^llm\..+\.lora_', 'factor': 0.25}])
    lora, rest = model.configure_optimizers()['optimizer'].param_groups
    assert (lora['initial_lr'], rest['initial_lr']) == (0.25e-3, 1e-3)
    names = {id(p): n for n, p in model.named_parameters()}
    assert all('.lora_' in names[id(p)] for p in lora['params'])
    assert all(names[id(p)].startswith('perception.') for p in rest['params'])
    assert len(lora['params']) + len(rest['params']) == sum(p.requires_grad for p in model.parameters())


def test_a_pattern_without_a_trained_parameter_is_refused(root: Path) -> None:
    model = build(root, lr_factors=[{'match': r'^lm\.', 'factor': 0.25}])
    with pytest.raises(VtbConfigError, match=r'lr_factors\[0\]'):
        model.configure_optimizers()


def test_an_llm_that_is_trained_itself_is_in_the_checkpoint(
    root: Path, conversations: list[Conversation], tmp_path: Path
) -> None:
    changes: dict[str, Any] = {'freeze_params': [], 'lora': None}
    model = build(root, **changes)
    save_checkpoint(model, rows_of(model, [conversations, conversations[:3]]), tmp_path / 'a.ckpt')
    other = build(root, **changes)
    resumed = trainer(max_steps=2, plugins=[AtomicCheckpointIO()])
    resumed.fit(other, loader(rows_of(other, [conversations])), ckpt_path=tmp_path / 'a.ckpt')
    state = other.state_dict()
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    assert not torch.equal(state['embed_tokens.weight'], build(root, **changes).state_dict()['embed_tokens.weight'])


@pytest.mark.parametrize('anchor', [None, 15.0])
def test_a_row_whose_conversations_are_all_broken_has_zero_gradients(root: Path, anchor: float | None) -> None:
    model = build(root)
    model.cfg.text_anchor = anchor
    output = model.training_step(pack_row([]), 0)
    output['loss'].backward()
    assert output['kind_counts'].sum() == 0
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in trained)


def test_a_tokenizer_with_more_words_than_the_embedding_has_rows_is_refused(tmp_path: Path) -> None:
    cfg = tiny_model_cfg(tmp_path)
    config = Path(cfg['pretrained_llm']) / 'config.json'
    sizes = json.loads(config.read_text()) | {'vocab_size': 50}
    config.write_text(json.dumps(sizes))
    with pytest.raises(VtbModelError) as caught:
        VoiceTextBlender(cfg | {'pretrained_weights': False})
    assert caught.value.field == 'model.tokenizer_path'
