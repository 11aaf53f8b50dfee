# nemo_vtb in a container. Two targets:
#   docker build --target cpu  -t nemo_vtb:cpu  .
#   docker build --target cuda -t nemo_vtb:cuda .
# Base images are arguments; CUDA_BASE_IMAGE may be any NGC tag (nvidia/pytorch or nvidia/nemo) with Python 3.11 to 3.13
# and a torch that setup.py admits. Pin a digest for a cluster.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG CUDA_BASE_IMAGE=nvcr.io/nvidia/pytorch:26.07-py3

# ---- cpu: exactly the pinned set of constraints/ ----------------------------------------------------------------
FROM ${BASE_IMAGE} AS cpu
# another index for torch alone, for example PyTorch's own index of CPU builds (the default one brings CUDA along)
ARG TORCH_INDEX_URL=
WORKDIR /opt/nemo_vtb
# packages before sources, so that a change of code does not install them again
COPY constraints/py311-cpu.txt constraints/
RUN pip install --no-cache-dir --no-deps "$(grep '^torch==' constraints/py311-cpu.txt)" \
        ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} \
    && pip install --no-cache-dir --requirement constraints/py311-cpu.txt
COPY . .
RUN pip install --no-cache-dir --constraint constraints/py311-cpu.txt --editable . \
    && useradd --create-home --uid 1000 vtb \
    && mkdir -p /cache /runs && chown vtb:vtb /cache /runs
USER vtb
# no download from a model hub during a run; assets lie in a volume: docker run -v vtb_cache:/cache ...
ENV HF_HUB_OFFLINE=1 \
    NEMO_VTB_CACHE=/cache \
    PYTHONUNBUFFERED=1 \
    TOKENIZERS_PARALLELISM=false
ENTRYPOINT ["vtb"]
CMD ["--help"]

# ---- cuda: torch and what belongs to it stay those of the base image --------------------------------------------
FROM ${CUDA_BASE_IMAGE} AS cuda
WORKDIR /opt/nemo_vtb
COPY constraints/py312-cu130.txt constraints/
COPY tools/image_requirements.py tools/
# the image pins packages of its own through PIP_CONSTRAINT; the freeze is complete, so nothing has to be resolved
RUN python tools/image_requirements.py constraints/py312-cu130.txt >/tmp/rest.txt \
    && PIP_CONSTRAINT= pip install --no-cache-dir --no-deps --requirement /tmp/rest.txt \
    && rm /tmp/rest.txt
COPY . .
RUN PIP_CONSTRAINT= pip install --no-cache-dir --no-deps --editable . \
    && python tools/image_requirements.py --check
RUN useradd --create-home --non-unique --uid 1000 vtb \
    && mkdir -p /cache /runs && chown vtb:vtb /cache /runs
USER vtb
ENV HF_HUB_OFFLINE=1 \
    NEMO_VTB_CACHE=/cache \
    PYTHONUNBUFFERED=1 \
    TOKENIZERS_PARALLELISM=false
ENTRYPOINT ["vtb"]
CMD ["--help"]
