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
"""Lightning strategies: tensor parallelism by Megatron, FSDP2 of the frozen LLM, and what both share.

Mesh names are Lightning's: `data_parallel`, `tensor_parallel`. Ranks of one LLM are neighbours.
"""

import importlib.util
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.optim import Optimizer

from nemo_vtb.backbone.base import Backbone
from nemo_vtb.backbone.hf import HFBackbone, ShardedHFBackbone
from nemo_vtb.backbone.precision import multiplies_bfloat16
from nemo_vtb.backbone.spec import BackboneSpec
from nemo_vtb.errors import VtbConfigError, VtbDataError, VtbModelError
from nemo_vtb.parallel.dims import ParallelDims
from nemo_vtb.parallel.rng_state import follow

_BUCKET = 32 * 2**20
"""Elements that are reduced at once: enough to fill the network, little beside the model."""


class ReducingStrategy(ModelParallelStrategy):
    """After the last micro-batch of a step, gradients are summed or averaged as each parameter needs it.

    What is trained is plain tensors, whole on each rank or marked as shards; checkpoints hold what the Hugging Face
    backbone on one rank would have written.

    Args:
        shard_optimizer: Each data-parallel rank keeps its part of the optimizer's moments (ZeRO-1).
        sharded_checkpoint: Checkpoints are folders that all ranks write at once, in the background.
        process_group_backend: None: gloo on CPU, NCCL on GPU.
        timeout: Of a collective.
    """

    def __init__(
        self,
        shard_optimizer: bool = False,
        sharded_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.shard_optimizer, self.sharded_checkpoint = shard_optimizer, sharded_checkpoint
        self._accumulating = False
        self._unsharded = ExitStack()

    backbone_class: ClassVar[type[Backbone]] = HFBackbone
    """How the LLM is held on the ranks of this strategy."""

    @property
    def backbone_options(self) -> dict[str, Any]:
        """What `Backbone.build` is told beyond the plan."""
        return {}

    # ---- ranks

    @property
    def tensor_parallel(self) -> int:
        """Ranks that hold one LLM."""
        return 1

    @property
    def tensor_group(self) -> dist.ProcessGroup:
        """The ranks that hold one LLM; they see the same rows."""
        return self.device_mesh['tensor_parallel'].get_group()

    @property
    def data_group(self) -> dist.ProcessGroup:
        """The ranks that hold the same part of the LLM; they see different rows."""
        return self.device_mesh['data_parallel'].get_group()

    def setup(self, trainer: Trainer) -> None:
        """Build optimizers on the device; gradients are clipped by the norm over all shards."""
        super().setup(trainer)
        ParallelDims.of(trainer).take_from_first(self._tensors_that_begin_equal(), self.root_device)
        # torch's would see the shards of this rank alone
        self.precision_plugin.clip_grad_by_norm = self._clip_by_norm

    def _tensors_that_begin_equal(self) -> Iterable[Tensor]:
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict(keep_vars=True)
        return [value for name, value in state.items() if not name.startswith('llm.')]

    # ---- gradients

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Lightning holds this open while it accumulates."""
        self._accumulating = True
        try:
            yield
        finally:
            self._accumulating = False

    def post_backward(self, closure_loss: Tensor) -> None:
        """Reduce the gradients, once per optimizer step."""
        if self._accumulating or self.world_size == 1:
            return
        assert self.lightning_module is not None
        parameters = [p for p in self.lightning_module.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:  # nothing of it was used on this rank, but perhaps on others
                parameter.grad = torch.zeros_like(parameter)
        world, data = self.world_size, self.world_size // self.tensor_parallel
        spread = {id(p) for p in self._spread_parameters()}
        partial = [p for p in parameters if _is_partial(p) or id(p) in spread]
        apart = {id(p) for p in partial}
        sharded = [p for p in parameters if _is_sharded(p) and id(p) not in apart]
        equal = [p for p in parameters if not _is_sharded(p) and id(p) not in apart]
        _reduce((p.grad for p in sharded), self.data_group, 1.0 / data)
        _reduce((p.grad for p in partial), dist.group.WORLD, 1.0 / data)
        # equal already within the group: their mean keeps kernels that round differently from drifting apart
        _reduce((p.grad for p in equal), dist.group.WORLD, 1.0 / world)
        # running statistics as under DDP: those of rank 0, once per step
        for buffer in running_statistics(self.lightning_module):
            dist.broadcast(buffer, 0)

    def _spread_parameters(self) -> Iterable[nn.Parameter]:
        """Those whose gradient is a part on each rank of an LLM, although they are whole."""
        return ()

    def _clip_by_norm(self, optimizer: Optimizer, clip_val: float) -> None:
        parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        device = self.root_device
        squares = torch.zeros(2, dtype=torch.float32, device=device)  # of shards, of whole parameters
        for parameter in parameters:
            squares[0 if _is_sharded(parameter) else 1] += parameter.grad.float().pow(2).sum()
        dist.all_reduce(squares[:1], group=self.tensor_group)
        factor = (clip_val / (squares.sum().sqrt() + 1e-6)).clamp(max=1.0)
        for parameter in parameters:
            parameter.grad.mul_(factor)

    # ---- passes that not all ranks run equally often

    def on_validation_start(self) -> None:
        """Gather the LLM; what runs it in a validation does so behind this."""
        self._unsharded.enter_context(self.lightning_module.backbone.unsharded())

    def on_validation_end(self) -> None:
        """Give it back."""
        self._unsharded.close()

    on_test_start, on_test_end = on_validation_start, on_validation_end

    # ---- optimizer

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Build the optimizers; with `shard_optimizer` the data-parallel ranks share their moments."""
        super().setup_optimizers(trainer)
        if self.shard_optimizer and dist.get_world_size(self.data_group) > 1:
            self._shard_moments()

    def _shard_moments(self) -> None:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        assert self.lightning_module is not None
        plain = self.optimizers[0]  # type: ignore[has-type]
        # some defaults are set by a class itself and are no arguments of it
        known = inspect.signature(type(plain)).parameters
        options = {name: value for name, value in plain.defaults.items() if name in known}
        optimizer = ZeroRedundancyOptimizer(
            plain.param_groups, optimizer_class=type(plain), process_group=self.data_group, **options
        )
        self.optimizers = [optimizer]
        for config in self.lr_scheduler_configs:
            config.scheduler.optimizer = optimizer

    # ---- checkpoints

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning's order: the model, then the optimizer."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What the Hugging Face backbone would have: LoRA whole, under PEFT's names. All ranks call it together."""
        return self.lightning_module.trained_state()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's part of a checkpoint that any backbone has written."""
        self.lightning_module.load_trained_state(checkpoint['state_dict'])

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state as on the Hugging Face backbone: moments of LoRA whole. All ranks call it together."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer
        if hasattr(optimizer, 'consolidate_state_dict'):
            optimizer.consolidate_state_dict(to=0)
            if dist.get_rank(self.data_group) != 0:
                return {}  # the checkpoint is written by a rank of the first copy
        state = optimizer.state_dict()
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        return {**state, 'state': self._converted(parameters, state['state'], 'gather')}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's part of the moments."""
        for optimizer, state in zip(self.optimizers, checkpoint['optimizer_states'], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group['params']]
            local = self._converted(parameters, state['state'], 'shard')
            optimizer.load_state_dict({**state, 'state': local})

    def _converted(self, parameters: Sequence[nn.Parameter], state: Mapping[int, Any], how: str) -> dict[int, Any]:
        """Gather or shard the moments of what is a part on each rank; all else is whole."""
        backbone = self.lightning_module.backbone
        names = {id(p): name for name, p in backbone.trainable_parameters().items()}
        change, converted = getattr(backbone, how), {}
        for number, entry in sorted(state.items()):
            name = names.get(id(parameters[number]))
            if name is not None:
                entry = {k: change(name, v) if isinstance(v, Tensor) and v.dim() else v for k, v in entry.items()}
            converted[number] = entry
        return converted

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write one file by rank 0, or a folder by all ranks."""
        if self.sharded_checkpoint:
            self.checkpoint_io.save_sharded(checkpoint, self.broadcast(str(filepath)))
        else:
            ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path) -> dict[str, Any]:
        """Read a checkpoint, a file or a folder, on each rank."""
        torch.cuda.empty_cache()
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def teardown(self) -> None:
        """Wait for a checkpoint that is still being written."""
        self.checkpoint_io.teardown()
        super().teardown()


class FullyShardedStrategy(ReducingStrategy):
    """Data parallel, with the decoder layers of the frozen LLM spread over all ranks (FSDP2).

    What is trained (LoRA, adapter, encoder) stays whole on each rank, as under DDP, and so do the token embedding and
    the head: how often they run differs from rank to rank, and a rank that gathers alone would wait forever.

    Its arguments are those of `ReducingStrategy`.
    """

    strategy_name = 'fully_sharded'
    backbone_class = ShardedHFBackbone

    def setup_environment(self) -> None:
        """All ranks are data parallel."""
        self._data_parallel_size = self.world_size
        super().setup_environment()

    @property
    def backbone_options(self) -> dict[str, Any]:
        """The ranks over which the LLM is spread."""
        return {'mesh': self.device_mesh['data_parallel']}

    def _tensors_that_begin_equal(self) -> Iterable[Tensor]:
        # LoRA is whole here, and may have been drawn by each rank for itself
        lora = self.lightning_module.backbone.trainable_parameters().values()
        return [*super()._tensors_that_begin_equal(), *lora]


class MegatronStrategy(ReducingStrategy):
    """`tensor_parallel` neighbouring ranks hold one LLM; the others hold copies and see other rows.

    Encoder and adapter are whole on each rank. There is no wrapper around the model: after the last micro-batch of a
    step, gradients are summed or averaged over the ranks as each parameter needs it. Checkpoints hold what the Hugging
    Face backbone would have written, so that any backbone on any number of ranks goes on from them.

    Args:
        tensor_parallel: Ranks that hold one LLM; 'auto' takes all of a node.
        sequence_parallel: Split the activations between the layers over these ranks as well.
        spread_audio: Each of them encodes its part of a row's clips, instead of all of them all clips.
        recompute: Activations that the backward pass makes again: None, 'selective' (attention) or 'full' (layers).
        kernels: 'auto' takes the fastest that are there; or 'te', 'liger', 'torch'.
        fusions: 'auto' takes what the device has; or a list of 'activation', 'rope' and 'cross_entropy'.
        fp8: Format of FP8 matrix products, 'hybrid' or 'e4m3', with Transformer Engine alone; None for none.
        options: Of `ReducingStrategy`.
    """

    strategy_name = 'megatron'

    def __init__(
        self,
        tensor_parallel: int | Literal['auto'] = 1,
        sequence_parallel: bool = False,
        spread_audio: bool = True,
        recompute: Literal['selective', 'full'] | None = None,
        kernels: str = 'auto',
        fusions: str | Sequence[str] = 'auto',
        fp8: Literal['hybrid', 'e4m3'] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._tensor_parallel_size = tensor_parallel
        self.sequence_parallel, self.spread_audio, self.recompute = sequence_parallel, spread_audio, recompute
        self.kernels, self.fusions, self.fp8 = kernels, fusions, fp8
        if recompute not in (None, 'selective', 'full'):
            raise VtbConfigError(
                'There is no such way to recompute activations.',
                field='trainer.strategy.recompute',
                got=recompute,
                allowed="null, 'selective' or 'full'",
                remedy='selective: attention scores, nearly free; full: whole layers, a third more time, least memory',
            )

    # ---- ranks

    @property
    def tensor_parallel(self) -> int:
        """Ranks that hold one LLM.

        Raises:
            VtbConfigError: The ranks are not a multiple of it.
        """
        size = self.num_processes if self._tensor_parallel_size == 'auto' else int(self._tensor_parallel_size)
        if size < 1 or self.world_size % size:
            raise VtbConfigError(
                'The ranks cannot be shared equally among copies of the LLM.',
                field='trainer.strategy.tensor_parallel',
                got=f'{size} for {self.world_size} ranks',
                allowed=f'a divisor of {self.world_size}',
                remedy=f'trainer.devices={max(1, size)}, or another tensor_parallel',
            )
        return size

    @property
    def backbone_class(self) -> type[Backbone]:  # type: ignore[override]
        """Imported when it is asked for, since it needs megatron-core.

        Raises:
            VtbModelError: megatron-core is not installed.
        """
        if importlib.util.find_spec('megatron') is None or importlib.util.find_spec('megatron.core') is None:
            raise VtbModelError(
                'The Megatron backbone needs megatron-core.',
                field='trainer.strategy',
                got='not installed',
                remedy="pip install -e '.[megatron]' on a CUDA machine, '.[megatron-cpu]' elsewhere",
            )
        from nemo_vtb.backbone.megatron.model import MegatronBackbone

        return MegatronBackbone

    @property
    def backbone_options(self) -> dict[str, Any]:
        """Groups, kernels, and fields of megatron's `TransformerConfig`."""
        shares_clips = self.spread_audio and self.tensor_parallel > 1
        return {
            'clip_group': self.tensor_group if shares_clips else None,
            'sequence_parallel': self.sequence_parallel,
            **self.decoder_options,
        }

    @property
    def decoder_options(self) -> dict[str, Any]:
        """What `MegatronBackbone` is told beyond the LLM: kernels, and fields of megatron's `TransformerConfig`."""
        options: dict[str, Any] = {'kernels': self.kernels, 'fusions': self.fusions, 'fp8': self.fp8}
        if self.recompute is not None:
            options['recompute_granularity'] = self.recompute
        if self.recompute == 'full':
            options |= {'recompute_method': 'uniform', 'recompute_num_layers': 1}
        return options

    def setup_environment(self) -> None:
        """Make the process groups, Lightning's and Megatron's, which must be the same."""
        self._tensor_parallel_size = self.tensor_parallel
        self._data_parallel_size = self.world_size // self._tensor_parallel_size
        super().setup_environment()
        from nemo_vtb.backbone.megatron import runtime

        # those of rank 0, since without a common seed the ranks of one LLM would drop out differently
        self._seed, drawn = self.broadcast((torch.initial_seed() % 2**31, torch.get_rng_state()))
        runtime.initialize(self._tensor_parallel_size, seed=self._seed, device=self.root_device)
        torch.set_rng_state(drawn)  # the same numbers follow as on any other strategy
        follow(runtime.generator_states, runtime.set_generator_states)

    def setup(self, trainer: Trainer) -> None:
        """Begin equal, then draw for other rows other numbers."""
        super().setup(trainer)
        if copy := dist.get_rank(self.data_group):
            from nemo_vtb.backbone.megatron.runtime import seed_everything

            seed_everything(self._seed + 7919 * copy)  # other rows, other dropout

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Move a row to the device.

        Raises:
            VtbDataError: The ranks of one LLM hold different rows, since one of them could not load all of it.
        """
        batch = super().batch_to_device(batch, device, dataloader_idx)
        if self.tensor_parallel > 1 and hasattr(batch, 'audio_positions'):
            ids, positions = batch.input_ids, batch.audio_positions
            mine = torch.stack([ids.sum(), torch.tensor(ids.numel()).to(ids), positions.sum()])  # (3,)
            highest = torch.cat([mine, -mine])
            dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=self.tensor_group)
            if not torch.equal(highest[:3], -highest[3:]):
                raise VtbDataError(
                    'The ranks that hold one LLM read different rows.',
                    field='row',
                    got=f'{batch.ids[:3]}, skipped here: {batch.faults or "nothing"}',
                    allowed='the same conversations on all of them',
                    remedy='a file could be read on some ranks only: check the storage, then start again',
                )
        return batch

    def _spread_parameters(self) -> Iterable[nn.Parameter]:
        if self.tensor_parallel == 1 or not self.spread_audio:
            return ()
        return self.lightning_module.perception.parameters()


def register_strategies() -> None:
    """Make `trainer.strategy=megatron` mean one LLM on all GPUs of a node, and `fully_sharded` FSDP2."""
    if 'megatron' not in StrategyRegistry:
        StrategyRegistry.register('megatron', MegatronStrategy, tensor_parallel='auto')
    if 'fully_sharded' not in StrategyRegistry:
        StrategyRegistry.register('fully_sharded', FullyShardedStrategy)


def backbone_class(trainer: Trainer | None) -> type[Backbone]:
    """How the LLM is held under the strategy of a trainer: Hugging Face's, unless the strategy has another."""
    return getattr(getattr(trainer, 'strategy', None), 'backbone_class', HFBackbone)


def build_backbone(spec: BackboneSpec, trainer: Trainer | None) -> Backbone:
    """Read this rank's part of the LLM; under a strategy that is deferred, when the ranks know one another.

    Raises:
        VtbModelError: Weights are missing or corrupt, or the family is not supported.
    """
    strategy: Any = getattr(trainer, 'strategy', None)
    cls = backbone_class(trainer)
    precision = str(trainer.precision) if trainer is not None else '32-true'
    dtype = spec.weight_dtype(precision=precision, in_half=_multiplies_bfloat16(trainer, cls))
    spec.choose_kernels(on_gpu=isinstance(getattr(trainer, 'accelerator', None), CUDAAccelerator))
    if not cls.deferred:
        # Lightning casts the whole model to bf16-true
        return cls.build(spec, dtype=torch.float32 if 'bf16-true' in precision else dtype)
    ParallelDims.of(trainer).take_from_first(spec.first_lora.values(), strategy.root_device)
    lora_dtype = torch.bfloat16 if 'bf16-true' in precision else torch.float32
    return cls.build(spec, dtype=dtype, lora_dtype=lora_dtype, **strategy.backbone_options)


def _multiplies_bfloat16(trainer: Trainer | None, cls: type[Backbone]) -> bool:
    accelerator = getattr(trainer, 'accelerator', None)
    if isinstance(accelerator, CPUAccelerator):
        return not cls.deferred and multiplies_bfloat16('cpu')  # the others run on CPUs to be tried
    return isinstance(accelerator, CUDAAccelerator)


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Mean, variance and count of all batch norms that are being trained."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    return [buffer for norm in norms for buffer in norm.buffers()]


def _is_sharded(parameter: nn.Parameter) -> bool:
    return bool(getattr(parameter, 'tensor_model_parallel', False))


def _is_partial(parameter: nn.Parameter) -> bool:
    """Whether each rank of the LLM has only part of the gradient of a parameter that is whole on all of them."""
    return bool(getattr(parameter, 'partial_gradient', False))


def _reduce(gradients: Iterable[Tensor | None], group: dist.ProcessGroup | None, scale: float) -> None:
    """Sum over a group, then scale; in buckets of one dtype, since a collective has a price of its own."""
    if group is None or dist.get_world_size(group) == 1:
        return
    bucket: list[Tensor] = []
    for gradient in (*(g for g in gradients if g is not None), None):
        full = gradient is None or (bucket and bucket[0].dtype != gradient.dtype)
        if bucket and (full or sum(g.numel() for g in bucket) > _BUCKET):
            flat = torch.cat([g.reshape(-1) for g in bucket])
            dist.all_reduce(flat, group=group)
            flat.mul_(scale)
            for one, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                one.copy_(part.view_as(one))
            bucket = []
        if gradient is not None:
            bucket.append(gradient)
