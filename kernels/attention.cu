// O = softmax(scale Q K^T where seen) V      q, o: (b, h, t, d)  k, v: (b, g, s, d)  see attention.py
//
// A block takes ROWS queries of one head and passes over the keys, COLUMNS at a time in shared
// memory (Dao 2023): of each row only the greatest score, the sum of exponentials and the output
// are kept, so no (t, s) matrix exists. Backward makes the weights again from the log of each sum:
// one kernel for dQ, one for dK and dV, each block alone writing its rows: no atomics, and the same
// bits every time, for 7 products instead of 5.
//
// The three kernels are written once, over a Tile: halves multiply on tensor cores (mma), 16 or 32
// rows a warp; float32 by exact multiply-adds. In both, four neighbouring lanes share a row. While
// a tile is multiplied, the next is copied to a second place: one barrier a tile.
// Bytes: q, o once; k, v once for each block of queries, mostly from cache.
#include "common.cuh"

constexpr int THREADS = 128, WARPS = THREADS / 32;
constexpr float UNSEEN = -3.0e38f, LOG2_E = 1.4426950408889634f;

struct Sizes { int heads, groups, t, s, d, causal, vectors; };

// ------------------------------------------------------------------------------- instructions

__device__ __forceinline__ void mma(float *c, const unsigned *a, const unsigned *b, const __nv_bfloat16 *) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma(float *c, const unsigned *a, const unsigned *b, const __half *) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void load_four(unsigned *r, const void *row) {
  unsigned from = __cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}
__device__ __forceinline__ void load_four_turned(unsigned *r, const void *row) {
  unsigned from = __cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}
// 16 bytes, or 4, to shared memory, of which `read` come from memory and the rest are zeros.
__device__ __forceinline__ void copy_async(void *to, const void *from, int read) {
  unsigned address = __cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(read) : "memory");
}
__device__ __forceinline__ void copy_number(float *to, const float *from, int read) {
  unsigned address = __cvta_generic_to_shared(to);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(from), "r"(read) : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ __forceinline__ float power_of_two(float x) {  // to 2 ulp, and 0 below 2^-126
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ unsigned packed(float a, float b, const __nv_bfloat16 *) {
  union { __nv_bfloat162 halves; unsigned both; } pair;
  pair.halves = __floats2bfloat162_rn(a, b);
  return pair.both;
}
__device__ __forceinline__ unsigned packed(float a, float b, const __half *) {
  union { __half2 halves; unsigned both; } pair;
  pair.halves = __floats2half2_rn(a, b);
  return pair.both;
}

// -------------------------------------------------------------------------------------- tiles
//
// Rows in shared memory are D wide, zeros beyond d. Their pieces of 16 bytes are moved about so that
// eight rows at the same column lie in different banks; with ROW and COLUMN multiples of 16,
// place(row + ROW, column + COLUMN) = ROW * D + (place(row, column) ^ COLUMN).
template <class T, int D> __device__ __forceinline__ int place(int row, int column) {
  constexpr int V = 16 / sizeof(T), PIECES = D / V < 8 ? D / V : 8;
  return row * D + (column ^ row / (8 / PIECES) % PIECES * V);
}

// A has ROWS rows, B has COLUMNS rows.
//   products   x = A B^T: entry e of a thread is that of row(slot(e)) and column(e)
//   add        out += x B: entry e of out is that of row(slot(e)) and out_column(e)
//   put        out, times a factor for each row, to where A was

// Tensor cores: a warp has 16 rows, or twice 16. Fragments are laid out as PTX says for m16n8k16: a
// lane has rows lane / 4 and lane / 4 + 8, and of each 8 columns the pair 2 (lane % 4).
template <class T, int D, int ROWS, int COLUMNS> struct Tile {
  static constexpr int M = ROWS / WARPS / 16;
  static constexpr int SLOTS = 2 * M, PRODUCTS = M * COLUMNS / 2, OUT = M * D / 2;

  __device__ static int slot(int e) { return e / 4 % M * 2 + e % 4 / 2; }
  __device__ static int row(int slot) {
    return threadIdx.x / 32 * 16 * M + threadIdx.x % 32 / 4 + 8 * slot;
  }
  __device__ static int column(int e) { return e / (4 * M) * 8 + threadIdx.x % 4 * 2 + e % 2; }
  __device__ static int out_column(int e) { return column(e); }

  __device__ static void products(const T *a, const T *b, float *x) {
    int lane = threadIdx.x % 32;
    int left = place<T, D>(threadIdx.x / 32 * 16 * M + lane % 16, lane / 16 * 8);
    int right = place<T, D>(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8);
#pragma unroll
    for (int e = 0; e < PRODUCTS; e++) x[e] = 0;
#pragma unroll
    for (int k = 0; k < D; k += 16) {
      unsigned rows[M][4], columns[4];
#pragma unroll
      for (int m = 0; m < M; m++) load_four(rows[m], a + m * 16 * D + (left ^ k));
#pragma unroll
      for (int n = 0; n < COLUMNS; n += 16) {
        load_four(columns, b + n * D + (right ^ k));
#pragma unroll
        for (int m = 0; m < M; m++) {
          float *here = x + n / 2 * M + 4 * m;
          mma(here, rows[m], columns, a);
          mma(here + 4 * M, rows[m], columns + 2, a);
        }
      }
    }
  }

  __device__ static void add(const float *x, const T *b, float *out) {
    int lane = threadIdx.x % 32, right = place<T, D>(lane % 16, lane / 16 * 8);
#pragma unroll
    for (int k = 0; k < COLUMNS; k += 16) {
      unsigned rows[M][4], columns[4];
#pragma unroll
      for (int m = 0; m < M; m++) {
        const float *here = x + k / 2 * M + 4 * m, *next = here + 4 * M;
        rows[m][0] = packed(here[0], here[1], b);  // a pair of sums lies as a pair of factors does
        rows[m][1] = packed(here[2], here[3], b);
        rows[m][2] = packed(next[0], next[1], b);
        rows[m][3] = packed(next[2], next[3], b);
      }
#pragma unroll
      for (int n = 0; n < D; n += 16) {
        load_four_turned(columns, b + k * D + (right ^ n));
#pragma unroll
        for (int m = 0; m < M; m++) {
          float *there = out + n / 2 * M + 4 * m;
          mma(there, rows[m], columns, b);
          mma(there + 4 * M, rows[m], columns + 2, b);
        }
      }
    }
  }

  __device__ static void put(const float *out, const float *factors, T *a) {
#pragma unroll
    for (int e = 0; e < OUT; e += 2) {
      float factor = factors[slot(e)];
      *reinterpret_cast<unsigned *>(a + place<T, D>(row(slot(e)), out_column(e))) =
          packed(out[e] * factor, out[e + 1] * factor, a);
    }
  }
};

// float32: a lane has every fourth column of one row of products, and four of each sixteen of out.
template <int D, int ROWS, int COLUMNS> struct Tile<float, D, ROWS, COLUMNS> {
  static constexpr int SLOTS = 1, PRODUCTS = COLUMNS / 4, OUT = D / 4;

  __device__ static int slot(int) { return 0; }
  __device__ static int row(int) { return threadIdx.x / 4; }
  __device__ static int column(int e) { return 4 * e + threadIdx.x % 4; }
  __device__ static int out_column(int e) { return e / 4 * 16 + threadIdx.x % 4 * 4 + e % 4; }

  __device__ static void products(const float *a, const float *b, float *x) {
#pragma unroll
    for (int e = 0; e < PRODUCTS; e++) x[e] = 0;
    for (int k = 0; k < D; k += 4) {
      float left[4], right[4];
      load<4>(a + place<float, D>(row(0), k), left);
#pragma unroll
      for (int e = 0; e < PRODUCTS; e++) {
        load<4>(b + place<float, D>(column(e), k), right);
#pragma unroll
        for (int i = 0; i < 4; i++) x[e] += left[i] * right[i];
      }
    }
  }

  __device__ static void add(const float *x, const float *b, float *out) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      float left = __shfl_sync(ALL_LANES, x[c / 4], threadIdx.x % 32 / 4 * 4 + c % 4), right[4];
#pragma unroll
      for (int e = 0; e < OUT; e += 4) {
        load<4>(b + place<float, D>(c, out_column(e)), right);
#pragma unroll
        for (int i = 0; i < 4; i++) out[e + i] += left * right[i];
      }
    }
  }

  __device__ static void put(const float *out, const float *factors, float *a) {
#pragma unroll
    for (int e = 0; e < OUT; e++) a[place<float, D>(row(0), out_column(e))] = out[e] * factors[0];
  }
};

// A tile of rows first, first + 1, ... of (n, d), `step` apart. Copies must be waited for.
template <class T, int D, int ROWS>
__device__ void fill(T *tile, const T *from, long long step, int first, int n, Sizes sizes) {
  constexpr int V = 16 / sizeof(T), PIECES = D / V;
  if (sizes.vectors) {  // rows begin at 16 bytes, and d fills whole ones
    int row = threadIdx.x / PIECES, column = threadIdx.x % PIECES * V, left = column < sizes.d ? n - first : 0;
    const T *here = from + (first + row) * step + column;
#pragma unroll
    for (int i = 0; i < ROWS; i += THREADS / PIECES)
      copy_async(tile + place<T, D>(row + i, column), here + i * step, row + i < left ? 16 : 0);
    return;
  }
  for (int i = threadIdx.x; i < ROWS * D; i += THREADS) {
    int row = i / D, column = i % D;
    T &to = tile[place<T, D>(row, column)];
    if (first + row < n && column < sizes.d) to = from[(first + row) * step + column];
    else narrow(0.0f, to);
  }
}

// The reverse: rows first, first + 1, ... of (n, d) from a tile, which takes them from the threads.
template <class Mine, class T, int D, int ROWS>
__device__ void write(T *tile, T *to, long long step, int first, int n, Sizes sizes, const float *out,
                      const float *factors) {
  __syncthreads();  // the tile has been read by all
  Mine::put(out, factors, tile);
  __syncthreads();
  constexpr int V = 16 / sizeof(T);
  int rows = min(ROWS, n - first);
  if (sizes.vectors) {
    for (int i = threadIdx.x; i < rows * (D / V); i += THREADS) {
      int row = i / (D / V), column = i % (D / V) * V;
      if (column < sizes.d)
        *reinterpret_cast<uint4 *>(to + (first + row) * step + column) =
            *reinterpret_cast<const uint4 *>(tile + place<T, D>(row, column));
    }
    return;
  }
  for (int i = threadIdx.x; i < rows * D; i += THREADS) {
    int row = i / D, column = i % D;
    if (column < sizes.d) to[(first + row) * step + column] = tile[place<T, D>(row, column)];
  }
}

// How many keys a query sees, a mask apart: if causal, the last query is at the last key.
__device__ __forceinline__ int reach(int query, Sizes n) {
  return query >= n.t ? 0 : n.causal ? query + 1 + n.s - n.t : n.s;
}
__device__ __forceinline__ bool seen(int query, int key, const bool *mask, long long step, Sizes n) {
  return key < reach(query, n) && (!mask || mask[query * step + key]);
}
__device__ __forceinline__ float lanes_sum(float x) {  // over the four lanes of a row
  x += __shfl_xor_sync(ALL_LANES, x, 1);
  return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
__device__ __forceinline__ float lanes_max(float x) {
  x = max(x, __shfl_xor_sync(ALL_LANES, x, 1));
  return max(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

// ------------------------------------------------------------------------------------ forward
//
// Weights are powers of two, of scores times scale log2(e); log_sum is to the base 2, too. Only the
// tiles that not all rows see whole are looked at key by key.

// grid: (heads, tiles of queries, batches)      shared: one tile of ROWS, four of COLUMNS
template <class T, int D, int ROWS, int COLUMNS>
__global__ void __launch_bounds__(128)
attention_forward(const T *q, Steps qs, const T *k, Steps ks, const T *v, Steps vs, T *o, Steps os,
                  const bool *mask, Steps ms, float *log_sum, Sizes n, float scale) {
  using Mine = Tile<T, D, ROWS, COLUMNS>;
  extern __shared__ float4 memory[];
  T *queries = reinterpret_cast<T *>(memory), *keys = queries + ROWS * D, *values = keys + 2 * COLUMNS * D;
  int head = blockIdx.x, group = head / (n.heads / n.groups);
  int first = (gridDim.y - 1 - blockIdx.y) * ROWS;  // if causal, those with most to do begin first
  long long batch = blockIdx.z;
  q += batch * qs.batch + head * qs.head;
  k += batch * ks.batch + group * ks.head;
  v += batch * vs.batch + group * vs.head;
  o += batch * os.batch + head * os.head;
  if (mask) mask += batch * ms.batch + head * ms.head;
  int end = reach(min(first + ROWS, n.t) - 1, n);  // of the keys that some row sees,
  int whole = mask ? 0 : reach(first, n);          // and of those that all see

  auto fetch = [&](int start, int stage) {
    fill<T, D, COLUMNS>(keys + stage * COLUMNS * D, k, ks.row, start, n.s, n);
    fill<T, D, COLUMNS>(values + stage * COLUMNS * D, v, vs.row, start, n.s, n);
  };
  float out[Mine::OUT] = {}, largest[Mine::SLOTS], sum[Mine::SLOTS], x[Mine::PRODUCTS];
  for (int i = 0; i < Mine::SLOTS; i++) largest[i] = UNSEEN, sum[i] = 0;
  float by = scale * LOG2_E;
  fill<T, D, ROWS>(queries, q, qs.row, first, n.t, n);
  fetch(0, 0);
  for (int start = 0, stage = 0; start < end; start += COLUMNS, stage ^= 1) {
    wait_for_copies();
    __syncthreads();  // this tile is there, and the last has been read by all
    if (start + COLUMNS < end) fetch(start + COLUMNS, stage ^ 1);
    Mine::products(queries, keys + stage * COLUMNS * D, x);
    if (start + COLUMNS > whole) {
#pragma unroll
      for (int e = 0; e < Mine::PRODUCTS; e++)
        if (!seen(first + Mine::row(Mine::slot(e)), start + Mine::column(e), mask, ms.row, n)) x[e] = UNSEEN;
    }
    float top[Mine::SLOTS], shrink[Mine::SLOTS];
    bool grew = false;
    for (int i = 0; i < Mine::SLOTS; i++) top[i] = largest[i];
#pragma unroll
    for (int e = 0; e < Mine::PRODUCTS; e++) top[Mine::slot(e)] = max(top[Mine::slot(e)], x[e]);
    for (int i = 0; i < Mine::SLOTS; i++) {
      top[i] = lanes_max(top[i]);
      grew |= top[i] > largest[i];
      shrink[i] = power_of_two((largest[i] - top[i]) * by);
      largest[i] = top[i];
      top[i] = top[i] > UNSEEN ? top[i] * by : 0.0f;  // a row that sees nothing stays 0
      sum[i] *= shrink[i];
    }
#pragma unroll
    for (int e = 0; e < Mine::PRODUCTS; e++) {
      int i = Mine::slot(e);
      x[e] = power_of_two(x[e] * by - top[i]);
      sum[i] += x[e];
    }
    if (__any_sync(ALL_LANES, grew)) {  // seldom, after the first tiles
#pragma unroll
      for (int e = 0; e < Mine::OUT; e++) out[e] *= shrink[Mine::slot(e)];
    }
    Mine::add(x, values + stage * COLUMNS * D, out);
  }
  for (int i = 0; i < Mine::SLOTS; i++) {
    sum[i] = lanes_sum(sum[i]);
    int row = first + Mine::row(i);
    if (row < n.t && threadIdx.x % 4 == 0)
      log_sum[(batch * n.heads + head) * n.t + row] = sum[i] > 0 ? largest[i] * by + log2f(sum[i]) : 0.0f;
    sum[i] = sum[i] > 0 ? 1 / sum[i] : 0.0f;
  }
  write<Mine, T, D, ROWS>(queries, o, os.row, first, n.t, n, out, sum);
}

// ----------------------------------------------------------------------------------- backward

// delta = sum over d of g o, for each row: a warp each      grid: rows / 4
template <class T>
__global__ void attention_delta(const T *g, Steps gs, const T *o, Steps os, float *delta, Sizes n, int rows) {
  int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= rows) return;  // a whole warp
  long long time = row % n.t, head = row / n.t % n.heads, batch = row / n.t / n.heads;
  g += batch * gs.batch + head * gs.head + time * gs.row;
  o += batch * os.batch + head * os.head + time * os.row;
  constexpr int V = 16 / sizeof(T);
  int lane = threadIdx.x % 32;
  float a[V], b[V], sum = 0;
  for (int i = lane * V; n.vectors && i < n.d; i += 32 * V) {
    load<V>(g + i, a);
    load<V>(o + i, b);
    for (int j = 0; j < V; j++) sum += a[j] * b[j];
  }
  for (int i = lane; !n.vectors && i < n.d; i += 32) sum += widen(g[i]) * widen(o[i]);
  sum = warp_sum(sum);
  if (lane == 0) delta[row] = sum;
}

// dQ = dS K,  dS = scale P (g V^T - delta)
// grid: (heads, tiles of queries, batches)      shared: two tiles of ROWS, four of COLUMNS
template <class T, int D, int ROWS, int COLUMNS>
__global__ void __launch_bounds__(128)
attention_dq(const T *g, Steps gs, const T *q, Steps qs, const T *k, Steps ks, const T *v, Steps vs,
             const bool *mask, Steps ms, const float *log_sum, const float *delta, T *dq, Steps dqs, Sizes n,
             float scale) {
  using Mine = Tile<T, D, ROWS, COLUMNS>;
  extern __shared__ float4 memory[];
  T *queries = reinterpret_cast<T *>(memory), *slopes = queries + ROWS * D;
  T *keys = slopes + ROWS * D, *values = keys + 2 * COLUMNS * D;
  int head = blockIdx.x, group = head / (n.heads / n.groups);
  int first = (gridDim.y - 1 - blockIdx.y) * ROWS;
  long long batch = blockIdx.z, rows = (batch * n.heads + head) * n.t;
  k += batch * ks.batch + group * ks.head;
  v += batch * vs.batch + group * vs.head;
  if (mask) mask += batch * ms.batch + head * ms.head;
  int end = reach(min(first + ROWS, n.t) - 1, n), whole = mask ? 0 : reach(first, n);

  auto fetch = [&](int start, int stage) {
    fill<T, D, COLUMNS>(keys + stage * COLUMNS * D, k, ks.row, start, n.s, n);
    fill<T, D, COLUMNS>(values + stage * COLUMNS * D, v, vs.row, start, n.s, n);
  };
  float out[Mine::OUT] = {}, x[Mine::PRODUCTS], y[Mine::PRODUCTS];
  float all[Mine::SLOTS], mean[Mine::SLOTS], factors[Mine::SLOTS];
  for (int i = 0; i < Mine::SLOTS; i++) {
    int row = first + Mine::row(i);
    all[i] = row < n.t ? log_sum[rows + row] : 0.0f;
    mean[i] = row < n.t ? delta[rows + row] : 0.0f;
    factors[i] = scale;
  }
  float by = scale * LOG2_E;
  fill<T, D, ROWS>(queries, q + batch * qs.batch + head * qs.head, qs.row, first, n.t, n);
  fill<T, D, ROWS>(slopes, g + batch * gs.batch + head * gs.head, gs.row, first, n.t, n);
  fetch(0, 0);
  for (int start = 0, stage = 0; start < end; start += COLUMNS, stage ^= 1) {
    wait_for_copies();
    __syncthreads();
    if (start + COLUMNS < end) fetch(start + COLUMNS, stage ^ 1);
    Mine::products(queries, keys + stage * COLUMNS * D, x);
    Mine::products(slopes, values + stage * COLUMNS * D, y);
    if (start + COLUMNS > whole) {
#pragma unroll
      for (int e = 0; e < Mine::PRODUCTS; e++)
        if (!seen(first + Mine::row(Mine::slot(e)), start + Mine::column(e), mask, ms.row, n)) x[e] = UNSEEN;
    }
#pragma unroll
    for (int e = 0; e < Mine::PRODUCTS; e++) {
      int i = Mine::slot(e);
      x[e] = power_of_two(x[e] * by - all[i]) * (y[e] - mean[i]);
    }
    Mine::add(x, keys + stage * COLUMNS * D, out);
  }
  write<Mine, T, D, ROWS>(queries, dq + batch * dqs.batch + head * dqs.head, dqs.row, first, n.t, n, out, factors);
}

// dV = P^T g,  dK = dS^T Q: the same with keys as rows and queries as columns
// grid: (groups, tiles of keys, batches)
// shared: two tiles of ROWS, four of COLUMNS, and log_sum and delta of the latter
template <class T, int D, int ROWS, int COLUMNS>
__global__ void __launch_bounds__(128)
attention_dkv(const T *g, Steps gs, const T *q, Steps qs, const T *k, Steps ks, const T *v, Steps vs,
              const bool *mask, Steps ms, const float *log_sum, const float *delta, T *dk, Steps dks, T *dv,
              Steps dvs, Sizes n, float scale) {
  using Mine = Tile<T, D, ROWS, COLUMNS>;
  extern __shared__ float4 memory[];
  T *keys = reinterpret_cast<T *>(memory), *values = keys + ROWS * D;
  T *queries = values + ROWS * D, *slopes = queries + 2 * COLUMNS * D;
  float *all = reinterpret_cast<float *>(slopes + 2 * COLUMNS * D), *mean = all + 2 * COLUMNS;
  int group = blockIdx.x, first = blockIdx.y * ROWS, shared_by = n.heads / n.groups;
  long long batch = blockIdx.z;
  int begin = n.causal ? max(0, first - (n.s - n.t)) / COLUMNS * COLUMNS : 0;  // of queries that see some row,
  int whole = mask ? n.t : n.causal ? first + ROWS - 1 - (n.s - n.t) : 0;      // and of those that see all
  int head = group * shared_by, end = head + shared_by;

  auto fetch = [&](int head, int start, int stage) {
    long long rows = (batch * n.heads + head) * n.t;
    fill<T, D, COLUMNS>(queries + stage * COLUMNS * D, q + batch * qs.batch + head * qs.head, qs.row, start, n.t, n);
    fill<T, D, COLUMNS>(slopes + stage * COLUMNS * D, g + batch * gs.batch + head * gs.head, gs.row, start, n.t, n);
    for (int i = threadIdx.x; i < COLUMNS; i += THREADS) {  // zeros beyond t, as in the tiles
      int read = start + i < n.t ? sizeof(float) : 0;
      copy_number(all + stage * COLUMNS + i, log_sum + rows + start + i, read);
      copy_number(mean + stage * COLUMNS + i, delta + rows + start + i, read);
    }
  };
  float of_keys[Mine::OUT] = {}, of_values[Mine::OUT] = {}, x[Mine::PRODUCTS], y[Mine::PRODUCTS];
  float by = scale * LOG2_E;
  fill<T, D, ROWS>(keys, k + batch * ks.batch + group * ks.head, ks.row, first, n.s, n);
  fill<T, D, ROWS>(values, v + batch * vs.batch + group * vs.head, vs.row, first, n.s, n);
  fetch(head, begin, 0);
  for (int start = begin, stage = 0; head < end; stage ^= 1) {
    wait_for_copies();
    __syncthreads();
    bool last = start + COLUMNS >= n.t;  // of this head
    int next = last ? begin : start + COLUMNS;
    if (head + last < end) fetch(head + last, next, stage ^ 1);
    Mine::products(keys, queries + stage * COLUMNS * D, x);
    Mine::products(values, slopes + stage * COLUMNS * D, y);
    if (start < whole) {
      const bool *shown = mask ? mask + batch * ms.batch + head * ms.head : mask;
#pragma unroll
      for (int e = 0; e < Mine::PRODUCTS; e++)
        if (!seen(start + Mine::column(e), first + Mine::row(Mine::slot(e)), shown, ms.row, n)) x[e] = UNSEEN;
    }
#pragma unroll
    for (int e = 0; e < Mine::PRODUCTS; e++) {
      int query = stage * COLUMNS + Mine::column(e);
      x[e] = power_of_two(x[e] * by - all[query]);
      y[e] = x[e] * (y[e] - mean[query]);
    }
    Mine::add(x, slopes + stage * COLUMNS * D, of_values);
    Mine::add(y, queries + stage * COLUMNS * D, of_keys);
    head += last, start = next;
  }
  float ones[Mine::SLOTS], factors[Mine::SLOTS];
  for (int i = 0; i < Mine::SLOTS; i++) ones[i] = 1, factors[i] = scale;
  write<Mine, T, D, ROWS>(keys, dk + batch * dks.batch + group * dks.head, dks.row, first, n.s, n, of_keys, factors);
  write<Mine, T, D, ROWS>(values, dv + batch * dvs.batch + group * dvs.head, dvs.row, first, n.s, n, of_values, ones);
}
