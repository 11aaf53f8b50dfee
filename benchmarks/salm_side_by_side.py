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
"""NeMo's SALM beside ours in one run: the same weights, conversations and machine; loss, speed and memory.

python benchmarks/salm_side_by_side.py --quick      # a random LLM of the shape of a real one, under a minute
python benchmarks/salm_side_by_side.py --full       # MiniMind2-Small (26M, real weights), some minutes
python benchmarks/salm_side_by_side.py --precision auto   # ours in bf16-mixed where this CPU has it, SALM in its best

Both sides train under Lightning's Trainer with one thread: forward, backward and optimizer step. Rates count useful
positions (tokens and audio frames, no padding) per second of CPU time, since wall time is noisy when cores are shared.
SALM gets the best of three batchings: its example's `batch_size: 4`, `batch_tokens`, and buckets by total length,
which few users set up. It cannot run text-only batches, which are guarded here on its behalf. With `--precision` it is
measured in 32-true, bf16-mixed and bf16-true, and the fastest counts; losses are compared in float32.
"""

import argparse
import copy
import json
import logging
import math
import multiprocessing
import os
import random
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ |= {
    'OMP_NUM_THREADS': '1',
    'MKL_NUM_THREADS': '1',
    'HF_HUB_OFFLINE': '1',
    'TOKENIZERS_PARALLELISM': 'false',
}

import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table

from nemo_vtb.backbone.precision import multiplies_bfloat16, resolve_precision
from nemo_vtb.constants import KINDS
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn

GOALS = {'loss_diff': 1e-5, 'ratio': 2.0}
TAG = '<|audioplaceholder|>'
WORDS = (
    'turn on off open close the lamp heater fan window door in kitchen bedroom office garage at noon midnight seven '
    'tonight now please could you what did speaker say which room is it about transcribe recording translate into'
).split()
OURS, SIZE, TOKENS, BUCKETS = 'nemo_vtb, packed rows', 'SALM, batch_size', 'SALM, batch_tokens', 'SALM, bucketed'
EXACT, OTHERS = '32-true', ('bf16-mixed', 'bf16-true')


@dataclass(frozen=True)
class Plan:
    """Sizes of one run."""

    conversations: int  # of each kind
    repetitions: int
    max_tokens: int  # positions of our row and of SALM's padded batch
    real_weights: bool
    precision: str = EXACT  # of ours


QUICK = Plan(conversations=4, repetitions=2, max_tokens=2048, real_weights=False)
FULL = Plan(conversations=6, repetitions=2, max_tokens=4096, real_weights=True)


# ---- conversations


class Maker:
    """Conversations of the four kinds; lengths are lognormal, as those of real chats and recordings are."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rng = folder, random.Random(0)

    def words(self, median: float, spread: float, low: int, high: int) -> Text:
        """Text of about `median` words, `spread` being the standard deviation of their logarithm."""
        count = round(self._draw(median, spread, low, high))
        return Text(' '.join(self.rng.choices(WORDS, k=count)))

    def clip(self, median: float, spread: float, low: float, high: float) -> Audio:
        """A recording of about `median` seconds."""
        samples = int(16000 * self._draw(median, spread, low, high))
        path = self.folder / f'{self.rng.getrandbits(48):012x}.wav'
        noise = np.random.default_rng(samples).standard_normal(samples)
        tone = np.sin(2 * np.pi * self.rng.uniform(100, 400) * np.arange(samples) / 16000)
        soundfile.write(path, (0.1 * tone + 0.01 * noise).astype(np.float32), 16000)
        return Audio(str(path), samples / 16000)

    def _draw(self, median: float, spread: float, low: float, high: float) -> float:
        return min(high, max(low, self.rng.lognormvariate(math.log(median), spread)))

    def text(self) -> list[tuple[Any, ...]]:
        """Chats of one to three exchanges, answers of about 110 words."""
        exchanges = self.rng.randint(1, 3)
        return [(self.words(*size),) for _ in range(exchanges) for size in ((20, 0.8, 4, 150), (110, 0.8, 15, 400))]

    def asr_ast(self) -> list[tuple[Any, ...]]:
        """Recordings of about 6 s with what is said in them, 2.4 words a second."""
        clip = self.clip(6, 0.6, 1, 20)
        said = 2.4 * float(clip.duration_s or 0)
        return [(Text('Transcribe the recording.'), clip), (self.words(said, 0.0, 1, 99),)]

    def speech_qa(self) -> list[tuple[Any, ...]]:
        """A question about a recording of about 10 s and a short answer."""
        return [(self.clip(10, 0.5, 2, 30), self.words(10, 0.4, 4, 30)), (self.words(12, 0.8, 2, 80),)]

    def mixed_modal(self) -> list[tuple[Any, ...]]:
        """Two or three exchanges, partly typed and partly spoken by the user."""
        turns: list[tuple[Any, ...]] = []
        for _ in range(self.rng.randint(2, 3)):
            turns += [(self.words(12, 0.6, 2, 60), self.clip(4, 0.6, 1, 12)), (self.words(60, 0.7, 10, 250),)]
        return turns


def make_conversations(folder: Path, per_kind: int) -> list[Conversation]:
    """Equally many of each kind."""
    maker = Maker(folder)
    return [
        Conversation(
            f'{kind}-{number}',
            tuple(Turn(('user', 'assistant')[i % 2], parts) for i, parts in enumerate(getattr(maker, kind)())),
            kind,
        )
        for kind in KINDS
        for number in range(per_kind)
    ]


# ---- models


def model_cfg(plan: Plan, folder: Path) -> dict[str, Any]:
    """One config for both sides."""
    from nemo_vtb.testing import tiny_llm, tiny_model_cfg, tiny_perception_cfg

    if plan.real_weights:
        from nemo_vtb.assets import ensure

        llm, hidden, d_model, layers = ensure('minimind2-small')['minimind2-small'], 512, 176, 8
    else:
        # a fifth of the LLM is vocabulary, as in SmolLM2-135M and Gemma-2B; the encoder is a fraction of the LLM
        hidden, d_model, layers = 256, 96, 3
        llm = tiny_llm(folder / 'llm', hidden=hidden, layers=4, vocab=2560)
    cfg = tiny_model_cfg(folder / 'unused') | {'pretrained_llm': str(llm), 'pretrained_weights': False}
    cfg['perception'] = tiny_perception_cfg(hidden, d_model=d_model, layers=layers)
    for part in ('encoder', 'modality_adapter'):
        cfg['perception'][part] |= {'subsampling_conv_channels': 32, 'ff_expansion_factor': 4, 'conv_kernel_size': 9}
    cfg['optimizer'] = {'_target_': 'torch.optim.AdamW', 'lr': 1e-4, 'weight_decay': 0.0, 'foreach': False}
    cfg['lora'] = {'task_type': 'CAUSAL_LM', 'r': 8, 'lora_alpha': 16, 'target_modules': 'all-linear'}
    return cfg


def build(plan: Plan, cfg: dict[str, Any], *, ours: bool = True, salm: bool = True) -> tuple[Any, Any]:
    """Ours and SALM with the same weights; real ones of the LLM where the plan says so."""
    from nemo.collections.speechlm2 import SALM
    from safetensors.torch import load_file

    from nemo_vtb.model.blender import VoiceTextBlender

    built: list[Any] = [None, None]
    for number, (wanted, make) in enumerate(((ours, VoiceTextBlender), (salm, SALM))):
        if not wanted:
            continue
        torch.manual_seed(0)
        model = make(copy.deepcopy(cfg) | ({'prompt_format': 'qwen'} if make is SALM else {}))
        if plan.real_weights:
            load_base(model, load_file(Path(cfg['pretrained_llm']) / 'model.safetensors'))
        built[number] = model
    if ours and salm:
        built[1].load_state_dict(built[0].state_dict(), strict=True)
    return built[0], built[1]


def load_base(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Put the stored LLM into the model, whatever PEFT calls its layers."""
    own = dict(model.named_parameters())
    for name, value in own.items():
        plain = name.replace('llm.base_model.model.', '').replace('.base_layer.', '.')
        source = weights.get({'embed_tokens.weight': 'model.embed_tokens.weight'}.get(name, plain))
        if source is None and plain == 'lm_head.weight':
            source = weights['model.embed_tokens.weight']
        if source is not None:
            value.data.copy_(source)


# ---- batches


def salm_batch(model: Any, items: Sequence[Any]) -> dict[str, Any]:
    """The left-padded batch that SALM takes, of the same tokens and masks as ours."""
    from nemo_vtb.data.template import AUDIO_SLOT

    longest = max(len(item.rendered.ids) for item in items)
    ids = torch.full((len(items), longest), model.text_pad_id)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, item in enumerate(items):
        ids[row, longest - len(item.rendered.ids) :] = torch.tensor(item.rendered.ids)
        mask[row, longest - len(item.rendered.ids) :] = torch.tensor(item.rendered.supervised)
    ids[ids == AUDIO_SLOT] = model.audio_locator_tag_id
    clips = [torch.from_numpy(clip) for item in items for clip in item.clips]
    audios = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True) if clips else torch.tensor([])
    lens = torch.tensor([len(clip) for clip in clips], dtype=torch.int64)
    return {'input_ids': ids, 'loss_mask': mask, 'audios': audios, 'audio_lens': lens}


def by_tokens(order: Sequence[Any], limit: int) -> Iterator[list[Any]]:
    """Batches as lhotse makes them for `batch_tokens`: examples times longest stays within the limit."""
    batch: list[Any] = []
    for item in order:
        if batch and (len(batch) + 1) * max(i.length for i in [*batch, item]) > limit:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def salm_groups(items: Sequence[Any], limit: int) -> dict[str, list[list[Any]]]:
    """The three ways in which SALM's users batch; the last one pads least."""
    shuffled = random.Random(1).sample(list(items), len(items))
    ordered = sorted(shuffled, key=lambda item: item.length)
    quarter = -(-len(ordered) // 4)
    buckets = [ordered[i : i + quarter] for i in range(0, len(ordered), quarter)]
    bucketed = [batch for bucket in buckets for batch in by_tokens(bucket, limit)]
    random.Random(2).shuffle(bucketed)
    return {
        SIZE: [shuffled[i : i + 4] for i in range(0, len(shuffled), 4)],
        TOKENS: list(by_tokens(shuffled, limit)),
        BUCKETS: bucketed,
    }


def our_rows(items: Sequence[Any], limit: int) -> list[Any]:
    """Packed rows of at most as many positions as a batch of SALM's."""
    from nemo_vtb.data.collate import pack_row
    from nemo_vtb.data.packing import pack_all

    rows = pack_all([item.length for item in items], limit)
    return [pack_row([items[i] for i in row], number) for number, row in enumerate(rows)]


@contextmanager
def text_guard() -> Iterator[None]:
    """Keep SALM alive on batches without audio, where stock NeMo 3.0 crashes."""
    from nemo.collections.speechlm2.models import salm as module

    original = module.encode_audio_with_optional_chunking
    module.encode_audio_with_optional_chunking = lambda perception, audios, lens, **options: (
        original(perception, audios, lens, **options) if audios.numel() else []
    )
    try:
        yield
    finally:
        module.encode_audio_with_optional_chunking = original


# ---- measurements, each in a process of its own


def fit(model: Any, batches: Sequence[Any], precision: Any = EXACT) -> float:
    """CPU seconds of one pass of training steps over the batches."""
    from lightning.pytorch import Callback, Trainer
    from torch.utils.data import DataLoader

    class Clock(Callback):
        spent = 0.0

        def on_train_batch_start(self, *args: Any) -> None:
            self.begun = time.process_time()

        def on_train_batch_end(self, *args: Any) -> None:
            self.spent += time.process_time() - self.begun

    clock = Clock()
    trainer = Trainer(
        accelerator='cpu', devices=1, max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[clock],
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
        use_distributed_sampler=False, gradient_clip_val=1.0, precision=precision,
    )  # fmt: skip
    trainer.fit(model.train(), DataLoader(batches, batch_size=None))
    return clock.spent


def measure_speed(plan: Plan, cfg: dict[str, Any], conversations: Sequence[Conversation]) -> dict[str, Any]:
    """Loss of every conversation on both sides, then passes in turn, so that noise hits both."""
    from nemo_vtb.data.collate import Collator

    ours, salm = build(plan, cfg)
    collate = Collator(ours.renderer, ours.frames)
    items = [collate.prepare(conversation) for conversation in conversations]
    with text_guard():
        differences = [difference(ours.eval(), salm.eval(), item) for item in items]
        groups = salm_groups(items, plan.max_tokens)
        batches: dict[str, list[Any]] = {OURS: our_rows(items, plan.max_tokens)}
        batches |= {name: [salm_batch(salm, group) for group in found] for name, found in groups.items()}
        ways = ways_of(plan, cfg, ours, salm)
        for _, name, model, precision in ways:  # a first step each, so that no clock sees lazy initialisation
            fit(model, batches[name][:1], precision)
        spent: dict[str, list[float]] = {way: [] for way, *_ in ways}
        for _ in range(plan.repetitions):
            for way, name, model, precision in ways:
                spent[way].append(fit(model, batches[name], precision))
    useful = sum(item.length for item in items)
    padded = {name: sum(len(g) * max(i.length for i in g) for g in found) for name, found in groups.items()}
    padded[OURS] = sum(row.num_tokens for row in batches[OURS])
    return {
        'loss_diff': max(differences),
        'useful': useful,
        'seconds': spent,
        'ways': {way: (name, precision) for way, name, _, precision in ways},
        'steps': {way: len(batches[name]) for way, name, *_ in ways},
        'fill': {way: useful / padded[name] for way, name, *_ in ways},
        'parameters': sum(p.numel() for p in ours.parameters()),
        'supervised': sum(item.rendered.num_supervised for item in items),
    }


def ways_of(plan: Plan, cfg: dict[str, Any], ours: Any, salm: Any) -> list[tuple[str, str, Any, str]]:
    """(label, batching, model, precision) of all that is measured."""
    if plan.precision == EXACT:
        return [(name, name, ours if name == OURS else salm, EXACT) for name in (OURS, SIZE, TOKENS, BUCKETS)]
    ways = [(OURS, OURS, in_half(plan, cfg, plan.precision), plan.precision)]
    for precision in (EXACT, *OTHERS):
        # bf16-true casts the model itself
        model = copy.deepcopy(salm) if precision == 'bf16-true' else salm
        ways += [(f'{name}, {precision}', name, model, precision) for name in (SIZE, TOKENS, BUCKETS)]
    return ways


def in_half(plan: Plan, cfg: dict[str, Any], precision: str) -> Any:
    """Ours as a run in this precision keeps it: the frozen LLM in the type that `model.frozen_dtype=auto` takes."""
    from nemo_vtb.backbone.hf import _keep_in

    model, _ = build(plan, cfg, salm=False)
    if precision == 'bf16-mixed' and multiplies_bfloat16('cpu'):
        _keep_in(model.llm, torch.bfloat16, torch.float32)
        model.embed_tokens.bfloat16()
    return model


def difference(ours: Any, salm: Any, item: Any) -> float:
    """How far the two mean losses of one conversation are apart."""
    from torch.nn.functional import cross_entropy

    from nemo_vtb.data.collate import pack_row

    with torch.no_grad():
        inputs = salm.prepare_inputs(salm_batch(salm, [item]))
        logits = salm(inputs['input_embeds'], attention_mask=inputs['attention_mask'])['logits']
        expected = cross_entropy(logits.flatten(0, 1), inputs['target_ids'].flatten(), ignore_index=-100)
        sums, counts = ours.batch_nll(pack_row([item]))
    return abs(float(sums.sum() / counts.sum()) - float(expected))


def measure_memory(
    plan: Plan, cfg: dict[str, Any], conversations: Sequence[Conversation], scheme: str, precision: str = EXACT
) -> dict[str, float]:
    """Peak resident memory of a process that holds one model and makes one pass."""
    from nemo_vtb.data.collate import Collator
    from nemo_vtb.data.template import ChatRenderer
    from nemo_vtb.model.frames import frame_counter

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if scheme == OURS and precision != EXACT:
        model = in_half(plan, cfg, precision)
    else:
        model = next(filter(None, build(plan, cfg, ours=scheme == OURS, salm=scheme != OURS)))
    collate = Collator(ChatRenderer(model.tokenizer.tokenizer), frame_counter(model.cfg.perception))
    items = [collate.prepare(conversation) for conversation in conversations]
    if scheme == OURS:
        batches = our_rows(items, plan.max_tokens)
    else:
        batches = [salm_batch(model, group) for group in salm_groups(items, plan.max_tokens)[scheme]]
    with text_guard():
        fit(model, batches, precision)
    return {'peak_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 'before_mb': before}


def in_child(work: Callable[..., Any], *args: Any) -> Any:
    """Run in a forked process, which shares the imports but none of the memory that another side has used."""
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, args))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        raise SystemExit(f'{work.__name__} failed, see above') from error
    finally:
        process.join()


def _send(sender: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    sender.send(work(*args))


# ---- the report


def show(plan: Plan, found: dict[str, Any], memory: dict[str, dict[str, float]]) -> None:
    """A table for people."""
    title = (
        f'{found["parameters"] / 1e6:.1f} M parameters, {len(KINDS) * plan.conversations} conversations of four kinds'
    )
    table = Table(title=f'{title}, {found["useful"]} useful positions, {found["supervised"]} supervised')
    for name in (
        'side',
        'steps',
        'useful / computed',
        'CPU s per pass',
        'useful per CPU s',
        'peak MB',
        'of it training',
    ):
        table.add_column(name, justify='left' if name == 'side' else 'right')
    for name, spent in found['seconds'].items():
        best = statistics.median(spent)
        peak = memory.get(name, {})
        table.add_row(
            name, str(found['steps'][name]), f'{found["fill"][name]:.1%}',
            f'{best:.2f} ({min(spent):.2f} to {max(spent):.2f})', f'{found["useful"] / best:.0f}',
            f'{peak["peak_mb"]:.0f}' if peak else '', f'{peak["peak_mb"] - peak["before_mb"]:.0f}' if peak else '',
        )  # fmt: skip
    Console(width=140).print(table)


def main() -> int:
    """Measure both sides and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--quick', action='store_true', help='random tiny LLM, under a minute (default)')
    size.add_argument('--full', action='store_true', help='MiniMind2-Small, more conversations')
    parser.add_argument('--precision', default=EXACT, help='of ours: 32-true (default), bf16-mixed or auto')
    args = parser.parse_args()
    plan = replace(FULL if args.full else QUICK, precision=resolve_precision(args.precision, 'cpu'))
    warnings.filterwarnings('ignore')
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cfg = model_cfg(plan, folder)
        conversations = make_conversations(folder, plan.conversations)
        import nemo.collections.speechlm2  # noqa: F401  (once, before the forks)
        from nemo.utils import logging as nemo_logging

        nemo_logging.setLevel(logging.ERROR)
        for quiet in ('lightning.pytorch', 'pytorch_lightning', 'transformers'):
            logging.getLogger(quiet).setLevel(logging.ERROR)
        found = in_child(measure_speed, plan, cfg, conversations)
        middle = {name: statistics.median(spent) for name, spent in found['seconds'].items()}
        best = min((name for name in middle if name != OURS), key=middle.__getitem__)
        memory = {way: in_child(measure_memory, plan, cfg, conversations, *found['ways'][way]) for way in (OURS, best)}
    show(plan, found, memory)
    rates = {name: found['useful'] / seconds for name, seconds in middle.items()}
    figures = {
        'loss_diff': found['loss_diff'],
        'tokens_per_cpu_s': round(rates[OURS], 1),
        'peer_tokens_per_cpu_s': round(rates[best], 1),
        'ratio': round(rates[OURS] / rates[best], 3),
        'peak_mb': round(memory[OURS]['peak_mb'], 1),
        'peer_peak_mb': round(memory[best]['peak_mb'], 1),
        'precision': plan.precision,
        'peer_batching': best,
        'ratios': {name: round(rates[OURS] / rate, 3) for name, rate in rates.items() if name != OURS},
        'useful_of_computed': {name: round(share, 3) for name, share in found['fill'].items()},
    }
    ok = figures['loss_diff'] <= GOALS['loss_diff'] and figures['ratio'] >= GOALS['ratio']
    print(json.dumps({'benchmark': 'salm_side_by_side', 'ok': ok, **figures}))
    return 0 if ok else 1


if __name__ == '__main__':
    sys.exit(main())
