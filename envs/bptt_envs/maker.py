"""Programs made by a second process, while this one goes on."""

from __future__ import annotations

import _thread
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from bptt_envs.program import CompilerError, Order

HERE = Path(__file__).parents[1]  # from where this package is imported

FAILED = 3  # the exit code where a program could not be made; why, is what was printed


class Maker:
    """A second process that makes programs, of low priority; it ends with this one, however this one ends."""

    def __init__(self) -> None:
        self._orders: dict[str, Order] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def make(self, orders: Sequence[Order]) -> None:
        """Begin to make those that are not made or being made."""
        for order in orders:
            if order.name not in self._orders:
                self._orders[order.name] = order
                if not order.made():
                    self._send(order)

    def finished(self) -> bool:
        """Whether all are made.

        Raises:
            CompilerError: if one could not be made.
        """
        if all(order.made() for order in self._orders.values()):
            return True
        if self._process is not None and self._process.poll() is not None:
            assert self._process.stdout is not None
            told = self._process.stdout.read().decode(errors="replace").strip()
            code = self._process.returncode
            raise CompilerError(told if code == FAILED else f"the process that compiles ended with exit code {code}")
        return False

    def close(self) -> None:
        """End the process; what it has not made yet may be asked for once more."""
        process, self._process, self._orders = self._process, None, {}
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.wait()
            process.stdout.close()

    def _send(self, order: Order) -> None:
        if self._process is None:
            path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for this process, which ends that and all that it started
            )
        assert self._process.stdin is not None
        try:
            pickle.dump(order, self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:  # `finished` says why
            pass


def main() -> None:
    """Make the programs that come in, until no more can come."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(os, "nice"):
        os.nice(19)
        signal.signal(signal.SIGTERM, lambda *_: None)  # which is for the compilers that this process starts
    orders: queue.Queue[Order | None] = queue.Queue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, orders), daemon=True).start()
    try:
        while (order := orders.get()) is not None:
            order.make()
    except CompilerError as error:
        print(error, flush=True)
        os._exit(FAILED)  # Python's own way would wait for the thread to have read
    except KeyboardInterrupt:
        pass


def _receive(source: IO[bytes], orders: queue.Queue[Order | None]) -> None:
    """Take orders until their source is closed or gone; then end what is being made."""
    try:
        while True:
            orders.put(pickle.load(source))
    except EOFError:
        orders.put(None)
        _thread.interrupt_main()
        if hasattr(os, "killpg"):
            os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    main()
