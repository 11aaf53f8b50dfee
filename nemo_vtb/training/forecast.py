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
"""What a training will need, before anything is downloaded: parameters and memory per GPU, built on the meta device.

Letters: T row length, H LLM width, F width of its MLP, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from nemo.core.classes.common import safe_instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from nemo_vtb.backbone.precision import multiplies_bfloat16, resolve_precision
from nemo_vtb.config.schema import ModelConfig
from nemo_vtb.errors import VtbConfigError, VtbModelError
from nemo_vtb.training.known_models import ENCODERS, LLMS
from nemo_vtb.training.step_cost import StepCost, Workload, sizes_of, step_cost

if TYPE_CHECKING:
    from rich.table import Table

_GB = 1e9
_COLUMNS = ('q_proj', 'k_proj', 'v_proj', 'gate_proj', 'up_proj', 'embed_tokens', 'lm_head')
_ROWS = ('o_proj', 'down_proj')


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the model.

    Args:
        parameters: Of the whole part.
        local: Of those, what one GPU holds.
        trained: Whether gradients and the optimizer's moments are kept for it.
    """

    parameters: int
    local: int
    trained: bool


@dataclass(frozen=True, slots=True)
class Forecast:
    """Sizes of a model and of one GPU's share of a training step; memory in GB (10^9 bytes).

    Args:
        parts: `encoder`, `adapter`, `projection`, `llm`, `lora`.
        tensor_parallel: GPUs that hold one LLM.
        data_parallel: Copies of it.
        weights_gb: All weights of one GPU.
        training_gb: Gradients and the optimizer's moments of one GPU.
        activations_gb: What the backward pass of one packed row of text needs, and its logits.
        step: What one optimizer step asks of one GPU.
    """

    parts: Mapping[str, Part]
    tensor_parallel: int
    data_parallel: int
    weights_gb: float
    training_gb: float
    activations_gb: float
    step: StepCost

    @property
    def total_gb(self) -> float:
        """All three together; the encoder's activations and the allocator's reserve come on top."""
        return self.weights_gb + self.training_gb + self.activations_gb


def forecast(cfg: DictConfig) -> Forecast:
    """Count a configuration without loading it.

    Args:
        cfg: The composed configuration: `model`, `trainer`, and `data.max_tokens`.

    Raises:
        VtbModelError: The shape of the LLM or of the encoder is not known here.
        VtbConfigError: The GPUs are not a multiple of those that hold one LLM.
    """
    tensor, data, sharded = _ranks(cfg)
    with torch.device('meta'):
        llm, lora = _llm(cfg.model)
    with _empty_weights():
        speech = _speech(cfg.model, llm.config.get_text_config().hidden_size)
    shares = _shares(llm, tensor)
    if _is_fully_sharded(cfg):
        shares['llm'] = _gathered(llm, data)
    parts = {name: _part(module, True) for name, module in speech.items()}
    parts['llm'] = Part(sum(p.numel() for p in llm.parameters() if not p.requires_grad), shares['llm'], False)
    parts['lora'] = Part(lora, shares['lora'], True)
    weight, gradient, moments = _bytes(_precision(cfg))
    frozen = 2 if _frozen_in_half(cfg) else weight
    trained = sum(part.local for part in parts.values() if part.trained)
    return Forecast(
        parts,
        tensor,
        data,
        sum(part.local * (frozen if name == 'llm' else weight) for name, part in parts.items()) / _GB,
        trained * (gradient + moments / (data if sharded else 1)) / _GB,
        _activations(cfg, llm.config.get_text_config(), tensor) / _GB,
        _step(cfg, llm.config.get_text_config(), parts, tensor, data),
    )


def _step(cfg: DictConfig, config: Any, parts: Mapping[str, Part], tensor: int, data: int) -> StepCost:
    options, rows = _strategy_options(cfg), cfg.get('data') or OmegaConf.create({})
    whisper = (Path(str(cfg.model.get('pretrained_asr'))) / 'config.json').is_file()
    sizes = sizes_of(
        config,
        {name: part.parameters for name, part in parts.items()},
        tensor=tensor,
        data=data,
        sharded=_is_fully_sharded(cfg),
        sequence_parallel=bool(options.get('sequence_parallel')),
        recompute=options.get('recompute') == 'full',
        bytes_moved=2 if '16' in _precision(cfg) else 4,
        encoder_rate=50.0 if whisper else 12.5,
    )
    per_rank = max(1, int(rows.get('rows_per_batch') or data) // data)
    return step_cost(sizes, Workload(tokens=int(rows.get('max_tokens', 4096)), rows=per_rank))


def forecast_table(name: str, outlook: Forecast) -> 'Table':
    """The forecast for people: parameters of each part, and memory per GPU."""
    from rich.table import Table

    title = f'{name}: {outlook.tensor_parallel} GPUs per LLM x {outlook.data_parallel} copies'
    table = Table(title=title, title_justify='left')
    for column in ('part', 'parameters', 'on one GPU', 'trained'):
        table.add_column(column, justify='left' if column == 'part' else 'right')
    for part, size in outlook.parts.items():
        row = (f'{size.parameters / 1e6:,.1f} M', f'{size.local / 1e6:,.1f} M', 'yes' if size.trained else 'no')
        table.add_row(part, *row)
    table.add_section()
    for what, gb in (
        ('weights', outlook.weights_gb),
        ('gradients and moments', outlook.training_gb),
        ('activations of a text row', outlook.activations_gb),
        ('together', outlook.total_gb),
    ):
        table.add_row(what, '', f'{gb:,.1f} GB', '')
    return table


@contextmanager
def _empty_weights() -> Iterator[None]:
    """Put parameters on the meta device as they are registered: NeMo's constructors compute with real tensors."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        return None if parameter is None else nn.Parameter(parameter.to('meta'), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(empty)
    try:
        yield
    finally:
        hook.remove()


def _ranks(cfg: DictConfig) -> tuple[int, int, bool]:
    """GPUs per LLM, copies, and whether the copies share the moments."""
    devices = cfg.trainer.get('devices', 1)
    world = (int(devices) if str(devices).isdigit() else 1) * int(cfg.trainer.get('num_nodes') or 1)
    options = _strategy_options(cfg)
    tensor = int(options.get('tensor_parallel') or 1)
    if world % tensor:
        raise VtbConfigError(
            'The GPUs cannot be shared equally among copies of the LLM.',
            field='trainer.strategy.tensor_parallel',
            got=f'{tensor} for {world} GPUs',
            allowed=f'a divisor of {world}',
        )
    return tensor, world // tensor, bool(options.get('shard_optimizer'))


def _llm(cfg: DictConfig) -> tuple[nn.Module, int]:
    """The LLM with LoRA on the meta device, and the number of LoRA weights; all else is frozen, as in the paper."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from nemo_vtb.model.blender import plain_dict

    source = str(cfg.pretrained_llm)
    if (Path(source) / 'config.json').is_file():
        config = AutoConfig.from_pretrained(source)
    elif source in LLMS:
        config = AutoConfig.for_model(**LLMS[source])
    else:
        raise _unknown('model.pretrained_llm', source, LLMS)
    llm = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    if cfg.get('lora'):
        from peft import LoraConfig, get_peft_model

        llm = get_peft_model(llm, LoraConfig(**plain_dict(cfg.lora)))
    return llm, sum(p.numel() for p in llm.parameters() if p.requires_grad)


def _speech(cfg: DictConfig, hidden_size: int) -> dict[str, nn.Module]:
    source, perception = str(cfg.get('pretrained_asr')), cfg.perception
    given: Any = OmegaConf.to_container(perception.get('encoder') or OmegaConf.create({}), resolve=True)
    if '_target_' not in given:
        if (Path(source) / 'config.json').is_file():
            from nemo_vtb.model.whisper import whisper_sections

            given = whisper_sections(source)['encoder'] | given
        elif source in ENCODERS:
            given = ENCODERS[source] | given
        else:
            raise _unknown('model.pretrained_asr', source, ENCODERS)
    adapter: Any = OmegaConf.to_container(perception.modality_adapter, resolve=True)
    adapter.setdefault('feat_in', given['d_model'])
    return {
        'encoder': safe_instantiate(OmegaConf.create(given)),
        'adapter': safe_instantiate(OmegaConf.create(adapter)),
        'projection': nn.Linear(adapter['d_model'], hidden_size),
    }


def _unknown(field: str, got: str, known: Mapping[str, Any]) -> VtbModelError:
    return VtbModelError(
        'Its shape is not known without its files.',
        field=field,
        got=got,
        allowed=[*known, 'a folder'],
        remedy='download it and name the folder',
    )


def _part(module: nn.Module, trained: bool) -> Part:
    size = sum(p.numel() for p in module.parameters())
    return Part(size, size, trained)


def _shares(llm: nn.Module, tensor: int) -> dict[str, int]:
    """Parameters on one of `tensor` GPUs: matrices are cut, norms are not, each GPU has at least one KV head."""
    config = llm.config.get_text_config()
    heads = config.num_key_value_heads
    shares = {'llm': 0, 'lora': 0}
    for name, parameter in llm.named_parameters():
        layer = next((n for n in (*_COLUMNS, *_ROWS) if f'.{n}.' in name), None)
        # of a factor of LoRA, the side of the rank is whole on each GPU
        whole = '.lora_' in name and (layer in _COLUMNS) == ('.lora_A.' in name)
        size = parameter.numel()
        if layer is not None and not whole:
            parts = min(tensor, heads) if layer in ('k_proj', 'v_proj') else tensor
            size = -(-size // parts)
        shares['lora' if '.lora_' in name else 'llm'] += size
    return shares


def _strategy_options(cfg: DictConfig) -> Mapping[str, Any]:
    """Options of `trainer.strategy`; {} where it is a name."""
    given = cfg.trainer.get('strategy')
    return given if isinstance(given, Mapping | DictConfig) else {}


def _is_fully_sharded(cfg: DictConfig) -> bool:
    name = _strategy_options(cfg).get('_target_') or cfg.trainer.get('strategy')
    return str(name).endswith(('FullyShardedStrategy', 'fully_sharded'))


def _gathered(llm: nn.Module, ranks: int) -> int:
    """Frozen parameters on one GPU under FSDP2: a part of each layer, one layer whole, and what is no layer."""
    frozen = {name: p.numel() for name, p in llm.named_parameters() if not p.requires_grad}
    inside = sum(size for name, size in frozen.items() if '.layers.' in name)
    outside = sum(frozen.values()) - inside
    return outside + -(-inside // ranks) + inside // llm.config.get_text_config().num_hidden_layers


def _bytes(precision: str) -> tuple[int, int, int]:
    """Bytes of a weight, of a gradient, of Adam's two moments."""
    return (2, 2, 4) if precision.startswith(('bf16-true', 'fp16-true', '16-true')) else (4, 4, 8)


def _precision(cfg: DictConfig) -> str:
    """`trainer.precision`; `auto` is answered for a GPU that has bfloat16 unless the accelerator is this CPU."""
    wanted = str(cfg.trainer.get('precision', '32-true'))
    return 'bf16-mixed' if wanted == 'auto' and not _is_on_cpu(cfg) else resolve_precision(wanted, 'cpu')


def _is_on_cpu(cfg: DictConfig) -> bool:
    return cfg.trainer.get('accelerator') == 'cpu'


def _frozen_in_half(cfg: DictConfig) -> bool:
    """Whether the frozen LLM is kept in bfloat16; `auto` says so of the GPU that a forecast is about."""
    wanted = str(cfg.model.get('frozen_dtype') or ModelConfig.frozen_dtype)
    mixed = _precision(cfg) == 'bf16-mixed' and (not _is_on_cpu(cfg) or multiplies_bfloat16('cpu'))
    return wanted == 'bfloat16' or (wanted == 'auto' and mixed)


def _activations(cfg: DictConfig, config: Any, tensor: int) -> float:
    """Bytes kept for the backward pass through the frozen LLM, and for the logits of one chunk.

    Counted per token and layer: two norms (input, output), Q, K, V and the output of attention, gate, up and their
    product. Source: Korthikanti et al. 2022, "Reducing activation recomputation", with flash attention and SwiGLU.
    """
    tokens = int(cfg.data.get('max_tokens', 4096)) if 'data' in cfg else 4096
    options = _strategy_options(cfg)
    width, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, 'head_dim', None) or width // heads
    split = 2 * heads * head + 2 * config.num_key_value_heads * head + 3 * config.intermediate_size
    between = 4 * width / (tensor if options.get('sequence_parallel') else 1)
    layer = between + split / tensor
    layers = config.num_hidden_layers
    if options.get('recompute') == 'full':
        kept = layers * width / (tensor if options.get('sequence_parallel') else 1) + layer
    else:
        kept = layers * layer
    size = 2 if '16' in _precision(cfg) else 4
    logits = int(cfg.model.get('loss_chunk') or ModelConfig.loss_chunk) * config.vocab_size / tensor * (size + 4)
    return tokens * kept * size + logits
