"""An event loop in a thread of its own, so that requests go on while an answer is being graded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar, cast

T = TypeVar("T")


class Loop:
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stream(self, jobs: Iterable[Callable[[], Awaitable[T]]], at_once: int) -> Iterator[T]:
        """What the jobs return, as they end, ``at_once`` of them under way. The first error ends all,
        and so does closing the iterator. The next job is taken when one ends."""
        results: SimpleQueue[tuple[str, Any]] = SimpleQueue()

        async def all_of_them() -> None:
            waiting = iter(jobs)

            async def worker() -> None:
                for job in waiting:
                    results.put(("result", await job()))

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(at_once):
                        group.create_task(worker())
            except BaseExceptionGroup as several:
                results.put(("error", several.exceptions[0]))
            else:
                results.put(("end", None))

        async def start() -> asyncio.Task[None]:
            return asyncio.create_task(all_of_them())

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        task = self.run(start())
        try:
            while True:
                kind, value = results.get()
                if kind == "end":
                    return
                if kind == "error":
                    raise cast(BaseException, value)
                yield cast(T, value)
        finally:
            self.run(end())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._loop.close()
