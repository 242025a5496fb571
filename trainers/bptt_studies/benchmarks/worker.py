"""A process of its own for each measurement: so many cores, no memory of what was measured before."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from bptt_envs.program import CACHE_VARIABLE
from bptt_envs.registration import ENTRIES
from bptt_studies.benchmarks.config import BenchmarkConfig
from bptt_trainers.host.processes import end_with_parent
from bptt_trainers.host.threads import available_cores
from bptt_trainers.host.user_code import take_over_ids
from bptt_trainers.records.tables import Row


def measure_apart(part: str, config: BenchmarkConfig, cell: Row) -> list[Row]:
    """Measure a cell of a part in a new process, which may use as many cores as the cell has threads.

    The compilers' caches on disk are empty at its start. Nothing of it is left running, however this process ends.

    Raises:
        ChildProcessError: if it fails; the message says why.
    """
    with tempfile.TemporaryDirectory() as caches, _bound_to(available_cores()[: int(cell["threads"])]):
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=_environment(config, caches),
            start_new_session=True,  # Ctrl-C is for this process, which ends that and all that it started
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin, process.stdout:  # it takes the end of its stdin for the end of this process
            try:
                with suppress(BrokenPipeError):  # its exit code will say more
                    process.stdin.write(pickle.dumps((ENTRIES, part, config, cell)))
                answer = process.stdout.read()
                process.wait()
            finally:
                _end(process)
    what = f"{part} ({', '.join(f'{name} {value}' for name, value in cell.items() if value != '')})"
    if process.returncode:
        raise ChildProcessError(f"measuring {what} ended with exit code {process.returncode}.")
    kind, value = pickle.loads(answer)
    if kind == "error":
        raise ChildProcessError(f"measuring {what} failed:\n{value}")
    rows: list[Row] = value
    return rows


@contextmanager
def _bound_to(cores: Sequence[int]) -> Iterator[None]:
    """Within, this thread and the processes that it starts may use only some cores, where the system can bind them."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _environment(config: BenchmarkConfig, caches: str) -> dict[str, str]:
    """The variables of the process: threads are set in the program, JAX leaves a GPU's memory to torch too."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    variables |= {"TORCHINDUCTOR_CACHE_DIR": caches, CACHE_VARIABLE: caches, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return variables | ({"JAX_PLATFORMS": "cpu"} if config.device == "cpu" else {})


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started in a session of its own, with all that it started."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def main() -> None:
    """What the process does: the request comes by stdin, the answer goes to stdout, all else to stderr."""
    entries, part, config, cell = pickle.load(sys.stdin.buffer)
    end_with_parent(lambda: os.read(sys.stdin.fileno(), 1))
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        from bptt_studies.benchmarks.parts import PARTS

        answer: tuple[str, Any]
        try:
            take_over_ids(entries)
            answer = ("rows", PARTS[part].measure(config, cell))
        except (Exception, SystemExit):  # noqa: BLE001  # told to the other process, which raises it
            answer = ("error", traceback.format_exc())
        out.write(pickle.dumps(answer))


if __name__ == "__main__":
    main()
