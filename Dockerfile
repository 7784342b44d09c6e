# syntax=docker/dockerfile:1
#
#   docker build --target cpu .        Triton with Octavo and a CPU build of torch
#   docker build --target gpu .        the same with a CUDA build
#   docker build --target loadtest .   the load generator
#
# docker-compose.yml builds them; docs/container.md tells how to run and how to upgrade them.

ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.07-py3
ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX_CPU=https://download.pytorch.org/whl/cpu
ARG TORCH_INDEX_GPU=https://pypi.org/simple

# What cpu and gpu share: an empty environment, and the settings of the image.
FROM ${TRITON_IMAGE} AS environment
# A venv of its own, since the system's packages cannot be replaced. The image has a pip already.
RUN python3 -m venv --without-pip /opt/octavo
# The server's stub takes the environment of the first python3 on PATH; should a stub not do so,
# PYTHONPATH tells it.
ENV PATH=/opt/octavo/bin:$PATH \
    PYTHONPATH=/opt/octavo/lib/python3.12/site-packages \
    HF_HOME=/tmp/huggingface
# Wheels only: no package is compiled, here or later.
ENV PIP_ONLY_BINARY=:all: \
    PIP_CONSTRAINT=/opt/octavo/constraints.txt \
    PIP_PYTHON=/opt/octavo/bin/python3 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements/constraints.txt /opt/octavo/all-constraints.txt
# Without the two whose versions are the container's own.
RUN sed -E '/^(numpy|torch)==/d' /opt/octavo/all-constraints.txt > /opt/octavo/constraints.txt
WORKDIR /srv/octavo
EXPOSE 8000 8001 8002
# Goes through the base image's entrypoint, which execs it; it execs tritonserver in its turn, so
# signals reach the server.
CMD ["octavo", "exec-server"]

# The CPU kernels, for any processor of the architecture: the server's image has no compiler.
FROM ${PYTHON_IMAGE} AS kernels
RUN apt-get update && apt-get install --yes --no-install-recommends g++
COPY backend/octavo/kernels/cpu /tmp/cpu
RUN python /tmp/cpu/build.py --in-package

# Octavo, with all its packages but torch.
FROM environment AS octavo
COPY requirements/container.txt /tmp/
RUN /usr/bin/python3 -m pip install --requirement /tmp/container.txt
COPY backend /tmp/backend
RUN /usr/bin/python3 -m pip install --no-deps /tmp/backend
COPY --from=kernels /tmp/cpu/built /opt/octavo/lib/python3.12/site-packages/octavo/kernels/cpu/built
COPY model_repository model_repository
COPY models/octavo-tiny models/octavo-tiny

FROM environment AS cpu
ARG TORCH_VERSION TORCH_INDEX_CPU
RUN /usr/bin/python3 -m pip install --extra-index-url ${TORCH_INDEX_CPU} torch==${TORCH_VERSION}
COPY --from=octavo /opt/octavo/bin /opt/octavo/bin
COPY --from=octavo /opt/octavo/lib /opt/octavo/lib
COPY --from=octavo /srv/octavo /srv/octavo
RUN octavo exec-server --check
USER triton-server

FROM environment AS gpu
ARG TORCH_VERSION TORCH_INDEX_GPU
# The Triton language compiles the call of each kernel as a small C extension when it first runs.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*
RUN /usr/bin/python3 -m pip install --extra-index-url ${TORCH_INDEX_GPU} torch==${TORCH_VERSION}
COPY --from=octavo /opt/octavo/bin /opt/octavo/bin
COPY --from=octavo /opt/octavo/lib /opt/octavo/lib
COPY --from=octavo /srv/octavo /srv/octavo
RUN octavo exec-server --check
USER triton-server

# Without torch: a load generator only talks to the server.
FROM ${PYTHON_IMAGE} AS loadtest
ENV PIP_ONLY_BINARY=:all: \
    PIP_CONSTRAINT=/tmp/requirements/constraints.txt \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /srv/octavo
COPY requirements/constraints.txt requirements/loadtest.txt /tmp/requirements/
RUN sed '/^-r /d' /tmp/requirements/loadtest.txt > /tmp/requirements/packages.txt \
    && pip install --requirement /tmp/requirements/packages.txt
COPY client /tmp/client
RUN pip install /tmp/client
COPY loadtest loadtest
# A volume that is mounted here takes over the owner.
RUN install --directory --owner nobody /results
ENV LOADTEST_OUTPUT=/results
USER nobody
EXPOSE 8089
ENTRYPOINT ["locust", "--locustfile", "loadtest/locustfile.py"]
