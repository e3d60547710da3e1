#include "attention/parts/rows.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "attention/parts/device_rows.h"
#include "attention/parts/row_loops.h"

namespace ringmaster::attention {
namespace {

// Elements that are worth another thread.
constexpr int64_t kGrainElements = 1 << 15;

// Element (b, group, row) of a [B, groups, rows, ...] tensor begins at data + b * batch + ....
template <typename T>
struct Packed {
  explicit Packed(const at::Tensor& x)
      : data(x.data_ptr<T>()), batch(x.stride(0)), group(x.stride(1)), row(x.stride(2)) {}

  T* At(int64_t b, int64_t g, int64_t i) const { return data + b * batch + g * group + i * row; }

  T* data;
  int64_t batch, group, row;
};

// Calls f(b, group) for all, in parallel.
template <typename F>
void ForEachGroup(int64_t batch, const RowSet& set, int64_t elements_per_row, const F& f) {
  const int64_t elements = std::max<int64_t>(1, set.rows_per_group * elements_per_row);
  at::parallel_for(0, batch * set.groups(), std::max<int64_t>(1, kGrainElements / elements),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       f(i / set.groups(), i % set.groups());
                     }
                   });
}

// How many rows of a run lie before a token.
int64_t RowsBefore(const Run& run, int64_t token) {
  return token <= run.first ? 0 : std::min(run.count, (token - run.first - 1) / run.step + 1);
}

template <typename From, typename To>
void Copy(const at::Tensor& whole, const RowSet& set, const at::Tensor& packed) {
  const Rows<From> source(whole);
  const Packed<To> target(packed);
  const int64_t size = whole.size(-1);
  ForEachGroup(whole.size(0), set, size, [&](int64_t b, int64_t group) {
    ForEachRun(set, group, [&](const Run& run, int64_t row) {
      for (int64_t i = 0; i < run.count; ++i) {
        CopyRow(source.At(b, run, i), size, target.At(b, group, row + i));
      }
    });
  });
}

template <typename From>
void CopyFrom(const at::Tensor& whole, const RowSet& set, const at::Tensor& packed) {
  if (packed.scalar_type() == whole.scalar_type()) {
    Copy<From, From>(whole, set, packed);
  } else if (packed.scalar_type() == at::kDouble) {
    Copy<From, double>(whole, set, packed);
  } else {
    Copy<From, float>(whole, set, packed);
  }
}

void CopyAs(const at::Tensor& whole, const RowSet& set, const at::Tensor& packed) {
  switch (whole.scalar_type()) {
    case at::kDouble:
      return CopyFrom<double>(whole, set, packed);
    case at::kFloat:
      return CopyFrom<float>(whole, set, packed);
    case at::kBFloat16:
      return CopyFrom<at::BFloat16>(whole, set, packed);
    default:
      return CopyFrom<at::Half>(whole, set, packed);
  }
}

template <typename T>
void Add(const at::Tensor& added, const RowSet& set, const at::Tensor& whole) {
  const Packed<T> source(added);
  const Rows<T> target(whole);
  const int64_t size = whole.size(-1);
  // What of a group lies at tokens [begin, end).
  const auto add = [&](int64_t b, int64_t group, int64_t begin, int64_t end) {
    ForEachRun(set, group, [&](const Run& run, int64_t row) {
      const int64_t last = RowsBefore(run, end);
      for (int64_t i = RowsBefore(run, begin); i < last; ++i) {
        T* to = target.At(b, run, i);
        const T* values = source.At(b, group, row + i);
        for (int64_t d = 0; d < size; ++d) {
          to[d] += values[d];
        }
      }
    });
  };
  const int64_t tokens = whole.size(1);
  if (set.distinct) {
    ForEachGroup(whole.size(0), set, size,
                 [&](int64_t b, int64_t group) { add(b, group, 0, tokens); });
    return;
  }
  // Slices of tokens never meet; the groups of a slice are added in order.
  const int64_t elements = std::max<int64_t>(1, set.rows() * size / std::max<int64_t>(1, tokens));
  at::parallel_for(0, tokens, std::max<int64_t>(1, kGrainElements / elements),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t b = 0; b < whole.size(0); ++b) {
                       for (int64_t group = 0; group < set.groups(); ++group) {
                         add(b, group, begin, end);
                       }
                     }
                   });
}

template <typename T>
void Merge(const at::Tensor& out, const at::Tensor& lse, const RowSet& set,
           const at::Tensor& merged_out, const at::Tensor& merged_lse) {
  const Packed<T> source(out), source_lse(lse);
  const Rows<T> target(merged_out), target_lse(merged_lse.unsqueeze(-1));
  const int64_t size = out.size(-1);
  ForEachGroup(out.size(0), set, size, [&](int64_t b, int64_t group) {
    ForEachRun(set, group, [&](const Run& run, int64_t row) {
      for (int64_t i = 0; i < run.count; ++i) {
        MergeRow(source.At(b, group, row + i), *source_lse.At(b, group, row + i), size,
                 target.At(b, run, i), target_lse.At(b, run, i));
      }
    });
  });
}

}  // namespace

PlacedRows::PlacedRows(const RowSet& set, int64_t heads, at::Device device)
    : set_(&set), index_(device.is_cpu() ? at::Tensor() : RowIndex(set, heads, device)) {}

at::Tensor GatherRows(const at::Tensor& whole, const PlacedRows& rows, at::ScalarType dtype) {
  const RowSet& set = rows.set();
  if (!whole.device().is_cpu()) {
    return GatherOnDevice(whole, rows.index())
        .to(dtype)
        .view({whole.size(0), set.groups(), set.rows_per_group, whole.size(-1)});
  }
  at::Tensor result = at::empty({whole.size(0), set.groups(), set.rows_per_group, whole.size(-1)},
                                whole.options().dtype(dtype));
  CopyAs(whole, set, result);
  return result;
}

void PackRows(const at::Tensor& whole, const PlacedRows& rows, const at::Tensor& packed) {
  if (!whole.device().is_cpu()) {
    GatherOnDevice(whole, rows.index(), packed);
    return;
  }
  CopyAs(whole, rows.set(), packed.unsqueeze(1));
}

void AddRows(const at::Tensor& values, const PlacedRows& rows, const at::Tensor& whole) {
  if (!whole.device().is_cpu()) {
    AddOnDevice(values, rows.index(), whole);
  } else if (whole.scalar_type() == at::kDouble) {
    Add<double>(values, rows.set(), whole);
  } else {
    Add<float>(values, rows.set(), whole);
  }
}

void MergeRows(const at::Tensor& out, const at::Tensor& lse, const PlacedRows& rows,
               const at::Tensor& merged_out, const at::Tensor& merged_lse) {
  if (!out.device().is_cpu()) {
    MergeOnDevice(out, lse, rows.index(), merged_out, merged_lse);
  } else if (merged_out.scalar_type() == at::kDouble) {
    Merge<double>(out, lse, rows.set(), merged_out, merged_lse);
  } else {
    Merge<float>(out, lse, rows.set(), merged_out, merged_lse);
  }
}

at::Tensor GatherSums(const at::Tensor& merged_lse, const PlacedRows& rows) {
  return GatherRows(merged_lse.unsqueeze(-1), rows, merged_lse.scalar_type()).squeeze(-1);
}

}  // namespace ringmaster::attention
