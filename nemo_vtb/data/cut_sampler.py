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
"""The token budget for anybody's lhotse set-up: an adapter from the plan to a lhotse `CutSampler`.

Training here does not use it: plans of rows reach the loader processes as numbers, whereas lhotse's samplers read
every example in the main process (docs/adr/0012). It serves code that has a lhotse dataset of its own, NeMo's
`SALMDataset` among them.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lhotse import CutSet
from lhotse.audio import AudioSource, Recording
from lhotse.cut import Cut, MonoCut, MultiCut
from lhotse.dataset.sampling.base import CutSampler

from nemo_vtb.data.audio import clip_span, open_audio, probe
from nemo_vtb.data.conversation import Audio, Conversation
from nemo_vtb.data.index import FittedSource
from nemo_vtb.data.sampler import TokenBudgetSampler
from nemo_vtb.errors import VtbCheckpointError


def cut_of(audio: Audio, id_: str) -> Cut:
    """A clip as a lhotse cut of one channel, exactly the samples that our own loader would read.

    Args:
        audio: The clip; in a plain file or as a member of a tar archive.
        id_: Of the cut and its recording; two clips of one batch must not share it.

    Raises:
        VtbAudioError: Missing, unreadable, or the span does not lie in it.
    """
    header = probe(audio.path)
    span = clip_span(replace(audio, speed=1.0), header, header.sample_rate)
    opened = open_audio(audio.path)
    in_memory = not isinstance(opened, str)
    source: Any = opened if isinstance(opened, str) else opened.read()
    recording = Recording(
        id=id_,
        sources=[AudioSource('memory' if in_memory else 'file', list(range(header.num_channels)), source)],
        sampling_rate=header.sample_rate,
        num_samples=header.num_samples,
        duration=header.duration_s,
    )
    cut = recording.to_cut().truncate(
        offset=span.start / header.sample_rate, duration=span.count / header.sample_rate, preserve_id=True
    )
    if audio.channel is not None and isinstance(cut, MultiCut):
        cut = MonoCut(id_, cut.start, cut.duration, audio.channel, recording=recording)
    elif header.num_channels > 1:
        # lhotse adds the channels up, our loader takes their mean
        cut = cut.to_mono(mono_downmix=True).perturb_volume(1 / header.num_channels, affix_id=False)
    return cut if audio.speed == 1 else cut.perturb_speed(audio.speed, affix_id=False)


def nemo_conversation(
    conversation: Conversation, name: str, *, audio_locator_tag: str, sample_rate: int = 16000
) -> Any:
    """NeMo's own conversation type with the same turns; its cuts are never named by file.

    Args:
        conversation: Ours.
        name: Unlike that of any other conversation in the data; ids of different sources may be the same.
        audio_locator_tag: What NeMo's prompt formatters put where a recording stands.
        sample_rate: Rate in Hz to which the cuts are resampled when they are loaded.

    Returns:
        A `nemo.collections.common.data.lhotse.text_adapters.NeMoMultimodalConversation`, not tokenised yet.
    """
    from nemo.collections.common.data.lhotse.text_adapters import AudioTurn, NeMoMultimodalConversation, TextTurn

    turns: list[Any] = []
    for turn in conversation.turns:
        for part in turn.parts:
            if isinstance(part, Audio):
                cut = cut_of(part, f'{name}-{len(turns)}').resample(sample_rate)
                turns.append(AudioTurn(cut, turn.role, audio_locator_tag, part.text))
            else:
                turns.append(TextTurn(part.text, turn.role))
    custom = {**conversation.custom, 'kind': conversation.kind, 'source': conversation.source}
    return NeMoMultimodalConversation(conversation.id, turns, custom=custom)


class TokenBudgetCutSampler(CutSampler):
    """Yields one row of the token-budget plan at a time as a lhotse `CutSet`.

    Any lhotse `DataLoader` set-up takes it: `DataLoader(dataset, sampler=..., batch_size=None)`, lhotse's
    `IterableDatasetWrapper`, `.map(...)` of lhotse's samplers (to tokenise, for example), `state_dict()`. Ranks are
    dealt by the plan, so that lhotse's own dealing, which draws and throws away, is switched off; another number of
    ranks may load a state, and the same conversations follow.

    Args:
        sampler: The rows of this rank.
        sources: In the order of its plan.
        convert: Makes an item of the `CutSet` from a conversation and its unique name; for example
            `partial(nemo_conversation, audio_locator_tag='<|audio|>')`.
    """

    def __init__(
        self, sampler: TokenBudgetSampler, sources: Sequence[FittedSource], convert: Callable[[Conversation, str], Any]
    ) -> None:
        super().__init__(drop_last=True, world_size=1, rank=0)
        self.sampler, self.sources, self.convert = sampler, list(sources), convert
        self._each, self._rows = sampler.batch.rows_per_rank, 0
        self._start = self._state = sampler.state_dict()
        self._iterator = iter(sampler)

    def __iter__(self) -> 'TokenBudgetCutSampler':
        """From the beginning, or from where a state was loaded."""
        if not self._just_restored_state:
            self._go_to({'plan': self._start, 'rows': 0})
        return self

    def _next_batch(self) -> CutSet:
        row = next(self._iterator)
        items = [
            self.convert(self.sources[source].read(entry), f'{self.sources[source].name}:{entry}')
            for source, entry in row.items
        ]
        self._rows += 1
        if self._rows == self._each:
            self._rows = 0
            self.sampler.take_batch()
            self._state = self.sampler.state_dict()
        return CutSet(items)

    @property
    def remaining_duration(self) -> float | None:
        """Not known: text has no duration."""
        return None

    @property
    def remaining_cuts(self) -> int | None:
        """Not known: the data repeats."""
        return None

    @property
    def num_cuts(self) -> int | None:
        """Conversations in all sources."""
        return sum(len(source) for source in self.sources)

    def state_dict(self) -> dict[str, Any]:
        """State after the last row that was yielded; O(1) in the size of the data."""
        plan = copy.deepcopy(self._state)
        return super().state_dict() | {'plan': plan, 'rows': self._rows, 'each': self._each}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the last row of a state.

        Raises:
            VtbCheckpointError: The data, the shares or the size of the global batch changed, or the state was taken
                within a global batch that is dealt to another number of ranks now.
        """
        state = dict(state_dict)
        plan, rows, each = (state.pop(key) for key in ('plan', 'rows', 'each'))
        if rows and each != self._each:
            raise VtbCheckpointError(
                'The state was taken within a global batch, which is dealt to another number of ranks now.',
                field='state_dict.rows',
                got=f'{rows} of {each} rows for each rank; now each rank has {self._each}',
                allowed='0 rows: a state after a whole global batch',
                remedy='save after a whole global batch, or go on with as many ranks as before',
            )
        self._go_to({'plan': plan, 'rows': rows})
        super().load_state_dict(state)

    def _go_to(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(copy.deepcopy(state['plan']))
        self._state, self._rows = state['plan'], state['rows']
        self._iterator = iter(self.sampler)
        for _ in range(self._rows):  # within a global batch: what was yielded of it is passed over
            next(self._iterator)
