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
"""NeMo `input_cfg` entries -> sources: which files, which kind, which weight, how a line becomes a conversation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemo_vtb.config.schema import UNREAD_TYPES, DataSettings
from nemo_vtb.constants import KINDS
from nemo_vtb.data.addresses import ANY, is_address, parent_of, stores_named, without_query
from nemo_vtb.data.audio import probe
from nemo_vtb.data.augment import SPEEDS, Augmenter, augmentations_of
from nemo_vtb.data.conversation import (
    BOM,
    Audio,
    Conversation,
    Text,
    Turn,
    parse_line,
    read_jsonl,
    task_of,
)
from nemo_vtb.data.faults import Reason, data_fault, guarded
from nemo_vtb.data.filters import KEYS as FILTER_KEYS
from nemo_vtb.data.filters import filters_of
from nemo_vtb.data.limits import read_line
from nemo_vtb.data.manifest_files import (
    check_lines,
    check_paths,
    expand_paths,
    pair_archives,
    plain_archive,
    plain_manifest,
    shar_shards,
    split_weighted,
    unpack_shar,
)
from nemo_vtb.data.object_files import use_cache
from nemo_vtb.data.readers import SOURCE_TYPES as SOURCE_TYPES
from nemo_vtb.data.transcripts import transcript_of
from nemo_vtb.data.unpack import unpack_entry
from nemo_vtb.errors import VtbConfigError, VtbDataError

_PROBE_BYTES = 1 << 26
_INHERITED = ('kind', 'system_prompt', 'max_repeats', 'tags', 'durations', 'pnc')
_OPTIONS = (
    'audio_placeholders', 'audio_root', 'context', 'durations', 'input_roles', 'lang_field', 'output_roles', 'pnc',
    'prompt', 'strip_timestamp_tokens', 'system_prompt', 'text_field',
)  # fmt: skip
EVAL_SECTIONS = ('validation_ds', 'test_ds')


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """One source of data: its files and how their lines are read. Picklable, it goes to the loader processes."""

    name: str
    type: str
    kind: str
    files: tuple[str, ...]
    weight: float = 1.0
    max_repeats: int | None = None
    tars: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    "Folders that relative paths of recordings count from, where the files are unpacked copies."
    options: Mapping[str, Any] = field(default_factory=dict)
    shards: Mapping[int, int] = field(default_factory=dict)
    "Place in `tars` of each `shard_id`, where one manifest has several archives."
    stores: tuple[str, ...] = ()
    "Object stores that the configuration names for this source: its lines may name what is in them."

    def read(self, line: Mapping[str, Any], file: int, where: str) -> Conversation | None:
        """Turn one parsed line into a conversation; None where the line itself says `_skipme`.

        Raises:
            VtbDataError: The line is broken; `error.reason` says why.
        """
        # the one place where a line becomes a conversation: whatever a reader raises costs this line alone
        with guarded(Reason.OTHER, where):
            return self._read(line, file, where)

    def _read(self, line: Mapping[str, Any], file: int, where: str) -> Conversation | None:
        custom = line.get('custom')
        if line.get('_skipme') or (isinstance(custom, Mapping) and custom.get('_skipme')):
            return None
        if self.tars:
            base = f'{self.tars[self._shard(line, where) if self.shards else file]}!'
        else:
            folder = self.bases[file] if self.bases else _parent(self.files[file])
            base = str(self.options.get('audio_root') or folder)
        conversation = SOURCE_TYPES[self.type](self, line, base, where)
        if self.options.get('durations') == 'trust':
            conversation = _with_trust(conversation, whole=not (self.options.get('segments') or has_offset(line)))
        if self.options.get('pnc') is False:
            conversation = _without_pnc(conversation, where)
        return _with_prompts(conversation, self.options)

    def _shard(self, line: Mapping[str, Any], where: str) -> int:
        number = line.get('shard_id')
        if not isinstance(number, int) or isinstance(number, bool) or number not in self.shards:
            raise data_fault(
                Reason.AUDIO_NOT_IN_TAR, field=f'{where}: shard_id', got=number, allowed=sorted(self.shards),
                remedy='name the archive audio_N.tar of that number',
            )  # fmt: skip
        return self.shards[number]

    def describe(self) -> dict[str, Any]:
        """All that decides what the lines become; part of the fingerprint of an index."""
        bases = {'bases': [without_query(b) if is_address(b) else b for b in self.bases]} if self.bases else {}
        options = {key: value for key, value in self.options.items() if key != 'augment'}
        options |= {'speeds': self.speeds} if len(self.speeds) > 1 else {}  # all else leaves lengths as they are
        return {'type': self.type, 'kind': self.kind, 'name': self.name, 'options': options} | bases

    @property
    def allowed(self) -> tuple[str, ...]:
        """Addresses that its lines may name, beside those in the store of their manifest."""
        return (*self.stores, *self.options.get('allowed_urls', ()))

    @property
    def in_store(self) -> bool:
        """Whether recordings may have to be fetched."""
        return bool(self.allowed)

    @property
    def speeds(self) -> tuple[float, ...]:
        """At which each recording is heard, its own first."""
        return SPEEDS if self.options.get('augment', {}).get('perturb_speed') else SPEEDS[:1]


@lru_cache(maxsize=4096)
def _parent(path: str) -> str:
    return parent_of(path)


def parse_input_cfg(
    entries: Sequence[Mapping[str, Any]],
    where: str = 'data.train_ds.input_cfg',
    temperature: float | Sequence[float] | None = None,
) -> list[SourceSpec]:
    """Read NeMo `input_cfg` entries; groups are flattened.

    Weights are NeMo's: at each level they are raised to that level's temperature, and what is inside a group shares
    the weight of the group.

    Args:
        entries: The entries, or a YAML file that holds them.
        where: What an error names.
        temperature: NeMo's `reweight_temperature`: one for all levels of groups, or one for each, the outermost first.
            A group may name its own for what is inside it.

    Raises:
        VtbConfigError: Unknown type or kind, no manifest, a temperature that is none, or one for a level too few.
        VtbDataError: A manifest does not exist.
    """
    if isinstance(entries, str | Path):
        entries = _load_yaml(Path(entries))
    entries = [dict(entry) for entry in entries or ()]
    temperatures = _temperatures(temperature, _depth(entries), where)
    sources: list[SourceSpec] = []
    for number, entry in enumerate(entries):
        found = _parse_entry(dict(entry), f'{where}[{number}]', temperatures[1:])
        sources += [_renamed(s, s.name, s.weight * _tempered(entry, temperatures[0])) for s in found]
    seen: dict[str, int] = {}
    unique = []
    for source in sources:
        seen[source.name] = count = seen.get(source.name, 0) + 1
        name = source.name if count == 1 else f'{source.name}.{count}'
        unique.append(source if count == 1 else _renamed(source, name))
    return unique


def train_specs(settings: DataSettings) -> list[SourceSpec]:
    """The sources of `train_ds`."""
    where = 'data.train_ds.input_cfg'
    sources = _of_loader(settings.train_ds, where, settings, settings.train_ds.get('reweight_temperature'))
    if augment := augmentations_of(settings.train_ds):
        return [replace(s, options={**s.options, 'augment': augment}) for s in sources]
    return sources


def train_augmenter(settings: DataSettings) -> Augmenter | None:
    """What changes the clips of `train_ds`; None where nothing does.

    Raises:
        VtbConfigError: See `augmentations_of`.
        VtbDataError: A recording of a noise or a room cannot be read.
    """
    options = augmentations_of(settings.train_ds)
    if not options.keys() - {'perturb_speed'}:
        return None
    noises, rooms = (_recordings(options.get(key), f'data.train_ds.{key}') for key in ('noise_path', 'rir_path'))
    return Augmenter(options, settings.seed, noises, rooms, settings.sample_rate)


def _recordings(value: Any, where: str) -> list[Audio]:
    """The recordings of a manifest whose lines need no text: NeMo's, lhotse's cuts, or lhotse's recordings."""
    if not value:
        return []
    if isinstance(value, str | Path):
        value = {'input_cfg' if str(value).endswith(('.yaml', '.yml')) else 'cuts_path': str(value)}
    found: list[Audio] = []
    for spec in parse_input_cfg(_entries(value), where):
        for number, path in enumerate(spec.files):
            for _, offset, line in read_jsonl(path):
                if 'sources' in line:
                    line = {'id': line.get('id'), 'recording': line, 'duration': line.get('duration')}
                line |= {'text': '.', 'supervisions': [{'text': '.'}]}
                heard = spec.read(line, number, f'{path}: byte {offset}')
                found += [] if heard is None else heard.audios
    for audio in found:
        probe(audio.path)
    if not found:
        raise VtbDataError('There are no recordings.', field=where, got=value, allowed='at least one')
    return found


def eval_specs(settings: DataSettings, section: str) -> dict[str, list[SourceSpec]]:
    """The sources of each named set of `validation_ds` or `test_ds`; a set inherits what its section says."""
    loader = getattr(settings, section)
    sets = loader.get('datasets') or ({'validation': loader} if _entries(loader) else {})
    common = {key: loader[key] for key in (*FILTER_KEYS, *_FIELDS) if key in loader}
    return {
        name: _of_loader({**common, **each}, f'data.{section}.datasets.{name}.input_cfg', settings)
        for name, each in sets.items()
    }


_FIELDS = ('text_field', 'lang_field')


def _of_loader(
    loader: Mapping[str, Any], where: str, settings: DataSettings, temperature: Any = None
) -> list[SourceSpec]:
    """The sources of a loader section, with its filters, and its `text_field` where an entry has none."""
    use_cache(settings)
    common = {key: loader[key] for key in _FIELDS if loader.get(key) is not None}
    common |= {'allowed_urls': allowed} if (allowed := _allowed_urls(settings)) else {}
    common |= {'filters': filters} if (filters := filters_of(loader)) else {}
    sources = parse_input_cfg(_entries(loader), where, temperature)
    return [replace(s, options=_with_durations({**common, **s.options}, settings)) for s in sources]


def _allowed_urls(settings: DataSettings) -> list[str]:
    given = settings.allowed_urls or ()
    listed = [given] if isinstance(given, str) else list(given)
    for each in listed:
        if not isinstance(each, str) or not is_address(each):
            raise VtbConfigError(
                'Not an address.',
                field='data.allowed_urls',
                got=each,
                allowed="['s3://BUCKET/', 'https://HOST/FOLDER/']",
            )
    return sorted(listed)


def _with_durations(options: dict[str, Any], settings: DataSettings) -> dict[str, Any]:
    """Whether durations are trusted: as the source says, else as `data.durations`; nothing is noted of `probe`."""
    if options.pop('durations', settings.durations) == 'trust':
        options['durations'] = 'trust'
        if settings.on_duration_mismatch == 'segment':
            options['segments'] = True
    return options


def _entries(loader: Mapping[str, Any]) -> Any:
    """Its `input_cfg`; or one entry of the manifests that NeMo's older form has in the section itself."""
    if loader.get('input_cfg'):
        return loader['input_cfg']
    for key, type_ in (('shar_path', 'lhotse_shar'), ('cuts_path', 'lhotse'), ('manifest_filepath', 'nemo')):
        if loader.get(key):
            tars = loader.get('tarred_audio_filepaths') if type_ == 'nemo' else None
            return [{'type': 'nemo_tarred' if tars else type_, key: loader[key], 'tarred_audio_filepaths': tars}]
    return ()


def _depth(entries: Sequence[Mapping[str, Any]]) -> int:
    return 1 + max(
        (_depth(entry.get('input_cfg') or ()) for entry in entries if entry.get('type') == 'group'), default=0
    )


def _temperatures(value: Any, depth: int, where: str) -> list[float]:
    """One temperature for each level of groups."""
    values = [1.0] * depth if value is None else [value] * depth if isinstance(value, int | float) else list(value)
    if len(values) != depth or not all(isinstance(each, int | float) and each >= 0 for each in values):
        raise VtbConfigError(
            'The temperatures do not fit the levels of groups.',
            field=where.replace('.input_cfg', '.reweight_temperature'),
            got=value,
            allowed=f'a number >= 0, or a list of {depth}, the outermost level first',
        )
    return [float(each) for each in values]


def _tempered(entry: Mapping[str, Any], temperature: float) -> float:
    weight = float(entry.get('weight', 1.0))
    return weight**temperature if weight else 0.0


def _parse_entry(entry: dict[str, Any], where: str, temperatures: Sequence[float]) -> list[SourceSpec]:
    """The sources of one entry; their weights add up to 1."""
    kind_of_entry = entry.get('type')
    if kind_of_entry == 'group':
        inherited = {k: v for k, v in entry.items() if k in _INHERITED}
        inner = [inherited | dict(item) for item in entry.get('input_cfg') or ()]
        if entry.get('reweight_temperature') is not None:
            temperatures = _temperatures(entry['reweight_temperature'], _depth(inner), f'{where}.input_cfg')
        found = [_parse_entry(item, f'{where}.input_cfg[{n}]', temperatures[1:]) for n, item in enumerate(inner)]
        return _of_weight(inner, found, temperatures[0])
    if kind_of_entry not in SOURCE_TYPES:
        raise VtbConfigError(
            'This type of data cannot be read.',
            field=f'{where}.type',
            got=kind_of_entry,
            allowed=', '.join([*sorted(SOURCE_TYPES), 'group']),
            remedy=UNREAD_TYPES.get(str(kind_of_entry), 'write the data as one of them'),
        )
    if parts := split_weighted(entry, where):
        return _of_weight(parts, [_parse_entry(part, where, temperatures) for part in parts], 1.0)
    shards: Mapping[int, int] = {}
    if (unpacked := unpack_entry(entry, where)) is not None:
        files, bases, tars = unpacked.files, unpacked.bases, unpacked.tars
        named = unpacked.bases
    else:
        named, files, bases = _shar(entry, where) if entry.get('shar_path') else _manifests(entry, where)
        tars, shards = _archives(entry, files if entry.get('shar_path') else named, where)
    options = _options(entry)
    root = [str(entry['audio_root'])] if entry.get('audio_root') else []
    stores = stores_named([*named, *tars, *root])
    kind = entry.get('kind') or _infer_kind(str(kind_of_entry), files, options, where)
    if kind not in KINDS:
        raise VtbConfigError('Unknown kind of data.', field=f'{where}.kind', got=kind, allowed=', '.join(KINDS))
    shar = entry.get('shar_path')
    named_after = Path(shar).name if isinstance(shar, str) else Path(files[0]).stem
    name = str(entry.get('source') or (unpacked.name if unpacked else named_after))
    repeats = entry.get('max_repeats')
    return [SourceSpec(name, str(kind_of_entry), kind, files, 1.0, repeats, tars, bases, options, shards, stores)]


def _of_weight(
    entries: Sequence[Mapping[str, Any]], sources: Sequence[Sequence[SourceSpec]], temperature: float
) -> list[SourceSpec]:
    """The sources of several entries, whose weights then add up to 1."""
    weights = [_tempered(entry, temperature) for entry in entries]
    total = sum(weights) or 1.0
    return [
        _renamed(s, s.name, s.weight * weight / total)
        for weight, each in zip(weights, sources, strict=True)
        for s in each
    ]


def _archives(entry: Mapping[str, Any], files: Sequence[str], where: str) -> tuple[tuple[str, ...], Mapping[int, int]]:
    """The archives, in the order of the manifests, and the numbers by which one manifest names several."""
    if not entry.get('tarred_audio_filepaths'):
        return (), {}
    tars, shards = pair_archives(files, expand_paths(entry['tarred_audio_filepaths']), where)
    where = f'{where}.tarred_audio_filepaths'
    check_paths(tars, where, 'archive')
    return tuple(plain_archive(path, where) for path in tars), shards


def _shar(entry: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    shards = shar_shards(entry['shar_path'], f'{where}.shar_path')
    check_paths([path for shard in shards for path in shard if is_address(path)], f'{where}.shar_path', 'shard')
    files = tuple(unpack_shar(cuts, archive) for cuts, archive in shards)
    return tuple(path for shard in shards for path in shard), files, ()


def _manifests(entry: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The files that are named, those to read, and where these are unpacked copies, the folders of the originals."""
    key = next((name for name in ('manifest_filepath', 'paths', 'cuts_path') if entry.get(name)), 'manifest_filepath')
    if not entry.get(key):
        raise VtbConfigError(
            'A source needs a manifest.',
            field=f'{where}.{key}',
            got=entry.get(key),
            allowed='a JSONL file, a pattern or a list',
        )
    files = tuple(expand_paths(entry[key]))
    check_paths(files, f'{where}.{key}', 'manifest')
    plain = tuple(map(plain_manifest, files))
    for path in plain:
        check_lines(path, f'{where}.{key}')
    return files, plain, () if plain == files else tuple(map(_parent, files))


def _options(entry: Mapping[str, Any]) -> dict[str, Any]:
    tags = dict(entry.get('tags') or {})  # where NeMo has system_prompt and context
    options = {name: entry.get(name, tags.get(name)) for name in _OPTIONS}
    return {name: value for name, value in options.items() if value is not None}


def _infer_kind(type_: str, files: Sequence[str], options: Mapping[str, Any], where: str) -> str:
    """The kind of the first line that can be read: what it says itself, else what its turns look like."""
    if type_ in ('nemo', 'nemo_tarred', 'lhotse', 'lhotse_as_conversation', 'lhotse_shar'):
        return 'asr_ast'
    if type_ == 'sqa_as_conversation':
        return 'speech_qa'
    probe = SourceSpec('probe', type_, '', tuple(files), options=options, stores=(ANY,))
    for number, path in enumerate(files):
        with open(path, 'rb') as stream:
            while raw := read_line(stream, _PROBE_BYTES)[0]:
                try:
                    found = probe.read(parse_line(raw.strip().removeprefix(BOM), path), number, path)
                except VtbDataError:
                    continue  # broken lines are counted when the index is built
                if found is not None:
                    return found.kind
    raise VtbDataError(
        'A source has no usable conversation.', field=where, got=list(files), remedy='correct its manifest'
    )


def _renamed(source: SourceSpec, name: str, weight: float | None = None) -> SourceSpec:
    return replace(source, name=name, weight=source.weight if weight is None else weight)


def _load_yaml(path: Path) -> list[Mapping[str, Any]]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(path), resolve=True)  # type: ignore[return-value]


def has_offset(line: Mapping[str, Any]) -> bool:
    """Whether a line speaks of segments: then a duration shorter than the file is no lie."""
    if 'recording' in line or line.get('offset') is not None:
        return True
    entries = line.get('conversations')
    turns = entries if isinstance(entries, list) else []
    return any(isinstance(entry, dict) and entry.get('offset') is not None for entry in turns)


def _with_trust(conversation: Conversation, whole: bool) -> Conversation:
    """Durations decide the number of frames, where a line has them."""

    def trusted(part: Text | Audio) -> Text | Audio:
        if isinstance(part, Text) or part.duration_s is None:
            return part
        return Audio(part.path, part.duration_s, part.offset_s, part.text, part.channel, True, whole)

    c = conversation
    turns = [turn if turn.role != 'user' else Turn('user', tuple(map(trusted, turn.parts))) for turn in c.turns]
    return Conversation(c.id, tuple(turns), c.kind, c.source, c.custom)


def _without_pnc(conversation: Conversation, where: str) -> Conversation:
    """Transcripts in the form that an adapter writes; translations and the answers of other kinds keep theirs."""
    c = conversation
    if task_of(c) != 'asr':
        return c
    turns = tuple(
        Turn(turn.role, (Text(transcript_of(turn.text)),)) if turn.role == 'assistant' else turn for turn in c.turns
    )
    if not all(turn.text for turn in turns if turn.role == 'assistant'):
        raise data_fault(
            Reason.NOTHING_TO_LEARN, field=f'{where}: the transcript', got=c.answer,
            allowed='letters or digits (pnc is false)', remedy='leave the line out, or pnc away',
        )  # fmt: skip
    return Conversation(c.id, turns, c.kind, c.source, c.custom)


def _with_prompts(conversation: Conversation, options: Mapping[str, Any]) -> Conversation:
    """NeMo's tags: `context` stands before a first turn that begins with speech, `system_prompt` before all."""
    turns = list(conversation.turns)
    first = next((n for n, turn in enumerate(turns) if turn.role == 'user'), None)  # None: plain text
    context, system = options.get('context'), options.get('system_prompt')
    if context and first is not None and isinstance(turns[first].parts[0], Audio):
        turns[first] = Turn('user', (Text(context), *turns[first].parts))
    if system and turns[0].role != 'system':
        turns.insert(0, Turn('system', (Text(system),)))
    if turns == list(conversation.turns):
        return conversation
    return Conversation(conversation.id, tuple(turns), conversation.kind, conversation.source, conversation.custom)
