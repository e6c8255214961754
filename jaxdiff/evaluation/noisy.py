"""How often a classifier of noisy samples is right, by the level of noise."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxdiff.processes import Process
from jaxdiff.samplers.loop import as_pytree

LogProbs = Callable[[Array, Array], Float[Array, " classes"]]

TIMES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class NoisyAccuracy(NamedTuple):
    """The share of n samples that are given their label, at each of k times."""

    times: Float[np.ndarray, " k"]
    log_snr: Float[np.ndarray, " k"]
    """Of the process at these times, in nats."""
    accuracy: Float[np.ndarray, " k"]
    n: int

    def __str__(self) -> str:
        lines = [f"accuracy of {self.n} noisy samples", f"{'t':>6}{'log-SNR':>10}{'accuracy':>10}"]
        lines += [f"{t:6.2f}{snr:10.2f}{share:10.2%}" for t, snr, share in zip(*self[:3], strict=True)]
        return "\n".join(lines)


def accuracy_by_noise(
    key: Key[Array, ""],
    log_probs: LogProbs,
    process: Process,
    x0: Float[np.ndarray | Array, "n *shape"],
    labels: Int[np.ndarray | Array, " n"],
    *,
    times: tuple[float, ...] = TIMES,
) -> NoisyAccuracy:
    """Noise samples to each time, and count those whose most probable label is their own.

    Args:
      key: draws the noise, the same at every time.
      log_probs: `(x_t, t) -> log p(label|x_t, t)` of every label, for one sample.
      process: the process that noises.
      x0: clean samples.
      labels: theirs.
      times: in [0, 1].

    Raises:
      ValueError: for labels that are not one for each sample.
    """
    if len(labels) != len(x0):
        raise ValueError(f"{len(labels)} labels for {len(x0)} samples; give one for each")
    x0, labels = jnp.asarray(x0), jnp.asarray(labels)
    keys = jax.random.split(key, len(x0))
    right = _right(keys, jax.tree.map(as_pytree, log_probs), process, x0, labels, np.array(times, x0.dtype))
    log_snr = [float(process.schedule.log_snr(t)) for t in times]
    return NoisyAccuracy(np.asarray(times), np.asarray(log_snr), np.asarray(right, np.float64), len(x0))


@jax.jit
def _right(
    keys: Key[Array, " n"],
    log_probs: LogProbs,
    process: Process,
    x0: Float[Array, "n *shape"],
    labels: Int[Array, " n"],
    times: Float[Array, " k"],
) -> Float[Array, " k"]:
    def at(t: Float[Array, ""]) -> Float[Array, ""]:
        def one(key: Key[Array, ""], x0: Float[Array, "*shape"], label: Int[Array, ""]) -> Array:
            mine = process.draw(jax.random.fold_in(key, 3), x0.shape)
            x_t = mine.corrupt(x0, mine.noise(key, x0.shape, t), t)
            return log_probs(x_t, t).argmax() == label

        return jax.vmap(one)(keys, x0, labels).mean()

    return jax.lax.map(at, times)
