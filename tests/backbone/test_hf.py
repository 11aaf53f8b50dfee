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
"""Any decoder of transformers on packed rows: as if each conversation stood alone; what cannot be loaded is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from nemo_vtb.backbone.base import Backbone
from nemo_vtb.backbone.hf import HFBackbone, load_llm
from nemo_vtb.data.template import ChatRenderer
from nemo_vtb.errors import VtbCheckpointError, VtbModelError, VtbTemplateError
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import tiny_llm, tiny_model_cfg

pytestmark = pytest.mark.unit

# (name, family, what makes it special)
FAMILIES = [
    ('llama', 'llama', {}),
    ('mistral', 'mistral', {'sliding_window': 7}),
    ('qwen2', 'qwen2', {}),
    ('qwen2-window', 'qwen2', {'use_sliding_window': True, 'sliding_window': 5, 'max_window_layers': 1}),
    ('qwen3', 'qwen3', {}),
    ('gemma', 'gemma', {}),
    ('gemma2', 'gemma2', {'sliding_window': 6, 'attn_logit_softcapping': 2.0, 'final_logit_softcapping': 3.0}),
    ('gemma3', 'gemma3_text', {'sliding_window': 6, 'sliding_window_pattern': 2}),
    ('granite', 'granite', {}),
    ('phi3', 'phi3', {}),
]
LENGTHS = (9, 1, 14, 6)


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('families')


def folder_of(root: Path, name: str, family: str, extra: dict[str, Any]) -> Path:
    folder = tiny_llm(root / name, family)
    if extra:
        path = folder / 'config.json'
        config = json.loads(path.read_text())
        config.pop('layer_types', None)  # derived from the other keys when it is missing
        path.write_text(json.dumps(config | extra))
    return folder


def backbone_of(folder: Path) -> HFBackbone:
    llm = load_llm(str(folder), pretrained=True).eval()
    return HFBackbone(llm, llm.model.embed_tokens)


def pack(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens (T,), positions (T,) and borders (N+1,)."""
    ids = torch.randint(10, 400, (sum(lengths),))
    positions = torch.cat([torch.arange(n) for n in lengths])
    return ids, positions, torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


@pytest.mark.parametrize(('name', 'family', 'extra'), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_packed_equals_transformers_on_each_conversation_alone(
    folders: Path, name: str, family: str, extra: dict[str, Any]
) -> None:
    folder = folder_of(folders, name, family, extra)
    ours = backbone_of(folder)
    # transformers' own attention, one conversation at a time
    alone = AutoModelForCausalLM.from_pretrained(folder, attn_implementation='eager', dtype=torch.float32).eval()
    ids, positions, borders = pack(LENGTHS)
    with torch.no_grad():
        logits = ours.head(ours.forward(ours.embed(ids), positions, borders, max(LENGTHS)))
        expected = torch.cat([alone(input_ids=part[None]).logits[0] for part in ids.split(LENGTHS)])
    assert isinstance(ours, Backbone)
    assert ours.hidden_size == 64
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(('name', 'family', 'extra'), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_gradients_of_packed_rows(folders: Path, name: str, family: str, extra: dict[str, Any]) -> None:
    ours = backbone_of(folder_of(folders, name, family, extra))
    ids, positions, borders = pack(LENGTHS)
    embeds = ours.embed(ids).detach()
    weights = torch.randn(len(ids), ours.hidden_size)

    def gradient(rows: list[slice]) -> Tensor:
        leaf = embeds.clone().requires_grad_()
        total = leaf.new_zeros(())
        for row in rows:
            inside = borders[(borders >= row.start) & (borders <= row.stop)] - row.start
            out = ours.forward(leaf[row], positions[row], inside, max(LENGTHS))
            total = total + (out * weights[row]).sum()
        return torch.autograd.grad(total, leaf)[0]

    separate = [slice(int(a), int(b)) for a, b in zip(borders[:-1], borders[1:], strict=True)]
    torch.testing.assert_close(gradient([slice(0, len(ids))]), gradient(separate), atol=2e-5, rtol=1e-4)


def test_a_special_family_is_special(folders: Path) -> None:
    """The windows and caps of the list above are short enough to matter: without them logits differ."""
    ids, positions, borders = pack((14,))
    for name in ('mistral', 'gemma2'):
        family, extra = next((f, e) for n, f, e in FAMILIES if n == name)
        with torch.no_grad():
            special, plain = (
                b.head(b.forward(b.embed(ids), positions, borders, 14))
                for b in (
                    backbone_of(folder_of(folders, name, family, extra)),
                    backbone_of(folder_of(folders, f'{name}-plain', family, dict.fromkeys(extra))),
                )
            )
        assert not torch.allclose(special, plain, atol=1e-3)


@pytest.mark.parametrize('family', ['gemma', 'gemma3_text', 'granite'])
def test_the_scale_of_embeddings_is_that_of_the_family(folders: Path, family: str) -> None:
    """Text has the same scale whether audio stands beside it or not, and the LLM sees what it sees in transformers."""
    name = next(n for n, f, e in FAMILIES if f == family)
    ours = backbone_of(folder_of(folders, name, family, dict(next(e for n, _, e in FAMILIES if n == name))))
    ids, positions, borders = pack((8,))
    seen: list[Tensor] = []
    handle = ours.decoder.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs['hidden_states']), with_kwargs=True
    )
    with torch.no_grad():
        ours.decoder(input_ids=ids[None])
        ours.forward(ours.embed(ids), positions, borders, 8)
        mixed = ours.embed(ids).index_copy(0, torch.tensor([2, 3]), torch.zeros(2, 64))
        ours.forward(mixed, positions, borders, 8)
    handle.remove()
    theirs, text, with_audio = (x.squeeze(0) for x in seen)
    torch.testing.assert_close(text, theirs)
    torch.testing.assert_close(with_audio[4:], theirs[4:])


@pytest.mark.parametrize('family', ['llama', 'gemma3_text'])
def test_a_cast_leaves_the_rotary_frequencies_alone(folders: Path, family: str) -> None:
    llm = load_llm(str(tiny_llm(folders / f'cast-{family}', family)), pretrained=True)
    exact = {name: value.clone() for name, value in llm.model.rotary_emb.named_buffers()}
    llm.to(torch.bfloat16)
    assert llm.lm_head.weight.dtype == torch.bfloat16 and exact
    for name, value in llm.model.rotary_emb.named_buffers():
        assert value.dtype == torch.float32 and torch.equal(value, exact[name]), name


def test_without_lora_is_the_untouched_llm(tmp_path: Path) -> None:
    model = VoiceTextBlender(tiny_model_cfg(tmp_path)).eval()
    folder = Path(model.cfg.pretrained_llm)
    model.backbone.load_lora({k: torch.randn_like(v) for k, v in model.backbone.lora_state().items()})
    state = {
        k.replace('base_model.model.', '').replace('.base_layer', ''): v for k, v in model.llm.state_dict().items()
    }
    base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
    missing = base.load_state_dict({k: v for k, v in state.items() if '.lora_' not in k}, strict=False).missing_keys
    assert missing == ['model.embed_tokens.weight']
    base.model.embed_tokens.load_state_dict(model.embed_tokens.state_dict())
    ids, positions, borders = pack((7, 5))
    run = lambda: model.backbone.head(model.backbone.forward(model.backbone.embed(ids), positions, borders, 7))  # noqa: E731
    with torch.no_grad():
        tuned = run()
        with model.backbone.without_lora():
            plain = run()
        expected = torch.cat([base(input_ids=part[None]).logits[0] for part in ids.split((7, 5))])
        again = run()
    torch.testing.assert_close(plain, expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(tuned, plain, atol=1e-2)
    assert torch.equal(tuned, again)


def test_lora_state_is_pefts_and_loads_back(tmp_path: Path) -> None:
    first, second = (VoiceTextBlender(tiny_model_cfg(tmp_path)) for _ in range(2))
    state = {k: torch.randn_like(v) for k, v in first.backbone.lora_state().items()}
    assert 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight' in state
    second.backbone.load_lora(state)
    loaded = second.backbone.lora_state()
    assert all(torch.equal(state[k], loaded[k]) for k in state)
    state.pop(next(iter(state)))
    with pytest.raises(VtbCheckpointError, match='do not fit'):
        second.backbone.load_lora(state)
    assert VoiceTextBlender(tiny_model_cfg(tmp_path, lora=False)).backbone.lora_state() == {}


def test_random_weights_are_not_the_stored_ones(folders: Path) -> None:
    folder = tiny_llm(folders / 'llama')
    torch.manual_seed(1)  # not the one that made the stored weights
    stored, random = (load_llm(str(folder), pretrained=p).lm_head.weight for p in (True, False))
    assert stored.shape == random.shape
    assert not torch.equal(stored, random)


# ---- what cannot be loaded


def refusal(source: Path | str) -> str:
    with pytest.raises(VtbModelError) as caught:
        load_llm(str(source), pretrained=True)
    return str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    message = refusal(tmp_path / 'nowhere')
    assert 'no LLM in this folder' in message and 'nowhere' in message and 'vtb assets' in message


def test_folder_without_config(tmp_path: Path) -> None:
    assert 'no LLM in this folder' in refusal(tmp_path)


def test_corrupt_weights(tmp_path: Path) -> None:
    folder = tiny_llm(tmp_path / 'llm')
    for damage in (b'', b'not safetensors at all', (folder / 'model.safetensors').read_bytes()[:2000]):
        (folder / 'model.safetensors').write_bytes(damage)
        assert 'cannot be loaded' in refusal(folder)


def test_missing_weights(tmp_path: Path) -> None:
    folder = tiny_llm(tmp_path / 'llm')
    (folder / 'model.safetensors').unlink()
    assert 'cannot be loaded' in refusal(folder)


def test_broken_config(tmp_path: Path) -> None:
    folder = tiny_llm(tmp_path / 'llm')
    (folder / 'config.json').write_text('{"model_type": ')
    assert 'cannot be loaded' in refusal(folder)


def test_unknown_family(tmp_path: Path) -> None:
    folder = tiny_llm(tmp_path / 'llm')
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(config | {'model_type': 'nonesuch', 'architectures': ['NoneSuch']}))
    message = refusal(folder)
    assert 'does not know this family' in message and 'Llama' in message


def test_not_a_decoder(tmp_path: Path) -> None:
    folder = tmp_path / 'bert'
    folder.mkdir()
    config = {'model_type': 'bert', 'hidden_size': 32, 'num_hidden_layers': 1, 'num_attention_heads': 2}
    (folder / 'config.json').write_text(json.dumps(config | {'intermediate_size': 32, 'is_decoder': True}))
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    assert 'not a plain decoder' in refusal(folder)


def test_the_model_names_its_broken_parts(tmp_path: Path) -> None:
    cfg = tiny_model_cfg(tmp_path)
    folder = Path(cfg['pretrained_llm'])
    with pytest.raises(VtbModelError, match='no LLM in this folder'):
        VoiceTextBlender(cfg | {'pretrained_llm': str(tmp_path / 'nowhere')})
    bare = shutil.copytree(folder, tmp_path / 'bare')
    for path in [*bare.glob('tokenizer*'), *bare.glob('*.jinja'), *bare.glob('special*')]:
        path.unlink()
    with pytest.raises(VtbModelError, match='tokenizer'):
        VoiceTextBlender(cfg | {'pretrained_llm': str(bare)})
    base = shutil.copytree(folder, tmp_path / 'base')
    drop_template(base)
    with pytest.raises(VtbTemplateError, match='no chat template') as caught:
        VoiceTextBlender(cfg | {'pretrained_llm': str(base)})
    assert 'chat_template.jinja' in str(caught.value)
    with pytest.raises(VtbModelError, match='LoRA cannot be put on'):
        VoiceTextBlender(cfg | {'lora': {'task_type': 'CAUSAL_LM', 'r': 4, 'target_modules': ['no_such_layer']}})


def drop_template(folder: Path) -> None:
    (folder / 'chat_template.jinja').unlink(missing_ok=True)
    path = folder / 'tokenizer_config.json'
    config = json.loads(path.read_text())
    config.pop('chat_template', None)
    path.write_text(json.dumps(config))
    from transformers import AutoTokenizer

    with pytest.raises(VtbTemplateError, match='no chat template'):
        ChatRenderer(AutoTokenizer.from_pretrained(folder))


def built(folder: Path, **options: Any) -> HFBackbone:
    """As training builds it: LoRA on all linears, the rest frozen."""
    from nemo_vtb.backbone.spec import BackboneSpec

    torch.manual_seed(0)
    lora = {'r': 4, 'lora_alpha': 8, 'target_modules': 'all-linear'}
    backbone = HFBackbone.build(BackboneSpec.plan(str(folder), lora=lora, **options))
    backbone.load_lora({name: torch.full_like(value, 0.02) for name, value in backbone.lora_state().items()})
    return backbone


def learned(backbone: HFBackbone, lengths: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(1)
    ids, positions, borders = pack(lengths)
    embeds = backbone.embed(ids).detach().requires_grad_()
    backbone._llm.train()
    backbone.nll(backbone.forward(embeds, positions, borders, max(lengths)), ids.roll(-1)).mean().backward()
    return [embeds.grad, *(p.grad for p in backbone.trainable_parameters().values() if p.grad is not None)]


def test_layers_computed_again_change_nothing(folders: Path) -> None:
    folder, calls = folder_of(folders, 'again', 'qwen3', {}), list[int]()
    results = []
    for again in (False, True):
        backbone = built(folder, checkpoints_layers=again)
        backbone.decoder.layers[0].mlp.register_forward_pre_hook(lambda *_, n=int(again): calls.append(n))
        results.append(learned(backbone, LENGTHS))
    assert calls == [0, 1, 1]  # the second time in the backward pass
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_compiled_layers_take_rows_of_any_length(folders: Path) -> None:
    folder = folder_of(folders, 'compiled', 'llama', {})
    plain, compiled = built(folder), built(folder, compiles_layers=True)
    for lengths in (LENGTHS, (3, 5), (17, 2, 4)):
        for one, other in zip(learned(plain, lengths), learned(compiled, lengths), strict=True):
            torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)
