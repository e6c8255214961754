"""What a compiled program costs: its arithmetic, its traffic with the main memory, and what its devices exchange.

`flops` counts the matrix products and convolutions of a traced program, exactly and for any platform. `read` reads the
text of a compiled program, as XLA prints it, because XLA's own count takes the body of a loop once, however often it
runs, and what stays in the fast memory of a TPU for traffic with its main memory.

Neither is a measurement: only a run shows which copies wait for each other, and how near a device comes to its peak
rates.
"""

import collections
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxdiff.models.attention import PRODUCTS


def flops(jaxpr: Any) -> int:
    """Return the floating-point operations of the matrix products and convolutions of a jaxpr, over all its devices.

    A loop of `scan` counts for each of its steps, one of `while`, whose number of steps is not known, once; of the
    branches of a `cond` the costliest counts. In a convolution the products with padding and with the zeros of dilation
    do not count.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(_flops(equation) for equation in jaxpr.eqns)


def _flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    shapes = [variable.aval.shape for variable in equation.invars if hasattr(variable.aval, "shape")]
    if name == "dot_general":
        (over, _), _ = params["dimension_numbers"]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][axis] for axis in over)
    if name == "conv_general_dilated":
        images, kernel = shapes
        return _convolution(images, kernel, equation.outvars[0].aval.shape, params)
    if name in PRODUCTS:
        (n, queries, heads, dim), (_, keys, *_) = shapes[:2]
        return PRODUCTS[name] * 2 * n * heads * queries * keys * dim
    inner = [flops(part) for part in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr) if _is_jaxpr(part)]
    if name == "cond":
        return max(inner, default=0)
    times = {"scan": params.get("length"), "shard_map": getattr(params.get("mesh"), "size", None)}.get(name)
    return (times or 1) * sum(inner)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


def _convolution(images: Any, kernel: Any, out: Any, params: dict[str, Any]) -> int:
    dimensions = params["dimension_numbers"]
    pairs = 1
    for i, (low, _) in enumerate(params["padding"]):
        size, width = images[dimensions.lhs_spec[2 + i]], kernel[dimensions.rhs_spec[2 + i]]
        dilation = params["lhs_dilation"][i]
        starts = np.arange(out[dimensions.out_spec[2 + i]])[:, None] * params["window_strides"][i] - low
        places = starts + np.arange(width) * params["rhs_dilation"][i]
        inside = (places >= 0) & (places <= (size - 1) * dilation) & (places % dilation == 0)
        pairs *= int(inside.sum())
    batch, features = (out[axis] for axis in dimensions.out_spec[:2])
    return 2 * batch * features * kernel[dimensions.rhs_spec[1]] * pairs


class Collective(NamedTuple):
    """An exchange between devices."""

    kind: str  # as "all-gather"
    bytes: int  # of the whole array: what is gathered, reduced or exchanged, on one device
    group: int  # the number of devices that exchange
    dtypes: tuple[str, ...]  # as "f32"

    @property
    def sent(self) -> float:
        """The bytes that a device sends, in the usual ring."""
        passes = {"all-reduce": 2, "collective-permute": self.group / max(self.group - 1, 1)}.get(self.kind, 1)
        return passes * self.bytes * (self.group - 1) / self.group


class Traffic(NamedTuple):
    """What one run of a compiled program moves, on one device."""

    moved: int  # bytes read from main memory and written to it
    cycles: int  # as the compiler for TPUs estimates them; 0 on other platforms
    collectives: tuple[Collective, ...]  # one entry for each time that one runs

    def per_step(self, steps: int) -> "Traffic":
        """Return the share of one step of a program that takes several."""
        counts = collections.Counter(self.collectives)
        shares = [one for one, times in counts.items() for _ in range(-(-times // steps))]
        return Traffic(self.moved // steps, self.cycles // steps, tuple(shares))


class _Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str


_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([\d,]*)(?::([^{}]*))?\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|async_computation)=%?([\w.\-]+)")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
_SLICES = ("slice", "dynamic-slice", "gather")


def read(text: str) -> Traffic:
    """Return the traffic of a compiled program, from what `jax.stages.Compiled.as_text` returns.

    A loop counts as often as it runs where the program says how often, and once otherwise. Where the text doesn't tell
    memories apart, as on CPUs and GPUs, all arrays between fused operations count as in main memory, though a cache may
    hold them.
    """
    return _Program(text).traffic()


class _Program:
    """The computations of a compiled program, by name; each a list of instructions, the root last."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[_Instruction]] = {}
        self.entry, here = "", []
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                here = self.computations[found[2]] = []
                self.entry = found[2] if found[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                operands, attributes = _split(found[5])
                here.append(_Instruction(found[2], found[3], found[4], operands, attributes))
        self.devices = int(np.prod([int(n) for n in re.findall(r"num_(?:partitions|replicas)=(\d+)", text[:100000])]))

    def traffic(self) -> Traffic:
        moved, cycles, collectives = 0, 0, []
        for instruction, types, times in self._executed(self.entry, 1):
            moved += times * self._moved(instruction, types)
            cycles += times * sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', instruction.attributes)))
            found = self._collective(instruction, types)
            collectives += [found] * (times if found else 0)
        return Traffic(moved, cycles, tuple(filter(None, collectives)))

    def _executed(self, name: str, times: int) -> Iterator[tuple[_Instruction, dict[str, str], int]]:
        """Yield the instructions that run, what types the names beside them have, and how often they run."""
        body = self.computations[name]
        types = {instruction.name: instruction.type for instruction in body}
        for instruction in body:
            called = [found for found in _CALLED.findall(instruction.attributes) if found in self.computations]
            if instruction.opcode == "while":
                loop = re.search(r"body=%?([\w.\-]+)", instruction.attributes)
                yield from self._executed(loop[1], times * self._trips(instruction)) if loop else ()
            elif instruction.opcode == "conditional":
                listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
                pair = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.attributes)
                names = re.findall(r"[\w.\-]+", listed[1]) if listed else pair
                branches = [list(self._executed(branch, times)) for branch in names]
                yield from max(branches, key=lambda found: sum(n * self._moved(i, t) for i, t, n in found), default=())
            elif instruction.opcode in ("call", "call-start", "async-start"):
                for inner in called:
                    yield from self._executed(inner, times)
            else:
                yield instruction, types, times

    def _trips(self, loop: _Instruction) -> int:
        if found := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(found[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        bounds = []
        for instruction in self._inside(condition[1] if condition else ""):
            if instruction.opcode == "constant" and instruction.type.startswith(("s32[]", "u32[]", "s64[]")):
                bounds += re.findall(r"^-?\d+", instruction.attributes)
        return int(bounds[0]) if len(bounds) == 1 else 1

    def _inside(self, name: str) -> Iterator[_Instruction]:
        for instruction in self.computations.get(name, ()):
            yield instruction
            for inner in _CALLED.findall(instruction.attributes):
                yield from self._inside(inner)

    def _moved(self, instruction: _Instruction, types: dict[str, str]) -> int:
        opcode, operands = instruction.opcode, [types.get(name, "") for name in instruction.operands]
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            return 0
        if opcode.endswith("-start"):  # its result names the source, too
            size = max((_size(shape) for shape in _arrays(instruction.type)), default=0)
            ends = [_in_main(shape) for shape in _arrays(instruction.type)[:2]]
            return size * sum(ends)
        if opcode == "fusion":
            return self._fused(self._fusion(instruction)[1], operands, instruction.type)
        if opcode in _SLICES:
            return (
                _main(instruction.type)
                + min(_main(operands[0]), _size(instruction.type))
                + sum(map(_main, operands[1:]))
            )
        if opcode == "dynamic-update-slice":
            return 2 * min(_main(instruction.type), _size(operands[1]))
        return _main(instruction.type) + sum(map(_main, operands))

    def _fused(self, body: Sequence[_Instruction], operands: Sequence[str], out: str) -> int:
        """The traffic of a fusion, of which only the inputs and outputs are in main memory."""
        made = {instruction.name: instruction for instruction in body}
        uses: dict[str, list[tuple[_Instruction, int]]] = {}
        for instruction in body:
            for place, name in enumerate(instruction.operands):
                uses.setdefault(name, []).append((instruction, place))

        def ends(name: str) -> list[tuple[_Instruction, int]]:
            """The uses of a value, seen through bitcasts."""
            found = uses.get(name, [])
            inner = [use for user, _ in found if user.opcode == "bitcast" for use in ends(user.name)]
            return [use for use in found if use[0].opcode != "bitcast"] + inner

        total = 0
        for instruction in body:
            if instruction.opcode != "parameter":
                continue
            index = int(instruction.attributes.split(")")[0] or 0)
            whole = _main(operands[index]) if index < len(operands) else 0
            part = 0
            for user, place in ends(instruction.name):
                if user.opcode in _SLICES and place == 0:
                    part += _size(user.type)
                elif not (user.opcode == "dynamic-update-slice" and place == 0):
                    part += whole
            total += min(whole, part)
        root = body[-1]
        roots = [made[name] for name in root.operands] if root.opcode == "tuple" else [root]
        outs = _arrays(out)
        for result, shape in zip(roots, outs, strict=False):
            while result.opcode == "bitcast" and result.operands:
                result = made[result.operands[0]]
            if result.opcode == "dynamic-update-slice":
                total += min(_main_of(shape), _size(made[result.operands[1]].type))
            else:
                total += _main_of(shape)
        return total

    def _collective(self, instruction: _Instruction, types: dict[str, str]) -> Collective | None:
        """The exchange that an instruction starts."""
        if instruction.opcode == "fusion":  # on a TPU one exchange may span several fusions, of which the first counts
            name, body = self._fusion(instruction)
            goes_on = name.startswith("async_collective") or any('"AsyncCollective' in one.attributes for one in body)
            if goes_on and not any('"AsyncCollectiveStart"' in one.attributes for one in body):
                return None
            inside = {inner.name: inner.type for inner in body}
            found = (self._collective(inner, inside) for inner in body if inner.opcode != "fusion")
            return next(filter(None, found), None)
        kind = instruction.opcode.removesuffix("-start")
        if kind not in _COLLECTIVES:
            return None
        arrays = _arrays(instruction.type)
        sources = [shape for name in instruction.operands for shape in _arrays(types.get(name, ""))]
        if kind == "reduce-scatter":
            arrays = sources or arrays
        elif instruction.opcode.endswith("-start") and len(arrays) > len(sources) and kind != "all-reduce":
            arrays = arrays[len(sources) : 2 * len(sources)]
        group = self._group(instruction.attributes)
        if group == 1:
            return None
        return Collective(kind, sum(map(_bare, arrays)), group, tuple(sorted({shape[0] for shape in arrays})))

    def _fusion(self, instruction: _Instruction) -> tuple[str, list[_Instruction]]:
        """The name and the body of the computation of a fusion."""
        name = _CALLED.findall(instruction.attributes)[0]
        return name, self.computations[name]

    def _group(self, attributes: str) -> int:
        if found := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
            return int(found[1])
        if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
            return len(found[1].split(","))
        if found := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", attributes):  # by axes of the mesh
            sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
            parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])  # whole axes, and parts of axes
            return math.prod(int(size or sizes[axis]) for axis, size in parts)
        return self.devices


def _split(rest: str) -> tuple[tuple[str, ...], str]:
    """The operands of an instruction, and what follows them; for a constant or a parameter the text in parentheses."""
    depth, end = 1, len(rest)
    for i, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            end = i
            break
    inside, after = rest[:end], rest[end + 1 :]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return operands, after if operands else f"{inside}){after}"


def _arrays(type_: str) -> list[tuple[str, str, str, str]]:
    """The dtype, the sizes, the order and the layout of each array of a type."""
    return [(dtype, sizes, order or "", layout or "") for dtype, sizes, order, layout in _ARRAY.findall(type_)]


def _bare(shape: tuple[str, str, str, str]) -> int:
    """The bytes of an array without padding."""
    return math.prod(int(size) for size in shape[1].split(",") if size) * _bits(shape[0]) // 8


def _bits(dtype: str) -> int:
    if dtype == "pred":
        return 8
    found = re.search(r"\d+", dtype)
    return int(found[0]) * (2 if dtype.startswith("c") else 1) if found else 8


def _size(shape: Any) -> int:
    """The bytes of an array, or of all arrays of a type, with the padding of its tiles."""
    if isinstance(shape, str):
        return sum(map(_size, _arrays(shape)))
    dtype, sizes, order, layout = shape
    lengths = [int(size) for size in sizes.split(",") if size]
    if lengths and (tile := re.search(r"T\(([\d,]+)\)", layout)) and order:
        major_to_minor = [lengths[int(axis)] for axis in reversed(order.split(","))]
        tiles = [int(n) for n in tile[1].split(",")]
        for i in range(1, min(len(tiles), len(major_to_minor)) + 1):
            major_to_minor[-i] = -(-major_to_minor[-i] // tiles[-i]) * tiles[-i]
        lengths = major_to_minor
    return math.prod(lengths) * _bits(dtype) // 8


def _in_main(shape: tuple[str, str, str, str]) -> bool:
    """Return whether an array is in main memory, not in another of the device."""
    return re.search(r"S\([1-9]", shape[3]) is None


def _main_of(shape: tuple[str, str, str, str]) -> int:
    return _size(shape) if _in_main(shape) else 0


def _main(type_: str) -> int:
    return sum(map(_main_of, _arrays(type_)))
