// y = x W^T with W in blocks of 32 numbers      x: (few, n)  W: (m, n)  y: (few, m)
//
// A warp takes ROWS rows of W, and each number of x for all of them; LANES lanes share a block, four
// bytes each, so that a warp reads blocks that lie side by side. Q8_0: half d, 32 signed bytes: d q.
// Q4_0: half d, 16 bytes of two, i and i + 16: d (q - 8); Q4_1 has an offset half m: d q + m.
// Bytes: the blocks, once: 1.06 or 0.56 a weight.
#include "common.cuh"

constexpr int ROWS = 2, STEPS = 4;  // of W; loads on their way before the first is used
struct Q8_0 { static constexpr int BYTES = 34, LANES = 8; };
struct Q4_0 { static constexpr int BYTES = 18, LANES = 4; };
struct Q4_1 { static constexpr int BYTES = 20, LANES = 4; };

// A lane's part of a block as it is stored. Blocks begin at even bytes, not at every fourth.
struct Part {
  __half scale, offset;
  unsigned short low, high;
};
template <class Format> __device__ __forceinline__ Part read(const unsigned char *block, int part) {
  constexpr int HALVES = (Format::BYTES - 4 * Format::LANES) / 2;
  const __half *halves = reinterpret_cast<const __half *>(block);
  const unsigned short *numbers = reinterpret_cast<const unsigned short *>(halves + HALVES) + 2 * part;
  return {halves[0], halves[HALVES - 1], numbers[0], numbers[1]};
}

// w[0] to w[3] are numbers 4 part, ... of the block, and w[4] to w[7] numbers 16 + 4 part, ...
__device__ __forceinline__ void decode(Q8_0, Part from, float *w) {
  unsigned bytes = from.low | unsigned(from.high) << 16;
#pragma unroll
  for (int i = 0; i < 4; i++) w[i] = widen(from.scale) * (signed char)(bytes >> 8 * i);
}
__device__ __forceinline__ void decode_nibbles(Part from, float offset, float *w) {
  unsigned bytes = from.low | unsigned(from.high) << 16;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    w[i] = widen(from.scale) * (bytes >> 8 * i & 15) + offset;
    w[i + 4] = widen(from.scale) * (bytes >> 8 * i + 4 & 15) + offset;
  }
}
__device__ __forceinline__ void decode(Q4_0, Part from, float *w) { decode_nibbles(from, -8 * widen(from.scale), w); }
__device__ __forceinline__ void decode(Q4_1, Part from, float *w) { decode_nibbles(from, widen(from.offset), w); }

// sums += x w over STEPS blocks of a lane, all of which are asked for before the first is used
template <class Format, int STEPS, int FEW>
__device__ __forceinline__ void add(const float *x, const unsigned char *const *of_row, int block, int n,
                                    float (*sums)[FEW]) {
  constexpr int NUMBERS = 32 / Format::LANES, NEXT = NUMBERS;
  int part = threadIdx.x % Format::LANES;
  Part parts[STEPS][ROWS];
  float w[ROWS][NUMBERS], v[4];
#pragma unroll
  for (int s = 0; s < STEPS; s++)
#pragma unroll
    for (int k = 0; k < ROWS; k++) parts[s][k] = read<Format>(of_row[k] + (block + s * NEXT) * Format::BYTES, part);
  if (STEPS > 1) __syncwarp();  // or the compiler loads each part just before its use
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
#pragma unroll
    for (int k = 0; k < ROWS; k++) decode(Format(), parts[s][k], w[k]);
#pragma unroll
    for (int r = 0; r < FEW; r++) {
#pragma unroll
      for (int i = 0; i < NUMBERS; i += 4) {
        load<4>(x + (long long)r * n + (block + s * NEXT) * 32 + i * 4 + part * 4, v);
#pragma unroll
        for (int k = 0; k < ROWS; k++)
#pragma unroll
          for (int j = 0; j < 4; j++) sums[k][r] += w[k][i + j] * v[j];
      }
    }
  }
}

template <class Format, int FEW>
__global__ void quantized_matmul(const float *x, const unsigned char *blocks, float *y, int m, int n) {
  constexpr int NEXT = 32 / Format::LANES;  // blocks that a warp reads at once
  int lane = threadIdx.x % 32, count = n / 32;
  int first = (blockIdx.x * blockDim.x + threadIdx.x) / 32 * ROWS;
  if (first >= m) return;  // a whole warp
  const unsigned char *of_row[ROWS];
  for (int k = 0; k < ROWS; k++) of_row[k] = blocks + (long long)min(first + k, m - 1) * count * Format::BYTES;
  float sums[ROWS][FEW] = {};
  int start = 0, mine = lane / Format::LANES;
  for (; start + STEPS * NEXT <= count; start += STEPS * NEXT)
    add<Format, STEPS>(x, of_row, start + mine, n, sums);
  for (int block = start + mine; block < count; block += NEXT) add<Format, 1>(x, of_row, block, n, sums);
#pragma unroll
  for (int k = 0; k < ROWS; k++)
#pragma unroll
    for (int r = 0; r < FEW; r++) {
      float sum = warp_sum(sums[k][r]);
      if (lane == 0 && first + k < m) y[(long long)r * m + first + k] = sum;
    }
}
