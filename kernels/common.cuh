// What the CUDA kernels share: storage types, sums over warps and blocks, vectors, Philox.
// Compiled by NVRTC, nvcc and the simulator in tests/cuda_sim; no header but CUDA's own two.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr float HUGE = 3.0e38f;  // stands for infinity, which NVRTC has no name for

// Numbers are stored as T and computed as Wide<T>: float for the halves.
template <class T> struct WideOf { using type = float; };
template <> struct WideOf<double> { using type = double; };
template <class T> using Wide = typename WideOf<T>::type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void narrow(float x, float &y) { y = x; }
__device__ __forceinline__ void narrow(double x, double &y) { y = x; }
__device__ __forceinline__ void narrow(float x, __half &y) { y = __float2half(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16 &y) { y = __float2bfloat16(x); }

struct Steps { long long batch, head, row; };  // of a (b, h, t, d): entries from one to the next

// V numbers that are read and written at once; V = 16 / sizeof(T) is the widest there is.
template <class T, int V> struct alignas(V * sizeof(T)) Pack { T v[V]; };

template <int V, class T> __device__ __forceinline__ void load(const T *from, Wide<T> *to) {
  Pack<T, V> pack = *reinterpret_cast<const Pack<T, V> *>(from);
#pragma unroll
  for (int i = 0; i < V; i++) to[i] = widen(pack.v[i]);
}
template <int V, class T> __device__ __forceinline__ void store(const Wide<T> *from, T *to) {
  Pack<T, V> pack;
#pragma unroll
  for (int i = 0; i < V; i++) narrow(from[i], pack.v[i]);
  *reinterpret_cast<Pack<T, V> *>(to) = pack;
}

template <class A> __device__ __forceinline__ A warp_sum(A x) {
#pragma unroll
  for (int step = 16; step; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}
template <class A> __device__ __forceinline__ A warp_max(A x) {
#pragma unroll
  for (int step = 16; step; step /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, step));
  return x;
}

// Over a block of whole warps; every thread gets the result. Warps are added in their order.
template <class A> __device__ __forceinline__ A block_sum(A x) {
  __shared__ A partial[32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  A sum = 0;
  for (int i = 0; i < blockDim.x / 32; i++) sum += partial[i];
  __syncthreads();  // the next call writes to it
  return sum;
}
template <class A> __device__ __forceinline__ A block_max(A x) {
  __shared__ A partial[32];
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  A largest = partial[0];
  for (int i = 1; i < blockDim.x / 32; i++) largest = max(largest, partial[i]);
  __syncthreads();
  return largest;
}

// Philox4x32-10: four random words from a counter and a key      Salmon et al. 2011
__device__ __forceinline__ uint4 philox(unsigned long long counter, unsigned long long key) {
  unsigned a = counter, b = counter >> 32, c = 0, d = 0, low = key, high = key >> 32;
#pragma unroll
  for (int round = 0; round < 10; round++) {
    unsigned long long of_a = 0xD2511F53ull * a, of_c = 0xCD9E8D57ull * c;
    a = unsigned(of_c >> 32) ^ b ^ low;
    c = unsigned(of_a >> 32) ^ d ^ high;
    b = of_c;
    d = of_a;
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  return make_uint4(a, b, c, d);
}
