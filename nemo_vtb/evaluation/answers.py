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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nemo_vtb.data.conversation import Conversation
from nemo_vtb.errors import VtbCheckpointError
from nemo_vtb.evaluation.result import readable
from nemo_vtb.io import json_line, read_json_lines, write_atomically

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

Steps = Callable[[str, Sequence], Iterator]
"""(label, items) -> the items one by one, with their progress shown."""


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
        self._file: IO[str] | None = None
        self.resumed = 0
        if self.path is None:
            return
        head = json.dumps({'stamp': dict(stamp or {})}, sort_keys=True, ensure_ascii=False)
        lines = self._read(head)
        try:
            # rewritten whole: a truncated line must not end up in the middle of the file
            write_atomically(self.path, ''.join([f'{head}\n', *lines]))
            self._file = self.path.open('a', encoding='utf-8')
        except OSError as error:
            raise VtbCheckpointError(
                'The answers of an evaluation cannot be written.', field='output', got=f'{self.path}: {error}',
                remedy='free some space, or name another output',
            ) from error  # fmt: skip

    def _read(self, head: str) -> list[str]:
        assert self.path is not None
        found = read_json_lines(self.path)
        if not found or json.dumps(found[0], sort_keys=True, ensure_ascii=False) != head:
            return []
        kept = [entry for entry in found[1:] if isinstance(entry, dict) and entry.keys() == {'key', 'value'}]
        self._values = {entry['key']: entry['value'] for entry in kept}
        self.resumed = len(kept)
        return [json_line(entry) for entry in kept]

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

    def finish(self) -> None:
        """Remove the file: the result holds its contents now."""
        if self._file is not None and self.path is not None:
            self._file.close()
            self._file = None
            self.path.unlink(missing_ok=True)


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


def answer_all(
    model: 'VoiceTextBlender',
    prompts: Sequence[tuple[str, Conversation]],
    *,
    batch_size: int,
    max_new_tokens: int,
    cache: AnswerCache,
    use_lora: bool = True,
    progress: 'Steps | None' = None,
    label: str = 'answering',
) -> list[str]:
    """Answer prompts in batches of similar length; cached answers are not generated again.

    Args:
        model: The model.
        prompts: Id and conversation of each.
        batch_size: Prompts in one batch.
        max_new_tokens: Longest answer.
        cache: Keeps each batch once it is answered.
        use_lora: False prompts the base LLM.
        progress: Shows the progress.
        label: Part of the cache key, and shown with the progress.
    """
    keys = [AnswerCache.key(label, id, readable(p), max_new_tokens, use_lora) for id, p in prompts]
    todo = sorted((i for i, key in enumerate(keys) if key not in cache), key=lambda i: -_cost(prompts[i][1]))
    starts = range(0, len(todo), batch_size)
    for begin in progress(label, starts) if progress else starts:
        chosen = todo[begin : begin + batch_size]
        texts = model.answer(
            [prompts[i][1] for i in chosen],
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            use_lora=use_lora,
        )
        for i, text in zip(chosen, texts, strict=True):
            cache.add(keys[i], text)
    return [cache[key] for key in keys]


def _cost(prompt: Conversation) -> float:
    """Rough length of a prompt in tokens, so that a batch holds similar ones."""
    seconds = sum(a.duration_s or 0.0 for a in prompt.audios)
    return 12.5 * seconds + sum(len(turn.text) for turn in prompt.turns) / 4
