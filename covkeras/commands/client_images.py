"""Image files decoded where the client runs, without TensorFlow: by Pillow and NumPy."""


class Refused(Exception):
    """The server's error message, or what is wrong with the request."""


def pixels(path: str, channels: int):
    """An image file's pixels as a viewer shows them, float32 (height, width, channels) of 255ths.

    The server's own rules (covkeras/datasets/decoding.py), in Pillow; besides, an EXIF orientation is applied.
    """
    with open(path, "rb") as file:
        head = file.read(26)
    try:
        return _pixels(path, head, channels)
    except (Refused, ImportError):
        raise
    except Exception as error:  # Pillow's are of many kinds, SyntaxError among them
        raise Refused(f"{path} can't be read as an image ({error}): save it anew as PNG or JPEG") from None


def _pixels(path: str, head: bytes, channels: int):
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        if image.format not in ("PNG", "JPEG"):
            raise Refused(f"{path} must be a PNG or JPEG file, got {image.format}: save it as one")
        if image.format == "PNG" and len(head) > 24 and head[24] > 8:
            raise Refused(f"{path} must have 8 bits a channel, but it is a 16-bit PNG: convert it")
        if getattr(image, "n_frames", 1) > 1:
            raise Refused(f"{path} must be a single image, but it is animated")
        if image.mode in ("CMYK", "YCCK"):
            raise Refused(f"{path} must be grey or RGB, but it is CMYK: convert it")
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image.load()
            if min(image.convert("RGBA").getchannel("A").getextrema()) < 255:
                raise Refused(f"{path} must be opaque, but parts of it are transparent: lay it on a background")
        upright = ImageOps.exif_transpose(image).convert("RGB")
    array = np.asarray(upright.convert("L") if channels == 1 else upright, np.float32) / np.float32(255)
    return array[..., None] if channels == 1 else array
