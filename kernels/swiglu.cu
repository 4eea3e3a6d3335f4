// y = gate s up,  s = 1 / (1 + exp(-gate))      n entries, V at a time
// Bytes: forward reads two arrays and writes one, backward reads three and writes two.
#include "common.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

template <class T, int V> __global__ void swiglu_forward(const T *gate, const T *up, T *y, long long n) {
  long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (i >= n) return;
  Wide<T> a[V], b[V];
  load<V>(gate + i, a);
  load<V>(up + i, b);
#pragma unroll
  for (int j = 0; j < V; j++) a[j] = a[j] * sigmoid(a[j]) * b[j];
  store<V>(a, y + i);
}

// dgate = g up s (1 + gate (1 - s))      dup = g gate s
template <class T, int V>
__global__ void swiglu_backward(const T *g, const T *gate, const T *up, T *dgate, T *dup, long long n) {
  long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (i >= n) return;
  Wide<T> a[V], b[V], c[V];
  load<V>(g + i, a);
  load<V>(gate + i, b);
  load<V>(up + i, c);
#pragma unroll
  for (int j = 0; j < V; j++) {
    Wide<T> s = sigmoid(b[j]), slope = a[j] * c[j] * s * (1 + b[j] * (1 - s));
    a[j] = a[j] * b[j] * s;
    b[j] = slope;
  }
  store<V>(b, dgate + i);
  store<V>(a, dup + i);
}
