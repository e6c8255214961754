"""Compare the speed of the DDPM U-Net in JAX with its PyTorch twin, on one machine, in one run.

    python benchmarks/unet.py                                     # the CPU, float32, batches of 64
    python benchmarks/unet.py --device=gpu --dtype=bfloat16 --batch=256

A training step minimizes the mean squared error of ε with Adam at 1e-4, compiled and donated in JAX. The network is
called as jaxdiff's trainer calls it: under a `jax.vmap` of single examples, split over the devices, with its compiler
options. Repetitions alternate, so that changes in the machine's speed affect all equally. PyTorch runs the twin as
written and tuned (benchmarks/torch_twin.py), and on a GPU also tuned under torch.compile. Peak memory and the time to
the first step are measured in a separate process. Needs the `bench` extra.
"""

import argparse
import functools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some of the GPU

Run = Callable[[], object]

# Dense bfloat16 rate of the matrix units in FLOP/s, from the vendor's data sheets.
MATRIX_RATE = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "L40S": 362e12}


def jax_runs(args: argparse.Namespace) -> tuple[Run, Run]:
    """Return one training step and one forward pass; each blocks until its result is ready."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from jaxdiff import xla
    from jaxdiff.models import UNet
    from jaxdiff.training.sharding import batch_spec, make_mesh

    jax.config.update("jax_platforms", "cpu" if args.device == "cpu" else "cuda")
    xla.split_cpu(args.batch)
    mesh = make_mesh(1, args.batch)
    jit = functools.partial(jax.jit, compiler_options=xla.compiler_options())
    model = UNet(dtype=jnp.dtype(args.dtype))
    x, eps = jax.random.normal(jax.random.key(0), (2, args.batch, 28, 28, 1))
    t = jnp.linspace(0.001, 1.0, args.batch)
    params = jax.jit(model.init)(jax.random.key(1), x[:1], t[:1])
    optimizer = optax.adam(1e-4)
    state = list(jax.device_put((params, optimizer.init(params)), NamedSharding(mesh, P())))
    x, t, eps = jax.device_put((x, t, eps), NamedSharding(mesh, batch_spec()))

    def network(params, x, t):
        return jax.vmap(lambda x, t: model.apply(params, x[None], t[None])[0])(x, t)

    @functools.partial(jit, donate_argnums=(0, 1))
    def step(params, opt_state, x, t, eps):
        def loss(params):
            return ((network(params, x, t) - eps) ** 2).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    forward = jit(network)

    def train() -> object:
        state[:] = step(*state, x, t, eps)
        return jax.block_until_ready(state)

    return train, lambda: jax.block_until_ready(forward(state[0], x, t))


def torch_runs(args: argparse.Namespace, *, tuned: bool, compiled: bool) -> tuple[Run, Run]:
    """Return the same in PyTorch."""
    import torch
    import torch_twin

    device = "cpu" if args.device == "cpu" else "cuda"
    model = torch_twin.make(tuned).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    network = torch.compile(model) if compiled else model
    x, eps = torch.randn(2, args.batch, 1, 28, 28, device=device)
    t = torch.linspace(0.001, 1.0, args.batch, device=device)
    dtype = getattr(torch, args.dtype)
    precision = functools.partial(torch.autocast, device, dtype, enabled=dtype != torch.float32)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def train() -> None:
        optimizer.zero_grad()
        with precision():
            output = network(x, t)
        ((output.float() - eps) ** 2).mean().backward()
        optimizer.step()
        wait()

    def forward() -> None:
        with torch.no_grad(), precision():
            network(x, t)
        wait()

    return train, forward


def contestants(device: str) -> dict[str, Callable[[argparse.Namespace], tuple[Run, Run]]]:
    made = {
        "jaxdiff": jax_runs,
        "PyTorch, straightforward": functools.partial(torch_runs, tuned=False, compiled=False),
        "PyTorch, tuned": functools.partial(torch_runs, tuned=True, compiled=False),
    }
    if device == "gpu":
        made["PyTorch, compiled"] = functools.partial(torch_runs, tuned=True, compiled=True)
    return made


def seconds(runs: dict[str, Run], repeats: int) -> dict[str, list[float]]:
    """Return the times of each of `runs`, alternating, after two warm-up calls of each."""
    for run in runs.values():
        run(), run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def in_a_process(args: argparse.Namespace, name: str, cache: str) -> tuple[float, float]:
    """Return the seconds to the end of the first training step, and the peak GB, of a new process."""
    command = [sys.executable, __file__, f"--only={name}", f"--batch={args.batch}"]
    command += [f"--device={args.device}", f"--dtype={args.dtype}"]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    start = time.time()
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    return result["time"] - start, result["bytes"] / 1e9


def take_one_step(args: argparse.Namespace) -> None:
    """Take one training step in the process that `in_a_process` starts."""
    train, _ = contestants(args.device)[args.only](args)
    train()
    end = time.time()
    train()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"time": end, "bytes": kilobytes * 1024}))


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n")
    for row in (header, ["---"] + ["---:"] * (len(header) - 1), *rows):
        print("| " + " | ".join(row) + " |")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def training_flops(batch: int) -> float:
    """Return three times the operations of the forward pass, as PyTorch counts its products and convolutions."""
    import torch
    import torch_twin
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch_twin.make(tuned=False)(torch.zeros(1, 1, 28, 28), torch.ones(1))
    return 3.0 * batch * counter.get_total_flops()


def main(args: argparse.Namespace) -> None:
    # First, as on Linux a process counts the peak memory of its parent as its own.
    rows = []
    for name in contestants(args.device):
        with tempfile.TemporaryDirectory() as cache:
            cold, memory = in_a_process(args, name, cache)
            warm = f"{in_a_process(args, name, cache)[0]:.1f}" if name == "jaxdiff" else "—"
        rows.append([name, f"{cold:.1f}", warm, f"{memory:.2f}"])
    header = ["process", "s to the first step", "s with a compilation cache", "peak host GB"]
    table("Start and memory, training", header, rows)

    made = {name: make(args) for name, make in contestants(args.device).items()}

    import flax
    import jax
    import torch

    device = jax.devices()[0].device_kind if args.device == "gpu" else processor()
    print(f"{device}, {len(os.sched_getaffinity(0))} CPU cores, {torch.get_num_threads()} threads")
    print(f"jax {jax.__version__}, flax {flax.__version__}, torch {torch.__version__}", end=", ")
    print(f"Python {platform.python_version()}; python {' '.join(sys.argv)}")

    for i, title in enumerate(("Training step", "Forward pass")):
        times = seconds({name: runs[i] for name, runs in made.items()}, args.repeats)
        rows = []
        for name, taken in times.items():
            rows.append([name])
            for middle in (min, median):
                ratio = middle(taken) / middle(times["jaxdiff"])
                rows[-1] += [f"{args.batch / middle(taken):.1f}", f"{ratio:.2f}"]
        header = ["images/s", "best", "jaxdiff/this", "median", "jaxdiff/this"]
        table(f"{title}, batches of {args.batch}, {args.dtype}", header, rows)
        rate = next((r for name, r in MATRIX_RATE.items() if name in device), None)
        if title == "Training step" and rate is not None and args.dtype == "bfloat16":
            share = training_flops(args.batch) / min(times["jaxdiff"]) / rate
            print(f"\njaxdiff reaches {share:.1%} of the matrix rate of {rate / 1e12:.0f} TFLOP/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only", choices=tuple(contestants("gpu")), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    take_one_step(arguments) if arguments.only else main(arguments)
