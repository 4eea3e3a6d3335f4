// o = softmax(scale q K^T where seen) V for one query a head      q, o: (b, h, 1, d)  k, v: (b, g, s, d)
//
// The keys are shared out: a block takes CHUNK of them, for up to HEADS heads of their group, and
// leaves for each head the greatest score, the sum of exponentials and the weighted sum of values; a
// second kernel joins the chunks in their order (Dao et al. 2023, Flash-Decoding). So the bytes of a
// long cache are asked for by all of the GPU at once. A chunk of which nothing is seen costs nothing,
// and chunks begin at the first key: keys behind the last that is seen change no bit.
// Bytes: k and v once for every HEADS heads that share them.
#include "common.cuh"

constexpr int CHUNK = 64, HEADS = 4, THREADS = 128, JOINED = 256;
constexpr float UNSEEN = -3.0e38f, LOG2_E = 1.4426950408889634f;

struct Sizes { int heads, groups, s, chunks; };

// A key's row is read by LANES neighbouring lanes, 16 bytes each.
template <class T, int D> struct Rows {
  static constexpr int V = 16 / sizeof(T), LANES = D / V, AT_ONCE = THREADS / LANES;
};

// grid: (chunks, groups x quartets of heads, batches)
template <class T, int D>
__global__ void __launch_bounds__(128)
attention_of_chunk(const T *q, Steps qs, const T *k, Steps ks, const T *v, Steps vs, const bool *mask,
                   long long mask_step, float *tops, float *sums, float *parts, Sizes n, float scale) {
  using R = Rows<T, D>;
  float by = scale * LOG2_E;  // weights are powers of two, and log_sum to the base 2, as in attention.cu
  __shared__ float weights[HEADS][CHUNK], shares[THREADS / 32][HEADS][D];
  int chunk = blockIdx.x, shared_by = n.heads / n.groups, quartets = (shared_by + HEADS - 1) / HEADS;
  int group = blockIdx.y / quartets, first_head = blockIdx.y % quartets * HEADS;
  int heads = min(HEADS, shared_by - first_head), start = chunk * CHUNK;
  long long batch = blockIdx.z, of_head = (batch * n.heads + group * shared_by + first_head) * n.chunks + chunk;
  k += batch * ks.batch + group * ks.head + start * ks.row;
  v += batch * vs.batch + group * vs.head + start * vs.row;
  if (mask) mask += batch * mask_step + start;

  int end = min(CHUNK, n.s - start), mine = threadIdx.x;
  if (!__syncthreads_or(mine < end && (!mask || mask[mine]))) {
    if (mine < heads) sums[of_head + mine * n.chunks] = 0;
    return;
  }
  int part = threadIdx.x % R::LANES * R::V, slot = threadIdx.x / R::LANES, lane = threadIdx.x % 32;
  float query[HEADS][R::V];
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    int head = group * shared_by + first_head + min(h, heads - 1);  // the last again, to no effect
    load<R::V>(q + batch * qs.batch + head * qs.head + part, query[h]);
  }
#pragma unroll 4
  for (int key = slot; key < CHUNK; key += R::AT_ONCE) {
    bool seen = key < end && (!mask || mask[key]);
    Pack<T, R::V> row = {};
    if (seen) row = *reinterpret_cast<const Pack<T, R::V> *>(k + key * ks.row + part);
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      float score = 0;
#pragma unroll
      for (int i = 0; i < R::V; i++) score += query[h][i] * widen(row.v[i]);
#pragma unroll
      for (int step = 1; step < R::LANES; step *= 2) score += __shfl_xor_sync(ALL_LANES, score, step);
      if (part == 0) weights[h][key] = seen ? score * by : UNSEEN;
    }
  }
  __syncthreads();
  int head = threadIdx.x / 32;  // a warp each
  float low = weights[head][lane], high = weights[head][lane + 32], top = warp_max(max(low, high));
  low = low > UNSEEN ? exp2f(low - top) : 0.0f;
  high = high > UNSEEN ? exp2f(high - top) : 0.0f;
  weights[head][lane] = low;
  weights[head][lane + 32] = high;
  float sum = warp_sum(low + high);
  if (lane == 0 && head < heads) tops[of_head + head * n.chunks] = top, sums[of_head + head * n.chunks] = sum;
  __syncthreads();

  float out[HEADS][R::V] = {};
#pragma unroll 4
  for (int key = slot; key < CHUNK; key += R::AT_ONCE) {
    Pack<T, R::V> row = {};
    if (key < end) row = *reinterpret_cast<const Pack<T, R::V> *>(v + key * vs.row + part);
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
      for (int i = 0; i < R::V; i++) out[h][i] += weights[h][key] * widen(row.v[i]);
  }
#pragma unroll
  for (int h = 0; h < HEADS; h++)
#pragma unroll
    for (int i = 0; i < R::V; i++) {
#pragma unroll
      for (int step = R::LANES; step < 32; step *= 2) out[h][i] += __shfl_xor_sync(ALL_LANES, out[h][i], step);
      if (lane < R::LANES) shares[threadIdx.x / 32][h][part + i] = out[h][i];
    }
  __syncthreads();
  for (int i = threadIdx.x; i < heads * D; i += THREADS) {
    float all = 0;
    for (int w = 0; w < THREADS / 32; w++) all += shares[w][i / D][i % D];
    parts[(of_head + i / D * n.chunks) * D + i % D] = all;
  }
}

// grid: (heads, batches)      shared: a number for each chunk
template <class T, int D>
__global__ void __launch_bounds__(256)
attention_of_chunks(const float *tops, const float *sums, const float *parts, T *o, Steps os, float *log_sum,
                    Sizes n) {
  extern __shared__ float factors[];
  __shared__ float shares[JOINED];
  long long batch = blockIdx.y, of_head = (batch * n.heads + blockIdx.x) * n.chunks;
  float top = UNSEEN, sum = 0, out = 0;
  for (int c = threadIdx.x; c < n.chunks; c += JOINED)
    if (sums[of_head + c] > 0) top = max(top, tops[of_head + c]);
  top = block_max(top);
  for (int c = threadIdx.x; c < n.chunks; c += JOINED) {
    float whole = sums[of_head + c];
    factors[c] = whole > 0 ? exp2f(tops[of_head + c] - top) : 0.0f;
    sum += factors[c] * whole;
  }
  sum = block_sum(sum);  // and all factors are there
  int column = threadIdx.x % D;
#pragma unroll 4
  for (int c = threadIdx.x / D; c < n.chunks; c += JOINED / D)
    if (factors[c] > 0) out += factors[c] * parts[(of_head + c) * D + column];
  shares[threadIdx.x] = out;
  __syncthreads();
  if (threadIdx.x < D) {
    out = 0;
    for (int i = column; i < JOINED; i += D) out += shares[i];
    narrow(sum > 0 ? out / sum : 0.0f, o[batch * os.batch + blockIdx.x * os.head + column]);
  }
  if (threadIdx.x == 0) log_sum[batch * n.heads + blockIdx.x] = sum > 0 ? top + log2f(sum) : 0.0f;
}
