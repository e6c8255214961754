"""Pictures of every mode of Pillow, read by their own ranges, and files that are no pictures."""

import io
import pickle
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.features
import PIL.Image
import PIL.PngImagePlugin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxdiff import data
from jaxdiff.data.files import open_picture, quiet, read_picture
from jaxdiff.typing import InputError

LUMINANCE = np.array([0.299, 0.587, 0.114])

# How each mode is saved and what its channels are worth, of arrays of bytes.
EIGHT_BITS = {
    "L": ("png", lambda x: x / 255),
    "RGB": ("png", lambda x: x / 255),
    "LA": ("png", lambda x: x[..., :1] / 255 * x[..., 1:] / 255),
    "RGBA": ("png", lambda x: x[..., :3] / 255 * x[..., 3:] / 255),
    "CMYK": ("tif", lambda x: (1 - x[..., :3] / 255) * (1 - x[..., 3:] / 255)),
}


def image_of(pixels: np.ndarray, mode: str) -> PIL.Image.Image:
    return PIL.Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())


def saved(image: PIL.Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(mode=st.sampled_from(sorted(EIGHT_BITS)), drawn=st.data())
def test_modes_of_8_bits(mode: str, drawn: Any, folder: Path) -> None:
    format, formula = EIGHT_BITS[mode]
    pixels = drawn.draw(arrays(np.uint8, (2, 3, len(PIL.Image.new(mode, (1, 1)).getbands()))))
    path = saved(image_of(pixels, mode), folder / f"a.{format}")
    expected = formula(pixels.astype(float))
    tolerance = 2 / 255 if mode == "CMYK" else 1e-12  # Pillow rounds the conversion
    np.testing.assert_allclose(read_picture(path), expected, atol=tolerance)
    grey = expected if expected.shape[-1] == 1 else expected @ LUMINANCE[:, None]
    np.testing.assert_allclose(read_picture(path, channels=1), grey, atol=tolerance)
    colour = np.broadcast_to(expected, (2, 3, 3))
    np.testing.assert_allclose(read_picture(path, channels=3), colour, atol=tolerance)
    images = data.read_files([path], n=1, channels=3)
    np.testing.assert_allclose(images, 2 * colour[None] - 1, atol=2 * tolerance + 1e-6)
    np.testing.assert_allclose(data.read_mask(path, (2, 3)), grey[..., 0], atol=tolerance + 1e-6)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(pixels=arrays(np.uint8, (2, 3, 3)), mode=st.sampled_from(["YCbCr", "HSV", "LAB"]))
def test_other_colour_spaces_are_converted_as_pillow_and_littlecms_do(
    pixels: np.ndarray, mode: str, folder: Path, monkeypatch_module: pytest.MonkeyPatch
) -> None:
    image = image_of(pixels, mode)
    if mode == "HSV":  # which no format stores
        monkeypatch_module.setattr(PIL.Image, "open", lambda path: image.copy())
        path = saved(PIL.Image.new("L", (3, 2)), folder / "hsv.png")
    else:
        path = saved(image, folder / "a.tif")
    found = read_picture(path)
    monkeypatch_module.undo()
    if mode != "LAB":
        np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")) / 255)
        return
    lightness = (pixels[..., 0] / 255 * 100 + 16) / 116  # CIE 1976
    within = ((found > 0) & (found < 1)).all(-1)  # the others are outside of sRGB
    linear = np.where(found <= 0.04045, found / 12.92, ((found + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2225, 0.7169, 0.0606]  # of sRGB's primaries, adapted to D50
    np.testing.assert_allclose(y[within], np.maximum(lightness, 0.138)[within] ** 3, atol=0.02)


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@settings(max_examples=15, deadline=None, derandomize=True)
@given(bits=arrays(bool, (3, 5)))
def test_one_bit(bits: np.ndarray, folder: Path) -> None:
    for format in ("png", "tif", "bmp"):
        path = saved(PIL.Image.fromarray(bits), folder / f"one.{format}")
        np.testing.assert_array_equal(read_picture(path)[..., 0], bits)
        np.testing.assert_array_equal(data.read_mask(path, (3, 5)), bits)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    index=arrays(np.uint8, (2, 3), elements=st.integers(0, 3)), palette=arrays(np.uint8, (4, 3)), clear=st.booleans()
)
def test_palettes(folder: Path, index: np.ndarray, palette: np.ndarray, clear: bool) -> None:
    image = image_of(index, "P")
    image.putpalette(palette.tobytes())
    alpha = bytes([255, 0, 51, 255]) if clear else bytes([255] * 4)
    path = saved(image, folder / "p.png", **({"transparency": alpha} if clear else {}))
    expected = palette[index] / 255 * np.frombuffer(alpha, np.uint8)[index][..., None] / 255
    np.testing.assert_allclose(read_picture(path), expected, atol=1e-12)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(pixels=arrays(np.uint16, (2, 3)))
def test_16_bits_keep_their_precision(pixels: np.ndarray, folder: Path) -> None:
    for format in ("png", "tif", "pgm"):
        path = saved(PIL.Image.fromarray(pixels), folder / f"deep.{format}")
        np.testing.assert_array_equal(read_picture(path)[..., 0], pixels / 65535)
    images = data.read_files([path], n=1, channels=3)
    np.testing.assert_allclose(images[0, ..., 2], 2 * (pixels / 65535) - 1, atol=1e-7)
    big_endian = PIL.Image.frombytes("I;16B", (3, 2), pixels.astype(">u2").tobytes())
    path = saved(big_endian, folder / "big.tif")
    np.testing.assert_array_equal(read_picture(path)[..., 0], pixels / 65535)


def test_a_png_of_16_bits_is_read_alike_where_pillow_opens_it_as_32(monkeypatch: pytest.MonkeyPatch) -> None:
    older = PIL.Image.fromarray(np.array([[0, 257, 65535]], np.int32))  # as older versions do
    older.format = "PNG"
    monkeypatch.setattr(PIL.Image, "open", lambda file: older)
    np.testing.assert_array_equal(read_picture(__file__)[..., 0], [[0, 1 / 255, 1]])
    older.format = "IM"
    with pytest.raises(InputError, match="depth"):
        read_picture(__file__)


def test_a_tiff_is_read_by_its_own_depth_and_polarity(folder: Path) -> None:
    pixels = np.array([[0, 1000, 65535]], np.uint16)
    path = saved(PIL.Image.fromarray(pixels), folder / "white_is_zero.tif")
    patch(path, 262, 0)
    np.testing.assert_array_equal(read_picture(path)[..., 0], 1 - pixels / 65535)

    whole = np.array([[0, 2**30, 2**31 - 1]], np.int32)
    path = saved(PIL.Image.fromarray(whole), folder / "signed.tif")
    np.testing.assert_array_equal(read_picture(path)[..., 0], whole / (2**31 - 1))
    path = saved(PIL.Image.fromarray(np.array([[-1, 2**31 - 1, 0]], np.int32)), folder / "unsigned.tif")
    with pytest.raises(InputError, match=r"\[-1, "):
        read_picture(path)
    patch(path, 339, 1)
    np.testing.assert_array_equal(read_picture(path)[..., 0], np.array([[2**32 - 1, 2**31 - 1, 0]]) / (2**32 - 1))


def patch(path: Path, tag: int, value: int) -> None:
    """Change a tag of a little-endian TIFF, a SHORT."""
    content = bytearray(path.read_bytes())
    at = content.find(struct.pack("<HHI", tag, 3, 1))
    content[at + 8 : at + 10] = struct.pack("<H", value)
    path.write_bytes(content)


def test_float_pictures_hold_values_in_0_to_1(folder: Path) -> None:
    values = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    path = saved(PIL.Image.fromarray(values), folder / "f.tif")
    np.testing.assert_array_equal(read_picture(path)[..., 0], values)
    for bad, found in ((values * 255, r"\[0, 255\]"), (values - 0.5, r"\[-0\.5, 0\.5\]"), (values * np.nan, "nan")):
        path = saved(PIL.Image.fromarray(bad), folder / "bad.tif")
        with pytest.raises(InputError, match=rf"bad\.tif .*{found}"):
            read_picture(path)


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "I;16"])
def test_a_transparent_value_is_black(mode: str, folder: Path) -> None:
    """A PNG names one value of its pixels that is transparent, which here is white."""
    image = PIL.Image.new(mode, (2, 1), {"L": 255, "RGB": (255, 255, 255), "1": 1, "I;16": 65535}[mode])
    image.putpixel((1, 0), {"L": 51, "RGB": (51, 51, 51), "1": 0, "I;16": 65535 // 5}[mode])
    transparency = {"L": 255, "RGB": (255, 255, 255), "1": 255, "I;16": 65535}[mode]
    path = saved(image, folder / "key.png", transparency=transparency)
    np.testing.assert_allclose(read_picture(path, channels=1)[0, :, 0], [0, 0 if mode == "1" else 0.2], atol=1e-12)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["png", "tif"])
def test_an_exif_orientation_is_applied(orientation: int, format: str, folder: Path) -> None:
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    flips = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.T,
        6: lambda x: np.rot90(x),
        7: lambda x: x[::-1, ::-1].T,
        8: lambda x: np.rot90(x, -1),
    }
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stored = PIL.Image.fromarray(np.ascontiguousarray(flips[orientation](upright)))
    path = saved(stored, folder / f"turned.{format}", exif=exif)
    np.testing.assert_array_equal(read_picture(path)[..., 0], upright / 255)


def test_the_first_frame_of_an_animation_is_read(folder: Path) -> None:
    frames = [PIL.Image.new("L", (3, 2), value) for value in (51, 255)]
    for format in ("gif", "png", "tif"):
        path = saved(frames[0], folder / f"moving.{format}", save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(read_picture(path), 0.2, atol=1e-12)


FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM", *(["WEBP"] if PIL.features.check("webp") else []))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.sampled_from(FORMATS),
    st.integers(1, 99),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4),
)
def test_a_damaged_picture_is_read_or_refused_in_one_line(folder: Path, format: str, cut: int, flips: list) -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(256, size=(8, 9, 3), dtype=np.uint8)).save(buffer, format)
    content, path = bytearray(buffer.getvalue()), folder / "damaged"
    for place, byte in flips:
        content[int(place * len(content))] = byte
    for damaged in (content, content[: len(content) * cut // 100]):
        path.write_bytes(damaged)
        message = ""
        try:
            found = read_picture(path)
        except InputError as error:
            message = str(error)
        else:
            assert 0 <= found.min() <= found.max() <= 1
        assert not message or re.fullmatch(rf"{path} can't be read .*", message)


def test_a_truncated_picture_is_refused(folder: Path) -> None:
    for format in FORMATS:
        path = folder / "short"
        PIL.Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)).save(path, format)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match=r"short can't be read"):
            read_picture(path)


def test_a_decompression_bomb_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(PIL.Image.new("L", (20, 10)), folder / "bomb.png")
    for limit in (150, 50):  # Pillow warns of the first and refuses the second
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(InputError, match=r"bomb\.png .*decompression bomb"):
            read_picture(path)


def test_what_is_no_picture_is_refused_with_its_path(folder: Path) -> None:
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    for path in (folder / "text.png", folder / "empty.png", folder / "nowhere.png", folder):
        for read in (
            read_picture,
            lambda path: data.read_files([path], n=1),
            lambda path: data.read_mask(path, (1, 1)),
        ):
            with pytest.raises(InputError, match=rf"^{path} can't be read \([^\n]*$"):
                read(path)
    with pytest.raises(InputError, match="not a path"):
        read_picture("")


def test_an_npz_holds_finite_real_numbers_and_is_never_unpickled(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (folder / "sprung",)

    path = folder / "bad.npz"
    contents = [
        np.array([Trap()], object),
        np.zeros((2, 2), complex),
        np.array(["a"]),
        np.zeros(()),
        np.full((1, 2), np.nan),
        np.full((1, 2), 1e300),
        np.zeros((1, 2), bool),
    ]
    for content in contents:
        np.savez(path, samples=content)
        with pytest.raises(InputError, match=r"bad\.npz can't be read"):
            data.read_files([path], n=1)
    np.save(folder / "array.npy", np.zeros((1, 2)))
    for content in (pickle.dumps(Trap()), b"", (folder / "array.npy").read_bytes(), b"PK\3\4" + bytes(50)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.npz can't be read \([^\n]*$"):
            data.read_files([path], n=1)
    assert not (folder / "sprung").exists()


def test_a_damaged_npz_is_read_or_refused_in_one_line(folder: Path) -> None:
    path, rng = folder / "damaged.npz", np.random.default_rng(0)
    np.savez_compressed(path, samples=np.zeros((2, 3)))
    whole = path.read_bytes()
    for _ in range(60):
        content = bytearray(whole)
        content[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(content[: rng.integers(len(content) + 1)] if rng.random() < 0.5 else content)
        message = ""
        try:
            assert np.isfinite(data.read_files([path], n=1)).all()
        except InputError as error:
            message = str(error)
        assert not message or re.fullmatch(r"[^\n]*", message)


def test_colour_of_16_bits_is_read_at_8(folder: Path) -> None:
    pixels = np.array([[[0, 1000, 65535]]], ">u2")

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" + pixels.tobytes()))
    (folder / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
    np.testing.assert_allclose(read_picture(folder / "deep.png"), pixels / 65535, atol=1 / 255)


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("how", ["exif", "xmp", None])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_data_set_reads_a_picture_upright_as_it_is_read_alone(tmp_path, kind, how, mode):
    pixels = np.random.default_rng(0).integers(256, size=(8, 16, 3)).astype(np.uint8)
    image, options = PIL.Image.fromarray(pixels).convert(mode), {}
    if how == "exif":
        exif = image.getexif()
        exif[0x0112] = 6
        options = {"exif": exif}
    elif how == "xmp" and kind == "PNG":
        options = {"pnginfo": PIL.PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    elif how == "xmp" and kind != "TIFF":
        options = {"xmp": XMP}
    path = tmp_path / "picture"
    image.save(path, kind, **options)
    alone = np.round(255 * read_picture(path)).astype(np.uint8)
    assert alone.shape[:2] == ((16, 8) if options else (8, 16))
    with quiet:
        for content in (str(path), path.read_bytes()):
            found = np.asarray(open_picture(content, "here")).reshape(*alone.shape[:2], -1)
            np.testing.assert_array_equal(found, alone)
