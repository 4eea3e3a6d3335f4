// L = log(sum_j exp(z_j)) - z_target      z: (rows, v) logits, as products left them
//
// A block takes a row and reads it once: each thread keeps a maximum and a sum relative to it, and
// these are joined at the end (Milakov & Gimelshein 2018). A target below 0 is ignored: loss 0.
// Probabilities are never stored: backward makes them from log_sum, over the logits if it may.
// Bytes: forward reads the logits once, backward reads and writes them once.
#include "common.cuh"

__device__ __forceinline__ float power(float x) { return expf(x); }
__device__ __forceinline__ double power(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

template <class T>
__global__ void cross_entropy_forward(const T *logits, const long long *targets, T *losses, T *log_sum, int v) {
  const T *z = logits + (long long)blockIdx.x * v;
  T largest = -HUGE, sum = 0;
  for (int i = threadIdx.x; i < v; i += blockDim.x) {
    T m = max(largest, z[i]);
    sum = sum * power(largest - m) + power(z[i] - m);
    largest = m;
  }
  T m = block_max(largest);
  sum = block_sum(sum * power(largest - m));
  if (threadIdx.x) return;
  T all = m + logarithm(sum);
  long long target = targets[blockIdx.x];
  log_sum[blockIdx.x] = all;
  losses[blockIdx.x] = target < 0 ? T(0) : all - z[target];
}

// dz_j = slope (exp(z_j - log_sum) - [j = target])      dz may be z
template <class T>
__global__ void cross_entropy_backward(const T *logits, const long long *targets, const T *log_sum, const T *slopes,
                                       T *dz, int v) {
  long long row = (long long)blockIdx.x * v, target = targets[blockIdx.x];
  T all = log_sum[blockIdx.x], slope = target < 0 ? T(0) : slopes[blockIdx.x];
  for (int i = threadIdx.x; i < v; i += blockDim.x)
    dz[row + i] = slope * (power(logits[row + i] - all) - (i == target ? T(1) : T(0)));
}
