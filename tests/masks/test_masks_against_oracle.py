"""Masks and images equal dense float64 NumPy for every shape, chunking, dtype, region and scheduler."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import oracle
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scans import LAYOUTS, as_labelled, scans

import tdm_dask as tdm


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(), scan=scans(), layout=st.sampled_from(LAYOUTS), scheduler=st.sampled_from(["synchronous", "threads"])
)
def test_masks_and_images_equal_the_oracle(data, scan, layout, scheduler, tmp_path_factory):
    counts, rng = scan
    ny, nx, nky, nkx = counts.shape
    used = rng.random((ny, nx)) < data.draw(st.sampled_from([0.5, 1.0]))
    used[0, 0] = True
    region = rng.random((nky, nkx)) < data.draw(st.sampled_from([0.3, 1.0]))
    region[-1, -1] = True
    templates = rng.normal(size=(data.draw(st.integers(1, 6)), ny, nx))
    labelled = as_labelled(counts, layout, tmp_path_factory, rng)
    template = xr.DataArray(templates, dims=("template", "y", "x"))
    with dask.config.set(scheduler=scheduler):
        mean, std = oracle.statistics(counts, used)
        if used.sum() == 1:
            with pytest.raises(tdm.errors.TemplateError):
                tdm.correlate(labelled, template, scan_region=used)
            found = tdm.pixel_statistics(labelled, scan_region=used).compute()
            oracle.assert_close(found["mean"], mean)
            assert not found["std"].values.any()
            return
        found = tdm.correlate(labelled, template, detector_region=region, scan_region=used).compute()
        rho = oracle.correlation(counts, templates, used, region)
        assert int(found["n"]) == used.sum()
        oracle.assert_close(found["mean"].values[region], mean[region])
        oracle.assert_close(found["std"].values[region], std[region])
        oracle.assert_close(found["rho"], rho, scale=1.0)
        mask = tdm.derive_mask(labelled, template, detector_region=region, scan_region=used).compute()
        np.testing.assert_array_equal(mask.values, found["rho"].values)
        image = tdm.apply_mask(labelled, mask, normalisation="standardised").compute()
        # Compared with the mask that was found: the oracle's differs in the last digits of rho.
        of_pixels = mask["mean"].values, mask["std"].values
        expected = oracle.standardised_image(counts, mask.values, *of_pixels)
        # A pattern that is all of the largest counts, and no other, is rounded by more than the image's values show.
        scale = oracle.image_scale(oracle.standardised(counts, *of_pixels), mask.values)
        scale = np.maximum(scale, max(np.abs(expected).max(), 1e-300))
        oracle.assert_close(image / scale, expected / scale, scale=1.0)
        scaled = tdm.derive_mask(found, method="mean-scaled")
        safe = np.where(found["mean"].values != 0, found["mean"].values, np.inf)
        oracle.assert_close(scaled, found["rho"].values / safe)
        weights = rng.normal(size=(2, nky, nkx)) * region
        raw = tdm.apply_mask(labelled, xr.DataArray(weights, dims=("template", "ky", "kx"))).compute()
        expected = oracle.image(counts, weights)
        oracle.assert_close(raw, expected)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_near_the_top_of_their_dtype_do_not_overflow(dtype, layout, tmp_path_factory):
    rng = np.random.default_rng(5)
    counts = (np.iinfo(dtype).max - rng.integers(0, 7, (31, 17, 5, 6))).astype(dtype)
    labelled = as_labelled(counts, layout, tmp_path_factory, rng)
    templates = rng.normal(size=(2, 31, 17))
    found = tdm.correlate(labelled, xr.DataArray(templates, dims=("template", "y", "x"))).compute()
    mean, std = oracle.statistics(counts)
    oracle.assert_close(found["mean"], mean)
    oracle.assert_close(found["std"], std)
    oracle.assert_close(found["rho"], oracle.correlation(counts, templates), scale=1.0)


def test_a_lazy_chain_equals_its_stages(tmp_path):
    rng = np.random.default_rng(3)
    counts = rng.poisson(3, (12, 10, 8, 8)).astype(np.uint16)
    labelled = tdm.convert(tdm.label_counts(counts), tmp_path / "scan.zarr")
    template = xr.DataArray(rng.normal(size=(3, 12, 10)), dims=("template", "y", "x"))
    lazy = tdm.apply_mask(labelled, tdm.derive_mask(labelled, template), normalisation="standardised")
    assert lazy.chunks is not None
    mask = tdm.derive_mask(labelled, template).compute()
    staged = tdm.apply_mask(labelled, mask, normalisation="standardised").compute()
    np.testing.assert_allclose(lazy.compute(), staged, rtol=1e-12, atol=1e-12)


def test_lazy_templates_equal_templates_in_memory():
    rng = np.random.default_rng(3)
    labelled = tdm.label_counts(da.from_array(rng.poisson(3, (12, 10, 8, 8)).astype(np.uint16), chunks=(5, 5, 8, 8)))
    template = xr.DataArray(rng.normal(size=(12, 10)), dims=("y", "x"))
    lazy = tdm.correlate(labelled, template.chunk({"y": 4}))["rho"]
    np.testing.assert_array_equal(lazy.compute(), tdm.correlate(labelled, template)["rho"].compute())


@pytest.fixture(scope="module")
def client():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", ">u2", "float32"])
def test_distributed_workers_give_the_same_numbers(client, layout, dtype, tmp_path_factory):
    rng = np.random.default_rng(4)
    counts = rng.poisson(3, (9, 8, 7, 6)).astype(dtype)
    labelled = as_labelled(counts, layout, tmp_path_factory, rng)
    templates = rng.normal(size=(2, 9, 8))
    template = xr.DataArray(templates, dims=("template", "y", "x"))
    image = tdm.apply_mask(labelled, tdm.derive_mask(labelled, template), normalisation="standardised").compute()
    mean, std = oracle.statistics(counts)
    expected = oracle.standardised_image(counts, oracle.correlation(counts, templates), mean, std)
    oracle.assert_close(image, expected)


@pytest.mark.long
def test_a_graph_built_under_a_client_runs_under_none(client, tmp_path):
    rng = np.random.default_rng(4)
    labelled = tdm.convert(tdm.label_counts(rng.poisson(3, (9, 8, 7, 6)).astype("uint16")), tmp_path / "scan.zarr")
    template = xr.DataArray(rng.normal(size=(9, 8)), dims=("y", "x"))
    image = tdm.apply_mask(labelled, tdm.derive_mask(labelled, template), normalisation="standardised")
    with_client = image.compute()
    np.testing.assert_array_equal(image.compute(scheduler="synchronous"), with_client)
    np.testing.assert_array_equal(image.compute(scheduler="processes"), with_client)


def test_a_lazy_mask_of_a_region_reads_no_more_than_that_region(tmp_path, monkeypatch):
    from tdm_dask.reading.blocks import Shards

    counts = np.random.default_rng(0).poisson(3, (4, 6, 160, 160)).astype(np.uint16)
    tdm.convert(tdm.label_counts(counts), tmp_path / "scan.zarr")
    opened = tdm.open(tmp_path / "scan.zarr")
    template = xr.DataArray(np.random.default_rng(1).random((4, 6)), dims=("y", "x"))
    region = np.zeros((160, 160), bool)
    region[:30, 100:150] = True
    mask = tdm.derive_mask(opened, template, detector_region=region)
    image = tdm.apply_mask(opened, mask, normalisation="standardised")
    asked = []
    runs = Shards.runs

    def watched(self, window, used, pixels):
        asked.append(pixels)
        return runs(self, window, used, pixels)

    monkeypatch.setattr(Shards, "runs", watched)
    found = image.compute(scheduler="threads")
    assert len(asked) >= 2
    assert all(np.array_equal(pixels, region) for pixels in asked)
    computed = tdm.apply_mask(opened, mask.compute(), normalisation="standardised").compute()
    np.testing.assert_allclose(found, computed, rtol=1e-12)
    beyond = tdm.apply_mask(opened, mask + 1.0, normalisation="standardised")
    with pytest.raises(tdm.errors.MaskError, match="weights outside the detector region that it carries"):
        beyond.compute()
