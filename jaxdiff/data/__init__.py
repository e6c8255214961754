"""Data sets: digits, MNIST, points, folders of pictures, arrays, TFDS images, and yours."""

from jaxdiff.data.base import Dataset, DataSpec, Examples, Source, normalize, quantize
from jaxdiff.data.files import read_files, read_mask, read_picture
from jaxdiff.data.objects import from_object, in_memory
from jaxdiff.data.pictures import Pictures, Reading
from jaxdiff.data.sources import DATASETS, check_untrusted, load

__all__ = ["DATASETS", "DataSpec", "Dataset", "Examples", "Pictures", "Reading", "Source", "check_untrusted"]
__all__ += ["from_object", "in_memory", "load", "normalize", "quantize", "read_files", "read_mask", "read_picture"]
