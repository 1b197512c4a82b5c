// What threads, CTAs and clusters are made of: data, and what needs no knowledge of the running thread.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <vector>

#include "config.h"
#include "groups.h"

namespace emu {

// 16 bytes of cp.async.
struct Copy {
  uint8_t* to;
  const uint8_t* from;
  bool in_bounds;
};

// Stands for CUtensorMap: a row-major matrix, and the boxes that are copied. Swizzle: 0 none, 1, 2, 3 of 128, 64, 32
// bytes, as in the descriptors of wgmma.
struct alignas(64) TensorMap {
  uint8_t* base;
  uint64_t dim[2], stride_bytes;  // columns and rows
  uint32_t box[2], esz, swz;
  uint32_t box_row_bytes() const { return box[0] * esz; }
  uint32_t box_bytes() const { return box_row_bytes() * box[1]; }
};

struct BoxStore {
  TensorMap map;
  uint32_t offset;
  int x, y;
};

struct BoxLoad {
  TensorMap map;
  uint32_t offset, barrier;  // an address
  int x, y;
};

// Where the threads of a warp meet for a collective.
struct Rendezvous {
  uint64_t met = 0;  // how often
  unsigned count = 0;
  const char* operation = nullptr;
  void* arguments[32];
};

// A barrier by counting.
struct Barrier {
  uint64_t completed = 0;
  unsigned count = 0, needed = 0;
  std::vector<uint64_t> came;  // of each thread: the phase, from 1, in which it came last
};

struct Mbarrier {
  uint64_t completed = 0;      // phases
  uint32_t count = 0;          // arrivals to a phase
  int64_t pending = 0;         // arrivals missing
  int64_t bytes = 0;           // of TMA missing
  unsigned initialiser = 0;    // a thread
  bool visible = false;        // its initialisation, to TMA and other CTAs
  std::vector<uint64_t> seen;  // of each thread: the phases whose completion it has waited for
};
using Mbarriers = std::map<uint32_t, Mbarrier>;  // by offset

// The registers of a warpgroup's accumulator while products on it are in flight: as rows of the product.
struct Accumulator {
  int columns = 0;
  size_t products = 0;  // the number of its last one, from 1
  float* registers[128] = {};
  std::vector<float> values;  // [64, columns]
};

struct Product {
  void (*execute)(const Product&);
  uint64_t a = 0, b = 0;  // descriptors
  bool keep = false;
  Accumulator* d = nullptr;
  std::vector<uint32_t> fragments;  // of a: [128, 4]; else empty
};

// One warpgroup's instructions. Only a wait holds threads up, so each thread is somewhere in a list of steps, and a
// step takes effect when the last of the 128 has come to it.
struct Warpgroup {
  enum Kind { kProduct, kCommit, kWait };
  struct Step {
    Kind kind = kProduct;
    int keep = 0;  // of a wait
    unsigned came = 0;
    Product product;
  };
  size_t position[128] = {};  // of each thread, counted from the first step of all
  size_t first = 0;           // the oldest step of the list
  std::deque<Step> steps;     // that some thread has come to and some not
  uint64_t waits = 0;         // that have taken effect
  uint64_t waited[128] = {};  // by each thread
  Groups<Product> products;
  std::list<Accumulator> accumulators;  // in flight
};

}  // namespace emu
