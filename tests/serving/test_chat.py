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
"""A conversation: the kept cache changes no answer, an error changes nothing, a saved file is read again."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from test_engine import tokens_of

from nemo_vtb.data.conversation import Conversation, Text, Turn
from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.serving.chat import ChatSession
from nemo_vtb.serving.engine import Engine, Sampling

pytestmark = pytest.mark.unit


def parts(session: ChatSession, *said: str) -> list[Any]:
    return [session.recording(word) if Path(word).suffix else Text(word) for word in said]


def ask(session: ChatSession, *said: str) -> str:
    return ''.join(session.ask(parts(session, *said)))


@pytest.fixture
def session(engine: Engine) -> ChatSession:
    return ChatSession(engine, sampling=Sampling(max_new_tokens=10), system='Answer in short sentences')


def test_a_conversation_with_the_cache_says_what_generate_says(session: ChatSession, wavs: list[str]) -> None:
    told = [
        ('Open the door',),
        (wavs[0], 'What did he say?'),
        ('First', wavs[1], 'then', wavs[2]),
        ('yes',),
        (wavs[3],),
    ]
    reused, lengths = [], []
    for said in told:
        question = Turn('user', tuple(parts(session, *said)))
        turns = (Turn('system', (Text('Answer in short sentences'),)), *session.turns, question)
        expected = tokens_of(session.engine.model, Conversation('x', turns), 10)
        text = ask(session, *said)
        assert text == session.engine.tokenizer.decode(expected, skip_special_tokens=True).strip()
        assert session.last is not None and session.last.new_tokens == len(expected)
        assert session.turns[-1].text == text and session.last.finish_reason in ('stop', 'length')
        reused.append(session.last.reused)
        lengths.append(session.last.prompt_tokens)
    # each turn reads what is new: the end of the answer before, at most, and the question
    assert reused[0] == 0 and all(now >= before for now, before in zip(reused[1:], lengths, strict=False))


def test_without_the_cache_all_is_read_again(engine: Engine, wavs: list[str]) -> None:
    kept, plain = (ChatSession(engine, sampling=Sampling(max_new_tokens=6), keep_cache=k) for k in (True, False))
    for said in (('Open',), (wavs[0],), ('close', wavs[1])):
        assert ask(kept, *said) == ask(plain, *said)
        assert plain.last is not None and plain.last.reused == 0
    assert kept.last is not None and kept.last.reused > 0


def test_undo_and_retry(session: ChatSession, wavs: list[str]) -> None:
    first, turns = ask(session, 'Open the door'), list(session.turns)
    second = ask(session, wavs[0])
    assert ''.join(session.retry()) == second and len(session.turns) == 4
    assert session.undo().parts == tuple(parts(session, wavs[0])) and session.turns == turns
    assert ask(session, wavs[0]) == second
    session.undo()
    session.undo()
    assert session.turns == [] and ask(session, 'Open the door') == first
    session.undo()
    for action in (session.undo, lambda: list(session.retry())):
        with pytest.raises(VtbDataError):
            action()


def test_the_base_llm_answers_with_a_cache_of_its_own(session: ChatSession, wavs: list[str]) -> None:
    with_lora = ask(session, wavs[0], 'What?')
    session.use_lora = False
    base = ''.join(session.retry())
    conversation = session._conversation(session.turns[:-1])
    assert [base] == session.engine.model.answer([conversation], max_new_tokens=10, use_lora=False)
    session.use_lora = True
    assert ''.join(session.retry()) == with_lora != base
    assert session.last is not None and session.last.reused == session.last.prompt_tokens - 1


def test_the_base_llm_beside_changes_nothing(engine: Engine, session: ChatSession, wavs: list[str]) -> None:
    """It reads the conversation with our answers in it, and answers the last question alone."""
    ask(session, 'Open the door', wavs[0])
    ask(session, 'And now?')
    turns, last = list(session.turns), session.last
    base = ''.join(session.base_answer())
    assert session.turns == turns and session.last is last
    other = ChatSession(engine, sampling=session.sampling, system=session.system)
    other.turns, other.use_lora = list(turns), False
    assert base == ''.join(other.retry()) != turns[-1].text
    other.turns, other.use_lora = list(turns), True
    assert ask(session, wavs[1]) == ask(other, wavs[1])
    with pytest.raises(VtbDataError):
        list(ChatSession(engine).base_answer())


def test_a_conversation_that_is_too_long(engine: Engine, wavs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before a recording is encoded; an answer ends where the LLM can read no further."""
    monkeypatch.setattr(engine, '_stop_ids', frozenset())
    session = ChatSession(engine, sampling=Sampling(max_new_tokens=500))
    ask(session, 'Open')
    assert session.last is not None and session.last.new_tokens == 500
    length = session.last.prompt_tokens
    monkeypatch.setattr(engine, 'context', length + 7)
    session = ChatSession(engine, sampling=session.sampling)
    ask(session, 'Open')
    assert session.last is not None and (session.last.new_tokens, session.last.finish_reason) == (7, 'length')
    monkeypatch.setattr(engine, 'frames', None)
    for limited in (session, ChatSession(engine, max_prompt_tokens=length)):
        before = list(limited.turns)
        with pytest.raises(VtbDataError) as caught:
            ask(limited, wavs[4], 'Open')
        assert caught.value.field == 'max_prompt_tokens' and limited.turns == before


@pytest.mark.parametrize(
    ('content', 'reason'),
    [(None, 'audio_missing'), (b'', 'audio_empty_file'), (b'no sound at all', 'audio_unreadable')],
)
def test_a_bad_recording_is_named_and_changes_nothing(
    session: ChatSession, wavs: list[str], tmp_path: Path, content: bytes | None, reason: str
) -> None:
    ask(session, 'Open the door')
    turns, bad = list(session.turns), tmp_path / 'bad.wav'
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(VtbDataError) as caught:
        ask(session, str(bad))
    assert caught.value.reason == reason and session.turns == turns
    assert ask(session, wavs[0])


def test_a_recording_that_goes_bad_between_turns(session: ChatSession, wavs: list[str], tmp_path: Path) -> None:
    copy = tmp_path / 'a.wav'
    shutil.copy(wavs[0], copy)
    ask(session, str(copy))
    turns = list(session.turns)
    copy.unlink()
    with pytest.raises(VtbDataError):
        ask(session, 'and now?')
    assert session.turns == turns


def test_a_file_written_anew_is_heard_anew(session: ChatSession, wavs: list[str], tmp_path: Path) -> None:
    samples, rate = soundfile.read(wavs[0])
    copy = tmp_path / 'a.wav'
    heard = []
    for sound in (samples, samples[::-1] * np.linspace(0, 3, len(samples))):  # as long and as large
        soundfile.write(copy, sound, rate)
        heard.append(ask(session, str(copy)))
        fresh = ChatSession(session.engine, sampling=session.sampling, system=session.system)
        assert ask(fresh, str(copy)) == heard[-1]
        session.undo()
    assert heard[0] != heard[1]


def test_nothing_to_answer(session: ChatSession) -> None:
    with pytest.raises(VtbDataError):
        ask(session, '  ')
    assert session.turns == []


def test_an_answer_that_is_broken_off_leaves_no_turn(session: ChatSession) -> None:
    pieces = session.ask([Text('Tell me a story')])
    next(pieces)
    pieces.close()
    assert session.turns == [] and ask(session, 'Open the door')


def test_what_is_saved_is_read_by_training_and_by_the_manifest(
    session: ChatSession, wavs: list[str], tmp_path: Path
) -> None:
    from nemo_vtb.data.datamodule import VtbDataModule
    from nemo_vtb.evaluation.inputs import conversations_from_manifest

    ask(session, 'Listen to', wavs[0])
    ask(session, 'And this?', wavs[1], wavs[2])
    path = tmp_path / 'chat.jsonl'
    assert session.save(path) == 1
    last = session.turns[-1].text
    session.undo()
    assert session.save(path) == 2
    prompts, references = conversations_from_manifest(path, 'unused')
    assert references == [last, session.turns[-1].text] and prompts[1].turns[1:] == tuple(session.turns[:-1])
    assert len(prompts[0].audios) == 3 and prompts[0].turns[0].role == 'system'
    assert json.loads(path.read_text().splitlines()[0])['custom']['kind'] == 'mixed_modal'
    entry = {'type': 'multimodal_conversation', 'manifest_filepath': str(path)}
    keys = {'train_ds': {'input_cfg': [entry]}, 'index_dir': str(tmp_path / 'index'), 'num_workers': 0}
    model = session.engine.model
    data = VtbDataModule(keys | {'max_tokens': 400, 'rows_per_batch': 1}, model.renderer, model.frames, num_batches=1)
    data.setup('fit')
    row = next(iter(data.train_dataloader()))
    assert set(row.ids) <= {'chat-1', 'chat-2'} and not row.faults
    assert model.renderer.tokenizer.decode(row.labels[row.labels >= 0]).startswith(last[:5]) or len(row.ids) > 1


def test_an_empty_conversation_is_not_saved(session: ChatSession, tmp_path: Path) -> None:
    with pytest.raises(VtbDataError):
        session.save(tmp_path / 'a.jsonl')
    ask(session, 'Open the door')
    with pytest.raises(VtbConfigError) as caught:
        session.save(tmp_path)
    assert caught.value.field == 'save' and list(tmp_path.iterdir()) == []


def test_show_counts_the_frames_that_were_heard(
    engine: Engine, wavs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = engine.frames
    monkeypatch.setattr(engine, 'frames', lambda clips: [heard[::2] for heard in frames(clips)])  # as compressed
    session = ChatSession(engine, sampling=Sampling(max_new_tokens=4))
    ask(session, wavs[0], 'What?')
    [heard] = session._frames.values()
    assert f', {len(heard)} tokens>' in session.show()


def test_show_names_recordings_with_seconds_and_tokens(session: ChatSession, wavs: list[str]) -> None:
    ask(session, 'What is this?', wavs[0])
    shown = session.show()
    assert '<|im_start|>user\nWhat is this? <audio 0.wav: 0.60 s, 8 tokens>' in shown
    assert session.last is not None
    end = len(session.engine.model.renderer.render(session._conversation(session.turns)).ids) + 7
    assert shown.endswith(f'[{end} tokens]')
