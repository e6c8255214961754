"""Compare the variance of a run's loss under its learned schedule with that under others between the same ends.

    python train.py --config=configs/mnist.py:vdm --workdir=runs/vdm
    python benchmarks/learned_schedule.py --workdir=runs/vdm

L = ½(−λ'_t) mean (n − n̂)² is the diffusion term of one example and one t, in nats per coordinate. The network of such
a run is given λ rather than t, so that E[L] is the same under all schedules and only the variance differs. For each
schedule this prints the mean of L and its standard error; the variance over t of E[L|t], which a schedule can lower;
the variance of L, which includes that over examples and noise; and the ratio of both to those of the learned schedule.
"""

import argparse
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import data, losses, schedules, weightings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="the folder of a run with a learned schedule")
    parser.add_argument("--dir", help="the folder of its data, as --config.data.dir for train.py")
    parser.add_argument("--times", type=int, default=64, help="number of equally spaced t")
    parser.add_argument("--examples", type=int, default=64, help="number of examples drawn at each t")
    options = parser.parse_args()
    run = jd.load(options.workdir)
    learned = run.process.schedule
    if not isinstance(learned, schedules.Learned):
        parser.error(f"--workdir = {options.workdir} has no learned schedule; give a run of configs/mnist.py:vdm")
    dataset = data.load(run.config.data.name, dir=options.dir or run.config.data.dir)
    high, low = (float(end) for end in learned.log_snr_ends())
    compared = {
        "learned": learned,
        "log-SNR linear in t": None,
        "cosine": schedules.TruncatedCosine(log_snr_max=high, log_snr_min=low),
    }
    denoiser = run.experiment.network(run.params)

    @functools.partial(jax.jit, static_argnames="straight")
    def integrand(
        schedule: schedules.Schedule, t: jax.Array, x0: jax.Array, keys: jax.Array, straight: bool
    ) -> jax.Array:
        if straight:
            log_snr, rate = (1 - t) * high + t * low, jnp.asarray(low - high)
        else:
            log_snr, rate = schedule.log_snr(t), schedules.log_snr_rate(schedule, t)
        same = learned.time(log_snr)  # the time at which the network's own schedule has this log-SNR

        def one(x0: jax.Array, key: jax.Array) -> jax.Array:
            return losses.weighted(denoiser, x0, same, key=key, weight=weightings.simple())

        return -0.5 * rate * jax.vmap(one)(x0, keys)

    rng, found = np.random.default_rng(0), {}
    for number, (name, schedule) in enumerate(compared.items()):
        rows = []
        for i in range(options.times):
            chosen = rng.choice(len(dataset.x), options.examples, replace=False)
            x0 = data.normalize(jnp.asarray(dataset.x[chosen]), dataset.levels)
            keys = jax.random.split(jax.random.fold_in(jax.random.key(number), i), options.examples)
            t = jnp.float32((i + 0.5) / options.times)
            rows.append(integrand(schedule or learned, t, x0, keys, schedule is None))
        found[name] = np.asarray(rows, np.float64)

    print(
        f"step {run.step}, log-SNR from {high:.2f} to {low:.2f}, {options.times} times x {options.examples} examples\n"
    )
    print("| schedule | mean | standard error | variance over t | ratio | variance of L | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    base = None
    for name, values in found.items():
        within = values.var(axis=1, ddof=1)
        error = math.sqrt(within.mean() / values.size)  # at fixed times
        between = values.mean(1).var(ddof=1) - within.mean() / values.shape[1]  # without the noise of the means
        whole = between + within.mean()
        base = base or (between, whole)
        ratios = between / base[0], whole / base[1]
        print(
            f"| {name} | {values.mean():.4f} | {error:.4f} "
            f"| {between:.3g} | {ratios[0]:.2f} | {whole:.3g} | {ratios[1]:.2f} |"
        )


if __name__ == "__main__":
    main()
