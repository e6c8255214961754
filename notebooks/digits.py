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
# # Train and sample digits
#
# The trainer takes a config and a folder, and keeps the run in that folder. This notebook trains a small U-Net on
# scikit-learn's handwritten digits of 8×8 pixels, resumes the run, samples from it and fills in missing halves. Then it
# asks classifiers of scikit-learn whether the samples are digits.
#
# It takes about 85 s on 2 cores.

# %%
import dataclasses
import shutil
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import jaxdiff as jd
from jaxdiff.experiment import Config, Data, Every, Loss, Optimizer, Sampling, Train
from jaxdiff.training.loop import train

jd.xla.split_cpu(64)  # on a CPU, each core becomes a device with its own part of a batch of 64

# %% [markdown]
# ## The data
#
# 1,500 images to train and 297 to test, with 17 levels of grey. `normalize` maps the levels to [−1, 1].

# %%
splits = {split: jd.data.load("digits", split=split) for split in ("train", "test")}
images = {split: np.asarray(jd.data.normalize(found.x, found.levels)) for split, found in splits.items()}
labels = {split: found.labels for split, found in splits.items()}
print({split: (x.shape, x.dtype, float(x.min()), float(x.max())) for split, x in images.items()})

# %% [markdown]
# ## A config
#
# A config says everything about a run. It is checked when it is made. This one is `configs/digits.py` with a smaller
# network, without attention, and a quarter of the steps.

# %%
STEPS = 500
config = Config(
    data=Data(name="digits"),
    model={
        "name": "unet",
        "stem": 32,
        "down": (32, 64),
        "middle": (),
        "up": (64, 32),
        "attention": (False, False),
        "layers": 1,
    },
    schedule={"name": "cosine", "num_timesteps": 1000},
    predicts="v",
    loss=Loss(target="eps"),  # the loss of Ho et al. 2020
    optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100, decay="cosine"),
    train=Train(steps=STEPS, batch_size=64, ema_decay=0.995),
    sampling=Sampling(sampler="dpm++2m_sde", steps=20),
    every=Every(log=100, checkpoint=50, sample=STEPS),
)

# %% [markdown]
# ## Training
#
# `train` returns the last state. All else is in the folder: the config, the newest three checkpoints, the losses and a
# picture of samples.

# %%
home = Path(tempfile.mkdtemp())
jax.config.update("jax_compilation_cache_dir", str(home / "cache"))  # saves a second compilation below
state = train(config, home / "run")
print(sorted(path.name for path in (home / "run").iterdir() if "events" not in path.name))
print("checkpoints", sorted(int(path.name) for path in (home / "run" / "checkpoints").iterdir()))

plt.figure(figsize=(4, 4))
plt.imshow(plt.imread(home / "run" / "samples" / f"{STEPS:08d}.png"))
plt.axis("off")
plt.show()

# %% [markdown]
# ## Resuming
#
# A killed run goes on from its newest checkpoint, and nothing is lost. To see it, we copy the folder and remove the
# last checkpoint, as if the run had been killed between the steps 450 and 500. The same call of `train` makes the
# missing 50 steps again. All weights and the state of the optimizer are then the same, bit for bit. (That is promised
# on the same devices with the same versions.)

# %%
shutil.copytree(home / "run", home / "killed")
shutil.rmtree(home / "killed" / "checkpoints" / str(STEPS))
assert jd.load(home / "killed").step == STEPS - 50
resumed = train(config, home / "killed")

before, after = (jax.tree.leaves((s.params, s.ema, s.opt_state)) for s in (state, resumed))
for one, other in zip(before, after, strict=True):
    np.testing.assert_array_equal(one, other, strict=True)
print(f"{len(before)} arrays with {sum(leaf.size for leaf in before):,} numbers are the same")

# %% [markdown]
# Another config is refused in that folder, since it would be another run.

# %%
try:
    train(dataclasses.replace(config, predicts="eps"), home / "run")
except jd.InputError as error:
    print(f"refused: {error}")
else:
    raise AssertionError("another config was accepted")

# %% [markdown]
# ## Sampling
#
# `jd.load` returns the model with its averaged weights. Sample i depends on `fold_in(key, i)` alone, so that the first
# samples are the same however many are drawn.

# %%
run = jd.load(home / "run")
n = len(images["test"])
samples = run.sample(jax.random.key(0), n=n, progress=True)
again = run.sample(jax.random.key(0), n=64)
np.testing.assert_allclose(again, samples[:64], atol=1e-4)  # batches of one size: rounding at most


def show(*rows):
    _, axes = plt.subplots(len(rows), len(rows[0]), figsize=(0.6 * len(rows[0]), 0.65 * len(rows)))
    for axis, image in zip(axes.ravel(), np.concatenate(rows), strict=True):
        axis.imshow(image[..., 0], cmap="gray", vmin=-1, vmax=1)
        axis.axis("off")
    plt.show()


show(*(samples[16 * i : 16 * i + 16] for i in range(4)))

# %% [markdown]
# ## Are they digits?
#
# The Fréchet distance compares the features of images with those of the train split, by a small classifier that is
# shipped with jaxdiff. We compare four sets of 297 images: from the train split, the whole test split, the samples, and
# images of which every pixel comes from another real image. The last ones have the right grey levels at every pixel,
# and nothing else.
#
# The digits of the test split were written by other people. Hence its distance is larger than that of good samples.

# %%
rng = np.random.default_rng(0)


def shuffled(x):
    return rng.permuted(x, axis=0)  # each pixel on its own


sets = {
    "train split": rng.permutation(images["train"])[:n],
    "test split": images["test"],
    "samples": np.clip(samples, -1, 1),
    "shuffled": shuffled(images["train"])[:n],
}
reference = jd.evaluation.reference("digits")
distances = {name: reference.distance(x) for name, x in sets.items()}
for name, found in distances.items():
    print(f"{name:>12}: {found.value:6.1f} ± {found.standard_error:.1f}")

# %% [markdown]
# We measured 16.3 for the samples. A run on another machine differs from ours by rounding, which training amplifies. So
# we allow twice as much.

# %%
assert distances["samples"].value < 36
assert distances["samples"].value < distances["shuffled"].value / 3

# %% [markdown]
# For a second opinion we ask scikit-learn. A nearest-neighbour classifier learns to tell the train split from shuffled
# images. It takes the test split for real, and the shuffled images mostly not. How many of the samples does it take for
# real?

# %%
flat = {name: x.reshape(n, -1) for name, x in sets.items()}
real = images["train"].reshape(-1, 64)
fake = np.concatenate([shuffled(real) for _ in range(3)])
judge = KNeighborsClassifier(1).fit(np.concatenate([real, fake]), np.repeat([1, 0], [len(real), len(fake)]))
taken = {name: judge.predict(flat[name]).mean() for name in ("test split", "samples", "shuffled")}
print({name: f"{share:.1%}" for name, share in taken.items()})
assert taken["test split"] > 0.95
assert taken["samples"] > 0.85
assert taken["shuffled"] < 0.3

# %% [markdown]
# Are the samples copies of the train split? We compare the distance to the nearest image of the train split with that
# of the test split, which has no copies. And do all ten digits occur? The labels are those of the 3 nearest neighbours,
# which are right for 96 % of the test split.

# %%
nearest = NearestNeighbors(n_neighbors=1).fit(real)
gaps = {name: nearest.kneighbors(x)[0] for name, x in flat.items()}
for name in ("test split", "samples", "shuffled"):
    print(f"{name:>12}: nearest at {gaps[name].mean():.2f} on average, {gaps[name].min():.2f} at least")
assert gaps["samples"].min() > 0.5 * gaps["test split"].min()
assert gaps["samples"].mean() < (gaps["test split"].mean() + gaps["shuffled"].mean()) / 2

digit = KNeighborsClassifier(3).fit(real, labels["train"])
print(f"right on the test split: {digit.score(flat['test split'], labels['test']):.1%}")
counts = np.bincount(digit.predict(flat["samples"]), minlength=10)
print("samples of the digits 0 to 9:", counts)
assert counts.min() >= 5

# %% [markdown]
# ## Inpainting
#
# `run.inpaint` keeps a part of an image and draws the rest. Here it draws the bottom halves of test images. The figure
# shows what is known, the result, and the whole test image.

# %%
m = 128
known, right = images["test"][:m], labels["test"][:m]
mask = np.zeros((8, 8, 1), bool)
mask[:4] = True  # True where it is known
filled = run.inpaint(jax.random.key(1), known, mask)
np.testing.assert_array_equal(np.where(mask, filled, 0), np.where(mask, known, 0))  # the top half is kept exactly
show(np.where(mask, known, 0)[:16], filled[:16], known[:16])

# %% [markdown]
# The new half should fit the known one. For comparison we put the bottom half of another test image below each top
# half. The classifier of labels then says how many of the images still show the digit of their top half. Many top
# halves fit several digits, so that it can't be all of them.

# %%
swapped = np.where(mask, known, np.roll(known, 1, axis=0))
share = {}
for name, x in {"whole": known, "inpainted": filled, "other bottom half": swapped}.items():
    share[name] = (digit.predict(x.reshape(m, -1)) == right).mean()
    print(f"{name:>18}: {share[name]:.1%} ± {np.sqrt(share[name] * (1 - share[name]) / m):.1%}")
assert share["inpainted"] > share["other bottom half"] + 0.1

# %%
shutil.rmtree(home)  # the folder of the run; keep it to sample from it later

# %% [markdown]
# ## Read next
#
# - `docs/guides/train.md` and `docs/guides/sample.md`: the commands `train.py` and `sample.py`, which do the same.
# - `docs/guides/evaluate.md`: how to read a Fréchet distance.
# - `guidance.py`: the digits with labels.
# - Lugmayr et al. 2022, "RePaint: Inpainting using Denoising Diffusion Probabilistic Models".
