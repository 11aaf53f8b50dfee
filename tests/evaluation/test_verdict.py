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
"""The verdict: what it rests on, that broken models are caught, and what of it goes into the manifest."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import soundfile
import torch
from evaluation_helpers import kept_of, simple, text_metric, text_scores

from nemo_vtb.checkpoint.archive import read_info
from nemo_vtb.data.collate import Collator
from nemo_vtb.data.datamodule import VtbDataModule
from nemo_vtb.evaluation.answers import evaluating
from nemo_vtb.evaluation.result import Evaluation, ExampleScore, Metric
from nemo_vtb.evaluation.retention import retention_metrics
from nemo_vtb.evaluation.runner import evaluate
from nemo_vtb.evaluation.tasks.held_out import load_conversations
from nemo_vtb.evaluation.verdict import manifest_sections, verdict_of, write_to_manifest
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.model.loss import row_nll
from nemo_vtb.testing import TinyCorpus, tiny_model_cfg
from nemo_vtb.training.run_state import RunState

MOST_STEPS = 600
SAID = {
    'calls': ('open window', 'close door', 'heater off'),
    'meetings': ('blue words', 'green mountain', 'who asked'),
}


def write_recordings(folder: Path) -> Path:
    """A manifest of spoken words, a tone for each, in which no word comes twice and all recordings are equally long.

    Who cannot tell them apart gives one answer to the three of a source, and a word of it is right in one of them at
    most: an error rate of at least 67 %, and a verdict of deafness.
    """
    pitches = {word: 150 * 2 ** (i / 6) for i, word in enumerate(' '.join(sum(SAID.values(), ())).split())}
    time, lines = np.arange(4000) / 16000, []
    for source, texts in SAID.items():
        for text in texts:
            tones = [np.sin(2 * np.pi * pitches[word] * time) * np.hanning(len(time)) for word in text.split()]
            name = f'{text}.wav'.replace(' ', '-')
            soundfile.write(folder / name, 0.3 * np.concatenate(tones), 16000)
            asked = {'type': 'text', 'from': 'User', 'value': 'Transcribe the speech.'}
            heard = {'type': 'audio', 'from': 'User', 'value': name, 'duration': len(tones) / 4, 'text': text}
            turns = [asked, heard, {'type': 'text', 'from': 'Assistant', 'value': text}]
            lines.append({'id': text, 'conversations': turns, 'custom': {'task': 'asr', 'source': source}})
    path = folder / 'asr_ast.jsonl'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return path


class _ByHeart(pl.Callback):
    """Ends the training when each token of the answers has 3/4 of the probability: greedy answers are then right."""

    def __init__(self, model: VoiceTextBlender, path: Path) -> None:
        self.row = Collator(model.renderer, model.frames)(list(load_conversations(path, 'asr_ast')))

    def on_train_batch_end(self, trainer: pl.Trainer, model: VoiceTextBlender, *args: object) -> None:
        if trainer.global_step % 20 == 0:
            with torch.no_grad(), evaluating(model):
                nll = row_nll(model.hidden_states(self.row)[1], self.row.labels, model.backbone.nll)
            trainer.should_stop = bool(nll.max() < -math.log(0.75))


@pytest.fixture(scope='module')
def trained(
    tmp_path_factory: pytest.TempPathFactory, corpus: TinyCorpus, teach: Callable[[VoiceTextBlender, Path], None]
) -> SimpleNamespace:
    """A tiny model that knows its recordings by heart, as its LLM knows its chats, and reads as its base LLM."""
    folder = tmp_path_factory.mktemp('report')
    data = {'asr_ast': write_recordings(folder), 'text': corpus.path('text')}
    torch.manual_seed(0)
    model_cfg = tiny_model_cfg(folder / 'm') | {'text_anchor': 15.0}
    model_cfg['optimizer']['lr'] = 3e-3
    model = VoiceTextBlender(model_cfg)
    teach(model, data['text'])
    entries = [
        {'type': 'multimodal_conversation', 'kind': k, 'manifest_filepath': str(p), 'weight': 1}
        for k, p in data.items()
    ]
    cfg = {
        'train_ds': {'seed': 1, 'input_cfg': entries},
        'budget': {'text': 0.3, 'asr_ast': 0.7},
        'max_tokens': 512,
        'rows_per_batch': 1,
        'num_workers': 0,
    }
    trainer = pl.Trainer(
        accelerator='cpu', max_steps=MOST_STEPS, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, use_distributed_sampler=False, enable_checkpointing=False,
        callbacks=[RunState(folder), _ByHeart(model, data['asr_ast'])],
    )  # fmt: skip
    trainer.fit(model, VtbDataModule(cfg, model.renderer, model.frames))
    assert trainer.global_step < MOST_STEPS, 'the recordings were not learnt'
    return SimpleNamespace(model=model, data=data)


def verdict(run: SimpleNamespace) -> Any:
    return verdict_of(evaluate(run.model, run.data, max_new_tokens=12))


@contextmanager
def changed(weights: list[torch.Tensor], factor: float) -> Iterator[None]:
    kept = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w in weights:
            w.mul_(factor)
        yield
        for w, k in zip(weights, kept, strict=True):
            w.copy_(k)


def test_a_sound_model_is_green(trained: SimpleNamespace) -> None:
    found = verdict(trained)
    assert found.level == 'green', found
    assert found.sentence.startswith('It hears (WER ') and 'It reads as before' in found.sentence


def test_a_zeroed_adapter_is_caught(trained: SimpleNamespace) -> None:
    with changed(list(trained.model.perception.proj.parameters()), 0.0):
        found = verdict(trained)
    assert found.level == 'red' and 'does not hear' in found.sentence and 'reads as before' in found.sentence


def test_lora_times_ten_is_caught(trained: SimpleNamespace) -> None:
    with changed([p for name, p in trained.model.named_parameters() if 'lora_B' in name], 10.0):
        found = verdict(trained)
    assert found.level == 'red' and 'forgotten how to read' in found.sentence


@pytest.mark.parametrize(
    ('wer', 'ours', 'interval', 'level', 'words'),
    [
        (5.0, 10.0, None, 'green', 'kept at least 100.0 %'),
        (30.0, 10.0, None, 'amber', 'with many mistakes'),
        (61.0, 10.0, None, 'red', 'does not hear'),
        (5.0, 10.5, None, 'amber', 'forgotten a little: it kept 95.2 %'),
        (5.0, 12.0, None, 'red', 'forgotten how to read: it kept 83.3 %'),
        # an interval that holds 100 % proves no loss, and a mean under the goal proves no keeping
        (5.0, 12.0, (60.0, 104.0), 'amber', 'may have forgotten something'),
        (5.0, 12.0, (80.0, 87.0), 'red', '80.0 to 87.0'),
        (5.0, math.inf, None, 'red', 'it kept 0.0 %'),
    ],
)
def test_verdict(wer: float, ours: float, interval: tuple | None, level: str, words: str) -> None:
    found = verdict_of(simple(wer, ours, interval or (None, None)))
    assert found.level == level and words in found.sentence, found


def test_what_was_not_measured_is_said() -> None:
    found = verdict_of(Evaluation(()))
    assert found.level == 'amber' and found.sentence.count('not measured') == 2


def test_a_model_that_is_worse_than_the_other_beyond_both_intervals() -> None:
    base = simple(5.0, 10.0)
    assert verdict_of(simple(9.0, 10.0), base, 'before').level == 'green'
    found = verdict_of(simple(18.0, 10.0), base, 'before')
    assert found.level == 'amber' and 'Worse than before: WER on calls 18.0, there 5.0.' in [
        r for _, r in found.reasons
    ]


def test_text_kept_is_drawn_in_pairs(trained: SimpleNamespace) -> None:
    with changed([p for name, p in trained.model.named_parameters() if 'lora_B' in name], 1.5):
        result = evaluate(trained.model, trained.data, max_new_tokens=2)
    row = result.metric('text', 'perplexity')
    found = result.metric('chats', 'kept', suite='retention')
    assert found.value == pytest.approx(100 * row.base / row.value)
    assert found.interval[0] <= found.value <= found.interval[1]
    assert result.metric('retention', 'kept').value == found.value
    ours, base = [1.0] * 4 + [0.0] * 6, [1.0] * 5 + [0.0] * 5
    kept = kept_of([text_metric('facts', ours, base)], text_scores('facts', ours, base))
    assert kept['facts'].value == kept['tasks'].value == kept['retention'].value == pytest.approx(80)


def test_the_set_of_chats_that_lost_most_counts() -> None:
    sums = {'people': (20.0, 16.0), 'own': (20.0, 22.0)}  # nats of base LLM and model on 10 targets
    scores = [
        ExampleScore(
            'speech', 'text', source, f'{source}{i}', {'perplexity': (ours, 10.0)}, {'perplexity': (base, 10.0)}
        )
        for source, (base, ours) in sums.items()
        for i in range(3)
    ]
    found = retention_metrics([], scores)
    own, least, retention = (next(m for m in found if (m.task, m.source) == key)
                             for key in (('chats', 'own'), ('chats', ''), ('retention', '')))  # fmt: skip
    assert own.value == least.value == retention.value == pytest.approx(100 * math.exp(-0.2))
    assert least.interval == own.interval and 'own' in least.signature


def test_numbers_that_json_does_not_know(tiny_model: VoiceTextBlender, tmp_path: Path) -> None:
    nemo_file = tmp_path / 'tiny.nemo'
    tiny_model.save_to(str(nemo_file))
    write_to_manifest(nemo_file, simple(5.0, math.inf))
    manifest = read_info(nemo_file).manifest
    assert manifest['evaluation']['rows'][1]['model'] is None and manifest['retention']['verdict'] == 'red'
    assert manifest['retention']['kept'][0]['model'] == 0


def test_figures_are_rows_and_nothing_measured_is_no_retention() -> None:
    metric = Metric('emergent', 'names', '', 'right', 8, 50.0, (20.0, 80.0), 25.0)
    evaluation, retention = manifest_sections(Evaluation((metric,)))
    assert evaluation['rows'] == [
        {'task': 'emergent: names', 'source': '', 'measure': 'right', 'n': 8, 'base': 25.0, 'model': 50.0,
         'low': 20.0, 'high': 80.0, 'signature': ''}
    ]  # fmt: skip
    assert retention is None
