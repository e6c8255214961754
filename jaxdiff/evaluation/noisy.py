"""The accuracy of a classifier of noisy samples, by noise level."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.processes import for_sample
from jaxdiff.progress import tqdm
from jaxdiff.samplers.pieces import pause
from jaxdiff.schedules import check_times
from jaxdiff.typing import HostSamples, InputError, RandomKey, Sample, Samples, Scalar, elementwise

_AT_A_TIME = 250  # the most samples that are classified in one piece

TIMES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class NoisyAccuracy(NamedTuple):
    """The fraction of n samples that are classified correctly, at each of k times."""

    times: Float[np.ndarray, " k"]
    log_snr: Float[np.ndarray, " k"]  # in nats
    accuracy: Float[np.ndarray, " k"]
    n: int

    def __str__(self) -> str:
        lines = [f"accuracy of {self.n} noisy samples", f"{'t':>6}{'log-SNR':>10}{'accuracy':>10}"]
        lines += [f"{t:6.2f}{snr:10.2f}{share:10.2%}" for t, snr, share in zip(*self[:3], strict=True)]
        return "\n".join(lines)


def accuracy_by_noise(
    key: RandomKey,
    classifier: Any,
    x0: HostSamples | Samples,
    labels: Int[np.ndarray | Array, " n"],
    *,
    times: tuple[float, ...] = TIMES,
    progress: bool = False,
) -> NoisyAccuracy:
    """Return the accuracy on samples that are noised to each time, in [0, 1], with the same noise at every time.

    Args:
      classifier: a pytree such as `jaxdiff.guidance.NetworkClassifier`. It has a `process`, and a method
        `log_probs(x_t, t)` that returns log p(label|x_t, t) of every label for one sample. If the process draws
        parameters for each sample, it also has `with_process(process)`, which returns the classifier under another one.

    Raises:
      InputError: unless there is one label per sample.
    """
    if len(labels) != len(x0):
        raise InputError(f"{len(labels)} labels for {len(x0)} samples; give one label per sample")
    check_times(jnp.asarray(times, float))
    x0, labels, keys = jnp.asarray(x0), jnp.asarray(labels), jax.random.split(elementwise(key), len(x0))
    parts = -(-len(x0) // _AT_A_TIME)
    right = np.zeros((len(times), parts, -(-len(x0) // parts)), bool)
    chosen = np.minimum(np.arange(right[0].size), len(x0) - 1).reshape(right[0].shape)
    # The last part is filled up with the last sample, so that all parts are of one size.
    for part, i in tqdm(list(np.ndindex(parts, len(times))), disable=None if progress else True, leave=None):
        row, t = chosen[part], jnp.asarray(times[i], x0.dtype)
        right[i, part] = _is_right(keys[row], classifier, x0[row], labels[row], t)
        pause()
    accuracy = right.reshape(len(times), -1)[:, : len(x0)].mean(1)
    log_snr = [float(classifier.process.schedule.log_snr(t)) for t in times]
    return NoisyAccuracy(np.asarray(times), np.asarray(log_snr), accuracy, len(x0))


@jax.jit
def _is_right(
    keys: Key[Array, " n"], classifier: Any, x0: Samples, labels: Int[Array, " n"], t: Scalar
) -> Bool[Array, " n"]:
    def one(key: RandomKey, x0: Sample, label: Int[Array, ""]) -> Bool[Array, ""]:
        drawn = for_sample(classifier, key, x0.shape)
        x_t = drawn.process.corrupt(x0, drawn.process.sample_noise(key, x0.shape, t), t)
        return drawn.log_probs(x_t, t).argmax() == label

    return jax.vmap(one)(keys, x0, labels)
