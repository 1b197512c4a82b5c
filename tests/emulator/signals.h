// Turns a segmentation fault of a kernel into an exception out of the launch.
#pragma once

#include <csetjmp>
#include <csignal>
#include <cstdint>

#include "cluster.h"

namespace emu {

inline sigjmp_buf before_fault;
inline volatile uintptr_t fault_address = 0;

inline void jump_out(int, siginfo_t* info, void*) {
  fault_address = reinterpret_cast<uintptr_t>(info->si_addr);
  siglongjmp(before_fault, 1);
}

// Runs f; a wild access within it throws. The stacks of all fibers are left as they are: a launch sets them up anew.
template <class F>
void run_guarded(F&& f) {
  static constexpr int kSignals[] = {SIGSEGV, SIGBUS};
  static char stack[64 << 10];  // the fault may be that a fiber's own stack is used up
  struct Handlers {
    struct sigaction before[2];
    stack_t stack_before;
    Handlers() {
      stack_t other = {};
      other.ss_sp = stack;
      other.ss_size = sizeof stack;
      sigaltstack(&other, &stack_before);
      struct sigaction action = {};
      action.sa_sigaction = jump_out;
      action.sa_flags = SA_SIGINFO | SA_ONSTACK;
      for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &action, &before[i]);
    }
    ~Handlers() {
      for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &before[i], nullptr);
      sigaltstack(&stack_before, nullptr);
    }
  } handlers;
  if (sigsetjmp(before_fault, 1) == 0) {
    f();
    return;
  }
  fail("an access to memory that is not there, or a stack used up, at address " + std::to_string(fault_address));
}

}  // namespace emu
