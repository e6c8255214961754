"""Layers for what a network is conditioned on: a label, a vector, an image and tokens, each of which may be absent.

    label    l in 0 … classes − 1, −1 for none        e ← e + table[l]
    vector   v of d numbers, mask m                   e ← e + m V v + (1 − m) v_∅
    image    y of any channels, mask m                x ← [x, m y, m]
    tokens   τ of (length, d), a mask for each        h ← h + attention from h to [τ_∅, W τ]

e is the embedding of the time. Each mask is False for a condition that was dropped, and for tokens that only pad. The
learned token τ_∅ is always there, so that attention has something to look at. A network with such conditions gets them
as a mapping: "label" (n,), "vector" (n, d), "image" (n, *sizes, channels) and "tokens" (n, length, d), and for all but
the label a mask, "vector_mask" and "image_mask" (n,) and "tokens_mask" (n, length). One that is conditioned on a label
alone gets the labels without the mapping.

Sources: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.3, for the
attention to tokens; Saharia et al. 2021, "Image Super-Resolution via Iterative Refinement", for images as channels.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.typing import InputError, PyTree, Shape

Given = Mapping[str, Any]


def unpack(cond: PyTree, n: int, classes: int, shapes: Mapping[str, Shape]) -> tuple[Int[Array, " n"] | None, Given]:
    """Return the labels and the further conditions of n examples; those that are absent are zeros that are masked.

    Args:
      cond: the mapping of this module; labels alone; or None.
      classes: the number of labels that the network knows.
      shapes: the shape of each of its other conditions.

    Raises:
      InputError: if there is a condition that the network has no place for.
    """
    given = dict(cond) if isinstance(cond, Mapping) else {} if cond is None else {"label": cond}
    labels = given.pop("label", None)
    known = {*shapes, *(f"{kind}_mask" for kind in shapes)}
    if unknown := sorted({*given} - known):
        has = ", ".join([*(["label"] if classes else []), *shapes]) or "none"
        raise InputError(f"this network has no place for the condition {unknown[0]!r}; its conditions are: {has}")
    for kind, shape in shapes.items():
        mask_shape = (n, *shape[:1]) if kind == "tokens" else (n,)
        if kind not in given:
            given |= {kind: jnp.zeros((n, *shape)), f"{kind}_mask": jnp.zeros(mask_shape, bool)}
        elif f"{kind}_mask" not in given:
            mask_shape = given[kind].shape[:2] if kind == "tokens" else (n,)
            given[f"{kind}_mask"] = jnp.ones(mask_shape, bool)
    return labels, given


class LabelEmbedding(nn.Module):
    """Embed labels 0 … classes − 1 of shape (n,) as (n, dim). Label −1 and None share one extra vector.

    Labels ≥ classes give NaN. With 0 classes the embedding is zero, and a condition is refused.
    """

    classes: int
    dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, labels: Int[Array, " n"] | None, n: int) -> Float[Array, "n dim"] | float:
        if not self.classes:
            if labels is not None:
                raise InputError(f"this network has no labels, but was given the condition {labels!r}: pass None")
            return 0.0
        if labels is None:
            labels = jnp.full(n, -1)
        row = jnp.where(labels < 0, self.classes, jnp.where(labels < self.classes, labels, self.classes + 1))
        return nn.Embed(self.classes + 1, self.dim, dtype=self.dtype, name="table")(row)


class VectorEmbedding(nn.Module):
    """Embed vectors (n, d) as (n, dim) by a dense layer; absent ones as one learned vector."""

    dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, vector: Float[Array, "n d"], mask: Bool[Array, " n"]) -> Float[Array, "n dim"]:
        absent = self.param("absent", nn.initializers.normal(1.0), (self.dim,)).astype(self.dtype)
        return jnp.where(mask[:, None], nn.Dense(self.dim, dtype=self.dtype, name="dense")(vector), absent[None])


def join_image(
    x: Float[Array, "n *sizes channels"], image: Float[Array, "n *smaller extra"], mask: Bool[Array, " n"]
) -> Float[Array, "n *sizes all"]:
    """Return x with the image and its mask as further channels; a smaller image is repeated to the size of x.

    Raises an InputError unless the sizes of x are multiples of those of the image.
    """
    sizes, smaller = x.shape[1:-1], image.shape[1:-1]
    if len(sizes) != len(smaller) or any(size % part for size, part in zip(sizes, smaller, strict=True)):
        raise InputError(
            f"the image condition has the size {smaller}, and x {sizes}; those of x must be multiples of the image's"
        )
    for axis, (size, part) in enumerate(zip(sizes, smaller, strict=True), 1):
        image = jnp.repeat(image, size // part, axis=axis)
    given = jnp.broadcast_to(jnp.expand_dims(mask, range(1, x.ndim)), (*x.shape[:-1], 1)).astype(x.dtype)
    return jnp.concatenate([x, image.astype(x.dtype) * given, given], axis=-1)


class CrossAttention(nn.Module):
    """h + attention from the positions of GroupNorm(h) to tokens and one learned token, with biases in all projections.

    The output starts at zero, so that a new network sees no tokens.
    """

    heads: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, h: Float[Array, "n *sizes channels"], tokens: Float[Array, "n length d"], mask: Bool[Array, "n length"]
    ) -> Float[Array, "n *sizes channels"]:
        n, channels = len(h), h.shape[-1]
        q = nn.GroupNorm(self.groups, epsilon=1e-5, dtype=self.dtype, name="norm")(h).reshape(n, -1, channels)
        q = nn.Dense(channels, dtype=self.dtype, name="query")(q)
        absent = self.param("absent", nn.initializers.normal(1.0), (channels,)).astype(self.dtype)
        embedded = nn.Dense(channels, dtype=self.dtype, name="embed")(tokens)
        embedded = jnp.concatenate([jnp.broadcast_to(absent, (n, 1, channels)), embedded], axis=1)
        kv = nn.Dense(2 * channels, dtype=self.dtype, name="key_value")(embedded)
        mask = jnp.concatenate([jnp.ones((n, 1), bool), mask], axis=1)
        split = (self.heads, channels // self.heads)
        k, v = jnp.split(kv, 2, axis=-1)
        q, k, v = (part.reshape(n, -1, *split) for part in (q, k, v))
        out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :]).reshape(n, -1, channels)
        out = nn.Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(out)
        return h + out.reshape(h.shape)
