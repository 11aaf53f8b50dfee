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
"""Every form of a model answers as the model does, and one that does not is found."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_vtb import cli
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.export.export import TARGETS, export_forms, export_model
from nemo_vtb.export.parity import Answered, Parity, compare
from nemo_vtb.export.salm import NO_FORMAT, VLLM_TAG, default_system, prompt_format
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.testing import tiny_model_cfg


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands quiet the logs of their process, which here is that of all tests."""
    monkeypatch.setenv('NEMO_LOG_LEVEL', 'ERROR')


def tuned(folder: Path, **options: Any) -> VoiceTextBlender:
    """A model whose LoRA says something, built from sources that are gone."""
    torch.manual_seed(0)
    model = VoiceTextBlender(tiny_model_cfg(folder, **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if '.lora_B.' in name:
                parameter.normal_(std=0.1)
    folder.rename(folder.with_name('gone'))
    return model


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> VoiceTextBlender:
    """With an encoder of NeMo; read only."""
    return tuned(tmp_path_factory.mktemp('stock') / 'sources')


@pytest.fixture(scope='module')
def forms(model: VoiceTextBlender, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every form of it; read only."""
    return export_forms(model, tmp_path_factory.mktemp('forms'), list(TARGETS))


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(v, second[n]) for n, v in first.items())


def test_every_form_answers_the_same(model: VoiceTextBlender, forms: dict[str, Path]) -> None:
    """In processes of their own; stock NeMo, transformers and PEFT without nemo_vtb, which `isolated` checks."""
    parity = compare(model, forms, tensor_parallel=[2], together=2)
    assert parity.ok, parity.to_json()['failed']
    sizes = {way: form['questions'] for way, form in parity.to_json()['forms'].items()}
    text = {'hf-merged': 4, 'peft': 4}
    assert sizes == {w: text.get(w, 12) for w in (*forms, 'megatron TP=2')}
    assert len({row.live for row in parity.of('salm')}) > 3  # a model that says one thing to all proves nothing


def test_a_changed_weight_is_found(model: VoiceTextBlender, forms: dict[str, Path], tmp_path: Path) -> None:
    broken = {}
    for way, part in (('salm', 'proj.weight'), ('peft', 'layers.1.mlp.down_proj.lora_B.weight')):
        folder = broken[way] = tmp_path / way
        folder.mkdir()
        for file in forms[way].rglob('*'):
            if file.is_file():
                (folder / file.relative_to(forms[way])).parent.mkdir(exist_ok=True)
                (folder / file.relative_to(forms[way])).write_bytes(file.read_bytes())
        [weights] = folder.glob('*.safetensors')
        state = load_file(weights)
        [name] = [n for n in state if n.endswith(part)]
        state[name] = state[name] * 1.5
        save_file(state, weights, metadata={'format': 'pt'})
    parity = compare(model, broken, together=2)
    assert not parity.ok
    assert all(not r.ok for r in parity.of('peft'))
    # the projection belongs to audio: text-only questions are answered as before
    assert {r.ok for r in parity.of('salm') if r.question.startswith('text')} == {True, False}
    assert not any(r.ok for r in parity.of('salm') if 'recording' in r.question)


def test_a_number_that_is_none_is_no_answer() -> None:
    good = Answered('salm', 'q', 'a', 'a', 0.0, 1e-5)
    bad = [Answered('salm', 'q', 'a', 'a', d, 1e-5) for d in (float('nan'), 2e-5)] + [
        Answered('salm', 'q', 'a', 'b', 0.0, 1e-5)
    ]
    assert Parity((good,)).ok and not Parity(()).ok
    assert not any(Parity((good, row)).ok for row in bad)


def test_a_source_is_out_of_reach(tmp_path: Path) -> None:
    """An export that leans on the LLM's folder is none."""
    model = VoiceTextBlender(tiny_model_cfg(tmp_path / 'sources', encoder='whisper')).eval()
    model.save_to(tmp_path / 'small.nemo', include_llm=False)
    with pytest.raises(VtbCheckpointError, match='is a source of the model'):
        compare(model, {'nemo': tmp_path / 'small.nemo'})


def test_our_encoder_needs_our_package_and_only_there(tmp_path: Path) -> None:
    model = tuned(tmp_path / 'sources', encoder='whisper', family='gemma')
    parity = export_model(model, 'salm', tmp_path / 'salm')
    assert parity is not None and parity.ok
    card = (tmp_path / 'salm' / 'README.md').read_text()
    assert 'import nemo_vtb  #' in card
    with pytest.raises(VtbCheckpointError, match='none of NeMo'):
        export_model(model, 'asr', tmp_path / 'asr.nemo')
    assert not (tmp_path / 'asr.nemo').exists()


# ---- the writers


def test_an_export_that_answers_differently_is_not_left(
    model: VoiceTextBlender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = model.next_token_logits
    monkeypatch.setattr(model, 'next_token_logits', lambda c: real(c) + 0.5)
    (tmp_path / 'there').mkdir()
    (tmp_path / 'there' / 'old').write_text('earned')
    with pytest.raises(VtbCheckpointError, match='does not answer as the model itself does'):
        export_model(model, 'peft', tmp_path / 'there', overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ['there'] and (tmp_path / 'there' / 'old').exists()
    with pytest.raises(VtbCheckpointError, match='--overwrite'):
        export_model(model, 'peft', tmp_path / 'there')


def test_a_failed_write_leaves_the_old_one(
    model: VoiceTextBlender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(model, 'salm', tmp_path / 'salm', check=False)
    before = (tmp_path / 'salm' / 'config.json').read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('safetensors.torch.save_model', full)
    with pytest.raises(VtbCheckpointError, match='No space left'):
        export_model(model, 'salm', tmp_path / 'salm', check=False, overwrite=True)
    assert (tmp_path / 'salm' / 'config.json').read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['salm']


def test_the_card_is_one_that_hubs_read(forms: dict[str, Path]) -> None:
    from huggingface_hub import ModelCard

    for target in ('salm', 'vllm', 'hf-merged', 'peft'):
        card = ModelCard.load(forms[target] / 'README.md')
        assert 'voicetextblender' in card.data.tags and card.data.library_name
        assert card.data.base_model is None  # a path on this disk is no name
        assert '## How to open it' in card.text


def test_the_code_in_the_card_runs(forms: dict[str, Path], tmp_path: Path) -> None:
    from nemo_vtb.export.questions import make_clips

    text = (forms['salm'] / 'README.md').read_text()
    code = text.split('```python\n')[1].split('```')[0].replace('max_new_tokens=64', 'max_new_tokens=4')
    (forms['salm'].parent / 'recording.wav').write_bytes(make_clips(tmp_path)[1].read_bytes())
    done = subprocess.run([sys.executable, '-c', code], cwd=forms['salm'].parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_chat_templates_beside_the_formats_of_nemo(model: VoiceTextBlender, tmp_path: Path) -> None:
    found = prompt_format(model, VLLM_TAG)
    assert found is not None and (found.name, found.system) == ('qwen', None)
    template = model.tokenizer.tokenizer.chat_template
    tokenizer = model.renderer.tokenizer
    tokenizer.chat_template = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + template
    )
    try:
        assert default_system(type(model.renderer)(tokenizer)) == 'Be kind.'
    finally:
        tokenizer.chat_template = template
    gemma = VoiceTextBlender(tiny_model_cfg(tmp_path / 'gemma', family='gemma'))
    export_model(gemma, 'salm', tmp_path / 'salm', check=False)
    config = json.loads((tmp_path / 'salm' / 'config.json').read_text())
    assert config['prompt_format'] in ('gemma', NO_FORMAT)


def test_vllm_by_the_code_of_the_plugin(model: VoiceTextBlender, forms: dict[str, Path]) -> None:
    """Its own configuration class and mapping of names; vLLM itself is not there, and only its logger is missed."""
    code = """
import sys, types, json, torch
for name in ('vllm', 'vllm.config', 'vllm.logger', 'nemo.collections.speechlm2.vllm.salm.audio'):
    sys.modules[name] = types.ModuleType(name)
import logging
sys.modules['vllm.config'].VllmConfig = object
sys.modules['vllm.logger'].init_logger = logging.getLogger
def pad(tensor, rows):
    out = tensor.new_zeros(rows, tensor.shape[1]); out[:len(tensor)] = tensor; return out
sys.modules['nemo.collections.speechlm2.vllm.salm.audio']._pad_to_vocab_size = pad
from nemo.collections.speechlm2.vllm.salm.config import NeMoSpeechLMConfig
from nemo.collections.speechlm2.vllm.salm.backends import make_backend
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, out = sys.argv[1:]
raw = json.load(open(folder + '/config.json'))
assert raw['model_type'] == NeMoSpeechLMConfig.model_type
config = NeMoSpeechLMConfig(**{k: v for k, v in raw.items() if k != 'model_type'})
backend = make_backend(config)
weights = load_file(folder + '/model.safetensors')
llm = [(n, t) for n, t in weights.items() if not n.startswith('perception.')]
mapped = dict(backend.nemo_to_hf_llm_weights(backend.preprocess_llm_weights(llm)))
config.text_config.layer_types = None
model = AutoModelForCausalLM.from_config(config.text_config, dtype=torch.float32).eval()
assert type(model).__name__ == backend.architectures()[0]
result = model.load_state_dict(mapped, strict=False)
assert not result.unexpected_keys and set(result.missing_keys) <= {'lm_head.weight'}, result
model.tie_weights()
tokenizer = AutoTokenizer.from_pretrained(folder)
assert tokenizer.convert_tokens_to_ids('<|audio|>') < config.text_config.vocab_size
ids = torch.tensor([[5, 9, 30, 7]])
save_file({'logits': model(ids).logits[0].detach()}, out)
"""
    out = forms['vllm'].parent / 'logits.safetensors'
    done = subprocess.run([sys.executable, '-c', code, str(forms['vllm']), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ids = torch.tensor([5, 9, 30, 7])
    with torch.no_grad():
        embeds = model.backbone.embed(ids)
        hidden = model.backbone.forward(embeds, torch.arange(4), torch.tensor([0, 4], dtype=torch.int32), 4)
        own = model.backbone.head(hidden)
    assert torch.allclose(load_file(out)['logits'][:, : own.shape[1]], own, atol=1e-4)


def test_stock_nemo_takes_the_encoder(model: VoiceTextBlender, forms: dict[str, Path], tmp_path: Path) -> None:
    """As `pretrained_asr` of a SALM, in a process that never imports nemo_vtb."""
    from nemo_vtb.testing import tiny_llm

    cfg = tiny_model_cfg(tmp_path / 'sources') | {'prompt_format': 'qwen', 'pretrained_weights': True}
    cfg |= {'pretrained_asr': str(forms['asr']), 'pretrained_llm': str(tiny_llm(tmp_path / 'llm'))}
    for part in ('encoder', 'preprocessor'):
        del cfg['perception'][part]
    code = """
import json, sys
from nemo.collections.speechlm2 import SALM
from safetensors.torch import save_file
model = SALM(json.loads(sys.argv[1]))
assert not any(n.split('.')[0] == 'nemo_vtb' for n in sys.modules)
save_file({n: v.contiguous() for n, v in model.perception.encoder.state_dict().items()}, sys.argv[2])
"""
    out = tmp_path / 'encoder.safetensors'
    done = subprocess.run([sys.executable, '-c', code, json.dumps(cfg), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = load_file(out)
    assert theirs and all(torch.equal(v, theirs[n]) for n, v in model.perception.encoder.state_dict().items())


# ---- the commands


def test_export_and_parity_as_commands(
    model: VoiceTextBlender, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_to(tmp_path / 'm.nemo')
    assert cli.main(['export', str(tmp_path / 'm.nemo'), '--to', 'hf-merged']) == 0
    assert 'yes' in capsys.readouterr().out and (tmp_path / 'm-hf' / 'README.md').is_file()
    command = ['parity', str(tmp_path / 'm.nemo'), '--forms', 'nemo', 'peft', '--record', '--answers']
    assert cli.main([*command, '--json', str(tmp_path / 'out.json')]) == 0
    capsys.readouterr()
    assert json.loads((tmp_path / 'out.json').read_text())['ok'] is True
    assert cli.main(['info', str(tmp_path / 'm.nemo'), '--json', '--check']) == 0
    manifest = json.loads(capsys.readouterr().out)['manifest']
    assert manifest['parity']['forms']['peft']['different_answers'] == 0
    assert same_weights(VoiceTextBlender.restore_from(str(tmp_path / 'm.nemo'), map_location='cpu'), model)
