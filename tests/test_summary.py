"""The words on a training are true for its numbers, whatever these are."""

import pytest

from cups.evaluation.summary import next_step, result_table, still_rises, what_happened

LEVEL = [0.1, 0.2, 0.3, 0.3, 0.3, 0.3]
RISING = [0.1, 0.2, 0.3]


def scores(pq, things=0.2, stuff=0.4, still=0.1, void=0.05):
    return {"pq": pq, "pq_things": things, "pq_stuff": stuff, "still_found": still, "void_share": void}


def curve(values):
    return [{"step": place, "pq": value} for place, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("values", "rises"),
    [
        (RISING, True),
        (LEVEL, False),
        ([0.3, 0.3, 0.2, 0.1], False),
        ([0.1, 0.3], True),
        ([0.300, 0.304], False),  # less than the margin
        ([0.3, 0.1, 0.1, 0.2], True),  # a dip at first does not count
        ([0.3], None),
        ([], None),
    ],
)
def test_whether_a_curve_still_rises(values, rises):
    assert still_rises(curve(values)) is rises


def test_a_curve_that_begins_late_says_nothing():
    assert still_rises([{"step": 200, "pq": 0.1}, {"step": 250, "pq": 0.3}]) is None


def test_a_decayed_learning_rate_levels_a_curve_that_rose():
    assert still_rises([{"step": step, "pq": pq} for step, pq in ((100, 0.14), (200, 0.2), (250, 0.2))])


@pytest.mark.parametrize(
    ("pq", "said"),
    [
        (0.35, "reach 30.0 %. It is 5.0 points above."),
        (0.31, "It is 1.0 point above."),
        (0.25, "It is 5.0 points below."),
        (0.304, "They are level."),
        (None, "reaches PQ 0.0 %"),
    ],
)
def test_a_network_is_above_below_or_level_with_its_labels(pq, said):
    assert said in what_happened(scores(0.30), scores(pq), curve(LEVEL))


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({"things": 0.3}, "It gains things (10.0 points); it does not change stuff and still things found."),
        ({"stuff": 0.3}, "It loses stuff (10.0 points); it does not change things and still things found."),
        (
            {"things": 0.3, "stuff": 0.3, "still": 0.4},
            "It gains things (10.0 points) and still things found (30.0 points); it loses stuff (10.0 points).",
        ),
        ({}, "It does not change things, stuff and still things found."),
        ({"still": None}, "It does not change things and stuff."),
        ({"things": None, "stuff": None, "still": None}, "They are level. PQ did not rise"),
    ],
)
def test_what_it_gained_and_lost(after, said):
    assert said in what_happened(scores(0.3), scores(0.3, **after), curve(LEVEL))


@pytest.mark.parametrize("job", ["train", "self_train"])
@pytest.mark.parametrize("gained", [True, False])
def test_a_curve_that_rises_asks_for_more_steps_and_no_other_does(job, gained):
    assert "raise `steps`" in next_step(gained, True, job)
    for rises in (False, None):
        assert "raise `steps`" not in next_step(gained, rises, job)
    assert "too short" in next_step(gained, None, job) and "did not rise" in next_step(gained, False, job)


@pytest.mark.parametrize(
    ("job", "after", "said"),
    [
        ("train", 0.4, "self_train.ipynb"),
        ("train", 0.2, "`num_scenes`"),
        ("train", 0.3, "`num_scenes`"),
        ("self_train", 0.4, "fine_tune.ipynb"),
        ("self_train", 0.2, "`min_confidence`"),
    ],
)
def test_the_next_step_follows_from_the_result(job, after, said):
    assert said in what_happened(scores(0.3), scores(after), curve(LEVEL), job)


def test_void_that_costs_nothing_is_said_with_what_it_hides():
    before, after = scores(0.33, void=0.205), scores(0.32, void=0.102)
    before["pq_void_missed"], after["pq_void_missed"] = 0.203, 0.248
    text = what_happened(before, after, curve(LEVEL))
    assert "It is 1.0 point below." in text and "20.5 % of the pixels were void before, 10.2 % are now" in text
    assert "counted as missed, PQ goes from 20.3 to 24.8 %." in text and "as much void" not in text
    text = what_happened(before, after, curve(LEVEL), as_void=scores(0.35))
    assert "24.8 %. With as much void as before it is 35.0 %." in text
    assert result_table({"labels": before, "network": after}).splitlines()[-1].endswith("| 10.2 | 24.8 |")
    assert "costs no PQ" not in what_happened(before, after | {"void_share": 0.203}, curve(LEVEL))
    assert "costs no PQ" not in what_happened(before, scores(0.32, void=0.102), curve(LEVEL))


def test_a_network_whose_labels_are_not_scored():
    text = what_happened(None, scores(0.3), curve(LEVEL))
    assert "PQ 30.0 %" in text and "is not scored" in text and "above" not in text and "below" not in text


def test_the_table_leaves_out_what_nobody_knows():
    assert result_table({"labels": scores(0.3), "network": scores(0.4)}).splitlines()[-1] == (
        "| network | 40.0 | 20.0 | 40.0 | 10.0 | 5.0 |"
    )
    unknown = {name: scores(0.3, still=None) for name in ("labels", "network")}
    assert "still" not in result_table(unknown)
    half = result_table({"labels": scores(0.3, still=None), "network": scores(0.4)})
    assert "| labels | 30.0 | 20.0 | 40.0 | – | 5.0 |" in half
