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
"""Answers of a model: prompted in batches and cached on disk, so that a killed evaluation resumes."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nemo_vtb.data.conversation import Conversation
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.evaluation.result import readable
from nemo_vtb.evaluation.task import Answer, Example, Task
from nemo_vtb.evaluation.tasks.text import LmEval
from nemo_vtb.io import json_line, read_json_lines, write_atomically
from nemo_vtb.parallel.dims import ParallelDims

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

Steps = Callable[[Sequence, str], Iterable]
"""(items, label) -> the items one by one, with their progress shown."""

_ROW_TOKENS = 1024


class AnswerCache:
    """Key -> answer or other JSON value, appended to a file and flushed before it counts.

    A file of another model or other settings (another `stamp`) is replaced; a last line that a kill truncated is
    dropped.

    Args:
        path: The file; None caches in this process only.
        stamp: What the answers depend on: model file, its size and time, settings.

    Raises:
        VtbCheckpointError: The file cannot be written.
    """

    def __init__(self, path: str | Path | None, stamp: Mapping[str, Any] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._values: dict[str, Any] = {}
        self._adopted: list[Path] = []
        self._file: IO[str] | None = None
        self.resumed = 0
        if self.path is None:
            return
        self._head = head = json.dumps({'stamp': dict(stamp or {})}, sort_keys=True, ensure_ascii=False)
        lines = self._read(self.path)
        try:
            # rewritten whole: a truncated line must not end up in the middle of the file
            write_atomically(self.path, ''.join([f'{head}\n', *lines]))
            self._file = self.path.open('a', encoding='utf-8')
        except OSError as error:
            raise VtbCheckpointError(
                'The answers of an evaluation cannot be written.', field='output', got=f'{self.path}: {error}',
                remedy='free some space, or name another output',
            ) from error  # fmt: skip

    def _read(self, path: Path) -> list[str]:
        found = read_json_lines(path)
        if not found or json.dumps(found[0], sort_keys=True, ensure_ascii=False) != self._head:
            return []
        kept = [entry for entry in found[1:] if isinstance(entry, dict) and entry.keys() == {'key', 'value'}]
        self._values |= {entry['key']: entry['value'] for entry in kept}
        self.resumed += len(kept)
        return [json_line(entry) for entry in kept]

    def adopt(self, paths: Iterable[Path]) -> None:
        """Take what other ranks left, maybe more of them than there are now; files of another stamp are ignored."""
        for path in paths:
            self._adopted.append(path)
            for line in self._read(path):
                self._write(line)

    @staticmethod
    def key(*parts: Any) -> str:
        """Digest of what an answer depends on."""
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:24]

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def add(self, key: str, value: Any) -> None:
        """Cache a JSON value."""
        self._values[key] = value
        if self._file is not None:
            self._write(json_line({'key': key, 'value': value}))

    def _write(self, line: str) -> None:
        assert self._file is not None
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())

    @property
    def values(self) -> Mapping[str, Any]:
        """All that is cached."""
        return self._values

    def take(self, values: Mapping[str, Any]) -> None:
        """Know what another rank keeps in its file."""
        self._values.update(values)

    def finish(self) -> None:
        """Remove the file: the result holds its contents now."""
        if self._file is not None and self.path is not None:
            self._file.close()
            self._file = None
            for path in (self.path, *self._adopted):
                path.unlink(missing_ok=True)


def decoding(num_beams: int = 1, no_repeat_ngram_size: int = 0) -> dict[str, int]:
    """Options of transformers' `generate` that are not those of a greedy answer, which every backbone knows."""
    beams = {'num_beams': num_beams} if num_beams > 1 else {}
    return beams | ({'no_repeat_ngram_size': no_repeat_ngram_size} if no_repeat_ngram_size else {})


@contextmanager
def evaluating(model: 'VoiceTextBlender') -> Iterator[None]:
    """Evaluation mode without gradients; the previous mode is restored afterwards."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What is asked at once: keys of the cache, how their values are found, and whether a sharded LLM takes part."""

    keys: Sequence[str]
    ask: Callable[[], Sequence[Any]]
    together: bool = True


class Asker:
    """Asks a model and its base LLM the examples of tasks; cached answers are not asked for again.

    Batches depend on the examples alone, so that a resumed run asks what the uninterrupted one asked. Each rank takes
    every so many of them, all equally many: a sharded LLM needs all ranks at each step.

    Args:
        model: The model.
        cache: Keeps each batch once it is answered.
        dims: Place of this rank.
        batch_size: Prompts in one batch.
        max_new_tokens: Longest answer where a task sets none.
        progress: Shows the progress.
        decoding: Options of transformers' `generate`; none is greedy.
    """

    def __init__(
        self,
        model: 'VoiceTextBlender',
        cache: AnswerCache,
        dims: ParallelDims,
        batch_size: int,
        max_new_tokens: int,
        progress: Steps,
        decoding: Mapping[str, int],
    ) -> None:
        self.model, self.cache, self.dims, self.progress = model, cache, dims, progress
        self.batch_size, self.max_new_tokens, self.decoding = batch_size, max_new_tokens, dict(decoding)
        self._share(cache.values)

    def ask(self, task: Task, examples: Sequence[Example], *, base: bool = False) -> list[Answer | None]:
        """The answers, in order; of the base LLM None where it cannot be asked.

        Args:
            task: The task.
            examples: Its examples.
            base: Whether the base LLM is asked, with its own prompts.
        """
        keys, batches = self._batches(task, examples, base)
        self._answer(batches, f'{task.suite}: {task.title or task.name}{", base LLM" if base else ""}')
        return [None if key is None else self.cache[key] for key in keys]

    def share_out(self, chosen: Sequence[tuple[Task, Sequence[Example]]]) -> None:
        """Let each rank answer whole tasks of lm-eval, which cannot be cut; `ask` finds the answers then."""
        if self.dims.data_size > 1:
            asked = [(t, es, base) for t, es in chosen if t.request == 'lm_eval' for base in (False, True)]
            self._answer([batch for args in asked for batch in self._batches(*args)[1]], 'lm-eval')

    def _batches(
        self, task: Task, examples: Sequence[Example], base: bool
    ) -> tuple[list[str | None], Sequence['_Batch']]:
        """The key of each example, None where it cannot be asked, and what is asked at once."""
        chosen = [i for i, e in enumerate(examples) if not base or e.base is not None]
        found: list[str | None] = [None] * len(examples)
        if not chosen or (base and not has_base(self.model)):
            return found, ()
        ways = {'generate': self._generate, 'likelihood': self._likelihood, 'lm_eval': self._lm_eval}
        keys, batches = ways[task.request](task, [examples[i] for i in chosen], not base)
        for i, key in zip(chosen, keys, strict=True):
            found[i] = key
        return found, batches

    def _answer(self, batches: Sequence['_Batch'], label: str) -> None:
        """Ask what is not cached, each rank every so many batches, and let every rank know all values."""
        todo = [b for b in batches if any(key not in self.cache for key in b.keys)]
        size, rank = self.dims.data_size, self.dims.data_rank
        new: dict[str, Any] = {}
        for begin in self.progress(range(0, len(todo), size), label):
            own = begin + rank < len(todo)
            if not own and not todo[begin].together:
                continue
            batch = todo[begin + rank if own else begin]
            values = batch.ask()
            for key, value in zip(batch.keys, values, strict=True) if own else ():
                if key not in self.cache:
                    self.cache.add(key, value)
                    new[key] = value
        self._share(new)

    def _share(self, values: Mapping[str, Any]) -> None:
        """Let every rank know what this one found."""
        if self.dims.data_size > 1:
            for found in self.dims.gather_objects(dict(values)):
                self.cache.take(found)

    def _generate(self, task: Task, examples: Sequence[Example], use_lora: bool) -> tuple[list[str], list[_Batch]]:
        """Prompts of similar length together; the longest first, so that what does not fit fails at once."""
        tokens = task.max_new_tokens or self.max_new_tokens
        prompts = [e.prompt if use_lora else e.base for e in examples]
        # not by task: a question that two tasks ask alike is answered once
        how = tuple(self.decoding.items())
        keys = [
            AnswerCache.key(task.suite, e.id, readable(p), _recordings(p), tokens, use_lora, *how)  # type: ignore[arg-type]
            for e, p in zip(examples, prompts, strict=True)
        ]
        order = sorted(range(len(prompts)), key=lambda i: -_cost(prompts[i]))  # type: ignore[arg-type]

        def batch(chosen: Sequence[int]) -> _Batch:
            asked = [prompts[i] for i in chosen]
            options = {'max_new_tokens': tokens, 'batch_size': self.batch_size, 'use_lora': use_lora} | self.decoding
            return _Batch([keys[i] for i in chosen], lambda: self.model.answer(asked, **options))  # type: ignore[arg-type]

        return keys, [batch(order[b : b + self.batch_size]) for b in range(0, len(order), self.batch_size)]

    def _likelihood(self, task: Task, examples: Sequence[Example], use_lora: bool) -> tuple[list[str], list[_Batch]]:
        """Whole conversations in packed rows: negative log-likelihood (nats) and number of the targets of each."""
        from nemo_vtb.data.collate import Collator, fill_rows, pack_row

        keys = [AnswerCache.key('likelihood', task.suite, e.id, readable(e.prompt), use_lora) for e in examples]
        collator = Collator(self.model.renderer, self.model.frames)
        groups: dict[str, list[int]] = {}
        for i, e in enumerate(examples):
            groups.setdefault(e.source, []).append(i)
        batches = []
        for group in groups.values():
            places = iter(group)
            for items in fill_rows([collator.prepare(examples[i].prompt) for i in group], _ROW_TOKENS):

                def ask(items: Any = items) -> list[list[float]]:
                    row = pack_row(items).to(self.model.device)
                    nll, targets = self.model.conversation_nll(row, use_lora=use_lora)  # (N,), (N,)
                    return [[float(a), float(b)] for a, b in zip(nll.tolist(), targets.tolist(), strict=True)]

                batches.append(_Batch([keys[next(places)] for _ in items], ask))
        return keys, batches

    def _lm_eval(self, task: Task, examples: Sequence[Example], use_lora: bool) -> tuple[list[str], list[_Batch]]:
        """A task of lm-eval as a whole."""
        from nemo_vtb.evaluation.lm_eval_engine import ask_task

        assert isinstance(task, LmEval)
        settings = task.settings
        key = AnswerCache.key('text', task.name, use_lora, settings)

        def ask() -> list[dict[str, Any]]:
            options = {'chat_template': settings['chat_template'], 'limit': settings['limit']}
            return [ask_task(self.model, task.loaded, use_lora=use_lora, batch_size=self.batch_size, **options)]

        return [key], [_Batch([key], ask, together=False)]


def has_base(model: 'VoiceTextBlender') -> bool:
    """Whether the untouched LLM is there to compare with: LoRA can be switched off, or the LLM was never trained."""
    if model.backbone.lora_state():
        return True
    return not any(p.requires_grad for name, p in model.named_parameters() if name.startswith('llm.'))


def _recordings(prompt: Conversation) -> list[tuple[str, float]]:
    """What `readable` does not show of recordings: where they lie, and where they begin in their files."""
    return [(audio.path, audio.offset_s) for audio in prompt.audios]


def _cost(prompt: Conversation) -> float:
    """Rough length of a prompt in tokens, so that a batch holds similar ones."""
    seconds = sum(a.duration_s or 0.0 for a in prompt.audios)
    return 12.5 * seconds + sum(len(turn.text) for turn in prompt.turns) / 4
