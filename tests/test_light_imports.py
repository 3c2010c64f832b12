"""The labs of the workbench start without what only networks and trainings need."""

import subprocess
import sys

HEAVY = ("torchmetrics", "torchvision", "torch._dynamo", "lightning", "distributed")
LABS = ("explorer", "motion_lab", "threshold_lab", "thing_stuff_lab", "label_fixer", "run_browser")
SCORED = """
import sys

import torch

import cups.workbench.threshold_lab
from cups.core.records import PanopticLabel
from cups.core.splits import ThingStuffSplit
from cups.evaluation.panoptic import panoptic_scores

semantic = torch.zeros(8, 8, dtype=torch.long)
semantic[4:] = 1
split = ThingStuffSplit((), (0, 1), torch.arange(2), torch.zeros(2))
label = PanopticLabel(semantic, torch.zeros_like(semantic))
assert panoptic_scores([(label, label)], split)["pq"] == 1
"""


def loaded(code: str) -> list[str]:
    """Return which of the heavy packages another Python has loaded after the code."""
    code += f"\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_the_labs_import_nothing_heavy():
    assert loaded("\n".join(f"import cups.workbench.{lab}" for lab in LABS)) == []


def test_a_label_is_scored_without_torchmetrics():
    assert loaded(SCORED) == []


def test_the_metric_does_load_torchmetrics():
    assert "torchmetrics" in loaded("import cups.evaluation.panoptic_quality")
