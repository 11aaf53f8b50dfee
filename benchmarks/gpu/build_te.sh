#!/usr/bin/env bash
# Transformer Engine for the GPU machine, built on one without a GPU: Python 3.12, torch 2.11 (CUDA), glibc <= 2.39.
#   bash build_te.sh VENV312 OUTDIR [VERSION]      VENV312: a Python 3.12 venv with torch==2.11.0 (CUDA build, about 5 GB)
# Leaves OUTDIR/te.tar.xz (27 MB): transformer_engine (Python and the core library with code for sm_90 alone) and
# transformer_engine_torch, compiled from its source. About 7 CPU-minutes and CUDA's headers (CUDA_HOME).
set -euo pipefail
VENV=$1; DEST=$2; V=${3:-2.20.2}; HERE=$(cd "$(dirname "$0")" && pwd); PY=$VENV/bin/python
mkdir -p "$DEST"; W=$DEST/build-$V; mkdir -p "$W"
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda} NVTE_PYTORCH_FORCE_BUILD=TRUE NVTE_WITH_NCCL_EP=0 NVTE_CUDA_ARCHS=90
export NVTE_PROJECT_BUILDING=1
NV=$("$PY" -c 'import nvidia; print(list(nvidia.__path__)[0])')
export CPLUS_INCLUDE_PATH=$NV/cudnn/include:$NV/nccl/include:$NV/cu13/include

if [ ! -f "$W/slim.log" ]; then # the published parts, slimmed
  "$PY" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$W" \
    "transformer-engine==$V" "transformer-engine-cu13==$V" nvdlfw-inspect importlib-metadata
  rm -rf "$W/site"; mkdir -p "$W/site"
  for w in "$W"/*.whl; do "$PY" -m zipfile -e "$w" "$W/site"; done
  so=$(find "$W/site/transformer_engine" -name 'libtransformer_engine.so')
  "$PY" "$HERE/slim_fatbin.py" "$so" "$so.slim" 90 >"$W/slim.part"
  mv "$so.slim" "$so"; mv "$W/slim.part" "$W/slim.log"
fi

SRC=$W/transformer_engine_torch-$V
SO=$W/site/transformer_engine_torch$("$PY" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
if [ ! -f "$SO" ]; then
  compgen -G "$W/transformer_engine_torch-*.tar.gz" >/dev/null || \
    "$PY" -m pip download -q --no-deps --no-build-isolation --no-binary=:all: -d "$W" "transformer-engine-torch==$V"
  [ -d "$SRC" ] || tar -C "$W" -xzf "$W"/transformer_engine_torch-"$V".tar.gz
  # not by its setup.py: one precompiled header instead of a million lines of torch for each of the files
  O=$W/obj; mkdir -p "$O/pch"
  T=$("$PY" -c 'import torch; print(torch.__path__[0])')
  INCLUDE=$("$PY" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
  FLAGS="-DNDEBUG -O2 -g0 -w -fPIC -fvisibility=hidden -fno-strict-overflow -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H \
-DTORCH_EXTENSION_NAME=transformer_engine_torch -I$CUDA_HOME/include -I$SRC/common_headers -I$SRC/common_headers/common \
-I$SRC/common_headers/common/include -I$SRC/csrc -I$T/include -I$T/include/torch/csrc/api/include -I$INCLUDE"
  echo '#include "extensions.h"' >"$O/pch/all.h"
  # shellcheck disable=SC2086
  [ -f "$O/pch/all.h.gch" ] || g++ $FLAGS -x c++-header "$O/pch/all.h" -o "$O/pch/all.h.gch"
  one() { # an object file, if it is not there yet
    local o
    o=$O/$(echo "${1#"$SRC"/csrc/}" | tr / _).o
    # shellcheck disable=SC2086
    [ -f "$o" ] || { g++ $FLAGS -include "$O/pch/all.h" -c "$1" -o "$o.part" && mv "$o.part" "$o"; }
  }
  export -f one; export FLAGS O SRC
  # shellcheck disable=SC2016
  find "$SRC/csrc" -name '*.cpp' -print0 | xargs -0 -P "${MAX_JOBS:-2}" -I{} bash -c 'one "$1"' _ {}
  g++ -shared -o "$SO.part" "$O"/*.o -L"$T/lib" -Wl,--no-as-needed \
    -lc10 -ltorch -ltorch_cpu -ltorch_python -ltorch_cuda -lc10_cuda
  strip --strip-unneeded "$SO.part"; mv "$SO.part" "$SO"
  info=$W/site/transformer_engine_torch-$V.dist-info; mkdir -p "$info"
  cp "$SRC/PKG-INFO" "$info/METADATA"; echo pip >"$info/INSTALLER"; : >"$info/RECORD"
  printf 'Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp312-cp312-linux_x86_64\n' >"$info/WHEEL"
fi
rm -rf "$W/site/transformer_engine/jax"
tar -C "$W/site" -cJf "$DEST/te.tar.xz" .
ls -la "$DEST/te.tar.xz" "$SO"
