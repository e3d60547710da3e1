#include "tests/tools/attention_runner_input.h"

#include <ATen/ops/empty.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "attention/plan/selection.h"
#include "base/safetensors.h"
#include "base/status_macros.h"

namespace ringmaster::tools {
namespace {

using attention::Branch;
using attention::DilatedAttentionOptions;
using nlohmann::json;

absl::Status Invalid(const std::string& path, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

// Parses a JSON object and refuses keys given twice, which the library would let overwrite each
// other.
absl::StatusOr<json> ParseObject(const std::string& path, const std::string& text) {
  std::set<std::string> keys;
  std::string twice;
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::key && depth == 1 &&
        !keys.insert(value.get<std::string>()).second) {
      twice = value.get<std::string>();
    }
    return true;
  };
  json object = json::parse(text, watch, /*allow_exceptions=*/false);
  if (object.is_discarded()) {
    return Invalid(path, "is not JSON");
  }
  if (!object.is_object()) {
    return Invalid(path, absl::StrCat("holds ", object.type_name(), " where an object is needed"));
  }
  if (!twice.empty()) {
    return Invalid(path, absl::StrCat("the key '", twice, "' appears twice"));
  }
  return object;
}

absl::StatusOr<std::vector<int64_t>> Integers(const std::string& path, const std::string& key,
                                              const json& value) {
  if (!value.is_array()) {
    return Invalid(path,
                   absl::StrCat(key, " is ", value.type_name(), "; it must be a list of integers"));
  }
  std::vector<int64_t> numbers;
  for (const json& number : value) {
    const bool fits =
        number.is_number_integer() &&
        (!number.is_number_unsigned() ||
         number.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
    if (!fits) {
      return Invalid(path, absl::StrCat(key, "[", numbers.size(), "] is ",
                                        number.dump(-1, ' ', true).substr(0, 40),
                                        "; it must be an integer below 2^63"));
    }
    numbers.push_back(number.get<int64_t>());
  }
  return numbers;
}

// The index of `value` among two names.
absl::StatusOr<int> Choice(const std::string& path, const std::string& key, const json& value,
                           const char* first, const char* second) {
  if (value == first || value == second) {
    return value == first ? 0 : 1;
  }
  return Invalid(path, absl::StrCat(key, " is ", value.dump(-1, ' ', true).substr(0, 40),
                                    "; it must be \"", first, "\" or \"", second, "\""));
}

absl::Status ReadBranches(const std::string& path, const json& object,
                          DilatedAttentionOptions* options) {
  ASSIGN_OR_RETURN(const auto lengths,
                   Integers(path, "segment_lengths", object["segment_lengths"]));
  ASSIGN_OR_RETURN(const auto rates, Integers(path, "dilation_rates", object["dilation_rates"]));
  if (lengths.size() != rates.size()) {
    return Invalid(
        path, absl::StrCat("segment_lengths has ", lengths.size(), " entries, dilation_rates has ",
                           rates.size(), "; they must be equally many"));
  }
  for (size_t i = 0; i < lengths.size(); ++i) {
    options->branches.push_back({lengths[i], rates[i]});
  }
  return absl::OkStatus();
}

struct TypePair {
  safetensors::Type stored;
  at::ScalarType type;
};
constexpr TypePair kTypes[] = {{safetensors::Type::kF64, at::kDouble},
                               {safetensors::Type::kF32, at::kFloat},
                               {safetensors::Type::kBF16, at::kBFloat16}};

std::string Shape(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<at::Tensor> ReadTensor(const std::string& path, const safetensors::File& file,
                                      const std::string& name) {
  const safetensors::Tensor* tensor = file.header().Find(name);
  if (tensor == nullptr) {
    return Invalid(path, absl::StrCat("has no tensor '", name, "'"));
  }
  for (const TypePair& pair : kTypes) {
    if (pair.stored == tensor->type) {
      at::Tensor result = at::empty(tensor->shape, pair.type);
      const auto bytes = file.Bytes(*tensor);
      if (!bytes.empty()) {
        std::memcpy(result.mutable_data_ptr(), bytes.data(), bytes.size());
      }
      return result;
    }
  }
  return Invalid(path, absl::StrCat("tensor '", name, "' is ",
                                    std::string(safetensors::TypeName(tensor->type)),
                                    "; it must be F64, F32 or BF16"));
}

// Dtypes and shapes, from the header alone.
absl::Status CheckHeader(const std::string& path, const safetensors::Header& header) {
  const safetensors::Tensor* q = header.Find("q");
  const safetensors::Tensor* k = header.Find("k");
  for (const char* name : {"q", "k", "v"}) {
    if (header.Find(name) == nullptr) {
      return Invalid(path, absl::StrCat("has no tensor '", name, "'; q, k and v are needed"));
    }
  }
  for (const safetensors::Tensor& tensor : header.tensors) {
    const bool key = tensor.name == "k" || tensor.name == "v";
    if (!key && tensor.name != "q" && tensor.name != "dout") {
      return Invalid(
          path, absl::StrCat("has the unknown tensor '", tensor.name, "'; known: q, k, v, dout"));
    }
    if (tensor.shape.size() != 4) {
      return Invalid(path, absl::StrCat("tensor '", tensor.name, "' has the shape ",
                                        Shape(tensor.shape), "; it must be [B, N, H, D]"));
    }
    if (tensor.type != q->type) {
      return Invalid(path, absl::StrCat("tensor '", tensor.name, "' is ",
                                        std::string(safetensors::TypeName(tensor.type)),
                                        ", 'q' is ", std::string(safetensors::TypeName(q->type)),
                                        "; all must have one dtype"));
    }
    std::vector<int64_t> expected = q->shape;
    if (key && k->shape.size() == 4) {
      expected[2] = k->shape[2];
    }
    if (q->shape.size() == 4 && tensor.shape != expected) {
      return Invalid(path,
                     absl::StrCat("tensor '", tensor.name, "' has the shape ", Shape(tensor.shape),
                                  ", beside 'q' it must be ", Shape(expected)));
    }
  }
  if (q->shape[2] < 1 || q->shape[3] < 1 || k->shape[2] < 1 || q->shape[2] % k->shape[2] != 0) {
    return Invalid(
        path,
        absl::StrCat("q has ", q->shape[2], " heads of ", q->shape[3], " and k has ", k->shape[2],
                     " heads; sizes must be at least 1 and q's heads a multiple of k's"));
  }
  return absl::OkStatus();
}

// InvalidArgument with the first element that is NaN or infinite and for which relevant(token,
// head) holds.
template <typename F>
absl::Status CheckFinite(const std::string& path, const std::string& name, const at::Tensor& x,
                         const F& relevant) {
  const at::Tensor wide = x.to(at::kDouble).contiguous();
  const double* data = wide.const_data_ptr<double>();
  const int64_t tokens = x.size(1), heads = x.size(2), size = x.size(3);
  for (int64_t i = 0; i < x.numel(); ++i) {
    if (!std::isfinite(data[i]) && relevant(i / (size * heads) % tokens, i / size % heads)) {
      return Invalid(
          path,
          absl::StrCat("tensor '", name, "' holds ", std::isnan(data[i]) ? "NaN" : "infinity",
                       " at [", i / (size * heads * tokens), ", ", i / (size * heads) % tokens,
                       ", ", i / size % heads, ", ", i % size, "]; values must be finite"));
    }
  }
  return absl::OkStatus();
}

bool Covered(const DilatedAttentionOptions& options, int64_t tokens, int64_t heads, int64_t token,
             int64_t head) {
  for (const Branch& branch : options.branches) {
    const attention::Segments segments(branch, options.documents, tokens);
    if ((token - segments.At(token).begin) % branch.dilation_rate ==
        HeadOffset(options.offset_mode, head, heads, branch.dilation_rate)) {
      return true;
    }
  }
  return false;
}

}  // namespace

absl::StatusOr<DilatedAttentionOptions> ReadSpec(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) {
    return Invalid(path, absl::StrCat("cannot be read: ", std::strerror(errno)));
  }
  ASSIGN_OR_RETURN(json object, ParseObject(path, text.str()));
  const std::set<std::string> known = {"segment_lengths", "dilation_rates", "causal",
                                       "offset_mode",     "mix_gradient",   "scale"};
  for (const auto& [key, value] : object.items()) {
    if (known.count(key) == 0) {
      return Invalid(path, absl::StrCat("has the unknown key '", key,
                                        "'; known: ", absl::StrJoin(known, ", ")));
    }
  }
  for (const std::string& key : known) {
    if (!object.contains(key)) {
      return Invalid(path, absl::StrCat("lacks the key '", key, "'"));
    }
  }
  DilatedAttentionOptions options;
  RETURN_IF_ERROR(ReadBranches(path, object, &options));
  if (!object["causal"].is_boolean()) {
    return Invalid(path, absl::StrCat("causal is ", object["causal"].type_name(),
                                      "; it must be true or false"));
  }
  options.causal = object["causal"].get<bool>();
  ASSIGN_OR_RETURN(const int offset,
                   Choice(path, "offset_mode", object["offset_mode"], "paper", "torchscale"));
  options.offset_mode =
      offset == 0 ? attention::OffsetMode::kPaper : attention::OffsetMode::kTorchscale;
  ASSIGN_OR_RETURN(const int mix,
                   Choice(path, "mix_gradient", object["mix_gradient"], "exact", "detached"));
  options.mix_gradient =
      mix == 0 ? attention::MixGradient::kExact : attention::MixGradient::kDetached;
  if (object["scale"].is_number()) {
    options.scale = object["scale"].get<double>();
  } else if (!object["scale"].is_null()) {
    return Invalid(path, absl::StrCat("scale is ", object["scale"].type_name(),
                                      "; it must be a number or null"));
  }
  if (const absl::Status valid = options.Validate(); !valid.ok()) {
    return Invalid(path, std::string(valid.message()));
  }
  return options;
}

absl::StatusOr<RunnerInput> ReadInput(const std::string& path,
                                      const DilatedAttentionOptions& options) {
  ASSIGN_OR_RETURN(const safetensors::File file, safetensors::File::Open(path));
  RETURN_IF_ERROR(CheckHeader(path, file.header()));
  RunnerInput input;
  ASSIGN_OR_RETURN(input.q, ReadTensor(path, file, "q"));
  ASSIGN_OR_RETURN(input.k, ReadTensor(path, file, "k"));
  ASSIGN_OR_RETURN(input.v, ReadTensor(path, file, "v"));
  const auto everywhere = [](int64_t, int64_t) { return true; };
  RETURN_IF_ERROR(CheckFinite(path, "q", input.q, everywhere));
  RETURN_IF_ERROR(CheckFinite(path, "k", input.k, everywhere));
  RETURN_IF_ERROR(CheckFinite(path, "v", input.v, everywhere));
  if (file.header().Find("dout") != nullptr) {
    ASSIGN_OR_RETURN(input.dout, ReadTensor(path, file, "dout"));
    RETURN_IF_ERROR(CheckFinite(path, "dout", input.dout, [&](int64_t token, int64_t head) {
      return Covered(options, input.q.size(1), input.q.size(2), token, head);
    }));
  }
  return input;
}

absl::Status WriteOutput(const std::string& path,
                         const std::map<std::string, at::Tensor>& tensors) {
  std::vector<safetensors::TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) {
    safetensors::TensorSpec spec{name, safetensors::Type::kF32, tensor.sizes().vec()};
    for (const TypePair& pair : kTypes) {
      spec.type = pair.type == tensor.scalar_type() ? pair.stored : spec.type;
    }
    specs.push_back(std::move(spec));
  }
  ASSIGN_OR_RETURN(safetensors::Header header, safetensors::LayOut(std::move(specs), {}));
  const std::string temporary = absl::StrCat(path, ".", ::getpid(), ".tmp");
  const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", temporary));
  }
  safetensors::Writer writer(descriptor, std::move(header));
  absl::Status status;
  for (const safetensors::Tensor& place : writer.header().tensors) {
    const at::Tensor& tensor = tensors.at(place.name);
    status.Update(
        writer.Append({static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()}));
  }
  status.Update(writer.Finish().status());
  if (::close(descriptor) != 0) {
    status.Update(absl::ErrnoToStatus(errno, absl::StrCat("closing ", temporary)));
  }
  if (status.ok() && std::rename(temporary.c_str(), path.c_str()) != 0) {
    status = absl::ErrnoToStatus(errno, absl::StrCat("cannot rename to ", path));
  }
  if (!status.ok()) {
    ::unlink(temporary.c_str());
  }
  return status;
}

}  // namespace ringmaster::tools
