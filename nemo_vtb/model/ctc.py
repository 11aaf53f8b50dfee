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
"""CTC of an aligned adapter: the objective of its alignment, and an auxiliary loss of the joint stage (`ctc_weight`).

Letters: B clips, S frames after stacking, P pieces.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nemo_vtb.errors import VtbConfigError
from nemo_vtb.model.aligned_adapter import BLANK, AlignedAdapter

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender


@dataclass(frozen=True, slots=True)
class Scores:
    """What an aligned adapter made of some clips of a row.

    Args:
        clips: (B) numbers of the clips in the row.
        logits: (B, S, P + 1) of blank and pieces.
        lengths: (B,) valid frames.
    """

    clips: Sequence[int]
    logits: Tensor
    lengths: Tensor


@contextmanager
def keeping_scores(adapter: Any, heard: list[Scores] | None, clips: Sequence[int]) -> Iterator[None]:
    """Within it, one pass of an aligned adapter adds what it scores to `heard`; nothing where that is None."""
    if heard is None:
        yield
        return
    adapter.keep_scores = True
    try:
        yield
        heard.append(Scores(clips, *adapter.last_scores))
    finally:
        adapter.keep_scores, adapter.last_scores = False, None


def spoken_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a transcript; words begin with a blank wherever they stand, so that one word has one spelling."""
    ids: list[int] = tokenizer.encode(' ' + text, add_special_tokens=False)
    return ids


def frames_needed(ids: Sequence[int]) -> int:
    """How many frames CTC needs at least: one for each token, and a blank between two that are equal."""
    return len(ids) + sum(a == b for a, b in zip(ids, ids[1:], strict=False))


def ctc_nll(logits: Tensor, lengths: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
    """Negative log-likelihood of targets, summed over clips: float32 scalar.

    Args:
        logits: (B, S, P + 1).
        lengths: (B,) valid frames, at least `frames_needed` of each target.
        targets: (B) classes, that is pieces + 1.
    """
    scores = logits.float().log_softmax(-1).transpose(0, 1)  # (S, B, P + 1)
    flat = torch.tensor([each for target in targets for each in target], device=logits.device)
    target_lens = torch.tensor([len(target) for target in targets], device=logits.device)
    return F.ctc_loss(scores, flat, lengths, target_lens, blank=BLANK, reduction='sum')


class CtcObjective:
    """The auxiliary loss of a joint run.

    Args:
        adapter: It learns.
        tokenizer: Of the LLM.
    """

    def __init__(self, adapter: AlignedAdapter, tokenizer: Any) -> None:
        self._adapter, self._tokenizer = adapter, tokenizer

    @cached_property
    def _classes(self) -> Mapping[int, int]:
        # at the first row: a model that is restored gets its pieces after it was built
        return {piece: number + 1 for number, piece in enumerate(self._adapter.pieces.tolist())}

    def targets(self, text: str | None, frames: int) -> list[int]:
        """Classes of a transcript; [] where there is nothing to learn.

        That is no transcript or one with digits (they do not say how they are spoken), a token that the adapter does
        not have, or more tokens than frames.
        """
        ids = spoken_ids(self._tokenizer, text) if text and not any(c.isdigit() for c in text) else []
        if frames_needed(ids) > frames or any(each not in self._classes for each in ids):
            return []
        return [self._classes[each] for each in ids]

    def __call__(self, heard: Iterable[Scores], transcripts: Sequence[str | None]) -> tuple[Tensor, int]:
        """Sum of the losses of a row and how many tokens they are of.

        Args:
            heard: Of each pass of the adapter. A clip that was encoded in pieces is left out.
            transcripts: (A) of the clips of the row.
        """
        heard = list(heard)
        pieces = Counter(clip for scores in heard for clip in scores.clips)
        total, tokens = torch.zeros(()), 0
        for scores in heard:
            lengths = scores.lengths.tolist()
            texts = [transcripts[clip] if pieces[clip] == 1 else None for clip in scores.clips]
            targets = [self.targets(text, frames) for text, frames in zip(texts, lengths, strict=True)]
            if chosen := [place for place, target in enumerate(targets) if target]:
                wanted = [targets[place] for place in chosen]
                total = total.to(scores.logits.device) + ctc_nll(scores.logits[chosen], scores.lengths[chosen], wanted)
                tokens += sum(map(len, wanted))
        return total, tokens


def ctc_objective(model: 'VoiceTextBlender') -> CtcObjective:
    """The auxiliary loss for a model, what is frozen being frozen.

    Raises:
        VtbConfigError: Its adapter has no scores of pieces or learns nothing, or each rank has a part of the clips.
    """
    adapter, tokenizer = model.perception.modality_adapter, model.tokenizer.tokenizer
    if not isinstance(adapter, AlignedAdapter):
        problem, remedy = 'This adapter has no scores of tokens.', 'model.perception.adapter_init=aligned'
    elif not any(p.requires_grad for p in adapter.parameters()):
        problem, remedy = 'The adapter is frozen, so that there is nothing to learn.', 'train it: model.freeze_params'
    elif model.backbone.clip_group is not None:
        problem, remedy = 'Tensor-parallel ranks share the clips of a row.', 'a strategy without tensor parallelism'
    else:
        return CtcObjective(adapter, tokenizer)
    raise VtbConfigError(
        problem,
        field='model.ctc_weight',
        got=type(adapter).__name__,
        allowed='0, or an aligned adapter that is trained',
        remedy=f'{remedy}, or model.ctc_weight=0',
    )
