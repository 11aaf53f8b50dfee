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
"""Time to the first token of each turn of a conversation, with and without the keys and values kept between turns.

python benchmarks/chat_latency.py --quick   # one conversation of 5 turns
python benchmarks/chat_latency.py --full    # five of them, medians
The embedded default (MiniMind2-Small, Whisper tiny.en, adapter as initialised) hears a recording of 6 s in each turn.
`ok`: both give the same answers, and the first token of turn 5 comes sooner with the cache.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

from nemo_vtb.scripts import quiet_logs, start_script

start_script()

import numpy as np
import soundfile
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from nemo_vtb.assets.resolve import resolve_assets
from nemo_vtb.config.command_line import conf_folder
from nemo_vtb.data.conversation import Text
from nemo_vtb.model.blender import VoiceTextBlender, plain_dict
from nemo_vtb.serving.chat import Answered, ChatSession
from nemo_vtb.serving.engine import Engine, Sampling

TURNS, NEW_TOKENS, SECONDS = 5, 24, 6.0


def make_model() -> VoiceTextBlender:
    """The model of the quickstart before training: how long it takes does not depend on what it learnt."""
    with initialize_config_dir(str(conf_folder()), version_base=None):
        cfg = compose('speechllm_joint_sft')
    torch.manual_seed(0)
    return VoiceTextBlender(plain_dict(resolve_assets(cfg).model)).eval()


def make_recordings(folder: Path) -> list[str]:
    """One recording for each turn."""
    paths = []
    for turn in range(TURNS):
        time = np.arange(int(SECONDS * 16000)) / 16000
        signal = 0.2 * np.sin(2 * np.pi * (150 + 40 * turn) * time) * np.sin(2 * np.pi * 3 * time)
        paths.append(str(folder / f'{turn}.wav'))
        soundfile.write(paths[-1], signal, 16000)
    return paths


def converse(engine: Engine, recordings: list[str], *, keep_cache: bool) -> list[Answered]:
    """One conversation; what is known of each answer."""
    session = ChatSession(engine, sampling=Sampling(max_new_tokens=NEW_TOKENS), keep_cache=keep_cache)
    answers = []
    for turn, path in enumerate(recordings):
        for _ in session.ask([Text(f'Recording {turn + 1}:'), session.recording(path), Text('What is it about?')]):
            pass
        assert session.last is not None
        answers.append(session.last)
    return answers


def main() -> int:
    """Measure, print a table and one JSON line; returns the exit status."""
    parser = argparse.ArgumentParser(description='Time to the first token of each turn, with and without the cache.')
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--quick', action='store_true', help='one conversation')
    size.add_argument('--full', action='store_true', help='five conversations')
    runs = 5 if parser.parse_args().full else 1
    quiet_logs()
    engine = Engine(make_model())
    seconds: dict[bool, list[list[float]]] = {True: [], False: []}
    texts: dict[bool, list[str]] = {}
    reused = list[int]()
    with tempfile.TemporaryDirectory() as folder:
        recordings = make_recordings(Path(folder))
        converse(engine, recordings[:1], keep_cache=True)  # what is built at the first call is not measured
        for _ in range(runs):
            for keep_cache in (True, False):
                answers = converse(engine, recordings, keep_cache=keep_cache)
                seconds[keep_cache].append([answer.first_token_s for answer in answers])
                texts[keep_cache] = [answer.text for answer in answers]
                reused = [answer.reused for answer in answers] if keep_cache else reused
    medians = {keep: [statistics.median(turn) for turn in zip(*rows, strict=True)] for keep, rows in seconds.items()}
    table = Table('turn', 'tokens kept', 'first token, kept (s)', 'first token, read again (s)', 'ratio')
    for turn, (kept, again) in enumerate(zip(medians[True], medians[False], strict=True)):
        table.add_row(str(turn + 1), str(reused[turn]), f'{kept:.3f}', f'{again:.3f}', f'{again / kept:.1f}')
    Console().print(table)
    ratio = medians[False][-1] / medians[True][-1]
    same = texts[True] == texts[False]
    figures = {
        'first_token_s': [round(value, 4) for value in medians[True]],
        'first_token_s_without': [round(value, 4) for value in medians[False]],
        'ratio': round(ratio, 2),
        'same_answers': same,
        'conversations': runs,
    }
    ok = same and ratio > 1.0
    print(json.dumps({'benchmark': 'chat_latency', 'ok': ok, **figures}))
    return int(not ok)


if __name__ == '__main__':
    raise SystemExit(main())
