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
"""The examples of docs/extend.md work: a model with that encoder encodes what was counted, a source has that type."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

PAGE = (Path(__file__).resolve().parents[2] / 'docs' / 'extend.md').read_text(encoding='utf-8')


def block(language: str, word: str) -> str:
    (found,) = [text for text in re.findall(rf'^```{language}\n(.*?)^```', PAGE, re.M | re.S) if word in text]
    return found


@pytest.fixture
def my_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the page, importable; NeMo's list and our tables are as before afterwards."""
    from nemo.core.classes import common

    from nemo_vtb.data import sources
    from nemo_vtb.model import frames

    monkeypatch.setattr(common, 'ALLOWED_TARGET_PREFIXES', list(common.ALLOWED_TARGET_PREFIXES))
    monkeypatch.setattr(frames, '_BUILDERS', dict(frames._BUILDERS))
    monkeypatch.setattr(sources, 'SOURCE_TYPES', dict(sources.SOURCE_TYPES))
    (tmp_path / 'my_package.py').write_text(block('python', 'MyEncoder') + block('python', 'read_voicemail'))
    monkeypatch.syspath_prepend(tmp_path)
    import my_package  # type: ignore[import-not-found]

    yield my_package
    del sys.modules['my_package']


@pytest.mark.integration
def test_an_encoder_of_your_own_is_counted_exactly(my_package: Any, tiny_root: Path) -> None:
    import torch

    from nemo_vtb.model.blender import VoiceTextBlender
    from nemo_vtb.testing import tiny_model_cfg

    cfg = tiny_model_cfg(tiny_root / 'model')
    cfg['perception'] |= yaml.safe_load(block('yaml', 'MyEncoder'))['perception']
    model = VoiceTextBlender(cfg).eval()
    assert isinstance(model.perception.encoder, my_package.MyEncoder)
    for samples in (16000, 16001, 23999, 41234):
        made, lengths = model.perception(torch.zeros(1, samples), torch.tensor([samples]))
        assert int(lengths[0]) == model.frames(samples) <= made.shape[1], samples


def test_a_data_type_of_your_own_is_read(my_package: Any, tmp_path: Path) -> None:
    from nemo_vtb.data.sources import parse_input_cfg

    path = tmp_path / 'voicemail.jsonl'
    path.write_text('{"id": "7", "file": "a.wav", "summary": "Anna asks for a call."}\n')
    (spec,) = parse_input_cfg([{'type': 'voicemail', 'kind': 'speech_qa', 'manifest_filepath': str(path)}])
    found = spec.read({'id': '7', 'file': 'a.wav', 'summary': 'Anna asks for a call.'}, 0, 'here')
    assert found is not None and found.answer == 'Anna asks for a call.' and found.kind == 'speech_qa'
    assert [audio.path for audio in found.audios] == [f'{tmp_path}/a.wav']
