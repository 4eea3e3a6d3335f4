// O = softmax(scale Q K^T where seen) V      q, o: (b, h, t, d)  k, v: (b, g, s, d)  see attention.py
//
// A block takes ROWS queries of one head and passes over the keys, COLUMNS at a time in shared
// memory (Dao 2023): of each row only the greatest score, the sum of exponentials and the output
// are kept, so no (t, s) matrix exists. Backward makes the weights again from the log of each sum:
// one kernel for dQ, one for dK and dV, each block alone writing its rows: no atomics, and the same
// bits every time, for 7 products instead of 5.
//
// The three kernels are written once, over a Tile: halves multiply on tensor cores (mma), 16 rows
// a warp; float32 by exact multiply-adds. In both, four neighbouring lanes share a row.
// Bytes: q, o once; k, v once for each block of queries, mostly from cache.
#include "common.cuh"

constexpr int COLUMNS = 32, THREADS = 128;
constexpr float UNSEEN = -3.0e38f;

struct Steps { long long batch, head, row; };  // entries from one to the next
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
__device__ __forceinline__ void load_two(unsigned *r, const void *row) {
  unsigned from = __cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(from)
               : "memory");
}
__device__ __forceinline__ void load_two_turned(unsigned *r, const void *row) {
  unsigned from = __cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(from)
               : "memory");
}
// 16 bytes to shared memory, of which `read` come from memory and the rest are zeros.
__device__ __forceinline__ void copy_async(void *to, const void *from, int read) {
  unsigned address = __cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(read) : "memory");
}
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
  asm volatile("cp.async.wait_group 0;" ::: "memory");
}

template <class T> __device__ __forceinline__ unsigned packed(float a, float b) {
  union { T halves[2]; unsigned both; } pair;
  narrow(a, pair.halves[0]);
  narrow(b, pair.halves[1]);
  return pair.both;
}

// -------------------------------------------------------------------------------------- tiles
//
// A is ROWS rows and B COLUMNS rows in shared memory, D wide (zeros beyond d), STRIDE apart.
//   products   x = A B^T: entry e of a thread is that of row(slot(e)) and column(e)
//   add        out += x B: entry e of out is that of row(slot(e)) and out_column(e)

// Tensor cores: a warp has 16 rows. Fragments are laid out as PTX says for m16n8k16: a lane has
// rows lane / 4 and lane / 4 + 8, and of each 8 columns the pair 2 (lane % 4).
template <class T, int D> struct Tile {
  static constexpr int ROWS = 64, STRIDE = D + 8;  // 16 bytes more: rows begin in different banks
  static constexpr int SLOTS = 2, PRODUCTS = COLUMNS / 2, OUT = D / 2;

  __device__ static int slot(int e) { return e % 4 / 2; }
  __device__ static int row(int slot) { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * slot; }
  __device__ static int column(int e) { return e / 4 * 8 + threadIdx.x % 4 * 2 + e % 2; }
  __device__ static int out_column(int e) { return column(e); }

  __device__ static void products(const T *a, const T *b, float *x) {
    int lane = threadIdx.x % 32;
    const T *rows = a + (threadIdx.x / 32 * 16 + lane % 16) * STRIDE + lane / 16 * 8;
#pragma unroll
    for (int e = 0; e < PRODUCTS; e++) x[e] = 0;
#pragma unroll
    for (int k = 0; k < D; k += 16) {
      unsigned left[4], right[2];
      load_four(left, rows + k);
#pragma unroll
      for (int n = 0; n < COLUMNS / 8; n++) {
        load_two(right, b + (n * 8 + lane % 8) * STRIDE + k + lane / 8 % 2 * 8);
        mma(x + 4 * n, left, right, a);
      }
    }
  }

  __device__ static void add(const float *x, const T *b, float *out) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < COLUMNS; k += 16) {
      const float *here = x + k / 2;  // a pair of sums lies as a pair of factors does
      unsigned left[4] = {packed<T>(here[0], here[1]), packed<T>(here[2], here[3]),
                          packed<T>(here[4], here[5]), packed<T>(here[6], here[7])};
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        unsigned right[2];
        load_two_turned(right, b + (k + lane % 16) * STRIDE + n * 8);
        mma(out + 4 * n, left, right, b);
      }
    }
  }
};

// float32: a lane has every fourth column of one row.
template <int D> struct Tile<float, D> {
  static constexpr int ROWS = THREADS / 4, STRIDE = D + 4;
  static constexpr int SLOTS = 1, PRODUCTS = COLUMNS / 4, OUT = D / 4;

  __device__ static int slot(int) { return 0; }
  __device__ static int row(int) { return threadIdx.x / 4; }
  __device__ static int column(int e) { return 4 * e + threadIdx.x % 4; }
  __device__ static int out_column(int e) { return column(e); }

  __device__ static void products(const float *a, const float *b, float *x) {
#pragma unroll
    for (int e = 0; e < PRODUCTS; e++) x[e] = 0;
    for (int k = 0; k < D; k++) {
      float left = a[row(0) * STRIDE + k];
#pragma unroll
      for (int e = 0; e < PRODUCTS; e++) x[e] += left * b[column(e) * STRIDE + k];
    }
  }

  __device__ static void add(const float *x, const float *b, float *out) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      float left = __shfl_sync(ALL_LANES, x[c / 4], threadIdx.x % 32 / 4 * 4 + c % 4);
#pragma unroll
      for (int e = 0; e < OUT; e++) out[e] += left * b[c * STRIDE + out_column(e)];
    }
  }
};

// Rows first, first + 1, ... of (n, d) to shared memory, zeros beyond n and d.
template <class T, int D, int ROWS>
__device__ void fill(T *tile, const T *from, long long step, int first, int n, Sizes sizes) {
  constexpr int V = 16 / sizeof(T), STRIDE = Tile<T, D>::STRIDE;
  if (sizes.vectors) {  // rows begin at 16 bytes, and d fills whole ones
    for (int i = threadIdx.x; i < ROWS * (D / V); i += THREADS) {
      int row = i / (D / V), column = i % (D / V) * V;
      bool inside = first + row < n && column < sizes.d;
      copy_async(tile + row * STRIDE + column, inside ? from + (first + row) * step + column : from,
                 inside ? 16 : 0);
    }
    return wait_for_copies();
  }
  for (int i = threadIdx.x; i < ROWS * D; i += THREADS) {
    int row = i / D, column = i % D;
    if (first + row < n && column < sizes.d) tile[row * STRIDE + column] = from[(first + row) * step + column];
    else narrow(0.0f, tile[row * STRIDE + column]);
  }
}

// The rows that a thread holds parts of, times a factor each, to (n, d) in memory.
template <class T, int D>
__device__ void write(T *to, long long step, int first, int n, int d, const float *out, const float *factors) {
  using Mine = Tile<T, D>;
#pragma unroll
  for (int e = 0; e < Mine::OUT; e++) {
    int row = first + Mine::row(Mine::slot(e)), column = Mine::out_column(e);
    if (row < n && column < d) narrow(out[e] * factors[Mine::slot(e)], to[row * step + column]);
  }
}

__device__ __forceinline__ bool seen(int query, int key, const bool *mask, long long step, Sizes n) {
  if (query >= n.t || key >= n.s) return false;
  if (n.causal && key > query + n.s - n.t) return false;  // the last query is at the last key
  return !mask || mask[query * step + key];
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

// grid: (tiles of queries, heads, batches)      shared: one tile of ROWS, two of COLUMNS
template <class T, int D>
__global__ void __launch_bounds__(128)
attention_forward(const T *q, Steps qs, const T *k, Steps ks, const T *v, Steps vs, T *o, Steps os,
                  const bool *mask, Steps ms, float *log_sum, Sizes n, float scale) {
  using Mine = Tile<T, D>;
  extern __shared__ float4 memory[];
  T *queries = reinterpret_cast<T *>(memory), *keys = queries + Mine::ROWS * Mine::STRIDE;
  T *values = keys + COLUMNS * Mine::STRIDE;
  int first = blockIdx.x * Mine::ROWS, head = blockIdx.y, group = head / (n.heads / n.groups);
  long long batch = blockIdx.z;
  q += batch * qs.batch + head * qs.head;
  k += batch * ks.batch + group * ks.head;
  v += batch * vs.batch + group * vs.head;
  o += batch * os.batch + head * os.head;
  if (mask) mask += batch * ms.batch + head * ms.head;

  float out[Mine::OUT] = {}, largest[Mine::SLOTS], sum[Mine::SLOTS], x[Mine::PRODUCTS];
  for (int i = 0; i < Mine::SLOTS; i++) largest[i] = UNSEEN, sum[i] = 0;
  fill<T, D, Mine::ROWS>(queries, q, qs.row, first, n.t, n);
  int end = n.causal ? min(n.s, first + Mine::ROWS + n.s - n.t) : n.s;
  for (int start = 0; start < end; start += COLUMNS) {
    __syncthreads();  // the last tile has been read by all
    fill<T, D, COLUMNS>(keys, k, ks.row, start, n.s, n);
    fill<T, D, COLUMNS>(values, v, vs.row, start, n.s, n);
    __syncthreads();
    Mine::products(queries, keys, x);
    float top[Mine::SLOTS], shrink[Mine::SLOTS];
    for (int i = 0; i < Mine::SLOTS; i++) top[i] = UNSEEN;
#pragma unroll
    for (int e = 0; e < Mine::PRODUCTS; e++) {
      int i = Mine::slot(e);
      bool sees = seen(first + Mine::row(i), start + Mine::column(e), mask, ms.row, n);
      x[e] = sees ? x[e] * scale : UNSEEN;
      top[i] = max(top[i], x[e]);
    }
    for (int i = 0; i < Mine::SLOTS; i++) {
      top[i] = max(largest[i], lanes_max(top[i]));
      shrink[i] = expf(largest[i] - top[i]);
      largest[i] = top[i];
      sum[i] *= shrink[i];
    }
#pragma unroll
    for (int e = 0; e < Mine::PRODUCTS; e++) {
      int i = Mine::slot(e);
      x[e] = x[e] > UNSEEN ? expf(x[e] - largest[i]) : 0.0f;  // a row that sees nothing stays 0
      sum[i] += x[e];
    }
#pragma unroll
    for (int e = 0; e < Mine::OUT; e++) out[e] *= shrink[Mine::slot(e)];
    Mine::add(x, values, out);
  }
  for (int i = 0; i < Mine::SLOTS; i++) {
    sum[i] = lanes_sum(sum[i]);
    int row = first + Mine::row(i);
    if (row < n.t && threadIdx.x % 4 == 0)
      log_sum[(batch * n.heads + head) * n.t + row] = sum[i] > 0 ? largest[i] + logf(sum[i]) : 0.0f;
    sum[i] = sum[i] > 0 ? 1 / sum[i] : 0.0f;
  }
  write<T, D>(o, os.row, first, n.t, n.d, out, sum);
}

// ----------------------------------------------------------------------------------- backward

// delta = sum over d of g o, for each row: a warp each      grid: rows / 4
template <class T, int D>
__global__ void attention_delta(const T *g, Steps gs, const T *o, Steps os, float *delta, Sizes n, int rows) {
  int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= rows) return;  // a whole warp
  long long time = row % n.t, head = row / n.t % n.heads, batch = row / n.t / n.heads;
  g += batch * gs.batch + head * gs.head + time * gs.row;
  o += batch * os.batch + head * os.head + time * os.row;
  float sum = 0;
  for (int i = threadIdx.x % 32; i < n.d; i += 32) sum += widen(g[i]) * widen(o[i]);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) delta[row] = sum;
}

// dQ = dS K,  dS = scale P (g V^T - delta)
// grid: (tiles of queries, heads, batches)      shared: two tiles of ROWS, two of COLUMNS
template <class T, int D>
__global__ void __launch_bounds__(128)
attention_dq(const T *g, Steps gs, const T *q, Steps qs, const T *k, Steps ks, const T *v, Steps vs,
             const bool *mask, Steps ms, const float *log_sum, const float *delta, T *dq, Steps dqs, Sizes n,
             float scale) {
  using Mine = Tile<T, D>;
  extern __shared__ float4 memory[];
  T *queries = reinterpret_cast<T *>(memory), *slopes = queries + Mine::ROWS * Mine::STRIDE;
  T *keys = slopes + Mine::ROWS * Mine::STRIDE, *values = keys + COLUMNS * Mine::STRIDE;
  int first = blockIdx.x * Mine::ROWS, head = blockIdx.y, group = head / (n.heads / n.groups);
  long long batch = blockIdx.z, rows = (batch * n.heads + head) * n.t;
  k += batch * ks.batch + group * ks.head;
  v += batch * vs.batch + group * vs.head;
  if (mask) mask += batch * ms.batch + head * ms.head;

  float out[Mine::OUT] = {}, x[Mine::PRODUCTS], y[Mine::PRODUCTS];
  float all[Mine::SLOTS], mean[Mine::SLOTS], ones[Mine::SLOTS];
  for (int i = 0; i < Mine::SLOTS; i++) {
    int row = first + Mine::row(i);
    all[i] = row < n.t ? log_sum[rows + row] : 0.0f;
    mean[i] = row < n.t ? delta[rows + row] : 0.0f;
    ones[i] = 1;
  }
  fill<T, D, Mine::ROWS>(queries, q + batch * qs.batch + head * qs.head, qs.row, first, n.t, n);
  fill<T, D, Mine::ROWS>(slopes, g + batch * gs.batch + head * gs.head, gs.row, first, n.t, n);
  int end = n.causal ? min(n.s, first + Mine::ROWS + n.s - n.t) : n.s;
  for (int start = 0; start < end; start += COLUMNS) {
    __syncthreads();
    fill<T, D, COLUMNS>(keys, k, ks.row, start, n.s, n);
    fill<T, D, COLUMNS>(values, v, vs.row, start, n.s, n);
    __syncthreads();
    Mine::products(queries, keys, x);
    Mine::products(slopes, values, y);
#pragma unroll
    for (int e = 0; e < Mine::PRODUCTS; e++) {
      int i = Mine::slot(e);
      bool sees = seen(first + Mine::row(i), start + Mine::column(e), mask, ms.row, n);
      x[e] = sees ? scale * expf(x[e] * scale - all[i]) * (y[e] - mean[i]) : 0.0f;
    }
    Mine::add(x, keys, out);
  }
  write<T, D>(dq + batch * dqs.batch + head * dqs.head, dqs.row, first, n.t, n.d, out, ones);
}

// dV = P^T g,  dK = dS^T Q: the same with keys as rows and queries as columns
// grid: (tiles of keys, groups, batches)      shared: two tiles of ROWS, two of COLUMNS
template <class T, int D>
__global__ void __launch_bounds__(128)
attention_dkv(const T *g, Steps gs, const T *q, Steps qs, const T *k, Steps ks, const T *v, Steps vs,
              const bool *mask, Steps ms, const float *log_sum, const float *delta, T *dk, Steps dks, T *dv,
              Steps dvs, Sizes n, float scale) {
  using Mine = Tile<T, D>;
  extern __shared__ float4 memory[];
  T *keys = reinterpret_cast<T *>(memory), *values = keys + Mine::ROWS * Mine::STRIDE;
  T *queries = values + Mine::ROWS * Mine::STRIDE, *slopes = queries + COLUMNS * Mine::STRIDE;
  int first = blockIdx.x * Mine::ROWS, group = blockIdx.y, shared_by = n.heads / n.groups;
  long long batch = blockIdx.z;
  fill<T, D, Mine::ROWS>(keys, k + batch * ks.batch + group * ks.head, ks.row, first, n.s, n);
  fill<T, D, Mine::ROWS>(values, v + batch * vs.batch + group * vs.head, vs.row, first, n.s, n);

  float of_keys[Mine::OUT] = {}, of_values[Mine::OUT] = {}, x[Mine::PRODUCTS], y[Mine::PRODUCTS];
  int begin = n.causal ? max(0, first - (n.s - n.t)) / COLUMNS * COLUMNS : 0;
  for (int head = group * shared_by; head < (group + 1) * shared_by; head++) {
    const bool *shown = mask ? mask + batch * ms.batch + head * ms.head : mask;
    long long rows = (batch * n.heads + head) * n.t;
    for (int start = begin; start < n.t; start += COLUMNS) {
      __syncthreads();
      fill<T, D, COLUMNS>(queries, q + batch * qs.batch + head * qs.head, qs.row, start, n.t, n);
      fill<T, D, COLUMNS>(slopes, g + batch * gs.batch + head * gs.head, gs.row, start, n.t, n);
      __syncthreads();
      Mine::products(keys, queries, x);
      Mine::products(values, slopes, y);
#pragma unroll
      for (int e = 0; e < Mine::PRODUCTS; e++) {
        int query = start + Mine::column(e), key = first + Mine::row(Mine::slot(e));
        bool sees = seen(query, key, shown, ms.row, n);
        x[e] = sees ? expf(x[e] * scale - log_sum[rows + query]) : 0.0f;
        y[e] = sees ? scale * x[e] * (y[e] - delta[rows + query]) : 0.0f;
      }
      Mine::add(x, slopes, of_values);
      Mine::add(y, queries, of_keys);
    }
  }
  float ones[Mine::SLOTS];
  for (int i = 0; i < Mine::SLOTS; i++) ones[i] = 1;
  write<T, D>(dk + batch * dks.batch + group * dks.head, dks.row, first, n.s, n.d, of_keys, ones);
  write<T, D>(dv + batch * dvs.batch + group * dvs.head, dvs.row, first, n.s, n.d, of_values, ones);
}
