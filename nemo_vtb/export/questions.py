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
"""Prompts for the comparison of two forms of a model: text, recordings, several turns, length."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.data.conversation import Audio, Conversation, Text, Turn, conversation_from_dict, conversation_to_dict

if TYPE_CHECKING:
    from nemo_vtb.model.blender import VoiceTextBlender

_SECONDS = (0.8, 1.5, 2.3, 12.0)


@dataclass(frozen=True, slots=True)
class Question:
    """A named conversation that ends with a user turn; its recordings are 16 kHz mono WAV files, absolute paths."""

    name: str
    conversation: Conversation

    def request(self, model: 'VoiceTextBlender') -> dict[str, Any]:
        """What a process needs that answers it: token ids with slots, files, and the conversation itself."""
        return {
            'ids': model.renderer.render_prompt(self.conversation).ids,
            'audios': [audio.path for audio in self.conversation.audios],
            'conversation': conversation_to_dict(self.conversation),
        }


def default_questions(folder: Path, clips: Sequence[str | Path] | None = None) -> list[Question]:
    """Twelve questions: text only, one and three recordings, several turns, long ones.

    Args:
        folder: Where clips are made.
        clips: Recordings to ask about, four at least, the last one long; None: synthetic sounds.
    """
    a, b, c, long = (Audio(str(path)) for path in (clips or make_clips(folder))[:4])
    story = ' '.join(f'In the year {1900 + i} the lamp in the kitchen was moved to the office.' for i in range(40))
    turns: dict[str, list[Turn]] = {
        'text': [_user('Which room is it about?')],
        'text, system': [Turn('system', (Text('Answer with one word.'),)), _user('Is the sea blue?')],
        'text, three turns': [_user('Say yes.'), _model('Yes.'), _user('Say no.'), _model('No.'), _user('And now?')],
        'text, long': [_user(story + ' Where is the lamp?')],
        'recording only': [_user(a)],
        'recording first': [_user(b, 'Transcribe the recording.')],
        'recording last': [_user('Transcribe the recording:', c)],
        'recording within': [_user('Does the speaker say', a, 'or not?')],
        'three recordings': [_user('First', a, 'second', b, 'third', c, 'Which is the longest?')],
        'three turns, a recording each': [_user(a), _model('A lamp.'), _user('And', b), _model('A fan.'), _user(c)],
        'text after a recording': [_user('Listen:', b), _model('I did.'), _user('What did the speaker say?')],
        'long recording': [_user('Translate into Spanish.', long)],
    }
    return [Question(name, Conversation(name, tuple(parts))) for name, parts in turns.items()]


def make_clips(folder: Path) -> list[Path]:
    """Four sounds of a voice's range in syllables, each different, the last one long."""
    import numpy as np
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, seconds in enumerate(_SECONDS):
        time = np.arange(int(SAMPLE_RATE * seconds)) / SAMPLE_RATE
        rng = np.random.default_rng(number)
        pitch = 120 + 40 * number + 25 * np.sin(2 * np.pi * 0.7 * time)
        tone = sum(np.sin(2 * np.pi * k * np.cumsum(pitch) / SAMPLE_RATE) / k for k in (1, 2, 3, 5, 8))
        syllables = np.clip(np.sin(2 * np.pi * (3 + number) * time), 0, None)
        signal = 0.15 * tone * syllables + 0.01 * rng.standard_normal(len(time))
        paths.append(folder / f'clip{number}.wav')
        soundfile.write(paths[-1], signal.astype(np.float32), SAMPLE_RATE, subtype='FLOAT')
    return paths


def export_questions(files: Sequence[str | Path], folder: Path, each: int) -> list[Question]:
    """The first conversations of files in NeMo's multimodal_conversation format, each without its last answer.

    Args:
        files: JSONL files.
        folder: Where their recordings go as 16 kHz WAV.
        each: How many of each file.

    Raises:
        VtbDataError: A file or a line cannot be read.
    """
    import soundfile

    from nemo_vtb.data.audio import read_audio
    from nemo_vtb.data.conversation import read_jsonl

    folder.mkdir(parents=True, exist_ok=True)
    questions = []
    for path in map(Path, files):
        lines = [line for _, _, line in read_jsonl(path)][:each]
        for number, line in enumerate(lines):
            conversation = conversation_from_dict(line, base_dir=path.parent).prompt
            name = f'{path.name.split(".")[0]} {number}'
            clips = []
            for place, audio in enumerate(conversation.audios):
                clip = folder / f'{name.replace(" ", "-")}-{place}.wav'
                soundfile.write(clip, read_audio(audio, sample_rate=SAMPLE_RATE), SAMPLE_RATE, subtype='FLOAT')
                clips.append(Audio(str(clip.resolve())))
            questions.append(Question(name, _with_clips(conversation, clips)))
    return questions


def _with_clips(conversation: Conversation, clips: Sequence[Audio]) -> Conversation:
    left = iter(clips)
    turns = tuple(
        Turn(t.role, tuple(next(left) if isinstance(p, Audio) else p for p in t.parts)) for t in conversation.turns
    )
    return Conversation(conversation.id, turns, conversation.kind, conversation.source)


def _user(*parts: str | Audio) -> Turn:
    return Turn('user', tuple(Text(p) if isinstance(p, str) else p for p in parts))


def _model(text: str) -> Turn:
    return Turn('assistant', (Text(text),))
