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
"""nemo_vtb: joint speech-text supervised fine-tuning of speech LLMs (VoiceTextBlender) as a NeMo plugin.

Importing this package loads neither torch nor NeMo: the public names (`docs/api.md`) are resolved on first use, and
the package's targets are put on NeMo's allow-list as soon as NeMo itself is imported (`registry.py`).

>>> from nemo_vtb import VoiceTextBlender, VtbDataModule, build_trainer, evaluate, restore  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nemo_vtb.package_info import __version__
from nemo_vtb.registry import ASSET_PROVIDERS, register

if TYPE_CHECKING:
    from nemo_vtb.assets.resolve import resolve_assets as resolve_assets
    from nemo_vtb.config.check import check_config as check_config
    from nemo_vtb.config.salm import complete_config as complete_config
    from nemo_vtb.config.schema import AlignConfig as AlignConfig
    from nemo_vtb.config.schema import EvalConfig as EvalConfig
    from nemo_vtb.config.schema import ExportConfig as ExportConfig
    from nemo_vtb.config.schema import GenerateConfig as GenerateConfig
    from nemo_vtb.config.schema import TrainConfig as TrainConfig
    from nemo_vtb.constants import KINDS as KINDS
    from nemo_vtb.data.conversation import Audio as Audio
    from nemo_vtb.data.conversation import Conversation as Conversation
    from nemo_vtb.data.conversation import Text as Text
    from nemo_vtb.data.conversation import Turn as Turn
    from nemo_vtb.data.datamodule import VtbDataModule as VtbDataModule
    from nemo_vtb.data.template import ChatRenderer as ChatRenderer
    from nemo_vtb.errors import VtbError as VtbError
    from nemo_vtb.errors import report_errors as report_errors
    from nemo_vtb.evaluation.inputs import conversations_from_audio as conversations_from_audio
    from nemo_vtb.evaluation.inputs import conversations_from_manifest as conversations_from_manifest
    from nemo_vtb.evaluation.inputs import evaluation_plan as evaluation_plan
    from nemo_vtb.evaluation.inputs import print_answers as print_answers
    from nemo_vtb.evaluation.runner import evaluate as evaluate
    from nemo_vtb.evaluation.runner import evaluate_file as evaluate_file
    from nemo_vtb.export.export import default_export_path as default_export_path
    from nemo_vtb.export.export import export_model as export_model
    from nemo_vtb.export.questions import export_questions as export_questions
    from nemo_vtb.model.blender import VoiceTextBlender as VoiceTextBlender
    from nemo_vtb.model.pretrained import restore as restore
    from nemo_vtb.scripts import quiet_logs as quiet_logs
    from nemo_vtb.scripts import run_alignment as run_alignment
    from nemo_vtb.scripts import run_evaluation as run_evaluation
    from nemo_vtb.scripts import run_export as run_export
    from nemo_vtb.scripts import run_generation as run_generation
    from nemo_vtb.scripts import run_training as run_training
    from nemo_vtb.scripts import start_script as start_script
    from nemo_vtb.training.align import align_adapter as align_adapter
    from nemo_vtb.training.history import History as History
    from nemo_vtb.training.progress_bar import ProgressLine as ProgressLine
    from nemo_vtb.training.run import build_model as build_model
    from nemo_vtb.training.run import build_trainer as build_trainer
    from nemo_vtb.training.summary import print_summary as print_summary

_LAZY = {
    'KINDS': 'nemo_vtb.constants:KINDS',
    'AlignConfig': 'nemo_vtb.config.schema:AlignConfig',
    'Audio': 'nemo_vtb.data.conversation:Audio',
    'ChatRenderer': 'nemo_vtb.data.template:ChatRenderer',
    'Conversation': 'nemo_vtb.data.conversation:Conversation',
    'EvalConfig': 'nemo_vtb.config.schema:EvalConfig',
    'ExportConfig': 'nemo_vtb.config.schema:ExportConfig',
    'GenerateConfig': 'nemo_vtb.config.schema:GenerateConfig',
    'History': 'nemo_vtb.training.history:History',
    'ProgressLine': 'nemo_vtb.training.progress_bar:ProgressLine',
    'Text': 'nemo_vtb.data.conversation:Text',
    'TrainConfig': 'nemo_vtb.config.schema:TrainConfig',
    'Turn': 'nemo_vtb.data.conversation:Turn',
    'VoiceTextBlender': 'nemo_vtb.model.blender:VoiceTextBlender',
    'VtbDataModule': 'nemo_vtb.data.datamodule:VtbDataModule',
    'VtbError': 'nemo_vtb.errors:VtbError',
    'align_adapter': 'nemo_vtb.training.align:align_adapter',
    'build_model': 'nemo_vtb.training.run:build_model',
    'build_trainer': 'nemo_vtb.training.run:build_trainer',
    'check_config': 'nemo_vtb.config.check:check_config',
    'complete_config': 'nemo_vtb.config.salm:complete_config',
    'conversations_from_audio': 'nemo_vtb.evaluation.inputs:conversations_from_audio',
    'conversations_from_manifest': 'nemo_vtb.evaluation.inputs:conversations_from_manifest',
    'default_export_path': 'nemo_vtb.export.export:default_export_path',
    'evaluate': 'nemo_vtb.evaluation.runner:evaluate',
    'evaluate_file': 'nemo_vtb.evaluation.runner:evaluate_file',
    'evaluation_plan': 'nemo_vtb.evaluation.inputs:evaluation_plan',
    'export_model': 'nemo_vtb.export.export:export_model',
    'export_questions': 'nemo_vtb.export.questions:export_questions',
    'print_answers': 'nemo_vtb.evaluation.inputs:print_answers',
    'print_summary': 'nemo_vtb.training.summary:print_summary',
    'quiet_logs': 'nemo_vtb.scripts:quiet_logs',
    'report_errors': 'nemo_vtb.errors:report_errors',
    'resolve_assets': 'nemo_vtb.assets.resolve:resolve_assets',
    'restore': 'nemo_vtb.model.pretrained:restore',
    'run_alignment': 'nemo_vtb.scripts:run_alignment',
    'run_evaluation': 'nemo_vtb.scripts:run_evaluation',
    'run_export': 'nemo_vtb.scripts:run_export',
    'run_generation': 'nemo_vtb.scripts:run_generation',
    'run_training': 'nemo_vtb.scripts:run_training',
    'start_script': 'nemo_vtb.scripts:start_script',
}

__all__ = ['__version__', 'register']
__all__.extend(_LAZY)


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}; it has: {", ".join(__all__)}')
    module, _, original = _LAZY[name].partition(':')
    value = getattr(import_module(module), original)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))


def _register_corpora() -> None:
    import_module('nemo_vtb.factory.demo')


register()
ASSET_PROVIDERS.append(_register_corpora)
