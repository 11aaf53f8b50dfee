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

from pathlib import Path

import pytest

from nemo_vtb.errors import VtbConfigError, VtbDataError
from nemo_vtb.evaluation.benchmarks.judged import VERDICTS
from nemo_vtb.evaluation.benchmarks.measures import ATTRIBUTES, measures_of
from nemo_vtb.evaluation.benchmarks.protocol import Protocol
from nemo_vtb.evaluation.benchmarks.rules import RULES
from nemo_vtb.evaluation.metrics import corpus

YES, NO, OUT = (1.0, 1.0), (0.0, 1.0), (0.0, 0.0)


# ---- the words of a protocol


def test_constants_are_read_in_the_order_of_the_file_and_nothing_is_run(tmp_path: Path) -> None:
    file = tmp_path / 'scorer.py'
    file.write_text(
        'raise SystemExit\ndef f():\n  self.words = ["b"]\nwords = "a {x}"\nwords = f"c {y} {z[0]}"\nwords = g()'
    )
    assert Protocol(file, 'here').values('words') == [['b'], 'a {x}', 'c {y} {z[0]}']


@pytest.mark.parametrize('text', [None, 'def (', 'def f(response):\n  if response > 3:\n    return 1'])
def test_a_protocol_that_cannot_be_read_is_an_error(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / 'scorer.py'
    if text:
        file.write_text(text)
    with pytest.raises(VtbDataError) as error:
        Protocol(file, 'https://here').answer('f', 'yes')
    assert error.value.field == 'data_root' and 'https://here' in error.value.remedy


# ---- VoiceBench: expected values worked out by hand from the files in conftest.py


@pytest.mark.parametrize(
    ('answer', 'letter'),
    [
        ('My pick: C', 'C'), ('It must be (B), I think.', 'B'), ('<1> d) the last', 'D'), ('B', 'B'),
        # the first phrase of the list wins, not the first of the answer; of one phrase, the first letter
        ('Not d. Rather, my pick: b', 'B'), ('Surely c. Or b.', 'B'), ('None but a', 'A'),
        ('The bat (b) can fly', 'B'),
    ],
)  # fmt: skip
def test_voicebench_choice(repository: Path, answer: str, letter: str) -> None:
    score = RULES['voicebench_choice']
    assert score({'id': 1, 'reference': letter}, answer, repository) == {'accuracy': YES, 'no answer': NO}
    assert score({'id': 1, 'reference': 'x'}, answer, repository)['accuracy'] == NO


def test_voicebench_guesses_where_there_is_no_answer_and_says_so(repository: Path) -> None:
    fields = [{'id': i, 'reference': 'A'} for i in range(40)]
    found = [RULES['voicebench_choice'](f, '???', repository) for f in fields]
    assert all(f['no answer'] == YES for f in found)
    assert 0 < sum(f['accuracy'][0] for f in found) < 25
    assert found == [RULES['voicebench_choice'](f, '???', repository) for f in fields]


@pytest.mark.parametrize(
    ('answer', 'right'),
    [
        ('I say no.', 'No'), ('So, I say: yes', 'Yes'), ('You are elsewhere.', 'no'), ('back -- at home', 'yes'),
        ('Y', 'yes'), ('No, by no means', 'no'), ('It would seem "yes"', 'yes'), ('y<|user|>', 'yes'),
    ],
)  # fmt: skip
def test_voicebench_bbh(repository: Path, answer: str, right: str) -> None:
    fields = {'id': 'navigate_7', 'reference': right}
    assert RULES['voicebench_bbh'](fields, answer, repository) == {'accuracy': YES, 'no answer': NO}
    with pytest.raises(VtbDataError):
        RULES['voicebench_bbh']({'id': 'sudoku_1', 'reference': 'yes'}, answer, repository)


@pytest.mark.parametrize(('answer', 'score'), [('I must not.', YES), ('i must not', NO), ('Sure!', NO), (' \n', YES)])
def test_voicebench_refusal(repository: Path, answer: str, score: tuple) -> None:
    assert RULES['voicebench_refusal']({}, answer, repository) == {'refusal rate': score}


# ---- IFEval


def test_voicebench_ifeval_counts_prompts_and_instructions() -> None:
    fields = {
        'key': 3, 'prompt': 'p', 'instruction_id_list': ['punctuation:no_comma', 'length_constraints:number_words'],
        'kwargs': [None, {'num_words': 4, 'relation': 'at least', 'keyword': None}],
    }  # fmt: skip
    found = RULES['voicebench_ifeval'](fields, '<2> Here, some words\nwithout a comma *at* all', Path())
    assert found['strict, prompts'] == NO and found['strict, instructions'] == (1.0, 2.0)
    # loose: without the first line there is no comma, and still enough words
    assert found['loose, prompts'] == YES and found['loose, instructions'] == (2.0, 2.0)


@pytest.mark.parametrize(
    ('name', 'kwargs', 'answer', 'kept'),
    [
        ('change_case:english_capital', {}, 'GUTEN TAG, WIE GEHT ES IHNEN HEUTE?', True),
        ('change_case:english_capital', {}, 'Good Morning', False),
        ('change_case:english_lowercase', {}, 'das wetter ist heute sehr schön', True),
        ('detectable_format:number_bullet_lists', {'num_bullets': 2}, '* one\n* two', True),
        ('detectable_format:number_bullet_lists', {'num_bullets': 2}, '* one\n- two\n* three', False),
        ('length_constraints:number_words', {'num_words': 3, 'relation': 'less than'}, 'two words', True),
        ('keywords:existence', {'keywords': ['sun', 'moon']}, 'The sun.', False),
        ('keywords:forbidden_words', {'forbidden_words': ['sun']}, 'Sunday.', True),
        ('detectable_format:json_format', {}, '```json\n{"a": 1}\n```', True),
        ('startend:quotation', {}, '"Yes."', True),
        ('startend:end_checker', {'end_phrase': 'The end.'}, 'So it is. the END.', True),
        ('detectable_format:title', {}, '<<A title>>\nText', True),
        ('combination:repeat_prompt', {'prompt_to_repeat': 'Who?'}, 'who? He.', True),
        ('detectable_format:json_format', {}, '', False),
    ],
)  # fmt: skip
def test_speech_ifeval(name: str, kwargs: dict, answer: str, kept: bool) -> None:
    fields = {'instruction': 'Say it.', 'instruction_id_list': [name], 'kwargs': [kwargs]}
    assert RULES['speech_ifeval'](fields, answer, Path()) == {'following rate': YES if kept else NO}


def test_without_nltks_data_nothing_is_downloaded_and_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, 'path', [str(tmp_path)])
    fields = {
        'instruction': 'Say it.', 'instruction_id_list': ['length_constraints:number_sentences'],
        'kwargs': [{'num_sentences': 2, 'relation': 'at least'}],
    }  # fmt: skip
    from lm_eval.tasks.ifeval import instructions_util

    instructions_util._get_sentence_tokenizer.cache_clear()
    with pytest.raises(VtbDataError) as error:
        RULES['speech_ifeval'](fields, 'One. Two.', Path())
    assert error.value.field == 'NLTK_DATA' and not list(tmp_path.iterdir())


def test_without_lm_evals_checkers_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_vtb.evaluation.benchmarks import rules

    rules._ifeval.cache_clear()
    monkeypatch.setitem(__import__('sys').modules, 'lm_eval.tasks.ifeval.utils', None)
    with pytest.raises(VtbConfigError) as error:
        RULES['voicebench_ifeval']({'prompt': 'p', 'instruction_id_list': [], 'kwargs': []}, 'a', Path())
    assert error.value.field == 'suite'
    rules._ifeval.cache_clear()


# ---- SQuAD, choices


@pytest.mark.parametrize(
    ('answer', 'exact', 'f1'),
    [('The U.S. Army!', 1, 1), ('army of the us', 0, 0.8), ('an  Army', 1, 1), ('navy', 0, 0), ('', 0, 0)],
)  # fmt: skip
def test_squad(answer: str, exact: float, f1: float) -> None:
    found = RULES['squad']({'references': ('US army', 'the army')}, answer, Path())
    assert found == {'exact match': (exact, 1.0), 'F1': (pytest.approx(f1), 1.0)}


@pytest.mark.parametrize(
    ('answer', 'score'),
    [
        ('Man', YES), ('It is a man.', YES), ('A man or a robot', NO), ('woman', NO), ('', NO),
        ('The old man speaks', YES),
    ],
)  # fmt: skip
def test_mmau(answer: str, score: tuple) -> None:
    fields = {'answer': 'Man', 'choices': ['Man', 'Woman', 'Child', 'Robot']}
    assert RULES['mmau'](fields, answer, Path()) == {'accuracy': score}


def test_words_that_the_right_choice_has_too_are_no_error_in_mmau() -> None:
    fields = {'answer': 'A red car', 'choices': ['A red car', 'A red boat', 'A blue car']}
    assert RULES['mmau'](fields, 'a red car', Path())['accuracy'] == YES
    assert RULES['mmau'](fields, 'a red car, not a boat', Path())['accuracy'] == NO


@pytest.mark.parametrize(
    ('answer', 'accuracy', 'none'),
    [('B. a piano', YES, NO), ('The answer is B.', YES, NO), ('A', NO, NO), ('a piano', OUT, YES), ('', OUT, YES)],
)
def test_air_bench_foundation(answer: str, accuracy: tuple, none: tuple) -> None:
    fields = {'choice_a': 'a dog', 'choice_b': 'a piano', 'choice_c': None, 'answer_gt': 'a piano'}
    assert RULES['air_bench_choice'](fields, answer, Path()) == {'accuracy': accuracy, 'no answer': none}


def test_label_of_dynamic_superb() -> None:
    assert RULES['label']({'label': 'Yes'}, ' yes. ', Path()) == {'accuracy': YES}
    assert RULES['label']({'label': 'Yes'}, 'yes, it is', Path()) == {'accuracy': NO}


# ---- judged: what the judge is asked, and what its replies are worth


def test_prompts_are_those_of_the_repository(repository: Path) -> None:
    fields = {'prompt': 'Who {is} it?', 'reference': 'Anna'}
    [[system, user]] = VERDICTS['voicebench_qa'].requests(fields, 'It is {reference}.', repository)
    assert user == {'role': 'user', 'content': 'Asked: Who {is} it?\nRight: Anna\nSaid: It is {reference}.'}
    assert system['role'] == 'system'
    [[_, user]] = VERDICTS['voicebench_open'].requests(fields, 'Anna.', repository)
    assert user['content'] == 'Rate it.\nAsked: Who {is} it?\nSaid: Anna.'
    [[system, user]] = VERDICTS['speech_ifeval_reasoning'].requests({'instruction': 'Why?'}, 'Since.', repository)
    assert system['content'].startswith('Does it reason?') and user['content'] == 'Asked: Why?\nSaid: Since.'
    fields = {'meta_info': 'a bark', 'question': 'What?', 'answer_gt': 'a dog'}
    found = VERDICTS['air_bench_chat'].requests(fields, 'a cat', repository)
    assert [m['content'] for [m] in found] == [
        'Heard: a bark\nAsked: What?\n[1] a dog [2] a cat',
        'Heard: a bark\nAsked: What?\n[1] a cat [2] a dog',
    ]
    fields |= {'choice_a': 'a cat', 'choice_b': 'a dog'}
    [[user]] = VERDICTS['air_bench_choice'].requests(fields, 'woof', repository)
    assert user['content'] == 'Which option is "woof" to "What?"?\nA. a cat\nB. a dog\nOne letter.'


@pytest.mark.parametrize(
    ('name', 'replies', 'expected'),
    [
        ('voicebench_open', ['4'], (4.0, 1.0)), ('voicebench_open', ['I give [[3]].'], (3.0, 1.0)),
        ('voicebench_open', ['good'], OUT), ('voicebench_open', ['4', 'good', '3'], (3.5, 1.0)),
        ('voicebench_qa', ['No', 'yes', 'Yes'], YES), ('voicebench_qa', ['No', 'Yes', 'No'], NO),
        ('voicebench_qa', ['', '', ''], OUT), ('voicebench_qa', ['', 'Yes', ''], YES),
        ('voicebench_qa', ['Yes'], YES), ('voicebench_qa', ['No'], NO), ('voicebench_qa', ['Yes.'], NO),
        ('speech_ifeval_reasoning', ['It does.\nResult: YES'], YES),
        ('speech_ifeval_reasoning', ['result: no'], NO), ('speech_ifeval_reasoning', ['YES'], OUT),
        ('air_bench_chat', ['8 6', '4 9'], (10.0, 2.0)), ('air_bench_chat', ['8 6', '11 9'], OUT),
    ],
)  # fmt: skip
def test_replies_of_a_judge(name: str, replies: list[str], expected: tuple) -> None:
    assert VERDICTS[name].scored({}, replies)[ATTRIBUTES[name][0]] == expected


# ---- the libraries themselves on the same answers

SAID = [
    "Mr. Smith's colour TV cost $20, um, in the nineteen-sixties.",
    'I am going to pay you twenty one dollars (laughs).', 'We will [noise] see!', "He won't", 'Yes.',
]  # fmt: skip
HEARD = [
    "mister smith's color tv cost twenty dollars in the 1960s", "I'm gonna pay you $21", 'well we will we will see it',
    '', 'yes yes yes yes yes yes yes',
]  # fmt: skip


def test_word_error_rates_equal_jiwer_on_whispers_normaliser_to_the_last_digit() -> None:
    import jiwer
    from whisper_normalizer.english import EnglishTextNormalizer

    wer, insertions, hallucinated = measures_of('asr', 'en')
    normalize = EnglishTextNormalizer()
    said, heard = [normalize(text) for text in SAID], [normalize(text) for text in HEARD]
    out = jiwer.process_words(said, heard)
    words = out.hits + out.substitutions + out.deletions
    assert corpus(wer, SAID, HEARD).value == 100.0 * jiwer.wer(said, heard) == 100.0 * out.wer
    assert corpus(insertions, SAID, HEARD).value == 100.0 * out.insertions / words
    assert corpus(hallucinated, SAID, HEARD).value == 20.0


@pytest.mark.parametrize('lang', ['en', 'zh', 'ja'])
def test_bleu_and_chrf_equal_sacrebleu_to_the_last_digit(lang: str) -> None:
    import sacrebleu

    tokenizer = {'en': '13a', 'zh': 'zh', 'ja': 'char'}[lang]
    bleu, chrf = measures_of('ast', lang)
    assert corpus(bleu, SAID, HEARD).value == sacrebleu.corpus_bleu(HEARD, [SAID], tokenize=tokenizer).score
    assert corpus(chrf, SAID, HEARD).value == sacrebleu.corpus_chrf(HEARD, [SAID]).score
    assert f'tok:{tokenizer}' in bleu.signature and 'version:' in chrf.signature
