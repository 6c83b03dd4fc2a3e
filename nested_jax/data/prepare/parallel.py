"""Blocks of documents through worker processes: in order, in bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import TypeVar

from nested_jax.data.records import Record

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def blocks(records: Iterable[Record], max_chars: int) -> Iterator[list[Record]]:
    """Cut a stream into runs of whole documents that reach `max_chars` characters.

    The cuts depend on the stream alone, so work done block by block never depends on who did it.
    """
    block: list[Record] = []
    size = 0
    for record in records:
        block.append(record)
        size += len(record.text)
        if size >= max_chars:
            yield block
            block, size = [], 0
    if block:
        yield block


def ordered_map(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], workers: int
) -> Generator[ResultT, None, None]:
    """Yield ``function(item)`` in the order of the items, computed by `workers` processes.

    At most ``workers + 1`` items are in flight. With one worker everything runs in this process.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of libraries
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=die_with_parent)
    pending: deque[Future[ResultT]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def die_with_parent() -> None:
    """End this worker when its parent ends, even by ``kill -9``, which no queue would tell it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
