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
"""What every script does first: stay offline, and leave the terminal to its own lines."""

import logging
import os
import re
import sys
import warnings

# a dotted key and its value; a number in the key is a place in a list, which ++ cannot reach
_OVERRIDE = re.compile(r'[a-z]\w*(\.[A-Za-z_]\w*)+=')

_CHATTY = (
    'lightning.fabric',
    'lightning.pytorch',
    'lightning_fabric',
    'numexpr',
    'nv_one_logger',
    'pytorch_lightning',
    'torch.distributed',
)


def start_script(config: type | None = None) -> None:
    """To be called before the heavy imports, some of which announce themselves; HF_HUB_OFFLINE=0 allows the hub.

    Args:
        config: The dataclass of the script's keys, printed by `--help` before Hydra shows what is composed.
    """
    if config is not None and '--help' in sys.argv[1:]:
        from nemo_vtb.config.keys import help_text

        sys.stdout.write(help_text(config) + '\n\n')
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    # idle threads that spin steal the core that loader processes and neighbours need
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    # Hydra refuses a key that no file has without naming the nearest one; with ++ it reaches our own check, which does
    sys.argv[1:] = [f'++{word}' if _OVERRIDE.match(word) else word for word in sys.argv[1:]]
    if not sys.stdout.isatty():
        os.environ.setdefault('COLUMNS', '120')  # tables in a file need not be as narrow as rich's 80
    warnings.filterwarnings('ignore', message=r'\s*Future Hydra versions will no longer change')
    if not os.environ.get('NEMO_LOG_LEVEL'):
        logging.getLogger('nv_one_logger').setLevel(logging.ERROR)
        # NeMo imports megatron-core where it is installed, which then misses kernels that are not used here
        warnings.filterwarnings('ignore', message='Transformer Engine and Apex are not installed')


def quiet_logs() -> None:
    """Other libraries show warnings and errors alone; NEMO_LOG_LEVEL=INFO shows all."""
    if os.environ.get('NEMO_LOG_LEVEL'):
        return
    from nemo.utils import logging as nemo_logging
    from transformers.utils import logging as hf_logging

    nemo_logging.setLevel(nemo_logging.ERROR)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', module=r'(lightning|torch|transformers|nemo|pydub|hydra)\b')
