"""Attention against its definition, the U-Net against its PyTorch twin, the MLP on a swiss roll."""

import math
import re
import zlib
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.datasets import make_swiss_roll

from jaxdiff import models
from jaxdiff.models import MLP, UNet, attend, attention, layers
from jaxdiff.typing import InputError

GOLDEN = Path(__file__).parent / "golden" / "ddpm_unet.npz"


def plain(q, k, v):
    scores = jnp.einsum("...thd,...shd->...hts", q, k) / math.sqrt(q.shape[-1])
    return jnp.einsum("...hts,...shd->...thd", jax.nn.softmax(scores, axis=-1), v)


def numpy_attention(q, k, v):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("...thd,...shd->...hts", q, k) / math.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("...hts,...shd->...thd", weights, v)


def qkv(shape, *, keys=None, scale=1.0):
    kv_shape = (*shape[:-3], keys or shape[-3], *shape[-2:])
    rngs = jax.random.split(jax.random.key(math.prod(shape)), 3)
    shapes = (shape, kv_shape, kv_shape)
    return [scale * jax.random.normal(r, s) for r, s in zip(rngs, shapes, strict=True)]


def close(actual, desired, tol=2e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            np.asarray(x, np.float64), y, rtol=0, atol=tol * float(np.abs(y).max())
        ),
        actual,
        desired,
    )


SHAPES = [(16, 4, 8), (1, 1, 1, 1), (3, 2, 7, 3, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keys", [None, 5])
def test_attention_is_softmax_attention(shape, keys):
    q, k, v = qkv(shape, keys=keys)
    close(jax.jit(attend)(q, k, v), numpy_attention(q, k, v))


def test_attention_with_scores_that_overflow_exp():
    q, k, v = qkv((2, 9, 2, 4), scale=40.0)
    close(attend(q, k, v), numpy_attention(q, k, v), 1e-5)
    gradient = jax.jit(jax.grad(lambda *x: attend(*x).sum(), argnums=(0, 1, 2)))(q, k, v)
    assert all(jnp.isfinite(g).all() for g in gradient)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_gradient(shape):
    q, k, v = qkv(shape, keys=6)
    g = jax.random.normal(jax.random.key(7), q.shape)
    gradients = [
        jax.jit(jax.grad(lambda *x, f=f: (f(*x) * g).sum(), argnums=(0, 1, 2)))(q, k, v)
        for f in (attend, plain, jax.checkpoint(attend))
    ]
    close(gradients[0], jax.tree.map(lambda x: np.asarray(x, np.float64), gradients[1]), 5e-6)
    close(gradients[2], gradients[0])


@pytest.mark.parametrize("mapped", [(1, 0, 2), (0, None, None)])
def test_attention_under_vmap(mapped):
    q, k, v = qkv((4, 4, 4, 2, 3))
    args = [x if axis is not None else x[0] for x, axis in zip((q, k, v), mapped, strict=True)]
    mapping = {"in_axes": mapped}
    close(jax.jit(jax.vmap(attend, **mapping))(*args), jax.jit(jax.vmap(plain, **mapping))(*args))
    for f in (
        lambda f: jax.grad(lambda *x: jnp.sin(jax.vmap(f, **mapping)(*x)).sum(), (0, 1, 2)),
        lambda f: jax.vmap(jax.grad(lambda *x: jnp.sin(f(*x)).sum(), (0, 1, 2)), **mapping),
    ):
        close(jax.jit(f(attend))(*args), jax.jit(f(plain))(*args), 1e-5)


def test_attention_under_two_vmaps_in_any_grouping(monkeypatch):
    q, k, v = qkv((3, 4, 5, 2, 3))
    expected = plain(q, k, v)
    for cache in (1, 4 * 5 * 5 * 2 * 3, 2**22):
        monkeypatch.setattr(attention, "_CPU_BYTES", cache)
        close(jax.jit(lambda *x: jax.vmap(jax.vmap(attend))(*x))(q, k, v), expected)


def test_attention_stays_a_loop_under_vmap():
    q, k, v = qkv((256, 256, 4, 8))
    loss = jax.vmap(jax.value_and_grad(lambda *x: attend(*x).sum(), (0, 1, 2)))
    memory = jax.jit(loss).lower(q, k, v).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 256 * 4 * 256 * 256 * 4 / 2


def test_attention_on_eight_devices():
    q, k, v = qkv((16, 9, 2, 4))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put((q, k, v), NamedSharding(mesh, PartitionSpec("data")))
    gradient = jax.jit(jax.grad(lambda *x: jnp.sin(jax.vmap(attend)(*x)).sum(), argnums=(0, 1, 2)))
    close(gradient(*spread), gradient(q, k, v))
    program = gradient.lower(*spread).compile().as_text()
    assert not re.findall("all-gather|all-to-all|collective-permute|all-reduce", program), "each has its own examples"


def test_attention_in_bfloat16():
    q, k, v = (x.astype(jnp.bfloat16) for x in qkv((2, 16, 4, 8)))
    out = attend(q, k, v)
    assert out.dtype == jnp.bfloat16
    close(out, numpy_attention(q, k, v), 2**-8)


def test_attention_has_derivatives_of_any_order():
    """Forward mode, and each mode over the other, against the plain form."""
    args, tangents = (tuple(qkv((2, 6, 2, 4), keys=5, scale=scale)) for scale in (1.0, 0.7))

    def forward(f):
        return lambda *x: jax.jvp(f, x, tangents)[1]

    def reverse(f):
        return jax.grad(lambda *x: jnp.sin(f(*x)).sum(), argnums=(0, 1, 2))

    def some(f):  # one derivative of three: transposing meets arrays that are not linear
        return jax.grad(lambda k: jnp.sin(f(args[0], k, args[2])).sum())

    for modes in (forward, lambda f: forward(forward(f)), lambda f: reverse(forward(f)), lambda f: forward(reverse(f))):
        close(jax.jit(modes(attend))(*args), jax.jit(modes(plain))(*args), 1e-5)
    close(some(attend)(args[1]), some(plain)(args[1]), 1e-5)


@pytest.mark.parametrize("kind", ["forward", "jvp", "vjp"])
@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "rocm"])
def test_attention_is_lowered_for_every_platform_from_one_process(kind, platform):
    """What runs elsewhere runs here: the forms of the other platforms are ordinary JAX, but for cuDNN."""
    args = tuple(qkv((2, 128, 2, 4)))
    functions = {
        "forward": lambda f: f,
        "jvp": lambda f: lambda *x: jax.jvp(f, x, x)[1],
        "vjp": lambda f: jax.grad(lambda *x: (f(*x) ** 2).sum(), argnums=(0, 1, 2)),
    }
    function = functions[kind]
    assert jax.export.export(jax.jit(function(attend)), platforms=[platform])(*args).mlir_module()
    q, k, v = args
    inputs = {"forward": args, "jvp": (*args, *args), "vjp": (*args, 2 * plain(*args))}[kind]
    if kind != "forward":
        out, log_total = attention._PLAIN.forward(q, k, v)
        inputs = (*inputs[:3], out, log_total, *inputs[3:])
    on = attention._PLATFORMS[None if platform == "rocm" else platform]
    found = on(kind, 1, *inputs)
    expected = function(plain)(*args)
    close(found[0] if kind != "vjp" else tuple(found), expected, 1e-5)


@pytest.mark.parametrize("sharded", [False, True])
def test_attention_loops_on_a_tpu_over_groups_that_fit(monkeypatch, sharded):
    monkeypatch.setattr(attention, "_TPU_BYTES", 2 * 4 * 2 * 128 * 128)
    q, k, v = qkv((8, 128, 2, 4))
    (found, _), devices = attention._on_tpu("forward", 4 if sharded else 1, q, k, v), 4 if sharded else 1
    close(found, plain(q, k, v))
    program = jax.make_jaxpr(lambda *x: attention._on_tpu("forward", devices, *x))(q, k, v)
    (loop,) = [equation for equation in program.eqns if equation.primitive.name == "scan"] or [None]
    assert (loop is None) == sharded  # 2 examples fit: each of 4 devices has no more
    assert loop is None or loop.params["length"] == 4


@pytest.mark.parametrize(
    ("fits", "shape", "keys", "dtype"),
    [
        (True, (2, 784, 4, 16), 784, jnp.bfloat16),
        (True, (2, 784, 4, 4), 784, jnp.bfloat16),  # padded
        (False, (2, 784, 4, 16), 784, jnp.float32),
        (False, (2, 784, 4, 256), 784, jnp.bfloat16),
        (False, (2, 49, 4, 16), 49, jnp.bfloat16),
        (False, (2, 784, 4, 16), 49, jnp.bfloat16),
    ],
)
def test_which_queries_go_to_cudnn(monkeypatch, fits, shape, keys, dtype):
    """They are padded to a head dimension that cuDNN takes, with the scale of the original one."""
    asked = []

    def kernel(q, k, v, *, scale, implementation):
        asked.append((q.shape[-1] % 8, implementation))
        scores = jnp.einsum("nthd,nshd->nhts", q, k, preferred_element_type=jnp.float32) * scale
        return jnp.einsum("nhts,nshd->nthd", jax.nn.softmax(scores), v.astype(jnp.float32)).astype(q.dtype)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    q, k, v = (x.astype(dtype) for x in qkv(shape, keys=keys))
    out, _ = attention._on_cuda("forward", 1, q, k, v)
    assert asked == ([(0, "cudnn")] if fits else [])
    close(out, numpy_attention(q, k, v), 1e-5 if dtype == jnp.float32 else 2**-6)


def formula(path, shape):
    """The weights of benchmarks/torch_twin.py: normal numbers that the path alone decides."""
    normal = np.random.RandomState(zlib.crc32(path.encode())).standard_normal(shape)
    if path.endswith("kernel"):
        normal /= math.sqrt(math.prod(shape[:-1]))
        return normal.astype(np.float32)
    return (0.1 * normal + path.endswith("scale")).astype(np.float32)


def formula_variables(model, x, t):
    """Weights of no symmetry and no zeros, in place of the initial ones."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, t)
    flat = flax.traverse_util.flatten_dict(shapes["params"], sep="/")
    weights = {path: formula(path, leaf.shape) for path, leaf in flat.items()}
    return {"params": flax.traverse_util.unflatten_dict(weights, sep="/")}


def mapped(model, variables):
    """The network as jaxdiff calls it: one example at a time, under `jax.vmap`."""
    return jax.vmap(lambda x, t: model.apply(variables, x[None], t[None])[0])


SMALL = {
    "stem": 8,
    "down": (8, 16),
    "middle": (16,),
    "up": (16, 8),
    "layers": 1,
    "attention": (False, True),
    "heads": 2,
    "groups": 4,
    "time_dim": 8,
}


TINY = SMALL | {"down": (8,), "up": (8,), "attention": (True,)}


@pytest.fixture(scope="module")
def batch():
    x = jax.random.normal(jax.random.key(1), (8, 8, 4, 2))
    return x, jnp.linspace(0.001, 1.0, 8)


def test_unet_has_the_parameters_of_ddpm():
    x = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    params = jax.eval_shape(UNet().init, jax.random.key(0), x, t)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 10_188_081


@pytest.mark.thorough
def test_unet_gives_what_its_pytorch_twin_gives():
    golden, model = np.load(GOLDEN), UNet()
    x, t = golden["x"], golden["t"]
    y = jax.jit(mapped(model, formula_variables(model, x, t)))(x, t)
    close(y, golden["y"], 1e-5)


def test_unet_starts_at_zero_with_float32_parameters(batch):
    x, t = batch
    key = jax.random.key(0, impl="rbg")  # compiles sooner than the default
    y, variables = jax.jit(UNet(**TINY).init_with_output)(key, x, t)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert not y.any()


@pytest.mark.thorough
@pytest.mark.parametrize("fields", [SMALL, TINY | {"patch": 2}])
def test_unet_of_a_batch_is_unet_of_each_example(batch, fields):
    x, t = batch
    model = UNet(**fields)
    assert model.size_multiple == 2
    variables = formula_variables(model, x, t)
    y = jax.jit(model.apply)(variables, x, t)
    assert y.shape == x.shape
    assert y.std() > 0.1
    close(jax.jit(mapped(model, variables))(x, t), y, 1e-6)


@pytest.mark.thorough
def test_unet_in_bfloat16(batch):
    x, t = batch
    variables = formula_variables(UNet(**TINY), x, t)
    y, y_half = (jax.jit(UNet(**TINY, dtype=dtype).apply)(variables, x, t) for dtype in (jnp.float32, jnp.bfloat16))
    assert y_half.dtype == jnp.float32
    close(y_half, y, 0.05)


@pytest.mark.thorough
def test_unet_gradient_reaches_every_parameter(batch):
    x, t = batch
    model = UNet(**TINY)
    variables = formula_variables(model, x, t)
    gradient = jax.jit(jax.grad(lambda p: (mapped(model, p)(x, t) ** 2).mean()))(variables)
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_patches_are_squares_of_pixels():
    x = jnp.arange(2.0 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = layers.to_patches(x, 2)
    np.testing.assert_array_equal(patches[1, 0, 2].reshape(2, 2, 3), x[1, :2, 4:])
    np.testing.assert_array_equal(layers.from_patches(patches, 2), x)


@pytest.mark.parametrize(
    ("model", "field", "value", "words"),
    [
        (UNet, "groups", 3, "stem = .* groups = 3 does not divide"),
        (UNet, "heads", 5, "down = .* heads = 5 does not divide"),
        (UNet, "up", (64, 30, 16), "up = .* groups = 8 does not divide"),
        (UNet, "up", (64, 32), "up = .* 3 levels"),
        (UNet, "attention", (True,), "attention = .* 3 levels"),
        (UNet, "layers", 0, "layers = 0; it must be"),
        (UNet, "patch", 0, "patch = 0; it must be"),
        (UNet, "time_dim", 7, "time_dim = 7; it must be an even number"),
        (UNet, "time_steps", 0, "time_steps = 0; it must be"),
        (MLP, "width", 0, "width = 0; it must be 1 or more"),
        (MLP, "depth", 0, "depth = 0; it must be 1 or more"),
        (MLP, "time_dim", 1, "time_dim = 1; it must be an even number"),
    ],
)
def test_fields_that_do_not_go_together(model, field, value, words):
    with pytest.raises(InputError, match=words):
        model(**{field: value})


def test_image_sizes():
    UNet().check_size(28, 32)
    with pytest.raises(InputError, match=r"30×28 .* multiples of 4; pad or resize"):
        UNet().init(jax.random.key(0), jnp.zeros((1, 30, 28, 1)), jnp.zeros(1))
    with pytest.raises(InputError, match="multiples of 8"):
        UNet(patch=2).check_size(28, 28)


@pytest.mark.parametrize(("model", "shape"), [(UNet(), (1, 28, 28, 1)), (MLP(), (1, 2))])
def test_a_condition_is_refused(model, shape):
    with pytest.raises(InputError, match="this network has no labels"):
        model.init(jax.random.key(0), jnp.zeros(shape), jnp.zeros(1), jnp.array([3]))


@pytest.mark.thorough
def test_mlp_fits_a_swiss_roll():
    """Its ε-loss comes within 10 % of the best there is: that of the mean over the data set."""
    roll, _ = make_swiss_roll(512, random_state=0)
    data = jnp.asarray(roll[:, [0, 2]] / 8, jnp.float32)
    model = MLP(width=64, depth=2, time_dim=32)

    def sample(key):
        keys = jax.random.split(key, 3)
        t = jax.random.uniform(keys[0], (256,))
        eps = jax.random.normal(keys[1], (256, 2))
        x0 = data[jax.random.randint(keys[2], (256,), 0, len(data))]
        alpha, sigma = jnp.cos(t * jnp.pi / 2)[:, None], jnp.sin(t * jnp.pi / 2)[:, None]
        return alpha * x0 + sigma * eps, t, eps, alpha, sigma

    def loss(variables, key):
        x, t, eps, _, _ = sample(key)
        return ((model.apply(variables, x, t) - eps) ** 2).mean()

    def best_loss(key):
        x, _, eps, alpha, sigma = sample(key)
        residual = (x[:, None, :] - alpha[:, :, None] * data[None]) / sigma[:, :, None]
        weights = jax.nn.softmax(-0.5 * (residual**2).sum(-1), axis=-1)
        return ((jnp.einsum("nm,nmd->nd", weights, residual) - eps) ** 2).mean()

    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 1000))

    @jax.jit
    def train(variables):
        def step(carry, key):
            variables, state = carry
            gradient = jax.grad(loss)(variables, key)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(variables, updates), state), None

        keys = jax.random.split(jax.random.key(1), 1000)
        return jax.lax.scan(step, (variables, optimizer.init(variables)), keys)[0][0]

    variables = train(jax.jit(lambda key: model.init(key, *sample(key)[:2]))(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(2), 32)
    reached = jax.jit(jax.vmap(loss, (None, 0)))(variables, keys).mean()
    best = jax.lax.map(best_loss, keys).mean()
    assert 0.99 * best < reached < 1.1 * best


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("shape", "channels", "attention"),
    [
        ((64, 64, 3), (8, 16, 32, 32), (False, False, True, True)),
        ((28, 28, 1), (8, 16, 32), (False, True, True)),
        ((8, 8, 1), (8, 16), (True, True)),
        ((48, 64, 3), (8, 16, 32, 32), (False, False, True, True)),
        ((32, 2), (8, 16, 32), (False, True, True)),
    ],
)
def test_a_sized_unet_has_as_many_levels_as_the_size_needs(shape, channels, attention):
    model = models.sized_unet(width=8, shape=shape, outputs=1)
    assert (tuple(model.down), tuple(model.attention), model.dims) == (channels, attention, len(shape) - 1)
    x, t = jnp.zeros((1, *shape)), jnp.zeros(1)
    assert jax.eval_shape(model.init_with_output, jax.random.key(0), x, t)[0].shape == x.shape


def test_a_size_that_can_not_be_halved_is_refused():
    with pytest.raises(InputError, match=r"65 × 65 can be halved only 0 times; set data\.size to multiples of 8"):
        models.sized_unet(shape=(65, 65, 3))
