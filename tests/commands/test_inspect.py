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
"""`vtb inspect` shows what the renderer makes, and counts as training counts."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from nemo_vtb.commands.inspect import main, show
from nemo_vtb.data.collate import Collator
from nemo_vtb.data.conversation import Conversation, conversation_from_dict, read_jsonl
from nemo_vtb.errors import VtbConfigError, VtbDataError, VtbModelError
from nemo_vtb.testing import TinyCorpus


def mixed(corpus: TinyCorpus) -> Conversation:
    _, _, line = next(read_jsonl(corpus.path('mixed_modal')))
    return conversation_from_dict(line, base_dir=corpus.folder)


def test_counts_are_those_of_the_packed_row(tiny_model: object, corpus: TinyCorpus) -> None:
    conversation = mixed(corpus)
    batch = Collator(tiny_model.renderer, tiny_model.frames)([conversation])
    console = Console(file=io.StringIO(), width=100)
    counts = show(
        conversation, tiny_model.renderer, console, frames_of=lambda s: tiny_model.frames(round(16000 * s)), exact=True
    )
    assert counts.total == batch.num_tokens
    assert list(counts.frames) == batch.frame_lens.tolist()
    assert counts.supervised == int((batch.labels != -100).sum())


def test_answers_are_green_and_recordings_magenta(tiny_model: object, corpus: TinyCorpus) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system='standard')
    show(mixed(corpus), tiny_model.renderer, console, frames_of=lambda s: 12, exact=False)
    shown = console.file.getvalue()
    answer = mixed(corpus).answer
    assert f'\x1b[1;32m{answer}<|im_end|>' in shown
    assert '\x1b[1;35m▶ ' in shown and '(~12 frames)' in shown
    assert '\x1b[2m<|im_start|>' in shown


def test_file(tiny_llm_dir: Path, corpus: TinyCorpus, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(corpus.path('mixed_modal'))
    assert main([path, '--line', '2', '--count', '2', '--llm', str(tiny_llm_dir)]) == 0
    out = capsys.readouterr().out
    assert 'train-mixed_modal-1' in out and 'train-mixed_modal-2' in out and 'train-mixed_modal-0 ' not in out
    assert 'supervised)' in out and 'Legend' in out


def test_configuration(
    tmp_path: Path, tiny_llm_dir: Path, corpus: TinyCorpus, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'mine.yaml').write_text(
        f'model: {{pretrained_llm: {tiny_llm_dir}, perception: {{}}}}\n'
        f'data: {{budget: {{text: 1.0}}, train_ds: {{input_cfg: '
        f'[{{type: multimodal_conversation, source: mine, manifest_filepath: {corpus.path("text")}}}]}}}}\n'
    )
    assert main([str(tmp_path / 'mine.yaml'), '++data.budget.text=0.5']) == 0
    out = capsys.readouterr().out
    assert 'mine: text, requested share of text: 50.0%' in out and 'train-text-0' in out


def test_bad_input(tmp_path: Path, tiny_llm_dir: Path, corpus: TinyCorpus) -> None:
    path = str(corpus.path('text'))
    with pytest.raises(VtbDataError, match='no such line'):
        main([path, '--line', '99', '--llm', str(tiny_llm_dir)])
    with pytest.raises(VtbModelError, match='tokenizer'):
        main([path, '--llm', str(tmp_path)])
    with pytest.raises(VtbConfigError, match='does not exist'):
        main([str(tmp_path / 'absent.yaml')])
    (tmp_path / 'broken.yaml').write_text('defaults: [nowhere]\n')
    with pytest.raises(VtbConfigError, match='cannot be composed'):
        main([str(tmp_path / 'broken.yaml')])
    (tmp_path / 'other.yaml').write_text('name: x\n')
    with pytest.raises(VtbConfigError, match='no model or no data'):
        main([str(tmp_path / 'other.yaml')])
    with pytest.raises(SystemExit):
        main([path, '--line', '0'])
