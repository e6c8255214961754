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
# # Likelihoods that are true
#
# A diffusion model has a likelihood, in two forms: the ODE gives the density itself, and the ELBO bounds it. On a
# mixture of normal distributions with its exact denoiser, the true density is known. So both can be checked here.
#
# It takes about 35 s on 2 cores.

# %%
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxdiff as jd

exact = jd.analytic.mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.3]], [0.1, 0.2], schedule=jd.schedules.VP())
x0 = exact.data.sample(jax.random.key(0), 200)
truth = np.asarray(jax.vmap(lambda x: exact.log_density(x, 0.0))(x0))

# %% [markdown]
# The truth itself is easy to check: it is the logarithm of a sum of two normal densities.


# %%
def normal_density(x, mean, variance):
    return np.exp(-((x - mean) ** 2).sum(-1) / (2 * variance)) / (2 * np.pi * variance)


by_hand = np.log(
    0.3 * normal_density(np.asarray(x0), np.array([-1.0, 0.5]), 0.1)
    + 0.7 * normal_density(np.asarray(x0), np.array([1.0, -0.3]), 0.2)
)
np.testing.assert_allclose(truth, by_hand, atol=2e-5)  # rounding in float32

# %% [markdown]
# ## The ODE
#
# The probability-flow ODE $dx/dt = f(x, t)$ carries the data to the prior. By the change of variables,
#
# $$\log p(x_0) = \log p_1(x_1) + \int_0^1 \operatorname{div} f(x_t, t) \, dt.$$
#
# `jd.log_likelihood` solves the ODE and computes the divergence exactly, which is possible in few dimensions.

# %%
found = jd.log_likelihood(exact, x0)
error = np.asarray(found.log_density - truth)
print(f"greatest error: {np.abs(error).max():.1e} nats, in at most {int(found.steps.max())} steps")

# %% [markdown]
# What is left of the error has a simple reason. Samples start from $p_1 = N(0, \sigma_1^2 I)$. But the noisy data at $t
# = 1$ still have a trace of the data in them, since $\alpha_1$ is small but not 0. Hence the density of the model is
# not exactly that of the data. The exact denoiser knows the true density at $t = 1$; with it in place of the prior, the
# error is below 1e-3, which is what the solver's tolerance of 1e-5 leaves after the integral.

# %%
print(f"α_1 = {float(exact.process.schedule.alpha(1.0)):.1e}")
at_1 = jax.vmap(lambda x1: exact.log_density(x1, 1.0) - exact.process.log_prior(x1))(found.latent)
print(f"without the difference at t = 1: {np.abs(error + at_1).max():.1e} nats")
np.testing.assert_allclose(found.log_density + at_1, truth, atol=1e-3)
assert np.abs(error).max() < 1e-3 + np.abs(at_1).max()

plt.figure(figsize=(4, 4))
plt.scatter(truth, found.log_density, s=4)
plt.axline((0, 0), slope=1, linewidth=0.5)
plt.xlabel("true log-density")
plt.ylabel("by the ODE")
plt.show()

# %% [markdown]
# In many dimensions the divergence is estimated with random probes $u$ as the mean of $u^T (\partial f/\partial x) u$,
# and the result has a standard error. With normal probes, the differences from the exact trace, in units of the
# standard error, nearly follow Student's t-distribution with (probes − 1) degrees of freedom, whose variance with 64
# probes is 63/61.

# %%
estimate = jd.log_likelihood(exact, x0, probes=64, probe="gaussian", key=jax.random.key(1))
z = np.asarray((estimate.log_density - found.log_density) / estimate.standard_error)
print(f"standard error {estimate.standard_error.mean():.3f} nats; z has mean {z.mean():.2f}, std {z.std():.2f}")
assert abs(z.mean()) < 4 / np.sqrt(len(z))
assert abs(z.std() - 1) < 4 / np.sqrt(2 * len(z))  # the standard error of a standard deviation

# %% [markdown]
# The solution is the latent $x_1$ of each sample. The ODE can be solved in both directions, so that a latent gives the
# sample back.

# %%
latents = jd.encode(exact, x0)
np.testing.assert_allclose(jd.decode(exact, latents), x0, atol=1e-3)

# %% [markdown]
# ## The ELBO
#
# The variational bound is a sum of three terms for each sample,
#
# $$-\log p(x_0) \le L_T + \sum_{k=2}^{T} L_{k-1} + L_0.$$
#
# For normal data $N(m, v)$ with the exact denoiser, the mean of every term is known. With $\mathrm{SNR} =
# \alpha^2/\sigma^2$, and $s = t - 1/T$ the time before $t$, these are, per coordinate,
#
# | term | mean |
# | --- | --- |
# | $L_T$ | $\frac12 \mathrm{SNR}_1 (m^2 + v)$ |
# | $L_{k-1}$ | $\frac12 (\mathrm{SNR}_s - \mathrm{SNR}_t) \, v/(1 + v\,\mathrm{SNR}_t)$ |
# | $L_0$ | $\frac12 \log(2\pi/\mathrm{SNR}_t) + \frac12 \mathrm{SNR}_t \, v/(1 + v\,\mathrm{SNR}_t)$ at $t = 1/T$ |
#
# We compare the terms with these, within four standard errors, and their sum with the entropy $\frac12 \log(2 \pi e
# v)$.

# %%
mean, variance = np.array([0.5, -0.2]), np.array([0.3, 0.6])
entropy, gaps = 0.5 * np.log(2 * np.pi * np.e * variance).sum(), {}
for T in (10, 100, 1000):
    schedule = jd.schedules.Cosine(num_timesteps=T)
    normal = jd.analytic.gaussian(mean, variance, schedule)
    terms = jd.elbo(jax.random.key(2), normal, normal.data.sample(jax.random.key(3), 500))
    snr = np.exp(np.asarray(schedule.log_snr(np.arange(1, T + 1) / T), np.float64))[:, None]
    remaining = variance / (1 + variance * snr)  # the mean of |x_0 − x̂_0|², at every t
    expected = {
        "prior": 0.5 * snr[-1] * (mean**2 + variance),
        "steps": 0.5 * (snr[:-1] - snr[1:]) * remaining[1:],
        "decoder": 0.5 * np.log(2 * np.pi / snr[0]) + 0.5 * snr[0] * remaining[0],
    }
    for name, value in expected.items():
        term = np.asarray(getattr(terms, name), np.float64).reshape(500, -1).sum(1)
        error = term.std() / np.sqrt(len(term))
        assert abs(term.mean() - value.sum()) < 4 * error + 1e-4, (T, name, term.mean(), value.sum())
        print(f"T = {T:4}, {name:>7}: {term.mean():8.4f} ± {error:.4f}, expected {value.sum():8.4f}")
    gaps[T] = sum(value.sum() for value in expected.values()) - entropy
print({T: f"{gap:.3f} nats above the entropy" for T, gap in gaps.items()})
assert min(gaps.values()) > 0

# %% [markdown]
# The bound stays above the entropy even for many timesteps. The last steps before the data explain that. There the
# variance $\sigma_t^2$ of this schedule falls nearly in proportion to $t$, so that the SNR doubles in the step from
# $2/T$ to $1/T$, however large $T$ is. Each step costs $\frac12 (\mathrm{SNR}_s/\mathrm{SNR}_t - 1) - \frac12
# \log(\mathrm{SNR}_s/\mathrm{SNR}_t)$ per coordinate. With ratios $k/(k-1)$ this sums to
#
# $$\tfrac12 \sum_{k=2}^\infty \left(\frac{1}{k-1} - \log \frac{k}{k-1}\right) = \tfrac12 \gamma,$$
#
# half of Euler's constant $\gamma = 0.577$. So the limit of the gap is $\gamma$ for two coordinates. Other steps and
# the curvature of $\sigma_t^2$ add to it at finite $T$.

# %%
for T in (10_000, 100_000):
    snr = np.exp(np.asarray(jd.schedules.Cosine(num_timesteps=T).log_snr(np.arange(1, 4) / T)))
    print(f"T = {T}: SNR ratios of the last steps {snr[:-1] / snr[1:]}")
np.testing.assert_allclose(snr[:-1] / snr[1:], [2, 1.5], rtol=0.01)  # k/(k − 1) for k = 2 and 3
assert gaps[1000] > np.euler_gamma

# %% [markdown]
# ### Continuous time
#
# In continuous time there are no steps, and the bound is tight: with the exact denoiser, its mean is the entropy of the
# data up to terms of order $\mathrm{SNR}_1$ and $1/\mathrm{SNR}_0$. It needs a schedule with noise at $t = 0$, such as
# the truncated cosine. We use the mixture, and compare with its density.

# %%
schedule = jd.schedules.TruncatedCosine(log_snr_max=12.0, log_snr_min=-12.0)
tight = jd.analytic.mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.3]], [0.1, 0.2], schedule=schedule)
x = tight.data.sample(jax.random.key(4), 1000)
terms = jd.continuous_elbo(jax.random.key(5), tight, x, draws=256)
density = np.asarray(jax.vmap(lambda x: exact.log_density(x, 0.0))(x))
gap = np.asarray(terms.total()) + density
error = gap.std() / np.sqrt(len(gap))
print(f"ELBO − (−log p) = {gap.mean():.3f} ± {error:.3f} nats")
assert abs(gap.mean()) < 4 * error

plt.figure(figsize=(4, 4))
plt.scatter(-density, terms.total(), s=2)
plt.axline((0, 0), slope=1, linewidth=0.5, color="C1")
plt.xlabel("−log p of a sample")
plt.ylabel("its ELBO, one estimate each")
plt.show()

# %% [markdown]
# ## Bits per dimension
#
# For images with a finite number of levels, likelihoods are probabilities, in bits and divided by the number of pixels.
# The best possible value is the entropy of the data. As an example we take "images" of two pixels with four levels,
# that can only be one of three images, each with probability 1/3. Their entropy is $\log_2 3 = 1.585$ bits, or 0.792
# bits/dim.
#
# `jd.analytic.empirical` is the exact denoiser of such data.

# %%
LEVELS = 4
raw = np.array([[0, 3], [1, 1], [3, 2]])
images = jd.data.normalize(raw, LEVELS)
process = jd.Gaussian(jd.schedules.Cosine(num_timesteps=1000))
best = jd.analytic.empirical(images, process)
entropy = math.log2(3) / 2

drawn = jnp.asarray(np.tile(images, (100, 1)))  # each image a hundred times, with its own noise
bits = np.asarray(jd.elbo(jax.random.key(5), best, drawn, levels=LEVELS).total()) / (2 * math.log(2))
error = bits.std() / np.sqrt(len(bits))
print(f"ELBO {bits.mean():.3f} ± {error:.3f} bits/dim, entropy {entropy:.3f}")
assert bits.mean() > entropy - 4 * error

# %% [markdown]
# The gap is the price of finitely many steps: a step of the bound assumes that $x_s$ is normal given $x_t$, which it is
# not for three separate points. It falls with $T$, as above: at $T = 1000$ it is below a twentieth of a bit.

# %%
assert bits.mean() < entropy + 0.05 + 4 * error

# %% [markdown]
# A denoiser that only knows that all 16 images are equally likely needs 2 bits/dim, because it can't know better.

# %%
every = jd.data.normalize(np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2), LEVELS)
ignorant = jd.analytic.empirical(every, process)
worse = np.asarray(jd.elbo(jax.random.key(5), ignorant, drawn, levels=LEVELS).total()) / (2 * math.log(2))
worse_error = worse.std() / np.sqrt(len(worse))
print(f"ELBO of the ignorant denoiser: {worse.mean():.3f} ± {worse_error:.3f} bits/dim")
assert -4 * worse_error < worse.mean() - 2 < 0.05 + 4 * worse_error

# %% [markdown]
# ## Read next
#
# - `run.bits_per_dim(images)` and `sample.py --bits_per_dim=64` do the same for a trained run.
# - `samplers.py`: the same ODE, run from the noise to the data.
# - Kingma et al. 2021, "Variational Diffusion Models"; Song et al. 2021, "Score-Based Generative Modeling through
#   Stochastic Differential Equations".
