// wgmma: asynchronous products of a warpgroup on shared memory.
#pragma once

#include <limits>

#include "cluster.h"
#include "tma.h"
#include "warp_matrices.h"

namespace emu {

// A matrix descriptor, taken apart; distances in bytes.
struct Descriptor {
  explicit Descriptor(uint64_t bits)
      : start((bits & 0x3fff) << 4),
        leading((bits >> 16 & 0x3fff) << 4),
        stride((bits >> 32 & 0x3fff) << 4),
        mode(static_cast<uint32_t>(bits >> 62)) {
    if (bits >> 49 & 7) fail("wgmma: a descriptor with a base offset, which is not emulated");
  }
  // The 16 bytes that begin with element (mn, k); along k (k_major) or along mn those are 8 elements.
  uint32_t offset(uint32_t mn, uint32_t k, bool k_major) const {
    constexpr uint32_t kPitch[] = {16, 128, 64, 32};  // bytes of a row of an atom, which is 8 rows
    const uint32_t pitch = kPitch[mode], row = k_major ? mn : k, along = k_major ? k : mn;
    if (mode == 0) return start + (mn / 8) * stride + (k / 8) * leading + row % 8 * pitch;
    const uint32_t width = pitch / 2;
    const uint32_t block = k_major ? along * 2 : along / width * leading + along % width * 2;
    return swizzle(start + row / 8 * stride + row % 8 * pitch + block, mode);
  }
  uint32_t start, leading, stride, mode;
};

// Reads an operand: put(mn, k, first of 8 values) for each 16 bytes of it.
template <class T, class Put>
void read_operand(uint64_t bits, uint32_t width, bool k_major, Put&& put) {
  const Descriptor descriptor(bits);
  const SharedMemory& shared = *current->cta->shared;
  float values[8];
  for (uint32_t mn = 0; mn < width; mn += k_major ? 1 : 8) {
    for (uint32_t k = 0; k < 16; k += k_major ? 8 : 1) {
      const uint32_t offset = descriptor.offset(mn, k, k_major);
      shared.async_read(offset, 16, "wgmma");
      widen8<T>(shared.bytes() + offset, values);
      put(mn, k, values);
    }
  }
}

// d [64, N] = a [64, 16] b [16, N] + (keep ? d : 0) on the rows of the accumulator; N a multiple of 32.
template <class T, bool TA, bool TB>
void multiply(const Product& product) {
  using Vector = float __attribute__((vector_size(64)));
  constexpr int kLanes = 16, kBlock = 2 * kLanes;
  alignas(64) static float a[64][16], b[16][256];
  const int columns = product.d->columns;

  if (product.fragments.empty()) {
    read_operand<T>(product.a, 64, !TA, [](uint32_t m, uint32_t k, const float* values) {
      for (int i = 0; i < 8; ++i) (TA ? a[m + i][k] : a[m][k + i]) = values[i];
    });
  } else {
    for (int row = 0; row < 64; ++row) {
      for (int k = 0; k < 16; ++k) {
        const int thread = row / 16 * 32 + row % 8 * 4 + k % 8 / 2, fragment = row % 16 / 8 + k / 8 * 2;
        const uint32_t pair = product.fragments[thread * 4 + fragment];
        a[row][k] = widen<T>(static_cast<uint16_t>(k % 2 ? pair >> 16 : pair));
      }
    }
  }
  read_operand<T>(product.b, columns, !TB, [](uint32_t n, uint32_t k, const float* values) {
    for (int i = 0; i < 8; ++i) (TB ? b[k][n + i] : b[k + i][n]) = values[i];
  });

  for (int row = 0; row < 64; ++row) {
    for (int column = 0; column < columns; column += kBlock) {
      float* to = product.d->values.data() + row * columns + column;
      Vector sums[2] = {};
      if (product.keep) memcpy(sums, to, sizeof sums);
      for (int k = 0; k < 16; ++k) {
        const Vector* from = reinterpret_cast<const Vector*>(&b[k][column]);
        sums[0] += a[row][k] * from[0];
        sums[1] += a[row][k] * from[1];
      }
      memcpy(to, sums, sizeof sums);
    }
  }
}

// Calls move(register, value) for what thread t of the warpgroup holds of an accumulator, two by two.
template <class Move>
void walk_accumulator(Accumulator& accumulator, unsigned t, Move&& move) {
  for (int high = 0; high < 2; ++high) {
    float* row = accumulator.values.data() + (t / 32 * 16 + t % 32 / 4 + 8 * high) * accumulator.columns + t % 4 * 2;
    for (int j = 0; j < accumulator.columns / 8; ++j) move(accumulator.registers[t] + j * 4 + high * 2, row + j * 8);
  }
}

inline Warpgroup& warpgroup(const char* who) {
  if (threads_per_cta() < (current->index / 128 + 1) * 128) fail(std::string(who) + ": not a whole warpgroup");
  return current->cta->warpgroups[current->index / 128];
}

// The accumulator in flight that has these registers in the present thread, or a new one.
inline Accumulator* find_accumulator(Warpgroup& group, float* registers, int columns) {
  for (Accumulator& accumulator : group.accumulators) {
    if (accumulator.registers[current->index % 128] == registers && accumulator.columns == columns) return &accumulator;
  }
  Accumulator& added = group.accumulators.emplace_back();
  added.columns = columns;
  added.values.resize(64 * columns);
  return &added;
}

// The registers belong to the product from here on: what they held moves to its rows, NaN is left.
inline void give_registers(Accumulator& accumulator, float* registers) {
  const unsigned t = current->index % 128;
  if (accumulator.registers[t] == registers) return;
  if (accumulator.registers[t]) fail("wgmma: one thread names another accumulator than the others");
  accumulator.registers[t] = registers;
  walk_accumulator(accumulator, t, [](const float* from, float* to) { memcpy(to, from, 8); });
  if (cfg.async == EAGER) return;
  std::fill_n(registers, accumulator.columns / 2, std::numeric_limits<float>::quiet_NaN());
}

inline void execute_product(const Product& product) { product.execute(product); }

// What a step does when all threads have come to it.
inline void take_effect(Warpgroup& group, Warpgroup::Step& step) {
  if (step.kind == Warpgroup::kProduct) {
    step.product.d->products = group.products.issued() + 1;
    group.products.issue(std::move(step.product));
    if (cfg.async == EAGER || sometimes(4)) group.products.hurry(execute_product);
  } else if (step.kind == Warpgroup::kCommit) {
    group.products.commit();
  } else {
    group.products.wait(step.keep, execute_product);
    const unsigned first = current->index / 128 * 128;
    group.accumulators.remove_if([&](Accumulator& accumulator) {
      if (accumulator.products > group.products.finished()) return false;
      for (unsigned t = 0; t < 128; ++t) {
        walk_accumulator(accumulator, t, [](float* to, const float* from) { memcpy(to, from, 8); });
        cluster->threads[current->cta->rank * threads_per_cta() + first + t]->fenced = false;
      }
      return true;
    });
    ++group.waits;
  }
}

// The present thread's next step, which it shares with the other threads of the warpgroup: `begin` is called for the
// first of them, `join` for each. True if it took effect.
template <class Begin, class Join>
void come_to_step(Warpgroup& group, Warpgroup::Kind kind, Begin&& begin, Join&& join) {
  size_t& position = group.position[current->index % 128];
  if (position == group.first + group.steps.size()) {
    group.steps.emplace_back().kind = kind;
    begin(group.steps.back());
  }
  Warpgroup::Step& step = group.steps[position - group.first];
  if (step.kind != kind) fail("a warpgroup diverges: its threads run different wgmma instructions");
  join(step);
  ++position;
  if (++step.came < 128) return;
  take_effect(group, step);
  group.steps.pop_front();
  ++group.first;
}

inline void wgmma_fence() {
  warpgroup("wgmma.fence");
  current->fenced = true;
}

inline void wgmma_commit() {
  come_to_step(warpgroup("wgmma.commit_group"), Warpgroup::kCommit, [](auto&) {}, [](auto&) {});
}

inline void wgmma_wait(int keep) {
  Warpgroup& group = warpgroup("wgmma.wait_group");
  const uint64_t before = group.waited[current->index % 128]++;
  come_to_step(
      group, Warpgroup::kWait, [&](Warpgroup::Step& step) { step.keep = keep; },
      [&](Warpgroup::Step& step) {
        if (step.keep != keep) fail("wgmma.wait_group: the threads name different counts");
      });
  wait_while(&group.waits, ~0ull, before, "wgmma.wait_group");
}

// a: null, or fragments in registers in place of the descriptor.
template <int N, class T, bool TA, bool TB>
void wgmma(float* d, const uint32_t* fragments, uint64_t a, uint64_t b, bool keep) {
  static_assert(N % 32 == 0 && N <= 256);
  Warpgroup& group = warpgroup("wgmma");
  if (!current->fenced) fail("wgmma: no wgmma.fence since its registers were last touched");
  come_to_step(
      group, Warpgroup::kProduct,
      [&](Warpgroup::Step& step) {
        step.product = {multiply<T, TA, TB>, a, b, keep, find_accumulator(group, d, N), {}};
        if (fragments) step.product.fragments.resize(128 * 4);
      },
      [&](Warpgroup::Step& step) {
        Product& product = step.product;
        if (product.execute != multiply<T, TA, TB> || product.a != a || product.b != b || product.keep != keep) {
          fail("wgmma: the threads name different operands");
        }
        give_registers(*product.d, d);
        if (fragments) memcpy(&product.fragments[current->index % 128 * 4], fragments, 16);
      });
}

}  // namespace emu
