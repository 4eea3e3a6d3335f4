"""The simulator of CUDA: what it computes, and that each kind of mistake is named where it is."""

import cuda_sim
import ml_dtypes
import numpy as np
import pytest
from cuda_sim import KernelError, RawModule, orders

pytestmark = pytest.mark.skipif(cuda_sim.available() is not None, reason=str(cuda_sim.available()))

SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void reversed(const float *x, float *y, int barrier, int warp) {
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  if (barrier) __syncthreads();
  if (warp) __syncwarp();
  y[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void copied(const float *x, float *y, int shift, int step) {
  y[threadIdx.x] = x[shift + step * int(threadIdx.x)];
}

extern "C" __global__ void counted(int *n, int atomic) {
  if (atomic) atomicAdd(n, 1);
  else *n += 1;
}

extern "C" __global__ void vectors(const float *x, float *y, int shift) {
  *reinterpret_cast<float4 *>(y) = *reinterpret_cast<const float4 *>(x + shift);
}

extern "C" __global__ void warp_sums(const float *x, float *y, unsigned mask) {
  float sum = x[threadIdx.x];
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(mask, sum, step);
  y[threadIdx.x] = sum;
}

extern "C" __global__ void votes(const int *x, int *y) {
  int here = x[threadIdx.x];
  y[4 * threadIdx.x] = __ballot_sync(0xffffffffu, here);
  y[4 * threadIdx.x + 1] = __any_sync(0xffffffffu, here);
  y[4 * threadIdx.x + 2] = __all_sync(0xffffffffu, here);
  y[4 * threadIdx.x + 3] = __syncthreads_count(here);
}

extern "C" __global__ void half_barrier(float *y, int early) {
  if (early && threadIdx.x < 32) return;
  if (!early && threadIdx.x < 32) __syncthreads();
  else __syncthreads();
  y[threadIdx.x] = 1;
}

extern "C" __global__ void asynchronous(const float *x, float *y, int waits) {
  extern __shared__ float tile[];
  unsigned to = __cvta_generic_to_shared(tile + 4 * threadIdx.x);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(x + 4 * threadIdx.x),
               "r"(threadIdx.x < 2 ? 16 : 8)
               : "memory");
  asm volatile("cp.async.commit_group;" ::: "memory");
  if (waits) asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  for (int i = 0; i < 4; i++) y[4 * threadIdx.x + i] = tile[4 * threadIdx.x + i];
}

extern "C" __global__ void overtaken(const float *x, float *y, int barrier) {
  __shared__ __align__(16) float tile[128];
  for (int i = 0; i < 4; i++) tile[4 * threadIdx.x + i] = 1;
  __syncthreads();
  y[threadIdx.x] = tile[127 - threadIdx.x];
  if (barrier) __syncthreads();
  unsigned to = __cvta_generic_to_shared(tile + 4 * threadIdx.x);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(x) : "memory");
  __syncthreads();
  asm volatile("cp.async.wait_all;" ::: "memory");
}

extern "C" __global__ void powers(const float *x, float *y) {
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y[threadIdx.x]) : "f"(x[threadIdx.x]));
}

// D = A B: A (16, 16) by ldmatrix from shared memory, B (16, 8) stored as its columns
template <class T>
__global__ void tiles(const T *a, const T *b, float *d) {
  __shared__ __align__(16) T rows[256];
  int lane = threadIdx.x, group = lane / 4, pair = lane % 4 * 2;
  for (int i = lane; i < 256; i += 32) rows[i] = a[i];
  __syncthreads();
  unsigned ra[4], rb[2];
  unsigned from = __cvta_generic_to_shared(rows + (lane % 16) * 16 + lane / 16 * 8);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3])
               : "r"(from));
  const T *column = b + group * 16 + pair;
  for (int r = 0; r < 2; r++) rb[r] = *reinterpret_cast<const unsigned *>(column + 8 * r);
  float c[4] = {0, 0, 0, 0};
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
  for (int r = 0; r < 4; r++) d[(group + 8 * (r / 2)) * 8 + pair + r % 2] = c[r];
}
"""
TILES = "tiles<__nv_bfloat16>"
MODULE = RawModule(code=SOURCE, name_expressions=[TILES])
i4, f4 = np.int32, np.float32


def launch(name, *args, threads=64, grid=1, **options):
    MODULE.get_function(name)((grid,), (threads,), args, **options)


def numbers(n=64):
    return np.arange(n, dtype=f4)


@pytest.mark.parametrize("order", [0, 1, 7])
def test_barriers_and_shared_memory(order):
    y = np.zeros(64, f4)
    with orders(order):
        launch("reversed", numbers(), y, i4(1), i4(0))
    np.testing.assert_array_equal(y, numbers()[::-1])


def test_a_warp_barrier_orders_its_warp_and_no_other():
    y = np.zeros(32, f4)
    launch("reversed", numbers(32), y, i4(0), i4(1), threads=32)
    np.testing.assert_array_equal(y, numbers(32)[::-1])
    with pytest.raises(KernelError, match=r"kernel.cu:10: .*(race|unwritten)"):
        launch("reversed", numbers(), np.zeros(64, f4), i4(0), i4(1))


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_a_missing_barrier_is_found_in_every_order(order):
    with orders(order), pytest.raises(KernelError, match=r"^reversed, kernel.cu:10: thread \("):
        launch("reversed", numbers(), np.zeros(64, f4), i4(0), i4(0))


def test_out_of_bounds_names_the_byte():
    with pytest.raises(KernelError, match="out of bounds: it reads 4 bytes at byte 256 of argum"):
        launch("copied", numbers(), np.zeros(64, f4), i4(1), i4(1))
    with pytest.raises(KernelError, match="byte -4 of argument 0"):
        launch("copied", numbers(), np.zeros(64, f4), i4(-1), i4(1))
    with pytest.raises(KernelError, match="it writes 4 bytes at byte 128 of argument 1"):
        launch("copied", numbers(), np.zeros(32, f4), i4(0), i4(1))


def test_what_nobody_wrote_is_not_read():
    x, mask = numbers(), np.ones(256, np.uint8)
    mask[40:44] = 0
    with pytest.raises(KernelError, match="unwritten: it reads byte 40 of argument 0"):
        launch("copied", x, np.zeros(64, f4), i4(0), i4(1), written={id(x): mask})


def test_one_array_given_twice():
    x = numbers()
    launch("copied", x, x, i4(0), i4(1))
    with pytest.raises(KernelError, match="race"):  # each reads what thread 0 writes
        launch("copied", x, x, i4(0), i4(0))


def test_additions_of_many_blocks():
    n = np.zeros(1, i4)
    launch("counted", n, i4(1), grid=5)
    assert n[0] == 320
    with pytest.raises(KernelError, match=r"race: it (reads|writes) byte 0 of argument 0, w"):
        launch("counted", n, i4(0))
    with pytest.raises(KernelError, match="race: .*of block 0"):
        launch("counted", n, i4(0), threads=1, grid=2)


def test_vectors_are_aligned():
    y = np.zeros(4, f4)
    launch("vectors", numbers(), y, i4(8), threads=1)
    np.testing.assert_array_equal(y, [8, 9, 10, 11])
    with pytest.raises(KernelError, match="misaligned: it reads 16 bytes at byte 8 of argument 0"):
        launch("vectors", numbers(), y, i4(2), threads=1)


def test_shuffles_and_their_masks():
    y = np.zeros(64, f4)
    launch("warp_sums", numbers(), y, np.uint32(0xFFFFFFFF))
    np.testing.assert_array_equal(y, np.repeat(numbers().reshape(2, 32).sum(1), 32))
    with pytest.raises(KernelError, match="wrong mask: .*leaves out lane 16"):
        launch("warp_sums", numbers(), y, np.uint32(0xFFFF))
    with pytest.raises(KernelError, match="wrong mask: .*last warp has 16 lanes"):
        launch("warp_sums", numbers(), y, np.uint32(0xFFFFFFFF), threads=48)


def test_votes():
    x = (np.arange(64) % 32 < 3).astype(i4)
    y = np.zeros((64, 4), i4)
    launch("votes", x, y)
    np.testing.assert_array_equal(y, np.broadcast_to([7, 1, 0, 6], (64, 4)))


@pytest.mark.parametrize("early, said", [(1, "has returned, others wait"), (0, "diverged")])
def test_barriers_that_not_all_reach(early, said):
    with pytest.raises(KernelError, match=said):
        launch("half_barrier", np.zeros(64, f4), i4(early))


def test_asynchronous_copies_arrive_when_waited_for():
    y = np.zeros(128, f4)
    launch("asynchronous", numbers(128), y, i4(1), threads=32, shared_mem=512)
    halves = numbers(128).reshape(32, 4).copy()
    halves[2:, 2:] = 0  # read half, the rest zeros
    np.testing.assert_array_equal(y, halves.ravel())
    with pytest.raises(KernelError, match="unwritten: it reads byte 0 of dynamic shared memory"):
        launch("asynchronous", numbers(128), y, i4(0), threads=32, shared_mem=512)
    with pytest.raises(KernelError, match="out of bounds"):
        launch("asynchronous", numbers(128), y, i4(1), threads=32, shared_mem=256)


def test_an_asynchronous_copy_may_arrive_at_once():
    """Begun before all have read what lies there, it races, however late it is waited for."""
    launch("overtaken", numbers(), np.zeros(32, f4), i4(1), threads=32)
    with pytest.raises(KernelError, match="race: it writes byte .* of static shared memory, whi"):
        launch("overtaken", numbers(), np.zeros(32, f4), i4(0), threads=32)


def test_powers_of_two():
    y = np.zeros(4, f4)
    launch("powers", f4([0, -1.5, -126, -126.5]), y, threads=4)
    np.testing.assert_allclose(y, [1, 2**-1.5, 2**-126, 0], rtol=1e-7)  # the last is subnormal


def test_products_of_tiles():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((16, 16)).astype(ml_dtypes.bfloat16)
    b = rng.standard_normal((16, 8)).astype(ml_dtypes.bfloat16)
    d = np.zeros((16, 8), f4)
    launch(TILES, a, np.ascontiguousarray(b.T), d, threads=32)
    np.testing.assert_allclose(d, a.astype(f4) @ b.astype(f4), rtol=1e-5, atol=1e-5)  # 16 sums


def test_arguments_have_the_kernels_types():
    y = np.zeros(64, f4)
    with pytest.raises(KernelError, match="the kernel takes i4, got int"):
        launch("copied", numbers(), y, 0, i4(1))
    with pytest.raises(KernelError, match="the kernel takes f4, got float64"):
        launch("copied", numbers().astype("f8"), y, i4(0), i4(1))
    with pytest.raises(KernelError, match="takes 4 arguments, got 3"):
        launch("copied", numbers(), y, i4(0))
    with pytest.raises(KernelError, match="not contiguous"):
        launch("copied", numbers(128)[::2], y, i4(0), i4(1))
    with pytest.raises(KernelError, match="bytes of dynamic shared memory"):
        launch("copied", numbers(), y, i4(0), i4(1), shared_mem=1 << 17)
    with pytest.raises(KernelError, match="more than 1024 threads"):
        launch("copied", numbers(), y, i4(0), i4(1), threads=2048)


def test_results_that_depend_on_the_order_are_refused():
    code = 'extern "C" __global__ void last(int *n) { atomicExch(n, int(threadIdx.x)); }'
    kernel = RawModule(code=code).get_function("last")
    with orders(0, 1), pytest.raises(KernelError, match="depends on the order of threads"):
        kernel((1,), (64,), (np.zeros(1, i4),))
