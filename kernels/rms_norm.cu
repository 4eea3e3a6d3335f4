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
      for (int j = 0; j < V; j++) a[j] += b[j];
      store<V>(a, h + row + i);
      load<V>(h + row + i, a);  // the norm is that of the h that is kept
    }
    for (int j = 0; j < V; j++) sum += a[j] * a[j];
  }
  A k = A(1) / sqrt(block_sum(sum) / d + eps);
  if (threadIdx.x == 0) scale[blockIdx.x] = k;
  const T *normed = residual ? h : x;
  for (int i = threadIdx.x * V; i < d; i += blockDim.x * V) {
    load<V>(normed + row + i, a);
    load<V>(w + i, b);
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
  A *dw = reinterpret_cast<A *>(shared);
  A a[V], b[V], c[V];
  for (int i = threadIdx.x * V; i < d; i += blockDim.x * V)
    for (int j = 0; j < V; j++) dw[i + j] = 0;
  for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
    A k = scale[r], mean = 0;
    for (int i = threadIdx.x * V; i < d; i += blockDim.x * V) {
      load<V>(g + r * d + i, a);
      load<V>(h + r * d + i, b);
      load<V>(w + i, c);
      for (int j = 0; j < V; j++) {
        mean += a[j] * c[j] * b[j];
        dw[i + j] += a[j] * b[j] * k;
      }
    }
    if (!dx) continue;
    mean = block_sum(mean) / d * k * k;
    for (int i = threadIdx.x * V; i < d; i += blockDim.x * V) {
      load<V>(g + r * d + i, a);
      load<V>(h + r * d + i, b);
      load<V>(w + i, c);
      for (int j = 0; j < V; j++) a[j] = k * (a[j] * c[j] - b[j] * mean);
      if (gh) {
        load<V>(gh + r * d + i, b);
        for (int j = 0; j < V; j++) a[j] += b[j];
      }
      store<V>(a, dx + r * d + i);
    }
  }
  if (!partial) return;
  for (int i = threadIdx.x * V; i < d; i += blockDim.x * V)
    for (int j = 0; j < V; j++) partial[(long long)blockIdx.x * d + i + j] = dw[i + j];
}

// y_j = sum_i x_ij      x: (rows, d), added from the first row on
template <class T, int V> __global__ void sum_rows(const Wide<T> *x, T *y, int rows, int d) {
  int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= d) return;
  Wide<T> sum = 0;
  for (int r = 0; r < rows; r++) sum += x[(long long)r * d + column];
  narrow(sum, y[column]);
}
