# A CPU image whose default command is the demo: conda-forge's PyTorch has no CUDA in it.
#   docker build -t stable-bptt . && docker run --rm -v "$PWD/runs:/home/mambauser/runs" stable-bptt
FROM mambaorg/micromamba:2.2.0

RUN micromamba install --yes --name base --channel conda-forge python=3.12 "pytorch-cpu>=2.6" "numpy>=1.26" cxx-compiler \
    && micromamba clean --all --yes
ENV PATH=/opt/conda/bin:$PATH

COPY --chown=$MAMBA_USER:$MAMBA_USER pyproject.toml README.md LICENSE /src/
COPY --chown=$MAMBA_USER:$MAMBA_USER envs /src/envs
COPY --chown=$MAMBA_USER:$MAMBA_USER trainers /src/trainers
RUN pip install --no-cache-dir "/src[render,tune]"

WORKDIR /home/mambauser
ENTRYPOINT ["/usr/local/bin/_entrypoint.sh", "bptt"]
CMD ["demo"]
