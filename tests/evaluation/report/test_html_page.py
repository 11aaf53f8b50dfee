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
"""The page of the report in a real browser: it loads nothing, plays its recordings, and fits a telephone."""

import asyncio
import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browsers import BROWSER, FLAGS, needs_browser
from evaluation_helpers import heard, kept, perplexity

from nemo_vtb.evaluation.report.collect import Subject, make_report, write_report
from nemo_vtb.evaluation.result import Evaluation, Metric, Sample

pytestmark = needs_browser


@pytest.fixture(scope='module')
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with everything that a report can show."""
    folder = tmp_path_factory.mktemp('page')
    tone = 0.3 * np.sin(2 * math.pi * 440 * np.arange(24000) / 16000)
    soundfile.write(folder / 'tone.wav', tone.astype(np.float32), 16000)
    kinds = ('text', 'asr_ast', 'speech_qa', 'mixed_modal')
    history = [
        {'type': 'train', 'step': s, 'losses': {k: 3 / (1 + s / 20) + i / 5 for i, k in enumerate(kinds)}}
        for s in range(1, 101)
    ]
    source = {'name': 'calls with a very long name of their own', 'kind': 'asr_ast', 'asked': 1.0, 'delivered': 1.0}
    ledger = {
        'tokens': 9000,
        'kinds': {'asr_ast': {'asked': 1.0, 'delivered': 1.0}},
        'sources': [source | {'tokens': 9000, 'audio_s': 700.0, 'epochs': 0.5, 'skips': {'too_long': 3}}],
    }
    subjects = []
    for name, wer in (('joint', 12.0), ('speech-only', 64.0)):
        rungs = [
            Metric('ladder', rung, '', 'exact match', 20, 40.0, (20.0, 60.0), 50.0 if rung == 'typed' else None)
            for rung in ('typed', 'speech')
        ]
        samples = (
            Sample('a#1', 'asr', 'calls', '\u25b6 tone (1.5 s)', 'one two', 'one too', (str(folder / 'tone.wav'),)),
            Sample('b#1', 'speech_qa', 'calls', '<b>Who?</b> \u25b6 gone', 'Anna', 'Tom', ('/nowhere/gone.wav',)),
        )
        metrics = (heard(wer), perplexity(10.1), *rungs, *kept(99.0, (97.0, 101.0)))
        subjects.append(Subject(name, Evaluation(metrics, samples), ledger, history))
    return write_report(make_report(subjects), folder)['html']


class Browser:
    """Chromium by its debugging protocol: what a page asked for, what it complained of, what it looks like."""

    def __init__(self, profile: Path) -> None:
        self.process = subprocess.Popen(
            [
                BROWSER,
                '--headless=new',
                '--remote-debugging-port=0',
                *FLAGS,
                f'--user-data-dir={profile}',
                'about:blank',
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.port = next(
            int(line.split(':')[-1].split('/')[0])
            for line in self.process.stderr
            if line.startswith('DevTools listening')
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()

    def visit(self, url: str, width: int, scripts: list[str]) -> tuple[list[Any], list[dict[str, Any]]]:
        """Open a page and evaluate expressions in it; returns their values and all events on the way."""
        return asyncio.run(self._visit(url, width, scripts))

    async def _visit(self, url: str, width: int, scripts: list[str]) -> tuple[list[Any], list[dict[str, Any]]]:
        import aiohttp

        events: list[dict[str, Any]] = []
        async with aiohttp.ClientSession() as session:
            async with session.get(f'http://127.0.0.1:{self.port}/json/list') as reply:
                target = next(t for t in json.loads(await reply.text()) if t['type'] == 'page')
            async with session.ws_connect(target['webSocketDebuggerUrl'], max_msg_size=0) as socket:
                number = 0

                async def receive() -> dict[str, Any]:
                    message = await asyncio.wait_for(socket.receive_json(), 60)
                    if 'method' in message:
                        events.append(message)
                    return message

                async def call(method: str, **params: Any) -> dict[str, Any]:
                    nonlocal number
                    number += 1
                    await socket.send_json({'id': number, 'method': method, 'params': params})
                    while (message := await receive()).get('id') != number:
                        pass
                    assert 'error' not in message, message
                    return message['result']

                for domain in ('Page', 'Network', 'Log', 'Runtime'):
                    await call(f'{domain}.enable')
                await call(
                    'Emulation.setDeviceMetricsOverride', width=width, height=900, deviceScaleFactor=1, mobile=False
                )
                await call('Page.navigate', url=url)
                while (await receive()).get('method') != 'Page.loadEventFired':
                    pass
                values = [
                    (await call('Runtime.evaluate', expression=s, awaitPromise=True, returnByValue=True))['result']
                    for s in scripts
                ]
        return [v.get('value') for v in values], events


@pytest.fixture(scope='module')
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp('profile'))
    yield found
    found.close()


def test_page_is_whole_by_itself(browser: Browser, page: Path) -> None:
    words = 'document.body.innerText'
    (text, title, verdict), events = browser.visit(
        page.as_uri(), 1180, [words, 'document.title', 'document.querySelector(".hero").dataset.verdict']
    )
    asked = [e['params']['request']['url'] for e in events if e['method'] == 'Network.requestWillBeSent']
    assert [url for url in asked if not url.startswith('data:')] == [page.as_uri()]
    complaints = [e['params'] for e in events if e['method'] in ('Log.entryAdded', 'Runtime.exceptionThrown')]
    assert not complaints
    assert title == 'Report: joint, speech-only' and verdict == 'red'
    for heading in (
        'What it hears',
        'What it kept of its text ability',
        'Modality ladder',
        'Trained on',
        'Loss of each',
    ):
        assert heading in text, heading
    assert '1 of 2 models hear and read as before' in text and '<b>Who?</b>' in text


def test_recordings_play(browser: Browser, page: Path) -> None:
    play = """(async () => { const a = document.querySelector('audio');
    const over = new Promise(r => { a.onended = a.onerror = r; }); await a.play(); await over;
    return [a.duration, a.currentTime, !a.error]; })()"""
    (count, found), _ = browser.visit(page.as_uri(), 1180, ['document.querySelectorAll("audio").length', play])
    assert count == 2  # one of each model; the other recording has gone
    assert found == [pytest.approx(1.5, abs=0.01), found[0], True]  # played to its end


@pytest.mark.parametrize('width', [360, 768, 1180])
def test_nothing_is_cut_off(browser: Browser, page: Path, width: int) -> None:
    wide = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll,svg,audio')
    && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className || e.tagName)"""
    drawn = '[...document.querySelectorAll(".meter, svg")].every(e => e.getBoundingClientRect().width > 40)'
    (scroll, outside, visible), _ = browser.visit(
        page.as_uri(), width, ['document.documentElement.scrollWidth', wide, drawn]
    )
    assert scroll <= width and outside == [] and visible
