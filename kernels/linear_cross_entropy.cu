// L = log(sum_j exp(z_j)) - z_target      z: (rows, v) logits, as products left them
//
// A block takes a row and reads it once, V numbers a thread at a time: each thread keeps a maximum
// and a sum relative to it, and these are joined at the end (Milakov & Gimelshein 2018). A target
// below 0 is ignored: loss 0.
// Probabilities are never stored: backward makes them from top = max z and beyond = sum_j
// exp(z_j - top) - 1, as S, the dtype of x, over the logits if it may. Neither is rounded into the other: beyond may be
// tiny beside 1, and its logarithm beside top.
// Bytes: forward reads the logits once, backward reads and writes them once.
#include "common.cuh"

__device__ __forceinline__ float power(float x) { return expf(x); }
__device__ __forceinline__ double power(double x) { return exp(x); }
__device__ __forceinline__ float logarithm_of_1_and(float x) { return log1pf(x); }
__device__ __forceinline__ double logarithm_of_1_and(double x) { return log1p(x); }

template <class T, int V>
__global__ void cross_entropy_forward(const T *logits, const long long *targets, T *losses, T *top, T *beyond,
                                      int v) {
  const T *z = logits + (long long)blockIdx.x * v;
  long long given = targets[blockIdx.x], target = given < 0 ? 0 : given;
  T largest = -HUGE, sum = 0, some[V];  // of all but the target
  for (int i = threadIdx.x * V; i < v; i += blockDim.x * V) {
    load<V>(z + i, some);
    T m = largest;
#pragma unroll
    for (int j = 0; j < V; j++) m = i + j == target ? m : max(m, some[j]);
    sum *= power(largest - m);
#pragma unroll
    for (int j = 0; j < V; j++) sum += i + j == target ? 0 : power(some[j] - m);
    largest = m;
  }
  T m = block_max(max(largest, z[target]));
  sum = block_sum(sum * power(largest - m));
  if (threadIdx.x) return;
  sum += power(z[target] - m) - 1;
  top[blockIdx.x] = m;
  beyond[blockIdx.x] = sum;
  losses[blockIdx.x] = given < 0 ? T(0) : logarithm_of_1_and(sum) - (z[target] - m);
}

// dz_j = slope (exp(z_j - top) / (1 + beyond) - [j = target])      dz may be z
// At the target that is minus the others' exp(z_j - top) / (1 + beyond), of which no digit is lost.
template <class T, class S, int V>
__global__ void cross_entropy_backward(const T *logits, const long long *targets, const T *top, const T *beyond,
                                       const T *slopes, S *dz, int v) {
  long long row = (long long)blockIdx.x * v, target = targets[blockIdx.x];
  T m = top[blockIdx.x], more = beyond[blockIdx.x], slope = target < 0 ? T(0) : slopes[blockIdx.x] / (1 + more);
  T others = target < 0 ? T(0) : more - (power(logits[row + target] - m) - 1);
  __syncthreads();  // all have read the target's logit: one may write over it
  T some[V];
  for (int i = threadIdx.x * V; i < v; i += blockDim.x * V) {
    load<V>(logits + row + i, some);
#pragma unroll
    for (int j = 0; j < V; j++) some[j] = slope * (i + j == target ? -others : power(some[j] - m));
    store<V>(some, dz + row + i);
  }
}
