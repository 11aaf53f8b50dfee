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
"""A model in the form that another program reads, put in place only when it answers as the model does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_vtb.checkpoint.archive import change_sections
from nemo_vtb.errors import VtbCheckpointError, first_line
from nemo_vtb.export.asr import write_asr
from nemo_vtb.export.hf import write_llm
from nemo_vtb.export.model_card import write_card
from nemo_vtb.export.parity import Parity, compare
from nemo_vtb.export.peft import write_peft
from nemo_vtb.export.questions import Question
from nemo_vtb.export.salm import write_salm
from nemo_vtb.io import atomic_replace

if TYPE_CHECKING:
    from rich.console import Console

    from nemo_vtb.model.blender import VoiceTextBlender


@dataclass(frozen=True, slots=True)
class Target:
    """A form of a model: what it is, and what its file or folder is called beside `FILE.nemo`."""

    meaning: str
    suffix: str

    @property
    def is_file(self) -> bool:
        """Whether it is one `.nemo` file and not a folder."""
        return self.suffix.endswith('.nemo')


TARGETS: Mapping[str, Target] = {
    'nemo': Target('one self-contained .nemo file', '-export.nemo'),
    'salm': Target("a folder for NeMo's SALM.from_pretrained", '-salm'),
    'vllm': Target("a folder for NeMo's vLLM plugin", '-vllm'),
    'hf-merged': Target('the LLM with LoRA merged into it, for transformers (text)', '-hf'),
    'peft': Target('LoRA as a PEFT adapter for the untouched LLM (text)', '-peft'),
    'asr': Target('the speech encoder in a stock ASR .nemo', '-asr.nemo'),
}
"""Form -> what it is."""


def default_export_path(source: str | Path, target: str) -> Path:
    """Where a form goes if nothing is said: beside the file that it comes from."""
    source = Path(source)
    return source.with_name(source.name.removesuffix('.nemo') + TARGETS[target].suffix)


def export_model(
    model: 'VoiceTextBlender',
    target: str,
    output: str | Path,
    *,
    check: bool = True,
    overwrite: bool = False,
    include_llm: bool = True,
    asr_source: str | Path | None = None,
    questions: Sequence[Question] | None = None,
    max_new_tokens: int = 16,
    base_llm: str | Path | None = None,
) -> Parity | None:
    """Write one form of a model; a form that does not answer as the model does is removed again.

    Args:
        model: What to export.
        target: One of `TARGETS`.
        output: File or folder.
        check: Whether to compare answers in a process of its own; False leaves the form unproved.
        overwrite: Whether something that stands at `output` may be replaced.
        include_llm: For `nemo`: False leaves the LLM out.
        asr_source: For `asr`: the ASR model whose decoder is kept.
        questions: The prompts; None: the twelve of `questions.default_questions`.
        max_new_tokens: Longest answer.
        base_llm: Folder of the LLM, where the model came from a file without it.

    Returns:
        The comparison; None without `check`.

    Raises:
        VtbCheckpointError: The form cannot be written or opened, something is in its place, or it answers differently.
        ValueError: Unknown target.
    """
    if target not in TARGETS:
        raise ValueError(f'{target!r} is none of {list(TARGETS)}')
    output = Path(output).expanduser().resolve()
    writers: dict[str, Callable[[Path], None]] = {
        'nemo': lambda path: model.save_to(path, include_llm=include_llm),
        'salm': lambda path: write_salm(model, path),
        'vllm': lambda path: write_salm(model, path, vllm_home=output),
        'hf-merged': lambda path: write_llm(model, path),
        'peft': lambda path: write_peft(model, path),
        'asr': lambda path: write_asr(model, path, asr_source),
    }
    parity = None
    with _in_place(output, is_file=TARGETS[target].is_file, overwrite=overwrite) as path:
        writers[target](path)
        if check:
            base = base_llm or str(model.cfg.pretrained_llm) if not include_llm else None
            parity = compare(model, {target: path}, questions=questions, max_new_tokens=max_new_tokens, base_llm=base)
            if not parity.ok:
                raise _differs(target, parity)
        if target == 'nemo' and parity is not None:
            change_sections(path, {'parity': parity.to_json()})
        if path.is_dir():
            write_card(model, path, target, parity)
    return parity


def export_forms(
    model: 'VoiceTextBlender', folder: Path, targets: Sequence[str], console: 'Console | None' = None
) -> dict[str, Path]:
    """Write several exports into a folder, unverified; `peft` and `asr` are skipped where a model has none.

    Args:
        model: The model.
        folder: An existing folder.
        targets: Out of `TARGETS`.
        console: Where skipped ones are reported.

    Returns:
        Target -> its file or folder.
    """
    forms = {}
    for target in targets:
        path = folder / f'model{TARGETS[target].suffix}'
        try:
            export_model(model, target, path, check=False)
        except VtbCheckpointError as error:
            if target not in ('peft', 'asr'):
                raise
            if console:
                console.print(f'{target}: not possible for this model. {first_line(error)}', style='dim', markup=False)
            continue
        forms[target] = path
    return forms


@contextmanager
def _in_place(output: Path, *, is_file: bool, overwrite: bool) -> Iterator[Path]:
    """Yield a path beside `output`; on success it is flushed and takes its place, on failure nothing is left.

    Raises:
        VtbCheckpointError: Something is at `output` already, or nothing can be written there.
    """
    from safetensors import SafetensorError

    if output.exists() and not overwrite:
        raise VtbCheckpointError(
            'Something is at this path already; it is untouched.',
            field='--output',
            got=str(output),
            allowed='a path where nothing is yet',
            remedy='name another one, or add --overwrite',
        )
    try:
        with atomic_replace(output, folder=not is_file) as path:
            yield path
    except (OSError, SafetensorError) as error:
        raise VtbCheckpointError(
            'The export cannot be written; what was there before is untouched.',
            field='--output',
            got=f'{output}: {error}',
            allowed='a folder that can be written to, with enough space',
            remedy='free some space, or name another path',
        ) from error


def _differs(target: str, parity: Parity) -> VtbCheckpointError:
    bad = [row for row in parity.rows if not row.ok]
    worst = max(bad, key=lambda row: row.difference)
    return VtbCheckpointError(
        f'The model exported as {target} does not answer as the model itself does; nothing was left.',
        field='--to',
        got=f'{len(bad)} of {len(parity.rows)} questions differ; "{worst.question}": {worst.live!r} became '
        f'{worst.other!r}, logits differ by {worst.difference:.1e}',
        allowed=f'the same answers, and logits within {worst.tolerance:.0e}',
        remedy='report this as a bug; --no-check writes the files without the proof',
    )
