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
"""Names of assets in configurations become paths: once, after a configuration is composed and checked."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from nemo_vtb.assets.store import ensure
from nemo_vtb.config.check import leaves
from nemo_vtb.errors import VtbConfigError

PREFIX = 'asset:'


def resolve_asset(value: str) -> str:
    """Turn `asset:NAME` or `asset:NAME/sub/path` into a path of the cache; any other string comes back as it is.

    Args:
        value: For example `asset:whisper-tiny.en` or `asset:demo-corpus/text.train.jsonl`; shard patterns pass.

    Raises:
        VtbAssetError: The asset is unknown, or cannot be fetched.
        VtbConfigError: The asset has no such file.
    """
    if not value.startswith(PREFIX):
        return value
    name, _, sub = value.removeprefix(PREFIX).partition('/')
    root = Path(ensure(name)[name])
    path = root / sub if sub else root
    if not path.exists() and '{' not in sub and '_OP_' not in sub:
        raise VtbConfigError(
            f"the asset '{name}' holds no '{sub}'",
            field=value,
            allowed=', '.join(sorted(item.name for item in root.iterdir())[:40]),
        )
    return str(path)


def register_resolvers() -> None:
    """Make `${vtb_asset:NAME}` and `${vtb_asset:NAME/sub/path}` readable. Nothing is fetched before it is read."""
    OmegaConf.register_new_resolver('vtb_asset', lambda name: resolve_asset(PREFIX + name), replace=True)


def resolve_assets(cfg: DictConfig) -> DictConfig:
    """Put paths in the place of all `asset:NAME/...` and `${vtb_asset:NAME}/...` of a composed configuration.

    A file that `input_cfg` names is read for it, where it names assets.

    Args:
        cfg: The configuration; changed in place.

    Returns:
        The same configuration.

    Raises:
        VtbAssetError: An asset is unknown, or cannot be fetched.
        VtbConfigError: An asset has no such file.
    """
    register_resolvers()
    for path, value in leaves(OmegaConf.to_container(cfg, resolve=False, throw_on_missing=False)):
        if not isinstance(value, str):
            continue
        if path.endswith('input_cfg') and '${' not in value and Path(value).is_file():
            entries = OmegaConf.load(value)
            if 'asset:' in OmegaConf.to_yaml(entries):
                OmegaConf.update(cfg, path, entries, merge=False)
                return resolve_assets(cfg)
        elif 'vtb_asset:' in value or value.startswith(PREFIX):
            OmegaConf.update(cfg, path, resolve_asset(str(OmegaConf.select(cfg, path))), merge=False)
    return cfg
