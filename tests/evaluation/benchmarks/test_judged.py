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

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import benchmark_folders as made
import pytest
from benchmark_folders import Clip

from nemo_vtb.errors import VtbDataError
from nemo_vtb.evaluation.answers import AnswerCache
from nemo_vtb.evaluation.benchmarks.catalog import BenchmarkTask, catalog
from nemo_vtb.evaluation.benchmarks.judged import VERDICTS, ask_all, judge_answers, missed_verdicts
from nemo_vtb.evaluation.benchmarks.summaries import summaries
from nemo_vtb.evaluation.judge import Judge
from nemo_vtb.evaluation.metrics import aggregate
from nemo_vtb.evaluation.result import Metric
from nemo_vtb.evaluation.task import Context


@contextmanager
def server(reply: Callable[[Mapping[str, Any]], str | int]) -> Iterator[tuple[Judge, list[dict[str, Any]]]]:
    """A judge whose replies (or HTTP errors) a function makes of the request; and the requests that it got."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers['Content-Length']))))
            answer = reply(got[-1])
            data = json.dumps({'choices': [{'message': {'content': answer}}]}).encode()
            self.send_response(answer if isinstance(answer, int) else 200)
            self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        url = f'http://127.0.0.1:{http.server_port}/v1'
        yield Judge(url, 'by-rule', concurrency=2, tries=2, first_wait_s=0.01, timeout_s=10.0), got
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def by_words(body: Mapping[str, Any]) -> str:
    """A judge that looks for the right word, and gives its verdict in the form that is asked."""
    text = body['messages'][-1]['content']
    said = text.rpartition('Said: ')[2]
    return ('Yes' if 'Paris' in said else 'No') if 'Right:' in text else ('5' if 'Paris' in said else '1')


FIELDS = {'prompt': 'What is the capital of France?', 'reference': 'Paris'}
ROWS = [(FIELDS, 'Paris it is.'), (FIELDS, 'Rome.'), (FIELDS, 'I think Paris.')]


def test_answers_are_judged_with_the_benchmarks_prompt_and_sampling(repository: Path, tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / 'replies.jsonl', {})
    with server(by_words) as (judge, got):
        assert missed_verdicts('voicebench_qa', judge, cache, repository) == []
        found = judge_answers('voicebench_qa', ROWS, judge, cache, repository)
        assert [f['judged correct'] for f in found] == [(1.0, 1.0), (0.0, 1.0), (1.0, 1.0)]
        assert got[0] | {'messages': None} == {
            'model': 'by-rule', 'messages': None, 'temperature': 0.5, 'top_p': 0.95, 'max_tokens': 1024
        }  # fmt: skip
        asked = len(got)
        # a resumed run pays for nothing again
        again = AnswerCache(tmp_path / 'replies.jsonl', {})
        assert judge_answers('voicebench_qa', ROWS, judge, again, repository) == found and len(got) == asked
        # servers that refuse a temperature do not get one
        judge = replace(judge, temperature=None)
        judge_answers('voicebench_open', ROWS[:1], judge, again, repository)
        assert 'temperature' not in got[-1]


def test_a_judge_is_tried_on_known_verdicts(repository: Path) -> None:
    for name, good, bad in [
        ('voicebench_open', '5', '1'), ('voicebench_qa', 'Yes', 'No'), ('air_bench_choice', 'A', 'B'),
        ('speech_ifeval_reasoning', 'Result: YES', 'Result: NO'),
    ]:  # fmt: skip
        right = VERDICTS[name].control[1]
        for reply, fine in ((good, True), (bad, False), ('?', False)):
            answer = lambda body, reply=reply, bad=bad, right=right: reply if right in str(body) else bad  # noqa: E731
            with server(answer) as (judge, _):
                assert (missed_verdicts(name, judge, AnswerCache(None), repository) == []) == fine


def test_several_replies_are_asked_where_the_benchmark_does(repository: Path) -> None:
    replies = iter(['4', '2', '3'])
    with server(lambda body: next(replies)) as (judge, got):
        cache = AnswerCache(None)
        [found] = judge_answers('voicebench_open', ROWS[:1], judge, cache, repository)
        assert found == {'rating (1 to 5)': (3.0, 1.0)} and len(got) == 3
        assert judge_answers('voicebench_open', ROWS[:1], judge, cache, repository) == [
            found
        ]  # nothing is asked again


def test_a_judge_that_cannot_tell_is_found_first(repository: Path) -> None:
    with server(lambda body: 'Yes') as (judge, _):
        assert missed_verdicts('voicebench_qa', judge, AnswerCache(None), repository)
    with server(lambda body: 'well ...') as (judge, _):
        assert missed_verdicts('voicebench_open', judge, AnswerCache(None), repository)


def test_what_a_server_refuses_is_left_out_and_a_broken_server_is_an_error(repository: Path) -> None:
    with server(lambda body: 400 if 'Rome' in body['messages'][-1]['content'] else '4') as (judge, _):
        found = judge_answers('voicebench_open', ROWS, judge, AnswerCache(None), repository)
        assert [f['rating (1 to 5)'] for f in found] == [(4.0, 1.0), (0.0, 0.0), (4.0, 1.0)]
    for status in (400, 401, 500):
        with server(lambda body, status=status: status) as (judge, _), pytest.raises(VtbDataError) as error:
            judge_answers('voicebench_open', ROWS, judge, AnswerCache(None), repository)
        assert error.value.field == 'judge.url' and str(status) in str(error.value.got)


def test_requests_are_answered_in_their_order() -> None:
    requests = [[{'role': 'user', 'content': str(n)}] for n in range(20)]
    with server(lambda body: body['messages'][0]['content']) as (judge, _):
        assert ask_all(judge, requests, AnswerCache(None), {}) == [str(n) for n in range(20)]


# ---- tasks


def test_a_long_recording_is_transcribed_in_chunks_and_scored_as_one(clips: list[Clip], tmp_path: Path) -> None:
    made.earnings22(tmp_path, clips)
    [row] = catalog()['earnings22']
    task = BenchmarkTask(replace(row, chunk_s=0.5))
    examples = task.examples(Context(data_root=tmp_path))
    spans = [(a.offset_s, a.duration_s) for e in examples for a in e.prompt.audios]
    assert len(spans) > 2 and [s[0] for s in spans] == [0.5 * n for n in range(len(spans))]
    assert sum(s[1] for s in spans) == pytest.approx(made.duration(next(tmp_path.rglob('*.mp3'))), abs=0.01)
    assert len({e.group for e in examples}) == 1 and len({e.id for e in examples}) == len(examples)
    answers = ['Good', *[''] * (len(examples) - 2), 'evening all']
    rows = [task.score(e, a) for e, a in zip(examples, answers, strict=True)]
    values = {m.name: aggregate(m, [r[m.name] for r in rows]).value for m in task.measures(examples)}
    assert values == {'WER': 100.0, 'insertions': 50.0, 'hallucinated': 0.0}


def test_a_limit_takes_whole_recordings(clips: list[Clip], tmp_path: Path) -> None:
    made.earnings22(tmp_path, clips)
    [row] = catalog()['earnings22']
    examples = BenchmarkTask(replace(row, chunk_s=0.5)).examples(Context(data_root=tmp_path, limit=1))
    assert len(examples) == examples[-1].extra['chunks'] > 1


def test_an_utterance_with_many_added_words_in_a_row_is_hallucinated(clips: list[Clip], tmp_path: Path) -> None:
    made.mls(tmp_path, clips)
    task = BenchmarkTask(catalog()['mls'][0])
    first, _ = task.examples(Context(data_root=tmp_path))
    assert task.score(first, 'es sagte ja ja ja ja ja')['hallucinated'] == (0.0, 1.0)
    assert task.score(first, 'es sagte ja ja ja ja ja ja')['hallucinated'] == (1.0, 1.0)
    assert task.score(first, 'es sagte ja ja ja ja ja ja')['insertions'] == (5.0, 3.0)


# ---- summaries


def metric(suite: str, task: str, name: str, value: float, base: float | None = None, n: int = 10) -> Metric:
    return Metric(suite, task, task, name, n, value, base=base, higher_is_better=name != 'WER')


def test_speech_ifevals_numbers_are_those_of_its_readme() -> None:
    # DiVA beside Llama3-8B-Instruct, as its authors print them: IFrate 76.13 and 92.53, forgetting rate -17.73
    rates = {
        'closed_ended_questions': (83.14, 93.35),
        'creative_writing': (61.75, 93.75),
        'chain-of-thought': (83.5, 90.5),
    }
    found = {
        m.name: m for m in summaries([metric('speech_ifeval', t, 'following rate', *v) for t, v in rates.items()])
    }
    assert (round(found['IFrate'].value, 2), round(found['IFrate'].base, 2)) == (76.13, 92.53)
    assert round(found['forgetting rate'].value, 2) == -17.73 and found['forgetting rate'].base is None
    missing = [metric('speech_ifeval', 'creative_writing', 'following rate', 90.0, 91.0)]
    assert summaries(missing) == []


def test_means_of_the_leaderboard_and_of_groups() -> None:
    sets = [metric('open_asr', row.name, 'WER', float(i)) for i, row in enumerate(catalog()['open_asr'])]
    [mean] = summaries([*sets, metric('open_asr', 'ami', 'insertions', 99.0)])
    assert (mean.name, mean.value, mean.higher_is_better) == ('mean WER', 3.5, False)
    assert summaries(sets[:-1]) == []
    parts = [metric('mmlu', 'mmlu_law', 'acc', 40.0, 50.0, 30), metric('mmlu', 'mmlu_art', 'acc', 80.0, 70.0, 10)]
    [group] = summaries(parts)
    assert (group.task, group.n, group.value, group.base, group.change) == ('mmlu', 40, 50.0, 55.0, -5.0)


def test_scoring_leaves_a_redirected_stderr_open() -> None:
    """absl comes with rouge_score, and closes what was stderr at its import when logging is configured anew."""
    code = (
        'import io, logging.config, sys; sys.stderr = io.StringIO()\n'
        'from nemo_vtb.evaluation.benchmarks.measures import measures_of\n'
        'assert measures_of("librisqa", "en")[1].statistics(("a dog",), "a dog")[0] == 1\n'
        'redirected, sys.stderr = sys.stderr, sys.__stderr__\n'
        'logging.config.dictConfig({"version": 1})\n'
        'assert not redirected.closed'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
