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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_vtb.config.keys import (
    Key,
    ListOf,
    MapOf,
    Node,
    Section,
    build,
    join,
    section_of,
    settings_dict,
    typed_values,
)
from nemo_vtb.config.schema import NEMO_ENTRY_KEYS, REFUSED_LOADER_KEYS, LoaderKeys, TrainConfig, TrainLoaderKeys
from nemo_vtb.errors import VtbConfigError

T = TypeVar('T')

logger = logging.getLogger(__name__)

MISSING = '???'
_OPAQUE = '<resolver>'
# Hydra's own keys, allowed wherever a `_target_` is
HYDRA_KEYS = ('_target_', '_args_', '_convert_', '_partial_', '_recursive_', 'target')
# importing a target runs its module; only those that NeMo would instantiate anyway are looked at
IMPORTABLE = ('lightning.', 'megatron.', 'nemo.', 'nemo_vtb.', 'torch.', 'torchmetrics.')
CLASSES = {
    'exp_manager': 'nemo.utils.exp_manager.ExpManagerConfig',
    'loader': 'nemo.collections.common.data.lhotse.dataloader.LhotseDataLoadingConfig',
    'lora': 'peft.LoraConfig',
    'trainer': 'lightning.pytorch.Trainer',
}
DEFAULT_TARGETS = {
    'encoder': 'nemo.collections.asr.modules.ConformerEncoder',
    'preprocessor': 'nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor',
    'spec_augment': 'nemo.collections.asr.modules.SpectrogramAugmentation',
}


def check_config(cfg: DictConfig | Mapping[str, Any], cls: type = TrainConfig) -> None:
    """Check a whole configuration: its keys, then what is missing, then types and ranges. Nothing is fetched.

    Args:
        cfg: The composed configuration, interpolations unresolved.
        cls: The dataclass of its keys.

    Raises:
        VtbConfigError: With all unknown keys, or all missing values, or the first value out of range.
    """
    check_keys(cfg, cls)
    check_missing(cfg)
    check_values(cfg, cls)
    if cls is not TrainConfig:
        return
    check_budget(cfg)
    _check_monitor(cfg)
    unused = unused_keys(cfg)
    _check_loader_keys(cfg, unused)
    if unused:
        logger.warning('Without effect here, since data.budget and data.max_tokens rule: %s', ', '.join(unused))


def read_settings(cls: type[T], *layers: Mapping[str, Any]) -> T:
    """Make settings out of layers of keys, the later ones winning.

    Args:
        cls: A dataclass of keys with defaults.
        layers: What a file and the command line say.

    Raises:
        VtbConfigError: An unknown key (with the nearest one), or a value of a wrong type or out of range.
    """
    given = OmegaConf.to_container(
        OmegaConf.merge({}, *(OmegaConf.create(dict(layer)) for layer in layers)), resolve=True
    )
    assert isinstance(given, dict)
    check_keys(given, cls)  # type: ignore[arg-type]
    merged: Any = OmegaConf.to_container(OmegaConf.merge(settings_dict(cls()), given))
    check_missing(merged)
    check_values(merged, cls)
    return build(cls, merged)


def unused_keys(cfg: DictConfig | Mapping[str, Any]) -> list[str]:
    """Lists the keys of NeMo's loaders that a SALM user's YAML may hold, but that the token budget replaces."""
    unused: list[str] = []
    data = _raw(cfg).get('data') or {}
    for name, loader in data.items():
        if name not in ('train_ds', 'validation_ds', 'test_ds') or not isinstance(loader, Mapping):
            continue
        path, known = f'data.{name}', section_of(TrainLoaderKeys if name == 'train_ds' else LoaderKeys).keys
        unused += [join(path, key) for key in loader if key not in known and key != 'datasets']
        for dataset, inner in (loader.get('datasets') or {}).items():
            if isinstance(inner, Mapping):
                unused += [f'{path}.datasets.{dataset}.{key}' for key in inner if key not in known]
    return unused


def check_keys(cfg: DictConfig | Mapping[str, Any], cls: type = TrainConfig) -> None:
    """Raises VtbConfigError naming every key that `cls` does not have, each with the nearest name there is."""
    schema = section_of(cls)
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
        remedy='correct the spelling, or delete the key if another program reads it; docs/nemo.md lists those of NeMo',
    )


def check_missing(cfg: DictConfig | Mapping[str, Any]) -> None:
    """Raises VtbConfigError naming every value that is still `???`, all of them together."""
    missing = [path for path, value in leaves(_raw(cfg)) if value == MISSING]
    if missing:
        # Hydra's command line counts the entries of a list with a dot
        override = missing[0].replace('[', '.').replace(']', '')
        raise VtbConfigError(
            'values without a default: ' + ', '.join(missing),
            field=', '.join(missing),
            got=MISSING,
            remedy=f'set them in your YAML or on the command line, for example {override}=VALUE',
        )


def check_values(cfg: DictConfig | Mapping[str, Any], cls: type = TrainConfig) -> None:
    """Raises VtbConfigError for the first value whose type or range is not what the fields of `cls` say."""
    raw = _raw(cfg)
    conf = OmegaConf.create(_without_resolvers(raw))
    for path, value, key in typed_values(raw, section_of(cls)):
        key.check(path, _resolved(conf, path, value))
    for name in ('freeze_params', 'prevent_freeze_params'):
        for index, pattern in enumerate(OmegaConf.select(conf, f'model.{name}') or ()):
            try:
                re.compile(str(pattern))
            except re.error as error:
                raise VtbConfigError(
                    f'the pattern is not a regular expression: {error}',
                    field=f'model.{name}[{index}]',
                    got=pattern,
                    remedy="NeMo's patterns are Python regular expressions, as in '^llm\\..+$'",
                ) from error


def check_budget(cfg: DictConfig | Mapping[str, Any]) -> None:
    """Raises VtbConfigError unless the token shares of `data.budget` (if there are any) sum to 1 within 1e-6."""
    budget = OmegaConf.select(OmegaConf.create(_raw(cfg)), 'data.budget')
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


def _check_loader_keys(cfg: DictConfig | Mapping[str, Any], unused: Sequence[str]) -> None:
    """What NeMo's loader would do to the data must not be left out in silence: other data would be trained on."""
    conf = OmegaConf.create(_raw(cfg))
    for path in unused:
        name = path.rpartition('.')[2]
        if name not in REFUSED_LOADER_KEYS:
            continue
        value = OmegaConf.select(conf, path, throw_on_missing=False)
        if value != REFUSED_LOADER_KEYS[name]:
            raise VtbConfigError(
                "NeMo's loader would change the data by this key; here nobody does.",
                field=path,
                got=value,
                allowed=REFUSED_LOADER_KEYS[name],
                remedy='change the data before training, and delete the key; docs/nemo.md lists all keys'
                if name not in section_of(TrainLoaderKeys).keys
                else f'data.train_ds.{name}: validation and test data are heard as they are',
            )


def _check_monitor(cfg: DictConfig | Mapping[str, Any]) -> None:
    """A checkpoint callback that waits for a metric that nobody logs would stop the run at its first validation."""
    conf = OmegaConf.create(_raw(cfg))
    path = 'exp_manager.checkpoint_callback_params.monitor'
    monitor = OmegaConf.select(conf, path)
    if OmegaConf.select(conf, 'data.budget.auto') and not OmegaConf.select(conf, 'gate.enabled'):
        raise VtbConfigError(
            'The share of text is raised by what the retention monitor measures, which is off.',
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
            allowed='val_loss, or a metric of the retention monitor with gate.enabled=true',
            remedy=f'gate.enabled=true, or {path}=val_loss',
        )


def _raw(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(cfg, DictConfig):
        return OmegaConf.to_container(cfg, resolve=False, throw_on_missing=False)  # type: ignore[return-value]
    return dict(cfg)


def leaves(node: object, path: str = '') -> Iterator[tuple[str, object]]:
    """Yields (dotted key, value) of every value that is no block and no list."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from leaves(value, join(path, name))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from leaves(value, f'{path}[{index}]')
    else:
        yield path, node


def _unknown_keys(cfg: object, node: Node, path: str) -> Iterator[tuple[str, set[str]]]:
    """Yields (dotted key, names that would have been known beside it)."""
    if isinstance(node, ListOf) and isinstance(cfg, list | tuple):
        for index, value in enumerate(cfg):
            yield from _unknown_keys(value, node.item, f'{path}[{index}]')
    elif isinstance(node, MapOf) and isinstance(cfg, Mapping):
        for name, value in cfg.items():
            yield from _unknown_keys(value, node.item, join(path, name))
    elif isinstance(node, Section) and isinstance(cfg, Mapping):
        more = more_keys(node.more, cfg) if node.more and not set(cfg) <= set(node.keys) else {}
        if more is None:
            return
        known = {**more, **node.keys}
        for name, value in cfg.items():
            if name in known:
                yield from _unknown_keys(value, known[name], join(path, name))
            else:
                yield join(path, name), set(known)


def _known_paths(node: Node, path: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yields (last name, dotted path) of the table's own keys, without those that repeat inside groups."""
    if isinstance(node, ListOf | MapOf):
        yield from _known_paths(node.item, f'{path}[]', depth + 1)
    elif isinstance(node, Section) and depth < 5:
        for name, child in node.keys.items():
            yield name, join(path, name)
            yield from _known_paths(child, join(path, name), depth + 1)


def _nearest(path: str, siblings: Collection[str], everywhere: Mapping[str, str]) -> str | None:
    parent, _, name = path.rpartition('.')
    close = difflib.get_close_matches(name, sorted(siblings), n=1, cutoff=0.6)
    if close:
        return join(parent, close[0])
    close = difflib.get_close_matches(name, sorted(everywhere), n=1, cutoff=0.8)
    return everywhere[close[0]] if close else None


def more_keys(provider: str, cfg: Mapping[str, Any]) -> Mapping[str, Node] | None:
    """The keys that somebody else's class takes, or None if that cannot be known (then all may pass)."""
    if provider == 'entry':
        return dict.fromkeys(NEMO_ENTRY_KEYS, Key())
    if provider in CLASSES:
        return keys_of_class(CLASSES[provider])
    target = cfg.get('_target_') or cfg.get('target') or DEFAULT_TARGETS.get(provider)
    if not isinstance(target, str) or not target.startswith(IMPORTABLE):
        return None
    names = keys_of_class(target)
    return None if names is None else {**dict.fromkeys(HYDRA_KEYS, Key()), **names}


@cache
def keys_of_class(dotted: str) -> Mapping[str, Node] | None:
    """The fields of a dataclass, or the parameters of another class or function; None where it cannot be imported."""
    module, _, name = dotted.rpartition('.')
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None
    return _fields(found) if is_dataclass(found) else _parameters(found)


def _parameters(found: Any) -> Mapping[str, Node] | None:
    """Those of the base classes included where a class passes `**kwargs` on to them."""
    names: dict[str, Node] = {}
    for base in found.__mro__ if inspect.isclass(found) else (found,):
        function = base.__dict__.get('__init__') if inspect.isclass(base) else base
        if function is None:
            continue
        # Lightning's Trainer is wrapped by a decorator that takes (*args, **kwargs)
        parameters = list(inspect.signature(inspect.unwrap(function)).parameters.values())
        names.update({p.name: Key() for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)})
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            names.pop('self', None)
            return names
    return None


def _fields(cls: Any) -> dict[str, Node]:
    """A field that holds another dataclass becomes a section of its own."""
    names: dict[str, Node] = {}
    for item in fields(cls):
        nested = item.default_factory() if callable(item.default_factory) else None
        names[item.name] = Section(_fields(nested)) if is_dataclass(nested) else Key()
    return names


def _without_resolvers(node: Any) -> Any:
    """A copy in which values that need a resolver (assets, environment) are opaque: a check fetches nothing."""
    if isinstance(node, Mapping):
        return {name: _without_resolvers(value) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_resolvers(value) for value in node]
    return _OPAQUE if isinstance(node, str) and re.search(r'\$\{[^{}]*:', node) else node


def _resolved(conf: DictConfig, path: str, value: object) -> object:
    """Returns the value behind `${other.key}`; values that need a resolver stay unresolved."""
    if not isinstance(value, str) or '${' not in value:
        return value
    try:
        found = OmegaConf.select(conf, path, throw_on_resolution_failure=True)
        return value if isinstance(found, str) and _OPAQUE in found else found
    except OmegaConfBaseException as error:
        raise VtbConfigError(
            'an interpolation points to a key that is not there',
            field=path,
            got=value,
            remedy=str(error).splitlines()[0],
        ) from error
