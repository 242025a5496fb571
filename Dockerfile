# A CPU image whose default command is the demo: conda-forge's PyTorch has no CUDA in it.
#   docker build -t stable-bptt .
#   mkdir -p runs && docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/runs:/app/runs" stable-bptt
# It writes as the user that --user names, who must be able to write the mounted folder: made before, as Docker would make
# it root's. Where Docker or Podman runs without root, --user 0 is you.
FROM mambaorg/micromamba:2.2.0

RUN micromamba install --yes --name base --channel conda-forge python=3.12 "pytorch-cpu>=2.6" "numpy>=1.26" cxx-compiler \
    && micromamba clean --all --yes
ENV PATH=/opt/conda/bin:$PATH

COPY --chown=$MAMBA_USER:$MAMBA_USER pyproject.toml README.md LICENSE /src/
COPY --chown=$MAMBA_USER:$MAMBA_USER envs /src/envs
COPY --chown=$MAMBA_USER:$MAMBA_USER trainers /src/trainers
RUN pip install --no-cache-dir "/src[render,tune]"

# A home that any user may write, as compiled programs are kept in it; USER names one whose number has no name
USER root
RUN mkdir -m 1777 /app
USER $MAMBA_USER
ENV HOME=/app USER=$MAMBA_USER
WORKDIR /app
ENTRYPOINT ["/usr/local/bin/_entrypoint.sh", "bptt"]
CMD ["demo"]
