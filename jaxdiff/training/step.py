"""The training state and the compiled step.

    g  = clip(∇ mean_i w_i L(x_i; θ))     averaged over `accumulate` micro-batches; w_i = 1 unless times are drawn by
                                          the history of losses
    θ ← θ + u(g)                          u is the optimizer, AdamW by default
    θ̄ ← d θ̄ + (1 − d) θ,              d = min(ema_decay, (1 + n)/(10 + n)) at step n

Sampling uses the average θ̄ (Song & Ermon 2020, "Improved Techniques for Training Score-Based Generative Models"). The
warm-up of d, from TensorFlow's `ExponentialMovingAverage(num_updates)`, makes it forget its start early.

On CPU, XLA runs the weight gradient of a convolution 40 to 70 times slower inside a loop than outside (measured:
128×8×8×64 with 3×3×64, 700 to 1300 ms against 17), as the loop leaves it in a layout without fast code. So on CPU
micro-batches are unrolled, and a convolutional network should run one step per dispatch, which has no loop.

The randomness of step n is fold_in(key, n): a resumed run draws what an uninterrupted one would have drawn.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxdiff import data, xla
from jaxdiff.experiment import Experiment
from jaxdiff.experiment.optimizers import all_but_schedule
from jaxdiff.experiment.transfer import path_of
from jaxdiff.losses.time_sampling import LossHistory, first_history
from jaxdiff.training import learned_schedule
from jaxdiff.training.batches import Examples, Resident
from jaxdiff.training.sharding import AXES, batch_spec, gather, mean_over_devices, state_shardings
from jaxdiff.typing import PyTree, RandomKey, Scalar, key_of


class State(NamedTuple):
    """Everything that training keeps from step to step."""

    step: Int[Array, ""]  # optimizer steps done
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    key: RandomKey
    history: LossHistory | None = None  # the losses at each time, if times are drawn by them

    def items(self) -> dict[str, PyTree]:
        """Return the items of a checkpoint: the averaged weights, which sampling needs, and the rest."""
        training = {name: part for name, part in self._asdict().items() if name != "ema" and part is not None}
        return {"weights": self.ema, "training": training}

    @classmethod
    def from_items(cls, items: dict[str, PyTree]) -> "State":
        """Return the state of a checkpoint."""
        return cls(ema=items["weights"], **items["training"])


class Metrics(NamedTuple):
    """The metrics of each step of a dispatch; float32."""

    loss: Float[Array, " steps"]  # weighted mean
    grad_norm: Float[Array, " steps"]  # before clipping
    learning_rate: Float[Array, " steps"]

    def ready(self) -> bool:
        """Return whether the devices have computed them."""
        return all(value.is_ready() for value in self)  # type: ignore[attr-defined]


Batch = Examples | Int[Array, "steps batch"]
StepFunction = Callable[[State, Resident | None, Batch], tuple[State, Metrics]]


def make_optimizer(experiment: Experiment) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer of the config. A learned schedule is neither decayed nor part of the clipped norm."""
    config = experiment.config
    return config.optimizer.build(config.train.steps, all_but_schedule if experiment.learns_schedule else None)


def init_state(experiment: Experiment, taken: Mapping[str, Array] | None = None) -> State:
    """Return the state before the first step, from the config's seed and the weights taken from another run, by path.

    The average starts at these weights; the state of the optimizer is that of a new run.
    """
    train, weights = experiment.config.train, taken or {}
    key_init, key = jax.random.split(key_of(train.seed))
    params = jax.tree.map_with_path(lambda path, leaf: weights.get(path_of(path), leaf), experiment.init(key_init))
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),  # its own memory: both are donated to the step
        opt_state=make_optimizer(experiment).init(params),
        key=key,
        history=first_history(experiment.config.loss.times, experiment.schedule),
    )


def abstract_state(experiment: Experiment, mesh: Mesh) -> State:
    """Return the shapes, dtypes and shardings of the state."""
    shapes = jax.eval_shape(partial(init_state, experiment))
    return jax.tree.map(lambda leaf, sharding: leaf.update(sharding=sharding), shapes, state_shardings(mesh, shapes))


def gradient(
    experiment: Experiment, params: PyTree, batch: tuple[Any, ...]
) -> tuple[Scalar, PyTree, Float[Array, " n"]]:
    """Return the mean loss of a batch (x_0, cond, t, keys, weights), its gradient and the loss of each example."""
    x0, cond, t, keys, weights = batch
    if experiment.learns_schedule:  # whose times are uniform: the weights are 1
        return learned_schedule.gradient(experiment.loss, params, x0, t, keys, cond)

    def mean(params: PyTree) -> tuple[Scalar, Float[Array, " n"]]:
        losses = experiment.loss(params, x0, t, keys, cond)
        return jnp.mean(weights * losses), losses

    (loss, losses), grads = jax.value_and_grad(mean, has_aux=True)(params)
    return loss, grads, losses


def update(experiment: Experiment, state: State, loss: Scalar, grads: PyTree) -> tuple[State, Metrics]:
    """Apply one optimizer step and one step of the average."""
    config = experiment.config
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes
        updates, opt_state = make_optimizer(experiment).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(config.train.ema_decay, (1 + state.step) / (10 + state.step))
        metrics = Metrics(
            loss=loss,
            grad_norm=optax.tree.norm(grads),
            learning_rate=jnp.asarray(config.optimizer.rate(config.train.steps)(state.step), jnp.float32),
        )
        ema = optax.incremental_update(params, state.ema, 1 - decay)
        return state._replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state), metrics


def make_step(experiment: Experiment, mesh: Mesh, abstract: State) -> StepFunction:
    """Return the compiled steps `(state, resident, batch) -> (state, metrics)`, one for each row of `batch`.

    `batch` holds examples or, if the data set is `resident` on the devices, their indices; its leaves have the leading
    axes (steps, examples). The state is donated.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    spread_gradient = _spread_gradient(experiment, mesh, abstract.params)

    def one_step(resident: Resident | None, state: State, chosen: Any) -> tuple[State, Metrics]:
        examples = chosen if resident is None else resident.take(chosen)
        x0 = data.normalize(examples.x, experiment.levels)
        drawn = experiment.draw(jax.random.fold_in(state.key, state.step), len(x0), state.history)
        loss, grads, losses = spread_gradient(state.params, (x0, experiment.condition(examples), *drawn))
        if state.history is None:
            return update(experiment, state, loss, grads)
        # Every device sees the whole batch: all draw from the same history.
        seen = jax.lax.with_sharding_constraint((drawn[0], losses), everywhere)
        return update(experiment, state._replace(history=state.history.update(*seen)), loss, grads)

    def steps(state: State, resident: Resident | None, batch: Batch) -> tuple[State, Metrics]:
        return _scan(partial(one_step, resident), state, batch, unroll=len(jax.tree.leaves(batch)[0]) == 1)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract), everywhere
    options = xla.compiler_options(level=1, mesh=mesh)
    return jax.jit(steps, donate_argnums=0, out_shardings=shardings, compiler_options=options)


def _spread_gradient(experiment: Experiment, mesh: Mesh, params: PyTree) -> Callable[..., Any]:
    """Return `gradient` as a function of weights and a batch that are spread over the mesh, one micro-batch at a time.

    Each device computes the gradient of its own examples, and they meet as `jaxdiff.training.sharding` says.
    """
    micro = experiment.config.train.accumulate
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, params)
    unroll = mesh.devices.flat[0].platform == "cpu"

    def local(shards: PyTree, batch: tuple[Any, ...]) -> tuple[Scalar, PyTree, Float[Array, " n"]]:
        whole = gather(shards, specs, mesh)
        # Example i goes to micro-batch i mod `micro`.
        parts = jax.tree.map(lambda leaf: leaf.reshape(-1, micro, *leaf.shape[1:]).swapaxes(0, 1), batch)

        def add(total: PyTree, part: tuple[Any, ...]) -> tuple[PyTree, Array]:
            *found, losses = gradient(experiment, whole, part)
            return jax.tree.map(jnp.add, total, tuple(found)), losses

        if micro == 1:
            loss, grads, losses = gradient(experiment, whole, batch)
        else:
            zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, whole))
            total, losses = _scan(add, zero, parts, unroll=unroll)
            loss, grads = jax.tree.map(lambda leaf: leaf / micro, total)
            losses = losses.T.reshape(-1)
        return jax.lax.pmean(loss, AXES), mean_over_devices(grads, specs, mesh), losses

    spread = batch_spec()
    return jax.shard_map(
        local, mesh=mesh, in_specs=(specs, spread), out_specs=(PartitionSpec(), specs, spread), check_vma=False
    )


def _scan(f: Callable[..., Any], carry: PyTree, xs: PyTree, *, unroll: bool) -> tuple[PyTree, PyTree]:
    """`lax.scan`, or the same without a loop in the program; `lax.scan(unroll=True)` leaves one."""
    if not unroll:
        return jax.lax.scan(f, carry, xs)
    outputs = []
    for i in range(len(jax.tree.leaves(xs)[0])):
        carry, output = f(carry, jax.tree.map(lambda leaf, i=i: leaf[i], xs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)
