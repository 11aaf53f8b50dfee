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
"""Step `joint`: training steps of the whole product, data module to optimizer, then an answer to a recording."""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import megatron_gpu as bench
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from omegaconf import OmegaConf

from gpu.results import BEGAN, DEVICE, GPU, WORK, attempt, synchronize
from nemo_vtb.constants import KINDS

MEGATRON = {'_target_': 'nemo_vtb.parallel.strategies.MegatronStrategy', 'tensor_parallel': 1}
SHARDED = {'_target_': 'nemo_vtb.parallel.strategies.FullyShardedStrategy'}
CASES: Mapping[str, tuple[str, Any, str]] = {
    # name: (LLM and encoder, strategy, precision)
    'tiny-hf-32': ('tiny', 'auto', '32-true'),
    'tiny-megatron-32': ('tiny', MEGATRON, '32-true'),
    'tiny-hf-bf16': ('tiny', 'auto', 'bf16-true'),
    'tiny-megatron-bf16': ('tiny', MEGATRON, 'bf16-true'),
    'tiny-hf-mixed': ('tiny', 'auto', 'bf16-mixed'),
    'tiny-megatron-mixed': ('tiny', MEGATRON, 'bf16-mixed'),
    'tiny-conformer-bf16': ('tiny-conformer', 'auto', 'bf16-true'),
    'tiny-conformer-mixed': ('tiny-conformer', 'auto', 'bf16-mixed'),
    'tiny-conformer-megatron': ('tiny-conformer', MEGATRON, 'bf16-mixed'),
    'tiny-sharded-bf16': ('tiny', SHARDED, 'bf16-true'),
    'tiny-ddp-mixed': ('tiny', 'ddp', 'bf16-mixed'),
    'tiny-megatron-recompute': ('tiny', MEGATRON | {'recompute': 'full'}, 'bf16-true'),
    'tiny-megatron-fp8': ('tiny', MEGATRON | {'fp8': 'hybrid'}, 'bf16-true'),
    'gemma-hf-bf16': ('gemma', 'auto', 'bf16-true'),
    'gemma-megatron-bf16': ('gemma', MEGATRON, 'bf16-true'),
    'gemma-hf-mixed': ('gemma', 'auto', 'bf16-mixed'),
    'gemma-megatron-mixed': ('gemma', MEGATRON, 'bf16-mixed'),
    'gemma-conformer-bf16': ('gemma-conformer', 'auto', 'bf16-true'),
    'llama-megatron-bf16': ('llama', MEGATRON, 'bf16-true'),
}
_BIG = 1024 if GPU else 64
"""Width of the large encoder."""


class Clock(Callback):
    """Times the steps, remembers where the model was, and lets it answer before it is taken from the device."""

    def __init__(self, questions: list[Any]) -> None:
        self.steps: list[tuple[float, float, int, float]] = []
        self.questions, self.found = questions, dict[str, Any]()

    def on_train_batch_start(self, *args: Any) -> None:
        """Begin."""
        synchronize()
        self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Seconds, loss, positions and seconds of audio."""
        synchronize()
        spent = time.perf_counter() - self.begun
        audio_s = float(batch.audio_lens.sum()) / 16000
        self.steps.append((spent, float(outputs['mean_loss']), int(outputs['num_tokens']), audio_s))

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        """What is trained and where; greedy answers outside of autocast, as `vtb generate` gives them."""
        parameters = list(module.parameters())
        self.found |= {
            'device': str(next(module.perception.parameters()).device),
            'dtypes': sorted({str(p.dtype)[6:] for p in parameters}),
            'trained_dtypes': sorted({str(p.dtype)[6:] for p in parameters if p.requires_grad}),
            'parameters_m': round(sum(p.numel() for p in parameters) / 1e6, 1),
            'trained_m': round(sum(p.numel() for p in parameters if p.requires_grad) / 1e6, 1),
            'state_keys': len(module.trained_state()),
        }
        if GPU:
            self.found['peak_gb'] = torch.cuda.max_memory_allocated() / 2**30
        try:
            texts = module.answer(self.questions, max_new_tokens=4)
            self.found['answers'] = len(texts)
        except Exception as error:  # noqa: BLE001  # whatever a kernel raises
            self.found['answer_error'] = f'{type(error).__name__}: {str(error)[:300]}'

    def figures(self) -> dict[str, Any]:
        """Of the steps behind the first two."""
        later = self.steps[2:] or self.steps
        spent = statistics.median(step[0] for step in later)
        return self.found | {
            'loss': [round(step[1], 4) for step in self.steps],
            'step_s': spent,
            'steps_s': [round(step[0], 3) for step in self.steps],
            'tokens_per_s': sum(step[2] for step in later) / len(later) / spent,
            'audio_s_per_s': sum(step[3] for step in later) / len(later) / spent,
        }


def conversations(folder: Path, per_kind: int) -> list[Any]:
    """Manifests of the four kinds with lengths as real chats and recordings have them; returns two to be answered."""
    from salm_side_by_side import make_conversations

    from nemo_vtb.data.conversation import Text

    folder.mkdir(parents=True, exist_ok=True)
    streams: dict[str, list[str]] = {kind: [] for kind in KINDS}
    made = make_conversations(folder, per_kind)
    for c in made:
        entries = []
        for turn in c.turns:
            who = {'user': 'User', 'assistant': 'Assistant'}[turn.role]
            for part in turn.parts:
                if isinstance(part, Text):
                    entries.append({'type': 'text', 'from': who, 'value': part.text})
                else:
                    clip = {'value': Path(part.path).name, 'duration': part.duration_s, 'text': 'x'}
                    entries.append({'type': 'audio', 'from': who, **clip})
        line = {'id': c.id, 'conversations': entries, 'custom': {'kind': c.kind, 'source': 'made', 'lang': 'en'}}
        streams[c.kind].append(json.dumps(line) + '\n')
    for kind, lines in streams.items():
        (folder / f'{kind}.train.jsonl').write_text(''.join(lines), encoding='utf-8')
    # answers are asked for behind the user's last turn
    return [replace(c, turns=c.turns[:-1]) for c in made if c.id in ('text-0', 'speech_qa-0')]


def big_llm(folder: Path, family: str, sizes: dict[str, int]) -> Path:
    """A folder with random bfloat16 weights of a real shape, and the tokenizer of the tiny models."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from nemo_vtb.testing import tiny_llm

    if list(folder.glob('model*.safetensors')):
        return folder
    tiny = tiny_llm(folder.parent / f'{folder.name}-tokenizer', 'llama', template='chatml')
    folder.mkdir(parents=True, exist_ok=True)
    for file in tiny.iterdir():
        if not file.name.endswith('.safetensors') and file.name != 'config.json':
            (folder / file.name).write_bytes(file.read_bytes())
    config = AutoConfig.for_model(
        family, **sizes, max_position_embeddings=8192, tie_word_embeddings=family == 'gemma',
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with DEVICE:
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def big_whisper(folder: Path) -> Path:
    """The encoder of Whisper large v3 with random weights, a decoder of one layer."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    if (folder / 'model.safetensors').is_file():
        return folder
    width, layers, heads = (1280, 32, 20) if GPU else (64, 2, 2)
    sizes = {'encoder_layers': layers, 'encoder_attention_heads': heads, 'encoder_ffn_dim': 4 * width}
    sizes |= {'decoder_layers': 1, 'decoder_attention_heads': heads, 'decoder_ffn_dim': width}
    config = WhisperConfig(
        vocab_size=64, d_model=width, num_mel_bins=128, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None, **sizes,
    )  # fmt: skip
    with DEVICE:
        WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=128).save_pretrained(folder)
    return folder


def conformer_file(folder: Path, perception: Mapping[str, Any]) -> Path:
    """A NeMo ASR model with the encoder of a perception: Megatron wants all weights in files."""
    from nemo.collections.asr.models import EncDecCTCModel

    file, width = folder / 'conformer.nemo', perception['encoder']['d_model']
    if not file.is_file():
        target = 'nemo.collections.asr.modules.ConvASRDecoder'
        decoder = {'_target_': target, 'feat_in': width, 'num_classes': 2, 'vocabulary': ['a', 'b']}
        parts = {'preprocessor': perception['preprocessor'], 'encoder': perception['encoder'], 'decoder': decoder}
        EncDecCTCModel(OmegaConf.create(parts | {'sample_rate': 16000})).save_to(str(file))
    return file


def model_cfg(size: str, folder: Path) -> dict[str, Any]:
    """The `model` section: tiny, or the shapes of Gemma 2B and Llama 8B with a large encoder."""
    from nemo_vtb.testing import tiny_model_cfg, tiny_perception_cfg

    kind, conformer = size.split('-')[0], size.endswith('conformer')
    model = tiny_model_cfg(folder / 'models', encoder='fastconformer' if conformer else 'whisper', hidden=64)
    model['pretrained_weights'] = True
    if kind == 'tiny':
        if conformer:
            model['pretrained_asr'] = str(conformer_file(folder / 'models', model['perception']))
        return model
    shapes = bench.SHAPES if GPU else bench.SMALL
    family, sizes = next(found for name, found in shapes.items() if kind in name.lower())
    model['pretrained_llm'] = str(big_llm(folder / f'llm-{kind}', family, sizes))
    model['lora'] |= {'r': 32, 'lora_alpha': 32}
    if not conformer:
        model['pretrained_asr'] = str(big_whisper(folder / 'whisper-large'))
        model['perception']['modality_adapter']['d_model'] = 2 * _BIG
        return model
    model['pretrained_weights'] = False  # drawn on the device, which is faster than to write them
    wide = {'n_heads': 8, 'ff_expansion_factor': 4}  # the encoder of Canary 1B flash
    model['perception'] = tiny_perception_cfg(sizes['hidden_size'], d_model=_BIG, layers=32 if GPU else 2)
    model['perception']['preprocessor']['features'] = 128
    model['perception']['encoder'] |= {
        'feat_in': 128, 'conv_kernel_size': 9, 'subsampling_conv_channels': 256, **wide
    }  # fmt: skip
    model['perception']['modality_adapter'] |= {'n_layers': 2, **wide}
    return model


def configuration(case: str) -> tuple[Any, list[Any]]:
    """What is trained, and what is asked afterwards."""
    size, strategy, precision = CASES[case]
    tiny = size.startswith('tiny')
    folder = WORK / ('tiny' if tiny else 'real')
    steps, max_tokens, per_kind = (4, 512, 8) if tiny else (8, 8192, 80) if GPU else (3, 512, 8)
    questions = conversations(folder / 'corpus', per_kind)
    inputs = [
        {'type': 'multimodal_conversation', 'kind': kind, 'weight': 1.0,
         'manifest_filepath': str(folder / 'corpus' / f'{kind}.train.jsonl')}
        for kind in KINDS
    ]  # fmt: skip
    trainer = {
        'accelerator': 'gpu' if GPU else 'cpu', 'devices': 1, 'num_nodes': 1, 'precision': precision,
        'strategy': strategy, 'max_steps': steps, 'gradient_clip_val': 1.0, 'logger': False,
        'enable_checkpointing': False, 'enable_progress_bar': False, 'enable_model_summary': False,
        'use_distributed_sampler': False, 'limit_val_batches': 0, 'num_sanity_val_steps': 0,
        'default_root_dir': str(WORK / 'run'),
    }  # fmt: skip
    data = {
        'train_ds': {'sample_rate': 16000, 'seed': 1, 'input_cfg': inputs},
        'budget': dict.fromkeys(KINDS, 0.25), 'max_tokens': max_tokens, 'rows_per_batch': 1,
        'num_workers': 0 if tiny or not GPU else 4, 'index_dir': str(folder / 'index'),
    }  # fmt: skip
    sections = {'model': model_cfg(size, folder), 'trainer': trainer, 'data': data}
    return OmegaConf.create({'name': 'gpu', 'seed': 7, **sections}), questions


def joint_case(case: str) -> dict[str, Any]:
    """Train some steps by the library's own functions."""
    from nemo_vtb.data.datamodule import VtbDataModule
    from nemo_vtb.training.run import build_model, build_trainer

    cfg, questions = configuration(case)
    seed_everything(7, workers=True, verbose=False)
    clock = Clock(questions)
    trainer = build_trainer(cfg, [clock])
    # 2.5 B random weights on the CPU would take half a minute
    with DEVICE if GPU and case.startswith('gemma-conformer') else nullcontext():
        module = build_model(cfg, trainer)
    built_s = round(time.time() - BEGAN, 1)
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(module, VtbDataModule(cfg.data, module.renderer, module.frames))
    kernels = getattr(module.backbone, 'kernels', None)
    return clock.figures() | {'built_s': built_s, 'kernels': getattr(kernels, 'names', None)}


class Save(Callback):
    """Keeps losses, and writes a checkpoint behind a step."""

    def __init__(self, file: Path | None = None, step: int = 0) -> None:
        self.file, self.step, self.losses = file, step, list[float]()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """One row is one step here."""
        self.losses.append(float(outputs['mean_loss']))
        if self.file is not None and trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)


def resume_case(case: str, folder: Path) -> dict[str, Any]:
    """Losses of an uninterrupted run, and of one that goes on from its checkpoint in the middle."""
    from nemo_vtb.data.datamodule import VtbDataModule
    from nemo_vtb.training.run import build_model, build_trainer

    cfg, _ = configuration(case)
    half, file = cfg.trainer.max_steps // 2, folder / f'{case}.ckpt'
    found = []
    for save, start in ((Save(file, half), None), (Save(), file)):
        seed_everything(7, workers=True, verbose=False)
        trainer = build_trainer(cfg, [save])
        module = build_model(cfg, trainer)
        trainer.fit(module, VtbDataModule(cfg.data, module.renderer, module.frames), ckpt_path=start)
        found.append(save.losses)
    whole, rest = found
    worst = max(abs(a - b) / abs(a) for a, b in zip(whole[half:], rest, strict=True))
    return {'whole': whole, 'resumed': rest, 'worst': worst, 'ok': worst < 0.02}


def run(cases: list[str]) -> None:
    """Each case for itself; `resume-NAME` goes on from a checkpoint of it."""
    torch.set_num_threads(min(8, os.cpu_count() or 1) if GPU else 1)
    for case in cases:
        if name := case.removeprefix('resume-') if case.startswith('resume-') else None:
            with attempt('resume', case=name) as found, tempfile.TemporaryDirectory() as folder:
                found |= resume_case(name, Path(folder))
            continue
        with attempt('joint', case=case) as found:
            found |= joint_case(case)
