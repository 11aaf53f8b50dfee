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
"""Hooks of mkdocs.yml: one set of files serves GitHub and the site.

The README is the first page. Files outside docs/ that a page links to (YAML files, the changelog) become pages under
`source/`. Headings have the anchors that GitHub gives them, and what only GitHub or
tests read (lists of sections, marks of code blocks) is taken off.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = ('reliability.md',)
"""Pages that the navigation names before they are written."""
_LINK = re.compile(r'(\]\()([^)\s#:]+)(?=[#)])')
# the lists of sections that GitHub needs; the site has its own beside the page
_CONTENTS = re.compile(r'^(?:\[[^\]\n]+\]\(#[^)\n]+\)(?: -[ \n]|\n))+\n', re.MULTILINE)
_FENCE = re.compile(r'(^```.*?^```$)', re.MULTILINE | re.DOTALL)


def anchor(heading: str, separator: str = '-') -> str:
    """The anchor of a heading on GitHub."""
    return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', separator)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation, and name headings as GitHub does."""
    config.mdx_configs['toc'] = {**config.mdx_configs.get('toc', {}), 'slugify': anchor}
    docs = Path(config.docs_dir)
    present = {path.relative_to(docs).as_posix() for path in docs.rglob('*.md')}
    config.nav = list(_completed(config.nav or [], present))
    named = set(_pages(config.nav))
    if rest := sorted(present - named):
        config.nav.append({'More': rest})
    return config


def _completed(nav: list[Any], present: set[str]) -> Iterator[Any]:
    for entry in nav:
        ((title, target),) = entry.items()
        if target == 'adr':
            yield {title: sorted(path for path in present if path.startswith('adr/'))}
        elif isinstance(target, list):
            yield {title: list(_completed(target, present))}
        elif target not in OPTIONAL or target in present:
            yield entry


def _pages(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        target = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from _pages(target) if isinstance(target, list) else [target]


# ---- one address for each file of the repository


def repository_path(page: str) -> str:
    """Where the text of a page of the site comes from."""
    if page == 'index.md':
        return 'README.md'
    if not page.startswith('source/'):
        return f'docs/{page}'
    path = page.removeprefix('source/')
    return path if (ROOT / path).is_file() else path.removesuffix('.md')


def site_path(path: str) -> str:
    """The page (or picture) of the site that shows a file of the repository."""
    if path == 'README.md':
        return 'index.md'
    if path.startswith('docs/'):
        return path.removeprefix('docs/')
    return f'source/{path}' if path.endswith('.md') else f'source/{path}.md'


def linked(markdown: str, path: str) -> Iterator[str]:
    """The files of the repository that a text at `path` links to.

    Raises:
        PluginError: One of them is not there, or is a folder, which has no page.
    """
    for piece in _FENCE.split(markdown)[::2]:
        for _, target in _LINK.findall(piece):
            found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            if not (ROOT / found).is_file():
                raise PluginError(f'{path} links to {target}: there is no such file')
            yield found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README and what is linked outside docs/."""
    waiting = ['README.md', *(repository_path(file.src_uri) for file in files.documentation_pages())]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        text = (ROOT / path).read_text(encoding='utf-8')
        if not path.endswith('.md'):
            language = Path(path).suffix[1:] or 'text'
            text = f'---\nsearch: {{exclude: true}}\n---\n# {path}\n\n```{language}\n{text}```\n'
        else:
            waiting += [each for each in linked(text, path) if not each.startswith('docs/')]
        if not path.startswith('docs/'):
            files.append(File.generated(config, site_path(path), content=text))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let long keys of a table break at their dots."""
    return re.sub(r'(?<=<td><code>)[\w.\[\]]+', lambda match: match[0].replace('.', '.<wbr>'), html)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files into links between pages."""
    path = repository_path(page.file.src_uri)
    if not path.endswith('.md'):
        return markdown
    here = posixpath.dirname(page.file.src_uri)

    def relink(match: re.Match[str]) -> str:
        found = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        return match[1] + posixpath.relpath(site_path(found), here or '.')

    pieces = _FENCE.split(markdown)
    pieces[::2] = [_LINK.sub(relink, _CONTENTS.sub('', piece)) for piece in pieces[::2]]
    return re.sub(r'^```bash run( slow)?$', '```bash', ''.join(pieces), flags=re.MULTILINE)
