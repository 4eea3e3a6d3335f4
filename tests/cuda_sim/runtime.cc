// The machine that the kernels run on: one fiber for each CUDA thread of a block, in one OS thread.
//
// A fiber runs until it waits (a barrier, a warp collective) or ends; the scheduler then picks the
// next by the launch's order. Every load and store is looked at before it happens:
//
//   bounds      it lies in an allocation or in shared memory, and is aligned to its size
//   unwritten   what is read was written by somebody
//   races       of two accesses to a place, one of them a write and not both atomic, one happens
//               before the other: made by the same thread, or a __syncthreads of their block or
//               a __syncwarp of both lanes lies between. Shuffles and votes order nothing, and
//               blocks are never ordered (as in CUDA's model; fences are not looked at).
//
// Lanes of a warp are ordered by vector clocks, so races are found in every order of threads.
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <sys/mman.h>
#include <vector>

namespace sim {
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct Site { const char *file; int line; };
struct Operand { void *at; unsigned bytes; };
enum class Shuffle { Index, Xor, Down, Up };
enum class Vote { Ballot, Any, All };
enum class Update { Add, Max, Min, Exchange, And, Or };

// ------------------------------------------------------------------------------- fibers

enum class State : char { Ready, AtBarrier, AtWarp, Done };
enum class Meeting : char { Barrier, WarpBarrier, Shuffle, Vote, Mma, Matrices };

struct Call {  // of a collective: what a lane brings, and what it takes away
  Meeting what;
  Site site;
  unsigned mask = ~0u;
  int lane = 0, width = 32, kind = 0;
  uint64_t value = 0;
  unsigned a[4], b[2];
  float c[4];
  bool is_bfloat = false, transposed = false;
  char *row = nullptr;
};
struct Copy { char *to; const char *from; unsigned bytes, read; Site site; };  // a cp.async under way

struct Thread {
  void *stack_pointer = nullptr;
  char *stack = nullptr;
  State state = State::Done;
  Call call;
  unsigned clock[32];  // the latest time of each lane of its warp that it has heard of
  std::vector<Copy> copies;            // not committed yet
  std::vector<std::vector<Copy>> groups;
};

constexpr size_t STACK = 256 * 1024;
std::vector<Thread> threads;
void *scheduler_pointer;
int running = -1, thread_count;
uint3 block_at;
dim3 block_shape, grid_shape;
int block_number;
unsigned barriers;  // that this block has passed
std::string error;
void *error_address;
Site error_site;
void (*kernel)(void **);
void **kernel_arguments;

#if !defined(__x86_64__)
#error "the simulator switches stacks in x86-64 assembly"
#endif
asm(R"(
  .text
  .globl sim_switch
  .hidden sim_switch
sim_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
extern "C" void sim_switch(void **save, void *to);

void wait(State state) {
  Thread &me = threads[running];
  me.state = state;
  sim_switch(&me.stack_pointer, scheduler_pointer);
}

// The first failure ends the launch: the fiber is left where it stands.
__attribute__((format(printf, 3, 4))) void fail(void *address, Site site, const char *format, ...) {
  if (error.empty()) {
    char text[600];
    va_list rest;
    va_start(rest, format);
    vsnprintf(text, sizeof text, format, rest);
    va_end(rest);
    error = text;
    error_address = address;
    error_site = site;
  }
  if (running >= 0) wait(State::Done);
}

void finish_copies(size_t keep);
void thread_main() {
  kernel(kernel_arguments);
  finish_copies(0);
  wait(State::Done);
  __builtin_trap();
}

void start(Thread &t, int lane) {
  if (!t.stack) {
    t.stack = (char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    mprotect(t.stack, 4096, PROT_NONE);
  }
  void **top = (void **)(t.stack + STACK - 64);
  *--top = nullptr;  // keeps the stack aligned to 16 at the first call
  *--top = (void *)thread_main;
  top -= 6;
  memset(top, 0, 6 * sizeof(void *));
  t.stack_pointer = top;
  t.state = State::Ready;
  std::fill(t.clock, t.clock + 32, 0);
  t.clock[lane] = 1;
  t.copies.clear();
  t.groups.clear();
}

// ------------------------------------------------------------------------------- memory

struct Touch {  // an access: whose, when, and from where
  int block = -1, thread = -1;
  unsigned barriers = 0, clock = 0;
  bool atomic = false;
  void *address = nullptr;
};
struct Cell { Touch write, read, other; };  // `other`: a reader of another thread, if there are two

struct Memory {
  char *first = nullptr, *last = nullptr;
  unsigned grain = 1;  // bytes of a cell
  bool shared = false, constant = false;
  std::string name;
  std::vector<Cell> cells;
  std::vector<char> written;  // by byte; empty where all is
};
std::vector<Memory> memories;  // the launch's arguments and other allocations, by address
Memory statics, dynamic;       // shared memory, of the block that runs
std::vector<char> dynamic_bytes;
size_t last_found;

Memory *find(const char *at) {
  if (at >= dynamic.first && at < dynamic.last) return &dynamic;
  if (at >= statics.first && at < statics.last) return &statics;
  if (last_found < memories.size() && at >= memories[last_found].first && at < memories[last_found].last)
    return &memories[last_found];
  auto after = std::upper_bound(memories.begin(), memories.end(), at, [](const char *a, const Memory &m) { return a < m.first; });
  if (after == memories.begin()) return nullptr;
  --after;
  last_found = after - memories.begin();
  return at < after->last ? &*after : nullptr;
}

std::string nearest(const char *at) {
  const Memory *best = nullptr;
  long distance = 1L << 40;
  auto consider = [&](const Memory &m) {
    if (!m.first || m.first == m.last) return;
    long away = at < m.first ? m.first - at : at - m.last + 1;
    if (away < distance) distance = away, best = &m;
  };
  for (auto &m : memories) consider(m);
  consider(dynamic);
  consider(statics);
  if (!best) return "a wild address";
  char text[120];
  if (distance > 1 << 20) snprintf(text, sizeof text, "a wild address");
  else snprintf(text, sizeof text, "byte %ld of %s, which has %ld", (long)(at - best->first), best->name.c_str(), (long)(best->last - best->first));
  return text;
}

enum class Access { Read, Write, Atomic };
const char *verb(Access a) { return a == Access::Read ? "reads" : a == Access::Write ? "writes" : "updates"; }

bool before(const Touch &then, const Touch &now) {
  if (then.thread < 0 || (then.thread == now.thread && then.block == now.block)) return true;
  if (then.block != now.block) return false;
  if (then.barriers < now.barriers) return true;
  return then.thread / 32 == now.thread / 32 && then.clock <= threads[now.thread].clock[then.thread % 32];
}

void remember_read(Cell &cell, const Touch &now) {
  if (before(cell.read, now)) { cell.read = now; return; }
  if (before(cell.other, now)) { cell.other = now; return; }
  // Both are still unordered: keep two of different warps, so that a writer of either is caught.
  bool alike = cell.read.block == cell.other.block && cell.read.thread / 32 == cell.other.thread / 32;
  if (alike) cell.other = now;
}

void race(const Memory &m, char *at, Access kind, const Touch &then, bool was_write, const Touch &now, Site site) {
  char who[64];
  if (then.block == now.block) snprintf(who, sizeof who, "thread %d", then.thread);
  else snprintf(who, sizeof who, "thread %d of block %d", then.thread, then.block);
  fail(now.address, site, "race: it %s byte %ld of %s, which %s %s with nothing in between to order them {%p}",
       verb(kind), (long)(at - m.first), m.name.c_str(), who, was_write ? (then.atomic ? "updates" : "writes") : "reads", then.address);
}

void touch(char *at, unsigned bytes, Access kind, void *address, Site site = {nullptr, 0}, unsigned align = 0) {
  if (running < 0) return;
  Thread &me = threads[running];
  if (at >= me.stack && at < me.stack + STACK) return;
  Memory *m = find(at);
  if (!m || at + bytes > m->last)
    return fail(address, site, "out of bounds: it %s %u bytes at %s", verb(kind), bytes, nearest(m ? at + bytes - 1 : at).c_str());
  if (uintptr_t(at) % (align ? align : bytes))
    return fail(address, site, "misaligned: it %s %u bytes at byte %ld of %s", verb(kind), bytes, (long)(at - m->first), m->name.c_str());
  if (kind != Access::Read && m->constant)
    return fail(address, site, "it %s %s, which the kernel takes as const", verb(kind), m->name.c_str());
  long offset = at - m->first;
  if (kind != Access::Write && !m->written.empty())
    for (unsigned i = 0; i < bytes; i++)
      if (!m->written[offset + i])
        return fail(address, site, "unwritten: it %s byte %ld of %s, which nobody wrote", verb(kind), offset + i, m->name.c_str());
  if (kind != Access::Read && !m->written.empty()) memset(&m->written[offset], 1, bytes);
  Touch now{block_number, running, barriers, me.clock[running % 32], kind == Access::Atomic, address};
  for (long c = offset / m->grain; c <= (offset + bytes - 1) / m->grain; c++) {
    Cell &cell = m->cells[c];
    char *where = m->first + c * m->grain;
    if (!before(cell.write, now) && !(cell.write.atomic && now.atomic)) return race(*m, where, kind, cell.write, true, now, site);
    if (kind == Access::Read) { remember_read(cell, now); continue; }
    if (!before(cell.read, now)) return race(*m, where, kind, cell.read, false, now, site);
    if (!before(cell.other, now)) return race(*m, where, kind, cell.other, false, now, site);
    cell.write = now;
    cell.read = cell.other = {};
  }
}

// ------------------------------------------------------------------------------- collectives

const char *name_of(Meeting m) {
  const char *names[] = {"__syncthreads", "__syncwarp", "a shuffle", "a vote", "mma", "ldmatrix"};
  return names[int(m)];
}

Call &meet(Meeting what, unsigned mask, Site site) {
  Thread &me = threads[running];
  int lane = running % 32, lanes = std::min(32, thread_count - running / 32 * 32);
  me.call.what = what;
  me.call.mask = mask;
  me.call.site = site;
  if (!(mask >> lane & 1)) fail(nullptr, site, "wrong mask: %s with mask %#x, which leaves out lane %d that calls it", name_of(what), mask, lane);
  if (lanes < 32 && mask >> lanes) fail(nullptr, site, "wrong mask: %s with mask %#x, but the block's last warp has %d lanes", name_of(what), mask, lanes);
  wait(State::AtWarp);
  return me.call;
}

float widened(unsigned bits, bool is_bfloat) {
  if (is_bfloat) { bits <<= 16; float f; memcpy(&f, &bits, 4); return f; }
  uint16_t half = bits;
  _Float16 h;
  memcpy(&h, &half, 2);
  return h;
}

// D (16, 8) = A (16, 16) B (16, 8) + C, spread over the lanes as PTX says for m16n8k16.
void mma(Thread *warp) {
  float a[16][16], b[16][8];
  bool is_bfloat = warp[0].call.is_bfloat;
  for (int lane = 0; lane < 32; lane++)
    for (int half = 0; half < 2; half++) {
      int group = lane / 4, pair = lane % 4 * 2 + half;
      for (int r = 0; r < 4; r++) a[group + 8 * (r % 2)][pair + 8 * (r / 2)] = widened(warp[lane].call.a[r] >> 16 * half & 0xffff, is_bfloat);
      for (int r = 0; r < 2; r++) b[pair + 8 * r][group] = widened(warp[lane].call.b[r] >> 16 * half & 0xffff, is_bfloat);
    }
  for (int lane = 0; lane < 32; lane++)
    for (int r = 0; r < 4; r++) {
      int row = lane / 4 + 8 * (r / 2), column = lane % 4 * 2 + r % 2;
      float sum = warp[lane].call.c[r];
      for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
      warp[lane].call.c[r] = sum;
    }
}

// ldmatrix: lane i of each 8 names a row of 8 halves; matrix r goes to register r of every lane.
void load_matrices(Thread *warp) {
  for (int r = 0; r < warp[0].call.width; r++)
    for (int lane = 0; lane < 32; lane++) {
      uint16_t halves[2];
      for (int half = 0; half < 2; half++) {
        int row = lane / 4, column = lane % 4 * 2 + half;
        if (warp[0].call.transposed) std::swap(row, column);
        memcpy(&halves[half], warp[8 * r + row].call.row + 2 * column, 2);
      }
      memcpy(&warp[lane].call.a[r], halves, 4);
    }
}

unsigned shuffled_from(const Call &call, int lane) {
  int first = lane & ~(call.width - 1), last = first + call.width - 1, from = lane;
  switch (Shuffle(call.kind)) {
    case Shuffle::Index: return first + (call.lane & (call.width - 1));
    case Shuffle::Xor: from = lane ^ call.lane; return from > last ? lane : from;
    case Shuffle::Down: from = lane + call.lane; return from > last ? lane : from;
    case Shuffle::Up: from = lane - call.lane; return from < first ? lane : from;
  }
  return lane;
}

void complete(Thread *warp, unsigned mask) {
  Meeting what = warp[__builtin_ctz(mask)].call.what;
  uint64_t taken[32] = {};
  unsigned said = 0;
  for (int j = 0; j < 32; j++) if (mask >> j & 1) said |= unsigned(warp[j].call.value != 0) << j;
  if (what == Meeting::Mma) mma(warp);
  if (what == Meeting::Matrices) load_matrices(warp);
  for (int j = 0; j < 32; j++) {
    if (!(mask >> j & 1)) continue;
    Call &call = warp[j].call;
    if (what == Meeting::Shuffle) {
      unsigned from = shuffled_from(call, j);
      if (!(mask >> from & 1)) return fail(nullptr, call.site, "wrong mask: lane %d shuffles from lane %u, which mask %#x leaves out", j, from, mask);
      taken[j] = warp[from].call.value;
    }
    if (what == Meeting::Vote)
      taken[j] = Vote(call.kind) == Vote::Ballot ? said : Vote(call.kind) == Vote::Any ? said != 0 : said == mask;
  }
  unsigned heard[32] = {};
  if (what == Meeting::WarpBarrier)
    for (int j = 0; j < 32; j++) if (mask >> j & 1)
      for (int l = 0; l < 32; l++) heard[l] = std::max(heard[l], warp[j].clock[l]);
  for (int j = 0; j < 32; j++) if (mask >> j & 1) {
    if (what == Meeting::WarpBarrier) { std::copy(heard, heard + 32, warp[j].clock); warp[j].clock[j]++; }
    if (what == Meeting::Shuffle || what == Meeting::Vote) warp[j].call.value = taken[j];
    warp[j].state = State::Ready;
  }
}

// Completes the collectives of a warp for which every named lane has come.
void try_warp(int number) {
  Thread *warp = &threads[number * 32];
  int lanes = std::min(32, thread_count - number * 32);
  for (int i = 0; i < lanes; i++) {
    if (warp[i].state != State::AtWarp) continue;
    const Call &mine = warp[i].call;
    bool all = true;
    for (int j = 0; j < lanes; j++) {
      if (!(mine.mask >> j & 1)) continue;
      if (warp[j].state == State::Done)
        return fail(nullptr, mine.site, "wrong mask: %s of warp %d waits for lane %d, which has returned", name_of(mine.what), number, j);
      if (warp[j].state != State::AtWarp) { all = false; continue; }
      const Call &theirs = warp[j].call;
      if (theirs.mask != mine.mask || theirs.what != mine.what || theirs.site.line != mine.site.line)
        return fail(nullptr, mine.site, "diverged: lane %d of warp %d is at %s (mask %#x), lane %d at %s (mask %#x, line %d)", i, number,
                    name_of(mine.what), mine.mask, j, name_of(theirs.what), theirs.mask, theirs.site.line);
    }
    if (all) complete(warp, mine.mask);
    if (!error.empty()) return;
  }
}

void try_barrier() {
  const Thread *first = nullptr;
  int met = 0;
  for (int t = 0; t < thread_count; t++) {
    Thread &thread = threads[t];
    if (thread.state == State::AtWarp)
      return fail(nullptr, thread.call.site, "deadlock: thread %d waits at %s (mask %#x) for lanes that wait elsewhere", t, name_of(thread.call.what), thread.call.mask);
    if (thread.state != State::AtBarrier) continue;
    if (!first) first = &thread;
    if (thread.call.site.line != first->call.site.line)
      return fail(nullptr, thread.call.site, "diverged: thread %d is at this __syncthreads, another at that of line %d", t, first->call.site.line);
    met += thread.call.value != 0;
  }
  for (int t = 0; t < thread_count; t++)
    if (threads[t].state == State::Done)
      return fail(nullptr, first->call.site, "diverged: thread %d has returned, others wait at __syncthreads", t);
  barriers++;
  for (int t = 0; t < thread_count; t++) {
    threads[t].call.value = met;
    threads[t].clock[t % 32]++;
    threads[t].state = State::Ready;
  }
}

// ------------------------------------------------------------------------------- the dialect

uint3 thread_index() {
  unsigned x = block_shape.x, y = block_shape.y, t = running;
  return {t % x, t / x % y, t / (x * y)};
}
uint3 block_index() { return block_at; }
dim3 block_size() { return block_shape; }
dim3 grid_size() { return grid_shape; }
void *dynamic_shared() { return dynamic.first; }

int barrier_count(int predicate, Site site) {
  Thread &me = threads[running];
  me.call.what = Meeting::Barrier;
  me.call.site = site;
  me.call.value = predicate != 0;
  wait(State::AtBarrier);
  return me.call.value;
}
void barrier(Site site) { barrier_count(0, site); }
void warp_barrier(unsigned mask, Site site) { meet(Meeting::WarpBarrier, mask, site); }
uint64_t shuffle(unsigned mask, uint64_t value, int lane, int width, Shuffle kind, Site site) {
  Call &call = threads[running].call;
  call.value = value, call.lane = lane, call.width = width, call.kind = int(kind);
  return meet(Meeting::Shuffle, mask, site).value;
}
unsigned vote(unsigned mask, int predicate, Vote kind, Site site) {
  Call &call = threads[running].call;
  call.value = predicate != 0, call.kind = int(kind);
  return meet(Meeting::Vote, mask, site).value;
}
unsigned active_lanes() {
  unsigned mask = 0;
  for (int j = 0; j < 32 && running / 32 * 32 + j < thread_count; j++) mask |= unsigned(threads[running / 32 * 32 + j].state != State::Done) << j;
  return mask;
}

template <class T> void updated(void *at, const void *value, void *old, Update kind) {
  T was, by, now;
  memcpy(&was, at, sizeof(T));
  memcpy(&by, value, sizeof(T));
  now = kind == Update::Add ? T(was + by) : kind == Update::Max ? std::max(was, by) : kind == Update::Min ? std::min(was, by) : by;
  if constexpr (std::is_integral_v<T>) {
    if (kind == Update::And) now = was & by;
    if (kind == Update::Or) now = was | by;
  }
  memcpy(at, &now, sizeof(T));
  memcpy(old, &was, sizeof(T));
}
void atomic(void *at, void *value, void *old, char type, Update kind, Site site) {
  bool wide = type == 'd' || type == 'l' || type == 'v';
  touch((char *)at, wide ? 8 : 4, Access::Atomic, nullptr, site);
  switch (type) {
    case 'f': return updated<float>(at, value, old, kind);
    case 'd': return updated<double>(at, value, old, kind);
    case 'i': return updated<int32_t>(at, value, old, kind);
    case 'u': return updated<uint32_t>(at, value, old, kind);
    case 'l': return updated<int64_t>(at, value, old, kind);
    default: return updated<uint64_t>(at, value, old, kind);
  }
}
void compare_and_swap(void *at, void *expected, void *value, void *old, unsigned bytes, Site site) {
  touch((char *)at, bytes, Access::Atomic, nullptr, site);
  memcpy(old, at, bytes);
  if (!memcmp(old, expected, bytes)) memcpy(at, value, bytes);
}

// Addresses of shared memory have 32 bits: those of static arrays begin at 0, dynamic ones at 2^24.
constexpr uint32_t DYNAMIC = 1 << 24;
uint32_t shared_address(const void *at, Site site) {
  const char *a = (const char *)at;
  if (a >= dynamic.first && a <= dynamic.last) return DYNAMIC + (a - dynamic.first);
  if (a >= statics.first && a <= statics.last) return a - statics.first;
  fail(nullptr, site, "out of bounds: the address of %s taken as one of shared memory", nearest(a).c_str());
  return 0;
}
char *shared_pointer(uint32_t address) { return address >= DYNAMIC ? dynamic.first + (address - DYNAMIC) : statics.first + address; }

// ------------------------------------------------------------------------------- PTX

// An asynchronous copy is made when it is waited for, as late as a GPU may; from its start on the
// place counts as unwritten, so that neither a missing wait nor a start too early goes unseen.
void finish_copies(size_t keep) {
  Thread &me = threads[running];
  while (me.groups.size() > keep) {
    for (auto &copy : me.groups.front()) {
      if (copy.read) touch((char *)copy.from, copy.read, Access::Read, nullptr, copy.site, copy.bytes);
      touch(copy.to, copy.bytes, Access::Write, nullptr, copy.site);
      memset(copy.to, 0, copy.bytes);
      memcpy(copy.to, copy.from, copy.read);
    }
    me.groups.erase(me.groups.begin());
  }
}

bool begins(const char *text, const char *with) { return !strncmp(text, with, strlen(with)); }
template <class T> T value_of(const Operand &o) { T v; memcpy(&v, o.at, sizeof v); return v; }

void ptx_copy(const char *text, const Operand *operands, int count, Site site) {
  unsigned bytes = atoi(strstr(text, "],") ? strrchr(text, ']') + 2 : "0");
  unsigned read = count > 2 ? value_of<uint32_t>(operands[2]) : bytes;
  if (bytes != 4 && bytes != 8 && bytes != 16) fail(nullptr, site, "cp.async of %u bytes", bytes);
  if (begins(text, "cp.async.cg") && bytes != 16) fail(nullptr, site, "cp.async.cg copies 16 bytes, not %u", bytes);
  if (read > bytes) fail(nullptr, site, "cp.async reads %u bytes for %u", read, bytes);
  char *to = shared_pointer(value_of<uint32_t>(operands[0]));
  auto from = value_of<const char *>(operands[1]);
  if (uintptr_t(from) % bytes) fail(nullptr, site, "misaligned: cp.async of %u bytes", bytes);
  touch(to, bytes, Access::Write, nullptr, site);  // it may arrive at once, and is not to be read
  if (Memory *m = find(to)) memset(&m->written[to - m->first], 0, bytes);
  threads[running].copies.push_back({to, from, bytes, read, site});
}

void ptx_mma(const char *text, const Operand *operands, int count, Site site) {
  Call &call = threads[running].call;
  if (count != 10) fail(nullptr, site, "mma: expected four sums in place, four and two registers");
  call.is_bfloat = strstr(text, ".f32.bf16.bf16.f32") != nullptr;
  if (!call.is_bfloat && !strstr(text, ".f32.f16.f16.f32")) fail(nullptr, site, "the simulator does not know %s", text);
  for (int i = 0; i < 4; i++) call.c[i] = value_of<float>(operands[i]);
  for (int i = 0; i < 4; i++) call.a[i] = value_of<unsigned>(operands[4 + i]);
  for (int i = 0; i < 2; i++) call.b[i] = value_of<unsigned>(operands[8 + i]);
  meet(Meeting::Mma, ~0u, site);
  for (int i = 0; i < 4; i++) memcpy(operands[i].at, &call.c[i], 4);
}

void ptx_matrices(const char *text, const Operand *operands, int count, Site site) {
  Call &call = threads[running].call;
  call.width = count - 1;
  call.transposed = strstr(text, ".trans") != nullptr;
  call.row = shared_pointer(value_of<uint32_t>(operands[count - 1]));
  if (running % 32 < 8 * call.width) touch(call.row, 16, Access::Read, nullptr, site);
  meet(Meeting::Matrices, ~0u, site);
  for (int r = 0; r < count - 1; r++) memcpy(operands[r].at, &call.a[r], 4);
  call.width = 32;
}

void ptx_power_of_two(const Operand *operands) {
  float y = std::exp2(value_of<float>(operands[1]));
  if (y < 0x1p-126f) y = 0;  // .ftz
  memcpy(operands[0].at, &y, 4);
}

void ptx(const char *text, const Operand *operands, int count, Site site) {
  Thread &me = threads[running];
  while (*text == ' ' || *text == '\n') text++;
  if (begins(text, "ex2.approx.ftz.f32")) return ptx_power_of_two(operands);
  if (begins(text, "mma.sync.aligned.m16n8k16.row.col")) return ptx_mma(text, operands, count, site);
  if (begins(text, "ldmatrix.sync.aligned.m8n8.x")) return ptx_matrices(text, operands, count, site);
  if (begins(text, "cp.async.commit_group")) {
    me.groups.push_back(std::move(me.copies));
    me.copies.clear();
  } else if (begins(text, "cp.async.wait_all")) {
    me.groups.push_back(std::move(me.copies));
    me.copies.clear();
    finish_copies(0);
  } else if (begins(text, "cp.async.wait_group")) {
    size_t keep = count ? value_of<int>(operands[0]) : atoi(text + strlen("cp.async.wait_group"));
    finish_copies(keep);
  } else if (begins(text, "cp.async.ca") || begins(text, "cp.async.cg")) {
    ptx_copy(text, operands, count, site);
  } else {
    fail(nullptr, site, "the simulator does not know %s", text);
  }
}

// ------------------------------------------------------------------------------- launching

void run_block(int order, std::mt19937 &random) {
  for (int t = 0; t < thread_count; t++) start(threads[t], t % 32);
  barriers = 0;
  int warps = (thread_count + 31) / 32, left = thread_count;
  std::vector<int> warp_order(warps), lane_order(32);
  std::iota(warp_order.begin(), warp_order.end(), 0);
  std::iota(lane_order.begin(), lane_order.end(), 0);
  if (order == 1) std::reverse(warp_order.begin(), warp_order.end()), std::reverse(lane_order.begin(), lane_order.end());
  while (left) {
    bool progress = false;
    if (order > 1) std::shuffle(warp_order.begin(), warp_order.end(), random);
    for (int w : warp_order)
      for (bool again = true; again;) {
        again = false;
        if (order > 1) std::shuffle(lane_order.begin(), lane_order.end(), random);
        for (int lane : lane_order) {
          int t = w * 32 + lane;
          if (t >= thread_count || threads[t].state != State::Ready) continue;
          again = progress = true;
          running = t;
          sim_switch(&scheduler_pointer, threads[t].stack_pointer);
          running = -1;
          if (!error.empty()) {
            if (error.find("thread") != 0) {
              running = t;
              uint3 at = thread_index();
              running = -1;
              char who[80];
              snprintf(who, sizeof who, "thread (%u, %u, %u) of block (%u, %u, %u): ", at.x, at.y, at.z, block_at.x, block_at.y, block_at.z);
              error = who + error;
            }
            return;
          }
          if (threads[t].state == State::Done) left--;
        }
        try_warp(w);
        if (!error.empty()) return;
        if (order > 1 && random() % 4 == 0) break;  // let another warp overtake
      }
    if (left && !progress) try_barrier();
    if (!error.empty()) return;
  }
}

void forget(Memory &m) {  // shared memory at the start of a block: nobody's, and full of NaNs
  memset(m.first, 0xff, m.last - m.first);
  m.cells.assign((m.last - m.first + m.grain - 1) / m.grain, {});
  m.written.assign(m.last - m.first, 0);
}

void run_grid(int order) {
  std::mt19937 random(order);
  std::vector<unsigned> blocks(size_t(grid_shape.x) * grid_shape.y * grid_shape.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (order == 1) std::reverse(blocks.begin(), blocks.end());
  if (order > 1) std::shuffle(blocks.begin(), blocks.end(), random);
  for (unsigned b : blocks) {
    block_number = b;
    block_at = {b % grid_shape.x, b / grid_shape.x % grid_shape.y, b / (grid_shape.x * grid_shape.y)};
    forget(statics);
    forget(dynamic);
    run_block(order, random);
    if (!error.empty()) return;
  }
}
}  // namespace sim

// ------------------------------------------------------------------------------- from Python

extern "C" {
// An allocation: its bytes, how many make an entry, and which of them were written (or null).
struct sim_Allocation { char *first; long bytes; int grain, constant; char *written; const char *name; };
struct sim_Launch {
  unsigned grid[3], block[3];
  long shared_bytes;
  int order, count;
  sim_Allocation *allocations;
  void **arguments;
  void (*run)(void **);
  char *static_first, *static_last;
};
struct sim_Failure { char text[700], file[300]; int line; void *address; };

// 0, or 1 and what went wrong.
int sim_launch(sim_Launch *launch, sim_Failure *failure) {
  using namespace sim;
  error.clear();
  running = -1;
  grid_shape = {launch->grid[0], launch->grid[1], launch->grid[2]};
  block_shape = {launch->block[0], launch->block[1], launch->block[2]};
  thread_count = block_shape.x * block_shape.y * block_shape.z;
  if ((int)threads.size() < thread_count) threads.resize(thread_count);
  kernel = launch->run;
  kernel_arguments = launch->arguments;
  statics = {}, dynamic = {};
  statics.first = launch->static_first + uintptr_t(launch->static_first) % 2, statics.last = launch->static_last;
  statics.name = "static shared memory", statics.shared = true, statics.grain = 2;
  dynamic_bytes.assign(launch->shared_bytes + 128, 0);
  dynamic.first = (char *)((uintptr_t(dynamic_bytes.data()) + 127) / 128 * 128);
  dynamic.last = dynamic.first + launch->shared_bytes;
  dynamic.name = "dynamic shared memory", dynamic.shared = true, dynamic.grain = 2;
  memories.clear();
  for (int i = 0; i < launch->count; i++) {
    auto &a = launch->allocations[i];
    if (!a.bytes) continue;
    Memory m;
    m.first = a.first, m.last = a.first + a.bytes, m.grain = a.grain, m.constant = a.constant, m.name = a.name;
    if (a.written) m.written.assign(a.written, a.written + a.bytes);
    m.cells.resize((a.bytes + a.grain - 1) / a.grain);
    memories.push_back(std::move(m));
  }
  std::sort(memories.begin(), memories.end(), [](const Memory &a, const Memory &b) { return a.first < b.first; });
  last_found = 0;
  run_grid(launch->order);
  for (int i = 0; i < launch->count; i++) {
    auto &a = launch->allocations[i];
    Memory *m = a.bytes ? find(a.first) : nullptr;
    if (m && a.written) memcpy(a.written, m->written.data(), a.bytes);
  }
  if (error.empty()) return 0;
  snprintf(failure->text, sizeof failure->text, "%s", error.c_str());
  snprintf(failure->file, sizeof failure->file, "%s", error_site.file ? error_site.file : "");
  failure->line = error_site.line;
  failure->address = error_address;
  return 1;
}

// What g++ -fsanitize=thread puts in front of loads and stores.
#define HOOK(n)                                                                                                       \
  void __tsan_read##n(void *p) { sim::touch((char *)p, n, sim::Access::Read, __builtin_return_address(0)); }          \
  void __tsan_write##n(void *p) { sim::touch((char *)p, n, sim::Access::Write, __builtin_return_address(0)); }        \
  void __tsan_unaligned_read##n(void *p) { sim::touch((char *)p, n, sim::Access::Read, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##n(void *p) { sim::touch((char *)p, n, sim::Access::Write, __builtin_return_address(0)); }
HOOK(1)
HOOK(2)
HOOK(4)
HOOK(8)
HOOK(16)
void __tsan_read_range(void *p, long n) { sim::touch((char *)p, n, sim::Access::Read, __builtin_return_address(0), {}, 1); }
void __tsan_write_range(void *p, long n) { sim::touch((char *)p, n, sim::Access::Write, __builtin_return_address(0), {}, 1); }
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
void __tsan_init(void) {}
}
