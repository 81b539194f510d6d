"""The tasks that dask's graphs are made of, which dask keeps in a private module; see docs/dependencies.md."""

from __future__ import annotations

from dask._task_spec import DataNode, List, Task, TaskRef

__all__ = ["DataNode", "List", "Task", "TaskRef"]
