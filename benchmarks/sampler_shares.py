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
"""Delivered shares and padding: our token-budget plan beside NeMo's four ways of mixing sources, on the same files.

python benchmarks/sampler_shares.py --quick            # 60 batches of each of NeMo's schemes
python benchmarks/sampler_shares.py --full             # 400 batches of each
python benchmarks/sampler_shares.py --full --out DIR   # and a picture of the shares
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from nemo_vtb.constants import KINDS
from nemo_vtb.data.counting import Meter
from nemo_vtb.data.index import SourceIndex, open_index
from nemo_vtb.data.sampler import TokenBudgetPlan
from nemo_vtb.data.sources import parse_input_cfg
from nemo_vtb.data.template import ChatRenderer

MAX_TOKENS, ROWS_PER_BATCH, WINDOW = 4096, 8, 200
FRAME_S = 0.08
MIXES = {
    '1:1:1:1': dict.fromkeys(KINDS, 0.25),
    '15:60:10:15': {'text': 0.15, 'asr_ast': 0.6, 'speech_qa': 0.1, 'mixed_modal': 0.15},
}
SCHEMES = ('mux', 'zip', 'round_robin', 'randomized_round_robin')
GOALS = {'max_share_error_run': 0.001, 'max_share_error_window': 0.01, 'padding_share': 0.02}
WORDS = 'turn on the lamp in kitchen at noon please say which room is it about green blue rain sea'.split()
TAG = '<|audio|>'


def count_frames(num_samples: int) -> int:
    """Frames of 80 ms: what NeMo estimates from durations, so that both sides count alike."""
    return -(-num_samples // round(16000 * FRAME_S))


def main() -> int:
    """Make the corpus, run both sides, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--quick', action='store_true', help='60 batches of each of NeMo\'s schemes (default)')
    size.add_argument('--full', action='store_true', help='400 batches of each')
    parser.add_argument('--out', type=Path, help='folder for the picture')
    args = parser.parse_args()
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    warnings.filterwarnings('ignore')
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_corpus(root, 1500 if args.full else 600)
        from nemo_vtb.testing import tiny_llm

        llm = tiny_llm(root / 'llm')
        ours = {name: run_ours(root, llm, mix) for name, mix in MIXES.items()}
        peers = run_peers(root, llm, 400 if args.full else 60)
    figures = {
        'max_share_error_run': max(o['run_error'] for o in ours.values()),
        'max_share_error_window': max(o['window_error'] for o in ours.values()),
        'padding_share': max(o['padding'] for o in ours.values()),
        'conversations_per_s': min(o['conversations_per_s'] for o in ours.values()),
        'peer_padding_share': {s: max(peers[m][s]['padding'] for m in MIXES) for s in SCHEMES},
        'peer_max_share_error_run': {s: max(peers[m][s]['run_error'] for m in MIXES) for s in SCHEMES},
    }
    ok = all(figures[name] <= goal for name, goal in GOALS.items()) and figures['conversations_per_s'] >= 20_000
    show(ours, peers)
    if args.out:
        draw(ours, peers, args.out / 'sampler_shares.png')
    print(json.dumps({'benchmark': 'sampler_shares', 'ok': ok, **rounded(figures)}))
    return 0 if ok else 1


def make_corpus(root: Path, size: int) -> None:
    """Four manifests with the lengths of real sources; 48 silent recordings of 1 to 16 s are shared."""
    rng = np.random.default_rng(0)
    seconds = np.round(np.exp(rng.uniform(np.log(1), np.log(16), 48)), 2)
    for number, length in enumerate(seconds):
        soundfile.write(root / f'{number}.flac', np.zeros(round(length * 16000), dtype=np.int16), 16000)

    def words(mean: float) -> str:
        return ' '.join(rng.choice(WORDS, int(np.clip(rng.lognormal(np.log(mean), 0.6), 2, 300))))

    def spoken() -> dict[str, Any]:
        number = int(rng.integers(len(seconds)))
        return {'from': 'User', 'type': 'audio', 'value': f'{number}.flac', 'duration': float(seconds[number])}

    def said(role: str, mean: float) -> dict[str, Any]:
        return {'from': role, 'type': 'text', 'value': words(mean)}

    makers = {
        'text': lambda: [said('User', 40), said('Assistant', 120)],
        'asr_ast': lambda: [said('User', 4), spoken(), said('Assistant', 16)],
        'speech_qa': lambda: [said('User', 12), spoken(), said('Assistant', 40)],
        'mixed_modal': lambda: [t for _ in range(4) for t in (said('User', 15), spoken(), said('Assistant', 40))],
    }
    for kind, make in makers.items():
        lines = [json.dumps({'id': f'{kind}-{n}', 'conversations': make()}) for n in range(size)]
        (root / f'{kind}.jsonl').write_text('\n'.join(lines) + '\n')


def run_ours(root: Path, llm: Path, mix: dict[str, float]) -> dict[str, Any]:
    """Plan 4,000 rows."""
    sources = open_sources(root, llm)
    plan = TokenBudgetPlan(sources, mix, max_tokens=MAX_TOKENS)
    cpu = time.process_time()
    rows = list(islice(plan, 4000))
    cpu = time.process_time() - cpu
    counts = np.zeros((len(rows), len(sources)))
    for number, row in enumerate(rows):
        for source, entry in row.items:
            counts[number, source] += sources[source].column('length')[entry]
    asked = np.array(plan.shares)
    sums = np.vstack([np.zeros(len(sources)), counts.cumsum(0)])[::ROWS_PER_BATCH]
    windows = sums[WINDOW:] - sums[:-WINDOW]
    shares = counts.sum(0) / counts.sum()
    return {
        'asked': dict(zip(KINDS, asked.tolist(), strict=True)),
        'shares': dict(zip(KINDS, shares.tolist(), strict=True)),
        'run_error': float(np.abs(shares / asked - 1).max()),
        'window_error': float(np.abs(windows / windows.sum(1, keepdims=True) / asked - 1).max()),
        'padding': float(1 - counts.sum() / (MAX_TOKENS * len(rows))),
        'conversations_per_s': round(sum(len(row.items) for row in rows) / cpu),
        'batches': len(rows),
    }


def open_sources(root: Path, llm: Path) -> list[SourceIndex]:
    """The four indexes; built once."""
    from transformers import AutoTokenizer

    meter = Meter(ChatRenderer(AutoTokenizer.from_pretrained(llm)), count_frames)
    entries = [
        {'type': 'multimodal_conversation', 'kind': kind, 'manifest_filepath': str(root / f'{kind}.jsonl')}
        for kind in KINDS
    ]
    return [open_index(spec, meter, root / 'index', quiet=True) for spec in parse_input_cfg(entries)]


def run_peers(root: Path, llm: Path, batches: int) -> dict[str, dict[str, dict[str, Any]]]:
    """NeMo's loader with each of its schemes, through its own `get_lhotse_dataloader_from_config`."""
    logging.disable(logging.WARNING)
    from nemo.collections.common.data.lhotse import get_lhotse_dataloader_from_config
    from nemo.collections.common.tokenizers import AutoTokenizer
    from nemo.utils import logging as nemo_logging
    from omegaconf import OmegaConf

    nemo_logging.setLevel(nemo_logging.ERROR)
    tokenizer = AutoTokenizer(str(llm), use_fast=True)
    tokenizer.add_special_tokens({'additional_special_tokens': [TAG]})
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, mix in MIXES.items():
        found[name] = {}
        for scheme in SCHEMES:
            loader = get_lhotse_dataloader_from_config(
                OmegaConf.create(peer_config(root, scheme, mix)),
                global_rank=0,
                world_size=1,
                dataset=_Conversations(),
                tokenizer=tokenizer,
            )
            found[name][scheme] = judge(list(islice(loader, batches)), mix)
    logging.disable(logging.NOTSET)
    return found


class _Conversations:
    """A lhotse dataset that hands out the conversations themselves."""

    def __getitem__(self, conversations: Any) -> list[tuple[str, int]]:
        return [(c.id.split('-')[0], true_length(c)) for c in conversations]


def true_length(conversation: Any) -> int:
    """Tokens and audio frames of one of NeMo's conversations."""
    cuts = conversation.list_cuts()
    frames = sum(count_frames(round(cut.duration * 16000)) for cut in cuts)
    return len(conversation.input_ids) - len(cuts) + frames


def peer_config(root: Path, scheme: str, mix: dict[str, float]) -> dict[str, Any]:
    """What a NeMo user would write to ask for these shares by that scheme."""
    shared = {'seed': 0, 'shard_seed': 0, 'shuffle': True, 'num_workers': 0}
    loader = {
        'sample_rate': 16000,
        'prompt_format': 'qwen',
        'audio_locator_tag': TAG,
        'token_equivalent_duration': FRAME_S,
        'use_multimodal_sampling': True,
        'measure_total_length': True,
        'batch_tokens': MAX_TOKENS,
        'use_bucketing': False,
        'shuffle_buffer_size': 200,  # NeMo tokenizes the whole buffer before the first batch
    }

    def source(kind: str, **keys: Any) -> dict[str, Any]:
        return {'type': 'multimodal_conversation', 'manifest_filepath': str(root / f'{kind}.jsonl'), **keys}

    if scheme == 'mux':
        return shared | loader | {'input_cfg': [source(kind, weight=share) for kind, share in mix.items()]}
    config: dict[str, Any] = shared | {'multi_config': True, 'sampler_fusion': scheme}
    for kind, share in mix.items():
        # zip and round robin take a batch of every source: its size is what can follow the shares
        size = MAX_TOKENS if scheme == 'randomized_round_robin' else max(600, round(4 * share * MAX_TOKENS))
        config[kind] = loader | {'batch_tokens': size, 'input_cfg': [source(kind)]}
    if scheme == 'randomized_round_robin':
        config['sampler_weights'] = dict(mix)
    return config


def judge(batches: list[list[tuple[str, int]]], mix: dict[str, float]) -> dict[str, Any]:
    """Shares and padding of the batches of one scheme."""
    tokens = dict.fromkeys(KINDS, 0)
    padded = 0
    for batch in batches:
        padded += len(batch) * max(length for _, length in batch)
        for kind, length in batch:
            tokens[kind] += length
    total = sum(tokens.values())
    shares = {kind: count / total for kind, count in tokens.items()}
    return {
        'shares': shares,
        'run_error': max(abs(shares[kind] / mix[kind] - 1) for kind in KINDS),
        'padding': 1 - total / padded,
        'batches': len(batches),
    }


def show(ours: dict[str, Any], peers: dict[str, Any]) -> None:
    """A table for people."""
    table = Table(title='asked and delivered shares of tokens')
    for name in ('mix', 'scheme', 'batches', *KINDS, 'worst error', 'worst in 200 batches', 'padding'):
        table.add_column(name, justify='left' if name in ('mix', 'scheme') else 'right')
    for mix, asked in MIXES.items():
        table.add_row(mix, 'asked', '', *(f'{asked[kind]:.1%}' for kind in KINDS), '', '', '')
        for scheme, found in {'nemo_vtb': ours[mix], **{f'NeMo {s}': f for s, f in peers[mix].items()}}.items():
            shares = [f'{found["shares"][kind]:.2%}' for kind in KINDS]
            window = f'{found["window_error"]:.2%}' if 'window_error' in found else ''
            error, padding = f'{found["run_error"]:.3%}', f'{found["padding"]:.2%}'
            table.add_row('', scheme, str(found['batches']), *shares, error, window, padding)
        table.add_section()
    Console(width=150).print(table)


def draw(ours: dict[str, Any], peers: dict[str, Any], path: Path) -> None:
    """Stacked shares of every scheme beside what was asked."""
    from matplotlib.figure import Figure

    colours = ('#4C72B0', '#DD8452', '#55A868', '#8172B3')
    figure = Figure(figsize=(11, 4), layout='constrained')
    for axes, (mix, asked) in zip(figure.subplots(1, 2, sharey=True), MIXES.items(), strict=True):
        rows = {'asked': asked, 'nemo_vtb': ours[mix]['shares'], **{s: peers[mix][s]['shares'] for s in SCHEMES}}
        names = [name.replace('randomized_', 'randomized\n') for name in rows]
        left = np.zeros(len(rows))
        for kind, colour in zip(KINDS, colours, strict=True):
            values = np.array([row[kind] for row in rows.values()])
            axes.barh(names, values, left=left, color=colour, height=0.65, label=kind)
            left += values
        for edge in np.cumsum([asked[kind] for kind in KINDS])[:-1]:
            axes.axvline(edge, color='black', linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set(title=f'asked {mix}', xlim=(0, 1), xlabel='share of tokens')
        axes.xaxis.set_major_formatter('{x:.0%}')
        axes.spines[['top', 'right']].set_visible(False)
        axes.invert_yaxis() if not axes.yaxis_inverted() else None
    figure.legend(*axes.get_legend_handles_labels(), loc='outside lower center', ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def rounded(value: Any) -> Any:
    """Six digits are enough."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return round(value, 6) if isinstance(value, float) else value


if __name__ == '__main__':
    sys.exit(main())
