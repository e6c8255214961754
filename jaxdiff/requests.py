"""What `sample.py` can be asked for: each makes a picture, arrays to keep beside it, and a line about it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Array, Key

from jaxdiff import data, plots, run, samplers
from jaxdiff.bounds import Bound

FLAGS = flags.FLAGS

# What is kept, of pixels whose middles are at these shares of the height and the width.
_MASKS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "top": lambda y, x: y < 0.5,
    "bottom": lambda y, x: y > 0.5,
    "left": lambda y, x: x < 0.5,
    "right": lambda y, x: x > 0.5,
    "border": lambda y, x: (abs(y - 0.5) > 0.25) | (abs(x - 0.5) > 0.25),
}

Made = tuple[str, np.ndarray | None, dict[str, Any]]  # what to say of it, a picture, and arrays to keep beside it


def define_flags() -> None:
    """Those of `sample.py`."""
    flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.DEFINE_integer("n", 64, "How many samples.")
    flags.DEFINE_integer("reconstruct", None, "Instead: encode so many images to latents, and decode them again.")
    flags.DEFINE_integer("interpolate", None, "Instead: so many rows, each from one image to another by their latents.")
    flags.DEFINE_integer("inpaint", None, "Instead: draw anew the half of so many images that --mask does not keep.")
    flags.DEFINE_integer("vary", None, "Instead: noise so many images to --time, and draw them anew from there.")
    flags.DEFINE_integer("bits_per_dim", None, "Instead: what so many images cost under the model, as table and plot.")
    flags.DEFINE_string(
        "images",
        "test",
        "For these: test, the first of the data set's test split; samples of the model; or files, A.png,B.png or "
        "A.npz.",
    )
    flags.DEFINE_string(
        "sampler",
        None,
        f"One of {', '.join(samplers.REGISTRY)}, with options as in ddim:eta=0.5; default: the run's, "
        "and ddpm for --inpaint.",
    )
    flags.DEFINE_integer("steps", None, "The number of jumps; default: the run's.")
    flags.DEFINE_string("grid", None, f"One of {', '.join(samplers.grids.REGISTRY)}; default: the run's.")
    flags.DEFINE_string(
        "label",
        None,
        "The class to draw, of a conditional model or with --classifier: 3; 0,1,2 or all, a row for each; 3+8 or "
        "3:0.7+8:0.3, a blend.",
    )
    flags.DEFINE_float("guidance", None, "Towards the label: w; 0 is the plain conditional model.")
    flags.DEFINE_string("classifier", None, "The folder of a classifier's run to guide by; else it is classifier-free.")
    flags.DEFINE_string("mask", "top", f"What --inpaint keeps: {', '.join(_MASKS)}, or a PNG, white where it keeps.")
    flags.DEFINE_float("time", 0.5, "How far --vary goes, in (0, 1].")
    flags.DEFINE_integer(
        "resample", 5, "How often --inpaint makes each jump; more fits the new part better to the old."
    )
    flags.DEFINE_integer("variants", 7, "How many --inpaint and --vary draw of each image.")
    flags.DEFINE_integer("seed", 0, "The same seed gives the same samples.")
    flags.DEFINE_integer("batch", 64, "How many at a time.")
    flags.DEFINE_string("out", "samples.png", "The picture; the samples themselves go beside it, as .npz.")


def make(loaded: run.Run) -> Made:
    """What the flags ask for, of a run."""
    for name, maker in _INSTEAD.items():
        if FLAGS[name].value is not None:
            if loaded.experiment.classifies:
                raise ValueError(f"--{name} needs a model that draws, but this run is of a classifier; leave it out")
            return maker(loaded)
    return _samples(loaded)


def _options(loaded: run.Run, labels: Any) -> dict[str, Any]:
    """How samples are drawn, for the methods of a run that draw."""
    return {
        "labels": labels,
        "guidance": FLAGS.guidance,
        "classifier": _classifier(),
        "sampler": FLAGS.sampler,
        "steps": FLAGS.steps,
        "grid": FLAGS.grid,
        "batch": FLAGS.batch,
        "progress": True,
    }


@functools.cache
def _classifier() -> run.Run | None:
    return None if FLAGS.classifier is None else run.load(FLAGS.classifier)


def _rows_and_blend(loaded: run.Run) -> tuple[list[int], dict[int, float] | None]:
    """What --label says: a row of the picture for each of some labels, or a blend."""
    text, blend = FLAGS.label, None
    if text is None:
        return [], None
    classes = (_classifier() or loaded).experiment.classes
    try:
        if "+" not in text:
            return list(range(max(classes, 1))) if text == "all" else [int(label) for label in text.split(",")], None
        parts = [part.partition(":") for part in text.split("+")]
        blend = {int(label): float(weight) if colon else 1 / len(parts) for label, colon, weight in parts}
    except ValueError:
        blend = None
    if blend is None or len(blend) < len(parts):
        raise ValueError(f"--label = {text!r}; give a number, 0,1,2 or all, or a blend as in 3+8 or 3:0.7+8:0.3")
    return [], blend


def _one_label(loaded: run.Run) -> int | dict[int, float] | None:
    """--label where every sample has the same."""
    rows, blend = _rows_and_blend(loaded)
    if len(rows) > 1:
        raise ValueError(f"--label = {FLAGS.label!r}: here all have one label; give one, or a blend as in 3+8")
    return rows[0] if rows else blend


def _samples(loaded: run.Run) -> Made:
    if loaded.experiment.classifies:
        found = loaded.noisy_accuracy()
        print(found)
        picture = plots.accuracy_by_noise(found, classes=loaded.experiment.classes)
        return f"a classifier of step {loaded.step}", picture, found._asdict()
    rows, blend = _rows_and_blend(loaded)
    n = FLAGS.n
    if len(rows) > 1 and n % len(rows):
        if FLAGS["n"].present:
            raise ValueError(f"--n = {n} is not divisible by {len(rows)} labels, a row for each; make it a multiple")
        n += -n % len(rows)
    each = [label for label in rows for _ in range(n // len(rows))]
    labels = rows[0] if len(rows) == 1 else each or blend
    samples = loaded.sample(jax.random.key(FLAGS.seed), n=n, **_options(loaded, labels))
    if samples.ndim != 4:
        return f"{n} samples of step {loaded.step}", plots.scatter(samples), {"samples": samples}
    picture = plots.image_grid(samples, columns=n // len(rows) if len(rows) > 1 else None)
    return f"{n} samples of step {loaded.step}", picture, {"samples": samples}


def _images(loaded: run.Run, n: int) -> np.ndarray:
    """The n images that --images names."""
    if FLAGS.images == "samples":
        return loaded.sample(jax.random.key(FLAGS.seed), n=n, **_options(loaded, _one_label(loaded)))
    if FLAGS.images == "test":
        return loaded.test_examples(n)
    return data.read_files(FLAGS.images.split(","), n=n)


def _reconstruct(loaded: run.Run) -> Made:
    x0 = _images(loaded, FLAGS.reconstruct)
    x1 = loaded.encode(x0, batch=FLAGS.batch, progress=True)
    again = loaded.decode(x1, batch=FLAGS.batch, progress=True)
    error = np.abs(again - x0)
    print(f"reconstruction error: {np.sqrt((error**2).mean()):.1e} (root mean square), {error.max():.1e} at most")
    picture = plots.reconstructions(x0, x1 / float(loaded.process.schedule.sigma(1.0)), again)
    arrays = {"original": x0, "latent": x1, "reconstruction": again}
    return f"{len(x0)} originals, latents and reconstructions by step {loaded.step}", picture, arrays


def _interpolate(loaded: run.Run) -> Made:
    if len(shape := loaded.experiment.shape) != 3:
        raise ValueError(f"--interpolate draws rows of images, but this run's samples have shape {shape}; leave it out")
    ends = _images(loaded, 2 * FLAGS.interpolate)
    rows = loaded.interpolate(ends[::2], ends[1::2], batch=FLAGS.batch, progress=True)
    picture = plots.image_grid(np.concatenate(rows), columns=rows.shape[1])
    return f"{len(rows)} rows of {rows.shape[1]} by step {loaded.step}", picture, {"samples": rows}


def _inpaint(loaded: run.Run) -> Made:
    x0 = _images(loaded, FLAGS.inpaint)
    mask = _mask(loaded.experiment.shape)
    again = np.repeat(x0, FLAGS.variants, axis=0)
    options = _options(loaded, _one_label(loaded))
    drawn = loaded.inpaint(_anew(), again, mask, resample=FLAGS.resample, **options)
    masked = np.where(mask[..., None], x0, -0.5)
    return _rows(f"{len(x0)} images inpainted by step {loaded.step}", [x0, masked], drawn)


def _vary(loaded: run.Run) -> Made:
    x0 = _images(loaded, FLAGS.vary)
    again = np.repeat(x0, FLAGS.variants, axis=0)
    drawn = loaded.vary(_anew(), again, t=FLAGS.time, **_options(loaded, _one_label(loaded)))
    return _rows(f"{len(x0)} images from t = {FLAGS.time} by step {loaded.step}", [x0], drawn)


def _anew() -> Key[Array, ""]:
    """A key that has not drawn the images of --images=samples."""
    return jax.random.fold_in(jax.random.key(FLAGS.seed), 1)


def _rows(said: str, first: list[np.ndarray], drawn: np.ndarray) -> Made:
    """A row for each image: what it was, and what was drawn of it."""
    drawn = drawn.reshape(len(first[0]), -1, *drawn.shape[1:])
    rows = np.concatenate([np.stack(first, 1), drawn], axis=1)
    return said, plots.image_grid(np.concatenate(rows), columns=rows.shape[1]), {"samples": drawn}


def _mask(shape: tuple[int, ...]) -> np.ndarray:
    """Where --mask keeps pixels."""
    if len(shape) != 3:
        raise ValueError(f"--inpaint draws images, but this run's samples have shape {shape}; leave it out")
    height, width, _ = shape
    if FLAGS.mask not in _MASKS:
        if not FLAGS.mask.endswith(".png"):
            raise ValueError(f"--mask = {FLAGS.mask!r}; the known ones are {', '.join(_MASKS)}, or give a PNG")
        return data.read_mask(FLAGS.mask, (height, width))
    row, column = np.mgrid[:height, :width]
    return _MASKS[FLAGS.mask]((row + 0.5) / height, (column + 0.5) / width)


def _bits_per_dim(loaded: run.Run) -> Made:
    x0 = _images(loaded, FLAGS.bits_per_dim)
    costs = loaded.costs(x0, key=jax.random.key(FLAGS.seed), batch=FLAGS.batch, progress=True)
    print(costs.table())
    said, ode = f"{len(x0)} images under step {loaded.step}", {"ode": costs.ode}
    if costs.bound is None:
        return said, None, ode
    picture = plots.bound_over_time(costs.bound) if isinstance(costs.bound, Bound) else None
    return said, picture, ode | costs.bound._asdict()


_INSTEAD: dict[str, Callable[[run.Run], Made]] = {
    "reconstruct": _reconstruct,
    "interpolate": _interpolate,
    "inpaint": _inpaint,
    "vary": _vary,
    "bits_per_dim": _bits_per_dim,
}


def check_flags() -> None:
    """Refuses flags that say nothing about what is made."""
    instead = [name for name in _INSTEAD if FLAGS[name].value is not None]
    if len(instead) > 1:
        raise ValueError(f"--{instead[0]} and --{instead[1]} make one picture each; leave one out")
    for name in instead:
        if FLAGS.get_flag_value(name, 0) < 1:
            raise ValueError(f"--{name} = {FLAGS[name].value}; it must be at least 1")
    anew = bool({"inpaint", "vary"} & {*instead})
    draws = not instead or anew or FLAGS.images == "samples"
    drawing = ("sampler", "steps", "grid", "label", "guidance", "classifier")
    unread = {
        "images": "" if instead else f"with --{', --'.join(_INSTEAD)} only",
        "n": f"without --{instead[0]}, which has its own number" if instead else "",
        "mask": "" if "inpaint" in instead else "with --inpaint only",
        "time": "" if "vary" in instead else "with --vary only",
        "resample": "" if "inpaint" in instead else "with --inpaint only",
        "variants": "" if anew else "with --inpaint and --vary only",
        **dict.fromkeys(drawing, "" if draws else "to draw samples only"),
    }
    for name, why in unread.items():
        if why and FLAGS[name].present:
            raise ValueError(f"--{name} is read {why}; leave it out")
