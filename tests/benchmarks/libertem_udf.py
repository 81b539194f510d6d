"""What LiberTEM needs for correlations; its own module, since its executors import it in processes of theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
from libertem.udf import UDF


class CorrelationUDF(UDF):
    """Products of templates and counts, summed over the scan: one image of the detector for each template."""

    @classmethod
    def of_templates(cls, templates: np.ndarray) -> CorrelationUDF:
        """The UDF for templates (n, ny, nx), float32."""
        n = len(templates)
        values = np.ascontiguousarray(templates.reshape(n, -1).T).ravel()
        return cls(n=n, templates=cls.aux_data(values, kind="nav", extra_shape=(n,), dtype=np.float32))

    def get_result_buffers(self) -> dict[str, Any]:
        return {"products": self.buffer(kind="sig", extra_shape=(self.params.n,), dtype=np.float32)}

    def process_tile(self, tile: np.ndarray) -> None:
        patterns = len(tile)
        templates = np.asarray(self.params.templates).reshape(patterns, -1)
        products = tile.reshape(patterns, -1).astype(np.float32).T @ templates
        self.results.products[:] += products.reshape(self.results.products.shape)

    def merge(self, dest: Any, src: Any) -> None:
        dest.products[:] += src.products
