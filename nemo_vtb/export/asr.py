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
"""The tuned speech encoder as a stock NeMo ASR `.nemo`, for `ASRModel.restore_from` and SALM's `pretrained_asr`."""

import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.model.perception import restore_asr
from nemo_vtb.model.pretrained import ASR_PARTS

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

_OURS = 'nemo_vtb.'


def write_asr(model: 'VoiceTextBlender', path: Path, source: str | Path | None = None) -> None:
    """Write the encoder and its preprocessor as an ASR model that needs no `nemo_vtb`.

    Args:
        model: Whose encoder.
        path: The `.nemo` file.
        source: The ASR `.nemo` that the encoder came from: its decoder and tokenizer are kept. Without it the file
            has an untrained CTC head over letters, which serves to carry the encoder (NeMo's SALM takes only that).

    Raises:
        VtbCheckpointError: The encoder is not one of NeMo's, or does not fit into `source`.
    """
    sections = _stock_sections(model)
    weights = {
        f'{part}.{name}': value
        for part in ASR_PARTS
        for name, value in getattr(model.perception, part).state_dict().items()
    }
    asr = restore_asr(str(source)) if source is not None else _bare_ctc(sections)
    for part in ASR_PARTS:
        asr.cfg[part] = sections[part]
    own = {name for name in asr.state_dict() if name.startswith(tuple(f'{part}.' for part in ASR_PARTS))}
    if own != weights.keys():
        odd = sorted(own ^ weights.keys())
        raise VtbCheckpointError(
            'The encoder of the model and that of the ASR model are built differently.',
            field='--asr',
            got=f'{source}: {odd[:4]} in only one of them',
            allowed='the ASR model that the encoder was taken from',
            remedy='leave --asr out: the encoder is then written without a decoder',
        )
    try:
        asr.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise VtbCheckpointError(
            'The encoder does not fit into the ASR model.',
            field='--asr',
            got=f'{source}: {error}',
            allowed='the ASR model that the encoder was taken from',
            remedy='leave --asr out: the encoder is then written without a decoder',
        ) from error
    asr.save_to(str(path))


def _stock_sections(model: 'VoiceTextBlender') -> dict[str, Any]:
    sections = {part: model.cfg.perception[part] for part in ASR_PARTS}
    ours = {part: s._target_ for part, s in sections.items() if str(s._target_).startswith(_OURS)}
    if ours or hasattr(model.perception, 'encoder_multilayer'):
        raise VtbCheckpointError(
            'This encoder is none of NeMo, so stock NeMo could not open the file.',
            field='perception',
            got=ours or 'an encoder that gives several layers',
            allowed='an encoder of nemo.collections.asr, e.g. ConformerEncoder (FastConformer, Canary)',
            remedy='`vtb export FILE --to salm` keeps the whole model; `import nemo_vtb` makes NeMo open it',
        )
    return sections


def _bare_ctc(sections: dict[str, Any]) -> Any:
    from nemo.collections.asr.models import EncDecCTCModel
    from omegaconf import OmegaConf

    letters = [' ', *string.ascii_lowercase, "'"]
    width = sections['encoder'].get('d_model')
    decoder = {
        '_target_': 'nemo.collections.asr.modules.ConvASRDecoder',
        'feat_in': width,
        'num_classes': len(letters),
        'vocabulary': letters,
    }
    cfg = OmegaConf.create({**sections, 'decoder': decoder, 'sample_rate': SAMPLE_RATE, 'labels': letters})
    return EncDecCTCModel(cfg)
