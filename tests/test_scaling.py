"""The extrapolation of a large job, against numbers that were worked out by hand."""

import pytest

from cups.benchmarks.scaling_model import Costs, Site, extrapolate
from cups.core.errors import InputError

COSTS = Costs(
    {"motion": 3.0, "CRF": 1.0}, gpu_s=0.5, scheduler_s=0.001, read_bytes=4e6, written_bytes=1e6, message_bytes=2e3,
    operations=20,
)  # fmt: skip
SITE = Site(gpus=10, cores_per_gpu=4, in_flight=5, bytes_per_s=1e9, operations_per_s=10_000)


def test_bounds_by_hand():
    job = extrapolate(COSTS, 36_000, SITE)
    assert job.bounds_h == pytest.approx({
        "GPUs": 0.5, "CPU cores": 1.0, "frames in flight": 0.9, "storage, bytes": 0.05, "storage, operations": 0.02,
        "scheduler": 0.01,
    })  # fmt: skip
    assert (job.bottleneck, job.hours) == ("CPU cores", pytest.approx(1.0))
    assert (job.stored_bytes, job.moved_bytes) == (36e9, 36_000 * 5_002_000)


def test_more_gpus_help_until_what_all_share_bounds_the_job():
    few, many = (extrapolate(COSTS, 36_000, Site(gpus, 4, 5, 1e9, 10_000)) for gpus in (10, 1000))
    for name in ("GPUs", "CPU cores", "frames in flight"):
        assert many.bounds_h[name] == pytest.approx(few.bounds_h[name] / 100)
    for name in ("storage, bytes", "storage, operations", "scheduler"):
        assert many.bounds_h[name] == few.bounds_h[name]
    assert many.bottleneck == "storage, bytes"


def test_impossible_numbers_are_refused():
    with pytest.raises(InputError, match="cpu_s must not be negative, got -1"):
        Costs({"motion": -1})
    with pytest.raises(InputError, match="gpu_s must not be negative, got nan"):
        Costs({}, gpu_s=float("nan"))
    with pytest.raises(InputError, match="gpus must be positive, got 0"):
        Site(gpus=0)
    with pytest.raises(InputError, match="frames must not be negative"):
        extrapolate(COSTS, -1, SITE)
