"""The command lines of `train.py` and `sample.py`."""

from jaxdiff.cli import sample, train

__all__ = ["sample", "train"]
