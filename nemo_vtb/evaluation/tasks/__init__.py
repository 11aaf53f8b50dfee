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
"""The suites: name -> the tasks of it. To add a benchmark, write a `Task` and name it here."""

from collections.abc import Callable, Mapping, Sequence

from nemo_vtb.evaluation.task import Context, Task
from nemo_vtb.evaluation.tasks.asr import Transcribe
from nemo_vtb.evaluation.tasks.ast import Translate
from nemo_vtb.evaluation.tasks.emergent import EMERGENT_TASKS, Emergent
from nemo_vtb.evaluation.tasks.instructions import Instructions
from nemo_vtb.evaluation.tasks.ladder import ladder_tasks
from nemo_vtb.evaluation.tasks.mixed_modal import MixedModal
from nemo_vtb.evaluation.tasks.speech_qa import SpeechQa
from nemo_vtb.evaluation.tasks.text import Chats, FirstChats, text_tasks

SUITES: Mapping[str, Callable[[Context], Sequence[Task]]] = {
    'speech': lambda _: [Transcribe(), Translate(), SpeechQa(), MixedModal(), Chats(), FirstChats()],
    'text': text_tasks,
    'instruct': lambda _: [Instructions(name) for name in ('typed', 'spoken')],
    'emergent': lambda _: [Emergent(name) for name in EMERGENT_TASKS],
    'ladder': ladder_tasks,
}
"""What `vtb eval --suite` takes; a suite that cannot run raises VtbConfigError or VtbDataError with what it needs."""

ALL = tuple(SUITES)
"""The suites that need no data of the user: `--suite all`."""
