# GPU nodes: reference, training, generation, a teacher of one's own. From the repository's root:
#   docker build -f cluster/images/gpu.Dockerfile -t REGISTRY/sp2dpo-ray:0.1.0-gpu .
# CUDA's libraries come with torch; the machine brings the driver and NVIDIA's container toolkit.
# The versions are those of the CPU set-up; what only GPUs want (DeepSpeed, vLLM) is not among them.
FROM python:3.11-slim-bookworm

# gcc: Triton and DeepSpeed compile what they launch; the others as in cpu.Dockerfile
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends \
    rsync openssh-client wget libgomp1 git gcc g++ libibverbs1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 ray

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
WORKDIR /opt/sp2dpo
COPY constraints-cpu.txt pyproject.toml README.md LICENSE ./
RUN sed '/^triton==/d' constraints-cpu.txt > constraints.txt \
 && pip install --constraint constraints.txt torch
COPY sp2dpo_ray sp2dpo_ray
COPY jobs jobs
COPY configs configs
# EXTRAS: add "quantized" for nf4 students
ARG EXTRAS=all,deepspeed
RUN pip install --constraint constraints.txt ".[${EXTRAS}]"
# for a teacher that this cluster hosts; vLLM brings the torch that it was built for
ARG VLLM_VERSION=""
RUN if [ -n "${VLLM_VERSION}" ]; then pip install "vllm==${VLLM_VERSION}"; fi

# Ray's launcher starts GPU nodes with NVIDIA's runtime and says no more: what of the driver a container
# gets is the image's to say, and python's own images say nothing
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Ray's launcher mounts the cluster's token below the HOME that an image names, else below /root
ENV HOME=/home/ray
USER 1000
RUN mkdir -p /home/ray/.ray
CMD ["sp2dpo", "--help"]
