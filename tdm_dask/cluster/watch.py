"""An eye on a cluster while it computes: what would be waited for without end is ended, with its reason."""

from __future__ import annotations

import threading
import time
from typing import Any

from .scheduler_state import work_and_workers

POLL_SECONDS = 2.0
# How long a scheduler may take to answer, and workers of this machine to be restarted or to free memory.
ANSWER_SECONDS = 60.0
WORKERS_SECONDS = 60.0


class ClusterWatch:
    """Watches from a thread of its own: a scheduler that does not answer, work without a worker, jobs that ended.

    Parameters
    ----------
    client : distributed.Client
        Closed when nothing more can come of waiting; what then waits for results gets an error.
    jobs : dask_jobqueue.JobQueueCluster, optional
        Its jobs that have ended are replaced.
    patience : float, optional
        Seconds for which there may be work and no worker.

    Attributes
    ----------
    reason : str or None
        Why the client was closed, as the beginning of a sentence.
    """

    def __init__(self, client: Any, jobs: Any | None = None, patience: float | None = None) -> None:
        self.reason: str | None = None
        self._client, self._jobs = client, jobs
        self._patience = WORKERS_SECONDS if patience is None else max(patience, WORKERS_SECONDS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tdm-cluster-watch", daemon=True)

    def __enter__(self) -> ClusterWatch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(POLL_SECONDS)  # it may wait for a scheduler that does not answer

    def _watch(self) -> None:
        idle_since = None
        while not self._stop.wait(POLL_SECONDS):
            try:
                facts = self._client.run_on_scheduler(work_and_workers, callback_timeout=ANSWER_SECONDS)
            except TimeoutError:
                self._end(f"The scheduler has not answered for {ANSWER_SECONDS:.0f} s")
                return
            except (OSError, ValueError, RuntimeError, AttributeError):
                return  # the connection is gone or closed, which whoever computes is told as well
            if self._jobs is not None:
                self._jobs.loop.add_callback(_replace_jobs, self._jobs)
            if facts["work"] and not facts["able"]:
                idle_since = idle_since or time.monotonic()
                limit = WORKERS_SECONDS if facts["workers"] else self._patience
                if time.monotonic() - idle_since > limit:
                    self._end(
                        f"All {facts['workers']} workers have paused for {limit:.0f} s because their memory is full"
                        if facts["workers"]
                        else f"There has been no worker for {limit:.0f} s, as when each has too little memory to start"
                    )
                    return
            else:
                idle_since = None

    def _end(self, reason: str) -> None:
        if not self._stop.is_set():
            self.reason = reason
            self._client.close(timeout=POLL_SECONDS)


def _replace_jobs(cluster: Any) -> None:
    """Submit the jobs that are planned and not there (runs on the cluster's event loop)."""
    if cluster.status.name == "running":
        cluster.scale(jobs=len(cluster.worker_spec))
