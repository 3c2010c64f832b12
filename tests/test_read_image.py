"""`read_image` gives what Pillow gives for every kind of file, and one line for a damaged one."""

import re
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cups.core.errors import InputError
from cups.core.files import read_image

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def chunk(kind, content=b""):
    """Return a chunk of a PNG file."""
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def interlaced(path):
    """Write 3 x 2 pixels in Adam7's passes: (0, 0), none, none, (0, 2), none, (0, 1), row 1."""
    rows = PHOTO[:2, :3]
    passes = [rows[:1, :1], rows[:1, 2:3], rows[:1, 1:2], rows[1:]]
    scanlines = b"".join(b"\0" + line.tobytes() for part in passes for line in part)
    header = (3).to_bytes(4, "big") + (2).to_bytes(4, "big") + b"\x08\x02\0\0\1"
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(scanlines)) + chunk(b"IEND")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return rows


def test_all_modes_read_as_pillow_reads_them(tmp_path):
    grey, deep = PHOTO[..., 0], PHOTO[..., 0].astype(np.uint16) * 257
    rgb = Image.fromarray(PHOTO)
    rgba = np.dstack([PHOTO, PHOTO[..., :1]])
    palette = rgb.quantize(16)
    cases = {
        "rgb.png": (rgb, PHOTO),
        "grey.png": (Image.fromarray(grey), grey),
        "deep.png": (Image.fromarray(deep), deep),
        "rgba.png": (Image.fromarray(rgba), PHOTO),
        "palette.png": (palette, np.array(palette.convert("RGB"))),
        "bits.png": (Image.fromarray(grey > 99), (grey > 99) * np.uint8(255)),
        "grey_alpha.png": (Image.fromarray(rgba[..., 2:], "LA"), np.dstack([PHOTO[..., 2]] * 3)),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        read = read_image(tmp_path / name)
        assert read.dtype == expected.dtype and np.array_equal(read, expected), name
    rgb.save(tmp_path / "photo.jpg")
    assert np.array_equal(read_image(tmp_path / "photo.jpg"), np.array(Image.open(tmp_path / "photo.jpg")))


def test_numbers_of_label_images_are_read_as_they_are_stored(tmp_path):
    path, deep = tmp_path / "map.png", np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27
    rgba = np.dstack([PHOTO, PHOTO[..., :1]])
    ids = Image.fromarray(PHOTO[..., 0], "P")
    ids.putpalette(bytes(range(255, -1, -1)) * 3)
    cases = {
        "L": (Image.fromarray(PHOTO[..., 0]), PHOTO[..., 0]),
        "I;16": (Image.fromarray(deep), deep),
        "P": (ids, PHOTO[..., 0]),
        "RGB": (Image.fromarray(PHOTO), PHOTO),
        "RGBA": (Image.fromarray(rgba), rgba),
    }
    for mode, (image, expected) in cases.items():
        image.save(path)
        assert np.array_equal(read_image(path, mode), expected), mode
        other = next(known for known in cases if known != mode)
        with pytest.raises(InputError, match=re.escape(f"{path}: an image of mode {mode}, expected {other}")):
            read_image(path, other)


def test_what_else_a_png_holds_changes_no_value(tmp_path):
    rgb, text = Image.fromarray(PHOTO), PngImagePlugin.PngInfo()
    text.add_text("Comment", "recorded in the rain")
    text.add(b"gAMA", (45455).to_bytes(4, "big"))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter for display
    rgb.save(tmp_path / "chunks.png", pnginfo=text)
    rgb.save(tmp_path / "turned.png", exif=exif)
    rgb.save(tmp_path / "transparent.png", transparency=tuple(PHOTO[0, 0].tolist()))
    rgb.save(tmp_path / "moving.png", save_all=True, append_images=[Image.fromarray(255 - PHOTO)])
    for name in ("chunks", "transparent", "moving"):
        assert np.array_equal(read_image(tmp_path / f"{name}.png"), PHOTO), name
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(PHOTO, -1))
    assert np.array_equal(read_image(tmp_path / "turned.png", "RGB"), PHOTO)  # numbers of a label image stay in place
    rows = interlaced(tmp_path / "interlaced.png")
    assert np.array_equal(read_image(tmp_path / "interlaced.png"), rows)


@pytest.mark.parametrize("damage", ["cut", "cut at the end", "flipped", "swapped", "empty", "text", "folder"])
def test_damaged_files_end_in_one_line(tmp_path, damage):
    path = tmp_path / "photo.png"
    Image.fromarray(PHOTO).save(path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    contents = {
        "cut": whole[:middle],
        "cut at the end": whole[:-40],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "swapped": whole[:middle] + bytes(500) + whole[middle + 500 :],
        "empty": b"",
        "text": b"no image",
    }
    path.unlink()
    path.write_bytes(contents[damage]) if damage in contents else path.mkdir()
    with pytest.raises(InputError, match=re.escape(f"{path}: not readable as an image (")) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
