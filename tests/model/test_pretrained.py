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
"""Every weight of what was trained before is taken or listed; what is missing, broken or of another shape is named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_vtb import cli
from nemo_vtb.commands.import_ import main as import_command
from nemo_vtb.errors import VtbCheckpointError, VtbModelError
from nemo_vtb.export.export import export_forms
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.model.pretrained import load_asr_encoder, load_peft, read_salm, restore, warm_start
from nemo_vtb.testing import tiny_model_cfg


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> VoiceTextBlender:
    """With an encoder of NeMo, and LoRA that changes the answers; read only."""
    torch.manual_seed(0)
    model = VoiceTextBlender(tiny_model_cfg(tmp_path_factory.mktemp('model') / 'sources')).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if '.lora_B.' in name:
                parameter.normal_(std=0.1)
    return model


@pytest.fixture(scope='module')
def forms(model: VoiceTextBlender, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What of it can be read; read only."""
    return export_forms(model, tmp_path_factory.mktemp('forms'), ['nemo', 'salm', 'peft', 'asr'])


def test_missing_and_broken_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(VtbModelError, match='no model at this path'):
        restore(tmp_path / 'absent.nemo')
    (tmp_path / 'cut.nemo').write_bytes(b'not an archive')
    with pytest.raises(VtbCheckpointError, match='no complete .nemo file') as caught:
        restore(tmp_path / 'cut.nemo', 'cpu')
    assert 'cut.nemo' in str(caught.value)


def test_a_run_and_a_salm_folder_are_models_too(
    model: VoiceTextBlender, forms: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / 'run'
    (run / 'checkpoints').mkdir(parents=True)
    (run / 'checkpoints' / 'other.nemo').write_bytes(forms['nemo'].read_bytes())
    name = 'perception.proj.weight'
    for source in (run, forms['salm']):
        assert torch.equal(restore(source, 'cpu').state_dict()[name], model.state_dict()[name])
    (run / 'checkpoints' / 'third.nemo').touch()
    with pytest.raises(VtbModelError) as caught:
        restore(run, 'cpu')
    assert caught.value.field == 'model' and len(caught.value.allowed) == 2
    (run / 'checkpoints' / 'run.nemo').symlink_to('other.nemo')  # the one of the run's name is meant
    assert not restore(run, 'cpu').training


def test_salm_folder_back_with_every_weight(model: VoiceTextBlender, forms: dict[str, Path], tmp_path: Path) -> None:
    again, completed = read_salm(forms['salm'])
    own, theirs = again.state_dict(), model.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(v, theirs[n]) for n, v in own.items())
    assert completed == []
    folder = tmp_path / 'odd'
    folder.mkdir()
    for file in forms['salm'].rglob('*'):
        if file.is_file():
            (folder / file.relative_to(forms['salm'])).parent.mkdir(exist_ok=True)
            (folder / file.relative_to(forms['salm'])).write_bytes(file.read_bytes())
    state = load_file(folder / 'model.safetensors')
    kept = state.pop('perception.proj.weight')
    save_file(state, folder / 'model.safetensors')
    with pytest.raises(VtbCheckpointError, match='missing .*perception.proj.weight'):
        read_salm(folder)
    save_file(state | {'perception.proj.weight': kept, 'stray': kept.clone()}, folder / 'model.safetensors')
    with pytest.raises(VtbCheckpointError, match='left over .*stray'):
        read_salm(folder)
    save_file(state | {'perception.proj.weight': kept.T[:3].contiguous()}, folder / 'model.safetensors')
    with pytest.raises(VtbCheckpointError, match='size mismatch'):
        read_salm(folder)


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands quiet the logs of their process, which here is that of all tests."""
    monkeypatch.setenv('NEMO_LOG_LEVEL', 'ERROR')


def test_what_stock_salm_saves_comes_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NeMo's own `save_pretrained`: no tokenizer, no LLM configuration. LoRA on q and v, as Canary-Qwen has it."""
    from nemo.collections.speechlm2 import SALM

    cfg = tiny_model_cfg(tmp_path / 'sources', family='qwen3') | {'prompt_format': 'qwen'}
    cfg['lora'] = cfg['lora'] | {'r': 8, 'lora_alpha': 16, 'target_modules': ['q_proj', 'v_proj']}
    cfg['perception']['modality_adapter'] = {
        '_target_': 'nemo.collections.speechlm2.modules.perception.IdentityConnector',
        'd_model': 48,
    }
    torch.manual_seed(1)
    salm = SALM(cfg).eval()
    salm.save_pretrained(str(tmp_path / 'salm'))
    llm = cfg['pretrained_llm']
    status = cli.main(['import', str(tmp_path / 'salm'), str(tmp_path / 'a.nemo'), '--base-llm', llm])
    assert status == 0 and 'none unused' in capsys.readouterr().out
    restored = VoiceTextBlender.restore_from(str(tmp_path / 'a.nemo'), map_location='cpu')
    own = restored.state_dict()
    assert own.keys() == salm.state_dict().keys()
    assert all(torch.equal(v, own[n]) for n, v in salm.state_dict().items())
    with pytest.raises(VtbCheckpointError) as caught:
        import_command([str(tmp_path / 'sources'), str(tmp_path / 'b.nemo')])
    assert caught.value.field == 'FOLDER'


def test_warm_starts(model: VoiceTextBlender, forms: dict[str, Path], tmp_path: Path) -> None:
    cfg = tiny_model_cfg(tmp_path / 'sources')
    new = VoiceTextBlender(cfg)
    base = {n: v.clone() for n, v in new.state_dict().items()}
    trained = {n for n in base if not n.startswith(('llm.', 'embed_tokens.')) or '.lora_' in n}

    def taken(source: str) -> set[str]:
        fresh = VoiceTextBlender(cfg)
        fresh.load_state_dict(model.state_dict() | {n: v for n, v in base.items() if n in trained})
        warm_start(fresh, forms[source])
        own, theirs = fresh.state_dict(), model.state_dict()
        assert all(torch.equal(own[n], base[n]) or torch.equal(own[n], theirs[n]) for n in trained)
        return {n for n in trained if torch.equal(own[n], theirs[n]) and not torch.equal(own[n], base[n])}

    changed = {n for n in trained if not torch.equal(base[n], model.state_dict()[n])}
    assert taken('nemo') == taken('salm') == changed
    assert taken('peft') == {n for n in changed if '.lora_' in n}
    assert taken('asr') == {n for n in changed if n.startswith(('perception.encoder', 'perception.preprocessor'))}
    left = load_asr_encoder(new, forms['asr'])
    assert left and all(n.startswith('decoder') for n in left)
    with pytest.raises(VtbCheckpointError, match='nothing to start from'):
        warm_start(new, tmp_path / 'absent')


def test_an_adapter_of_another_shape_is_refused(forms: dict[str, Path], tmp_path: Path) -> None:
    cfg = tiny_model_cfg(tmp_path / 'sources')
    cfg['lora'] = cfg['lora'] | {'r': 8}
    with pytest.raises(VtbCheckpointError, match=r'\(4, 8\)'):
        load_peft(VoiceTextBlender(cfg), forms['peft'])
    with pytest.raises(VtbCheckpointError, match='no LoRA in the model'):
        load_peft(VoiceTextBlender(tiny_model_cfg(tmp_path / 'plain', lora=False)), forms['peft'])
