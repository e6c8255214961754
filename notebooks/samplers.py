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
# # Samplers against the exact solution
#
# A sampler that solves the probability-flow ODE has an order of convergence: with twice as many steps, the error of a
# method of order $p$ falls by the factor $2^p$. Here the data are a mixture of normal distributions, whose exact
# denoiser is known. So the only error is that of the sampler, and we can measure its order.
#
# It takes about 45 s on 2 cores.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxdiff as jd

jax.config.update("jax_enable_x64", True)  # the errors of the best methods are below the rounding of float32

# %% [markdown]
# ## The exact denoiser
#
# For data from $\sum_j w_j N(m_j, C_j)$ the density of $x_t = \alpha_t x_0 + \sigma_t n$ is again a mixture, $p_t =
# \sum_j w_j N(\alpha_t m_j, \alpha_t^2 C_j + \sigma_t^2 I)$, and so are the expectations $\hat x_0 = E[x_0 | x_t]$ and
# $\hat n = E[n | x_t]$ known. The score is $\nabla \log p_t(x_t) = -\hat n / \sigma_t$. We check that against the
# gradient of the log-density.

# %%
schedule = jd.schedules.VP()
exact = jd.analytic.mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.3]], [[0.1, 0.2], [0.15, 0.1]], schedule)
x_t, t = jnp.array([0.2, -0.4]), 0.3
score = -exact(x_t, t).noise / schedule.sigma(t)
np.testing.assert_allclose(score, jax.grad(exact.log_density)(x_t, t), rtol=1e-12)

# %% [markdown]
# ## The exact solution
#
# With $y = x/\alpha$ and $\varsigma = \sigma/\alpha$, the probability-flow ODE is
#
# $$\frac{dy}{d\varsigma} = \hat n(x, t).$$
#
# For normal data $N(m, v)$ its solution is known:
#
# $$x_s = \alpha_s m + \sqrt{V_s / V_t} \, (x_t - \alpha_t m), \qquad V_t = \alpha_t^2 v + \sigma_t^2.$$
#
# We use it to check the solver that gives the reference below: `Adaptive` chooses its own steps so that their error
# stays below a tolerance. We stop at $t = 0.01$, because every method makes its last step, to $t = 0$, with order 1.

# %%
END = 0.01
reference_solver = jd.samplers.Adaptive(1e-11, 1e-11)
starts = jax.random.normal(jax.random.key(0), (16, 2))


def solve(denoiser, sampler, times):
    return np.asarray(
        jd.sample(jax.random.key(1), denoiser, sampler, shape=(2,), n=len(starts), timesteps=times, start=starts)
    )


mean, variance = jnp.array([0.4, -0.2]), jnp.array([0.3, 0.05])
normal = jd.analytic.gaussian(mean, variance, schedule)
(alpha_t, alpha_s), (sigma_t, sigma_s) = (f(jnp.array([1.0, END])) for f in (schedule.alpha, schedule.sigma))
spread = jnp.sqrt((alpha_s**2 * variance + sigma_s**2) / (alpha_t**2 * variance + sigma_t**2))
known = alpha_s * mean + spread * (starts - alpha_t * mean)
error = np.abs(solve(normal, reference_solver, [1.0, END]) - known).max()
assert error < 1e-9, error  # its tolerance is 1e-11 in each step, and it makes some dozens of them
print(f"error of the reference: {error:.1e}")

reference = solve(exact, reference_solver, [1.0, END])

# %% [markdown]
# ## Orders of convergence
#
# Steps at equal spacing in the log-SNR $\lambda_t = \log \alpha_t^2/\sigma_t^2$ suit every method. We measure the root
# mean square error of 16 samples with 128, 256 and 512 steps.

# %%
METHODS = {"ddim": 1, "heun": 2, "midpoint": 2, "dpm++2m": 2, "dpm++3m": 3, "unipc": 3, "rk4": 4}
CALLS = {"heun": 2, "midpoint": 2, "rk4": 4}  # network evaluations in a step; the others make one
COUNTS = (128, 256, 512)


def uniform_in_log_snr(steps):
    ends = schedule.log_snr(jnp.array([1.0, END]))
    times = np.array(schedule.time(jnp.linspace(*ends, steps + 1)))
    times[0] = 1.0  # exactly, not up to rounding
    return times


errors = {}
for name in METHODS:
    began = time.perf_counter()
    ends = [solve(exact, name, uniform_in_log_snr(steps)) for steps in COUNTS]
    errors[name] = [float(np.sqrt(((end - reference) ** 2).mean())) for end in ends]
    print(f"{name:>8}: {' '.join(f'{e:.1e}' for e in errors[name])}  in {time.perf_counter() - began:.1f} s")

# %% [markdown]
# The order is the slope of $\log_2$ error against $\log_2$ steps. It holds in the limit of many steps; at 256 to 512
# steps the next term of the error still changes the slopes by up to 0.08, and orders are 1 apart: we allow 0.2.

# %%
for name, order in METHODS.items():
    slope = np.log2(errors[name][-2] / errors[name][-1])
    print(f"{name:>8}: order {order}, measured {slope:.2f}")
    assert abs(slope - order) < 0.2, (name, slope)

plt.figure(figsize=(6, 4))
for name in METHODS:
    plt.loglog(np.array(COUNTS) * CALLS.get(name, 1), errors[name], marker="o", label=name)
plt.xlabel("network evaluations")
plt.ylabel("error")
plt.legend()
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# DDIM without noise is Euler's method on the ODE above, so it has order 1. We check one step against that formula.

# %%
t, s = 0.5, 0.45
(alpha_t, alpha_s), (sigma_t, sigma_s) = (f(jnp.array([t, s])) for f in (schedule.alpha, schedule.sigma))
noise = jax.vmap(lambda x: exact(x, t).noise)(starts)
euler = alpha_s * (starts / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * noise)
np.testing.assert_allclose(solve(exact, "ddim", [t, s]), euler, rtol=1e-10, atol=1e-12)

# %% [markdown]
# ## Stochastic samplers
#
# A stochastic sampler does not follow the ODE: it has no exact solution for each start, but its samples have a
# distribution. We compare the mean and the second moments of 4,096 samples with those of the mixture. The standard
# errors are those of a mean of 4,096 values; we allow four, and 0.015 for the error that the steps still make.

# %%
n, truth_mean, truth_covariance = 4096, exact.data.mean(), exact.data.covariance()
STOCHASTIC = {"ddpm": 250, "reverse_sde": 500, "dpm++2m_sde": 60}
drawn = {}
for name, steps in STOCHASTIC.items():
    x = jd.sample(jax.random.key(2), exact, name, shape=(2,), n=n, steps=steps, timesteps="log_snr")
    drawn[name] = x = np.asarray(x)
    products = np.einsum("ni,nj->nij", x - truth_mean, x - truth_mean)
    mean_error, covariance_error = x.mean(0) - truth_mean, products.mean(0) - truth_covariance
    assert np.all(np.abs(mean_error) < 4 * x.std(0) / np.sqrt(n) + 0.015), (name, mean_error)
    assert np.all(np.abs(covariance_error) < 4 * products.std(0) / np.sqrt(n) + 0.015), (name, covariance_error)
    print(f"{name:>12}: error of the mean {mean_error.round(3)}, of the variances {np.diag(covariance_error).round(3)}")

figure, axes = plt.subplots(1, 4, figsize=(12, 3), sharex=True, sharey=True)
panels = {"exact": np.asarray(exact.data.sample(jax.random.key(3), n)), **drawn}
for axis, (name, x) in zip(axes, panels.items(), strict=True):
    axis.scatter(*x.T, s=1)
    axis.set(title=name, aspect="equal")
plt.show()

# %% [markdown]
# ## A sampler that is not exact
#
# `renoise` forgets the predicted noise and draws new noise at every step. Since $\hat x_0$ is a mean over what the
# sample could be, its samples are too close together, however many steps it makes. Within a mode of the mixture their
# variance is visibly too small.

# %%
x = np.asarray(jd.sample(jax.random.key(4), exact, "renoise", shape=(2,), n=n, steps=250))
right = x[:, 0] > 0  # nearly all of the second mode, with variances 0.15 and 0.1
found, true_variance = x[right, 1].var(), 0.1
standard_error = true_variance * np.sqrt(2 / right.sum())  # of the variance of normal values
print(f"variance within the mode: {found:.3f} ± {standard_error:.3f}, true {true_variance}")
assert found < true_variance - 4 * standard_error

# %% [markdown]
# ## Read next
#
# - `docs/samplers.md`: the error of every ODE sampler against network evaluations, and which one to use.
# - `likelihood.py`: the same ODE, run from the data to the noise.
# - Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models"; Lu et al. 2022,
#   "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models".
