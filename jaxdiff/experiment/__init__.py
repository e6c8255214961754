"""From a config to the objects of a run, and the folder that keeps both."""

from jaxdiff.experiment.build import Experiment, make_experiment
from jaxdiff.experiment.config import Conditions, Config, Data, Every, Loss, Optimizer, Sampling, Train

__all__ = ["Conditions", "Config", "Data", "Every", "Experiment", "Loss", "Optimizer", "Sampling", "Train"]
__all__ += ["make_experiment"]
