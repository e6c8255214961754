"""Data sets: digits, MNIST, Fashion-MNIST, CIFAR-10, points, folders of pictures, arrays, sets of other libraries."""

from jaxdiff.data.base import Dataset, DataSpec, Examples, Part, Source, as_condition, hold_out, normalize, quantize
from jaxdiff.data.derived import derive
from jaxdiff.data.files import read_files, read_mask, read_picture
from jaxdiff.data.objects import from_object, in_memory
from jaxdiff.data.pictures import Album, Pictures, Reading, Stored
from jaxdiff.data.sources import DATASETS, check_untrusted, load, names_place

__all__ = ["DATASETS", "Album", "DataSpec", "Dataset", "Examples", "Part", "Pictures", "Reading", "Source", "Stored"]
__all__ += ["as_condition", "check_untrusted", "derive", "from_object", "hold_out", "in_memory", "load", "names_place"]
__all__ += ["normalize", "quantize"]
__all__ += ["read_files", "read_mask", "read_picture"]
