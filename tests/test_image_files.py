"""Image files have the same pixels in server, client, data sets and Pillow, or are refused with the reason."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from covkeras.datasets.decoding import decoded


@pytest.fixture(scope="module")
def client():
    from covkeras.commands import client

    return client


def smooth(rng, mode="RGB"):
    """A picture with gradients, so that JPEG has something to round."""
    image = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize((24, 20), Image.BICUBIC)
    return image.convert(mode)


def file_of(image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opaque(image):
    made = image.convert("RGBA")
    made.putalpha(255)
    return made


SAME = {
    "jpeg 75": lambda rng: file_of(smooth(rng), "JPEG", quality=75),
    "jpeg 95": lambda rng: file_of(smooth(rng), "JPEG", quality=95),
    "jpeg 4:4:4": lambda rng: file_of(smooth(rng), "JPEG", quality=90, subsampling=0),
    "jpeg 4:2:2": lambda rng: file_of(smooth(rng), "JPEG", quality=90, subsampling=1),
    "jpeg progressive": lambda rng: file_of(smooth(rng), "JPEG", progressive=True),
    "jpeg grey": lambda rng: file_of(smooth(rng, "L"), "JPEG"),
    "jpeg upright": lambda rng: file_of(smooth(rng), "JPEG", exif=turned_by(1)),
    "png": lambda rng: file_of(smooth(rng)),
    "png grey": lambda rng: file_of(smooth(rng, "L")),
    "png 1 bit": lambda rng: file_of(smooth(rng, "1")),
    "png palette": lambda rng: file_of(smooth(rng).quantize(40)),
    "png opaque": lambda rng: file_of(opaque(smooth(rng))),
    "png grey opaque": lambda rng: file_of(smooth(rng, "L").convert("LA")),
}


def turned_by(orientation: int, order: str = "<"):
    exif = Image.Exif()
    exif.endian = order
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", SAME)
def test_files_have_pillows_pixels_everywhere(kind, channels, client, rng, tmp_path):
    data = SAME[kind](rng)
    (tmp_path / "image").write_bytes(data)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    expected = np.asarray(image.convert("L") if channels == 1 else image).reshape(20, 24, channels)
    assert np.array_equal(decoded(tf.constant(data), channels), expected)
    assert np.array_equal(np.round(client.pixels(tmp_path / "image", channels) * 255), expected)
    # As data sets read them; a palette's or an alpha channel's grey is not theirs.
    if kind.startswith("jpeg") and channels == 3:
        read = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
        assert np.array_equal(read, expected)


def png16() -> bytes:
    return tf.io.encode_png(np.full((4, 4, 1), 40_000, np.uint16)).numpy()


def png16_colour() -> bytes:
    return tf.io.encode_png(np.full((4, 4, 3), 40_000, np.uint16)).numpy()


def half_clear(rng):
    made = opaque(smooth(rng))
    made.putpixel((3, 4), (10, 10, 10, 90))
    return made


def clear_palette(rng) -> bytes:
    return file_of(smooth(rng).quantize(40), transparency=0)


REFUSED = {
    "16-bit": lambda rng: png16(),
    "is a 16-bit": lambda rng: png16_colour(),
    "transparent": lambda rng: file_of(half_clear(rng)),
    "must be opaque": clear_palette,
    "CMYK": lambda rng: file_of(smooth(rng).convert("CMYK"), "JPEG"),
    "must be a PNG or JPEG file": lambda rng: file_of(smooth(rng), "GIF"),
    "a PNG or JPEG": lambda rng: file_of(smooth(rng), "BMP"),
    "PNG or JPEG": lambda rng: file_of(smooth(rng), "WEBP"),
    "animated": lambda rng: file_of(smooth(rng), save_all=True, append_images=[smooth(rng)]),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_would_be_shown_otherwise_is_refused_with_the_reason(reason, client, rng, tmp_path):
    data = REFUSED[reason](rng)
    (tmp_path / "image").write_bytes(data)
    graph = tf.function(lambda text: decoded(text, 3))
    with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
        graph(tf.constant(data))
    with pytest.raises(client.Refused, match=reason):
        client.pixels(tmp_path / "image", 3)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_turned_image_is_refused_by_the_server_and_turned_by_the_client(kind, orientation, order, client, tmp_path):
    levels = np.arange(8 * 16, dtype=np.uint8).reshape(8, 16)
    data = file_of(Image.fromarray(levels), kind, exif=turned_by(orientation, order))
    (tmp_path / "image").write_bytes(data)
    graph = tf.function(lambda text: decoded(text, 1))
    if orientation > 1:
        with pytest.raises(tf.errors.InvalidArgumentError, match="EXIF orientation turns it"):
            graph(tf.constant(data))
    else:
        assert graph(tf.constant(data)).shape == (8, 16, 1)
    shown = {1: levels, 2: levels[:, ::-1], 3: levels[::-1, ::-1], 4: levels[::-1], 5: levels.T}
    shown |= {6: np.rot90(levels, -1), 7: levels[::-1, ::-1].T, 8: np.rot90(levels)}
    got = np.round(client.pixels(tmp_path / "image", 1)[..., 0] * 255)
    # JPEG rounds these ramps by a few levels.
    assert np.abs(got - shown[orientation]).max() <= (0 if kind == "PNG" else 12)


def of_a_chunk_that_is_none() -> bytes:
    """The length of a PNG's pixels is another, so that the next chunk begins among them: Pillow's SyntaxError."""
    data = file_of(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)))
    at = data.index(b"IDAT")
    return data[: at - 4] + (int.from_bytes(data[at - 4 : at], "big") - 900).to_bytes(4, "big") + data[at:]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0" + 40 * b"x",
        b"no image",
        of_a_chunk_that_is_none(),
    ],
    ids=range(6),
)
def test_damaged_files_are_refused(data, client, tmp_path):
    graph = tf.function(lambda text: decoded(text, 3))
    with pytest.raises(tf.errors.InvalidArgumentError):
        graph(tf.constant(data))
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(client.Refused, match=r"image can't be read as an image \(.*save it anew as PNG or JPEG"):
        client.pixels(tmp_path / "image", 3)
