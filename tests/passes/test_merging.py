"""Partial results on their way to one: how many are merged at a time, and how many wait for it."""

from __future__ import annotations

import pytest

from tdm_dask.passes import graphs


@pytest.mark.parametrize(("partial_bytes", "together"), [(2**20, 8), (2**24, 4), (2**26, 2), (2**30, 2), (None, 2)])
def test_small_partial_results_are_merged_together_between_processes_alone(monkeypatch, partial_bytes, together):
    assert graphs.merged_together(partial_bytes) == 2
    monkeypatch.setattr(graphs, "active_client", lambda: "a client")
    assert graphs.merged_together(partial_bytes) == together
    for parts in range(1, 100):
        held, waiting = 0, []
        # Depth first, as one thread works: what is made waits until as many as are merged have come.
        for _ in range(parts):
            waiting.append(1)
            held = max(held, len(waiting))
            while len(waiting) >= together and len(set(waiting[-together:])) == 1:
                waiting[-together:] = [waiting[-1] + 1]
        assert held <= graphs.results_held(parts, partial_bytes) <= held + together
