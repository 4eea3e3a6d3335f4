// The CUDA dialect for g++, force-included in front of a .cu file.
//
// Only what a kernel sees is here; what it means is in runtime.cc. Loads and stores need no names:
// g++ -fsanitize=thread puts a call in front of each, and runtime.cc answers those calls.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __shared__ static  // in the library's .bss, which the runtime takes for shared memory
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
#define SIM_VECTORS(T, name)                                                      \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                              \
  struct alignas(4 * sizeof(T)) name##4 { T x, y, z, w; };                        \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                      \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SIM_VECTORS(float, float)
SIM_VECTORS(int, int)
SIM_VECTORS(unsigned, uint)
struct alignas(16) double2 { double x, y; };

namespace sim {
struct Site { const char *file; int line; };
struct Operand { void *at; unsigned bytes; };
enum class Shuffle { Index, Xor, Down, Up };
enum class Vote { Ballot, Any, All };
enum class Update { Add, Max, Min, Exchange, And, Or };

// A thread's own coordinates never change, so the compiler may keep them.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) dim3 block_size();
__attribute__((const)) dim3 grid_size();
__attribute__((const)) void *dynamic_shared();

void barrier(Site);
int barrier_count(int predicate, Site);
void warp_barrier(unsigned mask, Site);
uint64_t shuffle(unsigned mask, uint64_t value, int lane, int width, Shuffle kind, Site);
unsigned vote(unsigned mask, int predicate, Vote kind, Site);
unsigned active_lanes();
void atomic(void *at, void *value, void *old, char type, Update kind, Site);
void compare_and_swap(void *at, void *expected, void *value, void *old, unsigned bytes, Site);
uint32_t shared_address(const void *at, Site);
void ptx(const char *text, const Operand *operands, int count, Site);

template <class T> constexpr char type_letter() {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4, "no such atomic");
  return std::is_floating_point_v<T> ? (sizeof(T) == 4 ? 'f' : 'd')
         : std::is_signed_v<T>       ? (sizeof(T) == 4 ? 'i' : 'l')
                                     : (sizeof(T) == 4 ? 'u' : 'v');
}
template <class T> T update(T *at, T value, Update kind, Site site) {
  T old;
  atomic(at, &value, &old, type_letter<T>(), kind, site);
  return old;
}
template <class T> T exchange_lanes(unsigned mask, T value, int lane, int width, Shuffle kind, Site site) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = shuffle(mask, bits, lane, width, kind, site);
  memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T> Operand operand(const T &x) { return {const_cast<T *>(&x), sizeof(T)}; }
template <class... O> void asm_statement(Site site, const char *text, O... operands) {
  Operand all[] = {operands..., {nullptr, 0}};
  ptx(text, all, sizeof...(O), site);
}
template <class T> using Same = std::type_identity_t<T>;
}  // namespace sim

#define threadIdx (sim::thread_index())
#define blockIdx (sim::block_index())
#define blockDim (sim::block_size())
#define gridDim (sim::grid_size())
constexpr int warpSize = 32;

#define SIM_FILE const char *file = __builtin_FILE(), int line = __builtin_LINE()
inline void __syncthreads(SIM_FILE) { sim::barrier({file, line}); }
inline int __syncthreads_count(int p, SIM_FILE) { return sim::barrier_count(p, {file, line}); }
inline int __syncthreads_or(int p, SIM_FILE) { return sim::barrier_count(p, {file, line}) != 0; }
inline void __syncwarp(unsigned mask = ~0u, SIM_FILE) { sim::warp_barrier(mask, {file, line}); }
#define SIM_SHUFFLE(name, kind)                                                         \
  template <class T> T name(unsigned mask, T x, int lane, int width = 32, SIM_FILE) {   \
    return sim::exchange_lanes(mask, x, lane, width, sim::Shuffle::kind, {file, line}); \
  }
SIM_SHUFFLE(__shfl_sync, Index)
SIM_SHUFFLE(__shfl_xor_sync, Xor)
SIM_SHUFFLE(__shfl_down_sync, Down)
SIM_SHUFFLE(__shfl_up_sync, Up)
inline unsigned __ballot_sync(unsigned m, int p, SIM_FILE) { return sim::vote(m, p, sim::Vote::Ballot, {file, line}); }
inline int __any_sync(unsigned m, int p, SIM_FILE) { return sim::vote(m, p, sim::Vote::Any, {file, line}); }
inline int __all_sync(unsigned m, int p, SIM_FILE) { return sim::vote(m, p, sim::Vote::All, {file, line}); }
inline unsigned __activemask() { return sim::active_lanes(); }

#define SIM_ATOMIC(name, kind)                                          \
  template <class T> T name(T *at, sim::Same<T> value, SIM_FILE) {      \
    return sim::update(at, value, sim::Update::kind, {file, line});     \
  }
SIM_ATOMIC(atomicAdd, Add)
SIM_ATOMIC(atomicMax, Max)
SIM_ATOMIC(atomicMin, Min)
SIM_ATOMIC(atomicExch, Exchange)
SIM_ATOMIC(atomicAnd, And)
SIM_ATOMIC(atomicOr, Or)
template <class T> T atomicCAS(T *at, sim::Same<T> expected, sim::Same<T> value, SIM_FILE) {
  T old;
  sim::compare_and_swap(at, &expected, &value, &old, sizeof(T), {file, line});
  return old;
}
inline unsigned __cvta_generic_to_shared(const void *at, SIM_FILE) { return sim::shared_address(at, {file, line}); }

// Arithmetic: the exact function where the GPU has a fast one.
using std::max;
using std::min;
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
#define SIM_BITS(name, To, From) \
  inline To name(From x) { To y; static_assert(sizeof x == sizeof y); memcpy(&y, &x, sizeof y); return y; }
SIM_BITS(__float_as_int, int, float)
SIM_BITS(__float_as_uint, unsigned, float)
SIM_BITS(__int_as_float, float, int)
SIM_BITS(__uint_as_float, float, unsigned)
SIM_BITS(__longlong_as_double, double, long long)
SIM_BITS(__double_as_longlong, long long, double)
template <class T> T __ldg(const T *at) { return *at; }

// ------------------------------------------------------------------ what Python calls
// A kernel's signature in letters: r: and w: for pointers, then numpy's kind and size.
struct __half;
struct __nv_bfloat16;
namespace sim {
template <size_t Bytes> const char *size_of_struct() {
  static char text[16];
  int digits = 0;
  for (size_t n = Bytes; n; n /= 10) digits++;
  text[0] = 'V';
  text[digits + 1] = 0;
  for (size_t n = Bytes; n; n /= 10) text[digits--] = '0' + n % 10;
  return text;
}
template <class T> const char *letters() {
  if constexpr (std::is_same_v<T, __half>) return "f2";
  else if constexpr (std::is_same_v<T, __nv_bfloat16>) return "bf16";
  else if constexpr (std::is_same_v<T, bool>) return "b1";
  else if constexpr (std::is_floating_point_v<T>) return sizeof(T) == 4 ? "f4" : "f8";
  else if constexpr (std::is_integral_v<T> && std::is_signed_v<T>)
    return sizeof(T) == 1 ? "i1" : sizeof(T) == 2 ? "i2" : sizeof(T) == 4 ? "i4" : "i8";
  else if constexpr (std::is_integral_v<T>)
    return sizeof(T) == 1 ? "u1" : sizeof(T) == 2 ? "u2" : sizeof(T) == 4 ? "u4" : "u8";
  else return size_of_struct<sizeof(T)>();  // a table of pointers, say: Python passes bytes
}
template <class A> void spell(char *&to) {
  using P = std::remove_pointer_t<A>;
  const char *parts[] = {std::is_pointer_v<A> ? (std::is_const_v<P> ? "r:" : "w:") : "",
                         letters<std::remove_const_t<std::conditional_t<std::is_pointer_v<A>, P, A>>>(), ","};
  for (auto part : parts) { strcpy(to, part); to += strlen(part); }
}
template <auto Kernel> struct Entry;
template <class... A, void (*Kernel)(A...)> struct Entry<Kernel> {
  template <size_t... I>
  __attribute__((no_sanitize("thread"))) static void call(void **a, std::index_sequence<I...>) {
    Kernel(*static_cast<std::remove_const_t<A> *>(a[I])...);
  }
  __attribute__((no_sanitize("thread"))) static void run(void **a) { call(a, std::index_sequence_for<A...>{}); }
  __attribute__((no_sanitize("thread"))) static const char *signature() {
    static thread_local char text[1024];
    char *to = text;
    *to = 0;
    (spell<A>(to), ...);
    return text;
  }
};
}  // namespace sim
extern "C" __attribute__((visibility("hidden"))) char __bss_start, _end;
#define SIM_EXPORT(id, ...)                                                                            \
  extern "C" __attribute__((no_sanitize("thread"))) const char *sim_signature_##id() { return sim::Entry<&__VA_ARGS__>::signature(); } \
  extern "C" __attribute__((no_sanitize("thread"))) void sim_run_##id(void **a) { sim::Entry<&__VA_ARGS__>::run(a); }
#define SIM_EXPORT_SHARED                                                                              \
  extern "C" void sim_shared_range(char **first, char **last) { *first = &__bss_start; *last = &_end; }
