"""The CRF's shares of work: the same bits for every number of threads, and the lattice as it is by sorting."""

from dataclasses import replace

import cv2
import pytest
import torch

from cups.core.records import ClassScores
from cups.stages.semantics.crf import PUBLISHED_CRF, CrfSettings, dense_crf, mean_field
from cups.stages.semantics.permutohedral import GaussianFilter, lattice, simplices, sums_of
from cups.street.scenes import street_scene


@pytest.fixture(scope="module")
def example():
    """Scores of five classes and an image, large enough for several strips and shares."""
    image = street_scene(3, 150, 300).sample.left_0
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 5, 10, 20, generator=generator)
    scores = torch.nn.functional.interpolate(coarse, (150, 300), mode="bilinear", align_corners=False)[0]
    return scores.log_softmax(0), image


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_any_number_of_threads_gives_the_same_bits(example, threads):
    results = []
    for number in (1, 2, 5):
        threads(number)
        opencv = cv2.getNumThreads()
        results.append(mean_field(*example, CrfSettings(steps=3)))
        assert torch.get_num_threads() == number and cv2.getNumThreads() == opencv  # what it turns off, it turns on
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert not torch.equal(results[0], mean_field(*example, CrfSettings(steps=2)))


def test_classes_are_those_of_pydensecrf_as_before(example):
    scores = ClassScores(example[0])
    engines = (replace(PUBLISHED_CRF, engine=engine) for engine in ("torch", "pydensecrf"))
    ours, theirs = (dense_crf(scores, example[1], engine) for engine in engines)
    assert (ours == theirs).float().mean() > 0.995


def test_more_classes_than_opencv_takes_channels(example):
    scores, image = example
    unlikely = torch.full((145, *scores.shape[1:]), -30.0)
    more = ClassScores(torch.cat([scores, unlikely]))
    assert torch.equal(dense_crf(more, image), dense_crf(ClassScores(scores), image))


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_the_lattice_is_that_of_sorted_corners(dimensions):
    features = 4 * torch.rand(40_000, dimensions, generator=torch.Generator().manual_seed(dimensions))
    known, index, weights, steps = lattice(features)
    corner, rank, expected = simplices(features)
    assert torch.equal(weights, expected.T) and len(steps) == dimensions + 1
    k = torch.arange(dimensions + 1)[:, None, None]
    corners = (corner + k - (dimensions + 1) * (rank > dimensions - k)).permute(2, 0, 1)  # point, k, coordinate
    distinct, place = torch.unique(corners.reshape(-1, dimensions + 1), dim=0, return_inverse=True)
    assert len(distinct) == len(known) and torch.equal(known, known.sort().values)
    pairs = torch.stack([place, index.flatten()]).unique(dim=1)
    assert pairs.shape[1] == len(known)  # one to one: equal corners, and only these, have one index
    numbers = dict(zip(map(tuple, distinct[pairs[0]].tolist()), known[pairs[1]].tolist(), strict=True))
    neighbours = 0
    for axis, step in enumerate(steps):
        for place, number in numbers.items():
            other = tuple(value + 1 - (dimensions + 1) * (i == axis) for i, value in enumerate(place))
            neighbours += other in numbers
            assert numbers.get(other, number - step) == number - step
    assert neighbours > dimensions


def test_shares_add_up_to_the_whole_filter(threads):
    features = 5 * torch.rand(70_000, 3, generator=torch.Generator().manual_seed(0))
    values = torch.rand(70_000, 4, generator=torch.Generator().manual_seed(1)).half()
    gaussian = GaussianFilter(features)
    whole = gaussian(values)
    splat = gaussian.splat(values)
    parts = gaussian._splat
    assert sum(len(p.rows) for p in parts) == 4 * 70_000 and len(splat) == sum(len(p.starts) for p in parts)
    small = [smaller for part in parts for smaller in part.parts(100)]
    assert len(small) > 1 and torch.equal(sums_of(small, values), splat)
    assert torch.equal(gaussian.slice(gaussian.blur(splat), slice(10, 2000)), whole[10:2000])


def test_sums_in_room_that_is_used_again_are_those_in_new_memory():
    generator = torch.Generator().manual_seed(0)
    for spread in (60, 1):  # more corners than points, and fewer
        kernel = GaussianFilter(spread * torch.rand(20_000, 3, generator=generator))
        values = torch.rand(20_000, 2, generator=generator).half()
        fresh, room = kernel.blur(kernel.splat(values)), kernel.room(2)
        assert (len(fresh) > 1 << 15) == (spread == 60)  # several parts: one is returned as it is
        for _ in range(3):
            room[0][:20_000] = values
            again, room = kernel.blurred(room)
            for part in room[: len(room) - (spread == 60)]:
                part.fill_(7)  # what is written there next does not change the sums
            assert torch.equal(again, fresh)
            assert (again.data_ptr() in {part.data_ptr() for part in room}) == (spread == 60)
