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
"""A run's state: exact resume on any workers and ranks, a ledger that adds up, faults that harm only themselves."""

import json
import multiprocessing
import random
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
from data_helpers import consume, count_frames, data_cfg, make_corpus, write_jsonl

from nemo_vtb.data.collate import PackedRow
from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.data.template import ChatRenderer
from nemo_vtb.errors import VtbCheckpointError, VtbConfigError, VtbDataError
from nemo_vtb.io import read_json_lines
from nemo_vtb.parallel.dims import ParallelDims
from nemo_vtb.training.run_state import Quarantine, RunState

Make = Callable[..., VtbDataModule]


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once: what fails here fails for good."""
    monkeypatch.setattr('nemo_vtb.data.datamodule._RETRY_S', 0.0)


def run(data: VtbDataModule, state: RunState, count: int | None = None) -> list[tuple[int, list[str]]]:
    """Train on `count` rows: their numbers and ids."""
    return [(row.index, row.ids) for row in consume(data, state, count)]


@pytest.mark.parametrize('stops', [(0,), (3, 4), (7, 1, 2)])
@pytest.mark.parametrize(('workers', 'ahead'), [(0, 0), (2, 0), (2, 3)])
def test_a_resumed_run_is_the_run(
    module: Make, tmp_path: Path, stops: tuple[int, ...], workers: int, ahead: int
) -> None:
    keys = {'num_batches': 40, 'num_workers': workers}
    expected = run(module(**keys), RunState(tmp_path))
    keys |= {'plan_ahead': ahead}
    state, seen = RunState(tmp_path), []
    for stop in stops:
        seen += run(module(**keys), state, stop)  # the workers have prefetched more than that
        saved = json.loads(json.dumps(state.state()))
        state = RunState(tmp_path)
        state.load(saved)
    seen += run(module(**keys), state)
    assert seen == expected
    assert state.ledger.batches == 40


@pytest.mark.parametrize('workers', [0, 2])
def test_a_second_fit_goes_on(module: Make, tmp_path: Path, workers: int) -> None:
    data, state = module(num_batches=20, num_workers=workers), RunState(tmp_path)
    assert run(data, state, 8) + run(data, state, 12) == run(module(num_batches=20), RunState(tmp_path))
    assert state.ledger.batches == 20


def test_the_ledger_adds_up(module: Make, tmp_path: Path) -> None:
    state = RunState(tmp_path)
    tokens = sum(row.num_tokens for row in consume(module(num_batches=300), state))
    book = state.ledger.to_json()
    assert book['tokens'] == tokens
    assert book['padding'] == pytest.approx(1 - tokens / (300 * 256))
    for source in book['sources']:
        assert source['delivered'] == pytest.approx(source['asked'], rel=0.02)
    state.save_ledger(plot=True)
    assert json.loads((tmp_path / 'ledger.json').read_text()) == book
    assert (tmp_path / 'ledger.png').is_file()


def test_what_a_validation_set_loses_is_listed(module: Make, small: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (small / 'asr_ast.jsonl').read_text().splitlines()]
    for line in lines:
        line['conversations'][1]['value'] = str(small / line['conversations'][1]['value'])
    lines[3]['conversations'][1]['value'] = str(tmp_path / 'none.wav')
    shutil.copy(small / 'wav/1.wav', tmp_path / 'gone.wav')
    lines[5]['conversations'][1] |= {'value': str(tmp_path / 'gone.wav'), 'duration': None}
    path = write_jsonl(tmp_path / 'val.jsonl', lines)
    entry = {'type': 'multimodal_conversation', 'kind': 'asr_ast', 'manifest_filepath': str(path)}
    data = module(validation_ds={'datasets': {'v': {'input_cfg': [entry]}}}, max_skip_ratio=0.1)
    (tmp_path / 'gone.wav').unlink()
    state = RunState(tmp_path / 'run')
    trainer = pl.Trainer(accelerator='cpu', logger=False, enable_checkpointing=False, callbacks=[state])
    trainer.validate(Probe([]), data, verbose=False)
    listed = [json.loads(line) for line in (tmp_path / 'run/quarantine.jsonl').read_text().splitlines()]
    assert [(line['reason'], line['source']) for line in listed] == [('audio_missing', 'val')] * 2


@pytest.fixture
def damaged(tmp_path: Path, renderer: ChatRenderer) -> Callable[..., VtbDataModule]:
    """A corpus that is damaged after it was indexed: three recordings vanish, are cut, or grow."""
    folder = make_corpus(tmp_path / 'damaged')

    def make(damage: bool = True, **keys: Any) -> VtbDataModule:
        cfg = data_cfg(folder, max_skip_ratio=0.5, refund_batches=8) | keys
        data = VtbDataModule(cfg, renderer, count_frames, num_batches=60)
        data.setup('fit')
        if damage and (folder / 'wav/3.wav').exists():
            (folder / 'wav/3.wav').unlink()
            wav = (folder / 'wav/5.wav').read_bytes()
            (folder / 'wav/5.wav').write_bytes(wav[: len(wav) // 2])
            shutil.copy(folder / 'wav/7.wav', folder / 'wav/9.wav')
        return data

    return make


def test_what_fails_while_it_is_loaded_harms_only_itself(damaged: Make, tmp_path: Path) -> None:
    state = RunState(tmp_path / 'run')
    rows, tokens, bad = [], 0, []
    for row in consume(damaged(), state):
        rows.append(row.index)
        tokens += row.num_tokens
        bad += row.faults
    assert rows == list(range(60))
    assert {'audio_missing', 'duration_mismatch'} <= {fault['reason'] for fault in bad}
    book = state.ledger.to_json()
    assert book['tokens'] == tokens
    assert sum(book['skips'].values()) == len(bad)
    lines = [json.loads(line) for line in (tmp_path / 'run/quarantine.jsonl').read_text().splitlines()]
    assert {(line['file'], line['byte_offset']) for line in lines} == {(f['file'], f['byte_offset']) for f in bad}
    assert len(lines) == len({(line['file'], line['byte_offset']) for line in lines})


def test_lost_tokens_are_given_back_so_that_shares_hold(damaged: Make, tmp_path: Path) -> None:
    data, state = damaged(num_workers=2), RunState(tmp_path)
    run(data, state)
    for kind, (asked, delivered) in state.ledger.kind_shares().items():
        assert delivered == pytest.approx(asked, rel=0.12), kind
    assert state.state()['plan']['refunds']
    assert state.ledger.skipped > 10


@pytest.mark.parametrize(('stop', 'ahead'), [(1, 0), (9, 0), (30, 0), (9, 1)])
def test_resume_is_exact_also_with_faults(damaged: Make, tmp_path: Path, stop: int, ahead: int) -> None:
    expected = run(damaged(), RunState(tmp_path))
    state = RunState(tmp_path)
    seen = run(damaged(plan_ahead=ahead), state, stop)
    again = RunState(tmp_path)
    again.load(json.loads(json.dumps(state.state())))
    assert seen + run(damaged(plan_ahead=ahead), again) == expected


def test_a_resume_keeps_the_lines_of_the_quarantine(damaged: Make, tmp_path: Path) -> None:
    """Also where a validation set has a fault of its own, which begins a new file before the state is loaded."""
    bad = tmp_path / 'bad.jsonl'
    entry = {'type': 'multimodal_conversation', 'manifest_filepath': str(bad), 'source': 'bad'}
    good = (make_corpus(tmp_path / 'val') / 'text.jsonl').read_text().splitlines()[:40]
    bad.write_text('\n'.join([*good, '{broken']) + '\n')
    folder, path = tmp_path / 'run', tmp_path / 'run/quarantine.jsonl'
    fit(damaged(), folder, 30)
    first = read_json_lines(path)
    assert first
    (folder / 'run_0').mkdir()
    path.rename(folder / 'run_0/quarantine.jsonl')  # as exp_manager does at each resume
    data = damaged(validation_ds={'datasets': {'v': {'input_cfg': [entry]}}})
    fit(data, folder, 32, folder / 'step=30.ckpt')
    after = read_json_lines(path)
    assert [line for line in first if line not in after] == []
    assert any(line['reason'] == 'not_json' for line in after) and len(after) > len(first)


def test_too_many_faults_stop_the_run(damaged: Make, tmp_path: Path) -> None:
    with pytest.raises(VtbDataError, match='cannot be loaded') as caught:
        run(damaged(max_skip_ratio=0.01), RunState(tmp_path))
    assert 'audio_missing' in str(caught.value)


def test_a_changed_manifest_is_refused_before_the_first_step(tmp_path: Path, renderer: ChatRenderer) -> None:
    folder = make_corpus(tmp_path / 'c')

    def make(**keys: Any) -> VtbDataModule:
        cfg = data_cfg(folder) | keys
        return VtbDataModule(cfg, renderer, count_frames, num_batches=20)

    state = RunState(tmp_path)
    run(make(), state, 5)
    saved = state.state()
    lines = (folder / 'text.jsonl').read_text().splitlines()
    (folder / 'text.jsonl').write_text('\n'.join(lines[:-1]) + '\n')
    again = RunState(tmp_path)
    again.load(saved)
    with pytest.raises(VtbCheckpointError, match=r'sources\.text'):
        again.attach(make().train_dataloader(), ParallelDims())
    again.load(saved)
    assert run(make(allow_changed=True), again, 3)[0][0] == 5


def chance() -> list[float]:
    """What dropout, dither and SpecAugment draw from."""
    return [float(torch.rand(())), float(np.random.rand()), random.random()]


class Probe(pl.LightningModule):
    """Remembers what it was trained on, with which random numbers, and when it stepped."""

    def __init__(self, log: list[Any]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.log_ = log

    def training_step(self, batch: PackedRow, batch_idx: int) -> torch.Tensor:
        self.log_.append((batch.index, batch.ids, chance(), batch_idx))
        return self.weight.sum() * len(batch.ids)

    def validation_step(self, batch: PackedRow, batch_idx: int, dataloader_idx: int = 0) -> None:
        assert batch.dataset in ('text', 'validation', 'v')
        chance()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.log_.append('step')

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(data: VtbDataModule, folder: Path, max_steps: int, ckpt: Path | None = None, **keys: Any) -> list[Any]:
    log: list[Any] = []
    saver = pl.callbacks.ModelCheckpoint(folder, filename='{step}', every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator='cpu',
        devices=1,
        max_steps=max_steps,
        callbacks=[RunState(folder), saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **({'num_sanity_val_steps': 0, 'limit_val_batches': 0} | keys),
    )
    trainer.fit(Probe(log), datamodule=data, ckpt_path=ckpt)
    return log


@pytest.mark.integration
@pytest.mark.parametrize('accumulate', [1, 3])
@pytest.mark.parametrize('workers', [0, 2])
def test_lightning_resumes_exactly_at_every_checkpoint(
    module: Make, tmp_path: Path, accumulate: int, workers: int
) -> None:
    keys = {'num_workers': workers, 'rows_per_batch': accumulate}
    expected = fit(module(None, **keys), tmp_path / 'whole', 8)
    rows = [e for e in expected if e != 'step']
    assert [(row[0], row[-1]) for row in rows] == [(n, n) for n in range(len(rows))]
    steps = [n for n, e in enumerate(expected) if e == 'step']
    assert len(steps) == 8
    for stop in (1, 5):
        ckpt = tmp_path / 'whole' / f'step={stop}.ckpt'
        log = fit(module(None, **keys), tmp_path / f'resumed{stop}', 8, ckpt)
        assert log == expected[steps[stop - 1] + 1 :]
        second = fit(module(None, **keys), tmp_path / f'again{stop}', 8, tmp_path / f'resumed{stop}' / 'step=6.ckpt')
        assert second == expected[steps[5] + 1 :]


@pytest.mark.integration
def test_lightning_epochs_and_validation_do_not_disturb(module: Make, tmp_path: Path, small: Path) -> None:
    sets = {
        'text': {'input_cfg': [{'type': 'multimodal_conversation', 'manifest_filepath': str(small / 'text.jsonl')}]}
    }
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    whole = fit(module(None, rows_per_batch=2), tmp_path / 'a', 9)
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    keys = {'limit_train_batches': 6, 'val_check_interval': 2, 'limit_val_batches': 1}
    data = module(None, rows_per_batch=2, num_workers=2, validation_ds={'datasets': sets})
    log = fit(data, tmp_path / 'b', 9, **keys)
    assert [e[:3] for e in log if e != 'step'] == [e[:3] for e in whole if e != 'step']
    for stop in (2, 3, 4):
        data = module(None, rows_per_batch=2, validation_ds={'datasets': sets})
        resumed = fit(data, tmp_path / f'c{stop}', 9, tmp_path / 'b' / f'step={stop}.ckpt', **keys)
        assert [e[:3] for e in resumed if e != 'step'] == [e[:3] for e in whole if e != 'step'][2 * stop :]
        assert resumed.count('step') == 9 - stop
    data = module(None, rows_per_batch=4)
    with pytest.raises(VtbConfigError, match='inside a global batch'):
        fit(data, tmp_path / 'd', 9, **keys)


@pytest.mark.integration
@pytest.mark.parametrize('policy', ['drop', 'stop'])
def test_the_run_ends_when_the_data_is_used_up(module: Make, tmp_path: Path, small: Path, policy: str) -> None:
    """Lightning would otherwise begin one epoch without a batch after the other."""
    train = data_cfg(small)['train_ds']
    train['input_cfg'] = [entry | {'max_repeats': 2} for entry in train['input_cfg']]
    keys = {'train_ds': train, 'on_exhausted': policy, 'rows_per_batch': 2, 'num_workers': 1}
    log = fit(module(None, **keys), tmp_path / 'a', 5000)
    seen = Counter(id_ for entry in log if entry != 'step' for id_ in entry[1])
    assert max(seen.values()) == 2
    if policy == 'drop':  # the last rows may be too few for a global batch
        assert sum(seen.values()) > 0.95 * 2 * 184
    else:  # at the end of the first source
        assert sum(seen.values()) < 2 * 184
    steps = log.count('step')
    resumed = fit(module(None, **keys), tmp_path / 'b', 5000, tmp_path / 'a' / f'step={steps - 3}.ckpt')
    assert resumed.count('step') == 3
    assert fit(module(None, **keys), tmp_path / 'c', 5000, tmp_path / 'a' / f'step={steps}.ckpt') == []


@pytest.mark.integration
def test_the_run_needs_a_length_and_a_batch_that_fits(module: Make, tmp_path: Path) -> None:
    with pytest.raises(VtbConfigError, match='trainer.max_steps'):
        fit(module(None), tmp_path, -1, max_epochs=1)
    with pytest.raises(VtbConfigError, match='rows_per_batch'):
        fit(module(None, rows_per_batch=4), tmp_path, 2, accumulate_grad_batches=3)


def _rank(
    rank: int, world: int, port: int, folder: Path, renderer: ChatRenderer, faulty: bool, ahead: int, queue: Any
) -> None:
    dist.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=world)
    cfg = data_cfg(folder, rows_per_batch=4, refund_batches=8, max_skip_ratio=0.5, plan_ahead=ahead)
    data = VtbDataModule(cfg, renderer, count_frames, num_batches=20, dims=ParallelDims(rank, world))
    data.setup('fit')
    state = RunState(folder / 'run')
    dist.barrier()
    if faulty:
        (folder / 'wav/3.wav').unlink(missing_ok=True)
    seen: list[list[Any]] = [[] for _ in range(20)]
    for number, row in enumerate(consume(data, state)):
        if number == 9 * (4 // world) + 1:
            state.state()  # a checkpoint in the middle
        seen[number // (4 // world)].append((row.index, sorted(row.ids)))
    queue.put((rank, seen, state.state()['plan'], state.ledger.to_json()))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.integration
@pytest.mark.parametrize('ahead', [0, 1])
@pytest.mark.parametrize('faulty', [False, True])
def test_ranks_share_one_plan_also_with_faults(
    tmp_path: Path, renderer: ChatRenderer, faulty: bool, ahead: int
) -> None:
    """One rank that plans for itself, and several: each for itself, or one process for all."""
    results = {}
    context = multiprocessing.get_context('fork')
    for world in (1, 2, 4):
        folder = make_corpus(tmp_path / f'{world}')
        queue = context.Queue()
        with socket.create_server(('127.0.0.1', 0)) as server:
            port = server.getsockname()[1]
        ranks = [
            context.Process(
                target=_rank, args=(r, world, port, folder, renderer, faulty, ahead if world > 1 else 0, queue)
            )
            for r in range(world)
        ]
        for process in ranks:
            process.start()
        found = sorted((queue.get(timeout=120) for _ in ranks), key=lambda f: f[0])
        for process in ranks:
            process.join(60)
            assert process.exitcode == 0
        assert all(f[2:] == found[0][2:] for f in found)
        ledger = found[0][3]
        del ledger['curve']  # ranks learn of each other's faults some batches later
        results[world] = ([sorted(row for f in found for row in f[1][k]) for k in range(20)], ledger)
    assert results[1] == results[2] == results[4]
    assert bool(results[1][1]['skips']) == faulty


@pytest.mark.integration
def test_a_checkpoint_from_before_the_run_state_resumes(module: Make, tmp_path: Path) -> None:
    """The state stood under the data module's name then, and once more in Lightning's state of the loader."""
    expected = fit(module(None), tmp_path / 'whole', 6)
    path = tmp_path / 'whole' / 'step=2.ckpt'
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['VtbDataModule'] = state = checkpoint.pop('run_state')
    checkpoint['loops']['fit_loop']['state_dict']['combined_loader'] = [state]
    torch.save(checkpoint, tmp_path / 'former.ckpt')
    steps = [n for n, e in enumerate(expected) if e == 'step']
    assert fit(module(None), tmp_path / 'resumed', 6, tmp_path / 'former.ckpt') == expected[steps[1] + 1 :]


def test_the_quarantine_holds_any_text_and_lists_it_once(tmp_path: Path) -> None:
    odd = ['a\u2028b', 'c\x85d', '\ud800', 'e\x1ef', '\udcff.wav']
    faults = [
        {'source': 's', 'file': text, 'byte_offset': n, 'reason': 'other', 'id': text} for n, text in enumerate(odd)
    ]
    assert Quarantine(tmp_path / 'q.jsonl').add(faults) == len(odd)
    assert Quarantine(tmp_path / 'q.jsonl').add(faults) == 0
    assert [line['id'] for line in read_json_lines(tmp_path / 'q.jsonl')] == odd


def test_a_run_that_trained_on_nothing_fails(tmp_path: Path, renderer: ChatRenderer) -> None:
    folder = make_corpus(tmp_path / 'data', {'asr_ast': 12, 'speech_qa': 12, 'mixed_modal': 12, 'text': 0})
    cfg = data_cfg(folder, max_skip_ratio=1.0)
    cfg['train_ds']['input_cfg'] = [entry for entry in cfg['train_ds']['input_cfg'] if entry['kind'] != 'text']
    cfg['budget'] = {'asr_ast': 0.4, 'speech_qa': 0.3, 'mixed_modal': 0.3}
    data = VtbDataModule(cfg, renderer, count_frames, num_batches=3)
    data.setup('fit')
    shutil.rmtree(folder / 'wav')
    state = RunState(tmp_path / 'run')
    assert not [id_ for row in consume(data, state) for id_ in row.ids]
    with pytest.raises(VtbDataError, match='audio_missing'):
        state.on_train_end(None, None)  # type: ignore[arg-type]
