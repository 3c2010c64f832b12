"""Painted strokes are the same when they are painted again, and an edit is carried only where its object is found."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cups.core.errors import InputError
from cups.core.records import VOID, PanopticLabel
from cups.labels.fixed import Edit, FixedLabels
from cups.labels.store import PseudoLabelStore
from cups.labels.strokes import stroke_mask
from cups.workbench.carried_edits import Neighbour, NeighbourFlow, carried_edit, carry_to, fixed_by_hand
from cups.workbench.label_drafts import Draft, save_drafts, saved_draft
from cups.workbench.label_edits import apply_edit, replay

SIZE = HEIGHT, WIDTH = 40, 64
SHIFT = 6


def distances(points) -> np.ndarray:
    """Return the distance of every pixel from a line through points (x, y), in floating point."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    found = np.full(SIZE, np.inf)
    for (x0, y0), (x1, y1) in zip(points, points[1:] or points, strict=False):
        length = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-9)
        along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0, 1)
        found = np.minimum(found, np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_a_stroke_covers_what_is_within_its_radius(seed):
    rng = np.random.default_rng(seed)
    points = tuple(map(tuple, rng.integers(-20, 80, (rng.integers(1, 6), 2)).tolist()))
    radius = float(rng.uniform(0.3, 15))
    far = distances(points)
    clear = np.abs(far - radius) > 1e-6
    assert (stroke_mask(SIZE, points, radius).numpy() == (far <= radius))[clear].all()


@pytest.fixture
def label() -> PanopticLabel:
    """Return a car, number 3 of class 1, before a background of class 0."""
    instance = torch.zeros(SIZE, dtype=torch.int64)
    instance[10:25, 20:40] = 3
    return PanopticLabel((instance > 0).long(), instance)


def shifted(label: PanopticLabel) -> PanopticLabel:
    """Return a label in which all has moved to the right."""
    moved = PanopticLabel(torch.zeros_like(label.semantic), torch.zeros_like(label.instance))
    moved.semantic[:, SHIFT:], moved.instance[:, SHIFT:] = label.semantic[:, :-SHIFT], label.instance[:, :-SHIFT]
    return moved


@pytest.fixture
def flow() -> NeighbourFlow:
    """Return the flow to a neighbour in which all has moved to the right."""
    there = torch.zeros(2, HEIGHT, WIDTH)
    there[0] = SHIFT
    seen, seen_there = (torch.ones(SIZE, dtype=torch.bool) for _ in range(2))
    seen[:, -SHIFT:] = seen_there[:, :SHIFT] = False
    return NeighbourFlow(there, -there, seen, seen_there)


STROKES = [
    Edit("paint", ((25, 12), (50, 30), (-5, 38)), radius=3.25, onto=(25, 12)),
    Edit("paint", ((5, 5), (9, 30)), to_class=1, to_thing=True, radius=2.0),
    Edit("erase", ((30, 15), (30, 20)), radius=4.0),
]


def test_saved_strokes_give_the_same_label_bit_for_bit_and_are_undone_one_by_one(tmp_path, label):
    store = PseudoLabelStore.create(tmp_path / "labels", {}, num_classes=2)
    store.write("frame", label)
    labels, draft = FixedLabels(store), Draft()
    for count in range(1, len(STROKES) + 1):
        draft.push(tuple(STROKES[:count]))
    save_drafts(labels, {"frame": draft})
    painted, edits = labels.read_fixed("frame")
    assert edits == tuple(STROKES) and torch.equal(replay(label, edits).stacked(), painted.stacked())
    assert painted.instance[30, 50] == 3 and painted.instance[5, 5] == 4 and painted.semantic[18, 30] == VOID
    assert json.loads((labels.folder / "frame.json").read_text())["edits"][0]["points"] == "25,12 50,30 -5,38"
    draft = saved_draft(labels, "frame", label)
    draft.move(-1)
    assert torch.equal(replay(label, draft.edits).stacked(), replay(label, STROKES[:2]).stacked())


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (Edit("erase", ((200, 5),), radius=9.0), "did not touch the picture"),
        (Edit("paint", ((25, 12),), radius=1.0, onto=(25, 12)), "changes nothing"),
        (Edit("paint", ((5, 5),), radius=1.0, onto=(99, 12)), r"no segment to paint onto at pixel \(99, 12\)"),
    ],
)
def test_a_stroke_that_does_nothing_says_so(label, edit, fault):
    with pytest.raises(InputError, match=fault):
        apply_edit(label, edit)


@pytest.mark.parametrize(
    "change", [{"points": "3"}, {"points": "3,x"}, {"radius": -2}, {"onto": [1]}, {"kind": "smear"}]
)
def test_a_damaged_stroke_in_a_file_is_reported_with_its_file(tmp_path, label, change):
    store = PseudoLabelStore.create(tmp_path / "labels", {}, num_classes=2)
    store.write("frame", label)
    labels = FixedLabels(store)
    labels.write_fixed("frame", apply_edit(label, STROKES[0]), STROKES[:1])
    path = labels.folder / "frame.json"
    values = json.loads(path.read_text())
    values["edits"][0] |= change
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"frame\.json: not the edits of a fixed label"):
        labels.read_fixed("frame")


@pytest.mark.parametrize(
    "edit",
    [
        Edit("relabel", ((25, 12),), to_class=0, to_thing=False),
        Edit("delete", ((39, 24),)),
        Edit("merge", ((25, 12), (0, 0))),
        Edit("paint", ((38, 20), (44, 30)), radius=3.0, onto=(25, 12)),
        Edit("paint", ((20, 4), (30, 6)), to_class=1, to_thing=True, radius=2.0),
        Edit("erase", ((30, 15), (30, 20)), radius=4.0),
        Edit("split", ((25, 12),), line=(32, 0, 30, 40)),
    ],
    ids=lambda edit: edit.kind,
)
def test_an_edit_does_the_same_in_the_neighbour_both_ways(label, flow, edit):
    there, draft = shifted(label), Draft()
    step = carry_to(Neighbour("next", flow, there, draft), edit, label, "here")
    assert step.made and draft.edits == (step.edit,) and step.edit.origin == "here" and step.agreement > 0.99
    expected, found = shifted(apply_edit(label, edit)), replay(there, draft.edits)
    inside = (slice(None), slice(SHIFT, None))
    assert torch.equal(found.semantic[inside], expected.semantic[inside])
    assert torch.equal(found.instance[inside], expected.instance[inside])
    back, _ = carried_edit(step.edit, there, label, flow.turned())
    assert torch.equal(apply_edit(label, back).stacked(), apply_edit(label, edit).stacked())


def test_an_edit_is_not_carried_where_the_object_is_not_found(label, flow):
    edit, draft = Edit("delete", ((25, 12),)), Draft()
    gone = PanopticLabel(torch.zeros_like(label.semantic), torch.zeros_like(label.instance))
    hidden = NeighbourFlow(flow.there, flow.back, flow.seen & (label.instance == 0), flow.seen_there)
    for there, between, fault in (
        (gone, flow, r"next: no segment agrees with it \(the best by 0\.\d\d, 0\.50 are needed\)"),
        (shifted(label), hidden, "next: both frames see only 0% of the segment, 30% are needed"),
    ):
        with pytest.raises(InputError, match=fault):
            carry_to(Neighbour("next", between, there, draft), edit, label, "here")
    with pytest.raises(InputError, match="next: the segment is in one piece"):
        carry_to(Neighbour("next", flow, shifted(label), draft), Edit("split", ((25, 12),)), label, "here")
    assert not draft.edits and draft.place == 0


def two_cars(left: int, right: int) -> tuple[PanopticLabel, torch.Tensor]:
    """Return two cars as one segment, and the pixels of the right one; each begins at its own column."""
    cars = torch.zeros(2, *SIZE, dtype=torch.bool)
    cars[0, 10:25, left : left + 10], cars[1, 10:25, right : right + 8] = True, True
    return PanopticLabel(cars.any(0).long(), 3 * cars.any(0).long()), cars[1]


@pytest.mark.parametrize("line", [(30, 0, 30, 40), (29, 40, 29, 0), None])
def test_a_split_goes_where_the_flow_takes_its_parts(line):
    gap = 0 if line else 3
    (label, _), (there, right) = two_cars(20, 30 + gap), two_cars(26, 36 + gap)
    to, still = torch.zeros(2, *SIZE), torch.zeros(2, *SIZE)
    to[0], still[0] = SHIFT, -SHIFT
    known = torch.ones(SIZE, dtype=torch.bool)
    draft, edit = Draft(), Edit("split", ((25, 12),), line=line)
    step = carry_to(Neighbour("next", NeighbourFlow(to, still, known, known), there, draft), edit, label, "here")
    parted = replay(there, draft.edits).instance
    assert step.agreement > 0.9 and torch.equal(parted == parted[12, 42], right)


def test_a_cut_ends_where_its_parts_are_not_found(label, flow):
    there, draft = shifted(label), Draft()
    there.semantic[:, 38:], there.instance[:, 38:] = 0, 0  # the smaller part has gone
    with pytest.raises(InputError, match="next: its parts are not found"):
        carry_to(Neighbour("next", flow, there, draft), Edit("split", ((25, 12),), line=(32, 0, 32, 40)), label, "here")
    two = Edit("split", ((25, 12), (0, 0)), line=(32, 0, 32, 40))
    with pytest.raises(InputError, match="a cut through several segments is not carried"):
        carry_to(Neighbour("next", flow, shifted(label), draft), two, label, "here")
    assert not draft.edits


def test_what_a_person_fixed_stays_and_what_was_carried_gives_way(label, flow):
    there, edit = shifted(label), Edit("delete", ((25, 12),))
    own = Edit("relabel", ((30, 12),), to_class=0, to_thing=True)
    car = 15 * 20
    draft = Draft((own,))
    with pytest.raises(InputError, match=f"next: {car} pixels of it were fixed by hand there"):
        carry_to(Neighbour("next", flow, there, draft), edit, label, "here")
    assert draft.edits == (own,) and fixed_by_hand(there, draft.edits).sum() == car
    carried = Draft((replace(own, origin="earlier"),))
    assert not fixed_by_hand(there, carried.edits).any()
    assert carry_to(Neighbour("next", flow, there, carried), edit, label, "here").made and len(carried.edits) == 2
    again = carry_to(Neighbour("next", flow, there, carried), edit, label, "here")
    assert not again.made and len(carried.edits) == 2, "a deleted car is deleted once"
