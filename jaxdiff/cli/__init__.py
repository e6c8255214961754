"""The command lines: `jaxdiff train` and `jaxdiff sample`, or `train.py` and `sample.py` in a checkout."""
