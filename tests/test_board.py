"""Measuring over TVM RPC: a tracker and a device, both on this machine, in processes of their own."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import graphc
from graphc.board import Board
from graphc.errors import TuningError
from graphc.measurement import step_times

pytest.importorskip("tornado", reason="TVM's RPC tracker needs tornado: pip install tornado")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def started(*command: str, ready: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-u", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    )
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(ready, line):
            return process, line
    raise RuntimeError(f"{command} ended with {process.wait()}")


def stop(process: subprocess.Popen[str]) -> None:
    subprocess.run(["pkill", "-KILL", "-g", str(process.pid)], check=False)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture(scope="module")
def tracker() -> Iterator[str]:
    port = free_port()
    command = ["-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
    tracker, _ = started(*command, ready="bind to")
    board = None
    try:
        address = f"127.0.0.1:{port}"
        board, _ = started("-m", "graphc.board", "--tracker", address, "--key", "here", ready="serves the tracker")
        yield address
    finally:
        for process in filter(None, (board, tracker)):
            stop(process)


def test_a_board_measures_every_step(tracker: str) -> None:
    artifact = graphc.compile(nn.Sequential(nn.Linear(8, 4), nn.Softmax(1)), "host", (torch.randn(1, 8),))
    times = Board(tracker, "here", 60).submit(step_times, [artifact.content] * 2, 1, 2).result()
    assert [len(steps) for steps in times] == [len(artifact.plan["steps"])] * 2
    assert all(nanoseconds > 0 for steps in times for nanoseconds in steps)


def test_the_board_says_what_is_wrong_with_a_job(tracker: str) -> None:
    with pytest.raises(TuningError, match=r"'here'.*not a graphc artifact"):
        Board(tracker, "here", 60).submit(step_times, [b"nothing"], 1, 1).result()


def test_no_tracker_and_no_address() -> None:
    with pytest.raises(TuningError, match="no tracker answers"):
        Board(f"127.0.0.1:{free_port()}", "here").submit(step_times, [b""], 1, 1).result()
    with pytest.raises(TuningError, match="expected HOST:PORT"):
        Board("nowhere", "here")
    with pytest.raises(TuningError, match="a board measures"):
        Board("127.0.0.1:1", "here").submit(print, "x")
