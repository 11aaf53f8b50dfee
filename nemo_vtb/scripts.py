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
"""What every script does first (stay offline, leave the terminal to its own lines), and what it does then.

`examples/*.py` and `vtb align|train|eval|generate|export` call the same functions.
"""

import logging
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import nemo_vtb as vtb

if TYPE_CHECKING:
    from omegaconf import DictConfig

# a key that SALM's YAML may lack, and its value; a number in the key is a place in a list, which ++ cannot reach
_OVERRIDE = re.compile(r'([a-z]\w*(\.[A-Za-z_]\w*)+|init_from_nemo|name|seed)=')

_CHATTY = (
    'lightning.fabric',
    'lightning.pytorch',
    'lightning_fabric',
    'numexpr',
    'nv_one_logger',
    'pytorch_lightning',
    'torch.distributed',
)


def start_script(config: type | None = None) -> None:
    """To be called before the heavy imports, some of which announce themselves; HF_HUB_OFFLINE=0 allows the hub.

    Args:
        config: The dataclass of the script's keys, printed by `--help` before Hydra shows what is composed.
    """
    if config is not None and '--help' in sys.argv[1:]:
        from nemo_vtb.config.keys import help_text

        sys.stdout.write(help_text(config) + '\n\n')
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    keep_compiled_code_apart()
    # idle threads that spin steal the core that loader processes and neighbours need
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    # Hydra refuses a key that no file has without naming the nearest one; with ++ it reaches our own check, which does
    sys.argv[1:] = [f'++{word}' if _OVERRIDE.match(word) else word for word in sys.argv[1:]]
    if {'-m', '--multirun'} & set(sys.argv[1:]):
        sys.argv.append('hydra.job.chdir=false')  # NeMo's exp_manager refuses the folder that Hydra would go to
    if not sys.stdout.isatty():
        os.environ.setdefault('COLUMNS', '120')  # tables in a file need not be as narrow as rich's 80
    quiet_imports()


def quiet_imports() -> None:
    """To be called before: leave out what libraries say when they are imported; NEMO_LOG_LEVEL=INFO shows it."""
    warnings.filterwarnings('ignore', message=r'\s*Future Hydra versions will no longer change')
    if not os.environ.get('NEMO_LOG_LEVEL'):
        logging.getLogger('nv_one_logger').setLevel(logging.ERROR)
        # NeMo imports megatron-core where it is installed, which then misses kernels that are not used here
        warnings.filterwarnings('ignore', message='Transformer Engine and Apex are not installed')


def keep_compiled_code_apart() -> None:
    """Compiled functions of one instruction set are kept from another: torch's cache takes them for the same.

    Code that torch.compile made with AVX-512 gives NaN in a process with ATEN_CPU_CAPABILITY=avx2 (torch 2.13).
    """
    if capability := os.environ.get('ATEN_CPU_CAPABILITY'):
        folder = Path(tempfile.gettempdir()) / f'torchinductor_{os.getuid()}_{capability}'
        os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', str(folder))


def quiet_logs() -> None:
    """Other libraries show warnings and errors alone; NEMO_LOG_LEVEL=INFO shows all."""
    if os.environ.get('NEMO_LOG_LEVEL'):
        return
    from nemo.utils import logging as nemo_logging
    from transformers.utils import logging as hf_logging

    nemo_logging.setLevel(nemo_logging.ERROR)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', module=r'(lightning|torch|transformers|nemo|pydub|hydra)\b')


# ---- what `examples/*.py` and `vtb align|train|eval|generate|export` do


def run_alignment(cfg: 'DictConfig') -> None:
    """Read and encode the recordings, align, write the adapter: `conf/speechllm_align_adapter.yaml`.

    Raises:
        VtbError: Of the configuration, the data or the models.
    """
    vtb.check_config(cfg, vtb.AlignConfig)
    cfg = vtb.resolve_assets(cfg)
    from rich.console import Console

    quiet_logs()
    console, folder = Console(), Path('runs') / cfg.name
    path = vtb.align_adapter(cfg, folder, cfg.output or folder / f'{cfg.name}.safetensors', console)
    words = f'model.perception.adapter_init=aligned model.perception.init_adapter={path}'
    console.print(f'Next: {_vtb()} train {words}', highlight=False, markup=False, soft_wrap=True)


def run_training(cfg: 'DictConfig') -> float | None:
    """Check, build, train, sum up: the whole of `conf/speechllm_joint_sft.yaml`.

    Returns:
        The best value of the metric that checkpoints are chosen by, as Hydra's sweepers want it; None without one.

    Raises:
        VtbError: Of the configuration, the data, the model or the checkpoint to go on from.
    """
    vtb.check_config(vtb.complete_config(cfg))
    cfg = vtb.resolve_assets(_apart(cfg))
    from nemo_vtb.training.run import train
    from nemo_vtb.training.run_folder import last_checkpoint, nemo_file
    from nemo_vtb.training.run_state import run_folder

    quiet_logs()
    trainer = train(cfg, [vtb.ProgressLine(), vtb.History()])
    if trainer.is_global_zero:
        model = nemo_file(trainer)
        commands = [f'{_vtb()} {c} {model}' for c in ('chat', 'eval', 'generate', 'export')] if model else []
        if (last := last_checkpoint(trainer)) and not model:  # save_nemo_on_train_end is off
            commands = [f'{_vtb()} import {last} {last.with_name(f"{cfg.name}.nemo")}']
        vtb.print_summary(run_folder(trainer), next_commands=commands)
    best = getattr(trainer.checkpoint_callback, 'best_model_score', None)
    return None if best is None else float(best)


def _apart(cfg: 'DictConfig') -> 'DictConfig':
    """Each job of `--multirun` has a folder of its own, by its number: else it would go on from the one before."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        manager, number = cfg.exp_manager, str(HydraConfig.get().job.num)
        key = 'explicit_log_dir' if manager.get('explicit_log_dir') else 'version'
        manager[key] = str(Path(manager.get(key) or '') / number)
    return cfg


def run_evaluation(cfg: 'DictConfig') -> None:
    """Restore, answer, measure, show: `conf/eval/speechllm_eval.yaml`.

    Raises:
        VtbError: Of the configuration, the data or the model.
    """
    vtb.check_config(cfg, vtb.EvalConfig)
    from rich.console import Console

    from nemo_vtb.checkpoint.archive import read_info
    from nemo_vtb.evaluation.tables import show, to_tensorboard

    quiet_logs()
    console = Console(quiet=int(os.environ.get('RANK', '0')) > 0)  # of the ranks of torchrun one speaks
    options = {'device': cfg.device, 'record': cfg.record, 'console': console}
    result, path = vtb.evaluate_file(cfg.model, vtb.evaluation_plan(cfg), cfg.output, **options)
    if cfg.tensorboard and not console.quiet:
        ledger = read_info(cfg.model).manifest.get('ledger') or {}
        to_tensorboard(result, cfg.tensorboard, int(ledger.get('batches', 0)))
    show(result, console, examples=cfg.examples)
    console.print(f'All {len(result.samples)} answers: {path}', highlight=False, markup=False, soft_wrap=True)


def run_generation(cfg: 'DictConfig') -> None:
    """Read the questions, restore the model, answer, show: `conf/eval/speechllm_generate.yaml`.

    Raises:
        VtbError: Of the configuration, the recordings or the model.
    """
    vtb.check_config(cfg, vtb.GenerateConfig)
    from rich.console import Console

    from nemo_vtb.evaluation.answers import decoding

    quiet_logs()
    if cfg.manifest:
        conversations, references = vtb.conversations_from_manifest(cfg.manifest, cfg.prompt)
    else:
        conversations, references = vtb.conversations_from_audio(list(cfg.audio), cfg.prompt), []
    model = vtb.restore(cfg.model, cfg.device)
    options = {'max_new_tokens': cfg.max_new_tokens, 'batch_size': cfg.batch_size, 'use_lora': cfg.use_lora}
    answers = model.answer(conversations, **options, **decoding(cfg.num_beams, cfg.no_repeat_ngram_size))
    vtb.print_answers(conversations, answers, references, console=Console(), output=cfg.output)


def run_export(cfg: 'DictConfig') -> None:
    """Restore, write, compare: `conf/eval/speechllm_export.yaml`.

    Raises:
        VtbError: Of the configuration or the model, or the export answers differently.
    """
    vtb.check_config(cfg, vtb.ExportConfig)
    from rich.console import Console

    quiet_logs()
    console = Console()
    output = cfg.output or vtb.default_export_path(cfg.model, cfg.to)
    model = vtb.restore(cfg.model, 'cpu', base_llm=cfg.base_llm)
    with tempfile.TemporaryDirectory() as folder:
        prompts = vtb.resolve_assets(cfg).prompts
        parity = vtb.export_model(
            model,
            cfg.to,
            output,
            check=cfg.check,
            overwrite=cfg.overwrite,
            include_llm=not cfg.without_llm,
            asr_source=cfg.asr,
            base_llm=cfg.base_llm,
            questions=vtb.export_questions(prompts, Path(folder), cfg.num_prompts) if prompts else None,
            max_new_tokens=cfg.max_new_tokens,
        )
    if parity is None:
        console.print('not verified (check=false)', style='yellow')
    else:
        console.print(parity.answers_table())
        console.print(parity.table())
    console.print(f'written: {output}', highlight=False, markup=False, soft_wrap=True)


def _vtb() -> str:
    """How this user types `vtb`: it stands beside the interpreter, which may be on no path."""
    program = Path(sys.executable).with_name('vtb')
    if program.parent.as_posix() in os.environ.get('PATH', '').split(os.pathsep) or not program.is_file():
        return 'vtb'
    return os.path.relpath(program) if program.is_relative_to(Path.cwd()) else str(program)
