"""A learned schedule: the monotone network of Kingma et al. 2021, "Variational Diffusion Models", appendix H.

    γ̃(t) = t + 1/n Σ_j h_j S(w_j t + b_j),     w_j = softplus(`slopes`), h_j = softplus(`heights`), b_j = `offsets`
    g(t) = κ t + (1 − κ)(γ̃(t) − γ̃(0))/(γ̃(1) − γ̃(0)),     κ = 1/128
    λ_t  = (1 − g) λ_0 + g λ_1,     α² = S(λ),  σ² = S(−λ)

S is the sigmoid. The paper's γ̃ is l1(t) + l3(S(l2(l1(t)))) with positive weights. The quotient cancels the scale and
the bias of l1, so both are left out and l2 reads t. The linear share κ is ours: it keeps the slope at κ(λ_0 − λ_1) or
more for any parameters, where large weights would otherwise make λ constant to rounding.

The quotient is computed as G/(G + Ḡ) with G = γ̃(t) − γ̃(0) and Ḡ = γ̃(1) − γ̃(t). One of them is 0 at each end, so that
λ_0 and λ_1 are exact there. Neither cancels: S(u) − S(v) = S(u) S(−v)(1 − e^{v−u}).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.schedules.base import (
    Times,
    Values,
    VariancePreserving,
    as_float,
    as_time,
    interpolate,
    log_alpha_of,
    one_minus_exp,
)
from jaxdiff.typing import InputError, RandomKey, Scalar, Width, check_between, checked, pytree, static

LINE = 1 / 128  # κ, a power of 2, so that κ + (1 − κ) is 1


@pytree(eq=False)
class Learned(VariancePreserving):
    """A schedule whose log-SNR is a monotone network with arrays of any real numbers. Make one with `Learned.init`.

    `ends` moves the end points to λ_0 = log_snr_max + f(ends[0]) and λ_1 = log_snr_min − f(ends[1]), where f(x) = x for
    x > 0 and f(x) = x/(1 − x/a) for x <= 0. With a = 7/16 (log_snr_max − log_snr_min), each end moves inwards by less
    than a, and the two never meet. If `ends` is None, both stay where they are.
    """

    slopes: Any  # arrays of shape (n,), or what JAX puts in their place (axes, shapes, shardings)
    offsets: Any
    heights: Any
    ends: Any  # an array of shape (2,), or None
    log_snr_max: float = static()
    log_snr_min: float = static()

    def __post_init__(self) -> None:
        low, high = self.log_snr_min, self.log_snr_max
        if not low < high:
            raise InputError(f"log_snr_min = {low}, log_snr_max = {high}; must satisfy log_snr_min < log_snr_max")
        check_between(self, -80, 80, "log_snr_min", "log_snr_max")  # where float32 holds e^λ

    @classmethod
    def init(
        cls,
        key: RandomKey | None = None,
        *,
        log_snr_max: float = 13.3,
        log_snr_min: float = -5.0,
        hidden: Width = 1024,
        learn_ends: bool = False,
    ) -> "Learned":
        """Return a schedule of `hidden` sigmoids whose log-SNR is, before training, nearly linear in t.

        `key` draws the parameters, in float32; the default is a fixed key. λ_0 = `log_snr_max` and λ_1 = `log_snr_min`
        are the paper's by default; `learn_ends` makes parameters of them. Raises an InputError unless λ_1 < λ_0 and
        hidden >= 1.
        """
        checked("learn_ends", learn_ends, bool)
        if checked("hidden", hidden, Width) < 1:
            raise InputError(f"hidden = {hidden}; the network needs at least 1 sigmoid")
        key_slope, key_center, key_height = jax.random.split(jax.random.key(0) if key is None else key, 3)
        # Sigmoids centered on all of [−½, 1½] add up to a straight line on [0, 1].
        slopes = 4 + jax.random.normal(key_slope, (hidden,), jnp.float32)
        centers = jax.random.uniform(key_center, (hidden,), jnp.float32, -0.5, 1.5)
        return cls(
            slopes=slopes,
            offsets=-jax.nn.softplus(slopes) * centers,
            heights=jax.random.normal(key_height, (hidden,), jnp.float32),
            ends=jnp.zeros(2, jnp.float32) if learn_ends else None,
            log_snr_max=log_snr_max,
            log_snr_min=log_snr_min,
        )

    def log_snr_ends(self, dtype: Any = float) -> tuple[Scalar, Scalar]:
        """Return (λ_0, λ_1)."""
        first, last = jnp.asarray(self.log_snr_max, dtype), jnp.asarray(self.log_snr_min, dtype)
        if self.ends is None:
            return first, last
        ends, room = jnp.asarray(self.ends, dtype), 7 / 16 * (self.log_snr_max - self.log_snr_min)
        moved = ends / (1 + jax.nn.relu(-ends) / room)  # rounded alike in every compilation, unlike an exponential
        return first + moved[0], last - moved[1]

    def position(self, t: Times) -> Values:
        """Return the time that a network is given: 0 where λ_t is `log_snr_max`, 1 where it is `log_snr_min`."""
        return (self.log_snr_max - self.log_snr(t)) / (self.log_snr_max - self.log_snr_min)

    def _fall(self, t: Scalar) -> Scalar:
        """g at one t."""
        slopes, offsets, heights = (jnp.asarray(x, t.dtype) for x in (self.slopes, self.offsets, self.heights))
        w, h = jax.nn.softplus(slopes), jax.nn.softplus(heights) / len(heights)
        u = w * t + offsets
        risen = jax.nn.sigmoid(u) * jax.nn.sigmoid(-offsets) * one_minus_exp(-w * t)
        left = jax.nn.sigmoid(w + offsets) * jax.nn.sigmoid(-u) * one_minus_exp(-w * (1 - t))
        done, rest = t + (h * risen).sum(), (1 - t) + (h * left).sum()
        return LINE * t + (1 - LINE) * (done / (done + rest))

    def log_snr(self, t: Times) -> Values:
        t = as_time(t)
        g = jax.vmap(self._fall)(t.reshape(-1)).reshape(t.shape)
        return interpolate(g, *self.log_snr_ends(t.dtype))

    def log_alpha(self, t: Times) -> Values:
        return log_alpha_of(self.log_snr(t))

    def sigma(self, t: Times) -> Values:
        return jnp.exp(log_alpha_of(-self.log_snr(t)))

    def time(self, log_snr: Times) -> Values:
        """Invert by bisection, then Newton's method; differentiated as an implicit function."""
        target = as_float(log_snr)
        first, last = self.log_snr_ends(target.dtype)
        inside = jax.vmap(self._root)(jnp.clip(target, last, first).reshape(-1)).reshape(target.shape)
        return jnp.where(target >= first, 0, jnp.where(target <= last, 1, inside))

    def _root(self, target: Scalar) -> Scalar:
        half = jnp.full_like(target, 0.5)
        return jax.lax.custom_root(
            lambda t: self.log_snr(t) - target, half, _solve, lambda slope, y: y / slope(jnp.ones_like(y))
        )


def _solve(f: Any, t: Scalar) -> Scalar:
    """Return the zero in [0, 1] of a falling function."""

    def halve(_: Any, bracket: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        low, high = bracket
        middle = 0.5 * (low + high)
        above = f(middle) > 0
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    def newton(_: Any, t: Scalar) -> Scalar:
        value, slope = jax.jvp(f, (t,), (jnp.ones_like(t),))
        return jnp.clip(t - value / slope, low, high)

    halvings = jnp.finfo(t.dtype).nmant + 1  # to the last bit of 1
    low, high = jax.lax.fori_loop(0, halvings, halve, (jnp.zeros_like(t), jnp.ones_like(t)))
    return jax.lax.fori_loop(0, 2, newton, 0.5 * (low + high))
