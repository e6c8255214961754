"""Data sets in memory: handwritten digits, MNIST, points in the plane, TFDS images, and yours."""

from jaxdiff.data.files import read_files, read_mask, read_picture
from jaxdiff.data.sources import DATASETS, Dataset, DataSpec, check_untrusted, load, normalize, quantize

__all__ = ["DATASETS", "DataSpec", "Dataset", "check_untrusted", "load", "normalize", "quantize"]
__all__ += ["read_files", "read_mask", "read_picture"]
