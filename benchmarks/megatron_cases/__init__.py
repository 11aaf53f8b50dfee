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
"""Parity of the Megatron backbone with Hugging Face and PEFT, family by family, on tiny random models.

Runs in each process of a tensor-parallel group; used by `megatron_parity.py`, by the tests, and by whoever adds a
family.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Config = Callable[[], Any]
_TARGETS = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']
_SIZES = {
    'hidden_size': 64,
    'intermediate_size': 96,
    'num_hidden_layers': 3,
    'vocab_size': 131,  # not a multiple of any number of ranks
    'max_position_embeddings': 512,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'pad_token_id': 0,
}

# name -> (class of transformers, what differs from _SIZES)
CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    'llama': ('LlamaConfig', {'num_attention_heads': 4, 'num_key_value_heads': 2, 'tie_word_embeddings': False}),
    'llama3_rope': (
        'LlamaConfig',
        {
            'num_attention_heads': 4,
            'num_key_value_heads': 4,
            'tie_word_embeddings': False,
            'rope_parameters': {
                'rope_type': 'llama3', 'rope_theta': 500000.0, 'factor': 4.0, 'low_freq_factor': 1.0,
                'high_freq_factor': 3.0, 'original_max_position_embeddings': 16,
            },
        },
    ),
    'smollm_uneven': (
        'LlamaConfig',
        {'hidden_size': 144, 'num_attention_heads': 9, 'num_key_value_heads': 3, 'tie_word_embeddings': True},
    ),
    'mistral': (
        'MistralConfig',
        {'num_attention_heads': 4, 'num_key_value_heads': 2, 'sliding_window': 8, 'tie_word_embeddings': False},
    ),
    'qwen2': ('Qwen2Config', {'num_attention_heads': 4, 'num_key_value_heads': 2, 'tie_word_embeddings': True}),
    'qwen3': (
        'Qwen3Config',
        {'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 32, 'tie_word_embeddings': False},
    ),
    'gemma_mqa': ('GemmaConfig', {'num_attention_heads': 4, 'num_key_value_heads': 1, 'head_dim': 32}),
    'gemma2': (
        'Gemma2Config',
        {
            'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 32, 'sliding_window': 8,
            'query_pre_attn_scalar': 24, 'attn_logit_softcapping': 5.0, 'final_logit_softcapping': 3.0,
        },
    ),
    'gemma3': (
        'Gemma3TextConfig',
        {
            'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 32, 'sliding_window': 8,
            'query_pre_attn_scalar': 24,
            'layer_types': ['sliding_attention', 'sliding_attention', 'full_attention'],
        },
    ),
}  # fmt: skip
"""The families, each with what is special about it."""


@dataclass(frozen=True, slots=True)
class Parity:
    """What one family came to; differences are the largest absolute ones."""

    family: str
    ranks: int
    sequence_parallel: bool
    logits: float
    loss: float
    lora_gradients: float
    input_gradients: float
    weights_exact: bool
    lora_exact: bool
    answers_equal: bool

    @property
    def worst(self) -> float:
        """The largest difference of all."""
        return max(self.logits, self.loss, self.lora_gradients, self.input_gradients)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def tiny_config(name: str) -> Any:
    """The configuration of a case."""
    import transformers

    cls, changes = CASES[name]
    return getattr(transformers, cls)(**_SIZES | changes)


def _tiny_model(name: str) -> Any:
    """A random model with weights large enough that every part matters, the same on all ranks."""
    from transformers import AutoModelForCausalLM

    config = tiny_config(name)
    config._attn_implementation = 'eager'
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()  # drawn on the CPU: the same everywhere
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.copy_(
                torch.randn_like(value) * (0.3 if 'norm' in key else 0.1) + (0.0 if 'norm' not in key else 0.2)
            )
    return model


def _row(hidden: int, vocab: int) -> dict[str, Any]:
    """A packed row of three conversations, one of a single position, one longer than the sliding windows."""
    lengths = [7, 1, 15]
    generator = torch.Generator().manual_seed(1)
    total = sum(lengths)
    labels = torch.randint(0, vocab, (total,), generator=generator)
    labels[torch.rand(total, generator=generator) < 0.4] = -100
    on_device = {
        'embeds': torch.randn(total, hidden, generator=generator) * 0.3,
        'position_ids': torch.cat([torch.arange(n) for n in lengths]),
        'labels': labels,
    }
    # the borders stay on the host, as in training
    borders = torch.tensor([0, 7, 8, 23], dtype=torch.int32)
    return {
        'lengths': lengths, 'max_seqlen': 15, 'cu_seqlens': borders,
        **{name: value.to(_device()) for name, value in on_device.items()},
    }  # fmt: skip


def _device() -> torch.device:
    """Where megatron makes its weights."""
    from nemo_vtb.backbone.megatron import runtime

    return runtime.device()


def _peft(model: Any) -> tuple[Any, dict[str, Tensor]]:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=_TARGETS))
    generator = torch.Generator().manual_seed(2)
    state = get_peft_model_state_dict(tuned)
    state = {k: (torch.randn(v.shape, generator=generator) * 0.1).to(v.device) for k, v in state.items()}
    set_peft_model_state_dict(tuned, state)
    return tuned, state


def _reference(tuned: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """Hugging Face and PEFT, a conversation at a time."""
    embeds = row['embeds'].clone().requires_grad_(True)
    parts = [tuned(inputs_embeds=part[None]).logits[0] for part in embeds.split(row['lengths'])]
    logits = torch.cat(parts)
    loss = cross_entropy(logits, row['labels'])
    loss.backward()
    gradients = {n.replace('.default', ''): p.grad for n, p in tuned.named_parameters() if p.grad is not None}
    return {'logits': logits.detach(), 'loss': loss.item(), 'gradients': gradients, 'embeds': embeds.grad}


def check(name: str, *, sequence_parallel: bool = False) -> Parity:
    """Compare one family; every rank of the group calls it and gets the same result.

    Args:
        name: Key of `CASES`.
        sequence_parallel: Whether norms and residuals are cut along the row.
    """
    from nemo_vtb.backbone.megatron.lora import lora_parameters
    from nemo_vtb.backbone.megatron.model import build_backbone

    model = _tiny_model(name)
    original = {key: value.clone() for key, value in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        shared = [folder]
        dist.broadcast_object_list(shared, src=0)
        if dist.get_rank() == 0:
            model.save_pretrained(shared[0])
        dist.barrier()
        config = {'r': 4, 'lora_alpha': 8, 'target_modules': _TARGETS}
        backbone = build_backbone(Path(shared[0]), lora_config=config, sequence_parallel=sequence_parallel)
        dist.barrier()
    backbone.to(_device())
    model.to(_device())
    answers_equal = _answers(model) == _our_answers(backbone, model)
    tuned, state = _peft(model)
    backbone.load_lora(state)
    row = _row(backbone.hidden_size, backbone.geometry.vocab)
    theirs = _reference(tuned, row)
    ours = [_by_logits(backbone, row), _by_parts_of_the_vocabulary(backbone, row)]
    for found in ours:
        keys = found['gradients'].keys()
        assert keys == theirs['gradients'].keys(), keys ^ theirs['gradients'].keys()
    expected = theirs['logits'].argmax(-1)
    assert torch.equal(ours[1]['hits'], expected == row['labels'].clamp(min=0)), 'the most likely tokens'
    back = backbone.lora_state()
    # moments of an optimizer go the same way
    parts = {key: backbone.shard(key, value) for key, value in state.items()}
    assert all(parts[key].shape == own.shape for key, own in lora_parameters(backbone.gpt).items())
    back_moments = {key: backbone.gather(key, part) for key, part in parts.items()}
    return Parity(
        family=name,
        ranks=dist.get_world_size(),
        sequence_parallel=backbone.sequence_parallel,
        logits=_largest([(ours[0]['logits'], theirs['logits'])]),
        loss=max(abs(found['loss'] - theirs['loss']) for found in ours),
        lora_gradients=_largest(
            [(found['gradients'][key], value) for found in ours for key, value in theirs['gradients'].items()]
        ),
        input_gradients=_largest([(found['embeds'], theirs['embeds']) for found in ours]),
        weights_exact=all(torch.equal(value.cpu(), original[key]) for key, value in backbone.base_weights()),
        lora_exact=all(
            found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
            for found in (back, back_moments)
        ),
        answers_equal=answers_equal,
    )


def _by_logits(backbone: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """Whole logits on every rank, as a divergence from the base LLM needs them."""
    embeds = row['embeds'].clone().requires_grad_(True)
    logits = backbone.head(backbone(embeds, row['position_ids'], row['cu_seqlens'], row['max_seqlen']))
    return {'logits': logits.detach(), **_learn(backbone, cross_entropy(logits, row['labels']), embeds)}


def _by_parts_of_the_vocabulary(backbone: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """As training computes its loss: no rank may see the logits of another."""
    from nemo_vtb.backbone.megatron.model import mappings
    from nemo_vtb.model.loss import row_nll

    embeds = row['embeds'].clone().requires_grad_(True)
    hidden = backbone(embeds, row['position_ids'], row['cu_seqlens'], row['max_seqlen'])
    with patch.object(mappings, 'gather_from_tensor_model_parallel_region', side_effect=AssertionError('gathered')):
        loss = row_nll(hidden, row['labels'], backbone.nll, chunk=5).mean()
        hits = backbone.score(hidden.detach(), row['labels'].clamp(min=0))[1]
        return {'hits': hits, **_learn(backbone, loss, embeds)}


def _learn(backbone: Any, loss: Tensor, embeds: Tensor) -> dict[str, Any]:
    from nemo_vtb.backbone.megatron import lora

    backbone.zero_grad()
    loss.backward()
    sum_partial_gradients(backbone)
    gradients = lora.lora_state(backbone.gpt, backbone.geometry, gradients=True)
    gradients = {key: value.clone() for key, value in gradients.items()}
    return {'loss': loss.item(), 'gradients': gradients, 'embeds': embeds.grad}


def sum_partial_gradients(backbone: Any) -> None:
    """What the strategy does after a backward pass: sum over the ranks what whole LoRA factors saw of the row."""
    from nemo_vtb.backbone.megatron.runtime import tp_group

    for parameter in backbone.parameters():
        if parameter.grad is not None and getattr(parameter, 'partial_gradient', False):
            dist.all_reduce(parameter.grad, group=tp_group())


def _largest(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    return max(float((a - b).abs().max()) for a, b in pairs)


@torch.no_grad()
def check_answers(folder: str | Path, questions: Sequence[str], *, max_new_tokens: int = 24) -> dict[str, Any]:
    """Greedy answers of a chat model with real weights, all questions at once, beside those of `generate`.

    Args:
        folder: Hugging Face folder with weights, tokenizer and chat template.
        questions: One user turn each.
        max_new_tokens: Longest answer.

    Returns:
        `ranks`, `answers` (texts) and `equal`, the number of those whose tokens are the same; alike on all ranks.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nemo_vtb.backbone.megatron import runtime
    from nemo_vtb.backbone.megatron.model import build_backbone

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side='left')
    chats = [[{'role': 'user', 'content': question}] for question in questions]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors='pt', return_dict=True
    ).to(_device())
    width = batch['input_ids'].shape[1]
    shared: list[Any] = [None, None]  # the expected tokens, and those that end an answer
    if runtime.tp_rank() == 0:  # the reference once, and gone before ours is read
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(_device()).eval()
        found = model.generate(**batch, do_sample=False, max_new_tokens=max_new_tokens)[:, width:].cpu()
        eos = model.generation_config.eos_token_id
        shared = [found, eos if isinstance(eos, list) else [eos]]
        del model
    dist.broadcast_object_list(shared, src=0)
    backbone = build_backbone(folder).to(_device()).eval()
    embeds = backbone.embed(batch['input_ids'].flatten()).view(*batch['input_ids'].shape, -1)  # (B, T, H)
    pad_id = tokenizer.pad_token_id
    ours = backbone.greedy(embeds, batch['attention_mask'], max_new_tokens, shared[1], pad_id).cpu()
    return {
        'ranks': runtime.tp_size(),
        'equal': sum(torch.equal(a, b) for a, b in zip(ours, shared[0], strict=True)),
        'answers': tokenizer.batch_decode(ours, skip_special_tokens=True),
    }


def _prompts(hidden: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(3)
    for length in (9, 4, 12):
        yield (torch.randn(length, hidden, generator=generator) * 0.3).to(_device())


@torch.no_grad()
def _answers(model: Any) -> list[list[int]]:
    """Greedy answers of Hugging Face, a prompt at a time."""
    found = []
    for prompt in _prompts(model.config.hidden_size):
        ids = model.generate(inputs_embeds=prompt[None], max_new_tokens=8, do_sample=False, pad_token_id=0)[0]
        found.append(nn.functional.pad(ids, (0, 8 - len(ids))).tolist())
    return found


def _our_answers(backbone: Any, model: Any) -> list[list[int]]:
    """All prompts at once, padded on the left; padded on the right, the answers must be the same."""
    prompts = list(_prompts(model.config.hidden_size))
    width = max(map(len, prompts))
    sides = []
    for left in (True, False):
        batch = prompts[0].new_zeros(len(prompts), width, prompts[0].shape[1])
        mask = torch.zeros(len(prompts), width, dtype=torch.bool, device=batch.device)
        for number, prompt in enumerate(prompts):
            at = slice(width - len(prompt), width) if left else slice(0, len(prompt))
            batch[number, at], mask[number, at] = prompt, True
        with backbone.without_lora():
            ids = backbone.greedy(batch, mask, 8, {2}, 0)
        sides.append(nn.functional.pad(ids, (0, 8 - ids.shape[1])).tolist())
    return sides[0] if sides[0] == sides[1] else []
