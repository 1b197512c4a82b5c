// What the row kernels are told: one struct for the forward and for K1 of the backward, which is the forward with the
// roles of the weights swapped; and the plans by which their rows are shared out.
//
//     forward   first product z = x w1^T     hidden act(z + b1)    second product h w2^T
//     K1        first product dh = dy w2     hidden dh * act'(z)   second product dz w1
#pragma once

#include "cuda/ampere/tiles.h"
#include "cuda/kernels.h"
#include "cuda/rows.h"

namespace aim_fast::cuda::ampere {

constexpr int kWarpRows = 16;
constexpr int kMaxRows = 128;  // of a CTA
constexpr int kMaxHidden = 256;

// One of the ways to share out rows. With several parts each CTA forms the hidden block of its rows anew, and the part
// of the second product's columns that is its own.
struct RowsPlan {
  int rows;   // of a CTA
  int parts;  // CTAs to the same rows
};
constexpr RowsPlan kRowsPlans[] = {{128, 1}, {64, 1}, {64, 2}, {64, 4}, {32, 2}, {32, 4}, {32, 8}};
constexpr int kRowsPlanCount = sizeof(kRowsPlans) / sizeof(kRowsPlans[0]);

// The forced plan, or the one whose busiest multiprocessor has the least to do. A CTA's work is that of its rows plus
// that of 64 more, which stands for the weights it streams and for the latencies that few warps do not hide; a part of
// the second product saves its share of half of that. A guess of proportions, not a measurement.
inline RowsPlan choose_rows_plan(const Problem& p, const Device& device, bool second_product) {
  if (device.plan >= 0 && device.plan < kRowsPlanCount) return kRowsPlans[device.plan];
  constexpr int kFixedRows = 64;
  RowsPlan best = kRowsPlans[0];
  double least = 0;
  for (const RowsPlan& plan : kRowsPlans) {
    if (plan.parts > 1 && !second_product) continue;
    const int64_t blocks = (p.M + plan.rows - 1) / plan.rows * plan.parts;
    const int64_t in_turn = (blocks + device.sms - 1) / device.sms;
    const double work = static_cast<double>(in_turn) * (plan.rows + kFixedRows) * (1 + 1.0 / plan.parts);
    if (least > 0 && work >= least) continue;
    least = work;
    best = plan;
  }
  return best;
}

struct RowsCall {
  uint32_t M;
  int D, H;
  Matrix first, second;  // the weights of the two products
  Array b1, b2;          // forward alone
  Array scale;
  bool wide_scale;  // of D elements
  float alpha;
  Activation activation;
  bool skip;
  DeviceRows input, residual, output;  // x, residual, y; dy, none, dx
  DeviceRows row_scale;
  char* z;        // [M, H] in T: written by the forward, read by K1
  char *dz, *h;   // K1 alone: [M, H]
  char* rounded;  // an input in fp32 once more, [M, D] in T
};

// What forward and K1 have in common; the rest is for the caller to fill in.
inline RowsCall rows_call(const Problem& p, const Rows& input, const Rows& output) {
  RowsCall call = {};
  call.M = static_cast<uint32_t>(p.M);
  call.D = static_cast<int>(p.D);
  call.H = static_cast<int>(p.H);
  call.scale = p.scale;
  call.wide_scale = p.scale && p.scale_size > 1;
  call.alpha = p.alpha;
  call.activation = p.activation;
  call.skip = p.skip;
  call.input = device_rows(input);
  call.output = device_rows(output);
  call.row_scale = device_rows(p.row_scale);
  return call;
}

}  // namespace aim_fast::cuda::ampere
