"""Bugs planted in the CUDA kernels, one at a time: every one is seen, most by name.

Each line: a file, what stands there, what is put in its place, a case of test_cuda_kernels.py
(and a dtype), and what the simulator says; "values" where only the numbers can tell.
"""

import re
import shutil

import pytest
import test_cuda_backend as of_backend
import test_cuda_kernels as correct
from cuda_sim import KernelError
from test_cuda_kernels import simulated

from tinygrad_ml import kernels

BARRIER = "  __syncthreads();\n"
RACE, BOUNDS, UNWRITTEN, VALUES = "race", "out of bounds", "unwritten", "values"
HALF, PAST, CAUSAL = "bfloat16", "attention with a past and grouped heads", "causal attention"
NLL, EACH = "linear_cross_entropy", "linear_cross_entropy, each"
TO_CACHE, BY_SIX = "attention of one query to a cache", "attention of one query by six heads"
OF_PADDED = "attention of one query where keys are padded"
SEES = "n.causal ? query + 1 + n.s - n.t : n.s"
PADDED, TILES = "attention where keys are padded", "attention in many tiles"
DQ_FETCH = f"  {BARRIER}    if (start + COLUMNS < end) fetch(start + COLUMNS, stage ^ 1);\n"

BUGS = [
    # sums of blocks and warps
    ("common.cuh", f"] = x;\n{BARRIER}  A sum", "] = x;\n  A sum", "rms_norm", "race|unwritten"),
    ("common.cuh", "  __syncthreads();  // the next call writes to it\n", "", "rms_norm, many rows", RACE),
    ("common.cuh", f"] = x;\n{BARRIER}  A largest", "] = x;\n  A largest", NLL, "race|unwritten"),
    ("common.cuh", "ALL_LANES = 0xffffffffu", "ALL_LANES = 0x7fffffffu", "rms_norm", "wrong mask"),
    ("common.cuh", "ALL_LANES = 0xffffffffu", "ALL_LANES = 0xffffu", NLL, "wrong mask"),
    ("common.cuh", "(int step = 16; step; step /= 2) x +=", "(int step = 8; step; step /= 2) x +=", "rms_norm", VALUES),
    ("common.cuh", "i = 0; i < blockDim.x / 32", "i = 0; i <= blockDim.x / 32", "rms_norm", UNWRITTEN),
    ("common.cuh", "threadIdx.x % 32 == 0) partial", "threadIdx.x % 16 == 0) partial", "rms_norm", RACE),
    ("common.cuh", "A partial[32];\n  x = warp_sum", "A partial[4];\n  x = warp_sum", "rms_norm", "out of bounds|race"),
    ("common.cuh", "round < 10", "round < 9", "dropout", VALUES),
    # rms_norm
    ("rms_norm.cu", "i < d; i += blockDim.x * V) {\n    load<V>(x", "i <= d; i += blockDim.x * V) {\n    load<V>(x", "rms_norm", BOUNDS),
    ("rms_norm.cu", "block_sum(sum) / d", "block_sum(sum) / (d + 1)", "rms_norm", VALUES),
    ("rms_norm.cu", "scale[blockIdx.x] = k", "scale[0] = k", "rms_norm", RACE),
    ("rms_norm.cu", "if (threadIdx.x == 0) scale", "scale", "rms_norm", RACE),
    ("rms_norm.cu", "dw[j * pieces + p] = 0;", ";", "rms_norm", UNWRITTEN),
    ("rms_norm.cu", "r += gridDim.x)", "r += gridDim.x + 1)", "rms_norm, many rows", UNWRITTEN),
    ("rms_norm.cu", "partial[(long long)blockIdx.x * d + i]", "partial[i]", "rms_norm", RACE),
    ("rms_norm.cu", "if (warp || column >= d) return", "if (warp) return", "rms_norm", BOUNDS),
    ("rms_norm.cu", "dw[j * pieces + p] += a[j]", "dw[j * pieces + p + 1] += a[j]", "rms_norm", "race|out of bounds|unwritten"),
    ("rms_norm.cu", "if (!dx) continue;", "if (threadIdx.x >= d) continue;", "rms_norm", "diverged|wrong mask|deadlock"),
    ("rms_norm.cu", "load<V>(gh + row + i, b);", "", "add_rms_norm", VALUES),
    ("rms_norm.cu", "= sum;\n  __syncthreads();\n", "= sum;\n", "rms_norm", "race|unwritten"),
    # rope
    ("rope.cu", "piece < heads * pieces", "piece <= heads * pieces", "rope", "race|out of bounds"),
    ("rope.cu", "blockIdx.x % time", "blockIdx.x % heads", "rope", "race|unwritten|values"),
    ("rope.cu", "turn = sign * s[j]", "turn = s[j]", "rope", VALUES),
    ("rope.cu", "store<V>(b, y + head * yh + i + half)", "store<V>(b, y + head * yh + i + half - 1)", "rope, odd width", RACE),
    ("rope.cu", "store<V>(b, y + head * yh + i + half)", "store<V>(b, y + head * yh + i + half - 1)", ("rope, wide", HALF), "misaligned"),
    ("rope.cu", "batch * xb + t * xt", "batch * xt + t * xb", "rope", "values|out of bounds"),
    # many arrays at once
    ("arrays.cuh", "min(start + CHUNK, a.n)", "start + CHUNK", "scaled", "out of bounds|race|unwritten"),
    ("arrays.cuh", ".first <= blockIdx.x", ".first < blockIdx.x", "squares", "values|out of bounds|unwritten|race"),
    ("squares.cu", "if (threadIdx.x == 0) partial", "partial", "squares", RACE),
    ("scaled.cu", "factor * some[j]", "some[j]", "scaled", VALUES),
    # attention of one query
    ("attention_of_one.cu", "!__syncthreads_or(mine < end", "!__syncthreads_or(mine < end - 63", TO_CACHE, "unwritten|values"),
    ("attention_of_one.cu", "if (mine < heads) sums", "if (mine < heads) tops", OF_PADDED, UNWRITTEN),
    ("attention_of_one.cu", "step < R::LANES; step *= 2) score", "step < R::LANES / 2; step *= 2) score", TO_CACHE, VALUES),
    ("attention_of_one.cu", "if (key < end) row", "row", TO_CACHE, BOUNDS),
    ("attention_of_one.cu", "bool seen = key < end && (!mask || mask[key])", "bool seen = key < end", OF_PADDED, VALUES),
    ("attention_of_one.cu", f"UNSEEN;\n    }}\n  }}\n{BARRIER}", "UNSEEN;\n    }\n  }\n", TO_CACHE, "race|unwritten"),
    ("attention_of_one.cu", f"sum;\n{BARRIER}\n", "sum;\n", TO_CACHE, RACE),
    ("attention_of_one.cu", "int head = group * shared_by + first_head + min", "int head = group * shared_by + min", BY_SIX, VALUES),
    ("attention_of_one.cu", "lane == 0 && head < heads) tops", "lane == 0) tops", BY_SIX, "race|out of bounds"),
    ("attention_of_one.cu", "i < heads * D; i += THREADS", "i < HEADS * D; i += THREADS", BY_SIX, "race|out of bounds"),
    ("attention_of_one.cu", "if (factors[c] > 0) out", "out", OF_PADDED, UNWRITTEN),
    ("attention_of_one.cu", "if (sums[of_head + c] > 0) top", "top", OF_PADDED, UNWRITTEN),
    # into_cache
    ("into_cache.cu", "  if (batch >= n.batches) return;\n", "", "into a cache", "out of bounds|race"),
    ("into_cache.cu", "n.heads + 2 * n.groups", "n.heads + 2 * n.groups + 1", "into a cache", "values|out of bounds|race"),
    ("into_cache.cu", "n.rows == 1 ? 0 : batch * n.half", "0", "into a cache", VALUES),
    ("into_cache.cu", "*place * values_steps.row", "0", "into a cache", VALUES),
    ("into_cache.cu", "b * c + a * s", "b * c - a * s", "into a cache", VALUES),
    # few_rows
    ("few_rows.cu", "  if (row >= m) return;", "  if (row > m) return;", "linear maps of a row", BOUNDS),
    ("few_rows.cu", "m = m_third, w = third", "m = m_third, w = second", "linear maps of a row", "values|out of bounds"),
    ("few_rows.cu", "if (i < n) with", "if (i <= n) with", "linear maps of a few rows", "values|out of bounds"),
    ("few_rows.cu", "start += AHEAD * 32 * V", "start += 32 * V", "linear maps of long rows", VALUES),
    ("few_rows.cu", "if (r >= few) break;", "", "linear maps of a few rows", BOUNDS),
    ("few_rows.cu", "y[r * m + row]", "y[r + row * few]", "linear maps of a few rows", VALUES),
    # add
    ("add.cu", "if (i >= n) return", "if (i > n) return", "halves added", BOUNDS),
    ("add.cu", "load<V>(b + i, more)", "load<V>(a + i, more)", "halves added", VALUES),
    # swiglu, dropout
    ("swiglu.cu", "if (i >= n) return;\n  Wide<T> a[V], b[V];\n", "if (i > n) return;\n  Wide<T> a[V], b[V];\n", "swiglu", BOUNDS),
    ("swiglu.cu", "T *y, long long n) {\n  long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * V", "T *y, long long n) {\n  long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x)", "swiglu, wide", "misaligned"),
    ("swiglu.cu", "store<V>(b, dgate", "store<V>(a, dgate", "swiglu", VALUES),
    ("swiglu.cu", "expf(-x)", "expf(x)", "swiglu", VALUES),
    ("dropout.cu", "    if (first + i >= n) return;\n", "", "dropout, odd", BOUNDS),
    ("dropout.cu", "    if (first + i >= n) return;\n", "", "dropout", BOUNDS),
    ("dropout.cu", "words.y >=", "words.x >=", "dropout", VALUES),
    ("dropout.cu", "(first + i) / 4", "first / 4", ("dropout", HALF), VALUES),
    # cross-entropy
    ("linear_cross_entropy.cu", "  T m = block_max", "  if (threadIdx.x >= v) return;\n  T m = block_max", EACH, "diverged|wrong mask"),
    ("linear_cross_entropy.cu", "block_sum(sum * power(largest - m))", "block_sum(sum)", NLL, VALUES),
    ("linear_cross_entropy.cu", "given < 0 ? T(0) : logarithm", "logarithm", NLL, VALUES),
    ("linear_cross_entropy.cu", "i + j == target ? -others", "i + j == target + 1 ? -others", NLL, VALUES),
    ("linear_cross_entropy.cu", "target < 0 ? T(0) : slopes", "slopes", NLL, VALUES),
    ("linear_cross_entropy.cu", "top[blockIdx.x] = m", "top[0] = m", NLL, RACE),
    ("linear_cross_entropy.cu", "  __syncthreads();  // all have read the target's logit: one may write over it\n", "", "chunks", RACE),
    ("linear_cross_entropy.cu", "  if (threadIdx.x) return;\n", "", NLL, RACE),
    # embedding
    ("embedding.cu", "w + row * d + i, a", "w + row * d, a", "embedding", VALUES),
    ("embedding.cu", "(row % v + v) % v", "row % v", "beyond the table", "out of bounds|values"),
    ("embedding.cu", "if (!begins && first % SPAN) return;", "", "embedding", "race|unwritten|values"),
    ("embedding.cu", "first + count == n ||", "", ("embedding", HALF), BOUNDS),
    ("embedding.cu", "order[p] * d", "p * d", "embedding", VALUES),
    ("embedding.cu", "if (begins && ends)", "if (begins)", "embedding of few tokens", "race|unwritten|values"),
    ("embedding.cu", "before > 0 && rows[before - 1] == row", "false", "embedding of few tokens", "race|unwritten"),
    ("embedding.cu", "count == 32; p +=", "count == 33; p +=", "embedding of few tokens", VALUES),
    # adamw
    ("adamw.cu", "min(start + CHUNK, p.n)", "start + CHUNK", "adamw", "out of bounds|race|unwritten"),
    ("adamw.cu", ".first <= blockIdx.x", ".first < blockIdx.x", "adamw", VALUES),
    ("adamw.cu", "sqrt(v[j]) * correction", "sqrt(v[j])", "adamw", VALUES),
    ("adamw.cu", "i += blockDim.x * V", "i += blockDim.x", "adamw", RACE),
    ("adamw.cu", "store<V>(w, p.rounded + i)", "store<V>(m, p.rounded + i)", ("adamw", HALF), VALUES),
    ("adamw.cu", "load<V>(p.g + i, g)", "load<V>(p.g + i + 1, g)", ("adamw", HALF), "misaligned|out of bounds"),
    # products in parts
    ("product.cu", "p == low ? rest[j] : high[j]", "high[j]", "in parts", VALUES),
    ("product.cu", "i / run * 3 * run", "i / run * 2 * run", "in parts", "race|unwritten|values"),
    # quantised
    ("quantized_matmul.cu", "lane == 0 && first + k < m", "lane == 0", "quantised", BOUNDS),
    ("quantized_matmul.cu", "min(first + k, m - 1)", "(first + k)", "quantised", BOUNDS),
    ("quantized_matmul.cu", "i * 4 + part * 4", "i * 4 + part * 2", "quantised", "values|misaligned"),
    ("quantized_matmul.cu", "-8 * widen", "-7 * widen", "quantised", VALUES),
    ("quantized_matmul.cu", "lane == 0 && first", "first", "quantised", RACE),
    ("quantized_matmul.cu", "start + STEPS * NEXT <= count", "start <= count", "quantised", "out of bounds|values"),
    # self-organising maps
    ("best_matching_units.cu", "      __syncthreads();  // the last tiles have been read by all\n", "", "units", RACE),
    ("best_matching_units.cu", "f0, d);\n      __syncthreads();\n#pragma", "f0, d);\n#pragma", "units", "race|unwritten"),
    ("best_matching_units.cu", "sums[r][u] < best[r])", "sums[r][u] <= best[r])", "units", VALUES),
    ("best_matching_units.cu", "theirs < nearest[r])", "theirs > nearest[r])", "units", VALUES),
    ("best_matching_units.cu", "first + row < count && start + f < d", "first + row < count", "units", "out of bounds|values"),
    ("best_matching_units.cu", "first + row < count && start + f < d", "start + f < d", "units", "unwritten|out of bounds"),
    ("best_matching_units.cu", "if (j < k && sums", "if (sums", "units", VALUES),
    ("best_matching_units.cu", "if (of_unit || row >= n)", "if (of_unit)", "units", BOUNDS),
    ("best_matching_units.cu", "if (of_unit || row >= n)", "if (row >= n)", "units", RACE),
    ("unit_sums.cu", "starts[blockIdx.x + 1]", "starts[blockIdx.x + 2]", "sums", "out of bounds|values"),
    ("unit_sums.cu", "f += blockDim.x", "f++", "sums", RACE),
    # attention
    ("attention.cu", "    __syncthreads();  // this tile is there, and the last has been read by all\n", "", TILES, "race|unwritten"),
    ("attention.cu", DQ_FETCH, DQ_FETCH.replace(BARRIER, ""), TILES, "race|unwritten"),
    ("attention.cu", "    __syncthreads();\n    bool last", "    bool last", TILES, "race|unwritten"),
    ("attention.cu", "  __syncthreads();  // the tile has been read by all\n", "", (CAUSAL, HALF), RACE),
    ("attention.cu", "tile);\n  __syncthreads();\n", "tile);\n", (CAUSAL, HALF), "race|unwritten"),
    ("attention.cu", "cp.async.wait_all", "cp.async.wait_group 1", (CAUSAL, HALF), "race|unwritten"),
    ("attention.cu", "fetch(start + COLUMNS, stage ^ 1)", "fetch(start + COLUMNS, stage)", (TILES, HALF), "race|unwritten"),
    ("attention.cu", "row + i < left ? 16 : 0", "left > 0 ? 16 : 0", (CAUSAL, HALF), BOUNDS),
    ("attention.cu", "column < sizes.d ? n - first : 0;", "n - first;", (PADDED, HALF), "out of bounds|values"),
    ("attention.cu", "if (first + row < n && column", "if (column", (PAST, HALF), BOUNDS),
    ("attention.cu", SEES, SEES.replace(" + n.s - n.t", ""), PAST, VALUES),
    ("attention.cu", SEES, SEES.replace(" + 1", ""), CAUSAL, VALUES),
    ("attention.cu", "key < reach(query, n) && (", "(", "attention", VALUES),
    ("attention.cu", "whole = mask ? 0 : reach(first, n)", "whole = end", CAUSAL, VALUES),
    ("attention.cu", "first + ROWS - 1 - (n.s - n.t) : 0;", "first - (n.s - n.t) : 0;", CAUSAL, VALUES),
    ("attention.cu", "grew |= top[i] > largest[i];", "grew |= i && top[i] > largest[i];", TILES, VALUES),
    ("attention.cu", "      sum[i] *= shrink[i];\n", "", (TILES, HALF), VALUES),
    ("attention.cu", "top[i] > UNSEEN ? top[i] * by : 0.0f", "top[i] * by", PADDED, VALUES),
    ("attention.cu", "return x + __shfl_xor_sync(ALL_LANES, x, 2)", "return x + __shfl_xor_sync(ALL_LANES, x, 1)", "attention", VALUES),
    ("attention.cu", "rows = min(ROWS, n - first)", "rows = ROWS", "attention", "out of bounds|race"),
    ("attention.cu", "(y[e] - mean[i])", "y[e]", "attention", VALUES),
    ("attention.cu", "end = head + shared_by;", "end = head + shared_by + 1;", PAST, "out of bounds|values"),
    ("attention.cu", "/ COLUMNS * COLUMNS : 0", "/ COLUMNS * COLUMNS + COLUMNS : 0", CAUSAL, VALUES),
    ("attention.cu", "16 * M + lane % 16, lane / 16 * 8", "16 * M + lane % 16, lane / 8 * 8", ("attention", HALF), "values|unwritten|out of bounds"),
    ("attention.cu", "packed(next[0], next[1], b)", "packed(next[1], next[0], b)", ("attention", HALF), VALUES),
    ("attention.cu", "x4.trans.shared", "x4.shared", ("attention", HALF), VALUES),
    ("attention.cu", "read = start + i < n.t ?", "read = start + i <= n.t ?", ("attention", HALF), BOUNDS),
    ("attention.cu", "row / n.t % n.heads", "row / n.t % n.groups", PAST, "values|unwritten|out of bounds"),
    ("attention.cu", "threadIdx.x % 32 / 4 * 4 + c % 4", "c % 4", "attention", VALUES),
    ("attention.cu", "reach(min(first + ROWS, n.t) - 1, n)", "reach(first, n)", TILES, VALUES),
    ("attention.cu", "if (row >= rows) return;  // a whole warp", "if (row >= rows - 1) return;", "attention", UNWRITTEN),
    ("attention.cu", "PIECES * V);", "PIECES * (V / 2));", ("attention", HALF), "misaligned|out of bounds"),
]  # fmt: skip


def run(case, dtype, device):
    if case == "adamw":
        return correct.test_adamw_steps_as_on_the_cpu(device, dtype)
    if case in ("scaled", "squares"):
        return correct.test_gradients_are_scaled_as_on_the_cpu(device, "float32")
    if case == "in parts":
        return of_backend.test_products_in_parts_miss_no_more_than_they_say(device, 96, "")
    if case == "halves added":
        return correct.test_halves_are_added_to_the_bits_of_the_cpu(device, HALF, 72)
    if case == "beyond the table":
        return correct.test_an_index_beyond_the_table_counts_from_its_other_end(device)
    if case == "chunks":
        with pytest.MonkeyPatch.context() as patch:
            return correct.test_cross_entropy_in_chunks_of_logits(device, patch)
    if case == "quantised":
        return correct.test_products_with_quantised_weights(device, "Q4_0", 18, 1, 11, 96)
    if case == "into a cache":
        return correct.test_a_token_is_turned_and_put_into_a_cache(device, 2, "float32")
    if case == "units":
        return correct.test_best_matching_units(device, 150, 140, 5, "float32")
    if case == "sums":
        return correct.test_sums_of_the_units(device, True)
    return correct.test_values_and_gradients(device, case, dtype)


def sampled():
    """Every eighth by default, the rest where there is time."""
    for i, bug in enumerate(BUGS):
        name = f"{bug[0]}-{i}"
        yield pytest.param(*bug, id=name, marks=[pytest.mark.thorough] if i % 8 else [])


@simulated
@pytest.mark.parametrize("file, old, new, case, said", list(sampled()))
@pytest.mark.parametrize("cuda", ["simulated"], indirect=True)
def test_a_planted_bug_is_seen(cuda, tmp_path, monkeypatch, file, old, new, case, said):
    text = (kernels.cuda.FOLDER / file).read_text()
    assert old in text
    for path in [*kernels.cuda.FOLDER.glob("*.cu"), *kernels.cuda.FOLDER.glob("*.cuh")]:
        shutil.copy(path, tmp_path)
    (tmp_path / file).write_text(text.replace(old, new, 1))
    monkeypatch.setattr(kernels.cuda, "FOLDER", tmp_path)
    monkeypatch.setattr(kernels.cuda, "OPTIONS", ("-std=c++17", f"-I{tmp_path}"))
    kernels.cuda.function.cache_clear()
    case, dtype = case if isinstance(case, tuple) else (case, "float32")
    try:
        with pytest.raises((KernelError, AssertionError)) as caught:
            run(case, dtype, cuda)
    finally:
        kernels.cuda.function.cache_clear()
    by_name = isinstance(caught.value, KernelError)
    assert re.search(said, str(caught.value) if by_name else VALUES), str(caught.value)


def test_there_are_enough_of_them():
    assert len(BUGS) >= 40
    assert {bug[0] for bug in BUGS} == {p.name for p in kernels.cuda.FOLDER.glob("*.cu*")}
