// Parts by vectors of queries against the same parts out of matrix products in fp64, with the code
// of every instruction set that this CPU has.
#include "attention/cpu/cpu_parts.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "attention/parts/rows.h"
#include "attention/stock/dense_attention.h"

namespace ringmaster::attention {
namespace {

struct NamedCode {
  std::string name;
  const TileCode* code;
};

std::vector<NamedCode> Codes() {
  std::vector<NamedCode> codes;
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    codes.push_back({"AVX2", &kAvx2Tiles});
  }
  if (__builtin_cpu_supports("avx512f")) codes.push_back({"AVX512", &kAvx512Tiles});
#endif
  return codes;
}

constexpr int64_t kBatch = 2, kHeads = 3;

struct Problem {
  int64_t queries, keys, head_dim;
  bool causal;
  bool shared;  // all heads see the same rows of one key/value head
  double scale;
  at::ScalarType dtype;
  at::ScalarType sums = at::kFloat;
};

// `count` rows a head, in two runs.
RowSet Set(int64_t count, bool shared) {
  RowSet set;
  set.rows_per_group = count;
  set.distinct = !shared;
  for (int64_t head = 0; head < kHeads; ++head) {
    const int64_t some = count / 3;
    set.runs.push_back({7, 2, some, shared ? 0 : head});
    set.runs.push_back({8 + 2 * some, 1, count - some, shared ? 0 : head});
    set.group_begin.push_back(set.runs.size());
  }
  return set;
}

struct Tensors {
  at::Tensor q, k, v, dout, out, lse, dq, dk, dv;

  Tensors To(at::ScalarType inputs, at::ScalarType sums) const {
    const auto copy = [](const at::Tensor& x, at::ScalarType type) {
      return x.to(type, false, true);
    };
    return {copy(q, inputs), copy(k, inputs), copy(v, inputs), copy(dout, inputs), copy(out, sums),
            copy(lse, sums), copy(dq, sums),  copy(dk, sums),  copy(dv, sums)};
  }
};

Tensors Random(const Problem& problem) {
  const int64_t tokens = 10 + 2 * std::max(problem.queries, problem.keys);
  const auto randn = [&](int64_t heads) {
    return at::randn({kBatch, tokens, heads, problem.head_dim}, at::kFloat);
  };
  const int64_t kv_heads = problem.shared ? 1 : kHeads;
  Tensors x = {randn(kHeads), randn(kv_heads), randn(kv_heads),
               randn(kHeads), randn(kHeads),   at::randn({kBatch, tokens, kHeads}),
               randn(kHeads), randn(kv_heads), randn(kv_heads)};
  // No part has reached some queries yet.
  x.out.slice(1, 20, 60).zero_();
  x.lse.slice(1, 20, 60).fill_(-std::numeric_limits<double>::infinity());
  return x.To(problem.dtype, problem.sums);
}

// Forward, then backward with what came out; one query has no gradient.
void Compute(const TileCode& code, const Part& part, double scale, const Tensors& x) {
  ForwardOnCpu(code, part, scale, x.q, x.k, x.v, x.out, x.lse);
  const at::Tensor lse = x.lse.clone();
  lse.select(1, 9).fill_(std::numeric_limits<double>::infinity());
  BackwardOnCpu(code, part, scale, {x.dout, x.q, x.k, x.v, x.out, lse, x.dq, x.dk, x.dv});
}

void ComputeByProducts(const Part& part, double scale, const Tensors& x) {
  const PlacedRows queries(part.queries, kHeads, at::kCPU), keys(part.keys, kHeads, at::kCPU);
  const auto rows = [](const at::Tensor& y, const PlacedRows& of) {
    return GatherRows(y, of, at::kDouble);
  };
  const at::Tensor q = rows(x.q, queries), k = rows(x.k, keys), v = rows(x.v, keys);
  const DenseOutput output = BlockedForward(q, k, v, part.causal, scale);
  MergeRows(output.out, output.lse, queries, x.out, x.lse);
  const at::Tensor lse = x.lse.clone();
  lse.select(1, 9).fill_(std::numeric_limits<double>::infinity());
  const DenseGradients gradients =
      BlockedBackward(rows(x.dout, queries), q, k, v, rows(x.out, queries),
                      GatherSums(lse, queries), part.causal, scale);
  AddRows(gradients.dq, queries, x.dq);
  AddRows(gradients.dk, keys, x.dk);
  AddRows(gradients.dv, keys, x.dv);
}

void ExpectNear(const Tensors& x, const Tensors& expected) {
  const double limit = x.out.scalar_type() == at::kDouble ? 1e-13 : 1e-5;
  const auto near = [&](const at::Tensor& a, const at::Tensor& b, const char* name) {
    EXPECT_TRUE(at::allclose(a.to(at::kDouble), b, limit, limit)) << name;
  };
  near(x.out, expected.out, "out");
  near(x.lse, expected.lse, "lse");
  near(x.dq, expected.dq, "dq");
  near(x.dk, expected.dk, "dk");
  near(x.dv, expected.dv, "dv");
}

std::vector<Problem> Problems() {
  std::vector<Problem> problems;
  for (const auto& [queries, keys] :
       {std::pair<int64_t, int64_t>{1, 1}, {65, 65}, {100, 131}, {1, 70}, {330, 330}}) {
    for (int64_t head_dim : {5, 64, 80}) {
      for (bool causal : {true, false}) {
        problems.push_back({queries, keys, head_dim, causal, head_dim == 64, 0.3, at::kFloat});
      }
    }
  }
  problems.push_back({70, 130, 33, true, false, -0.2, at::kFloat});
  problems.push_back({70, 130, 33, true, true, 0, at::kFloat});
  problems.push_back({130, 40, 16, false, true, 0.2, at::kBFloat16});
  problems.push_back({130, 130, 48, true, false, 0.2, at::kHalf});
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    problems.push_back({100, 131, 80, true, false, 0.3, dtype, at::kDouble});
    problems.push_back({70, 130, 33, true, true, -3, dtype, at::kDouble});
    problems.push_back({130, 40, 5, false, true, 0.2, dtype, at::kDouble});
  }
  return problems;
}

TEST(CpuPartsTest, EqualProductsOfMatrices) {
  at::manual_seed(5);
  for (const auto& [name, code] : Codes()) {
    for (const Problem& p : Problems()) {
      SCOPED_TRACE(testing::Message()
                   << name << ": " << p.queries << " queries, " << p.keys << " keys of "
                   << p.head_dim << ", causal " << p.causal << ", shared " << p.shared << ", scale "
                   << p.scale << ", " << p.dtype << " summed in " << p.sums);
      const Part part{
          .causal = p.causal, .queries = Set(p.queries, false), .keys = Set(p.keys, p.shared)};
      const Tensors x = Random(p), expected = x.To(at::kDouble, at::kDouble);
      Compute(*code, part, p.scale, x);
      ComputeByProducts(part, p.scale, expected);
      ExpectNear(x, expected);
    }
  }
}

TEST(CpuPartsTest, BitsDoNotDependOnThreads) {
  at::manual_seed(6);
  const int threads = at::get_num_threads();
  for (const auto& [name, code] : Codes()) {
    for (bool shared : {true, false}) {
      SCOPED_TRACE(name);
      const Part part{.causal = true, .queries = Set(700, false), .keys = Set(700, shared)};
      const Tensors x = Random({700, 700, 32, true, shared, 0.2, at::kFloat});
      const Tensors one = x.To(at::kFloat, at::kFloat);
      at::set_num_threads(threads > 1 ? 3 : 1);  // ThreadSanitizer knows nothing of OpenMP's order
      Compute(*code, part, 0.2, x);
      at::set_num_threads(1);
      Compute(*code, part, 0.2, one);
      at::set_num_threads(threads);
      EXPECT_TRUE(x.out.equal(one.out) && x.lse.equal(one.lse) && x.dq.equal(one.dq) &&
                  x.dk.equal(one.dk) && x.dv.equal(one.dv));
    }
  }
}

// A query's NaN reaches its own results and its keys' gradients; what is not finite behind the last
// key that anybody sees reaches nobody.
TEST(CpuPartsTest, WhatIsNotANumberStaysWithWhoSeesIt) {
  at::manual_seed(7);
  for (const auto& [name, code] : Codes()) {
    SCOPED_TRACE(name);
    const Part part{.causal = true, .queries = Set(100, false), .keys = Set(100, false)};
    const Tensors x = Random({100, 100, 16, true, false, 0.2, at::kFloat});
    const int64_t last = part.queries.runs[1].first + part.queries.runs[1].count;
    for (const at::Tensor& y : {x.q, x.k, x.v, x.dout}) {
      y.slice(1, last).fill_(std::numeric_limits<double>::quiet_NaN());
    }
    x.q.select(1, last - 1).select(1, 1).fill_(std::numeric_limits<double>::quiet_NaN());
    Compute(*code, part, 0.2, x);
    EXPECT_EQ(x.out.isnan().any(-1).sum().item<int64_t>(), kBatch);
    EXPECT_EQ(x.dq.isnan().any(-1).sum().item<int64_t>(), kBatch);
    EXPECT_EQ(x.dk.isnan().any(-1).sum().item<int64_t>(), kBatch * 100);
  }
}

// A number that is none, of a query or of a key among others, by its bits.
template <typename Bits>
void ExpectNotANumberStays(const TileCode& code, Bits bits, bool of_key) {
  constexpr at::ScalarType kType = sizeof(Bits) == 8 ? at::kDouble : at::kFloat;
  const Part part{.causal = true, .queries = Set(100, false), .keys = Set(100, false)};
  const attention::Run& run = part.queries.runs[1];
  const auto rows = [](const at::Tensor& x) { return x.select(0, 1).select(1, 1); };
  const auto count = [&](const at::Tensor& x) {
    return rows(x).isnan().flatten(1).all(-1).sum().template item<int64_t>();
  };
  const Tensors x = Random({100, 100, 16, true, false, 0.2, kType, kType});
  const int64_t token = of_key ? run.first : run.first + run.count - 1;
  void* element = rows(of_key ? x.k : x.q)[token].slice(0, 5).mutable_data_ptr();
  std::memcpy(element, &bits, sizeof(bits));
  Compute(code, part, 0.2, x);
  const int64_t queries = of_key ? run.count : 1;
  EXPECT_EQ(count(x.out), queries);
  EXPECT_EQ(count(x.lse.unsqueeze(-1)), queries);
  EXPECT_EQ(count(x.dq), queries);
  EXPECT_EQ(count(x.dk), 100);
  EXPECT_EQ(count(x.dv), 100);
}

// Whatever its bits, quiet or signalling.
TEST(CpuPartsTest, EveryNotANumberStaysOne) {
  at::manual_seed(8);
  for (const auto& [name, code] : Codes()) {
    for (const bool of_key : {true, false}) {
      for (const uint32_t bits : {0x7FC00000u, 0x7FC00001u, 0x7FF12345u, 0x7FFFFFFFu, 0x7F800001u,
                                  0xFFC00001u, 0xFFFFFFFFu}) {
        SCOPED_TRACE(testing::Message()
                     << name << ": " << std::hex << bits << ", of a key " << of_key);
        ExpectNotANumberStays(*code, bits, of_key);
      }
      for (const uint64_t bits : {0x7FF8000000000000u, 0x7FF8000000000001u, 0x7FFFFFFFFFFFFFFFu,
                                  0x7FF0000000012345u, 0xFFF8000000000FFFu}) {
        SCOPED_TRACE(testing::Message()
                     << name << ": " << std::hex << bits << ", of a key " << of_key);
        ExpectNotANumberStays(*code, bits, of_key);
      }
    }
  }
}

}  // namespace
}  // namespace ringmaster::attention
