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
"""A torture set: kinds of broken input, some of each among clean conversations, and what must become of each line.

>>> from nemo_vtb.testing.torture import make_torture_set
>>> made = make_torture_set(folder, seed=0, per_kind=10, clean=1000)  # doctest: +SKIP

`made.train_ds` goes into a data module with `max_skip_ratio=1`, `overlong='drop'` and `on_exhausted='drop'`. Then
the ids that are trained on must be `made.good_ids`, each once, and `quarantine.jsonl` must hold `made.expected`. Half
of the kinds are written by hand (`WRITTEN`); the others put a value of a wrong class into a place of a line, or damage
its bytes, as a seed draws them (`mutations.py`).
"""

import base64
import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from nemo_vtb.testing.faulty_lines import RATE, TAKEN, Fault, Line, Make, chat, spoken, text, write_lines, write_wav
from nemo_vtb.testing.mutations import good_line, mutated_faults

MAX_TOKENS = 2048
"""The longest conversation that the set is made for: `data.max_tokens`."""

KINDS_OF_CLEAN = {'text': 0.4, 'asr_ast': 0.3, 'speech_qa': 0.2, 'mixed_modal': 0.1}
_WORDS = 'turn on the lamp in kitchen at noon please say which room is it about green blue rain sea'.split()


@dataclass(frozen=True)
class TortureSet:
    """What was made.

    Args:
        train_ds: The section of a data configuration.
        kinds: The kinds of fault.
        good_ids: Ids that must be trained on, each once.
        expected: (stem of the manifest, reason) -> how many lines must be listed.
    """

    train_ds: dict[str, Any]
    kinds: tuple[Fault, ...]
    good_ids: frozenset[str]
    expected: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def skips(self) -> dict[str, int]:
        """Reason -> how many conversations must be skipped, as the ledger counts them."""
        counts: Counter[str] = Counter()
        for (_, reason), count in self.expected.items():
            counts[reason] += count
        return dict(counts)


def recorded(write: Callable[[Path], object], suffix: str = '.wav', **keys: Any) -> Make:
    """A conversation with a recording that `write` makes."""

    def make(folder: Path, number: int) -> Line:
        path = folder / f'{number}{suffix}'
        write(path)
        return chat(f'{folder.name}-{number}', spoken(f'{folder.name}/{path.name}', **keys))

    return make


def _flac(path: Path, samples: int = 16000) -> bytearray:
    soundfile.write(path, np.random.default_rng(0).standard_normal(samples) * 0.1, RATE, format='FLAC')
    return bytearray(path.read_bytes())


def _cut_flac(path: Path) -> None:
    path.write_bytes(_flac(path)[:9000])


def _streamed_flac(path: Path) -> None:
    raw = _flac(path)
    raw[21] &= 0xF0  # 0 samples: what an encoder writes into a pipe
    raw[22:26] = bytes(4)
    path.write_bytes(bytes(raw))


def _cut_streamed_flac(path: Path) -> None:
    _streamed_flac(path)
    path.write_bytes(path.read_bytes()[:9000])


def _flac_named_wav(path: Path) -> None:
    soundfile.write(path, np.full(8000, 0.1), RATE, format='FLAC')


def _two_hours(path: Path) -> None:
    header = io.BytesIO()
    soundfile.write(header, np.zeros(0), RATE, format='WAV', subtype='PCM_16')
    raw, size = bytearray(header.getvalue()[:44]), 2 * 3600 * RATE * 2
    raw[4:8], raw[40:44] = (size + 36).to_bytes(4, 'little'), size.to_bytes(4, 'little')
    path.write_bytes(bytes(raw))
    os.truncate(path, size + 44)  # sparse: it takes no space


def _forbidden(path: Path) -> None:
    write_wav(path)
    path.chmod(0)


def _wav_named_raw(path: Path) -> None:
    write_wav(path.with_suffix('.wav')).rename(path)


def _cut_wav(path: Path) -> None:
    path.write_bytes(write_wav(path).read_bytes()[:30])


def _raw(value: bytes) -> Make:
    return lambda folder, number: value.replace(b'ID', f'{folder.name}-{number}'.encode())


def _said(*entries: dict[str, Any]) -> Make:
    return lambda folder, number: {'id': f'{folder.name}-{number}', 'conversations': list(entries)}


def _asked(question: Any) -> Make:
    return lambda folder, number: chat(f'{folder.name}-{number}', question=question)


def _with(**keys: Any) -> Make:
    return lambda folder, number: chat(f'{folder.name}-{number}') | keys


def _cut(**changes: Any) -> Make:
    """A lhotse cut of half a second, with some of its keys changed."""

    def make(folder: Path, number: int) -> Line:
        write_wav(folder / 'a.wav', channels=2)
        source = {'type': 'file', 'channels': [0, 1], 'source': f'{folder.name}/a.wav'}
        recording = {'id': 'a', 'sources': [source], 'sampling_rate': RATE, 'num_samples': 8000, 'duration': 0.5}
        line = {'id': f'{folder.name}-{number}', 'type': 'MonoCut', 'start': 0.0, 'duration': 0.5, 'channel': 1}
        own = {name: value for name, value in changes.items() if name != 'recording'}
        line |= {'recording': recording | changes.get('recording', {}), 'supervisions': [{'text': 'the green one'}]}
        return line | own

    return make


def _message(value: str | None = None, **keys: Any) -> Make:
    """A chat in OpenAI's layout with a recording inside, None: one that is right; with keys of its answer changed."""

    def make(folder: Path, number: int) -> Line:
        line = good_line('openai_messages', folder, number)
        asked, answer = line['messages']
        sound = value or base64.b64encode((folder / 'a.wav').read_bytes()).decode()
        asked['content'][1] = {'type': 'input_audio', 'input_audio': {'data': sound, 'format': 'wav'}}
        return line | {'messages': [asked, answer | keys]}

    return make


def _changed(type_: str, **keys: Any) -> Make:
    """A line of a format that would be taken, with keys changed; of a dialogue, those of its first turn."""

    def make(folder: Path, number: int) -> Line:
        line = good_line(type_, folder, number)
        (line['supervisions'][0] if type_ == 's2s_as_conversation' else line).update(keys)
        return line

    return make


def _many_clips(folder: Path, number: int) -> Line:
    write_wav(folder / 'a.wav', 0.1)
    return chat(f'{folder.name}-{number}', *[spoken(f'{folder.name}/a.wav')] * 100)


def _member(folder: Path, number: int) -> Line:
    return chat(f'{folder.name}-{number}', spoken(f'{number}.wav'))


def _segment(folder: Path, number: int) -> Line:
    return chat(f'{folder.name}-{number}', spoken(f'{number}-sub{number + 1}.wav'))


ROOT_READS = os.geteuid() == 0
JSON = b'{"id": "ID", "conversations": [{"from": "User", "type": "text", "value": "x"}, '
WRITTEN: tuple[Fault, ...] = (
    Fault('audio', 'missing', 'audio_missing', 'skipped', recorded(lambda p: None)),
    Fault('audio', 'zero bytes', 'audio_empty_file', 'skipped', recorded(lambda p: p.write_bytes(b''))),
    Fault('audio', 'truncated', 'audio_unreadable', 'skipped when it is read', recorded(_cut_flac, '.flac')),
    Fault('audio', 'random bytes', 'audio_unreadable', 'skipped',
          recorded(lambda p: p.write_bytes(np.random.default_rng(0).bytes(4000)))),
    Fault('audio', 'extension of another codec', TAKEN, 'read for what it is', recorded(_flac_named_wav)),
    Fault('audio', 'wrong sampling rate', TAKEN, 'resampled (data.resample)',
          recorded(lambda p: write_wav(p, rate=8000))),
    Fault('audio', 'stereo', TAKEN, 'channels are averaged', recorded(lambda p: write_wav(p, channels=2))),
    Fault('audio', 'no samples', 'audio_no_samples', 'skipped', recorded(lambda p: write_wav(p, 0.0))),
    Fault('audio', 'shorter than a frame', 'audio_too_short', 'skipped', recorded(lambda p: write_wav(p, 0.005))),
    Fault('audio', 'all silence', TAKEN, 'legal', recorded(lambda p: write_wav(p, level=0.0))),
    Fault('audio', 'NaN or infinite samples', 'audio_not_finite', 'skipped when it is read',
          recorded(lambda p: soundfile.write(p, np.full(1600, np.nan, np.float32), 16000, subtype='FLOAT'))),
    Fault('audio', 'two hours', 'clip_too_large', 'skipped (data.max_clip_seconds)', recorded(_two_hours)),
    Fault('audio', 'no permission', TAKEN if ROOT_READS else 'audio_no_permission', 'skipped (root may read it)',
          recorded(_forbidden)),
    Fault('audio', 'path is a folder', 'audio_not_a_file', 'skipped', recorded(lambda p: p.mkdir())),
    Fault('tar', 'cut in a payload', 'audio_not_in_tar', 'what stands before the cut is taken', _member, 0.5),
    Fault('tar', 'cut between members', 'audio_not_in_tar', 'what stands before the cut is taken', _member, 0.5),
    Fault('tar', 'cut in a header', 'audio_not_in_tar', 'what stands before the cut is taken', _member, 0.5),
    Fault('tar', 'zeros at the end', 'audio_not_in_tar', 'what stands before them is taken', _member, 0.5),
    Fault('tar', 'empty', 'audio_not_in_tar', 'skipped', _member),
    Fault('tar', 'member twice', TAKEN, 'the first one counts', _member),
    Fault('tar', 'order unlike the manifest', TAKEN, 'members are found by name', _member),
    Fault('tar', 'member absent', 'audio_not_in_tar', 'skipped', _member),
    Fault('line', 'cut', 'not_json', 'skipped', _raw(JSON[:-3])),
    Fault('line', 'blank', TAKEN, 'no conversation at all', _raw(b'   ')),
    Fault('line', 'byte order mark', TAKEN, 'ignored',
          _raw(b'\xef\xbb\xbf' + JSON + b'{"from": "Assistant", "type": "text", "value": "y"}]}')),
    Fault('line', 'not UTF-8', 'not_json', 'skipped', _raw(JSON + b'{"from": "Assistant", "value": "\xff\xfe"}]}')),
    Fault('line', 'NaN literal', 'not_json', 'skipped', _raw(b'{"id": "ID", "conversations": NaN}')),
    Fault('line', 'missing key', 'missing_key', 'skipped', _raw(b'{"id": "ID"}')),
    Fault('line', 'only user turns', 'wrong_turns', 'skipped', _said(text('User', 'x'))),
    Fault('line', 'only assistant turns', 'wrong_turns', 'skipped', _said(text('Assistant', 'x'))),
    Fault('line', 'unknown role', 'unknown_role', 'skipped', _said(text('Narrator', 'x'), text('Assistant', 'y'))),
    Fault('line', 'null or empty text', 'missing_key', 'skipped',
          lambda f, n: chat(f'{f.name}-{n}', question=None if n % 2 else '')),
    Fault('line', 'placeholder or special token in the text', TAKEN, 'ordinary text',
          _asked('<|audioplaceholder|> <|im_end|> </s> <sound>')),
    Fault('line', 'a million characters', 'overlong', 'as a conversation over the limit', _asked('lamp ' * 200_000)),
    Fault('conversation', 'over the token limit', 'overlong', 'cut between turns, or skipped (data.overlong)',
          _asked('green ' * 3000)),
    Fault('conversation', 'a hundred recordings', TAKEN, 'legal', _many_clips),
    Fault('conversation', 'no recording at all', TAKEN, 'legal', _asked('is it noon')),
    Fault('conversation', 'offset negative or beyond the end', 'bad_span', 'skipped', lambda f, n: recorded(
        write_wav, offset=-1.0 if n % 2 else 3.0)(f, n)),
    Fault('conversation', 'duration unlike the file', 'duration_mismatch', 'skipped (data.on_duration_mismatch)',
          lambda f, n: recorded(write_wav, duration=9.0 if n % 2 else 0.2)(f, n)),
    Fault('audio', 'streamed FLAC', TAKEN, 'decoded from the start', recorded(_streamed_flac, '.flac')),
    Fault('audio', 'streamed FLAC that is cut', 'audio_unreadable', 'skipped', recorded(_cut_streamed_flac, '.flac')),
    Fault('audio', 'WAV called raw', TAKEN, 'read for what it is', recorded(_wav_named_raw, '.raw')),
    Fault('audio', 'samples without a header', 'audio_unreadable', 'skipped',
          recorded(lambda p: p.write_bytes(bytes(3200)), '.raw')),
    Fault('audio', 'header alone', 'audio_unreadable', 'skipped', recorded(_cut_wav)),
    Fault('audio', 'text called WAV', 'audio_unreadable', 'skipped', recorded(lambda p: p.write_text('hello ' * 900))),
    Fault('audio', 'a name of 5,000 characters', 'audio_missing', 'skipped',
          lambda f, n: chat(f'{f.name}-{n}', spoken('a' * 5000))),
    Fault('audio', 'a zero byte in the path', 'refused_path', 'skipped',
          lambda f, n: chat(f'{f.name}-{n}', spoken('a\0b.wav'))),
    Fault('audio', 'a command as the path', 'refused_path', 'skipped',
          lambda f, n: chat(f'{f.name}-{n}', spoken('pipe:cat a.wav' if n % 2 else 'sox a.wav -t wav - |'))),
    Fault('audio', 'an address as the path', 'refused_path', 'skipped',
          lambda f, n: chat(f'{f.name}-{n}', spoken('s3://bucket/a.wav'))),
    Fault('tar', 'PAX header without an end', TAKEN, 'the header is ignored', _member),
    Fault('tar', 'PAX header of random bytes', TAKEN, 'the header is ignored', _member),
    Fault('tar', 'wrong checksum', 'audio_not_in_tar', 'what stands before it is taken', _member, 0.5),
    Fault('tar', 'a size of 8 GB', 'audio_not_in_tar', 'what stands before it is taken', _member, 0.5),
    Fault('tar', 'links in the place of recordings', 'audio_not_in_tar', 'skipped', _member),
    Fault('tar', 'segments of a recording', TAKEN, 'found in their recording (-sub1)', _segment),
    Fault('line', 'a list', 'not_an_object', 'skipped', _raw(b'[{"id": "ID"}]')),
    Fault('line', 'a number of 5,000 digits', 'not_json', 'skipped', _raw(b'{"id": "ID", "x": ' + b'9' * 5000 + b'}')),
    Fault('line', 'nested 100,000 times', 'not_json', 'skipped', _raw(b'[' * 100_000)),
    Fault('line', 'half of a surrogate pair in the text', 'not_unicode', 'skipped', _asked('a \ud800 b')),
    Fault('line', 'half of a surrogate pair in the id', 'not_unicode', 'skipped', _with(id='\udc00')),
    Fault('line', 'line separators in the text', TAKEN, 'ordinary text', _asked('a\u2028b\u2029c\x85d\x1ee')),
    Fault('line', 'layout of OpenAI', 'missing_key', 'skipped, with the converter to use',
          lambda f, n: {'id': f'{f.name}-{n}', 'messages': [{'role': 'user', 'content': 'a'}]}),
    Fault('line', 'images or tools beside the turns', 'unread_part', 'skipped', _with(images=['a.png'], tools='x')),
    Fault('line', 'custom is text', 'bad_custom', 'skipped', _with(custom='x')),
    Fault('conversation', 'system prompt beside the turns', TAKEN, 'read', _with(system='Be brief.')),
    Fault('conversation', 'a late system turn', 'wrong_turns', 'skipped',
          _said(text('User', 'x'), text('System', 'y'), text('Assistant', 'z'))),
    Fault('conversation', 'a spoken answer', 'wrong_turns', 'skipped',
          _said(text('User', 'x'), {'from': 'Assistant', 'type': 'audio', 'value': 'a.wav'})),
    Fault('conversation', 'offset of 1e308', 'bad_span', 'skipped', recorded(write_wav, offset=1e308)),
    Fault('conversation', 'duration of 1e308', 'duration_mismatch', 'skipped', recorded(write_wav, duration=1e308)),
    Fault('conversation', 'duration of 400 digits', 'bad_span', 'skipped', recorded(write_wav, duration=10**400)),
    Fault('lhotse', 'a cut of one channel', TAKEN, 'this channel alone is heard', _cut(), type='lhotse'),
    Fault('lhotse', 'a cut with changed speed', 'unsupported_cut', 'skipped',
          _cut(recording={'transforms': [{'name': 'Speed', 'kwargs': {'factor': 1.1}}]}), type='lhotse'),
    Fault('lhotse', 'a mixed cut', 'unsupported_cut', 'skipped', _cut(type='MixedCut', tracks=[]), type='lhotse'),
    Fault('lhotse', 'a cut with two supervisions', 'unsupported_cut', 'skipped',
          _cut(supervisions=[{'text': 'a'}, {'text': 'b'}]), type='lhotse'),
    Fault('lhotse', 'a channel that is not there', 'audio_no_channel', 'skipped', _cut(channel=7), type='lhotse'),
    Fault('lhotse', 'a command as the source', 'refused_path', 'skipped',
          _cut(recording={'sources': [{'type': 'command', 'channels': [1], 'source': 'cat a'}]}), type='lhotse'),
    Fault('chat', 'a recording inside', TAKEN, 'unpacked into the cache', _message(), type='openai_messages'),
    Fault('chat', 'base64 rubbish', 'audio_unreadable', 'skipped', _message('no base64 !'), type='openai_messages'),
    Fault('chat', 'a tool call', 'unread_part', 'skipped', _message(tool_calls=[{}]), type='openai_messages'),
    Fault('canary', 'an unknown task', 'missing_key', 'skipped', _changed('nemo', taskname='sing'), type='nemo'),
    Fault('dialogue', 'an unknown speaker', 'unknown_role', 'skipped',
          _changed('s2s_as_conversation', speaker='narrator'), type='s2s_as_conversation'),
    Fault('text', 'no text', 'missing_key', 'skipped', _changed('txt_jsonl', text=''), type='txt_jsonl'),
)  # fmt: skip
"""The kinds of fault that were written by hand; `mutated` adds as many that a seed draws."""


# ---- the set


def make_torture_set(
    folder: str | Path, seed: int = 0, per_kind: int = 10, clean: int = 1000, mutated: int | None = None
) -> TortureSet:
    """Write manifests, recordings and archives.

    Args:
        folder: An empty folder.
        seed: Of the clean conversations and of the mutations.
        per_kind: Lines of each kind of fault.
        clean: Clean conversations of all kinds of data together.
        mutated: Kinds that the seed draws; None: as many as are written by hand.
    """
    folder = Path(folder)
    kinds = (*WRITTEN, *mutated_faults(seed, len(WRITTEN) if mutated is None else mutated))
    good = set(_write_clean(folder, clean, seed))
    expected: dict[tuple[str, str], int] = {}
    for fault in kinds:
        (folder / fault.stem).mkdir()
        write_lines(folder / f'{fault.stem}.jsonl', [fault.make(folder / fault.stem, n) for n in range(per_kind)])
        if fault.group == 'tar':
            (folder / f'{fault.stem}.tar').write_bytes(damaged_tar(fault.name, per_kind))
        if skips := fault.skips(per_kind):
            expected[fault.stem, fault.outcome] = skips
        if fault.name != 'blank':
            good |= {fault.id_of(n) for n in range(per_kind - skips)}
    for type_ in {fault.type for fault in kinds}:  # a source in which nothing is right would end the run
        beside = folder / f'right_{type_}'
        beside.mkdir()
        write_lines(folder / f'{beside.name}.jsonl', [good_line(type_, beside, n) for n in range(per_kind)])
        good |= {f'{beside.name}-{n}' for n in range(per_kind)}
    entries = [
        {
            'type': 'multimodal_conversation',
            'kind': k,
            'source': f'clean_{k}',
            'manifest_filepath': str(folder / f'{k}.jsonl'),
        }
        for k in KINDS_OF_CLEAN
    ]
    entries += _faulty_entries(folder, kinds)
    return TortureSet(
        {'seed': 3, 'input_cfg': [entry | {'max_repeats': 1} for entry in entries]}, kinds, frozenset(good), expected
    )


def _faulty_entries(folder: Path, kinds: tuple[Fault, ...]) -> Iterator[dict[str, Any]]:
    for type_ in dict.fromkeys(fault.type for fault in kinds):
        for in_tars in (False, True):
            stems = [fault.stem for fault in kinds if fault.type == type_ and (fault.group == 'tar') == in_tars]
            if stems:
                tars = {'tarred_audio_filepaths': [str(folder / f'{stem}.tar') for stem in stems]} if in_tars else {}
                beside = [] if in_tars else [f'right_{type_}']
                manifests = [str(folder / f'{stem}.jsonl') for stem in [*stems, *beside]]
                source = 'archives' if in_tars else f'faulty_{type_}'
                kind = 'asr_ast' if in_tars or type_ in ('nemo', 'lhotse') else 'speech_qa'
                yield {'type': type_, 'kind': kind, 'source': source, 'manifest_filepath': manifests, **tars}


def _write_clean(folder: Path, count: int, seed: int) -> Iterator[str]:
    """Clean conversations of all four kinds; yields their ids."""
    rng = np.random.default_rng(seed)
    seconds = [round(float(s), 2) for s in rng.uniform(0.1, 1.0, 20)]
    for number, length in enumerate(seconds):
        write_wav(folder / 'wav' / f'{number}.wav', length)

    def sentence(low: int, high: int) -> str:
        return ' '.join(rng.choice(_WORDS, int(rng.integers(low, high))))

    for kind, share in KINDS_OF_CLEAN.items():
        lines: list[Line] = []
        for number in range(max(1, round(share * count))):
            turns = []
            for _ in range(3 if kind == 'mixed_modal' else 1):
                turns.append(text('User', sentence(3, 40 if kind == 'text' else 8)))
                if kind != 'text':
                    clip = int(rng.integers(len(seconds)))
                    turns.append(spoken(f'wav/{clip}.wav', duration=seconds[clip]))
                turns.append(text('Assistant', sentence(2, 10)))
            lines.append({'id': f'clean-{kind}-{number}', 'conversations': turns})
            yield f'clean-{kind}-{number}'
        write_lines(folder / f'{kind}.jsonl', lines)


def damaged_tar(name: str, count: int) -> bytes:
    """An archive of `count` recordings with one kind of damage, which begins in its middle."""
    if name == 'empty':
        return b''
    numbers = [*range(count)]
    if name == 'order unlike the manifest':
        numbers.reverse()
    if name == 'member twice':
        numbers += numbers[:2]
    prefix = 'other' if name == 'member absent' else ''
    stream, starts = io.BytesIO(), []
    with tarfile.open(fileobj=stream, mode='w', format=tarfile.PAX_FORMAT) as tar:
        for place, number in enumerate(numbers):
            sound = io.BytesIO()
            soundfile.write(sound, np.full(4000 + 400 * number, 0.1), RATE, format='WAV')
            info = tarfile.TarInfo(f'{prefix}{number}.wav')
            info.size = len(sound.getvalue())
            if name.startswith('PAX') and place == count // 2:
                info.pax_headers = {'comment': 'x' * 40}
            if name.startswith('links'):
                info.type, info.linkname, info.size = tarfile.SYMTYPE, '/etc/passwd', 0
            starts.append(stream.tell())
            tar.addfile(info, io.BytesIO(sound.getvalue()))
        starts.append(stream.tell())
    return _damaged(name, stream.getvalue(), starts[count // 2])


def _damaged(name: str, data: bytes, middle: int) -> bytes:
    cuts = {'cut in a payload': middle + 1500, 'cut between members': middle, 'cut in a header': middle + 100}
    if name in cuts:
        return data[: cuts[name]]
    if name == 'zeros at the end':
        return data[:middle] + bytes(len(data) - middle)
    raw = bytearray(data)
    body = middle + 512  # of the member in the middle; for PAX: its extended header
    if name == 'PAX header without an end':
        raw[body : body + 30] = b'999999999999 comment=xxxxxxxxx'
    elif name == 'PAX header of random bytes':
        raw[body : body + 50] = np.random.default_rng(0).bytes(50)
    elif name == 'wrong checksum':
        raw[middle + 148 : middle + 156] = b'777777\0 '
    elif name == 'a size of 8 GB':
        raw[middle + 124 : middle + 136] = b'77777777777\0'
        raw[middle + 148 : middle + 156] = b' ' * 8
        raw[middle + 148 : middle + 156] = b'%06o\0 ' % sum(raw[middle : middle + 512])
    return bytes(raw)


def table() -> str:
    """The outcomes of the kinds that are written by hand, as the documentation shows them."""
    rows = ['| where | what is wrong | outcome | reason |', '| --- | --- | --- | --- |']
    for fault in WRITTEN:
        outcome = 'audio_no_permission' if fault.name == 'no permission' else fault.outcome
        reason = '' if outcome == TAKEN else f'`{outcome}`'
        said = f'taken: {fault.remark}' if outcome == TAKEN else fault.remark
        rows.append(f'| {fault.group} | {fault.name} | {said} | {reason} |')
    return '\n'.join(rows)
