#include "cli/tensorboard_writer.h"

#include <array>
#include <bit>
#include <cstring>

#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"

namespace ringmaster::cli {
namespace {

using google::protobuf::io::CodedOutputStream;
using google::protobuf::io::StringOutputStream;

// Field numbers of tensorflow's Event and Summary.Value; the messages are too small to carry a
// schema for.
constexpr int kEventWallTime = 1;
constexpr int kEventStep = 2;
constexpr int kEventFileVersion = 3;
constexpr int kEventSummary = 5;
constexpr int kSummaryValue = 1;
constexpr int kValueTag = 1;
constexpr int kValueSimple = 2;

enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void WriteTag(CodedOutputStream& out, int field, WireType type) {
  out.WriteTag(static_cast<uint32_t>(field << 3 | type));
}

void WriteBytes(CodedOutputStream& out, int field, const std::string& bytes) {
  WriteTag(out, field, kBytes);
  out.WriteVarint32(static_cast<uint32_t>(bytes.size()));
  out.WriteString(bytes);
}

std::string EncodeValue(const ScalarValue& scalar) {
  std::string bytes;
  {
    StringOutputStream stream(&bytes);
    CodedOutputStream out(&stream);
    WriteBytes(out, kValueTag, scalar.tag);
    WriteTag(out, kValueSimple, kFixed32);
    out.WriteLittleEndian32(std::bit_cast<uint32_t>(static_cast<float>(scalar.value)));
  }
  return bytes;
}

std::array<uint32_t, 256> CrcTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) {
      crc = crc & 1 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
    }
    table[i] = crc;
  }
  return table;
}

std::string LittleEndian(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) {
    out.push_back(static_cast<char>(value >> (8 * i)));
  }
  return out;
}

std::string MaskedCrc(const std::string& bytes) {
  const uint32_t crc = Crc32c(bytes);
  return LittleEndian((crc >> 15 | crc << 17) + 0xA282EAD8u, 4);
}

}  // namespace

uint32_t Crc32c(const std::string& bytes) {
  static const std::array<uint32_t, 256> kTable = CrcTable();
  uint32_t crc = ~0u;
  for (const char c : bytes) {
    crc = crc >> 8 ^ kTable[(crc ^ static_cast<unsigned char>(c)) & 0xFF];
  }
  return ~crc;
}

TensorboardWriter::TensorboardWriter(std::ostream* out, double wall_time_seconds) : out_(out) {
  std::string event;
  {
    StringOutputStream stream(&event);
    CodedOutputStream coded(&stream);
    WriteTag(coded, kEventWallTime, kFixed64);
    coded.WriteLittleEndian64(std::bit_cast<uint64_t>(wall_time_seconds));
    WriteBytes(coded, kEventFileVersion, "brain.Event:2");
  }
  WriteRecord(event);
}

void TensorboardWriter::AddScalars(double wall_time_seconds, int64_t step,
                                   const std::vector<ScalarValue>& values) {
  std::string summary;
  {
    StringOutputStream stream(&summary);
    CodedOutputStream out(&stream);
    for (const ScalarValue& value : values) {
      WriteBytes(out, kSummaryValue, EncodeValue(value));
    }
  }
  std::string event;
  {
    StringOutputStream stream(&event);
    CodedOutputStream out(&stream);
    WriteTag(out, kEventWallTime, kFixed64);
    out.WriteLittleEndian64(std::bit_cast<uint64_t>(wall_time_seconds));
    WriteTag(out, kEventStep, kVarint);
    out.WriteVarint64(static_cast<uint64_t>(step));
    WriteBytes(out, kEventSummary, summary);
  }
  WriteRecord(event);
}

void TensorboardWriter::WriteRecord(const std::string& event) {
  const std::string length = LittleEndian(event.size(), 8);
  *out_ << length << MaskedCrc(length) << event << MaskedCrc(event);
}

}  // namespace ringmaster::cli
