"""Register tiles: the innermost loops of the compiled evaluator, written as vector instructions.

A tile keeps ``rows × vectors`` sums in vector registers while it walks along the inputs of a layer,
and turns them into codes of the activation before anything is stored. Compilers do not find such
loops by themselves, hence intrinsics that emit LLVM's vector operations; LLVM translates these for
whatever processor it runs on. Arguments that choose a tile's shape or kind are literals.

One file, and a long one: every tile is made of the same few loads, splats and loops above it.

Codes: neuron r of a layer takes ``bits`` bits, the number of thresholds that its pre-activation
reaches, in a 32-bit word per example; 128 examples are one block.
"""

from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 128


def _features():
    """What the processor has for which Numba compiles: this one, or the one Numba is told of."""
    if config.CPU_NAME:
        told = (config.CPU_FEATURES or "").split(",")
        return {name[1:]: name.startswith("+") for name in told if name}
    return llvm.get_host_cpu_features()


FEATURES = _features()
# Look-ups among sixteen numbers in a register: the only instruction that has no portable twin.
HAS_TABLES = all(FEATURES.get(name, False) for name in ("avx512f", "avx512bw", "avx512vl"))
HAS_BF16 = HAS_TABLES and FEATURES.get("avx512bf16", False)
HAS_AVX = FEATURES.get("avx", False)

LANES = 16 if HAS_TABLES else 8 if HAS_AVX else 4
# Tile shapes (rows, vectors), tallest first: as many sums as registers allow, and eight at least,
# which hides the latency of a multiply-add.
SHAPES = ((4, 2), (2, 4), (1, 8)) if LANES == 8 else ((8, 2), (4, 4), (2, 8), (1, 8))

_F32, _F64 = ir.FloatType(), ir.DoubleType()
_I1, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, _BFloat)

    def __hash__(self):
        return hash(_BFloat)


def tile(function):
    """An intrinsic with literal arguments, under a name that is the same in every process.

    The caches of the kernels that use it hold that name; Numba would draw one anew each time.
    """
    found = intrinsic(prefer_literal=True)(function)
    found._set_uuid(f"{function.__module__}.{function.__qualname__}")
    return found


def _vector(element, lanes=LANES):
    return ir.VectorType(element, lanes)


def _index(value):
    return ir.Constant(_I64, value)


def _constant(vector, value):
    return ir.Constant(vector, [value] * vector.count)


def _declare(builder, name, result, arguments):
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _splat(builder, scalar, lanes=LANES):
    vector = _vector(scalar.type, lanes)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    zeros = ir.Constant(_vector(_I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, undefined, zeros)


def _load(builder, pointer, offset, vector, align=4):
    address = builder.gep(pointer, [offset])
    return builder.load(builder.bitcast(address, vector.as_pointer()), align=align)


def _store(builder, value, pointer, offset):
    address = builder.gep(pointer, [offset])
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=4)


@tile
def pointer(typing, array):
    """Where a contiguous array's numbers start. Whoever uses it keeps the array alive.

    Passed to a function, a pointer costs nothing; an array has its references counted.
    """
    if not isinstance(array, types.Array) or array.layout != "C":
        return None

    def emit(context, builder, signature, values):
        return context.make_array(signature.args[0])(context, builder, values[0]).data

    return types.CPointer(array.dtype)(array), emit


def _loop(builder, count, state, body):
    """``for k in range(count): state = body(k, state)`` with the state in registers; count ≥ 1."""
    before = builder.block
    inside = builder.append_basic_block("tile")
    after = builder.append_basic_block("tile.end")
    builder.branch(inside)
    builder.position_at_end(inside)
    k = builder.phi(_I64)
    k.add_incoming(_index(0), before)
    current = [builder.phi(value.type) for value in state]
    for phi, value in zip(current, state, strict=True):
        phi.add_incoming(value, before)
    result = body(k, current)
    following = builder.add(k, _index(1))
    k.add_incoming(following, inside)
    for phi, value in zip(current, result, strict=True):
        phi.add_incoming(value, inside)
    builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
    builder.position_at_end(after)
    return result


def _smaller_magnitude(builder, first, second):
    """min(|first|, |second|), where ``first`` is a magnitude already."""
    vector = first.type
    if HAS_TABLES:
        minimum = _declare(
            builder, "llvm.x86.avx512.mask.range.ps.512", vector,
            [vector, vector, _I32, vector, _I16, _I32],
        )  # fmt: skip
        # 0b1010: the smaller magnitude, sign cleared; all lanes; the current rounding
        flag = [ir.Constant(_I32, 0b1010), vector(ir.Undefined), _I16(-1), _I32(4)]
        return builder.call(minimum, [first, second, *flag])
    absolute = _declare(builder, f"llvm.fabs.v{LANES}f32", vector, [vector])
    magnitude = builder.call(absolute, [second])
    return builder.select(builder.fcmp_ordered("<", magnitude, first), magnitude, first)


def _encode(builder, sums, shape, thresholds, levels, near, out):
    """Activate the sums, store them and say whether one lies within reach of a threshold.

    ``thresholds`` is None for the sign. ``near`` is (radius, norms, offset, scratch): within reach
    is what lies within the radius times the example's norm. ``levels`` is None for codes: then
    ``out`` is (codes, offset, shift); with levels it is (hidden, offset).
    """
    rows, vectors = shape
    vector, integers, flags = _vector(_F32), _vector(_I32), _vector(_I1)
    radius, norms, norms_at, scratch = near
    radius = _splat(builder, radius)
    found = _constant(flags, 0)
    for v in range(vectors):
        nearest = _constant(vector, float("inf"))
        word = _constant(integers, 0)
        for r in reversed(range(rows)):
            z = sums[r * vectors + v]
            if thresholds is None:
                nearest = _smaller_magnitude(builder, nearest, z)
                word = _shift_in_sign(builder, word, z)
                continue
            code = _constant(integers, 0)
            value = None if levels is None else levels[0]
            for t, threshold in enumerate(thresholds):
                distance = builder.fsub(z, threshold)
                nearest = _smaller_magnitude(builder, nearest, distance)
                reached = builder.fcmp_ordered(">=", z, threshold)
                if levels is None:
                    one = _constant(integers, 1 << (r * (1 if len(thresholds) == 1 else 2)))
                    step = builder.select(reached, one, _constant(integers, 0))
                    code = step if t == 0 else builder.add(code, step)
                else:
                    value = builder.select(reached, levels[t + 1], value)
            if levels is None:
                word = builder.or_(word, code)
            else:
                row = _index(BLOCK * r + LANES * v)
                _store(builder, value, out[0], builder.add(out[1], row))
        norm = _load(builder, norms, builder.add(norms_at, _index(LANES * v)), vector)
        close = builder.fcmp_ordered("<=", nearest, builder.fmul(radius, norm))
        found = builder.or_(found, close)
        if levels is None:
            codes, at, shift = out
            where = builder.add(at, _index(LANES * v))
            if thresholds is None:
                word = builder.xor(word, _constant(integers, (1 << rows) - 1))
            word = builder.shl(word, _splat(builder, shift))
            # What the word's earlier rows left there, and of its first rows nothing.
            first = builder.icmp_signed("==", shift, _I32(0))
            keep = builder.select(first, _I32(0), _I32(-1))
            earlier = _load(builder, codes, where, integers)
            word = builder.or_(word, builder.and_(earlier, _splat(builder, keep)))
            _store(builder, word, codes, where)
    packed = builder.bitcast(found, ir.IntType(LANES))
    some = builder.icmp_unsigned("!=", packed, ir.Constant(ir.IntType(LANES), 0))
    with builder.if_then(some, likely=False):
        for index, z in enumerate(sums):
            _store(builder, z, scratch, _index(LANES * index))
    return builder.zext(some, _I64)


def _shift_in_sign(builder, word, z):
    """``word`` one place to the left, with the sign bit of z, one if negative, at its end.

    The sign bit of -0 is set as well, but -0 is within reach of zero, or cannot arise: a sum of
    integers starts from +0.
    """
    integers = word.type
    shift = _declare(builder, f"llvm.fshl.v{LANES}i32", integers, [integers] * 3)
    bits = z if z.type == integers else builder.bitcast(z, integers)
    return builder.call(shift, [word, bits, _constant(integers, 1)])


def _multiply_accumulate(builder, shape, weights, weights_at, inputs, inputs_at, depth):
    """Σ_k weights[k, row] · inputs[k, example] by fused multiply-adds."""
    rows, vectors = shape
    vector = _vector(_F32)
    # one operation where the processor has it, and not a call of a library function elsewhere
    fused = _declare(builder, f"llvm.fmuladd.v{LANES}f32", vector, [vector] * 3)

    def step(k, sums):
        at = builder.add(inputs_at, builder.mul(k, _index(BLOCK)))
        row_at = builder.add(weights_at, builder.mul(k, _index(rows)))
        x = [
            _load(builder, inputs, builder.add(at, _index(LANES * v)), vector)
            for v in range(vectors)
        ]
        out = []
        for r in range(rows):
            scalar = builder.load(builder.gep(weights, [builder.add(row_at, _index(r))]))
            spread = _splat(builder, scalar)
            for v in range(vectors):
                out.append(builder.call(fused, [spread, x[v], sums[r * vectors + v]]))
        return out

    return _loop(builder, depth, [_constant(vector, 0.0)] * (rows * vectors), step)


def _multiply_pairs(builder, shape, weights, weights_at, inputs, inputs_at, depth):
    """The same sum of bfloat16 numbers, two of them in a 32-bit word: ``depth`` counts pairs.

    Products are exact and the sum is float32.
    """
    rows, vectors = shape
    vector, integers = _vector(_F32), _vector(_I32)
    halves = ir.VectorType(_BFloat(), 2 * LANES)
    product = _declare(
        builder, "llvm.x86.avx512bf16.dpbf16ps.512", vector, [vector, halves, halves]
    )

    def step(k, sums):
        at = builder.add(inputs_at, builder.mul(k, _index(BLOCK)))
        row_at = builder.add(weights_at, builder.mul(k, _index(rows)))
        x = []
        for v in range(vectors):
            loaded = _load(builder, inputs, builder.add(at, _index(LANES * v)), integers)
            x.append(builder.bitcast(loaded, halves))
        out = []
        for r in range(rows):
            pair = builder.load(builder.gep(weights, [builder.add(row_at, _index(r))]))
            spread = builder.bitcast(_splat(builder, pair), halves)
            for v in range(vectors):
                out.append(builder.call(product, [sums[r * vectors + v], spread, x[v]]))
        return out

    return _loop(builder, depth, [_constant(vector, 0.0)] * (rows * vectors), step)


def _look_up(builder, shape, tables, tables_at, codes, codes_at, groups):
    """Σ_g tables[g, row, nibble g of the code] by permutations of sixteen-entry tables."""
    rows, vectors = shape
    vector, integers = _vector(_F32), _vector(_I32)
    permute = _declare(builder, "llvm.x86.avx512.permvar.sf.512", vector, [vector, integers])

    def step(g, sums):
        word = builder.mul(builder.lshr(g, _index(3)), _index(BLOCK))
        shift = builder.shl(builder.and_(g, _index(7)), _index(2))
        shift = _splat(builder, builder.trunc(shift, _I32))
        at = builder.add(codes_at, word)
        # The permutation looks at the lowest four bits of each index alone.
        nibbles = [
            builder.lshr(_load(builder, codes, builder.add(at, _index(LANES * v)), integers), shift)
            for v in range(vectors)
        ]
        row_at = builder.add(tables_at, builder.mul(g, _index(16 * rows)))
        out = []
        for r in range(rows):
            table = _load(builder, tables, builder.add(row_at, _index(16 * r)), vector)
            for v in range(vectors):
                found = builder.call(permute, [table, nibbles[v]])
                out.append(builder.fadd(sums[r * vectors + v], found))
        return out

    return _loop(builder, groups, [_constant(vector, 0.0)] * (rows * vectors), step)


def _broadcast(builder, pointer, count):
    """The first numbers behind a pointer as vectors of float32."""
    out = []
    for t in range(count):
        number = builder.load(builder.gep(pointer, [_index(t)]))
        number = builder.fptrunc(number, _F32) if number.type == _F64 else number
        out.append(_splat(builder, number))
    return out


def _for_shape(builder, height, emit):
    """``emit(shape)`` for the tile shape of this height; its result."""
    before = builder.block
    end = builder.append_basic_block("shape.end")
    results = []
    switch = None
    for shape in SHAPES:
        block = builder.append_basic_block("shape")
        if switch is None:
            builder.position_at_end(before)
            switch = builder.switch(height, block)
        else:
            switch.add_case(_index(shape[0]), block)
        builder.position_at_end(block)
        result = emit(shape)
        results.append((result, builder.block))
        builder.branch(end)
    builder.position_at_end(end)
    phi = builder.phi(_I64)
    for result, block in results:
        phi.add_incoming(result, block)
    return phi


FROM_VALUES, FROM_CODES, FROM_PAIRS = range(3)


@tile
def code_tile(
    typing, thresholds, source, height,
    weights, weights_at, inputs, inputs_at, depth,
    edges, radius, norms, norms_at, scratch, codes, codes_at, shift,
):  # fmt: skip
    """One tile of a layer, to codes; whether a pre-activation lies within reach of a threshold.

    From values ``(depth, 128)`` with weights packed ``(depth, height)``, from pairs of bfloat16
    likewise, or from codes with tables ``(depth, height, 16)`` where ``depth`` counts groups.
    """
    count = thresholds.literal_value
    accumulate = (_multiply_accumulate, _look_up, _multiply_pairs)[source.literal_value]
    signature = types.int64(
        thresholds, source, types.int64, weights, types.int64, inputs, types.int64, types.int64,
        edges, types.float32, norms, types.int64, scratch, codes, types.int64, types.int32,
    )  # fmt: skip

    def emit(context, builder, signature, values):
        a = values

        def tile(shape):
            sums = accumulate(builder, shape, a[3], a[4], a[5], a[6], a[7])
            # Zero is the only threshold of an activation that has one.
            edge = None if count == 1 else _broadcast(builder, a[8], count)
            near, out = (a[9], a[10], a[11], a[12]), (a[13], a[14], a[15])
            return _encode(builder, sums, shape, edge, None, near, out)

        return _for_shape(builder, a[2], tile)

    return signature, emit


@tile
def value_tile(
    typing, thresholds, height,
    weights, weights_at, inputs, inputs_at, depth,
    edges, levels, radius, norms, norms_at, scratch, hidden, hidden_at,
):  # fmt: skip
    """The same from values to values.

    Without thresholds the activation is clip(z, 0, 1), and with -1 of them there is none.
    """
    count = thresholds.literal_value
    signature = types.int64(
        thresholds, types.int64, weights, types.int64, inputs, types.int64, types.int64,
        edges, levels, types.float32, norms, types.int64, scratch, hidden, types.int64,
    )  # fmt: skip

    def emit(context, builder, signature, values):
        a = values

        def tile(shape):
            sums = _multiply_accumulate(builder, shape, a[2], a[3], a[4], a[5], a[6])
            if count > 0:
                edge = _broadcast(builder, a[7], count)
                level = _broadcast(builder, a[8], count + 1)
                near, out = (a[9], a[10], a[11], a[12]), (a[13], a[14])
                return _encode(builder, sums, shape, edge, level, near, out)
            vector = _vector(_F32)
            low, high = _constant(vector, 0.0), _constant(vector, 1.0)
            for index, z in enumerate(sums):
                if count == 0:
                    z = builder.select(builder.fcmp_ordered(">", z, low), z, low)
                    z = builder.select(builder.fcmp_ordered("<", z, high), z, high)
                row = _index(BLOCK * (index // shape[1]) + LANES * (index % shape[1]))
                _store(builder, z, a[13], builder.add(a[14], row))
            return _index(0)

        return _for_shape(builder, a[1], tile)

    return signature, emit


@tile
def output_tile(typing, tables, tables_at, inputs, inputs_at, groups, out, out_at):
    """One output neuron in float64 for sixteen examples: tables ``(groups, 16)`` float64."""
    signature = types.void(tables, types.int64, inputs, types.int64, types.int64, out, types.int64)

    def emit(context, builder, signature, values):
        a = values
        vector, integers = _vector(_F64, 8), _vector(_I64, 8)
        permute = _declare(
            builder, "llvm.x86.avx512.vpermi2var.pd.512", vector, [vector, integers, vector]
        )

        def step(g, sums):
            word = builder.mul(builder.lshr(g, _index(3)), _index(BLOCK))
            shift = builder.shl(builder.and_(g, _index(7)), _index(2))
            shift = _splat(builder, builder.trunc(shift, _I32), 8)
            at = builder.add(a[3], word)
            table_at = builder.add(a[1], builder.mul(g, _index(16)))
            low = _load(builder, a[0], table_at, vector)
            high = _load(builder, a[0], builder.add(table_at, _index(8)), vector)
            out = []
            for half in range(2):
                where = builder.add(at, _index(8 * half))
                nibble = builder.lshr(_load(builder, a[2], where, _vector(_I32, 8)), shift)
                found = builder.call(permute, [low, builder.zext(nibble, integers), high])
                out.append(builder.fadd(sums[half], found))
            return out

        zero = _constant(vector, 0.0)
        for half, value in enumerate(_loop(builder, a[4], [zero, zero], step)):
            _store(builder, value, a[5], builder.add(a[6], _index(8 * half)))
        return context.get_dummy_value()

    return signature, emit


EXAMPLES = 8
"""Examples of an input tile."""


@tile
def input_tile(
    typing, vectors, tables, tables_at, groups, words, words_at, stride, reach, valid, scratch, out,
    out_at,
):  # fmt: skip
    """A first layer of ±1 weights for eight examples and one or two times sixteen neurons.

    tables ``(groups, 8, 16)``: for each group of four inputs of an example all sixteen signed sums;
    words ``(groups / 8, stride)`` 32-bit words of a neuron's signs. Writes the signs of an example,
    those among ``valid``, as one 32-bit word; says whether a sum is within reach of zero.
    """
    number = vectors.literal_value
    signature = types.int64(
        vectors, tables, types.int64, types.int64, words, types.int64, types.int64, types.float32,
        types.int32, scratch, out, types.int64,
    )  # fmt: skip

    def emit(context, builder, signature, values):
        a = values
        vector, integers = _vector(_F32), _vector(_I32)
        permute = _declare(builder, "llvm.x86.avx512.permvar.sf.512", vector, [vector, integers])

        def step(g, sums):
            word = builder.add(a[5], builder.mul(builder.lshr(g, _index(3)), a[6]))
            shift = builder.shl(builder.and_(g, _index(7)), _index(2))
            shift = _splat(builder, builder.trunc(shift, _I32))
            nibbles = []
            for v in range(number):
                loaded = _load(builder, a[4], builder.add(word, _index(LANES * v)), integers)
                nibbles.append(builder.lshr(loaded, shift))
            row = builder.add(a[2], builder.mul(g, _index(16 * EXAMPLES)))
            first = builder.gep(a[1], [row])
            out = []
            for example in range(EXAMPLES):
                table = _load(builder, first, _index(16 * example), vector)
                for v in range(number):
                    found = builder.call(permute, [table, nibbles[v]])
                    out.append(builder.fadd(sums[example * number + v], found))
            return out

        zero = _constant(vector, 0.0)
        sums = _loop(builder, a[3], [zero] * (EXAMPLES * number), step)
        nearest = _constant(vector, float("inf"))
        for example in range(EXAMPLES):
            word = None
            for v in range(number):
                z = sums[example * number + v]
                nearest = _smaller_magnitude(builder, nearest, z)
                signs = builder.bitcast(builder.fcmp_ordered(">=", z, zero), _I16)
                signs = builder.zext(signs, _I32)
                word = signs if v == 0 else builder.or_(word, builder.shl(signs, _I32(16)))
            place = builder.add(a[11], _index(example))
            builder.store(builder.and_(word, a[8]), builder.gep(a[10], [place]))
        close = builder.fcmp_ordered("<=", nearest, _splat(builder, a[7]))
        near = builder.icmp_unsigned("!=", builder.bitcast(close, _I16), _I16(0))
        with builder.if_then(near, likely=False):
            for index, z in enumerate(sums):
                _store(builder, z, a[9], _index(LANES * index))
        return builder.zext(near, _I64)

    return signature, emit


@tile
def count_tile(typing, words, weights, weights_at, rows, inputs, inputs_at, least, out, out_at):
    """Up to 32 binary neurons with binary inputs, for one vector of examples: one word of codes.

    weights ``(rows, words)`` 32-bit words of signs; inputs ``(words, 128)``. A neuron is on where
    at most ``-least - 1`` of its inputs differ from its weights.
    """
    width = words.literal_value
    signature = types.void(
        words, weights, types.int64, types.int64, inputs, types.int64, types.int32, out,
        types.int64,
    )  # fmt: skip

    def emit(context, builder, signature, values):
        a = values
        integers = _vector(_I32)
        ones = _declare(builder, f"llvm.ctpop.v{LANES}i32", integers, [integers])
        x = [
            _load(builder, a[4], builder.add(a[5], _index(BLOCK * w)), integers)
            for w in range(width)
        ]
        start = _splat(builder, a[6])
        top = builder.sub(a[3], _index(1))

        def step(k, state):
            at = builder.add(a[2], builder.mul(builder.sub(top, k), _index(width)))
            differing = start
            for w in range(width):
                weight = builder.load(builder.gep(a[1], [builder.add(at, _index(w))]))
                different = builder.xor(x[w], _splat(builder, weight))
                differing = builder.add(differing, builder.call(ones, [different]))
            # Negative is on; the last row comes first, so that row 0 ends at bit 0.
            return [_shift_in_sign(builder, state[0], differing)]

        (word,) = _loop(builder, a[3], [_constant(integers, 0)], step)
        _store(builder, word, a[7], a[8])
        return context.get_dummy_value()

    return signature, emit


def _sum_over(builder, count, terms):
    """Σ of ``terms(offset)`` over ``count`` float64 in steps of sixteen, always in one order."""
    vector = _vector(_F64, 8)

    def step(k, sums):
        at = builder.mul(k, _index(16))
        return [
            builder.fadd(total, terms(builder.add(at, _index(8 * half))))
            for half, total in enumerate(sums)
        ]

    zero = _constant(vector, 0.0)
    low, high = _loop(builder, builder.sdiv(count, _index(16)), [zero, zero], step)
    both = builder.fadd(low, high)
    total = ir.Constant(_F64, 0.0)
    for lane in range(8):
        total = builder.fadd(total, builder.extract_element(both, ir.Constant(_I32, lane)))
    return total


@tile
def squared_error(typing, outputs, targets, targets_at, count):
    """Σ (y - t)², y rounded to float32 as a network's output is; count a multiple of 16."""
    signature = types.float64(outputs, targets, types.int64, types.int64)

    def emit(context, builder, signature, values):
        y, targets, at, count = values
        vector = _vector(_F64, 8)

        def term(offset):
            value = _load(builder, y, offset, vector)
            value = builder.fpext(builder.fptrunc(value, _vector(_F32, 8)), vector)
            target = _load(builder, targets, builder.add(at, offset), vector)
            error = builder.fsub(value, target)
            return builder.fmul(error, error)

        return _sum_over(builder, count, term)

    return signature, emit


@tile
def squared_decrease(typing, origin, outputs, targets, targets_at, count):
    """Σ (y₀ - t)² - (y - t)², as (y₀ - y)(y₀ + y - 2t), which keeps a small difference's digits."""
    signature = types.float64(origin, outputs, targets, types.int64, types.int64)

    def emit(context, builder, signature, values):
        origin, y, targets, at, count = values
        vector = _vector(_F64, 8)

        def term(offset):
            before, after = (
                _load(builder, origin, offset, vector),
                _load(builder, y, offset, vector),
            )
            target = _load(builder, targets, builder.add(at, offset), vector)
            both = builder.fadd(before, after)
            both = builder.fsub(both, builder.fadd(target, target))
            return builder.fmul(builder.fsub(before, after), both)

        return _sum_over(builder, count, term)

    return signature, emit


@tile
def moved_signs(typing, z, at, column, column_at, change, valid):
    """Bits of z + change · column ≥ 0 for 32 neurons, those among ``valid``."""
    signature = types.int32(z, types.int64, column, types.int64, types.float32, types.int32)

    def emit(context, builder, signature, values):
        z, at, column, column_at, change, valid = values
        vector = _vector(_F32, 16)
        step = _splat(builder, change, 16)
        word = valid.type(0)
        for half in range(2):
            here = _load(builder, z, builder.add(at, _index(16 * half)), vector)
            weight = _load(builder, column, builder.add(column_at, _index(16 * half)), vector)
            moved = builder.fadd(here, builder.fmul(step, weight))
            signs = builder.fcmp_ordered(">=", moved, _constant(vector, 0.0))
            bits = builder.zext(builder.bitcast(signs, _I16), _I32)
            word = builder.or_(word, builder.shl(bits, _I32(16 * half)))
        return builder.and_(word, valid)

    return signature, emit


@tile
def add_crossings(typing, z, edge, x, x_at, up, down, at, count, jump, out):
    """Out += jump · ([z + up · x ≥ edge] - [z + down · x ≥ edge]), ``count`` a multiple of 16."""
    signature = types.void(
        types.float32, types.float32, x, types.int64, up, down, types.int64, types.int64,
        types.float64, out,
    )  # fmt: skip

    def emit(context, builder, signature, values):
        z, edge, x, x_at, up, down, at, count, jump, out = values
        vector, sums = _vector(_F32, 16), _vector(_F64, 8)
        level, start = _splat(builder, edge, 16), _splat(builder, z, 16)
        gain, zero = _splat(builder, jump, 8), _constant(sums, 0.0)

        def step(k, state):
            offset = builder.mul(k, _index(16))
            here = builder.add(at, offset)
            value = _load(builder, x, builder.add(x_at, offset), vector)
            reached = []
            for move in (up, down):
                moved = builder.fmul(_load(builder, move, here, vector), value)
                moved = builder.fadd(start, moved)
                reached.append(builder.fcmp_ordered(">=", moved, level))
            for half in range(2):
                lanes = ir.Constant(_vector(_I32, 8), list(range(8 * half, 8 * half + 8)))
                raised, lowered = (
                    builder.select(builder.shuffle_vector(mask, mask, lanes), gain, zero)
                    for mask in reached
                )
                place = builder.add(here, _index(8 * half))
                total = builder.fadd(
                    _load(builder, out, place, sums), builder.fsub(raised, lowered)
                )
                _store(builder, total, out, place)
            return []

        _loop(builder, builder.sdiv(count, _index(16)), [], step)
        return context.get_dummy_value()

    return signature, emit
