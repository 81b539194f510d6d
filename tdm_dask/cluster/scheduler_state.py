"""What a distributed scheduler knows of its tasks and workers, asked on the scheduler; see docs/dependencies.md.

Its attributes are no public interface of distributed, so all that are used are used here. Each function runs on the
scheduler, which passes itself as `dask_scheduler`, and answers with plain numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# States of tasks that are finished, whatever became of their results.
_FINISHED = ("memory", "released", "erred")


def tasks_since_start(dask_scheduler: Any) -> tuple[int, int]:
    """Finished and known tasks since the scheduler started."""
    done = total = 0
    for prefix in dask_scheduler.task_prefixes.values():
        # States count the tasks of graphs that are still known; of others only the transitions are left.
        states, forgotten = prefix.states, prefix.state_counts["forgotten"]
        total += forgotten + sum(states.values()) - states["forgotten"]
        done += forgotten + sum(states[state] for state in _FINISHED)
    return done, total


def tasks_for(keys: Sequence[Any], dask_scheduler: Any) -> tuple[int, int]:
    """Finished tasks and all of those that results need; the scheduler keeps them until it has the results."""
    seen: set[Any] = set()
    left = [dask_scheduler.tasks[key] for key in keys if key in dask_scheduler.tasks]
    while left:
        task = left.pop()
        if task not in seen:
            seen.add(task)
            left.extend(task.dependencies)
    return sum(task.state in _FINISHED for task in seen), len(seen)


def work_and_workers(dask_scheduler: Any) -> dict[str, Any]:
    """Whether there is work, and anyone to do it."""
    workers = dask_scheduler.workers.values()
    waiting = len(dask_scheduler.unrunnable) + len(dask_scheduler.queued)
    return {
        "work": waiting + sum(len(worker.processing) for worker in workers),
        "able": bool(dask_scheduler.running) or any(worker.executing for worker in workers),
        "workers": len(workers),
    }
