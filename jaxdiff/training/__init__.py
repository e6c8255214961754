"""The training run: state and step, batches, checkpoints, reports."""
