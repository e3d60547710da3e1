#define XXH_INLINE_ALL
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/safetensors.h"
#include "base/safetensors_layout.h"
#include "base/status_macros.h"

namespace ringmaster::safetensors {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kDataAlignment = 64;

// LayOut has checked that all texts are UTF-8, so nothing is replaced.
std::string HeaderJson(const Header& header) {
  nlohmann::json json = nlohmann::json::object();
  if (!header.metadata.empty()) {
    json["__metadata__"] = header.metadata;
  }
  for (const Tensor& tensor : header.tensors) {
    json[tensor.name] = {{"dtype", TypeName(tensor.type)},
                         {"shape", tensor.shape},
                         {"data_offsets", {tensor.begin, tensor.end}}};
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// nlohmann's writer throws or replaces; this only asks.
bool IsUtf8(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::ignore) ==
         nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

absl::StatusOr<Header> LayOut(std::vector<TensorSpec> tensors,
                              std::map<std::string, std::string> metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorSpec& a, const TensorSpec& b) {
    const size_t a_bytes = TypeBytes(a.type), b_bytes = TypeBytes(b.type);
    return a_bytes != b_bytes ? a_bytes > b_bytes : a.name < b.name;
  });
  Header header{.metadata = std::move(metadata)};
  std::vector<std::string> texts;
  for (TensorSpec& spec : tensors) {
    ASSIGN_OR_RETURN(const uint64_t bytes, ShapeBytes(spec));
    texts.push_back(spec.name);
    Tensor tensor;
    static_cast<TensorSpec&>(tensor) = std::move(spec);
    tensor.begin = header.tensors.empty() ? 0 : header.tensors.back().end;
    if (__builtin_add_overflow(tensor.begin, bytes, &tensor.end) || tensor.end >> 62 != 0) {
      return absl::InvalidArgumentError("the tensors together overflow the file");
    }
    header.tensors.push_back(std::move(tensor));
  }
  std::sort(texts.begin(), texts.end());
  const auto twice = std::adjacent_find(texts.begin(), texts.end());
  if (twice != texts.end()) {
    return absl::InvalidArgumentError(absl::StrCat("two tensors have the name '", *twice, "'"));
  }
  if (std::binary_search(texts.begin(), texts.end(), "__metadata__")) {
    return absl::InvalidArgumentError("a tensor has the reserved name '__metadata__'");
  }
  for (const auto& [key, value] : header.metadata) {
    texts.push_back(key);
    texts.push_back(value);
  }
  if (!std::all_of(texts.begin(), texts.end(), IsUtf8)) {
    return absl::InvalidArgumentError("a tensor's name or the metadata is not UTF-8");
  }
  const uint64_t end = kLengthBytes + HeaderJson(header).size();
  header.data_begin = (end + kDataAlignment - 1) / kDataAlignment * kDataAlignment;
  if (header.data_begin - kLengthBytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the header has ",
                                                   header.data_begin - kLengthBytes,
                                                   " bytes; the limit is ", kMaxHeaderBytes));
  }
  header.file_bytes = header.data_begin + (header.tensors.empty() ? 0 : header.tensors.back().end);
  return header;
}

std::string EncodeHeader(const Header& header) {
  const uint64_t length = header.data_begin - kLengthBytes;
  std::string bytes;
  for (uint64_t i = 0; i < kLengthBytes; ++i) {
    bytes.push_back(static_cast<char>(length >> (8 * i) & 0xff));
  }
  bytes += HeaderJson(header);
  bytes.resize(header.data_begin, ' ');
  return bytes;
}

struct Writer::Hashes {
  XXH3_state_t file;
  XXH3_state_t tensor;
};

Writer::Writer(int descriptor, Header header)
    : descriptor_(descriptor), header_(std::move(header)), hashes_(std::make_unique<Hashes>()) {
  XXH3_64bits_reset(&hashes_->file);
  XXH3_64bits_reset(&hashes_->tensor);
}

Writer::~Writer() = default;

absl::Status Writer::Write(absl::Span<const char> bytes) {
  XXH3_64bits_update(&hashes_->file, bytes.data(), bytes.size());
  written_ += bytes.size();
  while (!bytes.empty()) {
    const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      return absl::ErrnoToStatus(errno,
                                 absl::StrCat("writing a file of ", header_.file_bytes, " bytes"));
    }
    bytes.remove_prefix(count);
  }
  return absl::OkStatus();
}

void Writer::HashTensors(absl::Span<const char> bytes) {
  uint64_t position = written_ - header_.data_begin;
  // Tensors without bytes end where they begin, so the loop also runs when `bytes` is used up.
  while (next_tensor_ < header_.tensors.size()) {
    const Tensor& tensor = header_.tensors[next_tensor_];
    const auto part = bytes.subspan(0, static_cast<size_t>(tensor.end - position));
    XXH3_64bits_update(&hashes_->tensor, part.data(), part.size());
    position += part.size();
    bytes.remove_prefix(part.size());
    if (position < tensor.end) {
      return;
    }
    tensor_xxh3s_.push_back(XXH3_64bits_digest(&hashes_->tensor));
    XXH3_64bits_reset(&hashes_->tensor);
    ++next_tensor_;
  }
}

absl::Status Writer::Append(absl::Span<const char> bytes) {
  if (status_.ok() && written_ == 0) {
    status_ = Write(EncodeHeader(header_));
  }
  if (status_.ok() && bytes.size() > header_.file_bytes - written_) {
    status_ = absl::FailedPreconditionError(absl::StrCat("appending ", bytes.size(),
                                                         " bytes to a file with room for ",
                                                         header_.file_bytes - written_));
  }
  RETURN_IF_ERROR(status_);
  HashTensors(bytes);
  status_ = Write(bytes);
  return status_;
}

absl::StatusOr<Writer::Result> Writer::Finish() {
  RETURN_IF_ERROR(Append({}));
  if (written_ != header_.file_bytes) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the file has ", written_, " of the ", header_.file_bytes, " bytes its header announced"));
  }
  return Result{written_, XXH3_64bits_digest(&hashes_->file), tensor_xxh3s_};
}

}  // namespace ringmaster::safetensors
