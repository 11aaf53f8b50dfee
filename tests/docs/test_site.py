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
"""The site of the documentation: it builds with every link and anchor checked, and asks no other host for anything."""

import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def hooks() -> Any:
    spec = spec_from_file_location('site_hooks', ROOT / 'tools' / 'site_hooks.py')
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.integration
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    # not --quiet: it hides warnings, a wrong anchor among them, from --strict as well
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {
        path.relative_to(tmp_path).as_posix(): path.read_text(encoding='utf-8') for path in tmp_path.rglob('*.html')
    }
    sources = {
        path.relative_to(ROOT / 'docs').with_suffix('.html').as_posix() for path in (ROOT / 'docs').rglob('*.md')
    }
    assert sources | {'index.html', 'source/CHANGELOG.html', 'source/conf/data/paper_blend.yaml.html'} <= pages.keys()
    for name, html in pages.items():
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="?([^" >]+)', html)
        loaded += re.findall(r'<link[^>]*rel="?(?:stylesheet|preconnect|icon)"?[^>]*href="?([^" >]+)', html)
        assert loaded and not [url for url in loaded if re.match(r'(https?:)?//', url)], name
        assert '```' not in html, f'{name}: a code block is not read as one'
    assert 'img/overview.svg' in pages['index.html'] and 'href="guide.html"' in pages['index.html']
    assert 'href="../adr/0047-whose-file-it-is.html"' in pages['source/CHANGELOG.html']
    assert 'data.<wbr>max_tokens' in pages['config.html']


def test_the_navigation_takes_every_page(hooks: Any, tmp_path: Path) -> None:
    for name in ('index.md', 'late.md', 'adr/0001-a.md'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('# x\n')
    nav = [{'Home': 'index.md'}, {'Deep': [{'Reliability': 'reliability.md'}, {'Decisions': 'adr'}]}]
    config = SimpleNamespace(docs_dir=str(tmp_path), nav=nav, mdx_configs={})
    without = hooks.on_config(config).nav
    assert without == [{'Home': 'index.md'}, {'Deep': [{'Decisions': ['adr/0001-a.md']}]}, {'More': ['late.md']}]
    (tmp_path / 'reliability.md').write_text('# x\n')
    config.nav = nav
    assert hooks.on_config(config).nav[1] == {'Deep': [nav[1]['Deep'][0], {'Decisions': ['adr/0001-a.md']}]}


def test_a_link_to_nothing_is_an_error(hooks: Any) -> None:
    from mkdocs.exceptions import PluginError

    text = '[a](../conf/data/demo.yaml) [b](guide.md#x) [c](#here) [d](https://e.f)'
    assert list(hooks.linked(text, 'docs/x.md')) == ['conf/data/demo.yaml', 'docs/guide.md']
    for target in ('nowhere.md', '../conf'):
        with pytest.raises(PluginError, match='no such file'):
            list(hooks.linked(f'[a]({target})', 'docs/x.md'))


@pytest.mark.parametrize(
    'path', ['README.md', 'CHANGELOG.md', 'conf/data/demo.yaml', 'docs/guide.md', 'docs/adr/0002-x.md']
)
def test_a_file_has_one_page(hooks: Any, path: str) -> None:
    assert hooks.repository_path(hooks.site_path(path)) == path
