"""A store on a disk of a given speed, whatever the machine has."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from zarr.storage import LocalStore, WrapperStore


class SlowDisk(WrapperStore):
    """A local store whose reads come one after another, so many bytes per second."""

    def __init__(self, path: Path, rate: float) -> None:
        super().__init__(LocalStore(path, read_only=True))
        self._rate, self._free = rate, 0.0

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        data = await super().get(key, prototype, byte_range)
        if data is not None:
            now = time.monotonic()
            self._free = max(now, self._free) + len(data) / self._rate
            await asyncio.sleep(self._free - now)
        return data
