#!/usr/bin/env python
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
"""What the factory yields: typed chats to spoken spans, transcribed back; and the same again with kill -9 on the way.

    python benchmarks/factory_yield.py --quick | --full

Chats that a person wrote (one to three questions a turn, some with code, tables or addresses) become mixed-modal
conversations by `vtb data make mixed_modal`, in a process of its own. A second run of the same is killed at random
moments and started again each time; every file of the two is compared.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
ENVIRONMENT = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'COLUMNS': '120'}
TYPED = ('```python\nprint("hello")\n```', 'See https://example.org/help.', '| a | b |\n|---|---|\n| 1 | 2 |')
# goals: of spans as they are first heard, and of conversations
MAX_WER_P50, MIN_KEPT_SHARE = 0.1, 0.7


def write_chats(path: Path, count: int) -> None:
    """Put reference chats together: one to three questions a turn, every sixth turn with something unspeakable."""
    from nemo_vtb.factory.demo.text_only import reference_chats

    bank, rng = reference_chats(), random.Random(0)
    with path.open('w', encoding='utf-8') as stream:
        for number in range(count):
            picked = [bank[number % len(bank)], *rng.sample(bank, rng.randrange(3))]
            question = ' '.join(chat.prompts[0] for chat in picked)
            if number % 6 == 5:
                question += f'\n{TYPED[number // 6 % len(TYPED)]}'
            texts = [question, ' '.join(chat.answers[0] for chat in picked)]
            if len(picked) == 1:
                texts += [
                    text for pair in zip(picked[0].prompts[1:], picked[0].answers[1:], strict=True) for text in pair
                ]
            turns = [{'from': ('human', 'gpt')[i % 2], 'value': text} for i, text in enumerate(texts)]
            stream.write(json.dumps({'id': f'{number:04d}', 'conversations': turns}) + '\n')


def command(out: Path, chats: Path, workers: int, chunk: int) -> list[str]:
    """The command line of a production."""
    words = ['-m', 'nemo_vtb.cli', 'data', 'make', 'mixed_modal', str(out), str(chats)]
    return [sys.executable, *words, f'chunk={chunk}', 'validation_share=0.1', '--workers', str(workers)]


def run_through(words: list[str]) -> float:
    """Run a production to its end; returns the seconds it took."""
    begin = time.perf_counter()
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'the production failed:\n{done.stdout}\n{done.stderr}')
    return time.perf_counter() - begin


def run_with_kills(words: list[str], out: Path, wanted: int, chunks: int) -> int:
    """Start a production again and again, killed each time after some progress; returns the number of kills."""
    rng, kills = random.Random(7), 0
    journal = out / '.work' / 'journal.0-of-1.jsonl'
    for number in range(wanted):
        made = (number + 1) * chunks // (wanted + 1)
        process = subprocess.Popen(
            words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and lines(journal) < made:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.5))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        print(f'kill {kills}: {lines(journal)} of {chunks} chunks made', flush=True)
    run_through(words)
    return kills


def lines(path: Path) -> int:
    """Lines of a file that may not be there yet."""
    return path.read_bytes().count(b'\n') if path.exists() else 0


def digest(out: Path) -> dict[str, str]:
    """SHA-256 of each file that a production hands over."""
    files = [path for path in out.rglob('*') if path.is_file() and '.work' not in path.parts]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def report(card: dict[str, Any], seconds: float, workers: int) -> None:
    """Print the yield by reason and the error rate by voice."""
    print(f'\n{card["kept"]} of {card["outcomes"]} conversations kept, {seconds:.0f} s with {workers} workers')
    for reason, count in card['reasons'].items():
        print(f'  {reason:<18} {count:5d}  {count / card["outcomes"]:6.1%}')
    print(f'\n{"voice":<14} {"spans":>6} {"WER mean":>9} {"median":>7} {"95 %":>6}')
    for voice, row in [('all', card['wer']), *card['wer_by_voice'].items()]:
        print(f'{voice:<14} {row["n"]:6d} {row["mean"]:9.3f} {row["p50"]:7.3f} {row["p95"]:6.3f}')


def main() -> int:
    """Run both productions and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='16 chats, 2 kills')
    parser.add_argument('--full', action='store_true', help='200 chats, 10 kills (default)')
    parser.add_argument('--workers', type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    count, wanted, chunk = (12, 2, 2) if arguments.quick else (200, 10, 8)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        chats = base / 'chats.jsonl'
        write_chats(chats, count)
        chunks = -(-count // chunk)
        seconds = run_through(command(base / 'whole', chats, arguments.workers, chunk))
        card = json.loads((base / 'whole' / 'card.json').read_text(encoding='utf-8'))
        report(card, seconds, arguments.workers)
        print()
        words = command(base / 'killed', chats, arguments.workers, chunk)
        kills = run_with_kills(words, base / 'killed', wanted, chunks)
        whole, killed = digest(base / 'whole'), digest(base / 'killed')
    differences = sorted(name for name in {*whole, *killed} if whole.get(name) != killed.get(name))
    print(f'\n{len(whole)} files compared, {len(differences)} differ: {differences[:5]}')
    share = card['kept'] / card['outcomes']
    figures = {
        'benchmark': 'factory_yield',
        'ok': not differences and kills == wanted and card['wer']['p50'] <= MAX_WER_P50 and share >= MIN_KEPT_SHARE,
        'mode': 'quick' if arguments.quick else 'full',
        'spans': card['wer']['n'],
        'conversations': card['outcomes'],
        'kept': card['kept'],
        'wer_p50': card['wer']['p50'],
        'wer_p95': card['wer']['p95'],
        'yield': card['reasons'],
        'items_per_s': round(count / seconds, 2),
        'kills': kills,
        'differences_after_kills': len(differences),
    }
    print(json.dumps(figures))
    return 0 if figures['ok'] else 1


if __name__ == '__main__':
    sys.exit(main())
