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
"""One thousand conversations, 390 of them with one of 39 faults, and what must become of each."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from data_helpers import make_corpus, spoken, text, write_jsonl, write_wav

EACH = 10
CLEAN = {'text': 200, 'asr_ast': 200, 'speech_qa': 110, 'mixed_modal': 100}
MAX_TOKENS = 2048
TAKEN = 'taken'
Line = dict[str, Any] | bytes


def chat(id_: str, *extra: dict[str, Any], question: Any = 'which room is it about') -> dict[str, Any]:
    return {'id': id_, 'conversations': [text('User', question), *extra, text('Assistant', 'the green one')]}


@dataclass(frozen=True)
class Fault:
    """A kind of fault, ten of each.

    Args:
        group: audio, tar, line or conversation.
        name: What is wrong.
        outcome: `taken`, or the reason for which it is skipped.
        remark: What the documentation says of it.
        make: (folder, number) -> the line of the manifest; it writes the recording itself.
        lost: How many of the ten are skipped.
    """

    group: str
    name: str
    outcome: str
    remark: str
    make: Callable[[Path, int], Line]
    lost: int = EACH

    @property
    def stem(self) -> str:
        """Name of its manifest."""
        return self.name.replace(' ', '_').replace(',', '')

    @property
    def skips(self) -> int:
        """How many are skipped."""
        return 0 if self.outcome == TAKEN else self.lost


def recorded(write: Callable[[Path], object], suffix: str = '.wav', **keys: Any) -> Callable[[Path, int], Line]:
    """A conversation with a recording that `write` makes."""

    def make(folder: Path, number: int) -> Line:
        path = folder / f'{number}{suffix}'
        write(path)
        return chat(f'{folder.name}-{number}', spoken(f'{folder.name}/{path.name}', **keys))

    return make


def cut_flac(path: Path) -> None:
    soundfile.write(path, np.random.default_rng(0).standard_normal(16000) * 0.1, 16000, format='FLAC')
    path.write_bytes(path.read_bytes()[:9000])


def flac_named_wav(path: Path) -> None:
    soundfile.write(path, np.full(8000, 0.1), 16000, format='FLAC')


def two_hours(path: Path) -> None:
    header = io.BytesIO()
    soundfile.write(header, np.zeros(0), 16000, format='WAV', subtype='PCM_16')
    raw, size = bytearray(header.getvalue()[:44]), 2 * 3600 * 16000 * 2
    raw[4:8], raw[40:44] = (size + 36).to_bytes(4, 'little'), size.to_bytes(4, 'little')
    path.write_bytes(bytes(raw))
    os.truncate(path, size + 44)  # sparse: it takes no space


def forbidden(path: Path) -> None:
    write_wav(path)
    path.chmod(0)


def raw(value: bytes) -> Callable[[Path, int], Line]:
    return lambda folder, number: value.replace(b'ID', f'{folder.name}-{number}'.encode())


def said(*entries: dict[str, Any]) -> Callable[[Path, int], Line]:
    return lambda folder, number: {'id': f'{folder.name}-{number}', 'conversations': list(entries)}


def asked(question: Any) -> Callable[[Path, int], Line]:
    return lambda folder, number: chat(f'{folder.name}-{number}', question=question)


def many_clips(folder: Path, number: int) -> Line:
    write_wav(folder / 'a.wav', 0.1)
    return chat(f'{folder.name}-{number}', *[spoken(f'{folder.name}/a.wav')] * 100)


def member(folder: Path, number: int) -> Line:
    return chat(f'{folder.name}-{number}', spoken(f'{number}.wav'))


ROOT_READS = os.geteuid() == 0
JSON = b'{"id": "ID", "conversations": [{"from": "User", "type": "text", "value": "x"}, '
FAULTS = [
    Fault('audio', 'missing', 'audio_missing', 'skipped', recorded(lambda p: None)),
    Fault('audio', 'zero bytes', 'audio_empty_file', 'skipped', recorded(lambda p: p.write_bytes(b''))),
    Fault('audio', 'truncated', 'audio_unreadable', 'skipped when it is read', recorded(cut_flac, '.flac')),
    Fault('audio', 'random bytes', 'audio_unreadable', 'skipped',
          recorded(lambda p: p.write_bytes(np.random.default_rng(0).bytes(4000)))),
    Fault('audio', 'extension of another codec', TAKEN, 'read for what it is', recorded(flac_named_wav)),
    Fault('audio', 'wrong sampling rate', TAKEN, 'resampled (data.resample)',
          recorded(lambda p: write_wav(p, rate=8000))),
    Fault('audio', 'stereo', TAKEN, 'channels are averaged', recorded(lambda p: write_wav(p, channels=2))),
    Fault('audio', 'no samples', 'audio_no_samples', 'skipped', recorded(lambda p: write_wav(p, 0.0))),
    Fault('audio', 'shorter than a frame', 'audio_too_short', 'skipped', recorded(lambda p: write_wav(p, 0.005))),
    Fault('audio', 'all silence', TAKEN, 'legal', recorded(lambda p: write_wav(p, level=0.0))),
    Fault('audio', 'NaN or infinite samples', 'audio_not_finite', 'skipped when it is read',
          recorded(lambda p: soundfile.write(p, np.full(1600, np.nan, np.float32), 16000, subtype='FLOAT'))),
    Fault('audio', 'two hours', 'overlong', 'as a conversation over the limit', recorded(two_hours)),
    Fault('audio', 'no permission', TAKEN if ROOT_READS else 'audio_no_permission', 'skipped (root may read it)',
          recorded(forbidden)),
    Fault('audio', 'path is a folder', 'audio_not_a_file', 'skipped', recorded(lambda p: p.mkdir())),
    Fault('tar', 'cut in a payload', 'audio_not_in_tar', 'what stands before the cut is taken', member, 5),
    Fault('tar', 'cut between members', 'audio_not_in_tar', 'what stands before the cut is taken', member, 5),
    Fault('tar', 'cut in a header', 'audio_not_in_tar', 'what stands before the cut is taken', member, 5),
    Fault('tar', 'zeros at the end', 'audio_not_in_tar', 'what stands before them is taken', member, 5),
    Fault('tar', 'empty', 'audio_not_in_tar', 'skipped', member),
    Fault('tar', 'member twice', TAKEN, 'the first one counts', member),
    Fault('tar', 'order unlike the manifest', TAKEN, 'members are found by name', member),
    Fault('tar', 'member absent', 'audio_not_in_tar', 'skipped', member),
    Fault('line', 'cut', 'not_json', 'skipped', raw(JSON[:-3])),
    Fault('line', 'blank', TAKEN, 'no conversation at all', raw(b'   ')),
    Fault('line', 'byte order mark', TAKEN, 'ignored',
          raw(b'\xef\xbb\xbf' + JSON + b'{"from": "Assistant", "type": "text", "value": "y"}]}')),
    Fault('line', 'not UTF-8', 'not_json', 'skipped', raw(JSON + b'{"from": "Assistant", "value": "\xff\xfe"}]}')),
    Fault('line', 'NaN literal', 'not_json', 'skipped', raw(b'{"id": "ID", "conversations": NaN}')),
    Fault('line', 'missing key', 'missing_key', 'skipped', raw(b'{"id": "ID"}')),
    Fault('line', 'only user turns', 'wrong_turns', 'skipped', said(text('User', 'x'))),
    Fault('line', 'only assistant turns', 'wrong_turns', 'skipped', said(text('Assistant', 'x'))),
    Fault('line', 'unknown role', 'unknown_role', 'skipped', said(text('Narrator', 'x'), text('Assistant', 'y'))),
    Fault('line', 'null or empty text', 'missing_key', 'skipped',
          lambda f, n: chat(f'{f.name}-{n}', question=None if n % 2 else '')),
    Fault('line', 'placeholder or special token in the text', TAKEN, 'ordinary text',
          asked('<|audioplaceholder|> <|im_end|> </s> <sound>')),
    Fault('line', 'a million characters', 'overlong', 'as a conversation over the limit', asked('lamp ' * 200_000)),
    Fault('conversation', 'over the token limit', 'overlong', 'cut between turns, or skipped (data.overlong)',
          asked('green ' * 3000)),
    Fault('conversation', 'a hundred recordings', TAKEN, 'legal', many_clips),
    Fault('conversation', 'no recording at all', TAKEN, 'legal', asked('is it noon')),
    Fault('conversation', 'offset negative or beyond the end', 'bad_span', 'skipped', lambda f, n: recorded(
        write_wav, offset=-1.0 if n % 2 else 3.0)(f, n)),
    Fault('conversation', 'duration unlike the file', 'duration_mismatch', 'skipped (data.on_duration_mismatch)',
          lambda f, n: recorded(write_wav, duration=9.0 if n % 2 else 0.2)(f, n)),
]  # fmt: skip


def make_torture(folder: Path) -> dict[str, Any]:
    """Write everything; returns the `train_ds` section."""
    make_corpus(folder, CLEAN)
    for kind in CLEAN:  # clean ids must not be those of the faulty ones
        path = folder / f'{kind}.jsonl'
        path.write_text(path.read_text().replace('{"id": "', '{"id": "clean-'))
    for fault in FAULTS:
        (folder / fault.stem).mkdir()
        lines: list[Any] = [fault.make(folder / fault.stem, number) for number in range(EACH)]
        write_jsonl(folder / f'{fault.stem}.jsonl', lines)
        if fault.group == 'tar':
            (folder / f'{fault.stem}.tar').write_bytes(damaged_tar(fault.name))
    plain = [str(folder / f'{f.stem}.jsonl') for f in FAULTS if f.group != 'tar']
    tarred = [f.stem for f in FAULTS if f.group == 'tar']
    entries = [
        {'kind': kind, 'source': f'clean_{kind}', 'manifest_filepath': str(folder / f'{kind}.jsonl')} for kind in CLEAN
    ]
    entries.append({'kind': 'speech_qa', 'source': 'faulty', 'manifest_filepath': plain})
    archives = {'tarred_audio_filepaths': [str(folder / f'{stem}.tar') for stem in tarred]}
    manifests = [str(folder / f'{stem}.jsonl') for stem in tarred]
    entries.append({'kind': 'asr_ast', 'source': 'archives', 'manifest_filepath': manifests, **archives})
    shared = {'type': 'multimodal_conversation', 'max_repeats': 1}
    return {'seed': 3, 'input_cfg': [shared | entry for entry in entries]}


def damaged_tar(name: str) -> bytes:
    """An archive of ten recordings with one kind of damage."""
    if name == 'empty':
        return b''
    numbers = [*range(EACH)]
    if name == 'order unlike the manifest':
        numbers.reverse()
    if name == 'member twice':
        numbers += [3, 5]
    stream, starts = io.BytesIO(), []
    with tarfile.open(fileobj=stream, mode='w') as tar:
        for number in numbers:
            sound = io.BytesIO()
            soundfile.write(sound, np.full(4000 + 400 * number, 0.1), 16000, format='WAV')
            info = tarfile.TarInfo(f'{"other" if name == "member absent" else ""}{number}.wav')
            info.size = len(sound.getvalue())
            starts.append(stream.tell())
            tar.addfile(info, io.BytesIO(sound.getvalue()))
    data = stream.getvalue()
    middle = starts[5]
    cuts = {'cut in a payload': middle + 1500, 'cut between members': middle, 'cut in a header': middle + 100}
    if name in cuts:
        return data[: cuts[name]]
    return data[:middle] + bytes(len(data) - middle) if name == 'zeros at the end' else data


def table() -> str:
    """The outcomes as the documentation shows them."""
    rows = ['| where | what is wrong | outcome | reason |', '| --- | --- | --- | --- |']
    for fault in FAULTS:
        outcome = 'audio_no_permission' if fault.name == 'no permission' else fault.outcome
        reason = '' if outcome == TAKEN else f'`{outcome}`'
        said_ = f'taken: {fault.remark}' if outcome == TAKEN else fault.remark
        rows.append(f'| {fault.group} | {fault.name} | {said_} | {reason} |')
    return '\n'.join(rows)


def id_of(fault: Fault, number: int) -> str:
    return f'{fault.stem}-{number}'


def good_ids() -> set[str]:
    """Ids that must be trained on, each once."""
    ids = {f'clean-{kind}-{n}' for kind, count in CLEAN.items() for n in range(count)}
    for fault in FAULTS:
        if fault.name != 'blank':
            ids |= {id_of(fault, n) for n in range(EACH - fault.skips)}
    return ids


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
