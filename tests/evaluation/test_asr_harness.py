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
"""A plain Whisper through the whole harness: its error rates are those of jiwer on the same transcripts."""

import json
from collections.abc import Sequence
from pathlib import Path

import jiwer
import pytest
import torch

from nemo_vtb.data.audio import read_audio
from nemo_vtb.data.conversation import Conversation
from nemo_vtb.data.normalizers import get_normalizer
from nemo_vtb.evaluation.metrics import corpus, error_rate
from nemo_vtb.evaluation.runner import evaluate

COUNT = 20


class PlainWhisper(torch.nn.Module):
    """Stock transformers, asked by the harness as any model is."""

    def __init__(self, folder: str, renderer: object) -> None:
        from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

        super().__init__()
        self.whisper = WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True)
        self.features = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.cfg = {'pretrained_llm': folder}
        self.renderer, self.frames = renderer, int

    def transcribe(self, clips: Sequence) -> list[str]:
        mel = self.features(clips, sampling_rate=16000, return_tensors='pt').input_features
        return self.tokenizer.batch_decode(self.whisper.generate(mel), skip_special_tokens=True)

    def answer(self, prompts: Sequence[Conversation], **_: object) -> list[str]:
        return self.transcribe([read_audio(prompt.audios[0]) for prompt in prompts])


@pytest.mark.real_weights
def test_scores_of_a_plain_whisper_are_those_of_jiwer(assets: object, renderer: object, tmp_path: Path) -> None:
    found = assets('whisper-tiny.en', 'demo-corpus')
    lines = [json.loads(line) for line in (found['demo-corpus'] / 'asr_ast.test.jsonl').open(encoding='utf-8')]
    lines = [line for line in lines if line['custom']['source'] == 'asterisk-asr'][:COUNT]
    assert len(lines) == COUNT
    spoken, references = [], []
    for line in lines:
        for part in line['conversations']:
            if part['type'] == 'audio':
                part['value'] = str(found['demo-corpus'] / part['value'])
                spoken.append(part['value'])
            elif part['from'] == 'Assistant':
                references.append(part['value'])
    data = tmp_path / 'asr_ast.test.jsonl'
    data.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    model = PlainWhisper(str(found['whisper-tiny.en']), renderer).eval()

    result = evaluate(model, {'asr_ast': data}, batch_size=4)
    outputs = [sample.hypothesis for sample in result.samples]
    assert [sample.audios[0] for sample in result.samples] == spoken
    # two recordings may say the same
    assert len(set(outputs)) > 0.8 * COUNT and all(outputs)

    normalize = get_normalizer('english')
    pairs = [normalize(text) for text in references], [normalize(text) for text in outputs]
    row = result.metric('asr', 'WER', 'asterisk-asr')
    assert row.value == 100 * jiwer.wer(*pairs) == corpus(error_rate(), references, outputs).value
    assert corpus(error_rate(normalizer='english', metric='CER'), references, outputs).value == 100 * jiwer.cer(*pairs)
    # it hears, and not without a fault: equal numbers mean something
    assert 0 < row.value < 50 and row.interval[0] <= row.value <= row.interval[1]
