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
"""The `.nemo` file: what NeMo's own tests ask of a ModelPT, and what ours promises beyond."""

import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lightning.pytorch import Trainer
from nemo.core import ModelPT
from nemo.core.classes import common
from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_vtb.checkpoint import archive
from nemo_vtb.checkpoint.archive import MANIFEST, Member, read_info, read_manifest, read_members, write_archive
from nemo_vtb.checkpoint.nemo_file import prove_savable
from nemo_vtb.data.conversation import Conversation, Text, Turn
from nemo_vtb.errors import VtbCheckpointError, VtbModelError
from nemo_vtb.model.blender import VoiceTextBlender
from nemo_vtb.model.pretrained import restore
from nemo_vtb.testing import tiny_llm, tiny_model_cfg
from nemo_vtb.training.interrupted import CompleteRun


@pytest.fixture(scope='module')
def saved(tiny_model: VoiceTextBlender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared model as a file; read only."""
    path = tmp_path_factory.mktemp('saved') / 'model.nemo'
    tiny_model.provenance['evaluation'] = {'rows': [{'metric': 'WER', 'ours': 0.25}]}
    tiny_model.save_to(path)
    tiny_model.provenance.clear()
    return path


@pytest.fixture
def own_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Admit the classes of this file, as a plugin does for its own."""
    monkeypatch.setattr(common, 'ALLOWED_TARGET_PREFIXES', [*common.ALLOWED_TARGET_PREFIXES, f'{__name__}.'])


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(v, second[n]) for n, v in first.items())


def weights_of(path: Path) -> dict[str, str]:
    return {n: m.digest() for n, m in read_members(path).items() if n.endswith('.safetensors')}


# ---- as upstream's tests/core ask of any ModelPT


def test_restored_by_either_class_and_saved_again_with_the_same_bytes(
    tiny_model: VoiceTextBlender, saved: Path, tmp_path: Path
) -> None:
    for number, cls in enumerate((ModelPT, VoiceTextBlender)):
        restored = cls.restore_from(str(saved), map_location='cpu')
        assert type(restored) is VoiceTextBlender and same_weights(restored, tiny_model)
        restored.save_to(tmp_path / f'{number}.nemo')
        assert weights_of(tmp_path / f'{number}.nemo') == weights_of(saved)
        assert restored.provenance['evaluation']['rows'][0]['ours'] == 0.25
    assert {'llm', 'encoder', 'adapter', 'lora'} == {n.removesuffix('.safetensors') for n in weights_of(saved)}


def test_config_alone_and_overridden(saved: Path, tmp_path: Path) -> None:
    for cls in (ModelPT, VoiceTextBlender):
        cfg = cls.restore_from(str(saved), return_config=True)
        assert isinstance(cfg, DictConfig) and cfg.target.endswith('.VoiceTextBlender')
    with open_dict(cfg):
        cfg.loss_chunk = 7
    restored = VoiceTextBlender.restore_from(str(saved), override_config_path=cfg, map_location='cpu')
    assert restored.cfg.loss_chunk == 7
    OmegaConf.save(cfg, tmp_path / 'cfg.yaml')
    restored = ModelPT.restore_from(str(saved), override_config_path=str(tmp_path / 'cfg.yaml'), map_location='cpu')
    assert restored.cfg.loss_chunk == 7
    with open_dict(cfg):
        cfg.lora.r = 5
    with pytest.raises(RuntimeError, match='lora_A'):
        VoiceTextBlender.restore_from(str(saved), override_config_path=cfg, map_location='cpu')
    # a failure leaves nothing behind: NeMo itself would take every later model for one that is being restored
    assert not ModelPT._is_model_being_restored()


class Taller(VoiceTextBlender):
    """A subclass with a module and an artifact of its own."""

    def __init__(self, cfg: Any, trainer: Any = None) -> None:
        super().__init__(cfg, trainer)
        self.words = Path(self.register_artifact('words', self.cfg.words)).read_text()
        self.score = torch.nn.Linear(3, 2)


class Parent(ModelPT):
    """A model that holds one of ours."""

    def __init__(self, cfg: Any, trainer: Any = None) -> None:
        super().__init__(cfg, trainer)
        child = VoiceTextBlender(self.cfg.child, trainer)
        self.register_nemo_submodule('child', 'child', child)

    def setup_training_data(self, train_data_config: Any) -> None: ...

    def setup_validation_data(self, val_data_config: Any) -> None: ...

    @classmethod
    def list_available_models(cls) -> list:
        return []


def test_a_subclass_keeps_its_module_and_its_artifact(own_targets: None, tmp_path: Path) -> None:
    (tmp_path / 'words.txt').write_text('kitchen')
    cfg = {**tiny_model_cfg(tmp_path / 'sources'), 'words': str(tmp_path / 'words.txt')}
    model = Taller(cfg)
    model.save_to(tmp_path / 'a.nemo')
    (tmp_path / 'words.txt').unlink()
    for cls in (ModelPT, VoiceTextBlender, Taller):
        restored = cls.restore_from(str(tmp_path / 'a.nemo'), map_location='cpu')
        assert type(restored) is Taller and restored.words == 'kitchen' and same_weights(restored, model)
    assert 'other.safetensors' in weights_of(tmp_path / 'a.nemo')
    restored.save_to(tmp_path / 'b.nemo')
    assert Taller.restore_from(str(tmp_path / 'b.nemo'), map_location='cpu').words == 'kitchen'


def test_nested_in_a_model_of_nemo(own_targets: None, tmp_path: Path) -> None:
    parent = Parent(OmegaConf.create({'child': tiny_model_cfg(tmp_path / 'sources')}))
    parent.save_to(str(tmp_path / 'a.nemo'))
    (tmp_path / 'sources').rename(tmp_path / 'gone')
    restored = Parent.restore_from(str(tmp_path / 'a.nemo'), map_location='cpu')
    assert same_weights(restored, parent)
    restored.child.save_to(tmp_path / 'child.nemo')  # the child alone is a file of its own
    assert same_weights(VoiceTextBlender.restore_from(str(tmp_path / 'child.nemo'), map_location='cpu'), parent.child)


# ---- without the LLM


def test_a_file_without_its_llm_wants_the_same_llm(tmp_path: Path) -> None:
    model = VoiceTextBlender(tiny_model_cfg(tmp_path / 'sources', encoder='whisper'))  # with the LLM's own weights
    model.save_to(tmp_path / 'whole.nemo')
    model.save_to(tmp_path / 'small.nemo', include_llm=False)
    assert 'llm.safetensors' not in weights_of(tmp_path / 'small.nemo')
    assert weights_of(tmp_path / 'small.nemo').items() < weights_of(tmp_path / 'whole.nemo').items()
    assert same_weights(VoiceTextBlender.restore_from(str(tmp_path / 'small.nemo'), map_location='cpu'), model)
    assert same_weights(ModelPT.restore_from(str(tmp_path / 'small.nemo'), map_location='cpu'), model)
    (tmp_path / 'sources').rename(tmp_path / 'moved')
    moved = tmp_path / 'moved' / Path(model.cfg.pretrained_llm).name
    with pytest.raises(VtbModelError, match='no LLM in this folder'):
        restore(tmp_path / 'small.nemo', 'cpu')
    again = restore(tmp_path / 'small.nemo', 'cpu', base_llm=moved)
    assert same_weights(again, model)
    again.save_to(tmp_path / 'again.nemo')
    assert weights_of(tmp_path / 'again.nemo') == weights_of(tmp_path / 'whole.nemo')
    other = tiny_llm(tmp_path / 'other', seed=1)
    with pytest.raises(VtbCheckpointError, match='not the one that it was trained on'):
        restore(tmp_path / 'small.nemo', 'cpu', base_llm=other)


def test_an_llm_that_was_trained_itself_cannot_be_left_out(tmp_path: Path) -> None:
    cfg = tiny_model_cfg(tmp_path, lora=False) | {'freeze_params': []}
    with pytest.raises(VtbCheckpointError, match='trained itself'):
        VoiceTextBlender(cfg).save_to(tmp_path / 'a.nemo', include_llm=False)
    assert not (tmp_path / 'a.nemo').exists()


# ---- damage and malice


def test_a_hundred_bit_flips_and_a_hundred_cuts(saved: Path, tmp_path: Path) -> None:
    raw, rng = saved.read_bytes(), random.Random(0)
    path = tmp_path / 'bad.nemo'
    for _ in range(100):
        damaged, position = bytearray(raw), rng.randrange(len(raw))
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(VtbCheckpointError, match='no complete'):
            restore(path, 'cpu')
    for _ in range(100):
        path.write_bytes(raw[: rng.randrange(len(raw))])
        with pytest.raises(VtbCheckpointError, match='no complete'):
            restore(path, 'cpu')


def rewrite(saved: Path, path: Path, change: Callable[[Any, Path], None]) -> Path:
    """A file with valid digests whose configuration or members a stranger has chosen."""
    members = dict(read_members(saved))
    manifest = read_manifest(saved, members)
    assert manifest is not None
    folder = path.parent / 'members'
    folder.mkdir()
    for name, member in members.items():
        (folder / name).write_bytes(b''.join(member.chunks()))
    cfg = OmegaConf.load(folder / 'model_config.yaml')
    change(cfg, folder)
    OmegaConf.save(cfg, folder / 'model_config.yaml')
    (folder / MANIFEST).unlink()
    files = {p.name: Member.whole(p) for p in sorted(folder.iterdir())}
    write_archive(path, files, {k: v for k, v in manifest.items() if k not in ('members', 'sha256', 'format')})
    return path


class Touch:
    """Unpickled, it runs a command."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.sentinel}',)


def code_in_weights(cfg: Any, folder: Path) -> None:
    torch.save({'weight': Touch(folder.parent / 'sentinel')}, folder / 'model_weights.ckpt')


def code_with_the_llm(cfg: Any, folder: Path) -> None:
    sentinel = folder.parent / 'sentinel'
    config = json.loads(stored(cfg, folder, 'config__json').read_text())
    config |= {'model_type': 'evil', 'auto_map': {'AutoConfig': 'evil.EvilConfig', 'AutoModelForCausalLM': 'evil.E'}}
    stored(cfg, folder, 'config__json').write_text(json.dumps(config))
    (folder / 'evil.py').write_text(f'import os\nos.system("touch {sentinel}")\n')
    cfg.llm_files.evil__py = 'nemo:evil.py'


def stored(cfg: Any, folder: Path, key: str) -> Path:
    return folder / cfg.llm_files[key].removeprefix('nemo:')


def trusted_code(cfg: Any, folder: Path) -> None:
    code_with_the_llm(cfg, folder)
    cfg.trust_remote_code = True


def target_outside(cfg: Any, folder: Path) -> None:
    cfg.target = 'subprocess.Popen'


def adapter_outside(cfg: Any, folder: Path) -> None:
    cfg.perception.modality_adapter = {'_target_': 'os.system', 'command': f'touch {folder.parent / "sentinel"}'}


WRITES = {'_target_': 'nemo.collections.asr.parts.utils.manifest_utils.write_manifest', 'target_manifest': [{}]}


def argument_that_writes(cfg: Any, folder: Path) -> None:
    cfg.perception.encoder.name = {**WRITES, 'output_path': str(folder.parent / 'sentinel')}


def section_that_writes(cfg: Any, folder: Path) -> None:
    cfg.perception.spec_augment = {**WRITES, 'output_path': str(folder.parent / 'sentinel')}


def list_that_writes(cfg: Any, folder: Path) -> None:
    cfg.perception.modality_adapter.names = [[{**WRITES, 'output_path': str(folder.parent / 'sentinel')}]]


def argument_of_another_model(cfg: Any, folder: Path) -> None:
    cfg.target = 'nemo.collections.asr.models.EncDecCTCModel'
    cfg.preprocessor = {**WRITES, 'output_path': str(folder.parent / 'sentinel')}


def file_read_elsewhere(cfg: Any, folder: Path) -> None:
    cfg.llm_files.passwd = '/etc/passwd'


def file_written_elsewhere(cfg: Any, folder: Path) -> None:
    cfg.llm_files[f'..__/..__/..__{folder.parent}/sentinel'] = 'nemo:manifest.json'


def template_with_code(cfg: Any, folder: Path) -> None:
    code = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch SENTINEL') }}"
    )
    path = stored(cfg, folder, 'chat_template__jinja')
    path.write_text(code.replace('SENTINEL', str(folder.parent / 'sentinel')) + path.read_text())


MALICE = [
    code_in_weights,
    code_with_the_llm,
    trusted_code,
    target_outside,
    adapter_outside,
    argument_that_writes,
    section_that_writes,
    list_that_writes,
    file_read_elsewhere,
    file_written_elsewhere,
    template_with_code,
]


@pytest.mark.parametrize('change', MALICE, ids=lambda f: f.__name__)
@pytest.mark.parametrize('cls', [ModelPT, VoiceTextBlender])
def test_a_file_of_a_stranger_runs_no_code(saved: Path, tmp_path: Path, change: Any, cls: Any) -> None:
    path = rewrite(saved, tmp_path / 'evil.nemo', change)
    try:
        with pytest.raises(Exception):  # noqa: B017  each library refuses in its own words
            model = cls.restore_from(str(path), map_location='cpu')
            model.answer([Conversation('', (Turn('user', (Text('hello'),)),))], max_new_tokens=1)
    finally:
        ModelPT._set_model_restore_state(is_being_restored=False)
    assert not (tmp_path / 'sentinel').exists()


@pytest.mark.parametrize('change', [argument_that_writes, section_that_writes, list_that_writes])
def test_what_a_file_may_not_name_is_named(saved: Path, tmp_path: Path, change: Any) -> None:
    with pytest.raises(VtbCheckpointError, match='names what no file may name') as caught:
        restore(rewrite(saved, tmp_path / 'evil.nemo', change), 'cpu')
    assert str(caught.value.field).startswith('perception.')


def test_a_file_of_another_model_is_not_built(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(VtbCheckpointError, match='another kind of model'):
        restore(rewrite(saved, tmp_path / 'evil.nemo', argument_of_another_model), 'cpu')
    assert not (tmp_path / 'sentinel').exists()


def test_a_stranger_cannot_ask_for_trust_but_the_user_can(saved: Path, tmp_path: Path) -> None:
    path = rewrite(saved, tmp_path / 'custom.nemo', lambda cfg, folder: cfg.update(trust_remote_code=True))
    with pytest.raises(VtbCheckpointError, match='trust_remote_code=True'):
        restore(path, 'cpu')
    assert restore(path, 'cpu', trust_remote_code=True).cfg.trust_remote_code


def test_a_target_that_is_not_allowed_is_an_error_of_ours(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(VtbModelError, match='UnsafeTargetError'):
        restore(rewrite(saved, tmp_path / 'evil.nemo', target_outside), 'cpu')


def test_a_file_with_the_older_manifest_still_opens(
    tiny_model: VoiceTextBlender, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was called passport.json and counted `values`; a tensor in `model_weights.ckpt` stood for the parts."""
    members = read_members(saved)
    manifest = read_manifest(saved, members)
    assert manifest is not None
    torch.save({'nemo_vtb.parts': torch.tensor(1)}, tmp_path / 'mark')
    files = {name: members[name] for name in manifest['members']}
    files['model_weights.ckpt'] = Member.whole(tmp_path / 'mark')
    path, parameters = tmp_path / 'old.nemo', manifest.pop('parameters')
    with monkeypatch.context() as patch:
        patch.setattr(archive, 'MANIFEST', 'passport.json')
        write_archive(path, files, {**manifest, 'values': parameters})
    assert MANIFEST not in read_members(path)
    for cls in (ModelPT, VoiceTextBlender):
        restored = cls.restore_from(str(path), map_location='cpu')
        assert same_weights(restored, tiny_model) and restored.provenance['evaluation']
    archive.change_sections(path, {'parity': {'ok': True}})
    manifest = read_manifest(path, read_members(path))
    assert manifest is not None and manifest['parameters'] == parameters and manifest['parity'] == {'ok': True}
    assert MANIFEST in read_members(path)


def test_a_file_of_the_first_version_still_opens(tiny_model: VoiceTextBlender, saved: Path, tmp_path: Path) -> None:
    """It held all weights in `model_weights.ckpt` and no manifest."""
    with tarfile.open(tmp_path / 'old.nemo', 'w') as tar:
        for name, member in read_members(saved).items():
            if name.endswith('.safetensors') or name == MANIFEST:
                continue
            content = b''.join(member.chunks())
            if name == 'model_weights.ckpt':
                stream = io.BytesIO()
                torch.save(tiny_model.state_dict(), stream)
                content = stream.getvalue()
            info = tarfile.TarInfo(f'./{name}')
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    for cls in (ModelPT, VoiceTextBlender):
        assert same_weights(cls.restore_from(str(tmp_path / 'old.nemo'), map_location='cpu'), tiny_model)


def test_a_tokenizer_with_two_chat_templates_is_saved_and_restored(tmp_path: Path) -> None:
    cfg = tiny_model_cfg(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(cfg['pretrained_llm'])
    tokenizer.chat_template = {'default': tokenizer.chat_template, 'tool_use': '{{ "tools" }}'}
    tokenizer.save_pretrained(cfg['pretrained_llm'])
    model = VoiceTextBlender(cfg).eval()
    prove_savable(model)
    model.save_to(tmp_path / 'x.nemo')
    restored = VoiceTextBlender.restore_from(tmp_path / 'x.nemo', map_location='cpu').eval()
    assert restored.renderer.fingerprint == model.renderer.fingerprint
    assert set(restored.tokenizer.tokenizer.chat_template) == {'default', 'tool_use'}


def test_what_cannot_be_saved_at_the_end_is_found_before_the_first_step(tmp_path: Path) -> None:
    model = VoiceTextBlender(tiny_model_cfg(tmp_path))
    prove_savable(model)
    model.artifacts['llm_files.tokenizer__json'].path = str(tmp_path)  # a folder, where a file was
    with pytest.raises(VtbCheckpointError, match='not begun'):
        CompleteRun().on_fit_start(Trainer(logger=False), model)


def test_the_date_of_a_template_is_in_the_manifest_and_comes_back(tmp_path: Path) -> None:
    cfg = tiny_model_cfg(tmp_path) | {'template_date': '2026-11-27'}
    tokenizer = transformers.AutoTokenizer.from_pretrained(cfg['pretrained_llm'])
    tokenizer.chat_template = "{{ strftime_now('%Y') }}<|im_end|>" + tokenizer.chat_template
    tokenizer.save_pretrained(cfg['pretrained_llm'])
    model = VoiceTextBlender(cfg)
    model.save_to(tmp_path / 'x.nemo')
    assert read_info(tmp_path / 'x.nemo').manifest['template_date'] == '2026-11-27'
    restored = VoiceTextBlender.restore_from(tmp_path / 'x.nemo', map_location='cpu')
    assert restored.renderer.date == '2026-11-27'
    assert restored.renderer.fingerprint == model.renderer.fingerprint
