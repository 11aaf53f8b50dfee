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
"""What ships inside this package, as assets like all others: adapters that were taught to hear (docs/hearing.md)."""

import shutil
from pathlib import Path

from nemo_vtb.assets.catalog import Job, register_file
from nemo_vtb.assets.models import check_sha256

_FOLDER = Path(__file__).with_name('shipped')


def build_adapter(job: Job) -> None:
    """Copy an adapter and its card out of the package, after a check of its digest.

    Raises:
        VtbAssetError: The file is not the one that was shipped.
    """
    name = job.asset.name
    source = _FOLDER / f'{name}.safetensors'
    check_sha256(source, str(job.params['sha256']), source.name)
    shutil.copyfile(source, job.into / 'adapter.safetensors')
    shutil.copyfile(_FOLDER / f'{name}.md', job.into / 'card.md')


register_file(Path(__file__).with_suffix('.yaml'), {'adapter': build_adapter})
