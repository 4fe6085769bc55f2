"""The parts of a decode step that torch has no fast operation for, as Triton kernels: keys and values
into slots, attention over slots, and drawing from a nucleus."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS = 264  # two for each multiprocessor of a large GPU: below that a sequence is split
_COLUMNS = 64  # of the cache, at once
_WARPS, _STAGES = 4, 3
_UNUSED_BITS = {torch.bfloat16: 16, torch.float16: 13}  # of a float32 that holds one
_TOKENS = tl.constexpr(2048)  # of the vocabulary, at once


def write(
    keys: Tensor, new_keys: Tensor, values: Tensor, new_values: Tensor, positions: Tensor
) -> None:
    """keys [slots, heads, capacity, d], new_keys [rows, heads, 1, d], the same of values, positions
    [rows]: each row's new ones go into its slot, at its position."""
    rows, heads, _, dim = new_keys.shape
    value_dim = new_values.shape[-1]
    assert new_keys.stride(-1) == new_values.stride(-1) == 1
    _write[(rows, heads)](
        keys,
        new_keys,
        values,
        new_values,
        positions,
        *keys.stride()[:3],
        *new_keys.stride()[:2],
        *values.stride()[:3],
        *new_values.stride()[:2],
        dim,
        value_dim,
        D=triton.next_power_of_2(max(dim, value_dim)),
        num_warps=1,
    )


@triton.jit
def _write(
    keys,
    new_keys,
    values,
    new_values,
    positions,
    key_slot,
    key_head,
    key_column,
    new_key_row,
    new_key_head,
    value_slot,
    value_head,
    value_column,
    new_value_row,
    new_value_head,
    dim,
    value_dim,
    D: tl.constexpr,
):
    row, head, d = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, D)
    column = tl.load(positions + row)
    key = tl.load(new_keys + row * new_key_row + head * new_key_head + d, mask=d < dim)
    tl.store(keys + row * key_slot + head * key_head + column * key_column + d, key, mask=d < dim)
    value = tl.load(new_values + row * new_value_row + head * new_value_head + d, mask=d < value_dim)
    tl.store(
        values + row * value_slot + head * value_head + column * value_column + d,
        value,
        mask=d < value_dim,
    )


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """query [rows, key heads, group, d], key [rows, key heads, columns, d], value [.., d_v], positions
    [rows] -> [rows, key heads, group, d_v]: each row over the columns up to its position, the last
    ``window`` of them if that is not 0. Softmax and sums in float32.

    A program has one row and one head of keys, or a part of its columns where there are few of them; a
    second kernel then puts the parts together (arXiv 2311.01282, section 3: split-KV).
    """
    rows, key_heads, group, dim = query.shape
    value_dim = value.shape[-1]
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    most = triton.cdiv(key.shape[2], 2 * _COLUMNS)
    splits = max(1, min(_PROGRAMS // (rows * key_heads), most, 32))
    out = torch.empty(rows, key_heads, group, value_dim, dtype=value.dtype, device=value.device)
    sums = torch.empty(
        splits, rows, key_heads, group, value_dim + 2, dtype=torch.float32, device=value.device
    )
    block_d, block_v = max(16, triton.next_power_of_2(dim)), max(16, triton.next_power_of_2(value_dim))
    block_group = max(16, triton.next_power_of_2(group))
    sink = query if sinks is None else sinks
    _attend[(rows, key_heads, splits)](
        query,
        key,
        value,
        out,
        sums,
        positions,
        sink,
        scale,
        softcap,
        window,
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        group,
        dim,
        value_dim,
        splits,
        rows * key_heads * group * (value_dim + 2),
        WHOLE=splits == 1,
        SOFTCAP=softcap != 0,
        SINKS=sinks is not None,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        GROUP=block_group,
        D=block_d,
        V=block_v,
        COLUMNS=_COLUMNS,
        num_warps=_WARPS,
        num_stages=_STAGES,
    )
    if splits > 1:
        _put_together[(rows * key_heads * group,)](
            sums, out, sink, value_dim, splits, key_heads * group, SINKS=sinks is not None, V=block_v
        )
    return out


@triton.jit
def _attend(
    query,
    key,
    value,
    out,
    sums,
    positions,
    sinks,
    scale,
    softcap,
    window,
    query_row,
    query_head,
    query_member,
    key_row,
    key_head,
    key_column,
    value_row,
    value_head,
    value_column,
    group,
    dim,
    value_dim,
    splits,
    split_size,
    WHOLE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    n = tl.load(positions + row).to(tl.int32) + 1
    first = tl.maximum(n - window, 0) if window > 0 else 0
    blocks = tl.cdiv(tl.cdiv(n - first, COLUMNS), splits)
    low = first + split * blocks * COLUMNS
    high = tl.minimum(n, low + blocks * COLUMNS)

    member, d, v = tl.arange(0, GROUP), tl.arange(0, D), tl.arange(0, V)
    place = (row * tl.num_programs(1) + head) * group + member  # of a query among all
    q = tl.load(
        query + row * query_row + head * query_head + member[:, None] * query_member + d[None, :],
        mask=(member[:, None] < group) & (d[None, :] < dim),
        other=0.0,
    )
    largest = tl.full([GROUP], -float("inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    sum_of_values = tl.zeros([GROUP, V], tl.float32)
    keys = key + row * key_row + head * key_head
    values = value + row * value_row + head * value_head
    for start in range(low, high, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < high
        k = tl.load(
            keys + column[None, :].to(tl.int64) * key_column + d[:, None],
            mask=inside[None, :] & (d[:, None] < dim),
            other=0.0,
        )
        score = tl.dot(q, k, input_precision=PRECISION) * scale
        if SOFTCAP:
            score = softcap * (1 - 2 / (1 + tl.exp(2 * score / softcap)))
        score = tl.where(inside[None, :], score, -float("inf"))
        higher = tl.maximum(largest, tl.max(score, 1))
        share = tl.exp(score - higher[:, None])
        shrunk = tl.exp(largest - higher)
        total = total * shrunk + tl.sum(share, 1)
        seen = tl.load(
            values + column[:, None].to(tl.int64) * value_column + v[None, :],
            mask=inside[:, None] & (v[None, :] < value_dim),
            other=0.0,
        )
        sum_of_values = sum_of_values * shrunk[:, None] + tl.dot(
            share.to(seen.dtype), seen, input_precision=PRECISION
        )
        largest = higher
    mine = (member[:, None] < group) & (v[None, :] < value_dim)
    if WHOLE:
        if SINKS:
            sink = tl.load(sinks + head * group + member, mask=member < group, other=0.0).to(tl.float32)
            total += tl.exp(sink - largest)
        result = sum_of_values / total[:, None]
        tl.store(
            out + place[:, None] * value_dim + v[None, :], result.to(out.dtype.element_ty), mask=mine
        )
    else:
        part = sums + split.to(tl.int64) * split_size + place * (value_dim + 2)
        tl.store(part[:, None] + v[None, :], sum_of_values, mask=mine)
        tl.store(part + value_dim, largest, mask=member < group)
        tl.store(part + value_dim + 1, total, mask=member < group)


@triton.jit
def _put_together(sums, out, sinks, value_dim, splits, heads, SINKS: tl.constexpr, V: tl.constexpr):
    place = tl.program_id(0).to(tl.int64)
    v = tl.arange(0, V)
    size = tl.num_programs(0).to(tl.int64) * (value_dim + 2)
    part = sums + place * (value_dim + 2)
    largest = -float("inf")
    for split in range(splits):
        largest = tl.maximum(largest, tl.load(part + split * size + value_dim))
    total = 0.0
    result = tl.zeros([V], tl.float32)
    for split in range(splits):
        here = part + split * size
        weight = tl.exp(tl.load(here + value_dim) - largest)  # 0 of a part without columns
        total += weight * tl.load(here + value_dim + 1)
        result += weight * tl.load(here + v, mask=v < value_dim, other=0.0)
    if SINKS:
        total += tl.exp(tl.load(sinks + place % heads).to(tl.float32) - largest)
    tl.store(out + place * value_dim + v, (result / total).to(out.dtype.element_ty), mask=v < value_dim)


def draw(scores: Tensor, temperature: float, top_p: float, u: Tensor) -> Tensor:
    """``sampling.draw`` on CUDA: scores [rows, vocab], u [rows] float64 -> [rows] int64.

    No sort: the least probable token of the nucleus is found by bisection over the bits of the scores,
    which are in the order of the floats; over those that their type has.
    """
    rows, vocab = scores.shape
    assert scores.stride(1) == 1
    out = torch.empty(rows, dtype=torch.int64, device=scores.device)
    _draw[(rows,)](
        scores,
        u,
        out,
        scores.stride(0),
        vocab,
        1 / temperature,
        top_p,
        NUCLEUS=top_p < 1,
        SHIFT=_UNUSED_BITS.get(scores.dtype, 0),
        num_warps=16,
    )
    return out


@triton.jit
def _ordered(x, SHIFT: tl.constexpr):
    """Integers in the order of the floats."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> SHIFT


@triton.jit
def _draw(
    scores, uniform, out, stride, vocab, sharpness, top_p, NUCLEUS: tl.constexpr, SHIFT: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    scores += row * stride
    token = tl.arange(0, _TOKENS)
    highest = tl.full([_TOKENS], -float("inf"), tl.float32)
    for start in range(0, vocab, _TOKENS):
        x = tl.load(scores + start + token, mask=start + token < vocab, other=-float("inf"))
        highest = tl.maximum(highest, x.to(tl.float32))
    top = tl.max(highest, 0)
    sums = tl.zeros([_TOKENS], tl.float32)
    for start in range(0, vocab, _TOKENS):
        x = tl.load(scores + start + token, mask=start + token < vocab, other=-float("inf"))
        sums += tl.exp((x.to(tl.float32) - top) * sharpness)
    kept = tl.sum(sums.to(tl.float64), 0)

    low = tl.full([], -2147483648 >> SHIFT, tl.int64)  # tokens from here on have top_p together
    if NUCLEUS:  # as those do that no whole vocabulary of the others could take 1 - top_p from
        bound = top + tl.log((kept * (1 - top_p) / vocab).to(tl.float32)) / sharpness
        bound -= tl.abs(bound) * 1e-3 + 1e-3
        low = tl.maximum(low, tl.where(bound > -float("inf"), _ordered(bound, SHIFT), low).to(tl.int64))
    spare = tl.full([], 2147483647, tl.int64)  # of those at ``low``, so many
    if NUCLEUS:
        wanted = kept * top_p
        high = _ordered(top, SHIFT).to(tl.int64) + 1  # tokens from here on have less
        while high - low > 1:
            middle = (low + high) >> 1
            sums = tl.zeros([_TOKENS], tl.float32)
            for start in range(0, vocab, _TOKENS):
                x = tl.load(scores + start + token, mask=start + token < vocab, other=-float("inf"))
                x = x.to(tl.float32)
                sums += tl.where(_ordered(x, SHIFT) >= middle, tl.exp((x - top) * sharpness), 0.0)
            if tl.sum(sums.to(tl.float64), 0) >= wanted:
                low = middle
            else:
                high = middle
        sums = tl.zeros([_TOKENS], tl.float32)
        each = tl.zeros([_TOKENS], tl.float32)
        for start in range(0, vocab, _TOKENS):
            x = tl.load(scores + start + token, mask=start + token < vocab, other=-float("inf"))
            x = x.to(tl.float32)
            p = tl.exp((x - top) * sharpness)
            sums += tl.where(_ordered(x, SHIFT) > low, p, 0.0)
            each = tl.maximum(each, tl.where(_ordered(x, SHIFT) == low, p, 0.0))
        above, one = tl.sum(sums.to(tl.float64), 0), tl.max(each, 0).to(tl.float64)
        spare = tl.maximum(tl.ceil((wanted - above) / one), 1.0).to(tl.int64)

        kept = tl.zeros([], tl.float64)  # summed up as below, where the tokens are laid out
        left = spare
        for start in range(0, vocab, _TOKENS):
            x = tl.load(scores + start + token, mask=start + token < vocab, other=-float("inf"))
            x = x.to(tl.float32)
            same = _ordered(x, SHIFT) == low
            inside = (_ordered(x, SHIFT) > low) | (same & (tl.cumsum(same.to(tl.int32), 0) <= left))
            kept += tl.sum(tl.where(inside, tl.exp((x - top) * sharpness), 0.0).to(tl.float64), 0)
            left -= tl.sum(same.to(tl.int64), 0)

    target = tl.load(uniform + row) * kept
    before = tl.zeros([], tl.float64)
    found = tl.full([], -1, tl.int64)
    last = tl.zeros([], tl.int64)  # the last token of the nucleus: where rounding leaves none
    left = spare
    for start in range(0, vocab, _TOKENS):
        x = tl.load(scores + start + token, mask=start + token < vocab, other=-float("inf"))
        x = x.to(tl.float32)
        inside = x > -float("inf")
        if NUCLEUS:
            same = _ordered(x, SHIFT) == low
            inside &= (_ordered(x, SHIFT) > low) | (same & (tl.cumsum(same.to(tl.int32), 0) <= left))
            left -= tl.sum(same.to(tl.int64), 0)
        p = tl.where(inside, tl.exp((x - top) * sharpness), 0.0).to(tl.float64)
        here = tl.sum(p, 0)
        last = tl.maximum(last, tl.max(tl.where(inside, start + token, 0), 0).to(tl.int64))
        if (found < 0) & (before + here > target):
            up_to = before + tl.cumsum(p, 0)
            found = tl.min(tl.where(inside & (up_to > target), start + token, 2147483647), 0).to(
                tl.int64
            )
        before += here
    found = tl.where((found < 0) | (found >= vocab), last, found)
    tl.store(out + row, found)
