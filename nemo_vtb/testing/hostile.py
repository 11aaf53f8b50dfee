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
"""Hostile files of all kinds, and the doors that they are tried on: a model or a manifest from a stranger.

>>> from nemo_vtb.testing.hostile import hostile_cases, try_cases
>>> results = try_cases(hostile_cases(folder, seed=0))  # doctest: +SKIP
>>> assert set(results.values()) <= {'refused', 'harmless'}  # doctest: +SKIP
"""

import json
import multiprocessing
import os
import random
import resource
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nemo_vtb.checkpoint.archive import CONFIG, read_info, read_members
from nemo_vtb.errors import VtbError
from nemo_vtb.testing import hostile_files as files
from nemo_vtb.testing.hostile_files import LOOP, PAYLOADS, WEIGHTS, WRITER, SoundFiles, function

_MEMORY_BYTES = 4 << 30
_PLACES: Mapping[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    'preprocessor': lambda c, f: c['perception'].update(preprocessor=f),
    'encoder': lambda c, f: c['perception'].update(encoder=f),
    'adapter': lambda c, f: c['perception'].update(modality_adapter=f),
    'augmentation': lambda c, f: c['perception'].update(spec_augment=f),
    'projection': lambda c, f: c['perception'].update(proj=f),
    'argument of preprocessor': lambda c, f: c['perception']['preprocessor'].update(window=f),
    'argument of encoder': lambda c, f: c['perception']['encoder'].update(subsampling=f),
    'list in adapter': lambda c, f: c['perception']['modality_adapter'].update(att_context_size=[[f]]),
    'deep in encoder': lambda c, f: c['perception']['encoder'].update(dropout={'a': [{'b': f}]}),
    'optimizer': lambda c, f: c.update(optimizer=f),
    'argument of optimizer': lambda c, f: c.setdefault('optimizer', {}).update(lr=f),
    'lr_scheduler': lambda c, f: c.update(lr_scheduler=f),
    'lora': lambda c, f: c.setdefault('lora', {}).update(lora_alpha=f),
    'another key': lambda c, f: c.update(validation_ds={'a': f}),
    'target': lambda c, f: c.update(f, target=f['_target_']),
}
_ASR_PLACES: Mapping[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    'preprocessor': lambda c, f: c.update(preprocessor=f),
    'encoder': lambda c, f: c.update(encoder=f),
    'decoder': lambda c, f: c.update(decoder=f),
    'augmentation': lambda c, f: c.update(spec_augment=f),
    'loss': lambda c, f: c.update(loss=f),
    'argument of encoder': lambda c, f: c['encoder'].update(subsampling=f),
    'list in encoder': lambda c, f: c['encoder'].update(att_context_size=[[f]]),
    'tokenizer': lambda c, f: c.update(tokenizer={'type': 'bpe', 'custom_tokenizer': f}),
    'another key': lambda c, f: c.update(train_ds={'a': f}),
    'target': lambda c, f: c.update(f, target=f['_target_']),
}
_ENDLESS: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    'layers': lambda c: c['perception']['encoder'].update(n_layers=10**9),
    'width': lambda c: c['perception']['encoder'].update(d_model=10**9),
    'matrix': lambda c: c['perception']['encoder'].update(d_model=1 << 19, subsampling_conv_channels=1 << 19),
    'positions': lambda c: c['perception']['encoder'].update(pos_emb_max_len=10**10),
    'mels': lambda c: c['perception']['preprocessor'].update(features=10**8),
    'adapter layers': lambda c: c['perception']['modality_adapter'].update(n_layers=10**9),
    'references': lambda c: c.update(files.reference_bomb()),
    'resolver': lambda c: c.update(note='${oc.env:HOME}'),
    'expression': lambda c: c.update(freeze_params=['(.*.*)*x']),
    'expression of LoRA': lambda c: c['lora'].update(target_modules='(([a-z_.0-9]+)+)+#'),
    'rank': lambda c: c['lora'].update(r=10**12),
    'wrong types': lambda c: c.update(perception=[1, 2], lora='x', optimizer=3),
    'no names': lambda c: c.pop('pretrained_llm'),
    'files elsewhere': lambda c: c['llm_files'].update(passwd='/etc/passwd'),
    'no files': lambda c: c.update(llm_files=7),
}
_MANIFESTS: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    'no base LLM': lambda m: m.pop('base_llm'),
    'numbers': lambda m: m.update(base_llm=1, parameters=2, versions=3),
    'ledger': lambda m: m.update(ledger='x'),
    'rows': lambda m: m.update(evaluation={'rows': ['x']}, retention={'kept': [7]}),
    'markup': lambda m: m.update(retention={'sentence': '[/bold]' * 99, 'kept': [{'x': '[link=file:///etc]'}]}),
    'not included': lambda m: m.update(base_llm={**m['base_llm'], 'included': False}),
}
_LLM_CONFIGS: Mapping[str, dict[str, Any]] = {
    'layers': {'num_hidden_layers': 10**9},
    'vocabulary': {'vocab_size': 10**12},
    'width': {'hidden_size': 10**9, 'intermediate_size': 10**9},
    'head': {'head_dim': 10**11},
    'zero heads': {'num_attention_heads': 0},
    'kernels': {'attn_implementation': 'someone/evil-kernels'},
    'text': {'num_hidden_layers': 'many'},
}


_RUN_PLACES: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    'strategy': lambda f: {'trainer': {'strategy': f}},
    'callbacks': lambda f: {'trainer': {'callbacks': [f]}},
    'argument of strategy': lambda f: {
        'trainer': {'strategy': {'_target_': 'lightning.pytorch.strategies.DDPStrategy', 'timeout': f}}
    },
    'argument of encoder': lambda f: {'model': {'perception': {'encoder': {'subsampling': f}}}},
    'spec_augment': lambda f: {'model': {'perception': {'spec_augment': f}}},
    'optimizer': lambda f: {'model': {'optimizer': {'lr': f}}},
}


@dataclass(frozen=True, slots=True)
class HostileCase:
    """A hostile file, ready to be opened.

    Args:
        name: What is wrong with it.
        door: How it is opened, a key of `DOORS`.
        path: The file or folder.
        sentinel: What is there afterwards if its code ran.
        sound: The sound files beside it.
        slow: Whether to refuse it takes seconds.
    """

    name: str
    door: str
    path: Path
    sentinel: Path
    sound: SoundFiles
    slow: bool = False


def hostile_cases(
    folder: str | Path, seed: int = 0, *, every: int = 1, sound: SoundFiles | None = None
) -> Iterator[HostileCase]:
    """Write hostile files of all kinds, one after the other, each when it is asked for.

    Args:
        folder: Where they go.
        seed: Of what is random in them, and of the choice.
        every: Above 1, one of so many is chosen, and none that takes seconds.
        sound: Files that are right, which they are made of; None makes them.
    """
    folder = _made(Path(folder))
    sound = sound or SoundFiles.make(folder / 'sound')
    rng = random.Random(seed)
    maker = _Maker(folder, sound, rng)
    for kind in (maker.code, maker.tars, maker.configs, maker.asr_configs, maker.folders, maker.endless,
                 maker.manifests, maker.weights, maker.templates, maker.runs, maker.data):  # fmt: skip
        for case in kind():
            if every == 1 or (rng.randrange(every) == 0 and not case.slow):
                yield case
            else:
                _remove(case.path)


def try_case(case: HostileCase) -> str:
    """Open a hostile file as a user would.

    Returns:
        'refused' (an error of this package that names its field), 'harmless' (it is opened, and nothing happens),
        'sentinel' (its code ran), or 'raw_error: ...' (an error of another library).
    """
    result = 'harmless'
    with open(os.devnull, 'w', encoding='utf-8') as null, redirect_stdout(null), redirect_stderr(null):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                DOORS[case.door](case)
        except VtbError as error:
            result = 'refused' if error.field is not None else f'raw_error: without a field: {error}'
        except (Exception, SystemExit) as error:  # noqa: BLE001  whatever gets through is counted
            # with NeMo's own connector each library refuses in its own words
            result = 'refused' if case.door == 'plain' else f'raw_error: {type(error).__name__}: {error}'[:300]
    return 'sentinel' if case.sentinel.exists() else result


def try_cases(cases: Iterable[HostileCase], limit_s: float = 60.0) -> dict[str, str]:
    """Open hostile files in forked processes with a bound on memory; one that hangs ends its process alone.

    Args:
        cases: From `hostile_cases`.
        limit_s: Seconds after which a file counts as hanging.

    Returns:
        'NAME (DOOR)' -> result of `try_case`, or 'hang', or 'killed' where the process ended.
    """
    results: dict[str, str] = {}
    worker: _Worker | None = None
    for case in cases:
        _known_sound[case.sound.nemo] = case.sound
        worker = worker or _Worker()
        results[f'{case.name} ({case.door})'] = result = worker.ask(case, limit_s)
        if result in ('hang', 'killed'):
            worker.end()
            worker = None
        _remove(case.path)
        case.sentinel.unlink(missing_ok=True) if not case.sentinel.is_dir() else case.sentinel.rmdir()
    if worker is not None:
        worker.end()
    return results


class _Worker:
    """A forked process that opens one file after the other: it has all imports already."""

    def __init__(self) -> None:
        context = multiprocessing.get_context('fork')
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, case: HostileCase, limit_s: float) -> str:
        try:
            self._pipe.send((case.name, case.door, case.path, case.sentinel, case.sound.nemo))
            return self._pipe.recv() if self._pipe.poll(limit_s) else 'hang'
        except (EOFError, OSError):
            return 'killed'

    def end(self) -> None:
        self._process.kill()
        self._process.join()


_known_sound: dict[Path, SoundFiles] = {}
"""By the path of its `.nemo`: a fork has the models already, and they are not sent."""


def _serve(connection: Any) -> None:
    pages = Path('/proc/self/statm')
    if pages.exists():
        ceiling = int(pages.read_text(encoding='ascii').split()[0]) * resource.getpagesize() + _MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
    while True:
        try:
            name, door, path, sentinel, sound = connection.recv()
        except EOFError:
            return
        connection.send(try_case(HostileCase(name, door, path, sentinel, _known_sound[sound])))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---- doors


def _info(case: HostileCase) -> None:
    from nemo_vtb.commands.info import main

    main([str(case.path), '--check', '--config'])
    main([str(case.path), '--json'])


def _restore(case: HostileCase) -> None:
    from nemo_vtb.data.conversation import Conversation, Text, Turn
    from nemo_vtb.model.pretrained import restore

    model = restore(case.path, 'cpu')
    model.answer([Conversation('', (Turn('user', (Text('hello'),)),))], max_new_tokens=1)
    model.save_to(case.path.with_name('again.nemo'))


def _plain(case: HostileCase) -> None:
    from nemo.core import ModelPT

    try:
        ModelPT.restore_from(str(case.path), map_location='cpu')
    finally:
        ModelPT._set_model_restore_state(is_being_restored=False)


def _import(case: HostileCase) -> None:
    from nemo_vtb.commands.import_ import main

    main([str(case.path), str(case.path.with_name('imported.nemo'))])


def _init(case: HostileCase) -> None:
    from nemo_vtb.model.pretrained import warm_start

    warm_start(case.sound.model, case.path)


def _asr(case: HostileCase) -> None:
    _build(case, pretrained_asr=str(case.path), pretrained_weights=True, perception=_adapter_alone(case))


def _llm(case: HostileCase) -> None:
    _build(case, pretrained_llm=str(case.path), pretrained_weights=True, pretrained_asr=str(case.sound.asr))


def _adapter_alone(case: HostileCase) -> dict[str, Any]:
    section = _config(case)['perception']
    return {'target': section['target'], 'modality_adapter': section['modality_adapter']}


def _config(case: HostileCase) -> dict[str, Any]:
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(case.sound.model.cfg)
    return {key: value for key, value in config.items() if key not in ('llm_files', 'target', 'nemo_version')}


def _build(case: HostileCase, **changes: Any) -> None:
    from nemo_vtb.model.blender import VoiceTextBlender

    VoiceTextBlender({**_config(case), **changes})


def _checkpoint(case: HostileCase) -> None:
    from nemo_vtb.checkpoint.checkpoint_io import AtomicCheckpointIO

    AtomicCheckpointIO().load_checkpoint(case.path)


def _run(case: HostileCase) -> None:
    from omegaconf import OmegaConf

    from nemo_vtb.training.run import build_model, build_trainer

    changes = json.loads(case.path.read_text(encoding='utf-8'))
    cfg: Any = OmegaConf.create(
        {'model': _config(case), 'data': {}, 'trainer': {'accelerator': 'cpu', 'logger': False}}
    )
    cfg = OmegaConf.merge(cfg, changes)
    build_model(cfg, build_trainer(cfg)).configure_optimizers()


def _data(case: HostileCase) -> None:
    from nemo_vtb.data.collate import Collator
    from nemo_vtb.data.counting import Meter
    from nemo_vtb.data.index import open_index
    from nemo_vtb.data.sources import parse_input_cfg
    from nemo_vtb.errors import VtbDataError

    entry = json.loads((case.path / 'entry.json').read_text(encoding='utf-8'))
    renderer, frames = case.sound.model.renderer, case.sound.model.frames
    index = open_index(parse_input_cfg([entry])[0], Meter(renderer, frames), case.path / 'index', quiet=True)
    collate = Collator(renderer, frames)
    for number in range(len(index)):
        row = collate([index.read(number)])
        end = renderer.tokenizer.convert_tokens_to_ids('<|im_end|>')
        if int((row.input_ids == end).sum()) > 2:  # of one question and one answer
            case.sentinel.write_text('special tokens of the text became those of the template', encoding='utf-8')
    if faults := list(index.quarantined()):
        raise VtbDataError('Skipped.', field=faults[0]['reason'])


DOORS: Mapping[str, Callable[[HostileCase], None]] = {
    'info': _info,
    'restore': _restore,
    'plain': _plain,
    'import': _import,
    'init': _init,
    'asr': _asr,
    'llm': _llm,
    'checkpoint': _checkpoint,
    'run': _run,
    'data': _data,
}
"""How a file is opened: `vtb info`, `restore` (as eval and export do), NeMo's own `restore_from`, `vtb import`,
`init_from_nemo`, `pretrained_asr`, `pretrained_llm`, a resume, a run's own YAML, a source of data."""


# ---- cases


class _Maker:
    """Makes the cases, each with files of its own."""

    def __init__(self, folder: Path, sound: SoundFiles, rng: random.Random) -> None:
        self.folder, self.sound, self.rng, self.count = folder, sound, rng, 0

    def new(self, name: str, door: str, suffix: str = '.nemo', *, slow: bool = False) -> HostileCase:
        """A case whose file is about to be written."""
        self.count += 1
        path, sentinel = self.folder / f'{self.count}{suffix}', self.folder / f'sentinel-{self.count}'
        return HostileCase(name, door, path, sentinel, self.sound, slow)

    def nemo(self, name: str, door: str, content: Mapping[str, bytes]) -> HostileCase:
        """Our `.nemo`, or with the door `asr` that of an ASR model, with these members."""
        case = self.new(name, door)
        changed, sound = (
            (files.changed_asr, self.sound.asr) if door == 'asr' else (files.changed_nemo, self.sound.nemo)
        )
        changed(sound, case.path, files=content)
        return case

    def folder_of(self, sound: Path, name: str, door: str, content: Mapping[str, bytes], **config: Any) -> HostileCase:
        """A copy of a folder with these files and settings."""
        case = self.new(name, door, '')
        files.changed_folder(sound, case.path, content, **config)
        return case

    def code(self) -> Iterator[HostileCase]:
        """S1: pickles as weights."""
        for how in PAYLOADS:
            for form in ('torch', 'legacy', 'pickle'):
                name = f'pickle {how} {form}'
                case = self.new(name, 'checkpoint', '.ckpt')
                case.path.write_bytes(files.pickled(case.sentinel, how, form))
                yield case
                for door in ('restore', 'plain', 'asr') if form == 'torch' else ('restore', 'asr'):
                    case = self.new(name, door)
                    raw = {WEIGHTS: files.pickled(case.sentinel, how, form)}
                    if door == 'asr':
                        files.changed_asr(self.sound.asr, case.path, files=raw)
                    else:
                        files.changed_nemo(self.sound.nemo, case.path, files=raw)
                    yield case
            case = self.folder_of(self.sound.peft, f'pickle {how}', 'init', {})
            (case.path / 'adapter_model.safetensors').unlink()
            (case.path / 'adapter_model.bin').write_bytes(files.pickled(case.sentinel, how, 'torch'))
            yield case

    def tars(self) -> Iterator[HostileCase]:
        """S2: members that leave the folder, or are no files."""
        for name in files.tar_attacks(Path('x')):
            for door in ('info', 'restore', 'asr'):
                case = self.new(f'tar {name}', door)
                sound = self.sound.asr if door == 'asr' else self.sound.nemo
                files.attacked_tar(sound, case.path, files.tar_attacks(case.sentinel)[name])
                yield case
        bomb = files.gzip_bomb(1 << 28)
        for door in ('info', 'restore', 'asr', 'init', 'checkpoint'):
            case = self.new('a pipe', door)
            files.pipe(case.path)
            yield case
            case = self.new('a gzip bomb', door)
            case.path.write_bytes(bomb)
            yield case

    def configs(self) -> Iterator[HostileCase]:
        """S3: functions in every place of a model's configuration."""
        for place, put in _PLACES.items():
            for named in (WRITER, 'os.system') if 'arg' in place else (WRITER,):
                for door in ('restore', 'plain', 'init'):
                    case = self.new(f'{named.rpartition(".")[2]} as {place}', door)
                    section = function(named, case.sentinel)
                    files.changed_nemo(self.sound.nemo, case.path, change=partial(_put, put, section))
                    yield case
        for door in ('restore', 'plain', 'init'):
            case = self.new('trusts itself', door)
            evil = {'evil.py': files.script(case.sentinel).encode()}
            files.changed_nemo(self.sound.nemo, case.path, change=_trust, files=evil)
            yield case

    def asr_configs(self) -> Iterator[HostileCase]:
        """S3: the same in the configuration of an ASR model."""
        for place, put in _ASR_PLACES.items():
            for named in (WRITER, 'os.mkdir'):
                for door in ('asr', 'init'):
                    case = self.new(f'{named.rpartition(".")[2]} as {place} of ASR', door)
                    section = function(named, case.sentinel)
                    files.changed_asr(self.sound.asr, case.path, change=partial(_put, put, section))
                    yield case

    def folders(self) -> Iterator[HostileCase]:
        """S3, S8: SALM, LLM and PEFT folders that bring code or functions."""
        salm, llm, peft = self.sound.salm, self.sound.llm, self.sound.peft
        for sound, inner, doors in ((salm, 'llm_backbone/', ('import', 'init')), (llm, '', ('llm',))):
            for trust in (False, True):
                for door in doors:
                    case = self.folder_of(sound, f'{sound.name} with code, trust {trust}', door, {})
                    _bring_code(case, inner, trust)
                    yield case
        for place, put in _PLACES.items():
            case = self.new(f'write_manifest as {place} of SALM', 'import', '')
            config = json.loads((salm / 'config.json').read_text(encoding='utf-8'))
            put(config, function(WRITER, case.sentinel))
            files.changed_folder(salm, case.path, {'config.json': json.dumps(config).encode()})
            yield case
        for name, settings in _LLM_CONFIGS.items():
            yield self.folder_of(llm, f'LLM {name}', 'llm', {}, **settings)
        for key in ('init_from_checkpoint', 'pretrained_s2s_model', 'pretrained_perception_from_s2s'):
            case = self.new(f'SALM {key}', 'import', '')
            evil = case.path.with_suffix('.evil')
            evil.write_bytes(files.pickled(case.sentinel, 'system', 'torch'))
            files.changed_folder(salm, case.path, {}, **{key: str(evil)})
            yield case
        deep = b'{"a":' * 100_000 + b'1' + b'}' * 100_000
        for sound, door in ((salm, 'import'), (llm, 'llm'), (peft, 'init')):
            for file in ('config.json', 'adapter_config.json', 'tokenizer.json', 'tokenizer_config.json'):
                for what, raw in (('deep', deep), ('no JSON', b'\xff{'), ('list', b'[1, 2]')):
                    if (sound / file).is_file():
                        yield self.folder_of(sound, f'{sound.name} {file} {what}', door, {file: raw})

    def endless(self) -> Iterator[HostileCase]:
        """S7: configurations that have no end, or no sense."""
        for name, change in _ENDLESS.items():
            case = self.new(f'endless {name}', 'restore')
            files.changed_nemo(self.sound.nemo, case.path, change=change)
            yield case
        odd = {
            'yaml aliases': files.yaml_bomb(),
            'deep yaml': b'a: ' + b'[' * 500_000,
            'no yaml': b'a: [',
            'empty yaml': b'',
            'long yaml': b'a: x' + b'x' * (9 << 20),
        }
        for name, raw in odd.items():
            for door in ('info', 'restore', 'asr'):
                yield self.nemo(name, door, {CONFIG: raw})
        for name, size in {'n_layers': 10**9, 'd_model': 1 << 40, 'feat_in': 1 << 19}.items():
            case = self.new(f'endless {name} of ASR', 'asr')
            files.changed_asr(self.sound.asr, case.path, change=partial(_resize, name, size))
            yield case
        stored, config = self._stored('config__json')
        for name, settings in _LLM_CONFIGS.items():
            yield self.nemo(f'LLM {name}', 'restore', {stored: json.dumps(json.loads(config) | settings).encode()})
        for key in ('encoder_layers', 'd_model', 'max_source_positions', 'num_mel_bins'):
            yield self.folder_of(self.sound.whisper, f'Whisper {key}', 'asr', {}, **{key: 10**9})

    def manifests(self) -> Iterator[HostileCase]:
        """Sealed manifests that say nonsense."""
        for name, change in _MANIFESTS.items():
            for door in ('info', 'restore'):
                case = self.new(f'manifest {name}', door)
                files.changed_manifest(self.sound.nemo, case.path, change)
                yield case

    def weights(self) -> Iterator[HostileCase]:
        """S7: safetensors that lie."""
        model = 'model.safetensors'
        folders = (
            (self.sound.salm, 'import', model), (self.sound.peft, 'init', 'adapter_model.safetensors'),
            (self.sound.llm, 'llm', model), (self.sound.whisper, 'asr', model),
        )  # fmt: skip
        for name, raw in files.broken_safetensors(self.rng).items():
            yield self.nemo(f'safetensors {name}', 'restore', {'encoder.safetensors': raw})
            for sound, door, file in folders:
                yield self.folder_of(sound, f'safetensors {name} in {sound.name}', door, {file: raw})
        case = self.folder_of(self.sound.salm, 'a pipe in a folder', 'import', {})
        files.pipe(case.path / 'tokenizer.json')
        yield case

    def templates(self) -> Iterator[HostileCase]:
        """Chat templates that run code, loop, fill the memory or write without end."""
        stored, _ = self._stored('chat_template__jinja')
        for name in (*files.templates(Path('x')), 'loop'):
            for door in ('restore', 'import', 'llm'):
                case = self.new(f'template {name}', door, '.nemo' if door == 'restore' else '', slow=name == 'loop')
                text = (files.templates(case.sentinel) | {'loop': LOOP + files.CHATML})[name].encode()
                if door == 'restore':
                    files.changed_nemo(self.sound.nemo, case.path, files={stored: text})
                else:
                    sound = self.sound.salm if door == 'import' else self.sound.llm
                    files.changed_folder(sound, case.path, {'chat_template.jinja': text})
                yield case

    def runs(self) -> Iterator[HostileCase]:
        """S3: functions in the YAML of a run."""
        for place, put in _RUN_PLACES.items():
            case = self.new(f'write_manifest as {place} of a run', 'run', '.json')
            case.path.write_text(json.dumps(put(function(WRITER, case.sentinel))), encoding='utf-8')
            yield case

    def data(self) -> Iterator[HostileCase]:
        """S4, S5, S6, S7, S9: lines, recordings and archives of a data set."""
        for name in [name for name, _, _ in files.lines(Path('x'), _made(self.folder / 'names'))]:
            case = self.new(f'data {name}', 'data', '')
            found = files.lines(case.sentinel, _made(case.path))
            kind, line = next((kind, line) for n, kind, line in found if n == name)
            _source(case.path, kind, line if isinstance(line, bytes) else json.dumps(line).encode())
            yield case
        case = self.new('data gzip bomb', 'data', '')
        _source(_made(case.path), 'nemo', files.gzip_bomb(3 << 28), 'm.jsonl.gz')
        yield case
        case = self.new('data pipe among tars', 'data', '')
        tar = str(files.pipe(_made(case.path) / 'a.tar'))
        _source(case.path, 'nemo_tarred', b'{"audio_filepath": "a.wav", "text": "x"}', tarred_audio_filepaths=tar)
        yield case
        case = self.new('data pipe as manifest', 'data', '')
        manifest = str(files.pipe(_made(case.path) / 'pipe.jsonl'))
        _source(case.path, 'nemo', b'', manifest_filepath=manifest)
        yield case

    def _stored(self, key: str) -> tuple[str, str]:
        """Name and content of a file of the LLM in our `.nemo`."""
        name = str(read_info(self.sound.nemo).config['llm_files'][key]).removeprefix('nemo:')
        return name, read_members(self.sound.nemo)[name].text()


def _put(put: Callable[[dict[str, Any], dict[str, Any]], Any], section: Any, config: dict[str, Any]) -> None:
    put(config, section)


def _trust(config: dict[str, Any]) -> None:
    config['trust_remote_code'] = True


def _resize(name: str, size: int, config: dict[str, Any]) -> None:
    config['encoder'] |= {name: size, 'subsampling_conv_channels': 1 << 19}


def _bring_code(case: HostileCase, inner: str, trust: bool) -> None:
    """Add a module that makes the sentinel, and have the configuration of the LLM ask for it."""
    auto = {'auto_map': dict.fromkeys(('AutoConfig', 'AutoModelForCausalLM', 'AutoTokenizer'), 'evil.Evil')}
    (case.path / f'{inner}evil.py').write_text(files.script(case.sentinel), encoding='utf-8')
    for name, extra in ((f'{inner}config.json', {'model_type': 'evil'}), ('tokenizer_config.json', {})):
        value = json.loads((case.path / name).read_text(encoding='utf-8'))
        (case.path / name).write_text(json.dumps(value | auto | extra), encoding='utf-8')
    if trust:
        value = json.loads((case.path / 'config.json').read_text(encoding='utf-8'))
        (case.path / 'config.json').write_text(json.dumps(value | {'trust_remote_code': True}), encoding='utf-8')


def _source(path: Path, kind: str, raw: bytes, name: str = 'm.jsonl', **entry: Any) -> None:
    (path / name).write_bytes(raw if name.endswith('.gz') else raw + b'\n')
    entry = {'type': kind, 'kind': 'speech_qa', 'manifest_filepath': str(path / name)} | entry
    (path / 'entry.json').write_text(json.dumps(entry), encoding='utf-8')


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
