#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

// The safetensors file format, without torch: 8 bytes little-endian header length, a JSON header
// that names each tensor's type, shape and place, then the tensors' row-major little-endian bytes
// without holes. Files from strangers are read safely: nothing in the header is believed before it
// is checked against the file's size.
namespace ringmaster::safetensors {

enum class Type { kF64, kF32, kBF16, kF16, kI64, kI32, kU8, kBool };

// The name in the file, such as "BF16", and the bytes of one element.
std::string_view TypeName(Type type);
size_t TypeBytes(Type type);

// What a caller knows of a tensor before it is placed in a file. No dimensions means one element.
struct TensorSpec {
  std::string name;
  Type type = Type::kF32;
  std::vector<int64_t> shape;
};

// A tensor's place: bytes [begin, end) of the data section, which starts at Header::data_begin of
// the file.
struct Tensor : TensorSpec {
  uint64_t begin = 0;
  uint64_t end = 0;

  uint64_t bytes() const { return end - begin; }
};

struct Header {
  std::vector<Tensor> tensors;  // in file order
  std::map<std::string, std::string> metadata;
  uint64_t data_begin = 0;
  uint64_t file_bytes = 0;

  // Null when there is no such tensor. Valid while the header lives.
  const Tensor* Find(std::string_view name) const;
};

inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;

// Parses the beginning of a file of `file_bytes` bytes; `beginning` holds at least the whole
// header, or the whole file. InvalidArgument with one sentence on what is wrong: truncated, header
// too long, not the format's JSON, a key twice, unknown type, negative or overflowing shape, bytes
// that do not fit the shape, holes, overlaps or bytes left over.
absl::StatusOr<Header> ParseHeader(absl::Span<const char> beginning, uint64_t file_bytes);

// A file mapped read-only. Movable; unmaps at its end. Thread-compatible: concurrent reads are
// fine. A file that shrinks while it is mapped kills the reader, as with every mapping: only read
// files that are finished.
class File {
 public:
  // NotFound, PermissionDenied or another code for what the system says; InvalidArgument as
  // ParseHeader. All name `path`.
  static absl::StatusOr<File> Open(const std::string& path);
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  const Header& header() const { return header_; }
  // The tensor's bytes, valid while the file lives. They start at a multiple of the element size
  // only when the writer aligned them, as Writer does. REQUIRES: `tensor` comes from header().
  absl::Span<const char> Bytes(const Tensor& tensor) const;

 private:
  File() = default;

  Header header_;
  const char* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
};

// Places the tensors largest element type first, then by name, so that each is aligned to its
// element size, and pads the header so that the data section starts at a multiple of 64.
// InvalidArgument for a name given twice or reserved
// ("__metadata__"), text that is not UTF-8, a negative or overflowing shape, or a header above the
// limit.
absl::StatusOr<Header> LayOut(std::vector<TensorSpec> tensors,
                              std::map<std::string, std::string> metadata);

// The bytes of the file before its data section, for a header that LayOut made.
std::string EncodeHeader(const Header& header);

// Writes one file from its beginning to a descriptor, tensor by tensor, never holding more than
// what the caller passes. The descriptor is borrowed; syncing, renaming and closing are the
// caller's. Lives on one thread. After an error every call returns it again. ResourceExhausted when
// the disk is full, else the code of what the system says.
class Writer {
 public:
  Writer(int descriptor, Header header);
  ~Writer();
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  // In this order the tensors must be appended.
  const Header& header() const { return header_; }

  // Appends the next bytes of the data section; a tensor may come in several pieces, also across
  // tensors. FailedPrecondition for more bytes than the header announced.
  absl::Status Append(absl::Span<const char> bytes);

  struct Result {
    uint64_t file_bytes = 0;
    uint64_t xxh3 = 0;                   // XXH3-64 of the whole file
    std::vector<uint64_t> tensor_xxh3s;  // XXH3-64 of each tensor's bytes, in file order
  };
  // FailedPrecondition unless all bytes were appended. Writes nothing itself but the header of a
  // file without data.
  absl::StatusOr<Result> Finish();

 private:
  struct Hashes;

  absl::Status Write(absl::Span<const char> bytes);
  void HashTensors(absl::Span<const char> bytes);

  int descriptor_;
  Header header_;
  uint64_t written_ = 0;    // bytes of the file so far
  size_t next_tensor_ = 0;  // the one that the next byte belongs to
  absl::Status status_;
  std::vector<uint64_t> tensor_xxh3s_;
  std::unique_ptr<Hashes> hashes_;  // running states, opaque so that users need no xxHash header
};

}  // namespace ringmaster::safetensors
