"""Pictures that are none, or ask for more than a service gives, in base64, each with its reason."""

import base64
import io
import zlib

from PIL import Image


def png(size=(8, 8), chunks=()) -> bytes:
    """Return a PNG whose header says this size, with these chunks after it."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    data = buffer.getvalue()
    header = data[16:24] if size == (8, 8) else b"".join(n.to_bytes(4, "big") for n in size)
    parts = [data[:8], chunk(b"IHDR", header + data[24:29]), *(chunk(*c) for c in chunks)]
    return b"".join([*parts, data[33:]])


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    crc = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + crc


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


ZEROS = zlib.compress(bytes(100_000_000))
BAD = {
    "a path": ("/etc/hostname", "no base64"),
    "a file URL": ("file:///etc/hostname", "no base64"),
    "a web address": ("http://127.0.0.1:1/x.png", "no base64"),
    "no base64": ("%%%", "no base64"),
    "half of it": ("abc", "no base64"),
    "not only signs of base64": ("YWJj\u00e9", "no base64"),
    "a data URL of text": ("data:text/plain,hello", "must hold base64"),
    "no picture": (base64_of(b"hello"), "format is not known"),
    "a drawing that is a program": (
        base64_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "format is not known",
    ),
    "100 megapixels": (base64_of(png((10_000, 10_000))), "pixels"),
    "4 gigapixels": (base64_of(png((65_000, 65_000))), "too many pixels"),
    "a bomb of text": (base64_of(png(chunks=[(b"zTXt", b"a\0\0" + ZEROS)])), "cannot be read"),
}
