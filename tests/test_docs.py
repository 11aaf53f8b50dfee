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
"""The documentation is held to the code: links, paths, keys, commands and error messages that it names exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from nemo_vtb import __all__ as public_names
from nemo_vtb import __version__, cli
from nemo_vtb.config.check import more_keys
from nemo_vtb.config.keys import ListOf, MapOf, Node, Section, section_of
from nemo_vtb.config.schema import TrainConfig

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md')]
PAGES += sorted((ROOT / 'docs').rglob('*.md'))
DECISIONS = sorted((ROOT / 'docs' / 'adr').glob('[0-9][0-9][0-9][0-9]-*.md'))
# the groups of the training configuration, and the providers of further keys that cost seconds to import
GROUPS = ('model', 'data', 'trainer')
TOP_FOLDERS = ('benchmarks', 'conf', 'constraints', 'docs', 'examples', 'nemo_vtb', 'tests', 'tools')
FOREIGN = {'cd', 'docker', 'export', 'lhotse', 'pip', 'sbatch', 'torchrun'}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r'^```.*?^```', '', page.read_text(encoding='utf-8'), flags=re.MULTILINE | re.DOTALL)


def code_spans(page: Path) -> list[str]:
    return re.findall(r'`([^`\n]+)`', prose(page))


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language, with the mark `run` or without (tests/docs/test_commands.py)."""
    text = page.read_text(encoding='utf-8')
    return re.findall(rf'^```{language}(?: run(?: slow)?)?\n(.*?)^```', text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Names of the headings as GitHub makes them."""
    headings = re.findall(r'^#+ (.+)$', prose(page), flags=re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


# ---- links and paths


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if re.match(r'[a-z]+:', target):
            continue
        path, _, anchor = target.partition('#')
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f'{target} is not there'
        if anchor:
            assert anchor in anchors(file), f'{target}: no such heading; there are {sorted(anchors(file))}'


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_paths_exist(page: Path) -> None:
    for span in code_spans(page):
        if re.fullmatch(rf'({"|".join(TOP_FOLDERS)})/[\w./-]*', span) and 'my_' not in span:
            assert (ROOT / span).exists(), f'{span} is not there'


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_short_paths_exist(page: Path) -> None:
    """Modules may be named from the package on (`data/sampler.py`), also in drawings."""
    pictures = [page.parent / path for path in re.findall(r'\]\(([\w/.]+\.svg)\)', prose(page))]
    drawn = [word for path in pictures for word in re.findall(r'[\w/]+/\w+\.py', path.read_text(encoding='utf-8'))]
    for span in [*code_spans(page), *drawn]:
        if re.fullmatch(r'\w+(/\w+)+\.py', span) and span.split('/')[0] not in TOP_FOLDERS:
            assert (ROOT / 'nemo_vtb' / span).is_file(), f'{span} is not there'


@pytest.mark.parametrize('page', [p for p in PAGES if p.name != 'CHANGELOG.md'], ids=name_of)
def test_dotted_names_exist(page: Path) -> None:
    """`nemo_vtb.a.b` is a module, or a name that stands in one; the changelog also names what was."""
    for span in code_spans(page):
        if re.fullmatch(r'nemo_vtb(\.\w+)+', span):
            *parents, name = span.split('.')
            path = ROOT.joinpath(*parents, name)
            if not path.is_dir() and not path.with_suffix('.py').is_file():
                module = ROOT.joinpath(*parents)
                file = module / '__init__.py' if module.is_dir() else module.with_suffix('.py')
                assert re.search(rf'\b{name}\b', file.read_text(encoding='utf-8')), f'{span} is not there'


# ---- the page on the architecture

ARCHITECTURE = ROOT / 'docs' / 'architecture.md'


def rows_under(heading: str) -> list[list[str]]:
    """Cells of the table under a heading of the architecture page, without its head."""
    section = ARCHITECTURE.read_text(encoding='utf-8').partition(f'## {heading}\n')[2].partition('\n## ')[0]
    return [line.strip('| ').split(' | ') for line in section.splitlines() if line.startswith('| ')][2:]


def test_where_things_are() -> None:
    rows = rows_under('Where is ...?')
    assert len(rows) >= 10
    for _, answer in rows:
        spans = re.findall(r'`([^`]+)`', answer)
        text = ''.join((ROOT / span).read_text(encoding='utf-8') for span in spans if span.endswith('.py'))
        for name in (part for span in spans if re.fullmatch(r'[A-Za-z_.]+', span) for part in span.split('.')):
            assert re.search(rf'^ *(def|class) {name}\b', text, re.M) or f'{name}.py' in answer, f'{name} is elsewhere'


def test_table_of_packages_is_that_of_the_import_test() -> None:
    tree = ast.parse((ROOT / 'tests' / 'test_architecture.py').read_text(encoding='utf-8'))
    layers = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'LAYERS'
    )
    rows = rows_under('Packages')
    assert [tuple(re.findall(r'`(\w+)`', row[1])) for row in rows] == list(layers)
    assert [row[0] for row in rows] == [str(number) for number in range(1, len(layers) + 1)]


@pytest.mark.parametrize('page', [ARCHITECTURE, ROOT / 'docs' / 'glossary.md', *DECISIONS], ids=name_of)
def test_classes_exist(page: Path) -> None:
    files = [path.read_text(encoding='utf-8') for path in (ROOT / 'nemo_vtb').rglob('*.py')]
    classes = {name for text in files for name in re.findall(r'^ *class (\w+)', text, re.M)}
    for span in code_spans(page):
        if re.fullmatch(r'(Vtb|Backbone|Parallel|Megatron|Packed|Token|Run|Row|Batch|HFB|Sharded)[A-Z]\w*', span):
            assert span in classes, f'{span} is no class'


# ---- configuration keys


@cache
def yaml_files() -> list[tuple[str, Any]]:
    """(Prefix of its keys, content) of the training configurations."""
    found = [('', path) for path in (ROOT / 'conf').glob('*.yaml')]
    found += [(f'{group}.', path) for group in GROUPS for path in (ROOT / 'conf' / group).glob('*.yaml')]
    return [(prefix, OmegaConf.to_container(OmegaConf.load(path), resolve=False)) for prefix, path in found]


def in_yaml(key: str) -> bool:
    for prefix, content in yaml_files():
        node = content
        for name in key.removeprefix(prefix).split('.') if key.startswith(prefix) else ['']:
            node = node.get(name) if isinstance(node, dict) else None
        if node is not None:
            return True
    return False


def in_schema(key: str) -> bool:
    """Whether our table knows the key, or else the class to which the section belongs."""
    node: Node | None = section_of(TrainConfig)
    for name in key.split('.'):
        if isinstance(node, ListOf) and name.isdigit() or isinstance(node, MapOf):
            node = node.item
        elif isinstance(node, Section) and name in node.keys:
            node = node.keys[name]
        elif isinstance(node, Section) and node.more:
            known = more_keys(node.more, {})
            return known is None or name in known
        else:
            return False
    return True


def is_key(key: str) -> bool:
    return in_yaml(key) or in_schema(key)


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_keys_exist(page: Path) -> None:
    for span in code_spans(page):
        for word in span.split():
            match = re.fullmatch(r'\+?((?:model|data|trainer|exp_manager)(?:\.[a-z]\w*)+)(?:=.*)?', word)
            if match:
                assert is_key(match[1]), f'no such key: {match[1]}'


def test_the_check_of_keys_finds_what_is_wrong() -> None:
    assert is_key('data.budget.text') and is_key('data.unit') and is_key('model.lora.r') and is_key('trainer.devices')
    assert not is_key('data.budgets') and not is_key('model.pretrained_llms') and not is_key('model.data')


# ---- commands


def commands() -> Iterator[Any]:
    """Every line of every `bash` block, in which each command must be real."""
    for page in PAGES:
        for block in blocks(page, 'bash'):
            for line in block.replace('\\\n', ' ').splitlines():
                if words := shlex.split(line, comments=True):
                    yield pytest.param(words, id=f'{name_of(page)}: {" ".join(words)[:60]}')


@pytest.mark.parametrize('words', commands())
def test_commands_are_real(words: list[str]) -> None:
    while re.fullmatch(r'[A-Z_]+=.*', words[0]):
        words = words[1:]
    program, *rest = words
    if program == 'make':
        targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(encoding='utf-8'), flags=re.MULTILINE)
        assert set(rest) <= set(targets)
    elif program in ('vtb', '.venv/bin/vtb'):
        check_vtb(rest)
    elif program in ('python', '.venv/bin/python'):
        assert (ROOT / rest[0]).is_file()
        check_overrides(rest[0], rest[1:])
    else:
        assert program in FOREIGN, f'unknown command {program}: add it here once it is checked'
        for word in rest:
            if word.startswith(('examples/', 'benchmarks/')):
                assert (ROOT / word).is_file()


def check_vtb(words: list[str]) -> None:
    command = words[0]
    if command.startswith('-'):
        return
    assert command in cli._COMMANDS
    for word in words[1:]:
        if word.startswith(('conf/', 'examples/')):
            assert (ROOT / word).is_file()


def check_overrides(script: str, words: list[str]) -> None:
    if words[:1] == ['--config-name']:
        assert (ROOT / 'conf' / f'{words[1]}.yaml').is_file()
        words = words[2:]
    if words in ([], ['--help']) or not script.startswith('examples/'):
        return
    name = Path(script).stem
    for override in OverridesParser.create().parse_overrides(words):
        key, value = override.key_or_group, str(override.value())
        if name not in ('speechllm_joint_sft', 'speechllm_align_adapter'):
            assert key in OmegaConf.load(ROOT / 'conf' / 'eval' / f'{name}.yaml'), f'no such key: {key}'
        elif key in GROUPS:
            assert value.startswith('my_') or (ROOT / 'conf' / key / f'{value}.yaml').is_file(), f'no {key}={value}'
        else:
            assert is_key(key), f'no such key: {key}'


def used_vtb_commands() -> list[str]:
    lines = [param.values[0] for param in commands()]
    used = {w[1] for w in lines if len(w) > 1 and w[0].endswith('vtb') and not w[1].startswith('-')}
    spans = [span.split() for page in PAGES for span in code_spans(page)]
    return sorted(used | {w[1] for w in spans if len(w) > 1 and w[0] == 'vtb' and re.fullmatch('[a-z]+', w[1])})


@pytest.mark.parametrize('command', used_vtb_commands())
def test_vtb_commands_have_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, '--help'])
    assert not end.value.code
    helped = capsys.readouterr().out
    for words in (param.values[0] for param in commands()):
        if len(words) > 1 and words[0].endswith('vtb') and words[1] == command:
            assert all(word in helped for word in words if word.startswith('--') and word != '--help')


@pytest.mark.parametrize('page', [p for p in PAGES if blocks(p, 'python')], ids=name_of)
def test_python_blocks_compile_and_import_public_names(page: Path) -> None:
    for block in blocks(page, 'python'):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == 'nemo_vtb':
                assert {alias.name for alias in node.names} <= set(public_names)


def test_every_public_name_is_explained() -> None:
    page = (ROOT / 'docs' / 'api.md').read_text(encoding='utf-8')
    explained = re.findall(r'`([A-Za-z_]+)`', ' '.join(re.findall(r'^\| (.*?) \|', page, flags=re.MULTILINE)))
    assert sorted(explained) == sorted(public_names)


# ---- messages


@cache
def messages() -> str:
    """All text of the package, values in f-strings as `...`."""
    texts = []
    for path in (ROOT / 'nemo_vtb').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else '...' for p in node.values]
                texts.append(''.join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return '\n'.join(texts)


def test_messages_of_the_troubleshooting_table_are_real() -> None:
    section = (ROOT / 'docs' / 'troubleshooting.md').read_text(encoding='utf-8').partition('## By message')[2]
    quoted = re.findall(r'^\| `([^`]+)` \|', section, flags=re.MULTILINE)
    assert len(quoted) >= 20
    for message in quoted:
        # a message may be put together out of several texts: each of its fixed parts must be one
        for part in (piece.strip(" '?.") for piece in message.split('...')):
            assert part in messages(), f'no error says: {part}'


# ---- decisions, versions


@pytest.mark.parametrize('page', DECISIONS, ids=name_of)
def test_decisions_are_short_and_complete(page: Path) -> None:
    text = page.read_text(encoding='utf-8')
    assert 20 <= len(text.splitlines()) <= 40
    assert text.startswith(f'# {page.name[:4]}')
    headings = re.findall(r'^## (.+)$', text, flags=re.MULTILINE)
    for wanted in ('context', 'choice|decision', 'alternatives', 'consequences'):
        assert any(re.search(wanted, heading.lower()) for heading in headings), f'no section on {wanted}: {headings}'


def test_decisions_are_numbered_once() -> None:
    numbers = [page.name[:4] for page in DECISIONS]
    assert len(numbers) >= 9 and len(set(numbers)) == len(numbers)


def test_changelog_and_citation_name_the_version() -> None:
    assert re.search(rf'^## \[{re.escape(__version__)}\]', (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8'), re.M)
    assert f'version: {__version__}' in (ROOT / 'CITATION.cff').read_text(encoding='utf-8').replace('"', '')


def test_readme_is_short() -> None:
    assert len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines()) <= 150
