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
"""Reads a training configuration for a command: the composed YAML, the renderer, the frame counter; no weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.assets.resolve import register_resolvers, resolve_asset
from nemo_vtb.errors import VtbConfigError, VtbModelError, first_line

if TYPE_CHECKING:
    from nemo_vtb.data.template import ChatRenderer


def compose_config(path: Path, overrides: Sequence[str] = ()) -> Any:
    """Compose a training YAML as Hydra does for the scripts.

    Raises:
        VtbConfigError: It does not exist, cannot be composed, or has no model or no data.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    from nemo_vtb.config.salm import complete_config

    if not path.is_file():
        raise VtbConfigError(
            'The configuration does not exist.', field='CONFIG', got=str(path), remedy='correct the path'
        )
    register_resolvers()
    try:
        with initialize_config_dir(str(path.parent.resolve()), version_base=None):
            cfg = compose(config_name=path.stem, overrides=list(overrides))
    except HydraException as error:
        raise VtbConfigError('The configuration cannot be composed.', field=str(path), got=str(error)) from error
    if 'model' not in cfg or 'data' not in cfg:
        raise VtbConfigError('The configuration has no model or no data.', field=str(path), got=sorted(map(str, cfg)))
    return complete_config(cfg)


def read_renderer(llm: str, date: str | None = None) -> 'ChatRenderer':
    """The renderer of an LLM's folder or asset.

    Args:
        llm: The folder, or asset:NAME.
        date: `model.template_date`.

    Raises:
        VtbModelError: The tokenizer cannot be read.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging as hf_logging

    from nemo_vtb.data.template import ChatRenderer

    hf_logging.set_verbosity_error()
    folder = resolve_asset(llm)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=Path(folder).exists())
    except (OSError, ValueError) as error:
        raise VtbModelError(
            'The tokenizer of the LLM cannot be read.',
            field='--llm',
            got=f'{llm}: {first_line(error)}',
            allowed='a Hugging Face folder, or asset:NAME',
        ) from error
    return ChatRenderer(tokenizer, date)


def frame_counter_of(cfg: Any) -> Callable[[int], int]:
    """Samples of a clip -> frames, as the model of a configuration counts them; its weights are not loaded.

    Raises:
        VtbModelError: The sections of its encoder are known only from its weights.
    """
    from omegaconf import OmegaConf

    from nemo_vtb.model.frames import frame_counter

    perception: Any = OmegaConf.to_container(cfg.model.perception, resolve=True)
    source = cfg.model.get('pretrained_asr')
    if source and Path(resolve_asset(source), 'config.json').is_file():
        # Whisper's module loads torch, which takes seconds: only here
        from nemo_vtb.model.whisper import whisper_sections

        sections = whisper_sections(resolve_asset(source))
        perception |= sections | {'encoder': sections['encoder'] | (perception.get('encoder') or {})}
    return frame_counter(perception, chunk_s=cfg.model.get('encoder_chunk_size_seconds'))
