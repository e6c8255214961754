"""Data sets in memory: handwritten digits, MNIST, points in the plane, TFDS images, and yours."""

from jaxdiff.data.files import read_files, read_mask, read_picture
from jaxdiff.data.sources import DATASETS, Dataset, DataSpec, load, normalize, quantize

__all__ = [
    "DATASETS",
    "DataSpec",
    "Dataset",
    "load",
    "normalize",
    "quantize",
    "read_files",
    "read_mask",
    "read_picture",
]
