"""Where the input of a stage, of the network or of a metric lies, there lies what it makes.

On a device that is pretended, so that it is shown on every machine; where there is a GPU, on that, too.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from devices import DEVICE, DEVICES, Device, Gpu, move, on_device, places, values

from cups.core.records import PanopticLabel
from cups.core.splits import ThingStuffSplit
from cups.evaluation.objects import detected_objects, labelled_objects, true_objects
from cups.evaluation.panoptic_quality import PanopticQuality
from cups.model.inference import combine, network_output, predict
from cups.model.network import PanopticCascade, panoptic_cascade
from cups.stages.pipeline import STAGES, PseudoLabelSettings, describe, find_pseudo_classes
from cups.street.scenes import street_scene
from cups.training.augment import augment, augmentation_settings, paste_objects
from cups.training.self_training import SelfTraining, self_train_settings
from cups.training.targets import training_target
from cups.training.trainer import PanopticTraining, train_settings

SPLIT = ThingStuffSplit(things=(3,), stuff=(0, 1), order=torch.arange(4), share=torch.zeros(4))
TINY = {"stem_channels": 16, "fpn_channels": 16, "box_channels": 32, "mask_channels": 16, "semantic_channels": 32}
"""Not narrower: with 8 channels oneDNN corrupts memory in the backward pass on CPUs with AVX-512."""


def lies_there(value: object) -> bool:
    """Whether a value has tensors, and all lie on the device."""
    found = places(value)
    assert set(found.values()) == {str(DEVICE)}, found
    return True


def frame(index: int = 0) -> tuple[torch.Tensor, PanopticLabel]:
    """Return a bright square on a floor, and a label with a part that is void."""
    semantic = torch.zeros(64, 96, dtype=torch.long)
    semantic[32:], semantic[:8] = 1, 255
    instance = torch.zeros_like(semantic)
    rows, columns = slice(20, 50), slice(8 * index, 8 * index + 40)
    semantic[rows, columns], instance[rows, columns] = 3, 1
    image = (60 * semantic.clamp(max=4)).to(torch.uint8).expand(3, -1, -1).contiguous()
    return image, PanopticLabel(semantic, instance)


@pytest.fixture(params=DEVICES)
def device(request) -> type[Device | Gpu]:
    return request.param


def small_network(device: type[Device | Gpu]) -> PanopticCascade:
    """Return a network whose every detection fills its box."""
    torch.manual_seed(0)
    network = panoptic_cascade(1, 2, "small", **TINY, detection_min_score=0.0)
    torch.nn.init.constant_(network.roi_heads.mask_head.predictor.bias, 5.0)
    return move(network, device)


def test_what_a_gpu_refuses_is_refused():
    with Device() as device:
        x = torch.arange(6.0, device="cuda")
        for refused in (
            lambda: x + torch.arange(6.0),
            lambda: torch.arange(6)[x.long()],
            lambda: torch.isin(x, torch.tensor([1.0, 2.0])),
            lambda: torch.randperm(3, generator=torch.Generator(), device=x.device),
            lambda: torch.rand(3, generator=torch.Generator("cuda")),
        ):
            with pytest.raises(RuntimeError, match=r"cuda|another device"):
                refused()
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert x[torch.tensor([1])].tolist() == [1.0] and (x + torch.tensor(2)).cpu().tolist()[0] == 2.0
    assert sum(device.waits.values()) == 2 and sum(device.copies.values()) == 1


@pytest.fixture(scope="module")
def settings() -> PseudoLabelSettings:
    return PseudoLabelSettings(num_classes=12, num_object_classes=2)


@pytest.fixture(scope="module")
def scene():
    return street_scene((5, 0), 128, 256)


@pytest.fixture(scope="module")
def classes(scene, settings):
    return find_pseudo_classes([describe(scene.sample, settings)], settings)


def test_every_stage_returns_its_record_on_the_device_of_the_frame(device, scene, settings, classes):
    records = {"sample": scene.sample, "classes": classes}
    with device():
        there = {"sample": scene.sample.to("cuda"), "classes": classes.to("cuda")}
        for stage in STAGES:
            records[stage.makes] = stage(records, settings)
            there[stage.makes] = stage(there, settings)
            assert lies_there(there[stage.makes]), stage.name
    assert len(records["proposals"].motions), "the scene must have an object that moves"
    label, made_there = records["label"], there["label"]
    assert torch.equal(values(made_there.instance), label.instance)
    same = (values(made_there.semantic) == label.semantic).float().mean()
    assert same > 0.999, "the CRF smooths by another routine there: differences of rounding"


def test_classes_are_found_from_descriptions_on_the_device(device, scene, settings, classes):
    with device():
        description = describe(scene.sample.to("cuda"), settings)
        assert lies_there(description)
        found = find_pseudo_classes([description], settings)  # by scikit-learn
        assert set(places(found).values()) == {"cpu"}
    if device is Device:
        assert torch.equal(found.counts, classes.counts)
    else:
        assert torch.allclose(found.counts, classes.counts, rtol=1e-3), "a GPU rounds otherwise"


def test_a_training_step_and_its_losses(device, tmp_path):
    settings = train_settings("small", log_every_steps=1000, self_enhanced_after=0, own_confidence=0.0)
    module = PanopticTraining(small_network(device).train(), settings)
    module._device, module.run_dir = DEVICE, tmp_path
    pairs = [frame(i) for i in range(2)]
    batch = [image for image, _ in pairs], [training_target(label, SPLIT) for _, label in pairs]
    with device():
        batch = module.transfer_batch_to_device(batch, DEVICE, 0)
        assert lies_there(batch)
        for _ in range(2):  # the second one pastes what the first one found
            loss = module.training_step(batch, 0)
            assert lies_there(loss)
            loss.backward()
            assert lies_there(module.history.sums)
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert lies_there(gradients) and len(gradients) > 100
        assert any(module.copy_paste.cutouts), "the step must find objects to paste"
        assert not {"cuda:0"} & set(places(module.copy_paste.state()).values()), "checkpoints are of the CPU"


def test_a_training_step_waits_for_the_device_only_where_it_must(device):
    module = PanopticTraining(small_network(device).train(), train_settings("small", log_every_steps=1000))
    module._device = DEVICE
    pairs = [frame(i) for i in range(4)]
    batch = [image for image, _ in pairs], [training_target(label, SPLIT) for _, label in pairs]
    with device() as seen:
        batch = module.transfer_batch_to_device(batch, DEVICE, 0)
        module.training_step(batch, 0)  # copies constants
        seen.waits.clear(), seen.copies.clear()
        module.training_step(batch, 0).backward()
    # Of each image: non-maximum suppression, the objects and the background among anchors and among proposals (4), and
    # boxes that are empty, or not finite (4). Of a batch: the boxes of each level, objects in three stages, the losses.
    assert sum(seen.waits.values()) <= 4 * (1 + 4 + 4) + 5 + 3 + 1, seen.waits
    assert not seen.copies, seen.copies


def test_targets_and_augmentation(device):
    with device():
        (image, label), (other, other_label) = ((i.to("cuda"), x.to("cuda")) for i, x in (frame(0), frame(3)))
        assert lies_there(training_target(label, SPLIT))
        rng = np.random.default_rng(3)
        pasted = [paste_objects(image, label, other, other_label, SPLIT.things, 8, rng) for _ in range(4)]
        assert lies_there(pasted) and any(found.instance.max() > 1 for _, found in pasted)
        for preset in ("cityscapes", "small"):
            changed = [
                augment(image, label, augmentation_settings(preset), rng, SPLIT.things, lambda: (other, other_label))
                for _ in range(4)
            ]
            assert lies_there(changed)


def test_self_training(device, tmp_path):
    settings = self_train_settings(
        "small", min_confidence=0.05, scales=(0.75, 1.0), mirror=True, log_every_steps=1000, semantic_share=0.0
    )
    module = SelfTraining(small_network(device).train(), settings, SPLIT)
    module._device, module.run_dir = DEVICE, tmp_path
    frames = [frame(i) for i in range(2)]
    for known in (None, frames[0][1]):
        batch = [image for image, _ in frames], [((0, i), known) for i in range(2)]
        with device():
            images, known_labels = module.transfer_batch_to_device(batch, DEVICE, 0)
            module.teacher.eval()
            assert lies_there(module.label(images[0], known))
            assert lies_there(module.training_step((images, known_labels), 0))


def test_predictions_and_their_scores(device):
    network, (image, truth) = small_network(device), frame()
    with device():
        for scales, mirror in (((1.0,), False), ((0.5, 1.0), True)):
            prediction = network_output(network, image, scales, mirror)
            assert lies_there(prediction) and len(prediction.scores)
            label, _ = combine(prediction, replace(network.config, min_confidence=0.0), SPLIT.things, SPLIT.stuff)
            assert lies_there(label)
        label, truth = predict(network, image, SPLIT), truth.to("cuda")
        assert lies_there(label)
        metric = PanopticQuality({2}, {0, 1}, 4)
        metric._device = DEVICE
        true = truth.replace(semantic=torch.where(truth.semantic == 3, 2, truth.semantic))
        metric.update(label.stacked()[None], true.stacked()[None])
        assert lies_there([metric.pairs, metric.pixels, metric.pairs_per_image])
        assert lies_there(metric.compute())
        assert lies_there(labelled_objects(truth, SPLIT)) and lies_there(true_objects(truth))
        assert set(places(detected_objects(prediction)).values()) == {"cpu"}


def test_the_device_is_found_in_pretended_tensors_only():
    assert places({"a": on_device(torch.zeros(1)), "b": [torch.zeros(1)]}) == {".a": "cuda:0", ".b.0": "cpu"}
