"""Data sets: digits, MNIST, Fashion-MNIST, CIFAR-10, points, folders of pictures, arrays, TFDS images, and yours."""

from jaxdiff.data.base import Dataset, DataSpec, Examples, Source, as_condition, normalize, quantize
from jaxdiff.data.derived import derive
from jaxdiff.data.files import read_files, read_mask, read_picture
from jaxdiff.data.objects import from_object, in_memory
from jaxdiff.data.pictures import Pictures, Reading
from jaxdiff.data.sources import DATASETS, check_untrusted, load

__all__ = ["DATASETS", "DataSpec", "Dataset", "Examples", "Pictures", "Reading", "Source", "as_condition"]
__all__ += ["check_untrusted", "derive"]
__all__ += ["from_object", "in_memory", "load", "normalize", "quantize", "read_files", "read_mask", "read_picture"]
