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
"""`vtb inspect`: shows conversations as the model sees them: roles, recordings, supervised tokens."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vtb.assets.resolve import resolve_asset, resolve_assets
from nemo_vtb.commands.training_config import compose_config, frame_counter_of, read_renderer
from nemo_vtb.constants import SAMPLE_RATE
from nemo_vtb.data.conversation import Conversation, conversation_from_dict, read_jsonl
from nemo_vtb.errors import VtbDataError, VtbModelError

if TYPE_CHECKING:
    from rich.console import Console

    from nemo_vtb.data.template import ChatRenderer, Rendered

_DEFAULT_LLM = 'asset:minimind2-small'
_FRAMES_PER_S = 12.5


@dataclass(frozen=True, slots=True)
class Counts:
    """Positions of one rendered conversation.

    Args:
        context: Tokens of text and template without a target.
        supervised: Tokens with a target.
        frames: Frames of each recording.
    """

    context: int
    supervised: int
    frames: tuple[int, ...]

    @property
    def total(self) -> int:
        """Positions that the conversation takes in a packed row."""
        return self.context + self.supervised + sum(self.frames)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vtb inspect`; returns the exit status."""
    arguments = _parser().parse_args(argv)
    from rich.console import Console

    console = Console()
    if Path(arguments.source).suffix in ('.yaml', '.yml'):
        _inspect_config(arguments, console)
    else:
        _inspect_file(arguments, console)
    console.print(
        'Legend: [bold green]green[/] is supervised, [magenta]▶[/] a recording, [dim]dim[/] the marks of the chat '
        'template; everything else is context.'
    )
    return 0


def count(rendered: 'Rendered', durations_s: Sequence[float], frames_of: Callable[[float], int]) -> Counts:
    """Count the positions of a rendered conversation.

    Args:
        rendered: As the renderer returns it.
        durations_s: Length of each recording.
        frames_of: Seconds -> frames.
    """
    supervised = rendered.num_supervised
    context = len(rendered.ids) - rendered.num_audios - supervised
    return Counts(context, supervised, tuple(frames_of(seconds) for seconds in durations_s))


def show(
    conversation: Conversation,
    renderer: 'ChatRenderer',
    console: 'Console',
    *,
    frames_of: Callable[[float], int],
    exact: bool,
) -> Counts:
    """Print one conversation and return its counts.

    Args:
        conversation: What to show.
        renderer: The same renderer as in training.
        console: Where to show it.
        frames_of: Seconds of a recording -> frames.
        exact: Whether that is the encoder's own count, or an estimate (marked `~`).
    """
    from rich.panel import Panel

    rendered = renderer.render(conversation)
    durations = [_duration_s(conversation, n) for n in range(len(conversation.audios))]
    counts = count(rendered, durations, frames_of)
    mark = '' if exact else '~'
    title = f'{conversation.id}  ({conversation.kind}, {conversation.source or "no source"})'
    body = _coloured(conversation, rendered, durations, counts.frames, mark)
    console.print(Panel(body, title=title, title_align='left', border_style='cyan'))
    line = (
        f'{counts.context} context tokens + {sum(counts.frames)} audio frames + {counts.supervised} supervised tokens'
    )
    share = counts.supervised / max(1, counts.total)
    console.print(
        f'{mark if counts.frames else ""}{counts.total} positions: {line} ({share:.1%} supervised)\n', highlight=False
    )
    return counts


def _coloured(
    conversation: Conversation, rendered: 'Rendered', durations_s: Sequence[float], frames: Sequence[int], mark: str
) -> Any:
    import re

    from rich.text import Text

    text = Text()
    for segment in rendered.segments:
        if segment.audio is not None:
            audio = conversation.audios[segment.audio]
            label = (
                f'▶ {durations_s[segment.audio]:.1f} s ({mark}{frames[segment.audio]} frames) {Path(audio.path).name}'
            )
            text.append(label, style='bold magenta')
            if audio.text:
                text.append(f' "{audio.text}"', style='magenta dim')
        elif segment.supervised:
            text.append(segment.text, style='bold green')
        else:
            # marks of the template are dimmed, so that the words stand out
            for piece in re.split(r'(<[^<>\s]{1,40}>)', segment.text):
                text.append(piece, style='dim' if re.fullmatch(r'<[^<>\s]{1,40}>', piece) else '')
    return text


def _duration_s(conversation: Conversation, number: int) -> float:
    audio = conversation.audios[number]
    if audio.duration_s is not None:
        return audio.duration_s
    from nemo_vtb.data.audio import clip_span, probe

    header = probe(audio.path)
    return clip_span(audio, header, SAMPLE_RATE).num_samples / SAMPLE_RATE


# ---- sources


def _inspect_file(arguments: argparse.Namespace, console: 'Console') -> None:
    path = Path(resolve_asset(arguments.source))
    renderer = read_renderer(arguments.llm or _DEFAULT_LLM)
    lines = list(islice(read_jsonl(path), arguments.line - 1, arguments.line - 1 + arguments.count))
    if not lines:
        raise VtbDataError(
            'The file has no such line.', field='--line', got=arguments.line, allowed='a line of the file'
        )
    for number, _, line in lines:
        source = (line.get('custom') or {}).get('source') or path.name
        conversation = conversation_from_dict(line, source=source, base_dir=path.parent, where=f'{path}:{number}')
        show(conversation, renderer, console, frames_of=_estimate, exact=False)
    if any(line for _, _, line in lines):
        console.print(
            f'~: at {_FRAMES_PER_S} frames/s; `vtb inspect CONFIG.yaml` counts exactly as its encoder', style='dim'
        )


def _inspect_config(arguments: argparse.Namespace, console: 'Console') -> None:
    from nemo_vtb.data.sources import parse_input_cfg

    cfg = compose_config(Path(arguments.source), arguments.overrides)
    renderer = read_renderer(arguments.llm or str(cfg.model.pretrained_llm), cfg.model.get('template_date'))
    frames_of, exact = _frames(cfg)
    budget = cfg.data.get('budget') or {}
    for source in parse_input_cfg(resolve_assets(cfg.data.train_ds).input_cfg):
        share = budget.get(source.kind)
        shown = '' if share is None else f', requested share of {source.kind}: {float(share):.1%}'
        console.rule(f'{source.name}: {source.kind}{shown}', align='left')
        for number, _, line in islice(
            read_jsonl(source.files[0]), arguments.line - 1, arguments.line - 1 + arguments.count
        ):
            conversation = source.read(line, 0, f'{source.files[0]}:{number}')
            if conversation is not None:
                show(conversation, renderer, console, frames_of=frames_of, exact=exact)


def _frames(cfg: Any) -> tuple[Callable[[float], int], bool]:
    """The exact count if the encoder's configuration is known without loading it, else an estimate."""
    try:
        counter = frame_counter_of(cfg)
    except VtbModelError:
        return _estimate, False
    return lambda seconds: counter(round(seconds * SAMPLE_RATE)), True


def _estimate(seconds: float) -> int:
    return round(seconds * _FRAMES_PER_S)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='vtb inspect',
        description='Show conversations as the model sees them, rendered as in training.',
    )
    parser.add_argument('source', metavar='FILE|CONFIG', help='a JSONL file (or asset:NAME/FILE), or a training YAML')
    parser.add_argument('overrides', nargs='*', metavar='KEY=VALUE', help='overrides of a training YAML')
    parser.add_argument('--line', type=_positive, default=1, help='first line (default: 1)')
    parser.add_argument('--count', type=_positive, default=1, help='lines to show (default: 1)')
    parser.add_argument(
        '--llm', metavar='FOLDER', help=f'folder or asset:NAME (default: {_DEFAULT_LLM}, or the YAML\'s)'
    )
    return parser


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError('must be at least 1')
    return number
