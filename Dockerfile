# mmccd in a container; its weights are inside, so that it needs no network when it runs.
#
#   docker build -t mmccd .                             computes on the CPU
#   docker build -t mmccd --build-arg TORCH=cu128 .     CUDA; a name of download.pytorch.org/whl;
#                                                       run it with --gpus all
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" mmccd segment SUBJECT --out map.nii.gz
#
# It runs as any user, without a home, from a read-only root: only the folders that are mounted
# are written, and /tmp if weights are to be downloaded.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY mmccd_cli mmccd_cli
COPY weights weights
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:${PYTHON}-slim-bookworm
ARG TORCH=cpu
LABEL org.opencontainers.image.title="mmccd" \
      org.opencontainers.image.description="Anomalies in multi-modal brain MRI, for research" \
      org.opencontainers.image.licenses="MIT"
# Nothing of the caller's Python may get in, no cache may need a home.
ENV PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MMCCD_CACHE_DIR=/tmp/mmccd \
    HF_HOME=/tmp/mmccd
# PyTorch first and from its own index: PyPI's build brings two gigabytes of CUDA with it.
RUN pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/${TORCH}" "torch<3"
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir "$(echo /wheel/*.whl)[dicom-seg,dicom-codecs]" \
    && rm -r /wheel \
    && useradd --uid 1000 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin mmccd
USER 1000:1000
WORKDIR /work
RUN ["mmccd", "weights", "verify"]
ENTRYPOINT ["mmccd"]
CMD ["--help"]
