"""Data sets: digits, MNIST, points, folders of pictures, arrays, TFDS images, and yours."""

from jaxdiff.data.base import Dataset, DataSpec, Examples, Part, Source, as_condition, hold_out, normalize, quantize
from jaxdiff.data.derived import derive
from jaxdiff.data.files import read_files, read_mask, read_picture
from jaxdiff.data.objects import from_object, in_memory
from jaxdiff.data.pictures import Pictures, Reading
from jaxdiff.data.sources import DATASETS, check_untrusted, load

__all__ = ["DATASETS", "DataSpec", "Dataset", "Examples", "Part", "Pictures", "Reading", "Source", "as_condition"]
__all__ += ["check_untrusted", "derive", "from_object", "hold_out", "in_memory", "load", "normalize", "quantize"]
__all__ += ["read_files", "read_mask", "read_picture"]
