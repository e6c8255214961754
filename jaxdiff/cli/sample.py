"""The command `jaxdiff sample`, or `python sample.py`: its tasks each return a message, an image and arrays to save."""

import functools
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from absl import flags

from jaxdiff import data, registry, samplers, xla
from jaxdiff.cli import command, outputs
from jaxdiff.experiment import plots
from jaxdiff.likelihood import Elbo
from jaxdiff.loading import load
from jaxdiff.run import Run, Weights
from jaxdiff.storage import AnyPath, is_bucket, opened, user_path
from jaxdiff.training import summary
from jaxdiff.typing import Count, HostSamples, InputError, Shape, check_whole, checked, first_line, key_of

FLAGS = flags.FLAGS

# Where positions are kept, by their centers as fractions of each axis. The last two axes are the height and the width;
# of a signal or a point, which have a single axis, both are that axis.
_MASKS: dict[str, Callable[[np.ndarray], Any]] = {
    "top": lambda centers: centers[-2:][0] < 0.5,
    "bottom": lambda centers: centers[-2:][0] > 0.5,
    "left": lambda centers: centers[-1] < 0.5,
    "right": lambda centers: centers[-1] > 0.5,
    "border": lambda centers: (abs(centers - 0.5) > 0.25).any(axis=0),
}

_TIMESTEPS = f"One of {', '.join(samplers.timesteps.TIMESTEPS)}, or the times, as in 1,0.7,0; default: the run's."

Output = tuple[str, np.ndarray | None, dict[str, Any]]


def main() -> None:
    """Do the task that the flags describe with a trained model."""
    flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.DEFINE_integer("step", None, "Step of the checkpoint to take; default: the newest.")
    flags.DEFINE_enum("weights", "ema", get_args(Weights), "Averaged weights, raw ones, or the best averaged ones.")
    flags.DEFINE_integer("n", 64, "Number of samples.")
    flags.DEFINE_integer("reconstruct", None, "Task: encode this many images to latents and decode them again.")
    flags.DEFINE_integer("interpolate", None, "Task: draw this many rows, each from one image to another.")
    flags.DEFINE_integer("inpaint", None, "Task: redraw the part of this many images that --mask does not keep.")
    flags.DEFINE_integer("image_to_image", None, "Task: noise this many images to --time and denoise them again.")
    flags.DEFINE_integer("bits_per_dim", None, "Task: measure bits/dim of this many images, as a table and a plot.")
    flags.DEFINE_string(
        "images", "test", "Images for a task: test (of the data set), samples (of the model), A.png,B.png or A.npz."
    )
    known = ", ".join(samplers.SAMPLERS)
    flags.DEFINE_string(
        "sampler",
        None,
        f"One of {known}, as ddim:eta=0.5, or package.module:Name; default: the run's, or ddpm to inpaint.",
    )
    flags.DEFINE_integer("steps", None, "Number of steps; default: the run's.")
    flags.DEFINE_string("timesteps", None, _TIMESTEPS)
    flags.DEFINE_string(
        "label",
        None,
        "Class to draw, for conditional models or with --classifier: 3, or its name; 0,1,2 or all for a row of each; "
        "3+8 or 3:0.7+8:0.3 for a composition.",
    )
    flags.DEFINE_string(
        "cond", None, "Other conditions of the samples: test (those of test examples), or FILE.npz with n of each kind."
    )
    flags.DEFINE_float("guidance", None, "Guidance weight w towards the condition; 0 is the plain conditional model.")
    flags.DEFINE_string("classifier", None, "Folder of a classifier's run to guide by, instead of classifier-free.")
    flags.DEFINE_string("dir", None, "Folder of the data set, for test images; default: the run's, with --trust.")
    flags.DEFINE_bool("trust", False, "Whether to run code that the folders of --workdir and --classifier name.")
    flags.DEFINE_string("mask", "top", f"What --inpaint keeps: {', '.join(_MASKS)}, or a picture: white is kept.")
    flags.DEFINE_float("time", 0.5, "Noise level of --image_to_image, in (0, 1].")
    flags.DEFINE_integer("resample", 5, "How often --inpaint makes each step; more fits the new part better.")
    flags.DEFINE_integer("variants", 7, "Samples per image for --inpaint and --image_to_image.")
    flags.DEFINE_integer("seed", 0, "Random seed.")
    flags.DEFINE_integer("batch", 64, "Number of samples at a time.")
    flags.DEFINE_string("out", "samples.png", "The image to write; the arrays are saved beside it as .npz.")
    flags.DEFINE_bool("overwrite", False, "Whether --out may replace files that this command did not write.")
    usage = f"{command.called('sample')} --workdir=FOLDER [--n=64] [--out=samples.png] [--FLAG=VALUE ...]"
    command.run(_sample, usage=usage, module=__name__, required=lambda: ("workdir",))


def _sample() -> None:
    out, workdir = user_path(FLAGS.out, what="--out"), user_path(FLAGS.workdir, what="--workdir")
    runs = [workdir] if FLAGS.classifier is None else [workdir, user_path(FLAGS.classifier, what="--classifier")]
    masks = [] if FLAGS.mask in _MASKS else [user_path(FLAGS.mask, what="--mask")]
    conds = [] if FLAGS.cond in (None, "test") else [user_path(FLAGS.cond, what="--cond")]
    outputs.check(out, inputs=_image_files() + masks + conds, runs=runs, overwrite=FLAGS.overwrite)
    if not 0 <= FLAGS.seed < 2**32:
        raise InputError(f"--seed = {FLAGS.seed}; must satisfy 0 <= seed < 2^32")
    task = _chosen_task()
    xla.split_cpu(FLAGS.batch)
    _timesteps()  # raises now rather than after loading
    run = load(workdir, step=FLAGS.step, weights=FLAGS.weights, trust=FLAGS.trust)
    _say(f"step {run.step:,} of {workdir}, {run.weights} weights: {summary.network(run.experiment, run.params)}")
    if task and run.experiment.classifies:
        raise InputError(f"--{task} needs a model that draws, but this run is a classifier; leave it out")
    message, image, arrays = _TASKS[task](run) if task else _draw(run)
    if image is None and not plots.has_picture(run.experiment.shape):
        print(f"samples of shape {run.experiment.shape} have no picture; their arrays are in the .npz")
    outputs.write(out, image, arrays)
    print(f"{message}: {'' if image is None else f'{out}, '}{out.with_suffix('.npz')}")


def _chosen_task() -> str | None:
    """The task that is asked for; None to draw samples. Refuses flags that it does not use."""
    tasks = [name for name in _TASKS if FLAGS[name].value is not None]
    if len(tasks) > 1:
        raise InputError(f"--{tasks[0]} and --{tasks[1]} can't be combined; leave one out")
    task = tasks[0] if tasks else None
    for name in ([task] if task else []) + ["n", "variants", "resample"]:
        checked(f"--{name}", check_whole(f"--{name}", FLAGS[name].value), Count)
    inpaints, varies = task == "inpaint", task == "image_to_image"
    unused = {
        "images": not task and f"--{', --'.join(_TASKS)}",
        "dir": (FLAGS.images != "test" if task else FLAGS.cond not in (None, "test")) and "the test split",
        "n": task and f"drawing samples: --{task} gives the number of images",
        "cond": task and "drawing samples",
        "mask": not inpaints and "--inpaint",
        "time": not varies and "--image_to_image",
        "resample": not inpaints and "--inpaint",
        "variants": not (inpaints or varies) and "--inpaint and --image_to_image",
    }
    if task and not (inpaints or varies) and FLAGS.images != "samples":
        drawing = ("sampler", "steps", "timesteps", "label", "guidance", "classifier")
        unused |= dict.fromkeys(drawing, "drawing samples")
    for name, use in unused.items():
        if use and FLAGS[name].present:
            raise InputError(f"--{name} applies only to {use}; leave it out")
    return task


def _options(labels: Any) -> dict[str, Any]:
    """The options of `Run.sample` and its kin."""
    given = {name: FLAGS[name].value for name in ("guidance", "sampler", "steps", "batch")}
    return {"labels": labels, "classifier": _classifier(), "progress": True, "timesteps": _timesteps(), **given}


def _timesteps() -> str | list[float] | None:
    """--timesteps: the name of a rule, or the times themselves."""
    text = FLAGS.timesteps
    if text is None or "," not in text:
        return text
    try:
        return [float(time) for time in text.split(",")]
    except ValueError:
        raise InputError(f"--timesteps = {text!r}; give the name of a rule, or times as in 1,0.7,0") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr)


@functools.cache
def _classifier() -> Run | None:
    return (
        None if FLAGS.classifier is None else load(user_path(FLAGS.classifier, what="--classifier"), trust=FLAGS.trust)
    )


def _labels(run: Run) -> tuple[list[int], dict[int, float] | None]:
    """--label: labels to draw a row of each, or the weights of a composition."""
    text = FLAGS.label
    if text is None:
        return [], None
    names = (_classifier() or run).experiment.spec.class_names or ()
    if text in names:
        return [names.index(text)], None
    if text == "all":
        return list(range(max((_classifier() or run).experiment.classes, 1))), None
    parts = [part.partition(":") for part in text.split("+")]
    try:
        if "+" not in text:
            return [int(label) for label in text.split(",")], None
        weights = {int(label): float(weight) if colon else 1 / len(parts) for label, colon, weight in parts}
    except ValueError:
        weights = {}
    if len(weights) < len(parts):
        raise InputError(
            f"--label = {text!r}; give a number, 0,1,2 or all, or a composition as in 3+8 or "
            f"3:0.7+8:0.3{registry.suggest(text, names) if names else ''}"
        )
    return [], weights


def _one_label(run: Run) -> int | dict[int, float] | None:
    """--label for tasks in which all samples share it."""
    rows, weights = _labels(run)
    if len(rows) > 1:
        raise InputError(f"--label = {FLAGS.label!r}: here all have one label; give one, or a composition as in 3+8")
    return rows[0] if rows else weights


def _draw(run: Run) -> Output:
    if run.experiment.classifies:
        found = run.noisy_accuracy(dir=FLAGS.dir)
        print(found)
        accuracy = plots.accuracy_by_noise(found, classes=run.experiment.classes)
        return f"a classifier of step {run.step}", accuracy, found._asdict()
    rows, weights = _labels(run)
    n = FLAGS.n
    if len(rows) > 1 and n % len(rows):
        if FLAGS["n"].present:
            raise InputError(f"--n = {n} is not divisible by {len(rows)} labels, a row for each; make it a multiple")
        n += -n % len(rows)
    labels: Any = rows[0] if len(rows) == 1 else [label for label in rows for _ in range(n // len(rows))] or weights
    name = FLAGS.sampler or run.config.sampling.sampler
    samplers.make(name)  # refuses a wrong one before the line that says it compiles
    _say(f"compiling, then drawing {n} samples by {name} ...")
    cond = _conditions(run, n)
    if "label" in cond and labels is not None:
        del cond["label"]
    samples = run.sample(key_of(FLAGS.seed), n=n, cond=cond, **_options(labels))
    columns, shown = n // len(rows) if len(rows) > 1 else None, samples
    seen = cond.get("image")
    if seen is not None and (seen := _enlarged(seen, samples.shape)) is not None:
        shown, columns = np.stack([seen, samples], axis=1).reshape(-1, *samples.shape[1:]), 2 * _pairs(n)
    image = plots.draw(shown, columns=columns)
    if isinstance(labels, int) or (labels and weights is None):
        cond["label"] = np.broadcast_to(labels, n)
    return f"{n} samples of step {run.step}", image, {"samples": samples, **cond}


def _conditions(run: Run, n: int) -> dict[str, Any]:
    """The conditions of --cond, for n samples."""
    if FLAGS.cond is None:
        return {}
    if FLAGS.cond == "test":
        return run.test_conditions(n, dir=FLAGS.dir)
    path = user_path(FLAGS.cond, what="--cond")
    try:
        with opened(path) as content, np.load(content, allow_pickle=False) as file:
            found = {kind: file[kind] for kind in file.files}
    except Exception as error:  # NumPy promises no type for what a damaged file raises
        reason = first_line(error)
        raise InputError(f"--cond = {FLAGS.cond} can't be read ({reason}); give test, or a .npz file") from error
    found.pop("samples", None)  # of a file that this command wrote
    known = run.experiment.conditioning.kinds
    for kind, part in found.items():
        if kind.removesuffix("_mask") not in known:
            raise InputError(
                f"--cond = {FLAGS.cond} holds {kind!r}; the conditions of this model are {known or 'none'}"
            )
        if len(part.shape) == 0 or len(part) < n:
            raise InputError(f"--cond = {FLAGS.cond}: {kind} has shape {part.shape}; it needs n = {n} rows")
    if not found:
        raise InputError(f"--cond = {FLAGS.cond} holds no condition; give some of {', '.join(known) or 'none'}")
    return {kind: part[:n] for kind, part in found.items()}


def _enlarged(image: np.ndarray, shape: Shape) -> np.ndarray | None:
    """The images of a condition at the size of samples of this shape, to draw beside them; None if they don't fit."""
    if image.shape[0] != shape[0] or image.ndim != len(shape) or image.shape[-1] not in (1, shape[-1]):
        return None
    for axis in range(1, len(shape) - 1):
        image = np.repeat(image, shape[axis] // image.shape[axis], axis=axis)
    return np.broadcast_to(image, shape)


def _pairs(n: int) -> int:
    """How many pairs of a condition and a sample a row of the picture holds."""
    return max(math.isqrt(n) // 2, 1)


def _images(run: Run, n: int) -> HostSamples:
    """The n images of --images."""
    if FLAGS.images == "samples":
        return run.sample(key_of(FLAGS.seed), n=n, **_options(_one_label(run)))
    if FLAGS.images == "test":
        return run.test_examples(n, dir=FLAGS.dir)
    shape = run.experiment.shape
    channels = shape[-1] if len(shape) == 3 and shape[-1] in (1, 3) else None
    return data.read_files(_image_files(), n=n, channels=channels)


def _image_files() -> list[AnyPath]:
    """The files that --images names; none for the test split and the model's samples."""
    text = FLAGS.images
    if text in ("test", "samples"):
        return []
    whole = user_path(text, what="--images")  # a file's own name may hold a comma
    exists = whole.is_file() if is_bucket(whole) else os.path.isfile(whole)
    return [whole] if exists else [user_path(name, what="--images") for name in text.split(",")]


def _reconstruct(run: Run) -> Output:
    x0 = _images(run, FLAGS.reconstruct)
    x1 = run.encode(x0, batch=FLAGS.batch, progress=True)
    decoded = run.decode(x1, batch=FLAGS.batch, progress=True)
    error = np.abs(decoded - x0)
    print(f"reconstruction error: {np.sqrt((error**2).mean()):.1e} (root mean square), {error.max():.1e} at most")
    image = plots.reconstructions(x0, x1 / float(run.process.schedule.sigma(1.0)), decoded)
    arrays = {"original": x0, "latent": x1, "reconstruction": decoded}
    return f"{len(x0)} originals, latents and reconstructions by step {run.step}", image, arrays


def _interpolate(run: Run) -> Output:
    ends = _images(run, 2 * FLAGS.interpolate)
    rows = run.interpolate(ends[::2], ends[1::2], batch=FLAGS.batch, progress=True)
    image = plots.draw(np.concatenate(rows), columns=rows.shape[1])
    return f"{len(rows)} rows of {rows.shape[1]} by step {run.step}", image, {"samples": rows}


def _inpaint(run: Run) -> Output:
    mask = _mask(run.experiment.shape)
    x0 = _images(run, FLAGS.inpaint)
    draw = functools.partial(run.inpaint, mask=mask, resample=FLAGS.resample)
    hidden = -0.5 if x0.ndim > 3 else np.nan  # a grey in images; a gap in lines
    weight = np.asarray(mask, np.float32)
    kept = lambda x0: np.where(weight == 1, x0, weight * x0 + (1 - weight) * np.float32(hidden))  # noqa: E731
    return _redraw(run, x0, "inpainted", draw, lambda x0: [x0, kept(x0)])


def _mask(shape: Shape) -> np.ndarray:
    """The mask that --mask describes, which broadcasts with a sample of this shape: 1 where it is known."""
    sizes = shape[:-1] or shape or (1,)  # a point is a row of numbers without channels
    if FLAGS.mask in _MASKS:
        centers = (np.indices(sizes) + 0.5) / np.reshape(sizes, (-1, *[1] * len(sizes)))
        mask = _MASKS[FLAGS.mask](centers)
        if mask.all() or not mask.any():
            part = "all" if mask.all() else "nothing"
            raise InputError(
                f"--mask = {FLAGS.mask} keeps {part} of samples of shape {shape}; choose another of {', '.join(_MASKS)}"
            )
    elif Path(FLAGS.mask).suffix:
        height, width = (1, *sizes)[-2:]
        picture = data.read_mask(user_path(FLAGS.mask, what="--mask"), (height, width))
        mask = np.broadcast_to(picture.reshape(sizes[-2:]), sizes)
    else:
        raise InputError(f"--mask = {FLAGS.mask!r}; the known ones are {', '.join(_MASKS)}, or give a picture")
    return mask[..., None] if shape[:-1] else mask


def _image_to_image(run: Run) -> Output:
    if not 0 < FLAGS.time <= 1:
        raise InputError(f"--time = {FLAGS.time}; must satisfy 0 < time <= 1")
    x0, draw = _images(run, FLAGS.image_to_image), functools.partial(run.image_to_image, t=FLAGS.time)
    return _redraw(run, x0, f"from t = {FLAGS.time}", draw, lambda x0: [x0])


def _redraw(run: Run, x0: HostSamples, how: str, draw: Callable[..., Any], show: Callable[..., Any]) -> Output:
    """A row for each image: what shows it, and variants drawn from it."""
    key = jax.random.fold_in(key_of(FLAGS.seed), 1)  # another one than for --images=samples
    drawn = draw(key, np.repeat(x0, FLAGS.variants, axis=0), **_options(_one_label(run)))
    drawn = drawn.reshape(len(x0), -1, *drawn.shape[1:])
    rows = np.concatenate([np.stack(show(x0), 1), drawn], axis=1)
    image = plots.draw(np.concatenate(rows), columns=rows.shape[1])
    return f"{len(x0)} images {how} by step {run.step}", image, {"samples": drawn}


def _bits_per_dim(run: Run) -> Output:
    if run.levels is None:
        raise InputError(
            "--bits_per_dim needs images with a finite number of levels, but this run's data have none; leave it out"
        )
    x0 = _images(run, FLAGS.bits_per_dim)
    terms = run.likelihood_terms(x0, key=key_of(FLAGS.seed), batch=FLAGS.batch, progress=True)
    print(terms.table())
    arrays = {"ode": terms.ode} | ({} if terms.elbo is None else terms.elbo._asdict())
    image = plots.elbo_over_time(terms.elbo) if isinstance(terms.elbo, Elbo) else None
    return f"{len(x0)} images under step {run.step}", image, arrays


_TASKS: dict[str, Callable[[Run], Output]] = {
    "reconstruct": _reconstruct,
    "interpolate": _interpolate,
    "inpaint": _inpaint,
    "image_to_image": _image_to_image,
    "bits_per_dim": _bits_per_dim,
}
