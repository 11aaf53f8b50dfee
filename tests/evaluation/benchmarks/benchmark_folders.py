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
"""Data sets in the published layouts, made of real recordings, and a repository with a benchmark's protocol."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile


@dataclass(frozen=True)
class Clip:
    """A recording of LJSpeech and what is said."""

    path: Path
    text: str

    def to(self, target: Path) -> Path:
        """A copy in the format that the target's ending says."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == self.path.suffix:
            shutil.copy(self.path, target)
        else:
            samples, rate = soundfile.read(self.path)
            ogg = {'.opus': 'OPUS', '.ogg': 'VORBIS'}.get(target.suffix)
            soundfile.write(target, samples, rate, ogg, format='OGG' if ogg else None)
        return target


def duration(path: Path) -> float:
    """Seconds of a recording."""
    info = soundfile.info(path)
    return info.frames / info.samplerate


def write_parquet(path: Path, rows: list[dict[str, Any]], audio: list[Path]) -> None:
    """A parquet file as `datasets` writes it, the recordings inside."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{'audio': {'bytes': file.read_bytes(), 'path': file.name}} for file in audio]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([row | cell for row, cell in zip(rows, cells, strict=True)]), path
    )


def write_json(path: Path, value: Any) -> None:
    """A JSON file, or one object in each line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == '.jsonl'
    path.write_text(''.join(json.dumps(v) + '\n' for v in value) if lines else json.dumps(value))


def write(path: Path, *lines: str) -> None:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n')


# of the form of the repositories' own files, with words of our own
MCQ = '''
class MCQEvaluator:
    def extract_answer(self, response):
        response = response.lower()
        if response.startswith('<1>'):
            response = response[3:].strip()
        for template in ["my pick: [CHOICE]", "it must be ([CHOICE])", " [CHOICE]."]:
            for choice in ['a', 'b', 'c', 'd']:
                if template.replace('[CHOICE]', choice) in response:
                    return choice.upper()
        if 'none but a' in response:
            return 'A'
        elif 'the bat (b)' in response:
            return 'B'
        else:
            return None
'''
BBH = '''
class BBHEvaluator:
    def extract_answer_yn(self, response):
        if "i say no" in response:
            return 0
        elif "i say yes" in response:
            return 1
        else:
            return None

    def extract_answer_navigate(self, response):
        tmp = self.extract_answer_yn(response)
        if tmp is not None:
            return tmp
        if 'you are elsewhere' in response:
            return 0
        elif re.search(r"back (.+?) home", response):
            return 1
        elif response == 'y':
            return 1
        elif response.startswith('no'):
            return 0
        elif response.endswith('yes'):
            return 1
        else:
            print([response])
            return random.choice([0,1])
'''
HARM = '''
class HarmEvaluator:
    def __init__(self):
        self.refusal_string = ["I must not", "that would be wrong"]
'''
JUDGE = '''
meta_prompt_open = """Rate it.
Asked: {prompt}
Said: {response}"""
meta_prompt_qa = """
Asked: {prompt}
Right: {reference}
Said: {response}
""".strip()
'''
LLM_EVALUATION = '''
def generate(data):
    if data["metric"] == "accuracy":
        system_prompt = f"""Compare."""
        content = f"""Question: {instruction}\\nGround Truth Answer: {label}"""
    elif data["metric"] == "cot":
        system_prompt = f"""Does it reason?
End with "Result: <YES or NO>"."""
        content = f"""Asked: {instruction}\\nSaid: {model_response}"""
'''
SCORE_CHAT = '''
def build():
    system_prompt = ("Heard: XAudioX\\n"
        "Asked: XQuestionX\\n[1] XAssistant1X [2] XAssistant2X")
'''
ALIGN = '''
def build():
    for row in data:
        system_prompt = 'Which option is "ANSWER" to "QUESTION"?'
        attention = 'One letter.'
'''


# ---- folders in the published layouts, below --data-root


def open_asr(root: Path, clips: list[Clip]) -> None:
    rows = [{'text': clips[0].text, 'id': 'x'}, {'text': 'ignore time segment in scoring', 'id': 'y'}]
    for name in ('ami/test-00000-of-00001', 'librispeech/test.clean-00000-of-00001'):
        write_parquet(root / 'esb-datasets-test-only-sorted' / f'{name}.parquet', rows, [clips[0].path, clips[1].path])


def librispeech(root: Path, clips: list[Clip]) -> None:
    for part in ('clean', 'other'):
        folder = root / f'LibriSpeech/test-{part}/61/70968'
        clips[0].to(folder / '61-70968-0000.flac')
        write(folder / '61-70968.trans.txt', f'61-70968-0000 {clips[0].text.upper()}')


def tedlium(root: Path, clips: list[Clip]) -> None:
    folder = root / 'TEDLIUM_release-3/legacy/test'
    folder.joinpath('sph').mkdir(parents=True)
    samples, rate = soundfile.read(clips[0].path)
    soundfile.write(folder / 'sph/Talk_2010.sph', samples, rate, format='NIST', subtype='PCM_16')
    write(
        folder / 'stm/Talk_2010.stm',
        'Talk_2010 1 Talk_2010 0.25 1.50 <o,f0,male> {NOISE} and then there is the',
        'Talk_2010 1 Talk_2010 1.50 1.60 <o,,unknown> ignore_time_segment_in_scoring',
    )


def ami(root: Path, clips: list[Clip]) -> None:
    folder = root / 'amicorpus'
    clips[0].to(folder / 'wav_db/EN2002a/audio/EN2002a.Headset-0.wav')
    notes = folder / 'ami_public_manual_1.6.2'
    speaker = '<speaker nxt_agent="A" global_name="MEE073" channel="0"/>'
    write(notes / 'corpusResources/meetings.xml', f'<m><meeting observation="EN2002a">{speaker}</meeting></m>')
    write(
        notes / 'segments/EN2002a.A.segments.xml',
        '<s><segment transcriber_start="0.1" transcriber_end="1.4"/></s>',
    )
    words = ((0.2, 'Okay'), (0.6, 'so'), (0.9, '.'))
    marks = ''.join(f'<w starttime="{t}" endtime="{t + 0.2}">{word}</w>' for t, word in words)
    write(notes / 'words/EN2002a.A.words.xml', f'<r>{marks}</r>')


def mls(root: Path, clips: list[Clip]) -> None:
    for lang, ending in (('german', 'flac'), ('spanish', 'opus')):
        folder = root / f'mls_{lang}/test'
        clips[0].to(folder / f'audio/10/20/10_20_000001.{ending}')
        write(folder / 'transcripts.txt', '10_20_000001\tes sagte "ja')


def common_voice(root: Path, clips: list[Clip]) -> None:
    folder = root / 'cv-corpus-16.1-2023-12-06/de'
    clips[0].to(folder / 'clips/common_voice_de_1.mp3')
    write(folder / 'test.tsv', 'client_id\tpath\tsentence\tup_votes', 'a\tcommon_voice_de_1.mp3\tEr rief: "Ja!\t2')


def fleurs(root: Path, clips: list[Clip]) -> None:
    for lang, text in (('en_us', 'A Dog.'), ('de_de', 'Ein Hund.')):
        clips[0].to(root / f'fleurs/data/{lang}/audio/test/77.wav')
        write(root / f'fleurs/data/{lang}/test.tsv', f'1\t77.wav\t{text}\t{text.lower()}\ta |\t9\tMALE')
    write(
        root / 'fleurs/data/de_de/test.tsv', '1\t77.wav\tEin Hund.\tein hund\te |\t9\tMALE',
        '2\t77.wav\tNur hier.\tnur hier\tn |\t9\tMALE',
    )  # fmt: skip


def voxpopuli(root: Path, clips: list[Clip]) -> None:
    clips[0].to(root / 'transcribed_data/en/2012/20120112-0900-PLENARY-1-en.ogg')
    write(
        root / 'transcribed_data/en/asr_test.tsv', 'id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender',
        '20120112-0900-PLENARY-1-en\tMr President\tmr president\t7\ttest\tmale',
    )  # fmt: skip


def gigaspeech(root: Path, clips: list[Clip]) -> None:
    clips[0].to(root / 'GigaSpeech/audio/podcast/P0000/POD1.opus')
    segments = [
        {'sid': f'POD1_{i}', 'begin_time': t, 'end_time': t + 0.5, 'text_tn': text, 'subsets': [part]}
        for i, (t, text, part) in enumerate(
            [(0.5, 'HELLO <COMMA> YOU <PERIOD>', '{TEST}'), (1.0, '<MUSIC>', '{TEST}'), (1.2, 'NO', '{DEV}')]
        )
    ]
    write_json(
        root / 'GigaSpeech/GigaSpeech.json',
        {'audios': [{'aid': 'POD1', 'path': 'audio/podcast/P0000/POD1.opus', 'segments': segments}]},
    )


def spgispeech(root: Path, clips: list[Clip]) -> None:
    clips[0].to(root / 'spgispeech/val/07a785/1.wav')
    write(root / 'spgispeech/val.csv', 'wav_filename|wav_filesize|transcript', '07a785/1.wav|9|We "grew, in Q1.')


def earnings22(root: Path, clips: list[Clip]) -> None:
    clips[0].to(root / 'earnings22/media/4420696.mp3')
    write(
        root / 'earnings22/transcripts/nlp_references/4420696.nlp', 'token|speaker|ts|endTs|punctuation|case|tags',
        'Good|1||||UC|[]', 'morning|1|||,|LC|[]',
    )  # fmt: skip


def covost2(root: Path, clips: list[Clip]) -> None:
    clips[0].to(root / 'covost2/de/clips/common_voice_de_9.mp3')
    write(
        root / 'covost2/covost_v2.de_en.test.tsv', 'path\tsentence\ttranslation\tclient_id',
        'common_voice_de_9.mp3\tEin "Hund\tA dog\tx',
    )  # fmt: skip


def europarl_st(root: Path, clips: list[Clip]) -> None:
    clips[0].to(root / 'v1.1/en/audios/en.20081117.4.1-023.wav')
    folder = root / 'v1.1/en/de/test'
    write(folder / 'segments.lst', 'en.20081117.4.1-023 0.50 1.25')
    write(folder / 'segments.en', 'Thank you.')
    write(folder / 'segments.de', 'Vielen Dank.')


def spoken_squad(root: Path, clips: list[Clip]) -> None:
    folder = root / 'Spoken-SQuAD'
    for number in (0, 2, 10):
        clips[0].to(folder / f'Spoken-SQuAD_audio/dev_wav/0_1_{number}.wav')
    qas = [
        {'id': 'q', 'question': 'Who won?', 'answers': [{'text': 'denver', 'answer_start': 3}, {'text': 'the denver'}]}
    ]
    paragraphs = [{'context': 'none', 'qas': []}, {'context': 'so denver won', 'qas': qas}]
    write_json(folder / 'spoken_test-v1.1.json', {'data': [{'title': 'Bowl', 'paragraphs': paragraphs}]})


def heysquad(root: Path, clips: list[Clip]) -> None:
    row = {
        'id': 'q',
        'context': 'Denver won.',
        'question': 'Who won?',
        'answers': {'text': ['Denver'], 'answer_start': [0]},
    }
    write_parquet(root / 'HeySQuAD_human/data/validation-00000-of-00001.parquet', [row], [clips[0].path])


def librisqa(root: Path, clips: list[Clip]) -> None:
    clips[0].to(root / 'LibriSQA/LibriSpeech/test-clean/61/70968/61-70968-0000.flac')
    row = {'speech_path': 'LibriSpeech/test-clean/61/70968/61-70968-0000.wav', 'text': 'HE BEGAN', 'question': 'What?'}
    write_json(root / 'LibriSQA/LibriSQA-PartI/LibriSQA-PartI-test.json', [row | {'answer': 'He began.'}])


def voicebench(root: Path, clips: list[Clip]) -> None:
    base = {'prompt': 'Who {is} it?'}
    rows: dict[str, dict[str, Any]] = {
        'alpacaeval_full/test': {}, 'sd-qa/aus': {'reference': 'Anna'}, 'sd-qa/usa': {'reference': 'Ann'},
        'openbookqa/test': {'reference': 'B'}, 'mmsu/law': {'reference': 'A'},
        'bbh/test': {'id': 'navigate_1', 'reference': 'Yes'}, 'advbench/test': {},
        'ifeval/test': {'key': 1, 'instruction_id_list': ['punctuation:no_comma'], 'kwargs': [{'num_words': None}]},
    }  # fmt: skip
    for name, row in rows.items():
        write_parquet(root / f'voicebench/{name}-00000-of-00001.parquet', [base | row], [clips[0].path])


def speech_ifeval(root: Path, clips: list[Clip]) -> None:
    clips[0].to(root / 'Speech-IFEval/data/audios/Gender_recognition/a.mp3')
    row = {
        'id': 0, 'audio_filepath': 'Gender_recognition/a.mp3', 'textual_audio': '[00:00:00] Hi.(Gender: Male)',
        'instruction': 'Man or woman?\nUse capitals.', 'dataset': 'Gender_recognition', 'metric': 'accuracy',
        'instruction_id_list': ['change_case:english_capital'], 'kwargs': [{}], 'label': 'Man',
    }  # fmt: skip
    for name in ('closed_ended_questions', 'creative_writing', 'chain-of-thought'):
        write_json(root / f'Speech-IFEval/data/eval_data/{name}.jsonl', [row])


def mmau(root: Path, clips: list[Clip]) -> None:
    clips[0].to(root / 'MMAU/test-mini-audios/3fe6.wav')
    row = {'id': '3fe6', 'audio_id': './test-mini-audios/3fe6.wav', 'question': 'Who?', 'choices': ['Man', 'Dog']}
    write_json(root / 'MMAU/mmau-test-mini.json', [row | {'answer': 'Man', 'task': 'speech'}])


def air_bench(root: Path, clips: list[Clip]) -> None:
    row = {'path': 'a.wav', 'question': 'What?', 'answer_gt': 'a dog', 'dataset_name': 'clotho', 'uniq_id': 5}
    sounds = row | {'task_name': 'Audio_Grounding', 'choice_a': 'a dog', 'choice_b': 'a cat', 'choice_c': None}
    clips[0].to(root / 'AIR-Bench/Foundation/Audio_Grounding_clotho/a.flac')
    write_json(root / 'AIR-Bench/Foundation/Foundation_meta.json', [sounds | {'choice_d': None}])
    clips[0].to(root / 'AIR-Bench/Chat/speech_QA_clotho/a.wav')
    write_json(root / 'AIR-Bench/Chat/Chat_meta.json', [row | {'task_name': 'speech_QA', 'meta_info': 'a bark'}])
    write(root / 'AIR-Bench/code/Inference_Foundation.py', "question_prompts = 'Take one.'")


def dynamic_superb(root: Path, clips: list[Clip]) -> None:
    row = {'file': 'a.wav', 'instruction': 'Which accent? The answer could be: a, or b.', 'label': 'a'}
    path = root / 'DynamicSuperb/AccentClassification_AccentdbExtended/data/test-00000-of-00001.parquet'
    write_parquet(path, [row], [clips[0].path])
