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
"""What is shipped around the code: metadata, pins, house rules, container, and the Slurm script run against fakes."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_vtb import package_info

ROOT = Path(__file__).resolve().parent.parent
SBATCH = ROOT / 'examples' / 'slurm' / 'joint_sft.sbatch'
sys.path.insert(0, str(ROOT / 'tools'))

import check_style  # noqa: E402


def setup_argument(name: str) -> ast.expr:
    """Returns what setup.py passes to setup(), without running it."""
    tree = ast.parse((ROOT / 'setup.py').read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == 'setup']
    return next(k.value for k in calls[0].keywords if k.arg == name)


def setup_table(name: str) -> object:
    """Returns a top-level table of setup.py."""
    tree = ast.parse((ROOT / 'setup.py').read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise KeyError(name)


def pins() -> dict[str, str]:
    lines = (ROOT / 'constraints' / 'py311-cpu.txt').read_text().splitlines()
    pairs = [line.split('==') for line in lines if line and not line.startswith('#')]
    return {re.sub(r'[-_.]+', '-', name).lower(): version for name, version in pairs}


# ---- metadata and pins


def test_version_of_setup_is_that_of_the_package() -> None:
    done = subprocess.run(
        [sys.executable, 'setup.py', '--version'], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip().splitlines()[-1] == package_info.__version__
    assert f'version: {package_info.__version__}' in (ROOT / 'CITATION.cff').read_text()
    assert re.fullmatch(r'\d+\.\d+\.\d+((a|b|rc)\d+)?', package_info.__version__)


def test_console_script_and_typed_marker() -> None:
    from importlib import import_module

    entry_points = ast.literal_eval(setup_argument('entry_points'))
    assert entry_points['console_scripts'] == ['vtb=nemo_vtb.cli:main']
    [plugin] = entry_points['vllm.general_plugins']
    module, function = plugin.partition('=')[2].split(':')
    assert getattr(import_module(module), function)() is None  # as vLLM calls it, any number of times
    assert 'py.typed' in ast.unparse(setup_argument('package_data'))
    assert (ROOT / 'nemo_vtb' / 'py.typed').is_file()


def test_every_data_file_of_the_package_is_shipped() -> None:
    package = ROOT / 'nemo_vtb'
    patterns = ast.literal_eval(setup_argument('package_data'))['nemo_vtb']
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    data = {path for path in package.rglob('*') if path.is_file() and path.suffix not in ('.py', '.pyc')}
    assert data and data - shipped == set()


def build_copy(folder: Path) -> Path:
    """Build wheel and sdist from a copy of what git has, as `python -m build` does for a release; returns `dist`."""
    pytest.importorskip('build')
    copied = ('nemo_vtb', 'conf', 'examples', 'constraints', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md')
    for name in (*copied, 'LICENSE', 'NOTICE', 'CHANGELOG.md'):
        source = ROOT / name
        ignore = shutil.ignore_patterns('__pycache__')
        shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy(source, folder)
    command = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(folder / 'dist'), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / 'dist'


def test_wheel_and_sdist_hold_what_a_user_needs(tmp_path: Path) -> None:
    import tarfile
    import zipfile

    dist = build_copy(tmp_path)
    [wheel], [sdist] = dist.glob('*.whl'), dist.glob('*.tar.gz')
    conf = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'conf').rglob('*.yaml')}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [entry] = [name for name in names if name.endswith('entry_points.txt')]
        assert 'vtb = nemo_vtb.cli:main' in archive.read(entry).decode()
    data = {
        p.relative_to(ROOT).as_posix() for p in (ROOT / 'nemo_vtb').rglob('*') if p.is_file() and p.suffix != '.pyc'
    }
    assert data | {f'nemo_vtb/{name}' for name in conf} <= names
    assert not any(name.startswith(('tests/', 'examples/')) for name in names)
    with tarfile.open(sdist) as archive:
        members = {name.partition('/')[2] for name in archive.getnames()}
    scripts = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'examples').glob('*.py')}
    assert conf | scripts | {'constraints/py311-cpu.txt', 'NOTICE', 'README.md'} <= members


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.real_weights
def test_an_installed_wheel_trains_and_answers(tmp_path: Path) -> None:
    """In an empty folder, from a fresh environment that has our wheel, and the dependencies of this one."""
    import venv

    import torch

    (tmp_path / 'source').mkdir()
    (tmp_path / 'empty').mkdir()
    [wheel] = build_copy(tmp_path / 'source').glob('*.whl')
    venv.create(tmp_path / 'env', with_pip=True)
    python = tmp_path / 'env' / 'bin' / 'python'
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    options = {'cwd': tmp_path / 'empty', 'env': environment, 'capture_output': True, 'text': True, 'timeout': 800}

    def run(*words: str, typed: str = '') -> str:
        done = subprocess.run([str(python.with_name(words[0])), *words[1:]], input=typed, **options)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return str(done.stdout)

    run('python', '-m', 'pip', 'install', '--no-deps', '--no-index', str(wheel))
    own = Path(run('python', '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip())
    (own / 'shared.pth').write_text(str(Path(torch.__file__).parents[1]))
    assert run('python', '-c', 'import nemo_vtb; print(nemo_vtb.__file__)').startswith(str(own))
    run('vtb', 'train', 'trainer.max_steps=5')
    assert [path.name for path in (tmp_path / 'empty').iterdir()] == ['runs']
    [answer] = run('vtb', 'chat', 'runs/quickstart', '--max-new-tokens', '8', typed='Say hello.\n').splitlines()
    assert answer.strip()


def test_pins_are_exact_complete_and_inside_the_bounds() -> None:
    from packaging.requirements import Requirement

    pinned = pins()
    assert pinned['torch'] == '2.13.0' and not any('+' in version for version in pinned.values())
    extras = setup_table('EXTRAS_REQUIRE')
    assert isinstance(extras, dict)
    for text in [*setup_table('INSTALL_REQUIRES'), *extras['dev']]:  # type: ignore[misc]
        requirement = Requirement(text)
        name = re.sub(r'[-_.]+', '-', requirement.name).lower()
        assert requirement.specifier.contains(pinned[name]), f'{text}: pinned {pinned[name]}'
    lightning = Requirement(next(t for t in setup_table('INSTALL_REQUIRES') if t.startswith('lightning')))  # type: ignore[attr-defined]
    assert not lightning.specifier.contains('2.6.2') and not lightning.specifier.contains('2.6.3')


def test_the_fused_kernels_are_an_extra_that_cpus_can_do_without() -> None:
    extras = setup_table('EXTRAS_REQUIRE')
    assert isinstance(extras, dict)
    kernels = ('transformer-engine', 'liger-kernel')
    assert all(any(text.startswith(name) for text in extras['megatron']) for name in kernels)
    for name in ('megatron-cpu', 'dev'):
        assert any(text.startswith('megatron-core') for text in extras[name])
        assert not any(text.startswith(kernels) for text in extras[name])


def test_nemos_own_stacks_can_install_us() -> None:
    """`nemo_toolkit[cu12]` and `[cu13]` name one torch each: the requirement of ours must admit it."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    ours = Requirement(next(t for t in setup_table('INSTALL_REQUIRES') if t.startswith('torch')))  # type: ignore[attr-defined]
    stacks = [Requirement(text) for text in requires('nemo_toolkit') or () if text.startswith('torch==')]
    named = [next(iter(stack.specifier)).version.partition('+')[0] for stack in stacks]
    assert len(named) >= 2 and all(ours.specifier.contains(version) for version in named)
    assert not ours.specifier.contains('2.14.0')  # not tried


def test_documented_versions_are_the_pinned_ones() -> None:
    table = (ROOT / 'docs' / 'versions.md').read_text()
    for name in ('torch', 'lightning', 'peft', 'transformers', 'lhotse', 'numpy'):
        row = next(line for line in table.splitlines() if line.startswith(f'| {name} |'))
        assert pins()[name] in row


def test_pyproject_configures_tools_only() -> None:
    import tomllib

    config = tomllib.loads((ROOT / 'pyproject.toml').read_text())
    assert 'project' not in config
    markers = {line.split(':')[0] for line in config['tool']['pytest']['ini_options']['markers']}
    assert markers == {'forks', 'gpu', 'integration', 'real_weights', 'slow', 'unit'}


# ---- house rules


@pytest.mark.parametrize('path', check_style.python_files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_house_rules(path: Path) -> None:
    assert list(check_style.findings(path)) == []


@pytest.mark.parametrize(
    'code, finding',
    [
        ('def f(x: int) -> int:\n    """D."""\n' + '    x += 1\n' * 80 + '    return x', 'f has 83 lines'),
        ('x = 1\n' * 900, 'lines, allowed are 900'),
        ('def f(x):\n    """D."""', 'arguments without a type: x'),
        ('def f(x: int) -> None:\n    pass', 'f has no docstring'),
        ('class A:\n    """D."""\n\n    def b(self) -> None:\n        pass', 'b has no docstring'),
        ("__all__ = ['b', 'A']", 'not sorted'),
        ('__all__ = [len]', 'other than strings'),
        ('try:\n    pass\nexcept:\n    pass', 'bare except'),
        ("eval('1')", 'eval() is forbidden'),
        ("model.eval()\nre.compile('x')", None),
        ("subprocess.run('ls', shell=True)", 'shell=True is forbidden'),
        ('yaml.load(f)', 'yaml.load() is forbidden'),
        ('pickle.load(f)', 'pickle.load() is forbidden'),
        ('torch.load(f)', 'needs weights_only=True'),
        ('torch.load(f, weights_only=False)', 'needs weights_only=True'),
        ('torch.load(f, weights_only=True)', None),
    ],
)
def test_house_rules_find_what_they_should(tmp_path: Path, code: str, finding: str | None) -> None:
    header = '\n'.join((ROOT / 'setup.py').read_text().splitlines()[:13])
    path = tmp_path / 'nemo_vtb' / 'a.py'
    path.parent.mkdir()
    path.write_text(f'{header}\n"""D."""\n\n{code}\n')
    found = '\n'.join(check_style.findings(path, tmp_path))
    assert (finding in found) if finding else found == ''


def test_a_file_without_header_is_found(tmp_path: Path) -> None:
    (tmp_path / 'a.py').write_text('x = 1\n')
    assert ['a.py:1: the Apache-2.0 header is missing'] == list(check_style.findings(tmp_path / 'a.py', tmp_path))


# ---- container


def test_dockerfile_has_both_targets_and_a_plain_user() -> None:
    text = (ROOT / 'Dockerfile').read_text()
    stages = re.split(r'^FROM ', text, flags=re.MULTILINE)[1:]
    assert [stage.splitlines()[0].split(' AS ')[1] for stage in stages] == ['cpu', 'cuda']
    for stage in stages:
        assert 'USER vtb' in stage and 'HF_HUB_OFFLINE=1' in stage and 'ENTRYPOINT ["vtb"]' in stage
    for name in ('BASE_IMAGE', 'CUDA_BASE_IMAGE'):
        assert re.search(rf'^ARG {name}=\S+:\S+', text, flags=re.MULTILINE) and f'${{{name}}}' in text


# ---- shell scripts

SCRIPTS = [*sorted((ROOT / 'tools').glob('*.sh')), SBATCH, ROOT / '.ci' / 'run']


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda p: p.name)
def test_shell_scripts_parse(path: Path) -> None:
    shell = 'sh' if path.suffix == '.sh' else 'bash'
    assert subprocess.run([shell, '-n', str(path)], timeout=60).returncode == 0


def test_bootstrap_names_the_remedy_for_a_wrong_python(tmp_path: Path) -> None:
    done = bootstrap(tmp_path, 'test "$1" != --version && exit 1; echo Python 3.9.1')
    assert done.returncode == 1
    assert 'Python 3.11 to 3.13 is needed, found: Python 3.9.1' in done.stderr and 'remedy:' in done.stderr


def test_bootstrap_names_the_remedy_for_a_missing_venv_module(tmp_path: Path) -> None:
    done = bootstrap(tmp_path, 'case "$*" in *ensurepip*) exit 1 ;; esac; exit 0')
    assert done.returncode == 1 and 'sudo apt-get install python3-venv' in done.stderr


def test_bootstrap_names_the_remedy_for_a_full_disk(tmp_path: Path) -> None:
    fake(tmp_path / 'bin', 'df', 'echo Filesystem; echo "/dev/x 100 50 1234 50% /"')
    done = bootstrap(tmp_path, 'case "$*" in *version_info*print*|*print*version_info*) echo 311 ;; esac; exit 0')
    assert done.returncode == 1 and '1234 MB are free here, 6000 MB are needed' in done.stderr


def test_bootstrap_names_the_remedy_without_network_and_stamps_what_is_done(tmp_path: Path) -> None:
    # a Python whose `-m venv` makes a Python whose pip fails as long as the file `offline` is there
    done_by_pip = 'touch .venv/bin/vtb && chmod +x .venv/bin/vtb'
    inner = f'case "$*" in *install*) test ! -e {tmp_path}/offline && {done_by_pip} ;; esac'
    script = (
        f'case "$*" in *"-m venv"*) mkdir -p .venv/bin; cp {tmp_path}/inner .venv/bin/python ;; '
        '*print*) echo 311 ;; --version) echo Python 3.11.7 ;; esac'
    )
    fake(tmp_path, 'inner', inner)
    (tmp_path / 'offline').touch()
    done = bootstrap(tmp_path, script)
    assert done.returncode == 1 and 'no network' in done.stderr and 'remedy:' in done.stderr
    (tmp_path / 'offline').unlink()
    done = bootstrap(tmp_path, script)
    assert done.returncode == 0, done.stderr
    assert '[2/2]' in done.stdout
    done = bootstrap(tmp_path, script)
    assert done.returncode == 0 and 'up to date' in done.stdout and '[1/2]' not in done.stdout
    with (tmp_path / 'repo' / 'setup.py').open('a') as file:
        file.write('# another requirement\n')
    assert '[1/2]' in bootstrap(tmp_path, script).stdout


def fake(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f'#!/bin/sh\n{script}\n')
    (folder / name).chmod(0o755)
    return folder / name


def bootstrap(tmp_path: Path, python: str) -> subprocess.CompletedProcess[str]:
    """Runs tools/bootstrap.sh in a copy of what it reads, with a fake Python, the only one it finds."""
    repo = tmp_path / 'repo'
    for name in ('tools/bootstrap.sh', 'setup.py', 'nemo_vtb/package_info.py', 'constraints/py311-cpu.txt'):
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        if not (repo / name).exists():
            shutil.copy(ROOT / name, repo / name)
    bin_folder = tmp_path / 'bin'
    for name in ('python3', 'python3.11', 'python3.12', 'python3.13'):
        fake(bin_folder, name, python)
    environment = os.environ | {'PATH': f'{bin_folder}:{os.environ["PATH"]}'}
    environment.pop('PYTHON', None)
    command = ['sh', str(repo / 'tools' / 'bootstrap.sh'), 'venv']
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


# ---- Slurm


def slurm(tmp_path: Path, srun: str, **settings: str) -> tuple[subprocess.Popen[str], Path]:
    """Starts the batch script as Slurm does, with fakes that write what they are asked into a log."""
    log = tmp_path / 'log'
    log.touch()
    fake(tmp_path / 'bin', 'srun', f'echo srun "$@" >>{log}; echo $$ >{tmp_path}/pid; {srun}')
    fake(tmp_path / 'bin', 'scancel', f'echo scancel "$@" >>{log}; kill -TERM "$(cat {tmp_path}/pid)"')
    fake(tmp_path / 'bin', 'scontrol', f'echo scontrol "$@" >>{log}')
    environment = os.environ | {
        'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}',
        'VTB_IMAGE': 'image.sqsh',
        'VTB_RUN': '/runs/x',
        'VTB_MOUNTS': '/data:/data',
        'SLURM_JOB_ID': '77',
        'SLURM_JOB_NUM_NODES': '8',
        'SLURM_JOB_NODELIST': 'node[1-8]',
        **settings,
    }
    # Slurm starts the script with SIGUSR1 at its default, whatever the caller ignores
    process = subprocess.Popen(
        ['bash', str(SBATCH), 'seed=7'], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return process, log


def test_sbatch_asks_for_the_signal_the_requeue_and_the_container() -> None:
    text = SBATCH.read_text()
    for line in ('--signal=B:USR1@300', '--requeue', '--dependency=singleton', '--nodes=8', '--ntasks-per-node=8'):
        assert f'#SBATCH {line}' in text
    assert '--container-image=' in text and 'trap on_usr1 USR1' in text


@pytest.mark.parametrize('code', [0, 3, 124, 137, 143])
def test_sbatch_passes_the_exit_code_of_training_on(tmp_path: Path, code: int) -> None:
    process, log = slurm(tmp_path, f'exit {code}')
    process.communicate(timeout=60)
    assert process.returncode == code
    asked = log.read_text()
    assert 'scontrol' not in asked and 'seed=7' in asked and 'exp_manager.resume_if_exists=true' in asked
    assert 'model=gemma2b_canary1b data=paper_blend trainer=slurm_8x8_h100 trainer.num_nodes=8' in asked


# training that saves when it is asked to end
SAVING = (
    "trap 'echo saved >>$0.saved; exit CODE' TERM; touch $0.ready; for i in $(seq 600); do sleep 0.1; done; exit 9"
)


@pytest.mark.parametrize(
    'training, restarts, code, requeued',
    [
        (75, '0', 0, True),
        (75, '50', 75, False),
        (143, '0', 0, True),  # one rank was ended while the others ended in order
        (0, '0', 0, False),  # it was the last step
        (1, '0', 1, False),  # a crash while it was saving
    ],
)
def test_sbatch_saves_and_requeues_at_the_time_limit(
    tmp_path: Path, training: int, restarts: str, code: int, requeued: bool
) -> None:
    process, log = slurm(tmp_path, SAVING.replace('CODE', str(training)), SLURM_RESTART_COUNT=restarts)
    while not (tmp_path / 'bin' / 'srun.ready').exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    asked = log.read_text()
    assert 'scancel --signal=TERM 77.0' in asked
    assert (tmp_path / 'bin' / 'srun.saved').read_text() == 'saved\n'
    assert ('scontrol requeue 77' in asked) is requeued


def test_sbatch_requeues_what_was_asked_to_end_by_others(tmp_path: Path) -> None:
    process, log = slurm(tmp_path, 'exit 75')
    process.communicate(timeout=60)
    assert process.returncode == 0 and 'scontrol requeue 77' in log.read_text()


def test_sbatch_names_a_missing_setting(tmp_path: Path) -> None:
    process, _ = slurm(tmp_path, 'exit 0', VTB_IMAGE='')
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and 'set VTB_IMAGE' in output
