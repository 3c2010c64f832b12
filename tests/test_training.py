"""Training gives the same weights for the same seed, whether it was stopped in between or not."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from cups.core.errors import InputError
from cups.core.records import PanopticLabel
from cups.core.splits import ThingStuffSplit
from cups.model.network import panoptic_cascade
from cups.training.augment import augmentation_settings
from cups.training.dataset import PseudoLabelDataset
from cups.training.self_training import self_train, self_train_settings
from cups.training.start import joined_with, start_from
from cups.training.targets import training_target
from cups.training.trainer import TrainResult, train, train_settings

SPLIT = ThingStuffSplit(things=(3,), stuff=(0, 1), order=torch.arange(4), share=torch.zeros(4))
TINY = {"stem_channels": 16, "fpn_channels": 16, "box_channels": 32, "mask_channels": 16, "semantic_channels": 32}
"""Not narrower: with 8 channels oneDNN corrupts memory in the backward pass on CPUs with AVX-512."""


class Frames:
    """A bright square that moves over a dark floor; breaks off after some reads, as a killed run would."""

    def __init__(self, reads: int = 10**9):
        self.reads = reads

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[torch.Tensor, PanopticLabel]:
        self.reads -= 1
        if self.reads < 0:
            raise KeyError("stopped")
        semantic = torch.zeros(64, 96, dtype=torch.long)
        semantic[32:] = 1
        instance = torch.zeros_like(semantic)
        rows, columns = slice(20, 50), slice(8 * index, 8 * index + 40)
        semantic[rows, columns], instance[rows, columns] = 3, 1
        return (60 * semantic).to(torch.uint8).expand(3, -1, -1).contiguous(), PanopticLabel(semantic, instance)


def run(folder: Path, frames: Frames, teacher=None, **changes) -> tuple[dict[str, torch.Tensor], TrainResult]:
    torch.manual_seed(0)
    model = panoptic_cascade(1, 2, preset="small", **TINY)
    usual = {"steps": 6, "batch_size": 2, "warmup_steps": 1, "checkpoint_every_steps": 2, "log_every_steps": 4}
    settings = train_settings("small", **usual | changes)
    data = PseudoLabelDataset(frames, SPLIT, kept_mib=0)  # so that every frame is read again
    result = train(model, data, settings, folder, progress=False, teacher=teacher, accelerator="cpu")
    return model.state_dict(), result


def test_a_stopped_run_goes_on_and_ends_with_the_same_weights(tmp_path):
    whole, whole_result = run(tmp_path / "whole", Frames())
    with pytest.raises(KeyError):
        run(tmp_path / "parts", Frames(reads=22))  # four reads a step (two frames, two to paste from), one step ahead
    parts, parts_result = run(tmp_path / "parts", Frames())
    assert parts_result.first_step == 4
    assert parts_result.history == whole_result.history
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    done, done_result = run(tmp_path / "whole", Frames())
    assert done_result.first_step == 6 and done_result.history == whole_result.history
    assert all(torch.equal(whole[name], done[name]) for name in whole)


def teach(folder: Path, frames: Frames) -> tuple[dict[str, torch.Tensor], TrainResult]:
    torch.manual_seed(0)
    model = panoptic_cascade(1, 2, preset="small", **TINY)
    usual = {"steps": 6, "batch_size": 2, "warmup_steps": 1, "checkpoint_every_steps": 2, "log_every_steps": 4}
    settings = self_train_settings("small", min_confidence=0.05, confidence_rise=0.0, scales=(1.0,), **usual)
    images = FramesWithoutLabels(frames)
    result = self_train(model, images, SPLIT, settings, folder, progress=False, accelerator="cpu")
    return model.state_dict(), result


class FramesWithoutLabels:
    """The images of `Frames`."""

    def __init__(self, frames: Frames):
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.frames[index][0]


def test_a_stopped_self_training_goes_on_with_its_teacher(tmp_path):
    whole, whole_result = teach(tmp_path / "whole", Frames())
    with pytest.raises(KeyError):
        teach(tmp_path / "parts", Frames(reads=11))  # two reads a step, one step ahead
    parts, parts_result = teach(tmp_path / "parts", Frames())
    assert parts_result.first_step == 4
    assert parts_result.history == whole_result.history
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_spoilt_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputError, match=r"last\.ckpt: not readable as a checkpoint"):
        run(tmp_path, Frames())


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(InputError, match=r"not finite at step \d: .* kept in .*failed_batch\.pt"):
        run(tmp_path, Frames(), learning_rate=1e12, max_gradient_norm=1e12)
    kept = torch.load(tmp_path / "failed_batch.pt", weights_only=True)
    assert len(kept["images"]) == len(kept["targets"]) == 2 and kept["targets"][0]["masks"].dtype == torch.bool


class Spoilt(Frames):
    """Frames of which one cannot be read."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, PanopticLabel]:
        if index == 2:
            raise InputError("000002.png: not readable as an image")
        return super().__getitem__(index)


def test_a_frame_that_cannot_be_read_is_left_out_and_named():
    plain = PseudoLabelDataset(Frames(), SPLIT, augmentation=None)
    data = PseudoLabelDataset(Spoilt(), SPLIT, augmentation=None, max_unreadable_share=0.2)
    with pytest.warns(UserWarning, match=r"000002\.png: .* left out, 1 of 5 frames"):
        image, _ = data[0, 2]
    assert torch.equal(image, plain[0, 3][0]) and torch.equal(data[1, 2][0], image)
    assert list(data.unreadable) == [2]
    strict = PseudoLabelDataset(Spoilt(), SPLIT, augmentation=None)
    with pytest.raises(InputError, match=r"000002\.png: .* 1 of 5 frames cannot be read, more than a share of 0\.01"):
        strict[0, 2]


class WithoutObjects(Frames):
    """Frames in which nothing is a thing, and one class never occurs."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, PanopticLabel]:
        image, label = super().__getitem__(index)
        return image, PanopticLabel(torch.zeros_like(label.semantic), torch.zeros_like(label.instance))


def test_batches_without_objects_teach_the_rest(tmp_path):
    weights, result = run(tmp_path, WithoutObjects(), self_enhanced_after=2)
    assert all(value.isfinite().all() for value in weights.values())
    assert result.history[-1]["masks"] == 0 and result.history[-1]["semantic"] < result.history[0]["semantic"]


def test_a_step_without_drop_loss_is_that_of_a_network_without_it():
    image, label = Frames()[0]
    losses = []
    for iou, used in ((1.0, True), (1.0, False), (None, True)):
        torch.manual_seed(0)
        model = panoptic_cascade(1, 2, "small", **TINY, drop_loss_iou=iou, drop_loss_ignored_share=0.0)
        target, generators = training_target(label, SPLIT), [torch.Generator().manual_seed(0)]
        losses.append(model([image], [target], generators, drop_loss=used)["classes_1"].item())
    assert losses[0] < losses[1] == losses[2]


def test_labels_without_a_thing_cannot_train_a_network():
    with pytest.raises(InputError, match="no class of the labels is a thing"):
        panoptic_cascade(0, 3)


def test_bad_settings_end_in_one_line():
    with pytest.raises(InputError, match="logger must be one of tensorboard, wandb"):
        train_settings("small", logger="paper")
    with pytest.raises(InputError, match="steps must be positive"):
        train_settings("small", steps=0)
    for settings in (train_settings, self_train_settings):
        with pytest.raises(InputError, match="setting step is unknown; there are steps"):
            settings("small", step=3)
        with pytest.raises(InputError, match="setting steps: expected int, got 'many'"):
            settings("small", steps="many")
        assert settings("small", learning_rate="2e-4").learning_rate == 2e-4  # which YAML reads as text
    with pytest.raises(InputError, match="learning_part: expected 'heads' or 'objects' or 'all', got 'tail'"):
        self_train_settings(learning_part="tail")
    small = self_train_settings("small", augmentation={"hue": 0.5}).augmentation
    assert small == augmentation_settings("small", hue=0.5)  # the others stay those of the preset
    with pytest.raises(InputError, match="no frames"):
        PseudoLabelDataset([], SPLIT)


def test_a_teacher_teaches_and_stays_as_it_is(tmp_path):
    torch.manual_seed(1)
    teacher = panoptic_cascade(1, 2, "small", **TINY)
    before = deepcopy(teacher.state_dict())
    untaught, _ = run(tmp_path / "untaught", Frames())
    taught, _ = run(tmp_path / "taught", Frames(), teacher)
    head = "sem_seg_head.predictor.weight"
    assert not torch.equal(taught[head], untaught[head])
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())
    again, result = run(tmp_path / "taught", Frames(), teacher)  # from its checkpoint, which does not hold the teacher
    assert result.first_step == 6 and all(torch.equal(again[name], taught[name]) for name in taught)


def test_frames_kept_in_memory_are_those_that_are_read_again():
    kept, read = (PseudoLabelDataset(Frames(), SPLIT, kept_mib=size) for size in (256, 0))
    for place in [(epoch, index) for epoch in range(3) for index in range(5)]:
        (image, target), (same_image, same_target) = kept[place], read[place]
        assert torch.equal(image, same_image)
        assert all(torch.equal(value, vars(same_target)[name]) for name, value in vars(target).items())


def test_a_network_starts_from_the_classes_that_another_one_sees():
    torch.manual_seed(1)
    old, new = panoptic_cascade(1, 2, "small", **TINY), panoptic_cascade(1, 2, "small", **TINY)
    start_from(new, old, Frames(), SPLIT)
    assert torch.equal(new.backbone.bottom_up.stem.conv1.weight, old.backbone.bottom_up.stem.conv1.weight)
    assert torch.allclose(new.sem_seg_head.predictor.weight[0], old.sem_seg_head.predictor.weight[0])  # "thing"
    wide = panoptic_cascade(1, 2, "small", **TINY | {"box_channels": 40})
    with pytest.raises(InputError, match=r"the network to start from is of another size: roi_heads\.box_head"):
        start_from(wide, old, Frames(), SPLIT)
    start = deepcopy(new)
    before = start.state_dict()
    with torch.no_grad():
        for weight in new.parameters():
            weight += 1
    for share in (0.0, 0.25, 1.0):
        joined = joined_with(start, new, share).state_dict()
        for name, weight in joined.items():
            if not name.endswith(("num_batches_tracked", "running_mean", "running_var")):
                assert torch.allclose(weight, before[name] + share, atol=1e-5), name
