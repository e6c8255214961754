"""Train a frozen classifier of `jaxdiff.evaluation` and write its file of weights.

    python benchmarks/train_classifier.py --data=mnist --dir=DIR --out=jaxdiff/evaluation/mnist.npz
    python benchmarks/train_classifier.py --data=digits --out=jaxdiff/evaluation/digits.npz

It trains on the train split with Adam, each image shifted randomly by up to 2 pixels (digits: 1) each way, and prints
the fields for `jaxdiff.evaluation.CARDS`. The same versions on the same kind of CPU write the same file; other machines
round differently and so train other weights. It takes 70 s of CPU time for MNIST and 15 s for the digits, on a Xeon.
"""

import argparse
import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from results import given_path

from jaxdiff import data
from jaxdiff.evaluation import CARDS, FrozenClassifier
from jaxdiff.storage import replacing

BATCH = 100
EPOCHS = {"mnist": 6, "digits": 60}
SHIFT = {"mnist": 2, "digits": 1}  # pixels


def shifted(key: jax.Array, image: jax.Array, most: int) -> jax.Array:
    """Shift an image randomly by up to `most` pixels each way, filling with black."""
    padded = jnp.pad(image, ((most, most), (most, most), (0, 0)), constant_values=-1.0)
    top, left = jax.random.randint(key, (2,), 0, 2 * most + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def train(name: str, dir: str | None) -> dict:
    card, dataset = CARDS[name], data.load(name, dir=dir)
    images, labels = jnp.asarray(dataset.x), jnp.asarray(dataset.labels)
    per_epoch = len(images) // BATCH
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, EPOCHS[name] * per_epoch))

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(card.model.apply(params, x)[1], y).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, key, indices):
        x = data.normalize(images[indices], dataset.levels)
        x = jax.vmap(shifted, (0, 0, None))(jax.random.split(key, BATCH), x, SHIFT[name])
        value, gradient = jax.value_and_grad(loss)(params, x, labels[indices])
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    key_init, key_order, key_shift = jax.random.split(jax.random.key(0), 3)
    params = card.model.init(key_init, jnp.zeros((1, *card.shape)))
    state = optimizer.init(params)
    for i in range(EPOCHS[name]):
        order = jax.random.permutation(jax.random.fold_in(key_order, i), len(images))
        for j in range(per_epoch):
            key = jax.random.fold_in(key_shift, i * per_epoch + j)
            params, state, value = step(params, state, key, order[j * BATCH : (j + 1) * BATCH])
        if (i + 1) % (EPOCHS[name] // 5 or 1) == 0:
            print(f"epoch {i + 1} of {EPOCHS[name]}: loss of the last batch {value:.4f}", flush=True)
    return params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=tuple(CARDS), required=True)
    parser.add_argument("--dir", help="the folder of MNIST's files; downloaded once by default")
    parser.add_argument("--out", type=given_path, required=True)
    args = parser.parse_args()
    params = train(args.data, args.dir)
    test = data.load(args.data, split="test", dir=args.dir)
    classifier = FrozenClassifier(card=CARDS[args.data], params=params)
    accuracy = classifier.accuracy(data.normalize(test.x, test.levels), test.labels)
    with replacing(args.out) as file:
        np.savez(file, **{name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()})
    content = args.out.read_bytes()
    print(f"{args.out}: {len(content)} bytes\n    sha256={hashlib.sha256(content).hexdigest()!r},")
    print(f"    test_accuracy={accuracy:.4f},  # of {len(test.x)} test images")


if __name__ == "__main__":
    main()
