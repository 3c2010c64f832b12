"""A semantic head is the same for the same seed, whether it was killed or not; its features keep within their bound."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from cups.core.checkpoints import read_tensors
from cups.core.errors import InputError
from cups.core.records import StereoSample
from cups.stages.pipeline import PseudoLabelSettings, analyse, describe, find_pseudo_classes, known_clusters
from cups.stages.semantics.depthg import DepthGSettings
from cups.stages.semantics.tokens import TokenFeatures, TokenSettings
from cups.stages.semantics.vision_transformer import VisionTransformer
from cups.street.scenes import StreetScenes
from cups.training.correlation import correlation, correlation_loss, depth_correlation, farthest_points, shift_for
from cups.training.frozen_features import FrozenFeatures, FrozenFrame, fingerprint
from cups.training.semantic_head import (
    HeadResult,
    HeadSettings,
    cosine_centres,
    depthg_tensors,
    draw_batch,
    draw_codes,
    head_scores,
    survey,
    train_head,
)

SETTINGS = HeadSettings(
    steps=8, batch_size=4, locations=8, code=5, neighbours=2, checkpoint_every_steps=2, depth_weight=0.1, farthest=0.5
)


class Frames:
    """Features of two kinds of places, one of them farther away; breaks off after some reads, as a killed run would."""

    def __init__(self, reads: int = 10**9):
        self.reads = reads

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> FrozenFrame:
        if index >= len(self):
            raise IndexError(index)
        self.reads -= 1
        if self.reads < 0:
            raise KeyError("stopped")
        generator = torch.Generator().manual_seed(index)
        upper = torch.arange(8)[:, None].expand(8, 12) < 4
        features = torch.randn(6, 8, 12, generator=generator) + 4 * torch.where(upper, 1.0, -1.0)
        depth = torch.where(upper, 20.0, 5.0)
        depth[:, 0] = 0
        points = [0 * depth, torch.rand(8, 12, generator=generator), depth]
        return FrozenFrame(features.half(), torch.stack(points, -1))


def trained(folder: Path, frames: Frames, **changes) -> HeadResult:
    return train_head(frames, replace(SETTINGS, **changes), folder)


def content(result: HeadResult) -> bytes:
    """Return the file of what was learnt, without a backbone."""
    return save(depthg_tensors(torch.nn.Identity(), result, cosine_centres(draw_codes(frames(), result), 3)))


def frames() -> list[FrozenFrame]:
    return [Frames()[index] for index in range(3)]


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    whole = trained(tmp_path / "whole", Frames())
    with pytest.raises(KeyError):
        trained(tmp_path / "parts", Frames(reads=3 + 5 * 8))  # three for the survey, eight a step
    parts = trained(tmp_path / "parts", Frames())
    assert parts.first_step == 4 and [entry["step"] for entry in parts.history] == [2, 4, 6, 8]
    assert content(parts) == content(whole) and parts.history == whole.history
    again = trained(tmp_path / "whole", Frames())
    assert again.first_step == 8 and content(again) == content(whole)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    trained(tmp_path, Frames())
    with pytest.raises(InputError, match=r"head\.ckpt: of a run with other frames or settings"):
        trained(tmp_path, Frames(), seed=1)
    with pytest.raises(InputError, match=r"head\.ckpt: of a run with other frames or settings"):
        train_head(Frames(), SETTINGS, tmp_path, fingerprint="of others")
    (tmp_path / "head.ckpt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputError, match=r"head\.ckpt: not readable as a checkpoint"):
        trained(tmp_path, Frames())


def test_the_losses_are_those_of_the_formulas():
    features, other = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]), torch.tensor([[[0.0, 2.0], [5.0, 0.0]]])
    target = correlation(features, other)
    torch.testing.assert_close(target, torch.tensor([[[0.8, 0.6], [0.0, 1.0]]]))
    # Rows have means 0.7 and 0.5, all together 0.6: what is left of a row, plus 0.6.
    expected = torch.tensor([[[0.7, 0.5], [0.1, 1.1]]])
    torch.testing.assert_close(correlation(features, other, spatial_centring=True), expected)
    codes = torch.tensor([[[1.0, 0.5], [-1.0, 0.5]]])
    by_hand = -(1.0 * 0.3 + 0.5 * 0.1 + 0.0 * -0.5 + 0.5 * 0.5) / 4
    torch.testing.assert_close(correlation_loss(target, codes, 0.5), torch.tensor(by_hand))
    assert (torch.arange(1000.0) > shift_for(torch.arange(1000.0), 0.2)).float().mean() == 0.2
    # Log depths 0, 2 and 4: deviations -2, 0 and 2 from their mean, standard deviation sqrt(8 / 3).
    depths = torch.tensor([[0.0, 2.0, 4.0]]).exp() * torch.tensor([[1.0, 1.0, 1.0]])
    torch.testing.assert_close(depth_correlation(depths)[0, 0], torch.tensor([1.5, 0.0, -1.5]))


def test_pairs_that_correlate_pull_their_codes_together():
    codes = torch.tensor([[[1.0, 0.2]]], requires_grad=True)
    other = torch.tensor([[[0.2, 1.0]]])
    for target, sign in ((0.9, 1), (0.1, -1)):
        loss = correlation_loss(torch.full((1, 1, 1), target), correlation(codes, other), 0.5)
        (gradient,) = torch.autograd.grad(loss, codes)
        moved = correlation(codes - 0.1 * gradient, other)
        assert sign * (moved - correlation(codes, other)).item() > 0


def test_farthest_points_cover_what_random_ones_miss():
    points = torch.cat([torch.rand(1, 200, 3), 50 + torch.arange(12.0).view(1, 4, 3)], dim=1)
    chosen = farthest_points(points, 5, torch.tensor([0]))
    assert len(chosen[0].unique()) == 5 and {200, 203} <= set(chosen[0].tolist())


def test_places_of_unknown_depth_are_drawn_and_kept_out_of_the_depth_loss():
    unknown = [replace(frame, points=torch.zeros_like(frame.points)) for frame in frames()]
    _, _, depth = draw_batch(unknown, survey(unknown, SETTINGS), SETTINGS, step=0)
    assert not depth.any()


class Street:
    """A video of street scenes, rendered when they are read."""

    def __init__(self, seed: int = 0):
        self.scenes, self.names = StreetScenes(3, seed, 80, 160), ["a", "b", "c"]
        self.reads = 0

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> StereoSample:
        self.reads += 1
        return self.scenes[index].sample

    def left(self, index: int) -> torch.Tensor:
        return self.scenes[index].sample.left_0


def tiny(folder: Path, seed: int = 0) -> PseudoLabelSettings:
    """Return settings with the tokens of a tiny vision transformer."""
    torch.manual_seed(seed)
    path = folder / f"tiny_{seed}.safetensors"
    save_file(VisionTransformer(64, depth=1, patch_px=4, grid=3).state_dict(), path)
    tokens = TokenSettings(str(path), tokens_high=8, device="cpu")
    return PseudoLabelSettings(features="dinov2", dinov2=tokens, num_object_classes=0)


def test_the_cache_keeps_its_bound_and_recomputes_the_rest(tmp_path):
    street, settings = Street(), tiny(tmp_path)
    whole = FrozenFeatures(street, settings, tmp_path / "whole")
    kept = [whole[i] for i in range(3)]
    size = (tmp_path / "whole" / "a.safetensors").stat().st_size
    gib = 1.5 * size / 2**30
    for _ in range(2):
        part = FrozenFeatures(street, settings, tmp_path / "part", gib)
        for expected, found in zip(kept, map(part.__getitem__, range(3)), strict=True):
            assert all(torch.equal(getattr(expected, n), getattr(found, n)) for n in ("features", "points"))
        files = list((tmp_path / "part").glob("*.safetensors"))
        assert [f.name for f in files] == ["a.safetensors"] and sum(f.stat().st_size for f in files) <= gib * 2**30
    reads = street.reads
    assert torch.equal(whole[2].features, kept[2].features) and street.reads == reads  # from its file
    FrozenFeatures(street, settings, tmp_path / "none", cache_gib=0)[1]
    assert not list((tmp_path / "none").glob("*.safetensors"))


def test_features_of_others_are_refused(tmp_path):
    street, settings = Street(), tiny(tmp_path)
    FrozenFeatures(street, settings, tmp_path / "kept")
    finer = replace(settings, dinov2=replace(settings.dinov2, tokens_high=9))
    for others in ((street, tiny(tmp_path, seed=1)), (street, finer), (Street(seed=1), settings)):
        with pytest.raises(InputError, match="kept: holds features of other frames, settings or weights"):
            FrozenFeatures(*others, tmp_path / "kept")
    first = street.scenes[0].sample
    for change in ({"calibration": replace(first.calibration, baseline_m=2.0)}, {"right_0": first.left_0}):
        other = Street()
        other.scenes = [replace(street.scenes[0], sample=first.replace(**change))]
        with pytest.raises(InputError, match="kept: holds features of other frames, settings or weights"):
            FrozenFeatures(other, settings, tmp_path / "kept")
    elsewhere = replace(settings, dinov2=replace(settings.dinov2, windows_at_once=1, device="auto"))
    assert fingerprint(street, elsewhere) == fingerprint(street, settings)
    (tmp_path / "kept" / "a.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"a\.safetensors: not readable as frozen features"):
        FrozenFeatures(street, settings, tmp_path / "kept")[0]


def test_what_was_learnt_is_used_as_depthg(tmp_path):
    street, settings = Street(), tiny(tmp_path)
    frozen = FrozenFeatures(street, settings, tmp_path / "features")
    result = train_head(frozen, SETTINGS, tmp_path)
    centres = cosine_centres(draw_codes(map(frozen.__getitem__, range(3)), result), num_classes=4)
    path = tmp_path / "depthg.safetensors"
    save_file(depthg_tensors(TokenFeatures(settings.dinov2).network, result, centres), path)
    assert read_tensors(path)["cluster_probe.clusters"].shape == (4, 5)
    depthg = DepthGSettings(str(path), tokens_high=8, device="cpu")
    used = replace(settings, features="depthg", depthg=depthg, num_classes=4)
    sample = street[1]
    assert known_clusters(used).num_classes == 4
    scores = analyse(sample, find_pseudo_classes([describe(sample, used)], used), used).scores
    same = scores.log_probs.argmax(0) == head_scores(frozen[1], result, centres, sample.size).log_probs.argmax(0)
    assert same.float().mean() > 0.98  # the features were kept in half precision


WAITING = """
import sys, time
from tests.test_semantic_head import Frames, SETTINGS
from cups.training.semantic_head import train_head

class Slow(Frames):
    def __getitem__(self, index):
        time.sleep(0.02)
        return super().__getitem__(index)

train_head(Slow(), SETTINGS, sys.argv[1])
"""


def test_a_killed_process_leaves_a_checkpoint_to_go_on_from(tmp_path):
    root = Path(__file__).parents[1]
    killed = subprocess.Popen([sys.executable, "-c", WAITING, str(tmp_path / "killed")], cwd=root)
    while killed.poll() is None and not (tmp_path / "killed" / "head.ckpt").exists():
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it was faster than the test"
    gone_on = trained(tmp_path / "killed", Frames())
    assert gone_on.first_step > 0 and content(gone_on) == content(trained(tmp_path / "whole", Frames()))
