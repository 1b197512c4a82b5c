// Runs CUDA kernels on a CPU, for tests of their results and of their synchronisation.
//
// A kernel is compiled as plain C++; csrc/cuda/ptx.h calls what is here in place of each PTX instruction. Every CUDA
// thread is a fiber, and one cluster runs at a time, on the calling thread.
//
// Asynchronous work (cp.async, TMA, wgmma) takes effect in one of three orders: at once (EAGER), as late as the
// kernel's own waits allow (LAZY), or at random times with warps and CTAs held back at random (RANDOM, by seed). A
// kernel that waits as it must gives the same bits in all of them. A fault is a std::runtime_error out of `launch` that
// names the thread; the next launch works as ever.
//
// What it models, and holds against a kernel:
//   shared memory     full of NaN at first; a write past its end; 227 KB a CTA; remote CTAs that have exited
//   cp.async, TMA     destinations are NaN while in flight, and may not be read or written; alignment; boxes; swizzles;
//                     multicast; sources that are overwritten; groups never committed or not waited for
//   proxies           TMA or wgmma that reads what stmatrix or cp.async wrote without fence.proxy.async
//   mbarrier          its counts; use before init or before its fence; a phase that went by while a thread looked away
//   barriers          counts that differ, a thread that comes twice, warps and warpgroups that diverge in a collective
//   wgmma             descriptors of both majors and all swizzles; accumulators are NaN while in flight; fences that
//                     are missing; operands that differ between threads
//   deadlock          names who waits where
//   wild pointers     a segmentation fault is a fault like the others
//
// What it does not: weak ordering of ordinary memory, plain stores without a proxy fence, bank conflicts, speed,
// setmaxnreg, how tensor cores round (sums are fp32 in the order of k), and static __shared__ arrays of a kernel with
// clusters (they are one per process).
#pragma once

#include "barriers.h"
#include "cluster.h"
#include "config.h"
#include "cp_async.h"
#include "language.h"
#include "launch.h"
#include "mbarrier.h"
#include "tma.h"
#include "warp_matrices.h"
#include "wgmma.h"
