r"""Softmax attention that keeps its scores in cache on a CPU and uses the fused kernel on a GPU.

    out = softmax(q kᵀ/√d) v,   for each head, with the softmax in float32.

The scores of a batch are the largest arrays of an image network (64 images of 784 tokens and 4 heads: 630 MB), and on a
CPU moving them through memory costs more than the arithmetic. So they are computed for a few examples at a time, and
again for the gradient, from the logarithm l of each row's sum (Dao et al. 2022, "FlashAttention", arXiv:2205.14135,
appendix B):

    p = exp(q kᵀ/√d − l),   dv = pᵀ g,   s = p ∘ (g vᵀ − Σ g∘out),   dq = s k/√d,   dk = sᵀ q/√d.

`jax.vmap` would turn such a loop back into one large batch. Here a mapped axis joins the axis that is looped over, so
that mapping single examples compiles to the loop of a batched call. Mapped over 16 examples of 784 tokens and 4 heads
of 16, in float32 on two cores of a Xeon with AVX-512, it takes 49 ms, and 124 ms with the gradient. The plain form
takes 152 ms and 367 ms.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import DTypeLike
from jaxtyping import Array, Float

_CACHE_BYTES = 2**22  # scores worked on at once; a few MB is the second-level cache of a core


def attend(
    q: Float[Array, "*batch queries heads dim"],
    k: Float[Array, "*batch keys heads dim"],
    v: Float[Array, "*batch keys heads dim"],
) -> Float[Array, "*batch queries heads dim"]:
    """Return softmax(q kᵀ/√d) v for each head, with the softmax in float32, in the dtype of q.

    Works under `jit`, `vmap`, `grad` and `remat` in any order. On a CPU it has first derivatives in reverse mode only:
    `jax.jvp` and second derivatives raise.
    """
    shape = q.shape
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    if jax.default_backend() == "cpu":
        inputs = (x.transpose(0, 2, 3, 1).astype(jnp.float32) for x in (q, k, v))
        out = _attend(*inputs).swapaxes(1, 2).astype(q.dtype)
    else:
        out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if _fits_cudnn(shape, q.dtype) else "xla")
    return out.reshape(shape)


def _fits_cudnn(shape: tuple[int, ...], dtype: DTypeLike) -> bool:
    """Return whether cuDNN's flash attention takes such queries, by the strictest of its documented rules."""
    device = jax.devices()[0]
    tokens, _, dim = shape[-3:]
    return (
        "cuda" in device.client.platform_version
        and float(device.compute_capability) >= 8.0  # Ampere or newer
        and dtype in (jnp.bfloat16, jnp.float16)
        and dim % 8 == 0
        and dim <= 128
        and tokens % 2 == 0
    )


def _loop(one: Callable[..., tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
    """Turn a function of one example into a loop over groups of examples, which mapped axes join."""

    @custom_vmap
    def loop(*xs: Array) -> tuple[Array, ...]:
        n, heads, _, queries = xs[0].shape
        fit = max(1, _CACHE_BYTES // (4 * heads * queries * xs[1].shape[-1]))
        # Examples that are sharded over devices form one block a device: each device loops over its own.
        devices = math.gcd(n, jax.device_count())
        group = max(size for size in range(1, min(max(n // devices, 1), fit) + 1) if n // devices % size == 0)
        blocks = [x.reshape(devices, -1, group, *x.shape[1:]).swapaxes(0, 1) for x in xs]
        out = lax.map(lambda x: jax.vmap(jax.vmap(one))(*x), tuple(blocks))
        return tuple(y.swapaxes(0, 1).reshape(n, *y.shape[3:]) for y in out)

    @loop.def_vmap
    def _(size: int, mapped: list[bool], *xs: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        pairs = zip(xs, mapped, strict=True)
        every = (x if is_mapped else jnp.broadcast_to(x, (size, *x.shape)) for x, is_mapped in pairs)
        out = loop(*(x.reshape(-1, *x.shape[2:]) for x in every))
        return tuple(y.reshape(size, -1, *y.shape[1:]) for y in out), (True,) * len(out)

    return loop


# One example's arrays are (heads, dim, tokens): XLA multiplies matrices on a CPU up to four times faster if it need not
# transpose the large one, and writes each result as it comes.
def _dot(x: Array, y: Array, over: tuple[int, int]) -> Array:
    """Matrix products for each head, over the given axes of x and y, accumulated in float32."""
    return lax.dot_general(x, y, ((over[:1], over[1:]), ((0,), (0,))), preferred_element_type=jnp.float32)


def _scores(q: Array, k: Array) -> Array:
    return _dot(q * q.shape[1] ** -0.5, k, (1, 1))


@_loop
def _forward(q: Array, k: Array, v: Array) -> tuple[Array, ...]:
    """The output (heads, queries, dim), and the logarithm of each row's sum (heads, queries)."""
    scores = _scores(q, k)
    peak = scores.max(-1, keepdims=True)
    # A row of ones sums the weights in the product with v, and saves a pass over the scores.
    v = jnp.concatenate([v, jnp.ones_like(v[:, :1])], axis=1)
    out = _dot(jnp.exp(scores - peak), v, (2, 2))
    total = out[..., -1:]
    return out[..., :-1] / total, (peak + jnp.log(total))[..., 0]


@_loop
def _backward(q: Array, k: Array, v: Array, out: Array, log_total: Array, g: Array) -> tuple[Array, ...]:
    """dq (heads, queries, dim), and dk and dv (heads, dim, keys)."""
    inner = (g * out.swapaxes(1, 2)).sum(1)
    p = jnp.exp(_scores(q, k) - log_total[..., None])
    s = p * (_dot(g, v, (1, 1)) - inner[..., None]) * q.shape[1] ** -0.5
    return _dot(s, k, (2, 2)), _dot(q, s, (2, 1)), _dot(g, p, (2, 1))


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array) -> Array:
    """Map (n, heads, dim, tokens) to (n, heads, queries, dim)."""
    return _attend_fwd(q, k, v)[0]


def _attend_fwd(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    out, log_total = _forward(q, k, v)
    return out, (q, k, v, out, log_total)


def _attend_bwd(residuals: tuple[Array, ...], g: Array) -> tuple[Array, ...]:
    dq, dk, dv = _backward(*residuals, g.swapaxes(2, 3))
    return dq.swapaxes(2, 3), dk, dv


_attend.defvjp(_attend_fwd, _attend_bwd)
