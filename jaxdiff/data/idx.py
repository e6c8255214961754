"""IDX files, the format that MNIST is published in.

An IDX file holds one array, all its integers big-endian:

    offset   bytes      content
    0        2          zero
    2        1          type of the elements; 0x08 is the unsigned byte
    3        1          d, the number of dimensions
    4        4 d        the sizes of the dimensions, unsigned 32 bit
    4 + 4d   product    the elements, last dimension fastest

Source: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits", section "The IDX file format",
http://yann.lecun.com/exdb/mnist. The files are published gzipped.
"""

import gzip
import math
import struct
import zlib

import numpy as np
from jaxtyping import UInt8

from jaxdiff.storage import AnyPath
from jaxdiff.typing import InputError


def read(path: AnyPath) -> UInt8[np.ndarray, "..."]:
    """Read one IDX file of unsigned bytes, plain or gzipped (its content decides, not its name); a read-only array.

    Raises:
      InputError: if the file is missing or damaged, or holds elements of another type.
    """

    def error(fault: str) -> InputError:
        fix = "Replace it with an intact copy (delete it, if it was downloaded, to fetch it again)."
        return InputError(f"{path}: {fault}. {fix}")

    if not path.is_file():
        raise error("no such file; an IDX file is expected there")
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):  # gzip's magic number
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as cause:
            raise error(f"the gzip stream is damaged ({cause})") from cause
    length = f"{len(content)} bytes"
    if len(content) < 4:
        raise error(f"truncated, {length}; an IDX file starts with a magic number of 4 bytes")
    zero, element_type, rank = struct.unpack(">HBB", content[:4])
    if zero != 0:
        raise error(f"wrong magic number 0x{content[:4].hex()}; that of an IDX file starts with two zero bytes")
    if element_type != 0x08:
        raise InputError(
            f"{path}: element type 0x{element_type:02x}; only unsigned bytes (0x08), the type of "
            "MNIST and its kin, are read. Convert the file to uint8."
        )
    start = 4 + 4 * rank
    if len(content) < start:
        raise error(f"truncated, {length}; the header of {rank} dimensions alone takes {start}")
    shape = struct.unpack(f">{rank}I", content[4:start])
    size = start + math.prod(shape)
    if len(content) != size:
        fault = "truncated" if len(content) < size else "trailing bytes"
        raise error(f"{fault}, {length}; a file of shape {shape} has {size}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
