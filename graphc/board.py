"""Devices on TVM's RPC tracker, as an executor of measuring jobs.

On the board, where graphc, numpy and TVM are installed (torch is not needed):

    python -m graphc.board --tracker HOST:9190 --key NAME

Results travel as JSON, artifacts as their bytes; nothing unpickles. The tracker is TVM's own
(`python -m tvm.exec.rpc_tracker`), and so is what it warns of: whoever reaches the server can run code on it.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from graphc.errors import GraphcError, TuningError
from graphc.measurement import step_times

_NAME = "graphc.step_times"


class Board(Executor):
    """Runs `step_times` on a device of a tracker: submit(step_times, files, threads, rounds).

    tracker: "HOST:PORT". key: the kind of device, as it registered. timeout: seconds that a job may take. Raises
    TuningError where the tracker or a device cannot be reached, or the job fails there.
    """

    def __init__(self, tracker: str, key: str, timeout: float = 600) -> None:
        host, _, port = tracker.rpartition(":")
        if not host or not port.isdigit():
            raise TuningError(f"'{tracker}' is no tracker; expected HOST:PORT")
        self._address, self._key, self._timeout = (host, int(port)), key, timeout

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the job at once, and return it done."""
        if fn is not step_times or kwargs:
            raise TuningError("a board measures: submit(step_times, files, threads, rounds)")
        job: Future[Any] = Future()
        try:
            job.set_result(self._measure(*args))
        except TuningError as error:
            job.set_exception(error)
        return job

    def _measure(self, files: Sequence[bytes], threads: int | None, rounds: int) -> list[list[float]]:
        from tvm import rpc

        try:
            socket.create_connection(self._address, timeout=10).close()  # TVM itself would try for a minute
        except OSError as error:
            raise TuningError(f"no tracker answers at {self._address[0]}:{self._address[1]}: {error}") from None
        where = f"device '{self._key}' of the tracker at {self._address[0]}:{self._address[1]}"
        try:
            tracker = rpc.connect_tracker(*self._address)
            session = tracker.request(self._key, session_timeout=self._timeout)
            answer = json.loads(session.get_function(_NAME)(threads or 0, rounds, *map(bytearray, files)))
        except Exception as error:  # TVM and sockets raise a dozen kinds
            raise TuningError(
                f"cannot measure on {where}: {error}\nOn the board: python -m graphc.board --tracker "
                f"HOST:PORT --key {self._key}"
            ) from error
        if "error" in answer:
            raise TuningError(f"{where}: {answer['error']}")
        times: list[list[float]] = answer["times"]
        return times


def _serve_step_times(threads: int, rounds: int, *files: Any) -> str:
    try:
        return json.dumps({"times": step_times([bytes(content) for content in files], threads or None, rounds)})
    except GraphcError as error:
        return json.dumps({"error": str(error)})


def register() -> None:
    """Offer `step_times` to the clients of this process's RPC server."""
    import tvm_ffi

    tvm_ffi.register_global_func(_NAME, _serve_step_times, override=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve this device to a tracker until the process is stopped."""
    from tvm import rpc

    parser = argparse.ArgumentParser(prog="python -m graphc.board", description=__doc__.split("\n")[0])
    parser.add_argument("--tracker", required=True, metavar="HOST:PORT")
    parser.add_argument("--key", required=True, metavar="NAME", help="the kind of device, as clients ask for it")
    parser.add_argument("--port", type=int, default=9090, help="the first port to try")
    options = parser.parse_args(arguments)
    host, _, port = options.tracker.rpartition(":")
    server = rpc.Server(
        "0.0.0.0",
        options.port,
        options.port + 100,
        key=options.key,
        tracker_addr=(host, int(port)),
        server_init_callback=register,
    )
    print(f"device '{options.key}' serves the tracker at {options.tracker} from port {server.port}", flush=True)
    server.proc.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
