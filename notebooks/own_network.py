# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own network
#
# jaxdiff's trainer is optional. This notebook uses the library with an array, a network and a loop of its own. The
# data are drawn from a mixture of normal distributions. So the best possible denoiser is known, and the trained one can
# be compared with it.
#
# It takes about 35 s on 2 cores.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import jaxdiff as jd

# %% [markdown]
# ## Your data
#
# One array of shape (n, *shape), of about unit scale. Here it holds points in the plane, in three clusters with the
# weights 0.2, 0.3 and 0.5.

# %%
process = jd.Gaussian(jd.schedules.VP())  # x_t = α_t x_0 + σ_t n, for t in [0, 1]
WEIGHTS = np.array([0.2, 0.3, 0.5])
MEANS = np.array([[-1.2, 0.8], [-0.3, -1.0], [1.0, 0.4]])
exact = jd.analytic.mixture(WEIGHTS, MEANS, [[0.04, 0.04], [0.3, 0.03], [0.05, 0.25]], process.schedule)
data = exact.data.sample(jax.random.key(0), 20_000)
print(data.shape, data.dtype)

# %% [markdown]
# ## Your network
#
# A network is any function `apply(params, x, t)` of a batch: x has the shape (n, *shape), t has the shape (n,), and the
# result has the shape of x. `params` is any pytree. With Flax NNX, `nnx.split` separates a module into its structure
# and its state, and the state is such a pytree.


# %%
class Network(nnx.Module):
    def __init__(self, width, rngs):
        self.first = nnx.Linear(2 + 8, width, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(3)])
        self.last = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x, t):
        angles = jnp.pi * t[:, None] * jnp.array([[0.5, 1.0, 2.0, 4.0]])
        h = self.first(jnp.concatenate([x, jnp.cos(angles), jnp.sin(angles)], axis=-1))
        for block in self.blocks:
            h = h + block(nnx.silu(h))
        return self.last(nnx.silu(h))


structure, params = nnx.split(Network(128, nnx.Rngs(0)))


def apply(params, x, t):
    return nnx.merge(structure, params)(x, t)


# %% [markdown]
# `jd.denoiser` makes a denoiser of it. `predicts` says what the output of the network means; here it is "v", which is
# $\alpha_t n - \sigma_t x_0$. Whatever that is, a denoiser takes one noisy sample and returns the pair $(\hat x_0, \hat
# n)$.

# %%
denoiser = jd.denoiser(apply, params, process, predicts="v")
x_t, t = jnp.array([0.3, -0.2]), 0.4
prediction = denoiser(x_t, t)
print(prediction)

# %% [markdown]
# Nothing depends on the library that the network comes from. Here is the same network in plain JAX, with the same
# weights.


# %%
def plain(weights, x, t):
    def linear(layer, h):
        return h @ layer["kernel"] + layer["bias"]

    angles = jnp.pi * t[:, None] * jnp.array([[0.5, 1.0, 2.0, 4.0]])
    h = linear(weights["first"], jnp.concatenate([x, jnp.cos(angles), jnp.sin(angles)], axis=-1))
    for i in range(3):
        h = h + linear(weights["blocks"][i], jax.nn.silu(h))
    return linear(weights["last"], jax.nn.silu(h))


again = jd.denoiser(plain, nnx.to_pure_dict(params), process, predicts="v")(x_t, t)
np.testing.assert_allclose(again.x0, prediction.x0, atol=1e-6)  # rounding in float32
np.testing.assert_allclose(again.noise, prediction.noise, atol=1e-6)

# %% [markdown]
# ## Your loop
#
# Three rules.
#
# 1. **A loss takes one sample** and returns one number. `jax.vmap` maps it over a batch, and costs no more than code
#    for a batch.
# 2. **Each example has its own key**, which draws its noise. `target` names the quantity whose squared error is
#    measured.
# 3. **t is a float in [0, 1]**, where 0 is data and 1 is noise. Times come from `jd.time_sampling`.


# %%
def loss_of_one(params, key, x0, t):
    denoiser = jd.denoiser(apply, params, process, predicts="v")
    return jd.losses.simple(denoiser, x0, t, key=key, target="v")


draw_times = jd.time_sampling.time_sampler("auto", process.schedule)  # suits the schedule


def batch_loss(params, key, x0):
    key_times, key_noise = jax.random.split(key)
    keys, times = jax.random.split(key_noise, len(x0)), draw_times(key_times, len(x0))
    return jax.vmap(loss_of_one, (None, 0, 0, 0))(params, keys, x0, times).mean()


# %% [markdown]
# What if a rule is broken? An integer step in place of a time is refused. A single key for all examples is not, since
# it can be meant. But then all of them get the same noise, and the batch is no longer an average over many draws of it.
# We compare the standard deviation of the loss of a batch, over 200 batches at one time. With separate keys it falls
# with the square root of the number of examples.

# %%
try:
    loss_of_one(params, jax.random.key(0), data[0], 400)
except jd.InputError as error:
    print(f"refused: {error}")
else:
    raise AssertionError("an integer step was taken for a time")

x0, keys = data[:256], jax.random.split(jax.random.key(1), 200)
per_example = jax.jit(jax.vmap(loss_of_one, (None, 0, 0, None)))
one_key = np.array([per_example(params, jnp.repeat(key, 256), x0, 0.5).mean() for key in keys])
own_keys = np.array([per_example(params, jax.random.split(key, 256), x0, 0.5).mean() for key in keys])
print(f"standard deviation of the loss: {own_keys.std():.3f} with a key for each, {one_key.std():.3f} with one for all")
assert one_key.std() > 5 * own_keys.std()  # about √256 = 16 if the noise alone mattered

# %% [markdown]
# The rest is an ordinary loop of optax, with an average of the weights for sampling.

# %%
STEPS, BATCH = 4000, 512
optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, STEPS))
state, averaged = optimizer.init(params), params


@jax.jit
def train_step(params, averaged, state, key):
    key_batch, key_loss = jax.random.split(key)
    x0 = data[jax.random.randint(key_batch, (BATCH,), 0, len(data))]
    loss, gradient = jax.value_and_grad(batch_loss)(params, key_loss, x0)
    changes, state = optimizer.update(gradient, state)
    params = optax.apply_updates(params, changes)
    return params, optax.incremental_update(params, averaged, 0.01), state, loss


losses = []
for i in range(STEPS):
    params, averaged, state, loss = train_step(params, averaged, state, jax.random.fold_in(jax.random.key(2), i))
    losses.append(loss)
trained = jd.denoiser(apply, averaged, process, predicts="v")

# %% [markdown]
# ## Is it the right denoiser?
#
# The best denoiser is $E[x_0 | x_t]$. Every other one has a larger loss, by exactly its mean squared distance from the
# best:
#
# $$E|x_0 - \hat x_0|^2 = E|x_0 - E[x_0|x_t]|^2 + E|\hat x_0 - E[x_0|x_t]|^2.$$
#
# For the mixture, the best one is `exact`. We compute all three terms on new data, and check the equation.

# %%
fresh = exact.data.sample(jax.random.key(3), 20_000)
variance = float(jnp.trace(exact.data.covariance()) / 2)  # of a coordinate of x_0


@jax.jit
def errors(denoiser, t):
    """The three squares of each example, averaged over its coordinates."""

    def of_one(x0, key):
        x_t = process.corrupt(x0, process.sample_noise(key, x0.shape), t)
        found, best = denoiser(x_t, t).x0, exact(x_t, t).x0
        return ((x0 - found) ** 2).mean(), ((x0 - best) ** 2).mean(), ((found - best) ** 2).mean()

    return jax.vmap(of_one)(fresh, jax.random.split(jax.random.key(4), len(fresh)))


times = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
table = {t: [np.asarray(part, np.float64) for part in errors(trained, t)] for t in times}
for t, (found, best, apart) in table.items():
    excess = found - best - apart
    shares = [part.mean() / variance for part in (found, best, apart)]
    print(f"t = {t:4}: network {shares[0]:.4f}, best {shares[1]:.4f}, apart {shares[2]:.5f}, of the variance")
    assert abs(excess.mean()) < 4 * excess.std() / np.sqrt(len(excess)), t

# %% [markdown]
# The distance from the best denoiser, as a share of the variance of the data, was at most 0.0006 in our run. We
# allow 0.003.

# %%
for t, (_, _, apart) in table.items():
    assert apart.mean() < 0.003 * variance, t

untrained = {t: np.asarray(errors(denoiser, t)[2]).mean() for t in times}
figure, axes = plt.subplots(1, 2, figsize=(10, 3.5))
axes[0].plot(np.reshape(losses, (-1, 40)).mean(1))
axes[0].set(xlabel="steps / 40", ylabel="loss")
axes[1].semilogy(times, [best.mean() / variance for _, best, _ in table.values()], "o-", label="error of the best")
axes[1].semilogy(times, [apart.mean() / variance for _, _, apart in table.values()], "o-", label="trained − best")
axes[1].semilogy(times, [untrained[t] / variance for t in times], "o-", label="untrained − best")
axes[1].set(xlabel="t", ylabel="mean square / variance of the data")
axes[1].legend()
plt.show()

# %% [markdown]
# ## Are its samples right?
#
# `jd.sample` takes the trained denoiser with any sampler. We draw 4,096 samples.

# %%
n = 4096
samples = np.asarray(jd.sample(jax.random.key(5), trained, "heun", shape=(2,), n=n, steps=40))
print(samples.shape)

figure, axes = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True)
for axis, (name, x) in zip(axes, {"data": data[:n], "samples": samples}.items(), strict=True):
    axis.scatter(*np.asarray(x).T, s=1)
    axis.set(title=name, aspect="equal")
plt.show()

# %% [markdown]
# A sample belongs to the cluster that most probably made it. The share of a cluster has the standard error
# $\sqrt{p (1 - p)/n}$, a mean $\sqrt{\operatorname{Var}/n}$. We allow four of them, and 0.02 for the error of the
# network.


# %%
def shares_of(x):
    clusters = jax.vmap(lambda x: exact.log_posterior(x, 0.0).argmax())(jnp.asarray(x))
    return np.bincount(np.asarray(clusters), minlength=3) / len(x)


expected = shares_of(exact.data.sample(jax.random.key(6), 200_000))  # near the weights: the clusters hardly overlap
found = shares_of(samples)
share_errors = np.sqrt(expected * (1 - expected) / n)
print(f"shares {found.round(4)}, expected {expected.round(4)} ± {share_errors.round(4)}")

mean, covariance = np.asarray(exact.data.mean()), np.asarray(exact.data.covariance())
products = np.einsum("ni,nj->nij", samples - mean, samples - mean)
mean_error, mean_standard = samples.mean(0) - mean, samples.std(0) / np.sqrt(n)
covariance_error, covariance_standard = products.mean(0) - covariance, products.std(0) / np.sqrt(n)
print(f"error of the mean {mean_error.round(4)} ± {mean_standard.round(4)}")
print("error of the covariance", *covariance_error.round(4).ravel(), "±", *covariance_standard.round(4).ravel())
assert np.all(np.abs(found - expected) < 4 * share_errors + 0.02)
assert np.all(np.abs(mean_error) < 4 * mean_standard + 0.02)
assert np.all(np.abs(covariance_error) < 4 * covariance_standard + 0.02)

# %% [markdown]
# ## Read next
#
# - `docs/guides/loop.md`: a loop with labels, guidance and a checkpoint, and training on several devices.
# - `docs/guides/components.md`: your own schedule, sampler, noise or transform, and your own network in the trainer.
# - `likelihood.py`: the likelihood of a denoiser such as this one.
# - Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", on what a network should
#   predict and how its loss should be weighted.
