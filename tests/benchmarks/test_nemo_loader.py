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
"""The study's loader draws with NeMo's, packs with our rows, and is counted by the same ledger."""

import importlib
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from data_helpers import count_frames, data_cfg

from nemo_vtb.data.collate import Collator, PackedRow
from nemo_vtb.data.conversation import conversation_from_dict
from nemo_vtb.errors import VtbConfigError

Make = Callable[..., Any]
FOLDER = Path(__file__).resolve().parents[2] / 'benchmarks' / 'study'


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module('nemo_loader')


@pytest.fixture
def make(loader: ModuleType, small: Path, renderer: Any) -> Make:
    """Make a data module that draws by NeMo's loader."""

    def module(**keys: Any) -> Any:
        data = loader.NemoDataModule(data_cfg(small, **keys), renderer, count_frames)
        data.setup('fit')
        return data

    return module


def rows(data: Any, ledger: Any, count: int) -> list[PackedRow]:
    """Train on so many rows."""
    found, source = [], data.train_dataloader()
    ledger.attach(source)
    for row in islice(source, count):
        found.append(row)
        ledger.consume(row)
    return found


@pytest.mark.integration
def test_rows_are_those_of_our_collator(
    loader: ModuleType, make: Make, small: Path, renderer: Any, meter: Any
) -> None:
    """Same tokens, labels and sound as the conversation of that id gives by itself."""
    batch = rows(make(), loader.NemoLedger(), 1)[0]
    lines = {}
    for path in small.glob('*.jsonl'):
        for line in path.read_text().splitlines():
            lines[json.loads(line)['id']] = json.loads(line)
    ours = Collator(renderer, meter.frame_counter)(
        [
            conversation_from_dict(lines[id_], kind=kind, source=source, base_dir=small)
            for id_, kind, source in zip(batch.ids, batch.kinds, batch.sources, strict=True)
        ]
    )
    for name in ('input_ids', 'labels', 'label_kinds', 'position_ids', 'cu_seqlens', 'audio_positions', 'frame_lens'):
        assert torch.equal(getattr(batch, name), getattr(ours, name)), name
    assert torch.allclose(batch.audios, ours.audios, atol=1e-6)


@pytest.mark.integration
def test_the_ledger_shows_what_nemo_delivers(loader: ModuleType, make: Make) -> None:
    """Shares requested in tokens are taken as shares of examples, so long conversations get too much."""
    ledger = loader.NemoLedger()
    seen = rows(make(), ledger, 150)
    book = ledger.ledger.to_json()
    assert book['tokens'] == sum(row.num_tokens for row in seen)
    assert book['batches'] == 150
    shares = {kind: share['delivered'] for kind, share in book['kinds'].items()}
    assert shares['mixed_modal'] > 0.35 > 0.3 > shares['asr_ast']


class Broken:
    """A lhotse cut whose recording cannot be read."""

    id, duration = 'c', 1.0

    def resample(self, _: int) -> 'Broken':
        return self

    def load_audio(self) -> Any:
        from lhotse.audio.utils import AudioLoadingError

        raise AudioLoadingError('no such sound')


def test_a_recording_that_cannot_be_read_is_counted(loader: ModuleType, make: Make) -> None:
    data, ledger = make(), loader.NemoLedger()
    said = SimpleNamespace(role='user', value='hello')
    answer = SimpleNamespace(role='assistant', value='yes')
    good = SimpleNamespace(id='a_repeat3', vtb_source='text', turns=[said, answer])
    spoken = SimpleNamespace(role='user', cut=Broken())
    bad = SimpleNamespace(id='b', vtb_source='asr_ast', turns=[spoken, answer])
    row = loader._Rows(data.collator, data.sources)[[bad, good]]
    assert row.ids == ['a']
    assert row.faults == [{'source': 'asr_ast', 'id': 'b', 'reason': 'audio_unreadable'}]
    ledger.attach(data.train_dataloader())
    ledger.consume(row)
    assert ledger.ledger.to_json()['skips'] == {'audio_unreadable': 1}
    assert ledger.ledger.accounts['text'].tokens == row.num_tokens


def test_types_that_nemo_does_not_read_as_conversations_are_refused(make: Make, tmp_path: Path, small: Path) -> None:
    wav = next((small / 'wav').iterdir())
    (tmp_path / 'm.jsonl').write_text(json.dumps({'audio_filepath': str(wav), 'text': 'yes'}) + '\n')
    entry = {'type': 'nemo', 'kind': 'asr_ast', 'manifest_filepath': str(tmp_path / 'm.jsonl')}
    cfg = data_cfg(small)['train_ds'] | {'input_cfg': [entry]}
    with pytest.raises(VtbConfigError, match='multimodal_conversation, share_gpt'):
        make(train_ds=cfg, budget={'asr_ast': 1.0}).train_dataloader()
