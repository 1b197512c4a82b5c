// A fiber: a stack of its own that runs until it hands over to another.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#ifndef __x86_64__
#error "the emulator switches stacks in x86-64 assembly; add emu_switch for this processor"
#endif

// Saves the present stack and goes on with another: only what the ABI has a callee keep.
extern "C" void emu_switch(void** save, void* load);
__asm__(
    ".text\n.weak emu_switch\n.type emu_switch,@function\nemu_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");

namespace emu {

class Stack {
 public:
  explicit Stack(size_t index) {
    void* mapped = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    mprotect(mapped, kGuard, PROT_NONE);  // an overflow is a fault, not a write into another stack
    // Tops that all lie at one distance from each other would share a few lines of the cache.
    top_ = static_cast<char*>(mapped) + kBytes - index * 2368 % (32 << 10) / 64 * 64;
  }
  // Makes the stack begin in `entry`, which never returns.
  void* begin(void (*entry)()) const {
    void** pointer = reinterpret_cast<void**>(top_ - 64);
    *--pointer = nullptr;  // the return address of entry
    *--pointer = reinterpret_cast<void*>(entry);
    return pointer - 6;  // what emu_switch pops
  }

 private:
  static constexpr size_t kBytes = 256 << 10, kGuard = 4096;
  char* top_;
};

}  // namespace emu
