#include "base/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/safetensors_layout.h"
#include "base/status_macros.h"

namespace ringmaster::safetensors {
namespace {

constexpr uint64_t kLengthBytes = 8;

struct TypeRow {
  std::string_view name;
  size_t bytes;
};
// Indexed by Type.
constexpr TypeRow kTypes[] = {{"F64", 8}, {"F32", 4}, {"BF16", 2}, {"F16", 2},
                              {"I64", 8}, {"I32", 4}, {"U8", 1},   {"BOOL", 1}};

std::optional<Type> TypeByName(std::string_view name) {
  for (size_t i = 0; i < std::size(kTypes); ++i) {
    if (kTypes[i].name == name) {
      return static_cast<Type>(i);
    }
  }
  return std::nullopt;
}

// Takes the header's JSON event by event and refuses at once whatever the format does not have, so
// that a hostile header costs neither memory nor stack beyond what it legally describes.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<Tensor> tensors;
  std::map<std::string, std::string> metadata;
  std::string error;

  bool null() override { return Refuse("null"); }
  bool boolean(bool) override { return Refuse("a boolean"); }
  bool number_integer(number_integer_t) override { return Refuse("a negative number"); }
  bool number_float(number_float_t, const string_t& text) override {
    return Refuse(absl::StrCat("the number ", text.substr(0, 40)));
  }
  bool binary(binary_t&) override { return Refuse("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::kNumbers) {
      return Refuse(absl::StrCat("the number ", value));
    }
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Refuse(absl::StrCat("the number ", value, ", above 2^63 - 1,"));
    }
    numbers_.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) {
      metadata[key_] = value;
      return true;
    }
    if (place_ != Place::kTensor || key_ != "dtype") {
      return Refuse("a string");
    }
    const std::optional<Type> type = TypeByName(value);
    if (!type.has_value()) {
      error = absl::StrCat("tensor '", tensor_.name, "' has the unknown dtype '",
                           value.substr(0, 40), "'");
      return false;
    }
    tensor_.type = *type;
    return true;
  }

  bool start_object(size_t) override {
    if (place_ == Place::kStart) {
      place_ = Place::kTop;
    } else if (place_ == Place::kTop && key_ == "__metadata__") {
      place_ = Place::kMetadata;
    } else if (place_ == Place::kTop) {
      place_ = Place::kTensor;
      tensor_ = Tensor();
      tensor_.name = key_;
    } else {
      return Refuse("an object");
    }
    seen_.clear();
    return true;
  }

  bool key(string_t& value) override {
    key_ = value;
    std::set<std::string>& seen = place_ == Place::kTop ? names_ : seen_;
    if (!seen.insert(value).second) {
      error = absl::StrCat("the key '", value.substr(0, 80), "' appears twice");
      return false;
    }
    if (place_ == Place::kTensor && value != "dtype" && value != "shape" &&
        value != "data_offsets") {
      error = absl::StrCat("tensor '", tensor_.name, "' has the unknown key '", value.substr(0, 80),
                           "'");
      return false;
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTensor) {
      if (seen_.size() != 3) {
        error =
            absl::StrCat("tensor '", tensor_.name, "' lacks one of dtype, shape and data_offsets");
        return false;
      }
      tensors.push_back(std::move(tensor_));
    }
    place_ = place_ == Place::kTop ? Place::kEnd : Place::kTop;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ != Place::kTensor || key_ == "dtype") {
      return Refuse("an array");
    }
    place_ = Place::kNumbers;
    numbers_.clear();
    return true;
  }

  bool end_array() override {
    place_ = Place::kTensor;
    if (key_ == "shape") {
      tensor_.shape = numbers_;
      return true;
    }
    if (numbers_.size() != 2 || numbers_[0] > numbers_[1]) {
      error =
          absl::StrCat("data_offsets of tensor '", tensor_.name, "' are not two ascending numbers");
      return false;
    }
    tensor_.begin = numbers_[0];
    tensor_.end = numbers_[1];
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    error = absl::StrCat("the header is not JSON (byte ", position, ")");
    return false;
  }

 private:
  enum class Place { kStart, kTop, kMetadata, kTensor, kNumbers, kEnd };

  bool Refuse(const std::string& what) {
    error = absl::StrCat("the header holds ", what, " where the format has none");
    return false;
  }

  Place place_ = Place::kStart;
  std::string key_;
  Tensor tensor_;
  std::vector<int64_t> numbers_;
  std::set<std::string> names_;
  std::set<std::string> seen_;
};

// Sorts by place and proves that the tensors tile [0, data_bytes) and that each place fits its
// shape.
absl::Status CheckPlaces(uint64_t data_bytes, std::vector<Tensor>* tensors) {
  std::stable_sort(tensors->begin(), tensors->end(), [](const Tensor& a, const Tensor& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t next = 0;
  for (const Tensor& tensor : *tensors) {
    ASSIGN_OR_RETURN(const uint64_t bytes, ShapeBytes(tensor));
    if (bytes != tensor.bytes()) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", tensor.name, "' has ",
                                                     tensor.bytes(),
                                                     " bytes, its dtype and shape make ", bytes));
    }
    if (tensor.begin != next) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor '", tensor.name, "' begins at byte ", tensor.begin,
                       " of the data, the one before it ends at byte ", next));
    }
    next = tensor.end;
  }
  if (next != data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("the header describes ", next,
                                                   " bytes of data, the file has ", data_bytes,
                                                   next > data_bytes ? " (truncated)" : ""));
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view TypeName(Type type) { return kTypes[static_cast<size_t>(type)].name; }
size_t TypeBytes(Type type) { return kTypes[static_cast<size_t>(type)].bytes; }

const Tensor* Header::Find(std::string_view name) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const Tensor& tensor) { return tensor.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

absl::StatusOr<uint64_t> ShapeBytes(const TensorSpec& tensor) {
  uint64_t bytes = TypeBytes(tensor.type);
  bool overflow = false;
  for (const int64_t size : tensor.shape) {
    if (size < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor '", tensor.name, "' has the negative size ", size));
    }
    overflow |= __builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes);
  }
  if (overflow || bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return absl::InvalidArgumentError(
        absl::StrCat("the shape of tensor '", tensor.name, "' overflows"));
  }
  return bytes;
}

absl::StatusOr<Header> ParseHeader(absl::Span<const char> beginning, uint64_t file_bytes) {
  if (file_bytes < kLengthBytes || beginning.size() < kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the file has ", file_bytes, " bytes; a safetensors file has at least ", kLengthBytes));
  }
  uint64_t length = 0;
  for (int i = kLengthBytes - 1; i >= 0; --i) {
    length = length << 8 | static_cast<unsigned char>(beginning[i]);
  }
  if (length > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the header claims ", length, " bytes; the limit is ", kMaxHeaderBytes));
  }
  if (length > file_bytes - kLengthBytes || length > beginning.size() - kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the header claims ", length, " bytes, the file has ", file_bytes, " (truncated)"));
  }
  const char* json = beginning.data() + kLengthBytes;
  if (length == 0 || json[0] != '{') {
    return absl::InvalidArgumentError(
        "the header does not start with '{'; this is no safetensors file");
  }
  HeaderHandler handler;
  if (!nlohmann::json::sax_parse(json, json + length, &handler)) {
    return absl::InvalidArgumentError(handler.error);
  }
  Header header{.tensors = std::move(handler.tensors),
                .metadata = std::move(handler.metadata),
                .data_begin = kLengthBytes + length,
                .file_bytes = file_bytes};
  RETURN_IF_ERROR(CheckPlaces(file_bytes - header.data_begin, &header.tensors));
  return header;
}

absl::StatusOr<File> File::Open(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  }
  struct stat status {};
  const bool regular = ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  File file;
  if (regular && status.st_size > 0) {
    void* mapping = ::mmap(nullptr, status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (mapping == MAP_FAILED) {
      const absl::Status error = absl::ErrnoToStatus(errno, absl::StrCat("cannot map ", path));
      ::close(descriptor);
      return error;
    }
    file.mapping_ = static_cast<const char*>(mapping);
    file.mapping_bytes_ = status.st_size;
  }
  ::close(descriptor);
  if (!regular) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  }
  absl::StatusOr<Header> header =
      ParseHeader({file.mapping_, file.mapping_bytes_}, file.mapping_bytes_);
  if (!header.ok()) {
    return absl::Status(header.status().code(),
                        absl::StrCat(path, ": ", header.status().message()));
  }
  file.header_ = *std::move(header);
  return file;
}

File::File(File&& other) noexcept
    : header_(std::move(other.header_)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      mapping_bytes_(std::exchange(other.mapping_bytes_, 0)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(header_, other.header_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  return *this;
}

File::~File() {
  if (mapping_ != nullptr) {
    ::munmap(const_cast<char*>(mapping_), mapping_bytes_);
  }
}

absl::Span<const char> File::Bytes(const Tensor& tensor) const {
  return {mapping_ + header_.data_begin + tensor.begin, static_cast<size_t>(tensor.bytes())};
}

}  // namespace ringmaster::safetensors
