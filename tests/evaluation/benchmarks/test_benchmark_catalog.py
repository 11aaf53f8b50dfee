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

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import benchmark_folders as made
import pytest
from benchmark_folders import Clip
from test_judged import server

from nemo_vtb.errors import VtbDataError
from nemo_vtb.evaluation.benchmarks.catalog import BenchmarkTask, catalog, language_code
from nemo_vtb.evaluation.task import Context

ROOT = Path(__file__).resolve().parents[3]
Maker = Callable[[Path, list[Clip]], None]


ASK = 'Transcribe the speech.'
Want = Mapping[str, list[tuple]]
# suite -> task -> (source, language, references, text of the prompt) of each example
CASES: dict[str, tuple[Maker, Want]] = {
    'open_asr': (made.open_asr, {
        'ami': [('ami', 'en', None, ASK)],
        'librispeech-clean': [('librispeech-clean', 'en', None, ASK)],
    }),
    'librispeech': (made.librispeech, {
        'clean': [('clean', 'en', None, ASK)],
        'other': [('other', 'en', None, ASK)],
    }),
    'tedlium': (made.tedlium, {'release3': [('release3', 'en', ('and then there is the',), ASK)]}),
    'ami': (made.ami, {'ihm': [('ihm', 'en', ('Okay so',), ASK)]}),
    'mls': (made.mls, {'test': [
        ('german', 'de', ('es sagte "ja',), ASK),
        ('spanish', 'es', ('es sagte "ja',), ASK),
    ]}),
    'common_voice': (made.common_voice, {'test': [('de', 'de', ('Er rief: "Ja!',), ASK)]}),
    'fleurs': (made.fleurs, {'test': [
        ('de_de', 'de', ('ein hund',), ASK),
        ('de_de', 'de', ('nur hier',), ASK),
        ('en_us', 'en', ('a dog.',), ASK),
    ]}),
    'voxpopuli': (made.voxpopuli, {'test': [('en', 'en', ('mr president',), ASK)]}),
    'gigaspeech': (made.gigaspeech, {'test': [
        ('test', 'en', ('HELLO <COMMA> YOU <PERIOD>',), ASK)
    ]}),
    'spgispeech': (made.spgispeech, {'val': [('val', 'en', ('We "grew, in Q1.',), ASK)]}),
    'earnings22': (made.earnings22, {'calls': [('calls', 'en', ('Good morning',), ASK)]}),
    'fleurs_st': (made.fleurs, {'into-en': [('de_de', 'en', ('A Dog.',), 'Translate the speech to English.')]}),
    'covost2': (made.covost2, {'test': [('de-en', 'en', ('A dog',), 'Translate the speech to English.')]}),
    'europarl_st': (made.europarl_st, {'test': [
        ('en-de', 'de', ('Vielen Dank.',), 'Translate the speech to German.')
    ]}),
    'spoken_squad': (made.spoken_squad, {'test': [
        ('test', 'en', ('denver', 'the denver'), 'Who won? Answer with a few words of the recording.')
    ]}),
    'heysquad': (made.heysquad, {'human': [
        ('human', 'en', ('Denver',), 'Denver won.\nAnswer the spoken question with a few words of the text.')
    ]}),
    'librisqa': (made.librisqa, {'part1': [('part1', 'en', ('He began.',), 'What?')]}),
    'voicebench': (made.voicebench, {
        'alpacaeval_full': [('alpacaeval_full', 'en', (), '')],
        'sd-qa': [('aus', 'en', ('Anna',), ''), ('usa', 'en', ('Ann',), '')],
        'openbookqa': [('openbookqa', 'en', ('B',), '')], 'mmsu': [('law', 'en', ('A',), '')],
        'bbh': [('bbh', 'en', ('Yes',), '')], 'advbench': [('advbench', 'en', (), '')],
        'ifeval': [('ifeval', 'en', (), '')],
    }),
    'speech_ifeval': (made.speech_ifeval, {
        name: [(name, 'en', (), 'Man or woman?\nUse capitals.')]
        for name in ('closed_ended_questions', 'creative_writing', 'chain-of-thought')
    }),
    'mmau': (made.mmau, {'test-mini': [
        ('test-mini', 'en', (), 'Who?\nChoose one of these answers, and repeat it: Man, Dog.')
    ]}),
    'air_bench': (made.air_bench, {
        'foundation': [
            ('foundation', 'en', ('a dog',), 'Take one.\nWhat?\nA. a dog\nB. a cat\nC. None\nD. None')
        ],
        'chat': [('chat', 'en', ('a dog',), 'What?')],
    }),
    'dynamic_superb': (made.dynamic_superb, {'classification': [
        ('AccentClassification_AccentdbExtended', 'en', ('a',), 'Which accent? The answer could be: a, or b.')
    ]}),
}  # fmt: skip

SPOKEN = [suite for suite, rows in catalog().items() if rows[0].kind != 'text']


def tasks_of(suite: str) -> dict[str, BenchmarkTask]:
    return {row.name: BenchmarkTask(row) for row in catalog()[suite]}


def test_every_suite_about_recordings_is_proved_here() -> None:
    assert set(CASES) == set(SPOKEN)


@pytest.mark.parametrize('suite', SPOKEN)
def test_examples_of_a_folder_in_the_published_layout(
    suite: str, clips: list[Clip], repository: Path, tmp_path: Path
) -> None:
    make, expected = CASES[suite]
    make(tmp_path / 'data', clips)
    if name := catalog()[suite][0].repository:
        shutil.copytree(repository, tmp_path / 'data' / catalog()[suite][0].folder / name, dirs_exist_ok=True)
    with server(lambda body: '5') as (judge, _):
        context = Context(data_root=tmp_path / 'data', folder=tmp_path / 'made', settings={'judge': judge})
        check_examples(suite, expected, context)


def check_examples(suite: str, expected: Want, context: Context) -> None:
    for name, wanted in expected.items():
        task = tasks_of(suite)[name]
        found = task.examples(context)
        shown = [(e.source, e.lang, e.references, e.prompt.turns[-1].text) for e in found]
        assert shown == [
            (source, lang, references if references is not None else shown[i][2], text)
            for i, (source, lang, references, text) in enumerate(wanted)
        ]
        assert len({e.id for e in found}) == len(found)
        for example in found:
            assert example.prompt.audios and all(Path(audio.path).is_file() for audio in example.prompt.audios)
            from nemo_vtb.data.audio import read_audio

            assert all(len(read_audio(audio)) > 1000 for audio in example.prompt.audios)
        assert {m.name for m in task.measures(found)} == set(task.metrics)
    # --data-root may be the folder of the data set itself
    folder = next(context.data_root.iterdir())
    name = next(iter(expected))
    if catalog()[suite][0].folder != '.':
        assert len(tasks_of(suite)[name].examples(replace(context, data_root=folder))) == len(expected[name])


@pytest.mark.parametrize('suite', SPOKEN)
def test_what_is_not_there_is_named(suite: str, tmp_path: Path) -> None:
    row = catalog()[suite][0]
    for root in (None, tmp_path):
        with pytest.raises(VtbDataError) as error:
            BenchmarkTask(row).examples(Context(data_root=root))
        assert error.value.field == 'data_root' and row.needs in error.value.allowed and row.get in error.value.remedy


def test_a_missing_recording_is_an_error(clips: list[Clip], tmp_path: Path) -> None:
    for suite, name in (
        ('common_voice', 'test'), ('mls', 'test'), ('spoken_squad', 'test'), ('librispeech', 'clean'),
    ):  # fmt: skip
        CASES[suite][0](tmp_path / suite, clips)
        for ending in ('wav', 'mp3', 'flac', 'opus'):
            for path in (tmp_path / suite).rglob(f'*.{ending}'):
                path.unlink()
        with pytest.raises(VtbDataError) as error:
            tasks_of(suite)[name].examples(Context(data_root=tmp_path / suite))
        assert error.value.reason == 'audio_missing'


def test_a_row_without_its_right_answer_is_an_error(clips: list[Clip], tmp_path: Path) -> None:
    made.common_voice(tmp_path, clips)
    table = next(tmp_path.rglob('test.tsv'))
    table.write_text(table.read_text().replace('sentence', 'text'))
    with pytest.raises(VtbDataError) as error:
        tasks_of('common_voice')['test'].examples(Context(data_root=tmp_path))
    assert (error.value.reason, error.value.field) == ('missing_key', 'sentence')


def test_one_part_of_a_suite(clips: list[Clip], tmp_path: Path) -> None:
    made.mls(tmp_path, clips)
    [row] = catalog()['mls']
    [example] = BenchmarkTask(row, 'german').examples(Context(data_root=tmp_path))
    assert example.lang == 'de'
    with pytest.raises(VtbDataError) as error:
        BenchmarkTask(row, 'polish').examples(Context(data_root=tmp_path))
    assert error.value.got == 'mls:polish' and error.value.allowed == [['german'], ['spanish']]


def test_recordings_of_a_part_and_of_several_files(clips: list[Clip], tmp_path: Path) -> None:
    made.europarl_st(tmp_path, clips)
    [example] = tasks_of('europarl_st')['test'].examples(Context(data_root=tmp_path))
    [audio] = example.prompt.audios
    assert (audio.offset_s, audio.duration_s) == (0.5, 0.75)
    made.spoken_squad(tmp_path, clips)
    [example] = tasks_of('spoken_squad')['test'].examples(Context(data_root=tmp_path))
    # in the order of the sentences, not of their names
    assert [Path(a.path).name for a in example.prompt.audios] == ['0_1_0.wav', '0_1_2.wav', '0_1_10.wav']
    assert example.base.turns[-1].text.startswith('so denver won\nWho won?')


def test_the_limit_counts_in_each_part(clips: list[Clip], tmp_path: Path) -> None:
    made.fleurs(tmp_path, clips)
    found = tasks_of('fleurs')['test'].examples(Context(data_root=tmp_path, limit=1))
    assert [e.source for e in found] == ['de_de', 'en_us']


@pytest.mark.parametrize(
    ('name', 'code'), [('german', 'de'), ('de_de', 'de'), ('zh-CN', 'zh'), ('cmn_hans_cn', 'zh'), ('sv-SE', 'sv')]
)
def test_codes_of_languages(name: str, code: str) -> None:
    assert language_code(name) == code


def test_the_documentation_has_a_row_for_each_suite() -> None:
    text = (ROOT / 'docs' / 'evaluation.md').read_text()
    heads = re.findall(r'^\| (`.+?`) \|', text, flags=re.MULTILINE)
    rows = {name for head in heads for name in re.findall(r'`(\w+)`', head)}
    assert rows >= set(catalog()) | {'paper'}


@pytest.mark.parametrize(('suite', 'task'), [('europarl_st', 'test'), ('librispeech', 'clean')])
def test_a_line_ends_at_a_line_feed_alone(suite: str, task: str, clips: list[Clip], tmp_path: Path) -> None:
    CASES[suite][0](tmp_path, clips)
    [before] = [e.references[0] for e in tasks_of(suite)[task].examples(Context(data_root=tmp_path))]
    for file in tmp_path.rglob('*'):
        if file.suffix in ('.txt', '.de') and before in (was := file.read_text()):
            file.write_text(was.replace(before, f'{before}\u2028Yes.'))
    [after] = [e.references[0] for e in tasks_of(suite)[task].examples(Context(data_root=tmp_path))]
    assert after == f'{before}\u2028Yes.'
