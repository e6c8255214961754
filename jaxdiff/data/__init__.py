"""Data sets in memory: handwritten digits, MNIST, points in the plane, TFDS images, and yours."""

from jaxdiff.data.files import read_files as read_files
from jaxdiff.data.files import read_mask as read_mask
from jaxdiff.data.sources import DATASETS as DATASETS
from jaxdiff.data.sources import Dataset as Dataset
from jaxdiff.data.sources import DataSpec as DataSpec
from jaxdiff.data.sources import load as load
from jaxdiff.data.sources import normalize as normalize
from jaxdiff.data.sources import quantize as quantize
