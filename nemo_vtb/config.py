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
"""Checks of a configuration before anything is loaded: unknown keys, missing values, wrong types and ranges.

NeMo warns about unknown keys of a loader and ignores most others; here a key that nobody reads is an error that
names the nearest key there is. The keys of NeMo's, PEFT's and Lightning's own classes are read from their
signatures, which are imported only if a key is not in our own table.
"""

import difflib
import importlib
import inspect
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_vtb.config_schema import LOADER_KEYS, SCHEMA, Key, ListOf, MapOf, Node, Section
from nemo_vtb.errors import VtbConfigError

logger = logging.getLogger(__name__)

MISSING = '???'
# Hydra's own keys, allowed wherever a `_target_` is
HYDRA_KEYS = ('_target_', '_args_', '_convert_', '_partial_', '_recursive_', 'target')
# importing a target runs its module; only those that NeMo would instantiate anyway are looked at
IMPORTABLE = ('lightning.', 'megatron.', 'nemo.', 'nemo_vtb.', 'torch.', 'torchmetrics.')
DEFAULT_TARGETS = {
    'encoder': 'nemo.collections.asr.modules.ConformerEncoder',
    'preprocessor': 'nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor',
    'spec_augment': 'nemo.collections.asr.modules.SpectrogramAugmentation',
}


def check_config(cfg: DictConfig | Mapping[str, Any], schema: Section = SCHEMA) -> None:
    """Checks a whole configuration: its keys, then what is missing, then types and ranges.

    Args:
        cfg: The composed configuration, interpolations unresolved.
        schema: The table of known keys.

    Raises:
        VtbConfigError: With all unknown keys, or all missing values, or the first value out of range.
    """
    register_resolvers()
    check_keys(cfg, schema)
    check_missing(cfg)
    check_values(cfg, schema)
    check_budget(cfg)
    _check_gate(cfg)
    unused = unused_keys(cfg)
    if unused:
        logger.warning('Without effect here, since data.budget and data.max_tokens rule: %s', ', '.join(unused))


def unused_keys(cfg: DictConfig | Mapping[str, Any]) -> list[str]:
    """Lists the keys of NeMo's loaders that a SALM user's YAML may hold, but that the token budget replaces."""
    unused: list[str] = []
    data = _raw(cfg).get('data') or {}
    for name, loader in data.items():
        # NeMo's own loader reads its keys
        if name == 'train_ds' and data.get('sampler') == 'nemo':
            continue
        if name not in ('train_ds', 'validation_ds', 'test_ds') or not isinstance(loader, Mapping):
            continue
        path = f'data.{name}'
        unused += [_join(path, key) for key in loader if key not in LOADER_KEYS and key != 'datasets']
        for dataset, inner in (loader.get('datasets') or {}).items():
            if isinstance(inner, Mapping):
                unused += [f'{path}.datasets.{dataset}.{key}' for key in inner if key not in LOADER_KEYS]
    return unused


def check_keys(cfg: DictConfig | Mapping[str, Any], schema: Section = SCHEMA) -> None:
    """Raises VtbConfigError naming every key that is not in `schema`, each with the nearest name there is."""
    unknown = list(_unknown_keys(_raw(cfg), schema, ''))
    if not unknown:
        return
    everywhere = dict(_known_paths(schema, ''))
    lines = []
    for path, siblings in unknown:
        near = _nearest(path, siblings, everywhere)
        lines.append(f"unknown key '{path}'" + (f": did you mean '{near}'?" if near else ''))
    raise VtbConfigError(
        '\n'.join(lines),
        field=', '.join(path for path, _ in unknown),
        allowed=', '.join(sorted(unknown[0][1])) if len(unknown) == 1 else None,
        remedy='correct the spelling or delete the key: nothing would have read it',
    )


def check_missing(cfg: DictConfig | Mapping[str, Any]) -> None:
    """Raises VtbConfigError naming every value that is still `???`, all of them together."""
    missing = [path for path, value in _leaves(_raw(cfg), '') if value == MISSING]
    if missing:
        # Hydra's command line counts the entries of a list with a dot
        override = missing[0].replace('[', '.').replace(']', '')
        raise VtbConfigError(
            'values without a default: ' + ', '.join(missing),
            field=', '.join(missing),
            got=MISSING,
            remedy=f'set them in your YAML or on the command line, for example {override}=VALUE',
        )


def check_values(cfg: DictConfig | Mapping[str, Any], schema: Section = SCHEMA) -> None:
    """Raises VtbConfigError for the first value whose type or range is not what `schema` says."""
    conf = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
    for path, value, key in _typed_leaves(_raw(cfg), schema, ''):
        _check_value(path, _resolved(conf, path, value), key)
    for name in ('freeze_params', 'prevent_freeze_params'):
        for index, pattern in enumerate(OmegaConf.select(conf, f'model.{name}') or ()):
            _check_regex(f'model.{name}[{index}]', pattern)


def check_budget(cfg: DictConfig | Mapping[str, Any]) -> None:
    """Raises VtbConfigError unless the token shares of `data.budget` (if there are any) sum to 1 within 1e-6."""
    conf = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
    budget = OmegaConf.select(conf, 'data.budget')
    if not budget:
        return
    shares = {str(kind): float(share) for kind, share in budget.items() if kind != 'auto'}
    if not shares:
        return
    total = sum(shares.values())
    if abs(total - 1.0) > 1e-6:
        scaled = {kind: round(share / total, 4) for kind, share in shares.items()} if total > 0 else None
        raise VtbConfigError(
            f'the token shares of the kinds sum to {total:.6g}',
            field='data.budget',
            got=shares,
            allowed='shares in [0, 1] that sum to 1',
            remedy=f'in the same proportions: {scaled}' if scaled else 'give at least one kind a share',
        )


def _check_gate(cfg: DictConfig | Mapping[str, Any]) -> None:
    """A checkpoint callback that waits for a metric that nobody logs would stop the run at its first validation."""
    conf = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
    path = 'exp_manager.checkpoint_callback_params.monitor'
    monitor = OmegaConf.select(conf, path)
    if OmegaConf.select(conf, 'data.budget.auto') and not OmegaConf.select(conf, 'gate.enabled'):
        raise VtbConfigError(
            'The share of typed chats is raised by what the gate measures, and the gate is off.',
            field='data.budget.auto',
            got=OmegaConf.select(conf, 'data.budget.auto'),
            allowed='null, or gate.enabled=true',
            remedy='gate.enabled=true',
        )
    if monitor in ('gated_loss', 'retention', 'hearing') and not OmegaConf.select(conf, 'gate.enabled'):
        raise VtbConfigError(
            'The best checkpoint is chosen by a metric that is not measured.',
            field=path,
            got=monitor,
            allowed='val_loss, or the metrics of the gate with gate.enabled=true',
            remedy=f'gate.enabled=true, or {path}=val_loss',
        )


def resolve_asset(value: str) -> str:
    """Turns `asset:NAME` or `asset:NAME/sub/path` into a path of the cache; any other string comes back as it is.

    Args:
        value: A config value, for example `asset:whisper-tiny.en` or `asset:demo-corpus/text.train.jsonl`.

    Returns:
        The path as a string; the asset is fetched and converted first where it is not cached.

    Raises:
        VtbAssetError: If the asset is unknown, or cannot be fetched.
        VtbConfigError: If the asset has no such file.
    """
    if not value.startswith('asset:'):
        return value
    name, _, sub = value.removeprefix('asset:').partition('/')
    from nemo_vtb.assets import ensure

    root = Path(ensure(name)[name])
    path = root / sub if sub else root
    if not path.exists():
        raise VtbConfigError(
            f"the asset '{name}' holds no '{sub}'",
            field=value,
            allowed=', '.join(sorted(item.name for item in root.iterdir())[:40]),
        )
    return str(path)


def register_resolvers() -> None:
    """Makes `${vtb_asset:NAME}` and `${vtb_asset:NAME/sub/path}` usable in YAML. Nothing is fetched before use."""
    if not OmegaConf.has_resolver('vtb_asset'):
        OmegaConf.register_new_resolver('vtb_asset', lambda name: resolve_asset(f'asset:{name}'))


def _raw(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(cfg, DictConfig):
        return OmegaConf.to_container(cfg, resolve=False, throw_on_missing=False)  # type: ignore[return-value]
    return dict(cfg)


def _join(path: str, name: object) -> str:
    return f'{path}.{name}' if path else str(name)


def _leaves(node: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _leaves(value, _join(path, name))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _leaves(value, f'{path}[{index}]')
    else:
        yield path, node


def _unknown_keys(cfg: object, node: Node, path: str) -> Iterator[tuple[str, set[str]]]:
    """Yields (dotted key, names that would have been known beside it)."""
    if isinstance(node, ListOf) and isinstance(cfg, list | tuple):
        for index, value in enumerate(cfg):
            yield from _unknown_keys(value, node.item, f'{path}[{index}]')
    elif isinstance(node, MapOf) and isinstance(cfg, Mapping):
        for name, value in cfg.items():
            yield from _unknown_keys(value, node.item, _join(path, name))
    elif isinstance(node, Section) and isinstance(cfg, Mapping):
        more: Mapping[str, Node] | None = {}
        if node.more and not set(cfg) <= set(node.keys):
            more = _more_keys(node.more, cfg)
        if more is None:
            return
        known = {**more, **node.keys}
        for name, value in cfg.items():
            if name in known:
                yield from _unknown_keys(value, known[name], _join(path, name))
            else:
                yield _join(path, name), set(known)


def _known_paths(node: Node, path: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yields (last name, dotted path) of the table's own keys, without those that repeat inside groups."""
    if isinstance(node, ListOf | MapOf):
        yield from _known_paths(node.item, f'{path}[]', depth + 1)
    elif isinstance(node, Section) and depth < 5:
        for name, child in node.keys.items():
            yield name, _join(path, name)
            yield from _known_paths(child, _join(path, name), depth + 1)


def _nearest(path: str, siblings: Sequence[str] | set[str], everywhere: Mapping[str, str]) -> str | None:
    parent, _, name = path.rpartition('.')
    close = difflib.get_close_matches(name, sorted(siblings), n=1, cutoff=0.6)
    if close:
        return _join(parent, close[0])
    close = difflib.get_close_matches(name, sorted(everywhere), n=1, cutoff=0.8)
    return everywhere[close[0]] if close else None


def _more_keys(provider: str, cfg: Mapping[str, Any]) -> Mapping[str, Node] | None:
    """Returns the keys that somebody else's class takes, or None if that cannot be known (then all may pass)."""
    if provider == 'trainer':
        return _signature_keys('lightning.pytorch.Trainer')
    if provider == 'exp_manager':
        return _dataclass_keys('nemo.utils.exp_manager.ExpManagerConfig')
    if provider == 'loader':
        return _dataclass_keys('nemo.collections.common.data.lhotse.dataloader.LhotseDataLoadingConfig')
    if provider == 'data':
        return _dataclass_keys('nemo_vtb.data.settings.DataSettings')
    if provider == 'lora':
        return _dataclass_keys('peft.LoraConfig')
    target = cfg.get('_target_') or cfg.get('target') or DEFAULT_TARGETS.get(provider)
    if not isinstance(target, str) or not target.startswith(IMPORTABLE):
        return None
    names = _signature_keys(target)
    return None if names is None else {**dict.fromkeys(HYDRA_KEYS, Key()), **names}


def _import(dotted: str) -> Any | None:
    module, _, name = dotted.rpartition('.')
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None


@cache
def _signature_keys(dotted: str) -> Mapping[str, Node] | None:
    """Returns the parameters of a class, those of its bases included where it passes `**kwargs` on to them."""
    cls = _import(dotted)
    if cls is None:
        return None
    names: dict[str, Node] = {}
    for base in cls.__mro__ if inspect.isclass(cls) else (cls,):
        function = base.__dict__.get('__init__') if inspect.isclass(base) else base
        # Lightning's Trainer is wrapped by a decorator that takes (*args, **kwargs)
        function = inspect.unwrap(function) if function is not None else None
        if function is None:
            continue
        parameters = list(inspect.signature(function).parameters.values())
        names.update({p.name: Key() for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)})
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            names.pop('self', None)
            return names
    return None


@cache
def _dataclass_keys(dotted: str) -> Mapping[str, Node] | None:
    """Returns the fields of a dataclass; a field that holds another dataclass becomes a section of its own."""
    cls = _import(dotted)
    return None if cls is None else _fields(cls)


def _fields(cls: type) -> dict[str, Node]:
    names: dict[str, Node] = {}
    for name, item in getattr(cls, '__dataclass_fields__', {}).items():
        factory = item.default_factory
        nested = factory() if callable(factory) else None
        names[name] = Section(_fields(type(nested))) if hasattr(nested, '__dataclass_fields__') else Key()
    return names


def _typed_leaves(cfg: object, node: Node, path: str) -> Iterator[tuple[str, object, Key]]:
    if isinstance(node, Key):
        yield path, cfg, node
    elif isinstance(cfg, str) and '${' in cfg or cfg is None:
        return
    elif isinstance(node, ListOf):
        if not isinstance(cfg, list | tuple):
            yield path, cfg, Key((list, str) if node.or_text else (list,))
            return
        for index, value in enumerate(cfg):
            yield from _typed_leaves(value, node.item, f'{path}[{index}]')
    elif not isinstance(cfg, Mapping):
        yield path, cfg, Key((dict,))
    else:
        for name, value in cfg.items():
            child = node.item if isinstance(node, MapOf) else node.keys.get(name, Key())
            yield from _typed_leaves(value, child, _join(path, name))


def _resolved(conf: DictConfig, path: str, value: object) -> object:
    """Returns the value behind `${other.key}`; values that need a resolver (assets, environment) stay unresolved."""
    if not isinstance(value, str) or '${' not in value or ':' in value:
        return value
    try:
        return OmegaConf.select(conf, path, throw_on_resolution_failure=True)
    except OmegaConfBaseException as error:
        raise VtbConfigError(
            'an interpolation points to a key that is not there',
            field=path,
            got=value,
            remedy=str(error).splitlines()[0],
        ) from error


def _check_value(path: str, value: object, key: Key) -> None:
    if isinstance(value, str) and '${' in value:
        return
    if value is None:
        if not key.null:
            raise VtbConfigError('the value may not be null', field=path, got=None, allowed=_allowed(key))
        return
    # bool is a subclass of int, yet `max_tokens: true` is a mistake
    right_type = not key.types or (isinstance(value, key.types) and (bool in key.types or not isinstance(value, bool)))
    too_low = right_type and key.low is not None and isinstance(value, int | float) and value < key.low
    too_high = right_type and key.high is not None and isinstance(value, int | float) and value > key.high
    if not right_type or too_low or too_high or (key.choices and value not in key.choices):
        remedy = None
        if key.choices and isinstance(value, str):
            close = difflib.get_close_matches(value, [str(item) for item in key.choices], n=1)
            remedy = f"did you mean '{close[0]}'?" if close else None
        if isinstance(value, str) and float in key.types and re.fullmatch(r'[-+]?\d+(\.\d*)?[eE][-+]?\d+', value):
            remedy = f'YAML reads {value} as text; write it with a decimal point, as in 1.0e-4'
        raise VtbConfigError('the value is not allowed', field=path, got=value, allowed=_allowed(key), remedy=remedy)


def _allowed(key: Key) -> str:
    if key.choices:
        return ', '.join(str(item) for item in key.choices)
    text = ' or '.join({'dict': 'block', 'str': 'text'}.get(t.__name__, t.__name__) for t in key.types) or 'a value'
    if key.low is not None and key.high is not None:
        return f'{text} from {key.low:g} to {key.high:g}'
    return text if key.low is None else f'{text} of at least {key.low:g}'


def _check_regex(path: str, pattern: object) -> None:
    try:
        re.compile(str(pattern))
    except re.error as error:
        raise VtbConfigError(
            f'the pattern is not a regular expression: {error}',
            field=path,
            got=pattern,
            remedy="NeMo's patterns are Python regular expressions, as in '^llm\\..+$'",
        ) from error
