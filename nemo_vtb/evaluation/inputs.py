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
"""Inputs of an evaluation: test files, the plan of a configuration, prompts about recordings; tables of answers."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.assets.resolve import resolve_asset
from nemo_vtb.config.schema import EvalConfig
from nemo_vtb.data.audio import probe, read_audio
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn, conversation_from_dict, read_jsonl
from nemo_vtb.data.faults import Reason, guarded
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation.judge import judge_of
from nemo_vtb.evaluation.result import readable
from nemo_vtb.evaluation.runner import Plan, needs_data, suites_of
from nemo_vtb.evaluation.tables import plain
from nemo_vtb.io import json_line, write_atomically

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console


logger = logging.getLogger(__name__)

AUDIO_MARK = '{audio}'

DEMO_SETS = EvalConfig().data
"""Held-out data that every installation has."""


def find_datasets(paths: Iterable[str]) -> dict[str, Path]:
    """Name -> JSONL file, for files, folders (their `*.test.jsonl`, else `*.jsonl`) and `asset:NAME[/FILE]`.

    Raises:
        VtbDataError: A path does not exist, or a folder holds no JSONL file.
    """
    found: dict[str, Path] = {}
    for value in paths:
        path = Path(resolve_asset(str(value)))
        files = [path] if path.is_file() else sorted(path.glob('*.test.jsonl')) or sorted(path.glob('*.jsonl'))
        if not files:
            raise VtbDataError(
                'There is no data to evaluate on.',
                field='data',
                got=str(value),
                allowed='a JSONL file of conversations, a folder of them, or asset:demo-corpus',
                remedy='correct the path; `vtb assets demo-corpus` makes the embedded corpus',
            )
        for file in files:
            name = file.name.removesuffix('.jsonl').removesuffix('.test')
            found[name if name not in found else str(file)] = file
    return found


def evaluation_plan(cfg: 'DictConfig') -> Plan:
    """What `conf/eval/speechllm_eval.yaml` says is measured.

    Raises:
        VtbDataError: A file of `data` does not exist.
        VtbConfigError: An unknown suite, or a judge without a model.
    """
    suites = suites_of(cfg.suite)
    numbers = ('limit', 'batch_size', 'max_new_tokens', 'num_beams', 'no_repeat_ngram_size')
    return Plan(
        suites,
        find_datasets(cfg.data) if needs_data(suites) else {},
        judge=judge_of(suites=suites, **cfg.judge),
        data_root=Path(cfg.data_root) if cfg.data_root else None,
        **{key: cfg[key] for key in (*numbers, 'tasks', 'include', 'chat_template')},
    )


def conversations_from_audio(paths: Sequence[str], prompt: str) -> list[Conversation]:
    """One prompt for each recording, which replaces `{audio}` in the prompt, or follows it.

    Raises:
        VtbDataError: No recording, or a file does not exist.
        VtbAudioError: A file is not a recording.
        VtbConfigError: The prompt holds `{audio}` more than once.
    """
    if prompt.count(AUDIO_MARK) > 1:
        raise VtbConfigError(
            'A recording stands once in a prompt.', field='prompt', got=prompt, allowed=f'one {AUDIO_MARK}'
        )
    before, _, after = prompt.partition(AUDIO_MARK)
    conversations = []
    for value in paths:
        path = resolve_asset(value)
        if not Path(path).is_file():
            raise VtbDataError('The recording does not exist.', field='audio', got=path, remedy='correct the path')
        spoken = Audio(path, probe(path).duration_s)
        parts = [
            Text(before.strip()) if before.strip() else None,
            spoken,
            Text(after.strip()) if after.strip() else None,
        ]
        turn = Turn('user', tuple(part for part in parts if part is not None))
        conversations.append(Conversation(Path(path).stem, (turn,), 'speech_qa', 'audio'))
    if not conversations:
        raise VtbDataError(
            'There is nothing to answer.', field='audio', got=list(paths), allowed='recordings, or a manifest'
        )
    return conversations


def conversations_from_manifest(path: str | Path, prompt: str) -> tuple[list[Conversation], list[str]]:
    """Prompts and references of a manifest: NeMo's `multimodal_conversation`, or an ASR manifest (`audio_filepath`).

    Args:
        path: The JSONL file.
        prompt: For each recording of an ASR manifest.

    Returns:
        Those of the lines that can be used; a broken line or recording is skipped with a warning.

    Raises:
        VtbDataError: The file is missing or has no usable line.
    """
    path = Path(resolve_asset(str(path)))
    conversations, references, skipped = [], [], 0

    def skip(number: int, error: VtbDataError) -> None:
        nonlocal skipped
        skipped += 1
        logger.warning('Skipped, %s:%d: %s', path, number, error)

    for number, _, line in read_jsonl(path, skip):
        try:
            with guarded(Reason.OTHER, f'{path}:{number}'):
                conversation, reference = _prompt_of(line, path, prompt, f'{path}:{number}')
                for audio in conversation.audios:
                    read_audio(audio)
        except VtbDataError as error:
            skip(number, error)
            continue
        conversations.append(conversation)
        references.append(reference)
    if not conversations:
        got = f'{path}: {skipped} lines, all broken' if skipped else f'{path}: empty'
        raise VtbDataError('The manifest has no usable line.', field='manifest', got=got)
    return conversations, references


def _prompt_of(line: Mapping[str, Any], path: Path, prompt: str, where: str) -> tuple[Conversation, str]:
    if 'audio_filepath' in line:
        audio = Path(str(line['audio_filepath']))
        audio = audio if audio.is_absolute() else path.parent / audio
        [conversation] = conversations_from_audio([str(audio)], prompt)
        return conversation, str(line.get('text', ''))
    conversation = conversation_from_dict(line, base_dir=path.parent, where=where)
    return conversation.prompt, conversation.answer


def print_answers(
    conversations: Sequence[Conversation],
    answers: Sequence[str],
    references: Sequence[str] = (),
    *,
    console: 'Console',
    output: str | Path | None = None,
) -> None:
    """Print a table of recordings and answers, and write them as JSON lines if `output` names a file."""
    from rich.table import Table

    references = list(references) or [''] * len(answers)
    table = Table(title='Answers', title_justify='left', header_style='bold', show_lines=True)
    for name, ratio in (('Prompt', 4), ('Answer', 4), *((('Reference', 3),) if any(references) else ())):
        table.add_column(name, ratio=ratio)
    lines = []
    for conversation, answer, reference in zip(conversations, answers, references, strict=True):
        cells = [plain(readable(conversation)), plain(answer)]
        table.add_row(*cells, *([plain(reference)] if any(references) else []))
        record = {'id': conversation.id, 'audio': [a.path for a in conversation.audios], 'answer': answer}
        lines.append(record | ({'reference': reference} if reference else {}))
    console.print(table)
    if output:
        write_atomically(output, ''.join(map(json_line, lines)))
        console.print(f'written: {output}', highlight=False, markup=False)
