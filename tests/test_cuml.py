"""cuML is used only where it is for the CUDA that PyTorch brings, and one line says so otherwise."""

import sys
import warnings

import pytest
import torch

from cups.stages.semantics.clusters import cuml_fault, fit_clusters


@pytest.mark.parametrize(
    ("packages", "cuda", "said"),
    [
        (["cuml-cu13"], "13.0", None),
        (["cuml-cu12"], "12.8", None),
        ([], "13.0", None),
        (["cuml-cu12"], "13.0", "PyTorch is for CUDA 13, cuml-cu12 is not: k-means runs on the CPU; "),
        (["cuml-cu12", "cuml-cu13"], "13.0", "PyTorch is for CUDA 13, cuml-cu12 is not: k-means runs on the CPU; "),
        (["cuml-cu13"], None, "PyTorch is installed without CUDA, cuML is not used: k-means runs on the CPU"),
    ],
)
def test_cuml_and_pytorch_are_for_the_same_cuda(packages, cuda, said):
    fault = cuml_fault(packages, cuda)
    assert fault == said or (said and said.endswith("; ") and fault.startswith(said) and "\n" not in fault)


def test_cuml_for_another_cuda_is_not_imported(tmp_path, monkeypatch):
    """A package as pip leaves it, of a CUDA that no PyTorch is for, whose import would fail."""
    (tmp_path / "cuml").mkdir()
    (tmp_path / "cuml" / "__init__.py").write_text("raise AssertionError('imported')\n")
    info = tmp_path / "cuml_cu7-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cuml-cu7\nVersion: 1.0\n")
    (info / "RECORD").write_text("cuml/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cuml", raising=False)
    features = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="k-means runs on the CPU") as warned:
        there = fit_clusters(features, num_classes=4)
    assert (len(warned) == 1 and "cuml-cu7" in str(warned[0].message)) or torch.version.cuda is None
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert torch.equal(fit_clusters(features, num_classes=4).centres, there.centres)
