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
"""What is said in the recordings of a conversation, as far as that is known, in the form that CTC learns."""

import re
import unicodedata
from contextlib import suppress

from nemo_vtb.data.conversation import Conversation, task_of
from nemo_vtb.errors import VtbDataError


def transcript_of(text: str) -> str:
    """The form in which an adapter learns text: lower case, no punctuation but the apostrophe inside a word."""
    kept = ''.join(c if unicodedata.category(c)[0] in 'LMN' or c in "'’" else ' ' for c in text.lower())
    kept = re.sub(r"(?<!\w)'|'(?!\w)", ' ', kept.replace('’', "'"))
    return ' '.join(kept.split())


def transcripts_of(conversation: Conversation) -> list[str | None]:
    """Of each recording in order: its own `text`, or the answer of a recognition; None where neither is known."""
    answer = None
    if conversation.kind == 'asr_ast' and len(conversation.audios) == 1:
        with suppress(VtbDataError):  # a task that nobody knows is no recognition
            answer = conversation.answer if task_of(conversation) == 'asr' else None
    texts = [audio.text or answer for audio in conversation.audios]
    return [transcript_of(text) if text else None for text in texts]
