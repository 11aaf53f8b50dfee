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
"""How a `VoiceTextBlender` becomes a `.nemo` file and comes back from it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils.get_rank import is_global_rank_zero

from nemo_vtb.backbone.names import frozen_base
from nemo_vtb.checkpoint.manifest import SECTIONS, make_passport, weights_digest
from nemo_vtb.checkpoint.nemo_parts import (
    MARK,
    Permissions,
    Restored,
    SafeConnector,
    permissions,
    restoring_permissions,
)
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.io import atomic_path

if TYPE_CHECKING:
    from nemo.core import ModelPT as _ModelPT
else:
    _ModelPT = object  # a mixin at run time: the class that it is mixed into comes from ModelPT


class Saving(_ModelPT):
    """Mixin of `VoiceTextBlender`: `save_to`, `restore_from` and what belongs to them.

    `provenance` holds what the passport says beyond the model itself: see `nemo_vtb.checkpoint.manifest.SECTIONS`.
    """

    provenance: dict[str, Any]
    _restored: Restored | None
    _base_digest: str | None

    def save_to(self, save_path: str | Path, *, include_llm: bool = True) -> None:
        """Write the `.nemo` file, whole or not at all; other ranks than the first do nothing.

        Args:
            save_path: Where.
            include_llm: False leaves the base LLM out: a small file that can be restored only beside that LLM.

        Raises:
            VtbCheckpointError: The disk is full or the folder cannot be written to; or the LLM was trained itself, so
                that no base LLM could stand in for it.
        """
        if not is_global_rank_zero():
            return
        base = frozenset(frozen_base(self))
        if not include_llm and not base:
            raise VtbCheckpointError(
                'The LLM of this model was trained itself: a file without it could not be restored.',
                field='include_llm',
                got=False,
                allowed='true',
                remedy='save the whole model; with LoRA and a frozen LLM the file can be small',
            )
        passport = make_passport(self, include_llm=include_llm)
        connector = SafeConnector(passport, frozenset() if include_llm else base)
        with atomic_path(Path(save_path).expanduser().resolve()) as temporary:
            connector.save_to(self, str(temporary))

    @classmethod
    def restore_from(
        cls,
        restore_path: str,
        override_config_path: Any = None,
        map_location: Any = None,
        strict: bool = True,
        return_config: bool = False,
        save_restore_connector: SaveRestoreConnector | None = None,
        trainer: Any = None,
        validate_access_integrity: bool = True,
        *,
        trust_remote_code: bool = False,
        base_llm: str | Path | None = None,
    ) -> Any:
        """NeMo's `restore_from`, with each member compared with its SHA-256 and nothing unusual in the archive.

        Args:
            restore_path: The `.nemo` file.
            override_config_path: As in NeMo.
            map_location: As in NeMo.
            strict: As in NeMo.
            return_config: As in NeMo: the configuration alone.
            save_restore_connector: As in NeMo; ours where it is left out.
            trainer: As in NeMo.
            validate_access_integrity: As in NeMo.
            trust_remote_code: Run code that came with an LLM, if the file asks for it.
            base_llm: Folder of the base LLM, for a file without it.

        Raises:
            VtbCheckpointError: The file is cut off, changed or hostile, wants to run code, or belongs to another LLM.
        """
        connector = save_restore_connector or SafeConnector()
        with restoring_permissions(Permissions(trust_remote_code, None if base_llm is None else str(base_llm))):
            return super().restore_from(
                str(restore_path),
                override_config_path,
                map_location,
                strict,
                return_config,
                connector,
                trainer,
                validate_access_integrity,
            )

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in torch; for the mark that a `.nemo` holds in place of weights, the weights read out of it."""
        if MARK in state_dict and self._restored is not None:
            state_dict, self._restored = self._restored.state, None
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def base_digest(self) -> str:
        """SHA-256 of the frozen LLM's weights; computed once, since they never change."""
        if self._base_digest is None:
            self._base_digest = weights_digest(frozen_base(self))
        return self._base_digest

    def _adopt(self, restored: Restored | None) -> None:
        """Take what was read from the archive; for a file without its LLM, compare the one that is here.

        Raises:
            VtbCheckpointError: The LLM is not the one that the file was trained on.
        """
        self._restored, self._base_digest, self.provenance = restored, None, {}
        if restored is None:
            return
        self.provenance = {name: restored.passport.get(name) for name in SECTIONS}
        base = restored.passport['base_llm']
        if base['included']:
            return
        here = self.base_digest()
        if here != base['weights_sha256']:
            raise VtbCheckpointError(
                'The file holds no LLM, and the one that is here is not the one that it was trained on.',
                field='base_llm',
                got=f'{base_folder(self, restored)}: weights with SHA-256 {here[:12]}',
                allowed=f'{base["name"]}: weights with SHA-256 {base["weights_sha256"][:12]}',
                remedy='VoiceTextBlender.restore_from(path, base_llm=FOLDER), or `--base-llm FOLDER`',
            )
        restored.state |= frozen_base(self)


def base_folder(model: Any, restored: Restored | None) -> str | None:
    """Folder of the LLM that a restored file does not hold; None where it holds it."""
    if restored is None or restored.passport['base_llm']['included']:
        return None
    return permissions().base_llm or str(model.cfg.pretrained_llm)
