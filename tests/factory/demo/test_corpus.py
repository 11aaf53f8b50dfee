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
"""The demonstration corpus: grammar, splits, the NeMo format, the check, and chats answered by a model."""

import json
import shutil
from random import Random

import pytest

from nemo_vtb.assets.recordings import Utterance, write_recordings
from nemo_vtb.assets.voices import speak
from nemo_vtb.constants import KINDS
from nemo_vtb.data.conversation import conversation_from_dict, read_jsonl
from nemo_vtb.errors import VtbAssetError, VtbDataError, VtbModelError
from nemo_vtb.factory.demo.build import make_demo
from nemo_vtb.factory.demo.corpus import SPLITS, check_corpus, split_commands, split_prompts
from nemo_vtb.factory.demo.dialogues import MIXED_TASKS, Pool, Recorder, SpokenCommand, mixed_lines
from nemo_vtb.factory.demo.household import (
    NUMBERS,
    PREFIXES,
    Command,
    all_commands,
    ask_both,
    ask_command,
    ask_mention,
)
from nemo_vtb.factory.demo.text_only import PromptChat, chat_prompts, generate_text_chats, reference_chats
from nemo_vtb.factory.settings import Demo, Verify
from nemo_vtb.factory.stage import WORK

LAMP = Command('turn on', 'lamp', 'kitchen', 'at noon')
DOOR = Command('close', 'door', 'garage', 'tonight')

PROMPTS = {
    'en': ('Please enter your password', 'Goodbye my friend', 'The conference is now locked', 'You have new messages',
           'That number is not valid', 'Please hold the line', 'All lines are busy now', 'Press one for yes',
           'Welcome to the directory', 'Your message was saved', 'Try again later please', 'Thank you for calling'),
    'it': ('Inserire la password', 'Arrivederci amico mio', 'La conferenza ora è bloccata', 'Hai nuovi messaggi',
           'Il numero non è valido', 'Attendere in linea', 'Tutte le linee sono occupate', 'Premere uno per sì',
           'Benvenuti nella rubrica', 'Il messaggio è salvato', 'Riprovare più tardi', 'Grazie della chiamata'),
}  # fmt: skip


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
    folders = {}
    for lang, voice in (('en', 'en-GB'), ('it', 'it-IT')):
        folders[lang] = tmp_path_factory.mktemp(f'prompts-{lang}')
        items = [
            Utterance(f'vm/{i}', text, lang, (speak(text, voice) * 32767).astype('int16'))
            for i, text in enumerate(PROMPTS[lang])
        ]
        write_recordings(folders[lang], f'asterisk-{lang}', items, licence='l', credit='c', source='s')
    return folders


def make_corpus(out, recordings, seed=0):
    """A tiny corpus without a language model and without a listener."""
    counts = {'commands': (12, 4, 4), 'speech_qa': (10, 5, 5), 'mixed_modal': (12, 9, 9), 'text': (8, 4, 4)}
    settings = Demo(seed=seed, llm=None, verify=Verify(asr=None, max_s=20.0), **counts)
    card = make_demo(settings, out, recordings=recordings, workers=1, say=lambda text: None)
    shutil.rmtree(out / WORK)
    return card


@pytest.fixture(scope='module')
def built(tmp_path_factory, recordings):
    out = tmp_path_factory.mktemp('corpus')
    return out, make_corpus(out, recordings)


def lines_of(folder, name):
    return [line for _, _, line in read_jsonl(folder / f'{name}.jsonl')]


# ---- grammar


def test_the_grammar_is_closed_and_without_repetition():
    texts = [command.text for command in all_commands()]
    assert len(texts) == len(set(texts)) == 960
    assert len({word for text in texts for word in text.lower().strip('.').split()}) < 50
    assert len({command.text for command in all_commands(PREFIXES)}) == 3 * 960


@pytest.mark.parametrize(
    ('command', 'text', 'state'),
    [
        (LAMP, 'Turn on the lamp in the kitchen at noon.', 'on'),
        (DOOR, 'Close the door in the garage tonight.', 'closed'),
        (DOOR.but(prefix='could you'), 'Could you close the door in the garage tonight?', 'closed'),
        (LAMP.but(room='office', prefix='please'), 'Please turn on the lamp in the office at noon.', 'on'),
    ],
)
def test_a_command_is_a_sentence(command, text, state):
    assert (command.text, command.state) == (text, state)


def test_answers_about_a_command_are_true():
    wanted = {'room': 'The kitchen.', 'item': 'The lamp.', 'time': 'At noon.', 'state': 'On.', 'words': 'Nine.'}
    seen = set()
    for seed in range(200):
        for task, question, answer in ask_command(Random(seed), LAMP, 3):
            seen.add(task)
            if task == 'mention':
                said = question.rstrip('?').split()[-1] in LAMP.text.lower()
                assert answer == ('Yes.' if said else 'No.')
            else:
                assert answer == wanted[task]
    assert seen == {*wanted, 'mention'}
    assert max(len(command.body.split()) for command in all_commands(PREFIXES)) < len(NUMBERS)


def test_answers_about_two_commands_are_true():
    for seed in range(50):
        task, question, answer = ask_both(Random(seed), LAMP, DOOR)
        if task == 'same_room':
            assert answer == 'No.'
        else:
            first = any(part in question for part in ('kitchen', 'lamp', 'at noon'))
            assert answer == ('The first.' if first else 'The second.')
    assert ask_both(Random(0), LAMP, LAMP)[::2] == ('same_room', 'Yes.')


def test_words_asked_for_are_said_or_not():
    answers = []
    for seed in range(100):
        _, question, answer = ask_mention(Random(seed), 'Please enter your password.', ['Enter the extension now'])
        assert (question.split('"')[1] in ('please', 'enter', 'your', 'password')) == (answer == 'Yes.')
        answers.append(answer)
    assert 30 < answers.count('Yes.') < 70


# ---- splits


@pytest.mark.parametrize('prefixes', [('',), PREFIXES])
def test_a_sentence_is_in_one_split_whatever_its_opening(prefixes):
    splits = split_commands(prefixes, 0)
    sets = [{command.but(prefix='') for command in splits[name]} for name in SPLITS]
    assert [len(part) for part in sets] == [768, 96, 96]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
    assert splits == split_commands(prefixes, 0) != split_commands(prefixes, 1)


def test_messages_that_share_a_text_stay_together():
    rows = [{'key': f'k{i}', 'lang': 'en', 'text': f'message {i}'} for i in range(60)]
    rows += [{'key': 'k1', 'lang': 'it', 'text': 'Uguale.'}, {'key': 'k2', 'lang': 'it', 'text': 'uguale'}]
    rows += [{'key': 'k3', 'lang': 'en', 'text': 'Message 2!'}]
    for seed in range(5):
        split = split_prompts(rows, seed)
        assert split['k1'] == split['k2'] == split['k3']
        assert [list(split.values()).count(name) for name in SPLITS][1:] != [0, 0]
    assert split_prompts(rows, 3) == split_prompts(list(rows), 3)


def test_chat_topics_are_in_one_split():
    prompts = chat_prompts(0)
    firsts = {name: {chat.prompts[0] for chat in chats} for name, chats in prompts.items()}
    assert len(set.union(*firsts.values())) == sum(map(len, firsts.values())) > 500
    assert len(firsts['test']) >= 60 and len(firsts['train']) >= 300
    topics = {name: {p.removeprefix('What is ').rstrip('?') for p in part} for name, part in firsts.items()}
    assert not topics['train'] & topics['test']
    assert any(len(chat.prompts) == 2 for chat in prompts['train'])


def test_reference_chats_are_answered():
    chats = reference_chats()
    assert len(chats) >= 60 and all(len(chat.prompts) == len(chat.answers) for chat in chats)


# ---- the corpus


def test_all_kinds_and_splits_are_written(built):
    folder, card = built
    for kind in KINDS:
        for split in SPLITS:
            name = f'{kind}.{split}'
            assert card['files'][name]['conversations'] == len(lines_of(folder, name)) > 0
    assert card['files']['asr_ast.train']['sources'].keys() == {'commands', 'asterisk-asr'}
    assert card['splits']['train']['seconds'] > 20
    assert 'prompts it' in card['licences']
    assert json.loads((folder / 'card.json').read_text(encoding='utf-8')) == card


def test_lines_are_conversations_of_their_kind(built):
    folder, _ = built
    for path in folder.glob('*.jsonl'):
        for line in lines_of(folder, path.stem):
            conversation = conversation_from_dict(line, kind=None, source=None, base_dir=folder)
            name = path.name.split('.')[0].removesuffix('_multilingual')
            assert conversation.kind == {'spoken_chat': 'mixed_modal'}.get(name, name)
            assert conversation.is_text_only == (conversation.kind == 'text')
            assert conversation.turns[-1].role == 'assistant'


def test_mixed_turns_are_typed_and_spoken(built):
    folder, _ = built
    for line in lines_of(folder, 'mixed_modal.train'):
        assert {entry['type'] for entry in line['conversations'] if entry['from'] == 'User'} == {'text', 'audio'}


def test_translations_keep_their_message_in_one_split(built):
    folder, _ = built
    keys = {}
    for split in SPLITS:
        lines = lines_of(folder, f'asr_ast_multilingual.{split}') + lines_of(folder, f'asr_ast.{split}')
        keys[split] = {line['custom']['key'] for line in lines if 'key' in line['custom']}
    assert sum(map(len, keys.values())) == len(set.union(*keys.values())) == len(PROMPTS['en'])
    tasks = {(line['custom']['lang'], line['custom'].get('target_lang')) for line in lines if 'key' in line['custom']}
    assert {('it', 'en'), ('en', 'it'), ('it', None)} <= tasks


def test_two_builds_are_equal_to_the_byte(built, recordings, tmp_path):
    make_corpus(tmp_path, recordings)
    for path in sorted(built[0].rglob('*.*')):
        assert (tmp_path / path.relative_to(built[0])).read_bytes() == path.read_bytes()


def test_another_seed_gives_another_corpus(built, tmp_path):
    make_corpus(tmp_path, {}, seed=1)
    name = 'asr_ast.test.jsonl'
    assert (tmp_path / name).read_text() != (built[0] / name).read_text()
    assert not list(tmp_path.glob('asr_ast_multilingual*'))


def test_changed_commands_stay_in_their_split(tmp_path):
    sentences = split_commands(('',), 0)['test']
    clips = [
        SpokenCommand(f'wav/{i}.wav', 1.0, command.text, command=command) for i, command in enumerate(sentences[:20])
    ]
    pool = Pool('test', clips, frozenset(sentences))
    lines = mixed_lines(Random(0), pool, Recorder(tmp_path), 40)
    texts = {command.text for command in sentences}
    rewritten = [line for line in lines if line['custom']['task'].startswith('rewrite')]
    assert {line['custom']['task'] for line in lines} == set(MIXED_TASKS)
    assert rewritten and all(line['conversations'][-1]['value'] in texts for line in rewritten)


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(VtbAssetError, match='manifest'):
        make_corpus(tmp_path, {'en': tmp_path})


# ---- the check finds what is wrong


def edit(folder, name, change):
    path = folder / f'{name}.jsonl'
    lines = lines_of(folder, name)
    change(lines)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')


def longer(lines):
    next(e for e in lines[0]['conversations'] if e['type'] == 'audio')['duration'] += 0.01


def twice(lines):
    lines.append(lines[0])


def lost(lines):
    next(e for e in lines[0]['conversations'] if e['type'] == 'audio')['value'] = 'wav/none.wav'


def unanswered(lines):
    lines[0]['conversations'].pop()


@pytest.mark.parametrize(
    ('change', 'message'),
    [(longer, 'duration'), (twice, 'used twice'), (lost, 'cannot be read'), (unanswered, 'not in order')],
)
def test_the_check_finds_a_broken_line(built, tmp_path, change, message):
    folder = shutil.copytree(built[0], tmp_path / 'copy')
    edit(folder, 'speech_qa.train', change)
    with pytest.raises(VtbDataError, match=message):
        check_corpus(folder)


def test_the_check_finds_a_recording_in_two_splits(built, tmp_path):
    folder = shutil.copytree(built[0], tmp_path / 'copy')
    entries = lines_of(folder, 'asr_ast.train')[0]['conversations']
    sound = next(entry for entry in entries if entry['type'] == 'audio')
    # the same sound under another name is found too
    shutil.copyfile(folder / sound['value'], folder / 'wav/other.wav')
    copied = {**sound, 'value': 'wav/other.wav'}

    def smuggle(lines):
        lines[0]['conversations'] = [copied if e['type'] == 'audio' else e for e in lines[0]['conversations']]

    edit(folder, 'asr_ast.test', smuggle)
    with pytest.raises(VtbDataError, match='recording is in two splits'):
        check_corpus(folder)


def test_the_check_names_the_line_that_is_not_json(built, tmp_path):
    folder = shutil.copytree(built[0], tmp_path / 'copy')
    with (folder / 'text.train.jsonl').open('a', encoding='utf-8') as file:
        file.write('{"id": \n')
    with pytest.raises(VtbDataError, match=r'text\.train\.jsonl:9'):
        check_corpus(folder)


# ---- chats answered by a model


def test_a_model_answers_every_turn_in_order(tiny_llm_dir):
    prompts = [
        PromptChat(('One?',)),
        PromptChat(('A much longer question, is it not?', 'And why?')),
        PromptChat(('Two?',)),
    ]
    chats = generate_text_chats(
        tiny_llm_dir,
        prompts,
        max_new_tokens=5,
        batch_size=2,
    )
    assert [chat.prompts for chat in chats] == [chat.prompts for chat in prompts]
    assert [len(chat.answers) for chat in chats] == [1, 2, 1]
    assert chats == generate_text_chats(tiny_llm_dir, prompts, max_new_tokens=5, batch_size=2)


def test_a_folder_without_model_is_named(tmp_path):
    with pytest.raises(VtbModelError) as caught:
        generate_text_chats(tmp_path, [PromptChat(('Hello?',))])
    assert caught.value.field == 'llm'


@pytest.mark.slow
def test_nemo_reads_every_line(built):
    from nemo.collections.common.data.lhotse.text_adapters import NeMoMultimodalConversationJsonlAdapter

    folder, card = built
    for name, counts in card['files'].items():
        adapter = NeMoMultimodalConversationJsonlAdapter(str(folder / f'{name}.jsonl'), audio_locator_tag='[audio]')
        conversations = list(adapter)
        assert len(conversations) == counts['conversations']
        seconds = sum(cut.duration for c in conversations for cut in c.list_cuts())
        assert seconds == pytest.approx(counts.get('seconds', 0.0), abs=0.01)
        for conversation in conversations:
            assert {turn.role for turn in conversation.turns} == {'user', 'assistant'}
            for cut in conversation.list_cuts():
                assert cut.sampling_rate == 16000 and cut.load_audio().shape == (1, round(cut.duration * 16000))


@pytest.mark.real_weights
def test_the_real_corpus(assets):
    folder = assets('demo-corpus')['demo-corpus']
    card = json.loads((folder / 'card.json').read_text(encoding='utf-8'))
    assert {key: value for key, value in card.items() if key in ('files', 'splits')} == check_corpus(folder)
    files = card['files']
    # spans that were not understood when they were transcribed back are left out, and said so
    left_out = card['lines_left_out']
    assert files['asr_ast.train']['sources']['commands'] == 600 - left_out.get('asr_ast.train', 0)
    assert 0 < card['spans_rejected'] < 0.1 * card['spans'] and card['wer']['p50'] == 0.0
    assert files['mixed_modal.train']['conversations'] > 300
    assert files['text_reference.test']['conversations'] >= 60 and files['text.test']['conversations'] == 60
    assert 0.6 < card['splits']['train']['hours'] < 1.0
    assert card['text_answers_by'] == 'minimind2-small'
