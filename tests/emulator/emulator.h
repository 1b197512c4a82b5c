// CPU emulation of a CUDA thread-block cluster: one fiber per CUDA thread, one cluster at a time.
// Plain g++; types and bf16 conversions come from the toolkit's own host-usable headers.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_types.h>
#include <sys/mman.h>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>
#include <deque>
#include <stdexcept>
#include <type_traits>

namespace emu {
enum Async { EAGER = 0, LAZY = 1, RANDOM = 2 };   // when asynchronous work (cp.async, TMA, wgmma) takes effect
struct Config { int async = EAGER; uint32_t seed = 0; };
inline Config cfg;
inline std::mt19937 rng;
struct Stats { uint64_t switches = 0, mma = 0, wgmma = 0, tma = 0, passes = 0; };
inline Stats stats;

[[noreturn]] inline void fail(const std::string& m);

struct Rdv { uint64_t gen = 0; int n = 0; const char* op = nullptr; void* arg[128]; };
struct Bar { uint64_t gen = 0; unsigned n = 0, need = 0; };
struct WgState { std::deque<std::vector<std::function<void()>>> groups; std::vector<std::function<void()>> open; bool fenced = false; };
struct Cluster;
struct Cta {
  uint3 bid; unsigned rank; Cluster* cl; uint8_t* smem; size_t smem_bytes;
  std::vector<Rdv> warp, wg; std::vector<WgState> wgs; Bar bar[16];
  std::vector<uint8_t> dirty;   // per 16 B: 1 = written through the generic proxy, not yet fenced for the async proxy
  std::vector<uint16_t> dirty_by; int live = 0;
};
struct Fiber {
  void* sp = nullptr; char* stk = nullptr; uint3 tid; unsigned lin; Cta* cta; bool done;
  volatile uint64_t* wp; uint64_t wmask, wval; const char* where; uint64_t cl_gen;
  std::vector<std::function<void()>> cp_open; std::deque<std::vector<std::function<void()>>> cp_groups;
  std::vector<std::function<void()>> bulk_open; std::deque<std::vector<std::function<void()>>> bulk_groups;
};
struct Cluster { std::vector<Cta> cta; Bar bar; std::vector<Fiber*> fib; std::vector<std::function<void()>> engine; };
inline Fiber* cur = nullptr; inline Cluster* ccl = nullptr;
inline dim3 g_grid, g_block, g_cluster;
inline void* sched_sp = nullptr;
inline std::function<void()>* g_body = nullptr;
inline std::string g_err;
constexpr size_t STK = 256 << 10;
constexpr size_t SMEM_MAX = 228 << 10;

// ---- context switch (x86-64 SysV; use ucontext elsewhere)
extern "C" void emu_switch(void** save, void* load);
__asm__(".text\n.weak emu_switch\n.type emu_switch,@function\nemu_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
inline void to_sched() { emu_switch(&cur->sp, sched_sp); }
[[noreturn]] inline void fail(const std::string& m) {
  char b[160];
  if (cur) snprintf(b, sizeof b, " [block %u,%u thread %u]", cur->cta->bid.x, cur->cta->bid.y, cur->lin); else b[0] = 0;
  g_err = m + b;
  if (cur) { to_sched(); }       // never resumed
  throw std::runtime_error(g_err);
}
inline void entry() {
  (*g_body)();
  for (auto& g : cur->bulk_groups) for (auto& f : g) f();   // stores complete by kernel end
  cur->bulk_groups.clear();
  if (!cur->bulk_open.empty()) fail("bulk stores issued but never committed");
  cur->done = true; to_sched();
}
inline void wait_ne(volatile uint64_t* p, uint64_t mask, uint64_t val, const char* where) {
  if ((*p & mask) != val) return;
  cur->wp = p; cur->wmask = mask; cur->wval = val; cur->where = where; to_sched(); cur->wp = nullptr;
}
inline void yield() { cur->wp = nullptr; to_sched(); }

template <class F> inline void collective(Rdv& r, int idx, int total, const char* op, void* arg, F&& f) {
  if (r.n == 0) r.op = op; else if (r.op != op) fail(std::string("divergent collective: ") + op + " vs " + r.op);
  r.arg[idx] = arg;
  if (++r.n == total) { r.n = 0; f(r.arg); r.gen++; } else wait_ne(&r.gen, ~0ull, r.gen, op);
}
inline int nthreads() { return g_block.x * g_block.y * g_block.z; }
inline int lane() { return cur->lin & 31; }
template <class F> inline void warp_collective(const char* op, void* arg, F&& f) {
  int n = std::min(32, nthreads() - int(cur->lin & ~31u));
  collective(cur->cta->warp[cur->lin >> 5], lane(), n, op, arg, f);
}
template <class F> inline void wg_collective(const char* op, void* arg, F&& f) {
  collective(cur->cta->wg[cur->lin >> 7], cur->lin & 127, 128, op, arg, f);
}
inline void bar_arrive(Bar& b, unsigned need) {
  if (b.n == 0) b.need = need; else if (b.need != need) fail("barrier used with two thread counts");
  if (++b.n == need) { b.n = 0; b.gen++; }
}
inline void bar_sync(Bar& b, unsigned need, const char* where) { uint64_t g = b.gen; bar_arrive(b, need); wait_ne(&b.gen, ~0ull, g, where); }

// ---- shared addresses: 24-bit offset | cta rank << 24 (the shared::cluster window)
inline uint32_t smem_u32(const void* p) {
  auto d = (const uint8_t*)p - cur->cta->smem;
  if (d < 0 || d >= (ptrdiff_t)SMEM_MAX) fail("pointer is not in this CTA's dynamic shared memory");
  return uint32_t(d) | cur->cta->rank << 24;
}
inline uint8_t* smem_ptr(uint32_t a, size_t bytes = 1) {
  uint32_t r = a >> 24, o = a & 0xffffff;
  if (r >= ccl->cta.size() || o + bytes > ccl->cta[r].smem_bytes) fail("shared address out of bounds");
  if (ccl->cta[r].live == 0) fail("access to the shared memory of a CTA that has exited");
  return ccl->cta[r].smem + o;
}
// ---- generic-proxy / async-proxy ordering check
inline void mark_generic(const void* p, size_t n) {
  auto* c = cur->cta; size_t o = (const uint8_t*)p - c->smem; if (o >= SMEM_MAX) return;
  for (size_t i = o / 16; i <= (o + n - 1) / 16; i++) { c->dirty[i] = 1; c->dirty_by[i] = cur->lin; }
}
inline void fence_proxy_async() { auto* c = cur->cta; for (size_t i = 0; i < c->dirty.size(); i++) if (c->dirty[i] && c->dirty_by[i] == cur->lin) c->dirty[i] = 0; }
inline void check_async_read(Cta* c, size_t off, size_t n, const char* who) {
  for (size_t i = off / 16; i <= (off + n - 1) / 16; i++) if (c->dirty[i]) fail(std::string(who) + " reads shared memory written by ordinary stores without fence.proxy.async");
}
// ---- asynchronous engine
inline void post(std::function<void()> f) { if (cfg.async == EAGER) f(); else ccl->engine.push_back(std::move(f)); }
inline bool pump() {
  auto& q = ccl->engine; if (q.empty()) return false;
  size_t i = cfg.async == RANDOM ? rng() % q.size() : 0;
  auto f = std::move(q[i]); q.erase(q.begin() + i); f(); return true;
}
// ---- mbarrier: [0,20) pending, [20,40) expected, [40,62) tx + 2^21, 63 phase
constexpr uint64_t M20 = (1ull << 20) - 1, TXB = 1ull << 21;
inline uint64_t mb_pack(uint64_t pend, uint64_t exp, int64_t tx, uint64_t ph) { return pend | exp << 20 | (uint64_t(tx + (int64_t)TXB) & ((1ull << 22) - 1)) << 40 | ph << 63; }
inline void mb_update(uint32_t a, int arrive, int64_t dtx) {
  if (a & 7) fail("mbarrier not 8-byte aligned");
  uint64_t v; auto* p = smem_ptr(a, 8); memcpy(&v, p, 8);
  int64_t pend = v & M20, ex = v >> 20 & M20, tx = int64_t(v >> 40 & ((1ull << 22) - 1)) - (int64_t)TXB; uint64_t ph = v >> 63;
  if (ex == 0) fail("mbarrier not initialised");
  pend -= arrive; tx += dtx;
  if (pend < 0) fail("mbarrier: more arrivals than its count");
  if (tx > (1 << 20) - 1 || tx < -((1 << 20) - 1)) fail("mbarrier: tx-count out of range");
  if (pend == 0 && tx == 0) { pend = ex; ph ^= 1; }
  v = mb_pack(pend, ex, tx, ph); memcpy(p, &v, 8);
}
inline void mb_wait(uint32_t a, uint32_t parity) {   // returns once the phase of that parity has completed
  auto* p = (volatile uint64_t*)smem_ptr(a, 8); wait_ne(p, 1ull << 63, uint64_t(parity) << 63, "mbarrier.try_wait");
}
// ---- tensor map (stands for CUtensorMap) and swizzles
struct alignas(64) TensorMap { uint8_t* base; uint64_t dim[2], stride_bytes; uint32_t box[2], esz, swz, pad[20]; };
inline uint32_t swizzle(uint32_t a, int mode /*0 none,1 128B,2 64B,3 32B (the descriptor's code)*/) {
  switch (mode) { case 1: return a ^ ((a >> 7 & 7) << 4); case 2: return a ^ ((a >> 7 & 3) << 4); case 3: return a ^ ((a >> 7 & 1) << 4); default: return a; }
}
inline void tma_copy(const TensorMap& t, Cta* c, uint32_t off, int x, int y, bool store) {
  uint32_t rowb = t.box[0] * t.esz; stats.tma++;
  for (uint32_t r = 0; r < t.box[1]; r++) for (uint32_t b = 0; b < rowb; b += t.esz) {
    uint32_t s = swizzle(off + r * rowb + b, t.swz); int64_t gx = (int64_t)x + b / t.esz, gy = (int64_t)y + r;
    bool in = gx >= 0 && gy >= 0 && gx < (int64_t)t.dim[0] && gy < (int64_t)t.dim[1];
    uint8_t* g = t.base + gy * t.stride_bytes + gx * t.esz;
    if (store) { if (in) memcpy(g, c->smem + s, t.esz); }
    else if (in) memcpy(c->smem + s, g, t.esz); else memset(c->smem + s, 0, t.esz);
  }
}
inline void tma_check(const TensorMap& t, uint32_t off) {
  uint32_t rowb = t.box[0] * t.esz;
  if (((uintptr_t)t.base | t.stride_bytes) & 15) fail("TMA: global base or stride not 16-byte aligned");
  if (off & 127) fail("TMA: shared address not 128-byte aligned");
  if (t.box[0] > 256 || t.box[1] > 256) fail("TMA: box over 256");
  if (t.swz == 1 && (rowb > 128 || (off & 1023))) fail("TMA: 128B swizzle needs box row <= 128 B and a 1024-byte aligned tile");
  if (off + rowb * t.box[1] > cur->cta->smem_bytes) fail("TMA: tile past the end of shared memory");
}
inline void tma_load_2d(uint32_t dst, const TensorMap* t, uint32_t bar, int x, int y, uint16_t mask, bool multicast) {
  uint32_t off = dst & 0xffffff, boff = bar & 0xffffff; tma_check(*t, off);
  TensorMap tm = *t; int64_t bytes = (int64_t)tm.box[0] * tm.box[1] * tm.esz;
  if (!multicast) mask = 1u << (dst >> 24);
  for (unsigned r = 0; r < 16; r++) if (mask >> r & 1) {
    if (r >= ccl->cta.size()) fail("TMA multicast to a CTA outside the cluster");
    post([=] { if (ccl->cta[r].live == 0) throw std::runtime_error("TMA write into a CTA that has exited"); tma_copy(tm, &ccl->cta[r], off, x, y, false); mb_update(boff | r << 24, 0, -bytes); });
  }
}
inline void tma_store_2d(const TensorMap* t, uint32_t src, int x, int y) {
  uint32_t off = src & 0xffffff; tma_check(*t, off); Cta* c = cur->cta; TensorMap tm = *t;
  check_async_read(c, off, tm.box[0] * tm.box[1] * tm.esz, "TMA store");
  auto f = [=] { tma_copy(tm, c, off, x, y, true); };
  if (cfg.async == EAGER) f(); else cur->bulk_open.push_back(f);
  if (cfg.async == EAGER) cur->bulk_open.push_back([] {});
}
template <class Q> inline void run_groups(Q& q, size_t keep) { while (q.size() > keep) { for (auto& f : q.front()) f(); q.pop_front(); } }
// ---- wgmma
// The value of a 16-bit element of type T.
template <class T> inline float value(uint16_t bits) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) { uint32_t u = uint32_t(bits) << 16; float f; memcpy(&f, &u, 4); return f; }
  else { __half h; memcpy(&h, &bits, 2); return __half2float(h); }
}
// Byte offset of element (mn, k) of an operand tile of 16-bit elements. k_major: the tile's rows are mn and k runs along them
// (8 rows of `pitch` bytes to an atom, SBO from one group of 8 mn to the next). MN-major: the tile's rows are k and mn runs along
// them (pitch/2 mn by 8 k to an atom, LBO from one such block of mn to the next, SBO from one group of 8 k to the next).
inline uint32_t desc_elem(uint64_t d, int mn, int k, bool k_major = true) {
  uint32_t start = (d & 0x3fff) << 4, lbo = (d >> 16 & 0x3fff) << 4, sbo = (d >> 32 & 0x3fff) << 4; int mode = d >> 62, base = d >> 49 & 7;
  if (base) fail("wgmma descriptor: base offset not emulated");
  if (mode == 0) return k_major ? start + (mn / 8) * sbo + (mn % 8) * 16 + (k / 8) * lbo + (k % 8) * 2
                                : start + (mn / 8) * sbo + (mn % 8) * 2 + (k / 8) * lbo + (k % 8) * 16;
  int pitch = mode == 1 ? 128 : mode == 2 ? 64 : 32, w = pitch / 2;
  return swizzle(k_major ? start + (mn / 8) * sbo + (mn % 8) * pitch + k * 2
                         : start + (mn / w) * lbo + (mn % w) * 2 + (k / 8) * sbo + (k % 8) * pitch, mode);
}
struct WgArg { float* d; const uint32_t* a; uint64_t da, db; int scale_d; };
template <int N, class T, bool RS, bool TA = false, bool TB = false> inline void wgmma(WgArg w) {
  wg_collective(RS ? "wgmma.rs" : "wgmma.ss", &w, [&](void** av) {
    Cta* c = cur->cta; WgState& g = c->wgs[cur->lin >> 7]; stats.wgmma++;
    if (!g.fenced) fail("wgmma.mma_async without wgmma.fence after the registers were last touched");
    struct Op { float* d[128]; uint32_t a[128][4]; uint64_t da, db; int sd; };
    auto op = std::make_shared<Op>(); op->da = w.da; op->db = w.db; op->sd = w.scale_d;
    for (int t = 0; t < 128; t++) { auto* x = (WgArg*)av[t]; op->d[t] = x->d; if (RS) memcpy(op->a[t], x->a, 16); if (x->db != w.db || (!RS && x->da != w.da) || x->scale_d != w.scale_d) fail("wgmma: operands differ in the warpgroup"); }
    auto run = [op, c] {
      static thread_local float A[64][16], B[16][N], D[64][N];
      auto get = [&](uint64_t de, int r, int k, bool km) { uint32_t o = desc_elem(de, r, k, km); if (o + 2 > c->smem_bytes) fail("wgmma operand out of shared memory"); if (((km ? k : r) & 7) == 0) check_async_read(c, o & ~15u, 16, "wgmma"); uint16_t h; memcpy(&h, c->smem + o, 2); return value<T>(h); };
      for (int r = 0; r < 64; r++) for (int k = 0; k < 16; k++) {
        if (!RS) A[r][k] = get(op->da, r, k, !TA);
        else { int wq = r / 16, hi = r % 16 / 8, l = (r % 8) * 4 + (k % 8) / 2; uint32_t v = op->a[wq * 32 + l][hi + 2 * (k / 8)]; A[r][k] = value<T>(k & 1 ? v >> 16 : v & 0xffff); }
      }
      for (int n = 0; n < N; n++) for (int k = 0; k < 16; k++) B[k][n] = get(op->db, n, k, !TB);
      for (int r = 0; r < 64; r++) { for (int n = 0; n < N; n++) D[r][n] = 0; for (int k = 0; k < 16; k++) { float a = A[r][k]; for (int n = 0; n < N; n++) D[r][n] += a * B[k][n]; } }
      for (int t = 0; t < 128; t++) for (int i = 0; i < N / 2; i++) {   // m64nN accumulator fragment
        int r = t / 32 * 16 + (t % 32) / 4 + (i & 2 ? 8 : 0), n = i / 4 * 8 + (t % 4) * 2 + (i & 1);
        op->d[t][i] = (op->sd ? op->d[t][i] : 0.f) + D[r][n];
      }
    };
    if (cfg.async == EAGER) run(); else g.open.push_back(run);
  });
}
inline void wgmma_fence() { wg_collective("wgmma.fence", nullptr, [&](void**) { cur->cta->wgs[cur->lin >> 7].fenced = true; }); }
inline void wgmma_commit() { wg_collective("wgmma.commit_group", nullptr, [&](void**) { auto& g = cur->cta->wgs[cur->lin >> 7]; g.groups.push_back(std::move(g.open)); g.open.clear(); }); }
inline void wgmma_wait(int n) { wg_collective("wgmma.wait_group", nullptr, [&](void**) { auto& g = cur->cta->wgs[cur->lin >> 7]; run_groups(g.groups, n); if (n == 0) g.fenced = false; }); }

// ---- launch
inline void run_cluster(std::function<void()>& body) {
  g_body = &body; g_err.clear(); size_t live = ccl->fib.size(); auto& fs = ccl->fib;
  std::vector<Fiber*> order(fs); int burst = 0; Cta* bo = nullptr; unsigned bw = 0;
  while (live) {
    bool prog = false; stats.passes++; Cta* only = nullptr; unsigned warp = ~0u;   // random: starve all but one CTA or one warp at times
    if (cfg.async == RANDOM) {
      std::shuffle(order.begin(), order.end(), rng);
      if (burst) { burst--; only = bo; warp = bw; }
      else if (int z = rng() % 4; z < 2) { burst = 1 + rng() % 60; auto* f = order[0]; only = bo = f->cta; warp = bw = z ? f->lin >> 5 : ~0u; }
    }
    for (auto* f : order) {
      if (only && (f->cta != only || (warp != ~0u && f->lin >> 5 != warp))) continue;
      if (f->done || (f->wp && (*f->wp & f->wmask) == f->wval)) continue;
      cur = f; stats.switches++; emu_switch(&sched_sp, f->sp); cur = nullptr; prog = true;
      if (!g_err.empty()) throw std::runtime_error(g_err);
      if (f->done) { live--; f->cta->live--; }
      if (cfg.async == RANDOM && (rng() & 255) == 0) pump();
    }
    if (!prog && only) { burst = 0; if (pump()) {} continue; }
    if (!prog && !pump()) {
      std::string m = "deadlock:"; int k = 0;
      for (auto* f : fs) if (!f->done && k++ < 8) m += " (cta " + std::to_string(f->cta->rank) + " thread " + std::to_string(f->lin) + " in " + f->where + ")";
      throw std::runtime_error(m);
    }
  }
  if (!ccl->engine.empty()) throw std::runtime_error("kernel ended with asynchronous copies in flight");
}
template <class K> inline void launch(dim3 grid, dim3 block, dim3 cluster, size_t smem, K kernel) {
  static std::vector<Fiber*> pool; static std::vector<uint8_t*> smems;
  if (smem > 227 * 1024) throw std::runtime_error("over 227 KiB of shared memory");
  g_grid = grid; g_block = block; g_cluster = cluster; rng.seed(cfg.seed);
  std::function<void()> body = kernel; int nt = nthreads(); unsigned cs = cluster.x;
  if (grid.x % cs) throw std::runtime_error("grid is not a multiple of the cluster");
  while (pool.size() < size_t(nt) * cs) { auto* f = new Fiber; f->stk = (char*)mmap(nullptr, STK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); pool.push_back(f); }
  while (smems.size() < cs) smems.push_back((uint8_t*)aligned_alloc(1024, SMEM_MAX));
  for (unsigned by = 0; by < grid.y; by++) for (unsigned bx = 0; bx < grid.x; bx += cs) {
    Cluster cl; ccl = &cl; cl.cta.resize(cs);
    for (unsigned r = 0; r < cs; r++) {
      Cta& c = cl.cta[r]; c.bid = uint3{bx + r, by, 0}; c.rank = r; c.cl = &cl; c.smem = smems[r]; c.smem_bytes = smem; c.live = nt;
      memset(c.smem, 0xff, SMEM_MAX);   // NaN pattern: uninitialised shared memory shows up
      c.warp.resize((nt + 31) / 32); c.wg.resize((nt + 127) / 128); c.wgs.resize((nt + 127) / 128); c.dirty.assign(SMEM_MAX / 16, 0); c.dirty_by.assign(SMEM_MAX / 16, 0);
      for (int t = 0; t < nt; t++) {
        Fiber* f = pool[r * nt + t]; f->lin = t; f->tid = uint3{t % block.x, t / block.x % block.y, t / (block.x * block.y)}; f->cta = &c; f->done = false; f->wp = nullptr; f->where = "start";
        f->cp_open.clear(); f->cp_groups.clear(); f->bulk_open.clear(); f->bulk_groups.clear();
        void** sp = (void**)(f->stk + STK - 64); *--sp = nullptr; *--sp = (void*)&entry; sp -= 6; f->sp = sp; cl.fib.push_back(f);
      }
    }
    run_cluster(body);
  }
}
extern "C" __attribute__((weak, used, visibility("default"))) void emu_config(int async, uint32_t seed) { cfg.async = async; cfg.seed = seed; }
extern "C" __attribute__((weak, used, visibility("default"))) void emu_stats(uint64_t* o) { o[0] = stats.switches; o[1] = stats.mma; o[2] = stats.wgmma; o[3] = stats.tma; stats = {}; }
}  // namespace emu
#undef __shared__
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __cluster_dims__
#define __cluster_dims__(...)
#ifndef __global__
#define __global__
#endif
#ifndef __forceinline__
#define __forceinline__ inline
#endif
#define __shared__ static                 /* static shared arrays: one CTA at a time (no cluster) */
#define threadIdx (emu::cur->tid)
#define blockIdx (emu::cur->cta->bid)
#define blockDim (emu::g_block)
#define gridDim (emu::g_grid)
inline void __syncthreads() { emu::bar_sync(emu::cur->cta->bar[0], emu::nthreads(), "__syncthreads"); }
inline void __syncwarp(unsigned = ~0u) { emu::warp_collective("syncwarp", nullptr, [](void**) {}); }
template <class T> inline T __shfl_xor_sync(unsigned, T v, int m) {
  struct A { T in, out; int src; } a{v, v, emu::lane() ^ m};
  emu::warp_collective("shfl", &a, [](void** p) { for (int i = 0; i < 32; i++) ((A*)p[i])->out = ((A*)p[((A*)p[i])->src])->in; });
  return a.out;
}
template <class T> inline T __shfl_sync(unsigned, T v, int s) {
  struct A { T in, out; int src; } a{v, v, s & 31};
  emu::warp_collective("shfl", &a, [](void** p) { for (int i = 0; i < 32; i++) ((A*)p[i])->out = ((A*)p[((A*)p[i])->src])->in; });
  return a.out;
}
