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
"""`vtb info` reads an archive without unpacking it or running anything in it."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from nemo_vtb.checkpoint.archive import read_info
from nemo_vtb.commands.info import main
from nemo_vtb.errors import VtbCheckpointError


def archive(path: Path, **files: str) -> Path:
    with tarfile.open(path, 'w') as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f'./{name.replace("__", ".")}')
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def test_a_real_file(tiny_model: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model.save_to(str(tmp_path / 'tiny.nemo'))
    info = read_info(tmp_path / 'tiny.nemo')
    assert info.config['target'].endswith('VoiceTextBlender') and 'model_weights.ckpt' in info.files
    assert main([str(info.path), '--config']) == 0
    out = capsys.readouterr().out
    for word in ('VoiceTextBlender', 'layers: 2, width: 48', 'r = 4', 'audio_locator_tag', 'in the file', 'SHA-256'):
        assert word in out
    assert info.files['llm.safetensors'] > 4 * info.manifest['parameters']['llm'] - 200_000
    assert main([str(info.path), '--check']) == 0
    assert 'every byte is as it was written' in capsys.readouterr().out
    assert main([str(info.path), '--json']) == 0
    assert json.loads(capsys.readouterr().out)['manifest'] == info.manifest
    raw = bytearray(info.path.read_bytes())
    raw[raw.index(b'TokenizersBackend') if b'TokenizersBackend' in raw else len(raw) // 2] ^= 1
    info.path.write_bytes(raw)
    with pytest.raises(VtbCheckpointError, match='has SHA-256'):
        main([str(info.path), '--check'])


def test_a_file_of_nemo_has_no_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = archive(tmp_path / 'a.nemo', model_config__yaml='target: x')
    assert main([str(path)]) == 0
    assert 'manifest: none' in capsys.readouterr().out


def test_a_manifest_of_somebody_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VtbCheckpointError, match='manifest'):
        read_info(archive(tmp_path / 'a.nemo', model_config__yaml='target: x', manifest__json='{"template": "f00"}'))


@pytest.mark.parametrize(
    ('files', 'match'),
    [
        ({'other__yaml': 'x: 1'}, 'no model_config.yaml'),
        ({'model_config__yaml': '- 1'}, 'no mapping'),
        ({'model_config__yaml': 'a: !!python/object/apply:os.system ["true"]'}, 'ConstructorError'),
        ({'model_config__yaml': 'a: ['}, 'ParserError'),
    ],
)
def test_broken_configurations(tmp_path: Path, files: dict[str, str], match: str) -> None:
    with pytest.raises(VtbCheckpointError, match=match):
        read_info(archive(tmp_path / 'a.nemo', **files))


def test_no_archive(tmp_path: Path) -> None:
    (tmp_path / 'cut.nemo').write_bytes(
        archive(tmp_path / 'a.nemo', model_config__yaml='x: ' + 'y' * 5000).read_bytes()[:900]
    )
    for name in ('cut.nemo', 'absent.nemo'):
        with pytest.raises(VtbCheckpointError, match='no complete'):
            read_info(tmp_path / name)
