#!/bin/sh
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
#
# Makes .venv ready on a machine that has only Python and make: pinned packages, then the embedded assets.
# Usage: tools/bootstrap.sh venv            the packages only
#        tools/bootstrap.sh assets NAME...  the packages, then these assets (`vtb assets NAME...`)
#        tools/bootstrap.sh browser         Chromium, for the tests of pages, where this user may install it
# Safe to run twice: a stamp file named after the pins tells what is already done.
# Settings: PYTHON=...           the Python to use (3.11 to 3.13)
#           TORCH_INDEX_URL=...  another index for torch alone, for example PyTorch's own index of CPU builds
set -eu

cd "$(dirname "$0")/.."
VENV=.venv
# 2.8 GB of packages, the same again while pip unpacks, and the assets
NEEDED_MB=6000

say() { printf '==> %s\n' "$*"; }

fail() { # what is wrong, then one line per remedy
    printf '\nERROR: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '  remedy: %s\n' "$line" >&2; done
    exit 1
}

find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1; then
            printf '%s' "$candidate"
            return
        fi
    done
}

check_python() {
    python=$(find_python)
    if [ -z "$python" ]; then
        found=$("${PYTHON:-python3}" --version 2>/dev/null || echo 'no Python 3')
        fail "Python 3.11 to 3.13 is needed, found: $found" \
            "Debian 12, Ubuntu 24.04: sudo apt-get install python3 python3-venv" \
            "elsewhere: install Python 3.12 and run PYTHON=/path/to/python3.12 make ..."
    fi
    if ! "$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
        fail "$python has no venv module" "sudo apt-get install python3-venv" \
            "or the package of that version, for example python3.12-venv"
    fi
}

check_disk() {
    free_mb=$(df -Pm . | awk 'NR == 2 { print $4 }')
    if [ "$free_mb" -lt "$NEEDED_MB" ]; then
        fail "$free_mb MB are free here, $NEEDED_MB MB are needed" "free some space, or clone to another disk"
    fi
}

constraints_file() { # the pins of this Python where they were made for it, else those of 3.11, which hold for later ones
    version=$("$1" -c 'import sys; print("%d%d" % sys.version_info[:2])')
    if [ -f "constraints/py$version-cpu.txt" ]; then
        echo "constraints/py$version-cpu.txt"
    else
        echo constraints/py311-cpu.txt
    fi
}

fingerprint() {
    { cat setup.py nemo_vtb/package_info.py "$1"; "$2" --version; } | cksum | tr ' ' '-'
}

pip_install() {
    # one line per 25 packages in place of pip's hundreds; its errors go to stderr and stay visible
    failed="$VENV/.pip-failed"
    rm -f "$failed"
    { "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off "$@" || : >"$failed"; } |
        awk '/^Collecting/ && ++n % 25 == 0 { print "    " n " packages looked up"; fflush() }
             /^Installing collected/ { print "    unpacking"; fflush() }
             /^Successfully installed/ { print "    " NF - 2 " packages installed"; fflush() }'
    if [ -e "$failed" ]; then
        fail "pip could not install: $*" \
            "no network: connect, or point PIP_INDEX_URL at your mirror; behind a proxy set HTTPS_PROXY" \
            "no space left: the CUDA build of torch needs 5 GB more; TORCH_INDEX_URL=... chooses an index of CPU builds" \
            "an interrupted download: run the same command again" \
            "a broken environment: make clean, then run the same command again"
    fi
}

install_packages() {
    check_disk
    say "Installing the pinned packages into $VENV ($python, $constraints): about 190 packages, 2.8 GB."
    say "On 2 cores and 100 Mbit/s this takes 3 to 6 minutes; once only."
    if [ ! -x "$VENV/bin/python" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        "$python" -m venv --clear "$VENV"
    fi
    rm -f "$VENV"/.stamp-*
    torch=$(sed -n 's/^\(torch==.*\)$/\1/p' "$constraints")
    say "[1/2] $torch"
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        # that index has other versions of torch's dependencies; step 2 installs the pinned ones
        pip_install --no-deps "$torch" --index-url "$TORCH_INDEX_URL"
    else
        # the default index has no build without CUDA for Linux on x86-64, and nothing else tells pip to look for one
        say "(where pip finds only the CUDA build: 2.4 GB of download more, 5 GB on disk; see TORCH_INDEX_URL in README)"
        pip_install --constraint "$constraints" "$torch"
    fi
    say "[2/2] NeMo and all the rest"
    pip_install --constraint "$constraints" --editable '.[dev]'
    : >"$stamp"
}

prepare_venv() {
    check_python
    constraints=$(constraints_file "$python")
    stamp="$VENV/.stamp-$(fingerprint "$constraints" "$python")"
    if [ -f "$stamp" ] && [ -x "$VENV/bin/vtb" ]; then
        say "The packages in $VENV are up to date."
    else
        install_packages
    fi
}

prepare_assets() {
    say "Embedded assets: $* (downloaded once, then taken from the cache; the first time 1 to 5 minutes)."
    if ! "$VENV/bin/vtb" assets "$@"; then
        fail "the assets could not be made ready" \
            "read the message above: it names the package, its client and what to do" \
            "no network: connect and run the same command again; what is there already is kept"
    fi
}

prepare_browser() {
    for candidate in chromium chromium-browser google-chrome chrome; do
        if command -v "$candidate" >/dev/null 2>&1; then
            say "The browser for the tests of pages: $candidate."
            return
        fi
    done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "Installing Chromium for the tests of pages: 300 MB, about a minute; once only."
        if apt-get -qq update >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
            --no-install-recommends chromium >/dev/null; then
            return
        fi
    fi
    say "No Chromium here: the tests of pages are left out (sudo apt-get install chromium)."
}

case "${1:-}" in
    venv)
        prepare_venv
        ;;
    assets)
        shift
        prepare_venv
        prepare_assets "$@"
        ;;
    browser)
        prepare_browser
        ;;
    *)
        fail "usage: $0 venv | assets NAME... | browser" "make help lists what there is"
        ;;
esac
