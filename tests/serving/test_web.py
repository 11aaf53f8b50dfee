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
"""The page of `vtb web`: the command in a process of its own, real Chromium in front of it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsers import BROWSER, FLAGS, needs_browser
from fastapi import FastAPI

from nemo_vtb.config.schema import WebConfig
from nemo_vtb.data.conversation import Text
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.serving.chat import ChatSession
from nemo_vtb.serving.engine import Engine, Sampling
from nemo_vtb.serving.listen import bind, read_auth

ROOT = Path(__file__).resolve().parents[2]
AUTH, TOKENS = ('ann', 's3cret'), 12
pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def site(spoken_model: Any, wavs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page of the tiny model; afterwards the process is gone, and with it all that was uploaded."""
    folder = tmp_path_factory.mktemp('web')
    spoken_model.save_to(str(folder / 'tiny.nemo'))
    entries = [('audio', wavs[1], 'User'), ('text', 'Which room?', 'User'), ('text', 'The hall.', 'Assistant')]
    turns = [{'type': kind, 'value': value, 'from': role} for kind, value, role in entries]
    (folder / 'try.jsonl').write_text(json.dumps({'id': 'a', 'conversations': turns}) + '\n')
    (folder / 'tmp').mkdir()
    command = [sys.executable, '-m', 'nemo_vtb.cli', 'web', str(folder / 'tiny.nemo'), '--port', '0']
    command += ['--examples', str(folder / 'try.jsonl'), '--max-new-tokens', str(TOKENS), '--max-recordings', '2']
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'VTB_WEB_AUTH': ':'.join(AUTH), 'TMPDIR': str(folder / 'tmp')}
    with (folder / 'log').open('w') as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        while 'open http' not in (said := (folder / 'log').read_text()):
            assert process.poll() is None, said
            time.sleep(0.1)
        yield said.partition('open ')[2].split()[0]
        process.terminate()
        assert process.wait(timeout=60) == 0, (folder / 'log').read_text()
        assert not list((folder / 'tmp').glob('vtb-web-*'))
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope='module')
def browser(wavs: list[str]) -> Iterator[Any]:
    """Chromium whose microphone hears a recording."""
    from playwright.sync_api import sync_playwright

    microphone = ('--use-fake-ui-for-media-stream', '--use-fake-device-for-media-stream')
    heard = f'--use-file-for-fake-audio-capture={wavs[2]}'
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=[*FLAGS, *microphone, heard])
        yield found
        found.close()


@pytest.fixture(scope='module')
def entered(site: str, browser: Any) -> Any:
    """What a browser keeps of a login; a wrong password is refused."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(site)
    for password, text in (('wrong', 'Incorrect'), (AUTH[1], 'hears recordings')):
        page.get_by_label('username').fill(AUTH[0])
        page.get_by_label('password').fill(password)
        page.get_by_role('button', name='Login').click()
        page.get_by_text(text).first.wait_for()
    state = context.storage_state()
    context.close()
    return state


class Sheet:
    """One open page."""

    def __init__(self, page: Any, site: str) -> None:
        self.page, self.asked, self.complaints = page, list[str](), list[str]()
        page.set_default_timeout(120_000)
        page.on('request', lambda request: self.asked.append(request.url))
        page.on('pageerror', lambda error: self.complaints.append(str(error)))
        page.on('console', lambda said: self.complaints.append(said.text) if said.type == 'error' else None)
        page.goto(site)
        page.locator('#question textarea').wait_for()

    def attach(self, *files: str) -> None:
        self.page.set_input_files('#question input[type=file]', list(files))
        self.page.wait_for_function(f'document.querySelectorAll("#question .thumbnail-item").length == {len(files)}')

    def ask(self, text: str, *files: str) -> None:
        """Type a question and send it; waits until it has been answered."""
        before = len(self.answers())
        if files:
            self.attach(*files)
        self.page.fill('#question textarea', text)
        self.page.locator('#question textarea').press('Enter')
        self.wait_for_answer(before + 1)

    def wait_for_answer(self, number: int) -> None:
        done = f'document.querySelectorAll("#ours [data-testid=bot]").length == {number} &&'
        done += 'document.querySelector("#question .submit-button")'
        # twice: the first piece may be drawn before the button of a question that has been sent
        for _ in range(2):
            self.page.wait_for_function(done)
            self.page.wait_for_timeout(500)

    def answers(self, which: str = 'ours') -> list[str]:
        return [plain(text) for text in self.page.locator(f'#{which} [data-testid=bot]').all_inner_texts()]

    def notice(self, with_text: str) -> str:
        said = self.page.locator('#notice [role=alert]', has_text=with_text)
        said.wait_for()
        return str(said.inner_text())


def plain(text: str) -> str:
    return ' '.join(text.split())


@pytest.fixture
def sheet(site: str, browser: Any, entered: Any) -> Iterator[Sheet]:
    context = browser.new_context(storage_state=entered, permissions=['microphone'])
    yield Sheet(context.new_page(), site)
    context.close()


def session(engine: Engine) -> ChatSession:
    return ChatSession(engine, sampling=Sampling(max_new_tokens=TOKENS))


def told(pieces: Iterator[str]) -> str:
    return plain(''.join(pieces))


# ---- a conversation


@needs_browser
def test_a_conversation_of_text_and_recordings(sheet: Sheet, engine: Engine, wavs: list[str]) -> None:
    """Answers are those of `vtb chat`, come in pieces, and refer to what was said; no request leaves this machine."""
    sheet.page.evaluate("""() => {
        window.seen = []
        new MutationObserver(() => {
            const said = [...document.querySelectorAll('#ours [data-testid=bot]')].at(-1)?.innerText
            if (said && window.seen.at(-1) !== said) window.seen.push(said)
        }).observe(document.querySelector('#ours'), {subtree: true, childList: true, characterData: true})
    }""")
    chat = session(engine)
    first = told(chat.ask([chat.recording(wavs[0]), Text('What is it about?')]))
    second = told(chat.ask([chat.recording(wavs[3]), chat.recording(wavs[1]), Text('And these?')]))
    third = told(chat.ask([Text('Which was longer?')]))
    assert first and second and third
    sheet.ask('What is it about?', wavs[0])
    pieces = [plain(text) for text in sheet.page.evaluate('window.seen')]
    assert len(set(pieces)) > 2 and all(first.startswith(piece) for piece in pieces)
    sheet.ask('And these?', wavs[3], wavs[1])
    sheet.ask('Which was longer?')
    assert sheet.answers() == [first, second, third]
    assert sheet.page.locator('#ours [data-testid=waveform-Audio]').count() == 3

    sheet.page.get_by_text('What the LLM reads').click()
    assert sheet.page.locator('#prompt textarea').input_value() == chat.show()
    assert '<audio 3.mp3: 1.50 s' in chat.show()
    facts = sheet.page.inner_text('#facts')
    assert chat.last is not None and f'{chat.last.prompt_tokens} tokens, {chat.last.reused} of them' in facts

    hosts = {httpx.URL(url).host for url in sheet.asked if not url.startswith(('data:', 'blob:'))}
    assert hosts == {'127.0.0.1'} and sheet.complaints == []


@needs_browser
def test_the_browser_itself_refuses_other_hosts(sheet: Sheet) -> None:
    refused = sheet.page.evaluate("""async () => {
        const refused = []
        document.addEventListener('securitypolicyviolation', e => refused.push(e.effectiveDirective))
        await fetch('http://192.0.2.1/').catch(() => {})
        document.body.append(Object.assign(new Image(), {src: 'http://192.0.2.1/a.png'}))
        await new Promise(done => setTimeout(done, 100))
        return refused
    }""")
    assert set(refused) == {'connect-src', 'img-src'}


@needs_browser
def test_the_base_llm_beside(sheet: Sheet, engine: Engine, wavs: list[str]) -> None:
    chat = session(engine)
    ours = [told(chat.ask([Text('Open the door.')])), told(chat.ask([chat.recording(wavs[1]), Text('What?')]))]
    base = told(chat.base_answer())
    assert base != ours[1]
    assert not sheet.page.locator('#base').is_visible()
    sheet.ask('Open the door.')
    sheet.page.get_by_label('Base LLM beside').check()
    sheet.page.locator('#base').wait_for()
    sheet.ask('What?', wavs[1])
    assert sheet.answers() == ours and sheet.answers('base') == ['-', base]


@needs_browser
def test_with_the_keyboard_alone(sheet: Sheet, engine: Engine, wavs: list[str]) -> None:
    chat = session(engine)
    expected = [told(chat.ask([chat.recording(wavs[0]), Text('What?')])), told(chat.ask([Text('Why?')]))]
    keys = sheet.page.keyboard

    def go_to(label: str) -> None:
        for _ in range(40):
            keys.press('Tab')
            element = 'document.activeElement'
            if label in sheet.page.evaluate(f'{element}.ariaLabel ?? {element}.placeholder ?? {element}.innerText'):
                return
        raise AssertionError(label)

    choosers: list[Any] = []
    sheet.page.on('filechooser', lambda chooser: choosers.append(chooser))
    go_to('Upload a file')
    while not choosers:  # the parts of the page come one by one, and a key may be too early
        keys.press('Enter')
        sheet.page.wait_for_timeout(500)
    choosers[0].set_files(wavs[0])
    sheet.page.locator('#question .thumbnail-item').wait_for()
    go_to('Ask something')
    keys.type('What?')
    keys.press('Enter')
    sheet.wait_for_answer(1)
    keys.type('Why?')  # the question is still in focus
    keys.press('Enter')
    sheet.wait_for_answer(2)
    assert sheet.answers() == expected
    go_to('Take back')
    keys.press('Enter')
    sheet.wait_for_answer(1)
    assert sheet.page.locator('#question textarea').input_value() == 'Why?'


@needs_browser
def test_what_cannot_be_answered_is_said(sheet: Sheet, engine: Engine, wavs: list[str], tmp_path: Path) -> None:
    chat = session(engine)
    first, second = told(chat.ask([Text('Open the door.')])), told(chat.ask([chat.recording(wavs[0]), Text('What?')]))
    bad = tmp_path / 'notes of mine.wav'
    bad.write_text('no sound')
    sheet.ask('Open the door.')
    for files, said in (([str(bad)], 'notes of mine.wav: '), (wavs[:3], 'max_recordings')):
        sheet.attach(*files)
        sheet.page.fill('#question textarea', 'What?')
        sheet.page.locator('#question textarea').press('Enter')
        notice = sheet.notice(said)
        assert str(tmp_path) not in notice and 'vtb-web' not in notice
        assert sheet.answers() == [first]
        assert sheet.page.locator('#question textarea').input_value() == 'What?'  # to be mended
        for _ in files:
            sheet.page.get_by_label('Remove file').first.click()
    sheet.ask('What?', wavs[0])
    assert sheet.answers() == [first, second]
    assert sheet.page.locator('#notice [role=alert]').count() == 0


@needs_browser
def test_settings_examples_and_a_new_conversation(sheet: Sheet, engine: Engine, wavs: list[str]) -> None:
    chat = session(engine)
    chat.system, chat.sampling = 'Be brief.', Sampling(max_new_tokens=TOKENS, temperature=2.0, seed=7)
    expected = told(chat.ask([chat.recording(wavs[1]), Text('Which room?')]))
    sheet.page.get_by_text('Settings').click()
    sheet.page.get_by_label('System prompt').fill('Be brief.')
    sheet.page.get_by_label('number input for Temperature').fill('2')
    sheet.page.get_by_label('Seed').fill('7')
    sheet.page.get_by_role('button', name='Which room?').click()
    sheet.page.locator('#question .thumbnail-item').wait_for()
    sheet.page.locator('#question textarea').press('Enter')
    sheet.wait_for_answer(1)
    assert sheet.answers() == [expected]
    sheet.page.get_by_role('button', name='Answer again').click()
    sheet.page.wait_for_timeout(500)
    sheet.wait_for_answer(1)
    assert sheet.answers() == [expected]
    sheet.page.get_by_role('button', name='New conversation').click()
    sheet.wait_for_answer(0)
    sheet.ask('Which room?')
    chat = session(engine)
    chat.system, chat.sampling = 'Be brief.', Sampling(max_new_tokens=TOKENS, temperature=2.0, seed=7)
    assert sheet.answers() == [told(chat.ask([Text('Which room?')]))]


@needs_browser
def test_the_microphone(sheet: Sheet) -> None:
    sheet.page.get_by_label('Record audio').click()
    sheet.page.get_by_label('Start recording').click()
    sheet.page.wait_for_timeout(1200)
    sheet.page.get_by_label('Stop recording').click()
    sheet.page.get_by_label('Attach audio').click()
    sheet.page.locator('#question .thumbnail-item').wait_for()
    sheet.ask('What do you hear?')
    sheet.page.get_by_text('What the LLM reads').click()
    read = sheet.page.locator('#prompt textarea').input_value()
    seconds = float(read.partition('<audio ')[2].partition(': ')[2].split()[0])
    assert 0.5 < seconds < 20 and sheet.answers()[0]


# ---- who may come in, and what may be asked for


@needs_browser
def test_nothing_without_a_password_and_no_other_file(site: str, entered: Any, wavs: list[str]) -> None:
    outside = httpx.Client(base_url=site, trust_env=False)
    inside = httpx.Client(base_url=site, trust_env=False, cookies={c['name']: c['value'] for c in entered['cookies']})
    with outside, inside:
        assert outside.get('/config').status_code == 401 and inside.get('/config').status_code == 200
        assert outside.post('/gradio_api/upload', files={'files': b'x'}).status_code == 401
        for path in (__file__, wavs[0], f'{ROOT}/setup.py'):
            assert inside.get(f'/gradio_api/file={path}').status_code == 403
        config = inside.get('/config').json()
        boxes = [c['id'] for c in config['components'] if c['props'].get('elem_id') == 'question']
        [number] = [d['id'] for d in config['dependencies'] if [boxes[0], 'submit'] in d['targets']]
        for path in (wavs[0], 'http://192.0.2.1/a.wav'):
            files = [{'path': path, 'meta': {'_type': 'gradio.FileData'}}]
            data = [{'text': 'x', 'files': files}, '', 0, 1, 8, '', False]
            body = {'data': data, 'fn_index': number, 'session_hash': 'x'}
            assert inside.post('/gradio_api/queue/join', json=body).status_code == 200
            events = inside.get('/gradio_api/queue/data', params={'session_hash': 'x'}, timeout=60).text
            assert '"success":false' in events.replace(' ', ''), events
            assert ('must be uploaded' in events) == ('://' in path)


def test_name_and_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('VTB_WEB_AUTH', raising=False)
    assert read_auth(WebConfig()) is None
    assert read_auth(WebConfig(auth='ann:a:b')) == ('ann', 'a:b')
    monkeypatch.setenv('VTB_WEB_AUTH', 'tom:x')
    assert read_auth(WebConfig()) == ('tom', 'x') and read_auth(WebConfig(auth='ann:y')) == ('ann', 'y')
    monkeypatch.delenv('VTB_WEB_AUTH')
    for settings, field in ((WebConfig(auth='ann'), 'auth'), (WebConfig(share=True), 'share')):
        with pytest.raises(VtbConfigError) as caught:
            read_auth(settings)
        assert caught.value.field == field


def test_a_port_that_is_taken() -> None:
    import socket

    with socket.create_server(('127.0.0.1', 0)) as taken:
        with pytest.raises(VtbConfigError) as caught:
            bind(FastAPI(), WebConfig(port=taken.getsockname()[1]), 1)
        assert caught.value.field == 'port'
