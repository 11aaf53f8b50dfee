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
"""The tokenizer and the shape of the LLM as files of our own, so that a model outlives the folder it came from."""

import re
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from nemo.utils.model_utils import ArtifactPathType
from omegaconf import open_dict

from nemo_vtb.backbone.hf import check_llm_size
from nemo_vtb.errors import VtbCheckpointError, VtbModelError, first_line
from nemo_vtb.io import clear_leftovers, owned_name

if TYPE_CHECKING:
    from nemo.core import ModelPT

    from nemo_vtb.checkpoint.nemo_file import Restored

_KEY = 'llm_files'


def llm_files(model: 'ModelPT', restored: 'Restored | None') -> Path:
    """Return a folder with the LLM's config, tokenizer and chat template, registered as artifacts of the `.nemo` file.

    Args:
        model: The model under construction; `cfg.pretrained_llm` names the source unless it is being restored.
        restored: The `.nemo` archive that the files come out of; None for those of the source.

    Raises:
        VtbModelError: The source has no readable config or tokenizer.
        VtbCheckpointError: The archive's configuration names files outside of it.
    """
    clear_leftovers(tempfile.gettempdir(), 'nemo_vtb_*')  # of killed processes, also those of restoring and exporting
    folder = Path(tempfile.mkdtemp(prefix=f'nemo_vtb_llm_{owned_name()}_'))
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    if restored is None:
        source = model.cfg.get('tokenizer_path') or model.cfg.pretrained_llm
        _save_description(str(model.cfg.pretrained_llm), str(source), folder, bool(model.cfg.get('trust_remote_code')))
        with open_dict(model.cfg):
            # OmegaConf reads a dot in a key as a path
            model.cfg[_KEY] = {f.name.replace('.', '__'): str(f) for f in sorted(folder.iterdir())}
    for key, stored in list(model.cfg[_KEY].items()):
        name = key.replace('__', '.')
        if restored is not None:
            _check_stored(name, stored)
        real = Path(model.register_artifact(f'{_KEY}.{key}', stored))
        if real != folder / name:
            shutil.copy(real, folder / name)
            # saved from here next time, whatever becomes of the file that it was restored from
            artifact = model.artifacts[f'{_KEY}.{key}']
            artifact.path, artifact.path_type = str(folder / name), ArtifactPathType.LOCAL_PATH
    if restored is not None and restored.base_folder(model.cfg) is None:
        check_llm_size(str(folder), restored.num_bytes)
    return folder


def _check_stored(name: str, stored: str) -> None:
    # the configuration of a stranger's file must neither read nor write elsewhere
    if not re.fullmatch(r'[A-Za-z0-9_-][\w.-]*', name) or not re.fullmatch(r'nemo:[\w.-]+', str(stored)):
        raise VtbCheckpointError(
            'The configuration names a file outside of the archive; nothing of it is used.',
            field=f'{_KEY}.{name}',
            got=stored,
            allowed='nemo:NAME, a plain name',
            remedy='do not use the file, and ask its author what it was meant to do',
        )


def _save_description(llm: str, tokenizer: str, folder: Path, trust_remote_code: bool) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    from nemo_vtb.backbone.hf import check_llm_folder

    check_llm_folder(llm)
    for what, cls, source in (('config', AutoConfig, llm), ('tokenizer', AutoTokenizer, tokenizer)):
        try:
            loaded = cls.from_pretrained(source, trust_remote_code=trust_remote_code)
            # several chat templates would go into a folder of their own, and the archive holds files alone
            several = isinstance(getattr(loaded, 'chat_template', None), dict)
            loaded.save_pretrained(folder, **({'save_jinja_files': False} if several else {}))
        except Exception as error:  # each tokenizer backend raises classes of its own
            raise VtbModelError(
                f'The {what} of the LLM cannot be read.',
                field='model.tokenizer_path' if what == 'tokenizer' and tokenizer != llm else 'model.pretrained_llm',
                got=f'{source}: {first_line(error)}',
                allowed=f'a folder whose {what} files transformers can load',
                remedy='download it again, or name another folder; `vtb assets` lists the embedded ones',
            ) from error
    try:
        GenerationConfig.from_pretrained(llm).save_pretrained(folder)
    except OSError:
        pass  # a model may come without generation defaults
