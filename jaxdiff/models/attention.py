r"""Softmax attention whose scores stay in fast memory on every platform.

    out = softmax(q kᵀ/√d) v,   for each head, with the softmax in float32 or better.

The scores of a batch are the largest arrays of an image network (64 images of 784 tokens and 4 heads: 630 MB), and
moving them through memory costs more than the arithmetic. So no more of them exist at a time than fast memory holds,
and the gradient computes them again, from the logarithm l of each row's sum (Dao et al. 2022, "FlashAttention",
arXiv:2205.14135). Only on a CPU XLA may keep the scores that need no loop, which is faster there:

    CPU          a loop over groups of examples whose scores fit the second-level cache of a core
    TPU          a loop over groups of examples whose scores fit the vector memory; the plain form for few tokens
    NVIDIA GPU   cuDNN's fused kernel, where it takes the dtype and the number of tokens; otherwise the plain form
    others       the plain form

Attention is a primitive of JAX with rules of its own, because three things are known only there:

* The platform and the number of devices are known when a program is lowered, not when it is traced: a step that is
  traced on a laptop compiles for a TPU pod.
* A mapped axis joins the axis that is looped over; `jax.vmap` would turn the loop back into one large batch.
* Forward mode, reverse mode and derivatives of any order exist on every platform: the first derivatives are two further
  primitives, and those of higher order come from the plain form.

Mapped over 16 examples of 784 tokens and 4 heads of 16, in float32 on two cores of a Xeon with AVX-512, the loop takes
49 ms, and 124 ms with the gradient. The plain form takes 152 ms and 367 ms.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

# The bytes of scores that a device works on at once. On a CPU a few MB, the second-level cache of a core. The vector
# memory of a TPU has 128 MB (v5e, v6e); with fewer than two examples at a time, or few tokens, the loop is slower there
# than the plain form.
_CPU_BYTES, _TPU_BYTES, _GPU_BYTES, _TPU_TOKENS = 2**22, 2**25, 2**28, 100

# The matrix products of each primitive, which `jaxdiff.training.costs` counts.
PRODUCTS = {"attention_forward": 2, "attention_jvp": 6, "attention_vjp": 5}

Function = Callable[..., Sequence[Array]]


def attend(
    q: Float[Array, "*batch queries heads dim"],
    k: Float[Array, "*batch keys heads dim"],
    v: Float[Array, "*batch keys heads dim"],
) -> Float[Array, "*batch queries heads dim"]:
    """Return softmax(q kᵀ/√d) v for each head, with the softmax in float32 or better, in the dtype of q.

    Works under `jit`, `vmap`, `grad`, `jvp` and `remat` in any order.
    """
    out, _ = _forward.bind(*(x.reshape(-1, *x.shape[-3:]) for x in (q, k, v)))
    return out.reshape(q.shape)


# One example's arrays are (heads, dim, tokens): XLA multiplies matrices on a CPU up to four times faster if it need not
# transpose the large one, the scores.
def _scores(q: Array, k: Array) -> Array:
    return _dot(q * q.shape[1] ** -0.5, k, (1, 1))


def _one(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """The output of one example (heads, queries, dim), and l (heads, queries)."""
    scores = _scores(q, k)
    peak = lax.stop_gradient(scores.max(-1, keepdims=True))
    # A row of ones sums the weights in the product with v, and saves a pass over the scores.
    v = jnp.concatenate([v, jnp.ones_like(v[:, :1])], axis=1)
    out = _dot(jnp.exp(scores - peak).astype(v.dtype), v, (2, 2))
    total = out[..., -1:]
    return out[..., :-1] / total, (peak + jnp.log(total))[..., 0]


def _one_vjp(q: Array, k: Array, v: Array, out: Array, log_total: Array, g: Array) -> tuple[Array, ...]:
    """dq (heads, queries, dim), and dk and dv (heads, dim, keys), from the gradient g of the output."""
    inner = (g * out).sum(1, dtype=log_total.dtype)
    p = jnp.exp(_scores(q, k) - log_total[..., None])
    s = p * (_dot(g, v, (1, 1)) - inner[..., None]) * q.shape[1] ** -0.5
    p, s = p.astype(v.dtype), s.astype(v.dtype)
    return _dot(s, k, (2, 2)), _dot(q, s, (2, 1)), _dot(g, p, (2, 1))


def _dot(x: Array, y: Array, over: tuple[int, int]) -> Array:
    """Matrix products for each head, over the given axes of x and y, accumulated in float32 or better."""
    return lax.dot_general(x, y, ((over[:1], over[1:]), ((0,), (0,))), preferred_element_type=_accurate(x))


def _accurate(x: Any) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


class _Form(NamedTuple):
    """A way to compute attention and its first derivatives, for arrays (n, tokens, heads, dim)."""

    forward: Function  # q, k, v -> the output and l, which is (n, heads, queries)
    jvp: Function  # q, k, v, output, l, the tangents of q, k, v -> the tangent of the output
    vjp: Function  # q, k, v, output, l, the gradient of the output -> the gradients of q, k, v


def _plain(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    out, log_total = jax.vmap(_one)(*(x.transpose(0, 2, 3, 1) for x in (q, k, v)))
    return out.swapaxes(1, 2).astype(q.dtype), log_total


def _plain_jvp(q: Array, k: Array, v: Array, _: Array, __: Array, *tangents: Array) -> tuple[Array]:
    return (jax.jvp(_plain, (q, k, v), tangents)[1][0],)


def _plain_vjp(q: Array, k: Array, v: Array, out: Array, log_total: Array, g: Array) -> tuple[Array, ...]:
    q, k, v, out, g = (x.transpose(0, 2, 3, 1) for x in (q, k, v, out, g))
    dq, dk, dv = jax.vmap(_one_vjp)(q, k, v, out, log_total, g)
    return dq.swapaxes(1, 2), dk.transpose(0, 3, 1, 2), dv.transpose(0, 3, 1, 2)


def _cudnn(q: Array, k: Array, v: Array) -> Array:
    """The output by cuDNN's fused kernel, which takes head dimensions that are multiples of 8."""
    dim = q.shape[-1]
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -dim % 8))) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, scale=dim**-0.5, implementation="cudnn")[..., :dim]


def _cudnn_forward(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    n, tokens, heads, _ = q.shape
    out, _ = jax.vjp(_cudnn, q, k, v)  # the kernel that the gradient needs, too: XLA then computes it only once
    return out, jnp.zeros((n, heads, tokens), _accurate(q))  # its l is not accurate enough to be used


def _cudnn_vjp(q: Array, k: Array, v: Array, _: Array, __: Array, g: Array) -> tuple[Array, ...]:
    return jax.vjp(_cudnn, q, k, v)[1](g)


_PLAIN = _Form(_plain, _plain_jvp, _plain_vjp)
_CUDNN = _Form(_cudnn_forward, _plain_jvp, _cudnn_vjp)


def _fits_cudnn(q: Any, k: Any) -> bool:
    """Return whether cuDNN's fused kernel takes these queries and keys, by the strictest of its documented rules."""
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] <= 128
    return fits and q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0


def _looped(f: Function, most: int, devices: int, *xs: Array) -> Sequence[Array]:
    """Apply f to groups of examples that have `most` bytes of scores.

    Examples that are sharded over devices form one block a device: each device loops over its own.
    """
    n, queries, heads, _ = xs[0].shape
    fit = max(1, most // (4 * heads * queries * xs[1].shape[1]))
    blocks = math.gcd(n, devices)
    group = max(size for size in range(1, min(n // blocks, fit) + 1) if n // blocks % size == 0)
    if group * blocks == n:
        return f(*xs)
    parts = [x.reshape(blocks, -1, group, *x.shape[1:]).swapaxes(0, 1) for x in xs]
    out = lax.map(lambda part: jax.vmap(f)(*part), parts)
    return [y.swapaxes(0, 1).reshape(n, *y.shape[3:]) for y in out]


def _on_cpu(kind: str, devices: int, *xs: Array) -> Sequence[Array]:
    def in_float32(*xs: Array) -> Sequence[Array]:  # a CPU is slow in less
        return getattr(_PLAIN, kind)(*(x.astype(_accurate(x)) for x in xs))

    return _looped(in_float32, _CPU_BYTES, devices, *xs)


def _plain_anew(kind: str) -> Function:
    """The plain form, whose gradient does not take the scores of the forward pass, which XLA would keep until then."""
    f: Function = getattr(_PLAIN, kind)
    return (lambda *xs: f(*lax.optimization_barrier(xs))) if kind == "vjp" else f


def _on_tpu(kind: str, devices: int, *xs: Array) -> Sequence[Array]:
    f = _plain_anew(kind)
    few = math.isqrt(xs[0].shape[1] * xs[1].shape[1]) < _TPU_TOKENS
    return f(*xs) if few else _looped(f, _TPU_BYTES, devices, *xs)


def _on_cuda(kind: str, devices: int, *xs: Array) -> Sequence[Array]:
    if _fits_cudnn(*xs[:2]):
        with contextlib.suppress(RuntimeError):  # cuDNN is not installed: the program is lowered for another machine
            return getattr(_CUDNN, kind)(*xs)
    return _elsewhere(kind, devices, *xs)


def _elsewhere(kind: str, devices: int, *xs: Array) -> Sequence[Array]:
    return _looped(_plain_anew(kind), _GPU_BYTES, devices, *xs)


_PLATFORMS = {"cpu": _on_cpu, "tpu": _on_tpu, "cuda": _on_cuda, None: _elsewhere}


def _primitive(kind: str, outputs: Callable[..., list[Any]]) -> Primitive:
    """Return the primitive of a field of `_Form`; `outputs` maps its abstract inputs to its abstract outputs."""
    primitive = Primitive(f"attention_{kind}")
    primitive.multiple_results = True
    primitive.def_impl(jax.jit(primitive.bind))
    primitive.def_abstract_eval(outputs)

    def batched(xs: Sequence[Array], axes: Sequence[int | None]) -> tuple[list[Array], list[int]]:
        pairs = list(zip(xs, axes, strict=True))
        size = next(x.shape[axis] for x, axis in pairs if axis is not None)
        every = (jnp.broadcast_to(x, (size, *x.shape)) if a is None else jnp.moveaxis(x, a, 0) for x, a in pairs)
        out = primitive.bind(*(x.reshape(-1, *x.shape[2:]) for x in every))
        return [y.reshape(size, -1, *y.shape[1:]) for y in out], [0] * len(out)

    def lower(on: Function, context: mlir.LoweringRuleContext, *xs: Any) -> Any:
        sharding = context.module_context.axis_context
        devices = sharding.num_devices if isinstance(sharding, mlir.ShardingContext) else 1

        def function(*xs: Array) -> Sequence[Array]:
            found = on(kind, devices, *xs)
            return [y.astype(aval.dtype) for y, aval in zip(found, context.avals_out, strict=True)]

        return mlir.lower_fun(function, multiple_results=True)(context, *xs)

    batching.primitive_batchers[primitive] = batched
    for platform, on in _PLATFORMS.items():
        mlir.register_lowering(primitive, partial(lower, on), platform=platform)
    return primitive


def _like(*xs: Any) -> list[Any]:
    return [jax.core.ShapedArray(x.shape, x.dtype) for x in xs]


def _output_and_total(q: Any, k: Any, v: Any) -> list[Any]:
    n, queries, heads, _ = q.shape
    return [*_like(q), jax.core.ShapedArray((n, heads, queries), _accurate(q))]


_forward = _primitive("forward", _output_and_total)
_jvp = _primitive("jvp", lambda q, *_: _like(q))
_vjp = _primitive("vjp", lambda q, k, v, *_: _like(q, k, v))


def _differentiate(primals: Sequence[Array], tangents: Sequence[Any]) -> tuple[list[Array], list[Array]]:
    out, log_total = _forward.bind(*primals)
    along = map(ad.instantiate_zeros, tangents)
    # l is kept for the derivatives alone, which do not count it among their variables.
    return [out, log_total], [*_jvp.bind(*primals, out, log_total, *along), jnp.zeros_like(log_total)]


def _differentiate_again(
    primitive: Primitive, function: Function, primals: Sequence[Array], tangents: Sequence[Any]
) -> tuple[list[Array], Sequence[Array]]:
    along = tuple(map(ad.instantiate_zeros, tangents))
    return primitive.bind(*primals), jax.jvp(function, tuple(primals), along)[1]


def _plain_pullback(q: Array, k: Array, v: Array, _: Array, __: Array, g: Array) -> tuple[Array, ...]:
    """`_plain_vjp` as a function of q, k, v and g alone."""
    return jax.vjp(lambda *x: _plain(*x)[0], q, k, v)[1](g)


def _transpose(gradients: Sequence[Any], *inputs: Any) -> list[Any]:
    found = _vjp.bind(*inputs[:5], ad.instantiate_zeros(gradients[0]))
    undefined = map(ad.is_undefined_primal, inputs[5:])
    return [None] * 5 + [x if wanted else None for x, wanted in zip(found, undefined, strict=True)]


ad.primitive_jvps[_forward] = _differentiate
ad.primitive_jvps[_jvp] = partial(_differentiate_again, _jvp, _plain_jvp)
ad.primitive_jvps[_vjp] = partial(_differentiate_again, _vjp, _plain_pullback)
ad.primitive_transposes[_jvp] = _transpose
