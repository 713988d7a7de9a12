# Head and annotation nodes: every stage's driver, calls to teachers, no GPU. From the repository's root:
#   docker build -f cluster/images/cpu.Dockerfile -t REGISTRY/sp2dpo-ray:0.1.0-cpu .
# All nodes of a cluster must have the same Python and Ray: build both images of the same commit.
FROM python:3.11-slim-bookworm

# rsync and openssh-client: `ray up` copies files with them; wget: KubeRay's health probes;
# libgomp1: LightGBM; git: `ray job submit --working-dir` of a repository
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends rsync openssh-client wget libgomp1 git \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 ray

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
WORKDIR /opt/sp2dpo
COPY constraints-cpu.txt pyproject.toml README.md LICENSE ./
# torch first and alone: no other package pulls another build of it. TORCH_INDEX: PyTorch's index of
# CPU builds; without it pip takes a CUDA build, several GB more
ARG TORCH_INDEX=""
RUN pip install --constraint constraints-cpu.txt ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch
COPY sp2dpo_ray sp2dpo_ray
COPY jobs jobs
COPY configs configs
RUN pip install --constraint constraints-cpu.txt '.[all]'

# Ray's launcher mounts the cluster's token below the HOME that an image names, else below /root
ENV HOME=/home/ray
USER 1000
RUN mkdir -p /home/ray/.ray
CMD ["sp2dpo", "--help"]
