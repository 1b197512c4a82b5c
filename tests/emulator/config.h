// When asynchronous work takes effect, and how a fault is told.
#pragma once

#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>

namespace emu {

enum Order { EAGER = 0, LAZY = 1, RANDOM = 2 };

struct Config {
  int async = EAGER;  // an Order
  uint32_t seed = 0;  // of RANDOM
};
inline Config cfg;
inline std::mt19937 generator;  // seeded at each launch

// True one time in n when the order is RANDOM; never otherwise.
inline bool sometimes(unsigned n) { return cfg.async == RANDOM && generator() % n == 0; }

// Ends the launch with an error that names the present thread; see cluster.h.
[[noreturn]] void fail(const std::string& what);

}  // namespace emu
