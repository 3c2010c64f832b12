"""Every data set has a card, all cards have one form, and their tables of labels say what the label definitions say."""

import json
import re
from pathlib import Path

import pytest
import yaml
from shared import shared_folder

from cups.core.records import VOID
from cups.core.taxonomy import CATEGORIES, CITYSCAPES_19, CITYSCAPES_27, CITYSCAPES_LABELS
from cups.datasets.registry import DATASETS

ROOT = Path(__file__).parents[1]
NAMES = [
    "cityscapes_sequences", "cityscapes", "kitti_raw", "kitti_panoptic", "bdd10k", "muses", "waymo", "mots",
    "stereo_folder", "stereo_video", "street_scenes", "depth_folder", "kitti_step", "cityscapes_vps",
]  # fmt: skip
SECTIONS = [
    "Source and licence", "How to get it", "Layout", "Splits and sizes", "Sensors", "Label classes", "Known faults",
    "How the package uses it", "Citation",
]  # fmt: skip
LISTS = {"task_categories", "size_categories", "tags", "annotations_creators", "source_datasets"}


def card(name: str) -> tuple[dict, str]:
    """Return the YAML head and the Markdown body of a card."""
    head, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", (ROOT / "data_cards" / f"{name}.md").read_text(), re.S).groups()
    return yaml.safe_load(head), body


def sections(body: str) -> dict[str, str]:
    """Return the text of every section by its title, in order."""
    parts = re.split(r"^## (.+)\n", body, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(name: str) -> dict[int, list[str]]:
    """Return the rows of a card's table of labels by id."""
    table = re.findall(r"^\| (-?\d+) \| (.+) \|$", sections(card(name)[1])["Label classes"], re.M)
    return {int(number): rest.split(" | ") for number, rest in table}


def test_cards_and_data_sets_are_the_same():
    assert {path.stem for path in (ROOT / "data_cards").glob("*.md")} == set(NAMES)
    assert set(DATASETS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_card_has_the_form(name):
    head, body = card(name)
    assert body.lstrip().startswith(f"# {head['pretty_name']}\n")
    assert head["license"] and (head["license"] != "other" or head["license_name"])
    for key in LISTS:
        assert head[key] and all(isinstance(value, str) for value in head[key]), key
    assert set(head["size_categories"]) <= {"n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M"}

    text = sections(body)
    assert list(text) == SECTIONS
    assert all(part.strip() for part in text.values())
    assert re.search("licen[cs]e|terms", text["Source and licence"], re.I)
    assert f"cups data check {name} " in text["How the package uses it"]
    assert f"-p dataset {name} " in text["How the package uses it"]


@pytest.mark.parametrize("name", NAMES)
def test_links_between_cards_lead_somewhere(name):
    for target in re.findall(r"\]\((?!http)([^)]+)\)", card(name)[1]):
        assert (ROOT / "data_cards" / target).is_file(), target


def test_labels_of_cityscapes_are_those_of_the_package():
    def text(number: int) -> str:
        return "void" if number == VOID else str(number)

    def category(number: int) -> str:
        return "void" if number == VOID else CATEGORIES[number]

    assert rows("cityscapes") == {
        known.id: [known.name, text(known.to_27), text(known.to_19), category(known.to_7)]
        for known in CITYSCAPES_LABELS
    }


def name_of(number: int, names: tuple[str, ...]) -> str:
    return "void" if number in (VOID, -1) else names[number]


@pytest.mark.parametrize("name, key", [("bdd10k", "bdd100k_10k"), ("waymo", "waymo")])
def test_mapped_labels_are_the_published_ones(name, key):
    published = json.loads((shared_folder() / "spec" / "labels.json").read_text())[key]
    sets = {"to_27": CITYSCAPES_27.names, "to_19": CITYSCAPES_19.names, "to_7": CATEGORIES}
    assert rows(name) == {
        label["id"]: [label["name"].replace("lanemarker", "lane marker")]
        + [name_of(label[to], names) for to, names in sets.items() if to in label]
        for label in published
    }


def test_labels_of_muses_are_the_19_classes_of_cityscapes():
    by_id = {label.id: label for label in CITYSCAPES_LABELS if label.to_19 != VOID}
    things = {label.id for label in by_id.values() if CITYSCAPES_19.things[label.to_19]}
    assert rows("muses") == {
        number: [label.name, label.name, label.category, "thing" if number in things else "stuff"]
        for number, label in by_id.items()
    }
