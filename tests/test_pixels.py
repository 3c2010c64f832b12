"""Images of any camera come out upright, with the right brightness, whatever bits and byte order their files have."""

import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from cups.cli import main
from cups.core.errors import InputError
from cups.core.files import open_image, read_image, upright_size, write_json, write_png
from cups.core.images import common_bits, read_rgb
from cups.datasets.check import check_dataset
from cups.datasets.depth_folder import DepthFolder, single_camera
from cups.datasets.kitti_raw import KittiRaw, write_miniature
from cups.datasets.labelled_folder import image_size
from cups.datasets.stereo_folder import StereoFolder
from cups.model.files import numbered_split, save_network
from cups.model.network import panoptic_cascade

NOISE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
DEEP = NOISE.astype(np.uint16) * 16 + 15  # of 12 bits; the 8 bits of it are NOISE
CALIBRATION = {"fx": 30.0, "fy": 30.0, "cx": 3.5, "cy": 2.5, "baseline_m": 0.5, "width": 8, "height": 6}


def tiff(array, order="<", bits=16, orientation=1, **tags):
    """Return the bytes of an uncompressed TIFF (TIFF 6.0): whole numbers of `bits` bits, rows padded to bytes."""
    height, width = array.shape[:2]
    channels = array.shape[2] if array.ndim == 3 else 1
    if bits == 16:
        data = array.astype(order + "u2").tobytes()
    else:
        rows = ("".join(f"{value:0{bits}b}" for value in row.ravel().tolist()) for row in array)
        rows = (row.ljust(-(-len(row) // 8) * 8, "0") for row in rows)
        data = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)
    entries = {
        256: (3, [width]), 257: (3, [height]), 258: (3, [bits] * channels), 259: (3, [1]),
        262: (3, [2 if channels == 3 else 1]), 273: (4, [0]), 274: (3, [orientation]), 277: (3, [channels]),
        278: (3, [height]), 279: (4, [len(data)]),
    } | {int(tag[1:]): value for tag, value in tags.items()}  # fmt: skip
    place = 8 + 2 + 12 * len(entries) + 4
    directory, more = b"", b""
    for tag in sorted(entries):
        kind, values = entries[tag]
        content = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if tag == 273:
            first = len(directory) + 8
        if len(content) > 4:
            content, more = struct.pack(f"{order}I", place + len(more)), more + content
        directory += struct.pack(f"{order}HHI", tag, kind, len(values)) + content.ljust(4, b"\0")
    directory = directory[:first] + struct.pack(f"{order}I", place + len(more)) + directory[first + 4 :]
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}IH", 8, len(entries)) + directory + bytes(4) + more + data


def stereo_folder(root, frames, suffix=".png"):
    """Write images as both sides of a stereo folder."""
    height, width = frames[0].shape[:2]
    write_json(root / "calibration.json", CALIBRATION | {"width": width, "height": height})
    for side in ("left", "right"):
        (root / side).mkdir()
        for number, frame in enumerate(frames):
            cv2.imwrite(str(root / side / f"{number}{suffix}"), frame if frame.ndim == 2 else frame[..., ::-1])
    return root


def seen(image):
    """Return an image tensor as an array (H, W, 3)."""
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", ["c.png", "a.png", "le.tif", "be.tif", "lzw.tif"])
def test_colours_of_12_bits_are_not_cut_to_the_upper_byte(tmp_path, name):
    path, alpha = tmp_path / name, np.full((6, 8, 1), 4095, np.uint16)
    if name in ("le.tif", "be.tif"):
        path.write_bytes(tiff(DEEP, ">" if name == "be.tif" else "<"))
    else:
        cv2.imwrite(str(path), np.dstack([DEEP[..., ::-1], alpha]) if name == "a.png" else DEEP[..., ::-1])
    assert np.array_equal(read_image(path), DEEP)
    assert np.array_equal(seen(read_rgb(path, lambda: 12)), NOISE)


@pytest.mark.parametrize("order", ["<", ">"])
def test_grey_of_12_bits_is_scaled_in_either_byte_order(tmp_path, order):
    (tmp_path / "grey.tif").write_bytes(tiff(DEEP[..., 0], order))
    read = read_image(tmp_path / "grey.tif")
    assert read.dtype == np.uint16 and read.dtype.isnative and np.array_equal(read, DEEP[..., 0])
    assert np.array_equal(seen(read_rgb(tmp_path / "grey.tif", lambda: 12)), np.dstack([NOISE[..., 0]] * 3))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_tiffs_are_read_in_their_own_bits_also_in_the_dark(tmp_path, bits, order):
    grey = NOISE[..., 0].astype(np.uint16) << (bits - 8)
    (tmp_path / "bright.tif").write_bytes(tiff(grey, order, bits))
    (tmp_path / "dark.tif").write_bytes(tiff(grey >> 5, order, bits))
    assert np.array_equal(seen(read_rgb(tmp_path / "bright.tif"))[..., 0], NOISE[..., 0])
    assert np.array_equal(seen(read_rgb(tmp_path / "dark.tif"))[..., 0], NOISE[..., 0] >> 5)


@pytest.mark.parametrize(("bits", "brightest"), [(8, 255), (10, 1023), (12, 4095), (14, 16383), (16, 65535)])
def test_white_is_white_whatever_the_bits(tmp_path, bits, brightest):
    write_png(tmp_path / "white.png", np.array([[0, brightest // 2, brightest]], np.uint16))
    assert common_bits([tmp_path / "white.png"]) == bits
    assert seen(read_rgb(tmp_path / "white.png"))[0, :, 0].tolist() == [0, 127, 255]


def test_the_scale_is_one_for_all_frames_so_that_they_do_not_flicker(tmp_path):
    dark, lit = np.full((6, 8), 900, np.uint16), np.full((6, 8), 4000, np.uint16)
    video = StereoFolder(stereo_folder(tmp_path / "video", [dark, lit, dark, lit]))
    assert video.bits == 12
    assert [int(video.left(index).max()) for index in range(3)] == [56, 250, 56]
    assert int(video[0].right_0.max()) == 56 and int(video[0].left_1.max()) == 250


def test_brighter_than_white_is_named_and_the_calibration_file_settles_it(tmp_path):
    frames = [np.full((6, 8), 900, np.uint16)] * 60
    root = stereo_folder(tmp_path / "video", [*frames[:1], np.full((6, 8), 4095, np.uint16), *frames])
    with pytest.raises(InputError, match=r'left/1.png: holds 4095, but .* fit 10 bits; .* write "bits": 12 into'):
        StereoFolder(root).image("left", "1")
    write_json(root / "calibration.json", CALIBRATION | {"bits": 12})
    video = StereoFolder(root)
    assert [int(video.image("left", name).max()) for name in ("0", "1")] == [56, 255]
    write_json(root / "calibration.json", CALIBRATION | {"bits": "12"})
    with pytest.raises(InputError, match=r"calibration.json: bits must be a whole number from 8 to 16, got '12'"):
        StereoFolder(root).image("left", "1")


def test_bits_that_a_file_declares_count(tmp_path):
    dark = np.full((6, 8), 300, np.uint16)
    (tmp_path / "tag.tif").write_bytes(tiff(dark, _281=(3, [4095])))
    write_png(tmp_path / "plain.png", dark)
    png = (tmp_path / "plain.png").read_bytes()
    chunk = b"sBIT" + bytes([12])
    (tmp_path / "sbit.png").write_bytes(
        png[:33] + struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]
    )
    (tmp_path / "p5.pgm").write_bytes(b"P5\n8 6\n4095\n" + dark.astype(">u2").tobytes())
    brightness = {path.name: int(read_rgb(path).max()) for path in tmp_path.iterdir()}
    assert brightness == {"tag.tif": 18, "sbit.png": 18, "p5.pgm": 18, "plain.png": 75}


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", "deep.tif", "deep.png"])
def test_photos_are_upright_in_every_format(tmp_path, suffix, orientation):
    exif, path = Image.Exif(), tmp_path / f"a{suffix}"
    exif[0x0112] = orientation
    if suffix == "deep.tif":
        path.write_bytes(tiff(DEEP, orientation=orientation))
    elif suffix == "deep.png":
        cv2.imwrite(str(path), DEEP[..., ::-1])
        block = exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = b"eXIf" + block
        png = path.read_bytes()
        crc = struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(png[:33] + struct.pack(">I", len(block)) + chunk + crc + png[33:])
    else:
        Image.fromarray(NOISE).save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    flat = tmp_path / "flat.png"
    Image.fromarray(NOISE).save(flat, exif=exif)
    upright = np.array(ImageOps.exif_transpose(Image.open(flat)))
    if suffix == ".jpg":
        upright = np.array(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(seen(read_rgb(path, lambda: 12)), upright)
    assert image_size(path) == (upright.shape[1], upright.shape[0])


def test_sizes_are_measured_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    root = stereo_folder(tmp_path / "video", [NOISE] * 2, ".jpg")
    write_json(root / "calibration.json", CALIBRATION | {"width": 6, "height": 8})
    for path in root.glob("*/*.jpg"):
        Image.fromarray(NOISE).save(path, exif=exif)
    assert StereoFolder(root)[0].left_0.shape == (3, 8, 6)
    assert check_dataset("stereo_folder", root, full=True).usable == ["all"]
    (root / "calibration.json").unlink()
    (root / "K.txt").write_text("5 0 3 0 5 4 0 0 1 0.5\n")  # says no size
    assert StereoFolder(root)[0].left_0.shape == (3, 8, 6)
    assert single_camera(root, root / "left" / "0.jpg").width == 6
    with open_image(root / "left" / "0.jpg") as image:
        assert image.size == (8, 6) and upright_size(image) == (6, 8)
    (root / "left" / "1.jpg").unlink()
    Image.fromarray(NOISE).save(root / "left" / "1.jpg")
    with pytest.raises(InputError, match=r"1\.jpg: 8 x 6 pixels, but K.txt says 6 x 8"):
        StereoFolder(root)[0]


def test_bits_are_said_beside_any_calibration(tmp_path):
    root = stereo_folder(tmp_path / "video", [DEEP // 4] * 2)
    (root / "calibration.json").unlink()
    (root / "K.txt").write_text("30 0 3.5 0 30 2.5 0 0 1 0.5\n")
    video = StereoFolder(root)
    before = video.bits, video.sources(0)
    write_json(root / "calibration.json", {"bits": 12})
    video = StereoFolder(root)
    assert before == (10, video.sources(0)[:-1]) and video.bits == 12 and video.calibration.fx == 30
    (root / "right").rename(root / "depth")
    assert DepthFolder(root).bits == 12 and root / "calibration.json" in DepthFolder(root).sources(0)
    (root / "K.txt").unlink()
    with pytest.raises(InputError, match=r"calibration\.json: calibration value fx is missing"):
        DepthFolder(root)


def test_damaged_notes_do_no_harm(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert read_rgb(tmp_path / "a.jpg").shape == (3, 6, 8)


def test_palettes_grey_and_alpha_become_colours(tmp_path):
    grey, alpha = NOISE[..., :1], np.array([0, 255], np.uint8).repeat(24).reshape(6, 8, 1)
    palette = Image.fromarray(NOISE).quantize(16)
    cases = {
        "grey.png": (Image.fromarray(grey[..., 0]), np.dstack([grey] * 3)),
        "grey_alpha.png": (Image.fromarray(np.dstack([grey, alpha]), "LA"), np.dstack([grey] * 3)),
        "alpha.png": (Image.fromarray(np.dstack([NOISE, alpha])), NOISE),
        "palette.png": (palette, np.array(palette.convert("RGB"))),
        "palette.bmp": (palette, np.array(palette.convert("RGB"))),
        "alpha.tif": (Image.fromarray(np.dstack([NOISE, alpha])), NOISE),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name, **({"transparency": 0} if name == "palette.png" else {}))
        assert np.array_equal(seen(read_rgb(tmp_path / name)), expected), name


def test_cmyk_photos_have_their_colours(tmp_path):
    flat = np.zeros((16, 16, 3), np.uint8) + np.array([200, 100, 50], np.uint8)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "print.jpg", quality=100, subsampling=0)
    assert np.abs(seen(read_rgb(tmp_path / "print.jpg")).astype(int) - flat).max() <= 3


@pytest.mark.parametrize("kind", ["f32", "f32 colour", "f16", "i32", "white is 0", "planes"])
def test_what_is_no_photo_ends_in_one_line(tmp_path, kind):
    path = tmp_path / "depth.tif"
    if kind.startswith("f32"):
        cv2.imwrite(str(path), (DEEP if "colour" in kind else DEEP[..., 0]).astype(np.float32) / 4095)
    elif kind == "i32":
        Image.fromarray(DEEP[..., 0].astype(np.int32) * 100).save(path)
    else:
        tags = {"f16": {"_339": (3, [3])}, "white is 0": {"_262": (3, [0])}, "planes": {"_284": (3, [2])}}[kind]
        path.write_bytes(tiff(DEEP if kind == "planes" else DEEP[..., 0], **tags))
    said = {"i": "32 bits a channel", "f": "floating-point numbers, expected", "w": "white is 0", "p": "each channel"}
    with pytest.raises(InputError, match=f"depth.tif: {said[kind[0]]}") as caught:
        read_rgb(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "packed.tif", "photo.jpg", "photo.png"])
def test_truncated_files_end_in_one_line(tmp_path, name, capfd):
    path, large = tmp_path / name, np.random.default_rng(0).integers(0, 4096, (60, 80, 3), dtype=np.uint16)
    if name == "packed.tif":
        path.write_bytes(tiff(large[..., 0], bits=12))
    elif name.startswith("deep"):
        cv2.imwrite(str(path), large)
    else:
        Image.fromarray((large >> 4).astype(np.uint8)).save(path)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        if name == "photo.jpg" and size > len(whole) // 2:
            continue  # the last rows of a JPEG are grey then; decoders cannot tell
        with pytest.raises(InputError, match=f"{name}: not readable as an image") as caught:
            read_rgb(path)
        assert "\n" not in str(caught.value) and not capfd.readouterr().err


def test_the_check_reads_what_the_reader_reads(tmp_path):
    root = stereo_folder(tmp_path / "video", [DEEP, DEEP], ".tif")
    report = check_dataset("stereo_folder", root, full=True)
    assert report.usable == ["all"] and not report.faults["all"]
    assert np.array_equal(seen(StereoFolder(root).left(0)), NOISE)
    cv2.imwrite(str(root / "right" / "1.tif"), DEEP[..., 0].astype(np.float32))
    (fault,) = check_dataset("stereo_folder", root, full=True).faults["all"]
    assert fault.startswith(f"{root}/right/1.tif: floating-point numbers, expected")
    with pytest.raises(InputError, match=r"right/1\.tif: floating-point numbers, expected"):
        StereoFolder(root)[0]


def test_kitti_of_16_bits_is_scaled_once_for_the_data_set(tmp_path):
    root = write_miniature(tmp_path / "kitti", frames=2, height=32)
    eight = KittiRaw(root, 24, 64)
    expected = [eight.left(index) for index in range(len(eight))]
    assert len({int(image.max()) for image in expected}) > 1  # each alone would be scaled in another way
    for path in root.glob("*/*/*/data/*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.uint16) * 16)
    deep = KittiRaw(root, 24, 64)
    assert deep.bits == 12 and all(torch.equal(deep.left(i), image) for i, image in enumerate(expected))


def test_predict_scales_and_turns_photos(tmp_path, capsys):
    torch.manual_seed(0)
    weights = save_network(
        tmp_path / "model.safetensors", panoptic_cascade(2, 3, preset="small"), numbered_split(2, 3)
    )
    turned, exif = np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8), Image.Exif()
    exif[0x0112] = 8  # so that 96 x 64 pixels are meant
    for folder in ("plain", "cameras"):
        (tmp_path / folder).mkdir()
    for name, image in (("dark", turned // 16), ("lit", turned)):
        Image.fromarray(np.rot90(image)).save(tmp_path / "plain" / f"{name}.png")
        (tmp_path / "cameras" / f"{name}.tif").write_bytes(tiff(image.astype(np.uint16) * 16, orientation=8))
    Image.fromarray(turned).save(tmp_path / "cameras" / "phone.png", exif=exif)
    Image.fromarray(np.rot90(turned)).save(tmp_path / "plain" / "phone.png")
    (tmp_path / "cameras" / "._lit.tif").write_bytes(b"\0\5\x16\7")
    maps = {}
    for folder in ("plain", "cameras"):
        command = ["predict", tmp_path / folder, "--weights", weights, "--out", tmp_path / f"{folder}_out"]
        assert main([str(part) for part in [*command, "--min-confidence", "0.2", "--device", "cpu"]]) == 0
        written = json.loads(Path(json.loads(capsys.readouterr().out)["written"]).read_text())
        assert {(image["width"], image["height"]) for image in written["images"]} == {(96, 64)}
        maps[folder] = {path.name: path.read_bytes() for path in (tmp_path / f"{folder}_out" / "panoptic").iterdir()}
    assert len(maps["plain"]) == 3 and maps["plain"] == maps["cameras"]
