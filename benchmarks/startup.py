"""How long jaxdiff takes to start, in CPU seconds of the process, beside an earlier commit.

    python benchmarks/startup.py --before=COMMIT [--mnist=FOLDER]

Each case runs once for each of the two in turns, `--repeats` times, and the least is printed. CPU seconds, user and
system, depend less than seconds on what else the machine does. MNIST's IDX files are read from the folder; without it
the case of the large network is left out.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Ends the process when the first step of training is done; the arguments are those of train.py.
FIRST_STEP = """
import os, resource, sys
from jaxdiff.cli import train
from jaxdiff.training import recorder
import jax
def push(self, dispatch, metrics, extra):
    jax.block_until_ready(metrics)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("CPU", used.ru_utime + used.ru_stime, flush=True)
    os._exit(0)
recorder.Recorder.push = push
train.main()
"""

# Loads two runs of one architecture and samples from each; prints the CPU seconds of the second.
SECOND_LOAD = """
import resource, sys
import jax, jaxdiff as jd
for folder in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    jd.load(folder).sample(jax.random.key(0), n=64)
    after = resource.getrusage(resource.RUSAGE_SELF)
print("CPU", after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="the commit to compare with")
    parser.add_argument("--mnist", help="folder of MNIST's IDX files")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "-q", "--detach", before, arguments.before], check=True)
        try:
            found = {name: [[], []] for name in CASES if arguments.mnist or "ddpm" not in name}
            for repeat in range(arguments.repeats):
                for name, columns in found.items():
                    for column, checkout in zip(columns, (before, ROOT), strict=True):
                        place = Path(folder) / f"{repeat}-{checkout.name}"
                        column.append(CASES[name](checkout, place, arguments.mnist))
            commits = [_commit(before), _commit(ROOT)]
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", before], check=True)
    print(f"| CPU seconds, least of {arguments.repeats} | {commits[0]} | {commits[1]} | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for name, columns in found.items():
        old, new = map(min, columns)
        print(f"| {name} | {old:.1f} | {new:.1f} | {new / old:.2f} |")


def _commit(checkout: Path) -> str:
    command = ["git", "-C", checkout, "describe", "--always", "--dirty"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _run(checkout: Path, place: Path, *command: str | Path) -> float:
    """Return the CPU seconds of a process, or those that it prints."""
    # The caches of each repeat and checkout are its own.
    env = os.environ | {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(place / "cache")}
    place.mkdir(exist_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *command], cwd=checkout, env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    for line in done.stdout.splitlines():
        if line.startswith("CPU "):
            return float(line.split()[1])
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _import(checkout: Path, place: Path, mnist: str | None) -> float:
    return _run(checkout, place, "-c", "import jaxdiff")


def _first_step(checkout: Path, place: Path, mnist: str | None) -> float:
    return _run(checkout, place, "-c", FIRST_STEP, "--config=configs/digits.py", f"--workdir={_fresh(place)}")


def _first_step_ddpm(checkout: Path, place: Path, mnist: str | None) -> float:
    options = [f"--workdir={_fresh(place)}", f"--config.data.dir={mnist}"]
    return _run(checkout, place, "-c", FIRST_STEP, "--config=configs/mnist.py:ddpm", *options)


def _sample(checkout: Path, place: Path, mnist: str | None) -> float:
    """`sample.py` for the second time."""
    command = ["sample.py", f"--workdir={_trained(checkout, place, 0)}", f"--out={place / 'digits.png'}"]
    return [_run(checkout, place, *command) for _ in range(2)][1]


def _second_load(checkout: Path, place: Path, mnist: str | None) -> float:
    return _run(checkout, place, "-c", SECOND_LOAD, *(_trained(checkout, place, seed) for seed in (0, 1)))


def _trained(checkout: Path, place: Path, seed: int) -> Path:
    """Return the folder of a run of one step."""
    workdir = place / f"run{seed}"
    if not workdir.exists():
        options = ["--config.train.steps=1", "--config.sampling.steps=50", f"--config.train.seed={seed}"]
        _run(checkout, place, "train.py", "--config=configs/digits.py", f"--workdir={workdir}", *options)
    return workdir


def _fresh(place: Path) -> Path:
    place.mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(dir=place)) / "run"


CASES = {
    "`import jaxdiff`": _import,
    "`configs/digits.py`, to the end of the first step, cold": _first_step,
    "the same with a warm cache": _first_step,
    "`configs/mnist.py:ddpm`, to the end of the first step, cold": _first_step_ddpm,
    "`sample.py`, 64 digits, 50 steps of DDIM, warm": _sample,
    "a second `jd.load` of the architecture and its first samples": _second_load,
}

if __name__ == "__main__":
    main()
