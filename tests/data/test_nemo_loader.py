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
"""`data.sampler: nemo` draws with NeMo's loader, packs with our rows, and is counted by the same ledger."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from data_helpers import data_cfg

from nemo_vtb.data.collate import Collator, PackedRow
from nemo_vtb.data.conversation import conversation_from_dict
from nemo_vtb.data.nemo_loader import _Rows
from nemo_vtb.errors import VtbConfigError

Make = Callable[..., Any]


def rows(data: Any, count: int) -> list[PackedRow]:
    """Train on so many rows."""
    found = []
    for batch in islice(data.train_dataloader(), count):
        found.append(batch)
        data.on_consumed(batch)
    return found


@pytest.mark.integration
def test_rows_are_those_of_our_collator(module: Make, small: Path, renderer: Any, meter: Any) -> None:
    """Same tokens, labels and sound as the conversation of that id gives by itself."""
    batch = rows(module(sampler='nemo'), 1)[0]
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
def test_the_ledger_shows_what_nemo_delivers(module: Make) -> None:
    """Shares asked in tokens are taken as shares of examples, so long conversations get too much."""
    data = module(sampler='nemo', num_batches=None)
    seen = rows(data, 150)
    book = data.ledger.to_json()
    assert book['tokens'] == sum(batch.num_tokens for batch in seen)
    assert book['batches'] == 150
    shares = {kind: share['delivered'] for kind, share in book['kinds'].items()}
    assert shares['mixed_modal'] > 0.35 > 0.3 > shares['asr_ast']
    state = json.loads(json.dumps(data.state_dict()))
    again = module(sampler='nemo', num_batches=None)
    again.load_state_dict(state)
    rows(again, 1)
    assert again.ledger.batches == 151


class Broken:
    """A lhotse cut whose recording cannot be read."""

    id, duration = 'c', 1.0

    def resample(self, _: int) -> 'Broken':
        return self

    def load_audio(self) -> Any:
        from lhotse.audio.utils import AudioLoadingError

        raise AudioLoadingError('no such sound')


def test_a_recording_that_cannot_be_read_is_counted(module: Make, renderer: Any, meter: Any) -> None:
    data = module(sampler='nemo', num_batches=None)
    said = SimpleNamespace(role='user', value='hello')
    answer = SimpleNamespace(role='assistant', value='yes')
    good = SimpleNamespace(id='a_repeat3', vtb_source='text', turns=[said, answer])
    spoken = SimpleNamespace(role='user', cut=Broken())
    bad = SimpleNamespace(id='b', vtb_source='asr_ast', turns=[spoken, answer])
    row = _Rows(Collator(renderer, meter.frame_counter), data.progress.sources)[[bad, good]]
    assert row.ids == ['a']
    assert row.faults == [{'source': 'asr_ast', 'id': 'b', 'reason': 'audio_unreadable'}]
    data.train_dataloader()
    data.on_consumed(row)
    assert data.ledger.to_json()['skips'] == {'audio_unreadable': 1}
    assert data.ledger.accounts['text'].tokens == row.num_tokens


def test_types_that_nemo_does_not_read_as_conversations_are_refused(module: Make, tmp_path: Path, small: Path) -> None:
    wav = next((small / 'wav').iterdir())
    (tmp_path / 'm.jsonl').write_text(json.dumps({'audio_filepath': str(wav), 'text': 'yes'}) + '\n')
    entry = {'type': 'nemo', 'kind': 'asr_ast', 'manifest_filepath': str(tmp_path / 'm.jsonl')}
    cfg = data_cfg(small)['train_ds'] | {'input_cfg': [entry]}
    with pytest.raises(VtbConfigError, match='multimodal_conversation, share_gpt'):
        module(sampler='nemo', train_ds=cfg, budget={'asr_ast': 1.0}).train_dataloader()
