// y = x W^T with W in blocks of 32 numbers      x: (few, n)  W: (m, n)  y: (few, m)
//
// A warp takes a row of W, a lane every 32nd block of it; each block is decoded once, for all rows
// of x. Q8_0: half d, 32 signed bytes: d q. Q4_0: half d, 16 bytes of two: d (q - 8); Q4_1 has an
// offset half m: d q + m. Bytes: the blocks, once: 1.06 or 0.56 a weight.
#include "common.cuh"

constexpr int FEW = 8;  // rows of x at once
struct Q8_0 { static constexpr int size = 34; };
struct Q4_0 { static constexpr int size = 18; };
struct Q4_1 { static constexpr int size = 20; };

__device__ __forceinline__ float half_at(const unsigned char *at) {
  union { unsigned short bits; __half half; } both;
  both.bits = at[0] | at[1] << 8;  // a block of 18 bytes need not be aligned
  return __half2float(both.half);
}
__device__ __forceinline__ void decode(Q8_0, const unsigned char *at, float *w) {
  float d = half_at(at);
  for (int i = 0; i < 32; i++) w[i] = d * (signed char)at[2 + i];
}
__device__ __forceinline__ void nibbles(const unsigned char *at, float d, float m, float *w) {
  for (int i = 0; i < 16; i++) {
    w[i] = d * (at[i] & 15) + m;
    w[i + 16] = d * (at[i] >> 4) + m;
  }
}
__device__ __forceinline__ void decode(Q4_0, const unsigned char *at, float *w) {
  float d = half_at(at);
  nibbles(at + 2, d, -8 * d, w);
}
__device__ __forceinline__ void decode(Q4_1, const unsigned char *at, float *w) {
  nibbles(at + 4, half_at(at), half_at(at + 2), w);
}

template <class Format>
__global__ void quantized_matmul(const float *x, const unsigned char *blocks, float *y, int few, int m, int n) {
  int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (row >= m) return;  // a whole warp
  const unsigned char *of_row = blocks + (long long)row * (n / 32) * Format::size;
  float sums[FEW] = {}, w[32];
  for (int b = lane; b < n / 32; b += 32) {
    decode(Format(), of_row + b * Format::size, w);
    for (int r = 0; r < FEW; r++)
      if (r < few)
        for (int i = 0; i < 32; i++) sums[r] += w[i] * x[(long long)r * n + b * 32 + i];
  }
  for (int r = 0; r < FEW; r++) {
    float sum = warp_sum(sums[r]);
    if (lane == 0 && r < few) y[(long long)r * m + row] = sum;
  }
}
