"""Classes that regions and the next frame agree on: the same in any order, fewer that swap, bad values refused."""

from dataclasses import replace

import pytest
import torch

from cups.core.errors import InputError
from cups.evaluation.semantic_quality import class_stability
from cups.stages.labels.pseudo_classes import FrameDescription
from cups.stages.pipeline import PseudoLabelSettings, describe, find_pseudo_classes, run_stages
from cups.stages.semantics.region_classes import region_scores
from cups.stages.semantics.regions import find_regions
from cups.street.scenes import street_scene

SETTINGS = PseudoLabelSettings(min_classes=8, max_classes=60, stable_share=0.9)


@pytest.fixture(scope="module")
def samples():
    return [street_scene((41, index), 128, 256).sample for index in range(6)]


@pytest.fixture(scope="module")
def described(samples):
    return [describe(sample, SETTINGS) for sample in samples[:3]]


def same(a, b) -> bool:
    """Return whether two records of tensors are equal bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_the_order_of_frames_does_not_matter(described):
    classes = find_pseudo_classes(described, SETTINGS)
    again = find_pseudo_classes(described[::-1], SETTINGS)
    assert same(classes.pixels, again.pixels) and torch.allclose(classes.counts, again.counts)


def test_statistics_of_parts_can_be_put_together(described):
    first, *others = described
    at_once = FrameDescription.joined(described)
    in_parts = FrameDescription.joined([first, FrameDescription.joined(others)])
    assert same(at_once, in_parts)
    rows = at_once.pairs
    assert int(rows[:, 0].max()) < len(at_once.regions) and int(rows[:, 1].max()) < len(at_once.following)
    last = rows[-len(others[-1].pairs) :]
    assert torch.equal(at_once.regions[last[:, 0]], others[-1].regions[others[-1].pairs[:, 0]])


def test_classes_that_swap_are_joined_until_enough_pixels_keep_theirs(described):
    apart = find_pseudo_classes(described, replace(SETTINGS, stable_share=0.0)).pixels
    joined = find_pseudo_classes(described, SETTINGS).pixels
    few = find_pseudo_classes(described, replace(SETTINGS, stable_share=1.0)).pixels
    assert torch.equal(apart.centres, joined.centres)
    assert apart.num_classes > joined.num_classes >= few.num_classes >= SETTINGS.min_classes
    pairs = {(int(a), int(b)) for a, b in zip(apart.classes, joined.classes, strict=True)}
    assert len(pairs) == apart.num_classes  # joined as a whole


def test_a_number_that_the_user_sets_is_kept(described):
    assert find_pseudo_classes(described, replace(SETTINGS, num_classes=30)).pixels.num_classes == 30


def test_pixels_keep_their_class_more_often(samples, described):
    classes, kept = find_pseudo_classes(described, SETTINGS), []
    for sample in samples[3:]:
        records = run_stages({"sample": sample, "classes": classes}, SETTINGS, ("scores", "movable"))
        around, matches = records["surroundings"], records["matches"]
        after = find_regions(records["features"], sample.calibration).replace(
            number=around.next_number.clamp(min=0), descriptions=around.next_descriptions
        )  # the next frame's regions where this frame's pixels lie
        there = region_scores(after, classes.pixels, sample.size).log_probs.argmax(0)
        still = replace(matches, flow_forward=torch.zeros_like(matches.flow_forward))
        alone = region_scores(records["regions"], classes.pixels, sample.size).log_probs.argmax(0)
        agreed = records["scores"].log_probs.argmax(0)
        kept.append([class_stability(each, there, still) for each in (agreed, alone)])
        assert records["movable"].shape == sample.size and bool((records["movable"] >= 0).all())
    agreed, alone = torch.tensor(kept).mean(0)
    assert agreed > alone + 0.01


def test_shares_out_of_range_are_refused():
    for share in (-0.1, 1.1):
        with pytest.raises(InputError, match="stable_share"):
            PseudoLabelSettings(stable_share=share)
