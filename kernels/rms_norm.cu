// y = h / sqrt(mean(h^2) + eps) * w,  h = x + r      x, r, h, y: (rows, d)  w: (d,)  see rms_norm.py
//
// Forward: a block takes a row; its second pass over the row finds it in cache.
// Bytes: x (and r) read, y (and h) written, once.
#include "common.cuh"

template <class T, int V>
__global__ void rms_norm_forward(const T *x, const T *residual, const T *w, T *h, T *y, Wide<T> *scale, int d,
                                 Wide<T> eps) {
  using A = Wide<T>;
  long long row = (long long)blockIdx.x * d;
  A sum = 0, a[V], b[V];
  for (int i = threadIdx.x * V; i < d; i += blockDim.x * V) {
    load<V>(x + row + i, a);
    if (residual) {
      load<V>(residual + row + i, b);
#pragma unroll
      for (int j = 0; j < V; j++) a[j] += b[j];
      store<V>(a, h + row + i);
      load<V>(h + row + i, a);  // the norm is that of the h that is kept
    }
#pragma unroll
    for (int j = 0; j < V; j++) sum += a[j] * a[j];
  }
  A k = A(1) / sqrt(block_sum(sum) / d + eps);
  if (threadIdx.x == 0) scale[blockIdx.x] = k;
  const T *normed = residual ? h : x;
  for (int i = threadIdx.x * V; i < d; i += blockDim.x * V) {
    load<V>(normed + row + i, a);
    load<V>(w + i, b);
#pragma unroll
    for (int j = 0; j < V; j++) a[j] = a[j] * k * b[j];
    store<V>(a, y + row + i);
  }
}

// dx = k (g w - h k^2 mean(g w h)) (+ gh)      dw = sum over rows of g h k
//
// Block b takes rows b, b + blocks, ...; its part of dw lies in shared memory, each column with the
// thread that adds to it, and goes to row b of `partial`, which sum_rows adds up: no atomics, and
// the same bits every time. Bytes: g, h (and gh) read, dx written.
template <class T, int V>
__global__ void rms_norm_backward(const T *g, const T *gh, const T *h, const T *w, const Wide<T> *scale, T *dx,
                                  Wide<T> *partial, int rows, int d) {
  using A = Wide<T>;
  extern __shared__ double shared[];
  A *dw = reinterpret_cast<A *>(shared);  // column V p + j at pieces j + p: no two lanes meet in a bank
  A a[V], b[V], c[V];
  int pieces = d / V;
  for (int p = threadIdx.x; p < pieces; p += blockDim.x)
    for (int j = 0; j < V; j++) dw[j * pieces + p] = 0;
  for (int r = blockIdx.x; r < rows; r += gridDim.x) {  // a counter of 64 bits has the stores split
    long long row = (long long)r * d;
    A k = scale[r], mean = 0;
    for (int p = threadIdx.x; p < pieces; p += blockDim.x) {
      load<V>(g + row + p * V, a);
      load<V>(h + row + p * V, b);
      load<V>(w + p * V, c);
#pragma unroll
      for (int j = 0; j < V; j++) {
        mean += a[j] * c[j] * b[j];
        dw[j * pieces + p] += a[j] * b[j] * k;
      }
    }
    if (!dx) continue;
    mean = block_sum(mean) / d * k * k;
    for (int i = threadIdx.x * V; i < d; i += blockDim.x * V) {
      load<V>(g + row + i, a);
      load<V>(h + row + i, b);
      load<V>(w + i, c);
#pragma unroll
      for (int j = 0; j < V; j++) a[j] = k * (a[j] * c[j] - b[j] * mean);
      if (gh) {
        load<V>(gh + row + i, b);
#pragma unroll
        for (int j = 0; j < V; j++) a[j] += b[j];
      }
      store<V>(a, dx + row + i);
    }
  }
  if (!partial) return;
  __syncthreads();  // without dx nothing has waited for the last row's sums
  for (int i = threadIdx.x; i < d; i += blockDim.x)
    partial[(long long)blockIdx.x * d + i] = dw[i % V * pieces + i / V];
}

// y_j = sum_i x_ij      x: (rows, d)
//
// A block has 32 columns: warp i adds up rows i, i + warps, ..., and the first one the warps' sums.
template <class T> __global__ void sum_rows(const Wide<T> *x, T *y, int rows, int d) {
  __shared__ Wide<T> partial[32][32];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, column = blockIdx.x * 32 + lane;
  Wide<T> sum = 0;
  if (column < d)
    for (int r = warp; r < rows; r += warps) sum += x[(long long)r * d + column];
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp || column >= d) return;
  for (int i = 1; i < warps; i++) sum += partial[i][lane];
  narrow(sum, y[column]);
}
