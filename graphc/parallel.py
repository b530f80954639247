"""Spread pure jobs over any `concurrent.futures.Executor`: threads, processes, a Dask client's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from graphc.pipeline import PassContext

T = TypeVar("T")


def spread(ctx: PassContext, what: str, function: Callable[..., T], jobs: Iterable[tuple[object, ...]]) -> list[T]:
    """`function(*job)` for each job, in the jobs' order, on `ctx.executor` (None: here, one after the other).

    `function` stands at the top of a module, so that it can be named on another machine; progress is told as `what`.
    """
    waiting = list(jobs)
    futures = None if ctx.executor is None else [ctx.executor.submit(function, *job) for job in waiting]
    results = []
    for number, job in enumerate(waiting):
        results.append(function(*job) if futures is None else futures[number].result())
        ctx.progress(what, number + 1, len(waiting))
    return results
