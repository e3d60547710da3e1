#include "coordinator/core/job_order.h"

#include <cstring>
#include <variant>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

constexpr int kFieldsMax = 8;
constexpr size_t kOrderBytesMax = 1024;

// Most significant byte first; the sign turned, so that negative numbers are less.
void Append(absl::int128 number, std::string* key) {
  const uint64_t high = static_cast<uint64_t>(absl::Int128High64(number)) ^ (uint64_t{1} << 63);
  for (const uint64_t half : {high, absl::Int128Low64(number)}) {
    for (int shift = 56; shift >= 0; shift -= 8) key->push_back(static_cast<char>(half >> shift));
  }
}

// IEEE 754: magnitudes compare as their bits do, those of negative numbers the other way.
void Append(double number, std::string* key) {
  uint64_t bits;
  std::memcpy(&bits, &number, sizeof(bits));
  Append(absl::int128((bits >> 63) != 0 ? ~bits : bits | (uint64_t{1} << 63)), key);
}

// Ends with what is less than any byte of a longer one.
void Append(const std::string& text, std::string* key) {
  for (const char c : text) {
    key->push_back(c);
    if (c == '\0') key->push_back('\xFF');
  }
  key->append(2, '\0');
}

std::string Bytes(const JobFieldValue& value) {
  std::string bytes(1, std::holds_alternative<std::monostate>(value) ? '\0' : '\1');
  if (const auto* number = std::get_if<absl::int128>(&value)) Append(*number, &bytes);
  if (const auto* number = std::get_if<double>(&value)) Append(*number, &bytes);
  if (const auto* text = std::get_if<std::string>(&value)) Append(*text, &bytes);
  return bytes;
}

void Turn(std::string* bytes) {
  for (char& c : *bytes) c = static_cast<char>(~c);
}

}  // namespace

absl::StatusOr<JobOrder> JobOrder::Parse(absl::string_view text) {
  JobOrder order;
  if (absl::StripAsciiWhitespace(text).empty()) return order;
  if (text.size() > kOrderBytesMax) {
    return InvalidField("order_by",
                        absl::StrCat("has ", text.size(), " bytes, more than ", kOrderBytesMax));
  }
  for (const absl::string_view item : absl::StrSplit(text, ',')) {
    const std::vector<std::string> words =
        absl::StrSplit(item, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    if (words.empty() || words.size() > 2 || (words.size() == 2 && words[1] != "desc")) {
      return InvalidField("order_by", absl::StrCat("'", absl::StripAsciiWhitespace(item),
                                                   "' is not FIELD or FIELD desc"));
    }
    const absl::StatusOr<JobField> field = JobField::Find(words[0]);
    if (!field.ok()) return InvalidField("order_by", field.status().message());
    order.fields_.emplace_back(*field, words.size() == 2);
  }
  if (order.fields_.size() > kFieldsMax) {
    return InvalidField(
        "order_by", absl::StrCat("has ", order.fields_.size(), " fields, more than ", kFieldsMax));
  }
  return order;
}

std::string JobOrder::Key(const v1::TrainingJob& job) const {
  std::string key;
  for (const auto& [field, descending] : fields_) {
    std::string bytes = Bytes(field.Of(job));
    if (descending) Turn(&bytes);
    key += bytes;
  }
  std::string age;
  Append(absl::int128(job.create_time().seconds()) * 1'000'000'000 + job.create_time().nanos(),
         &age);
  Turn(&age);
  return absl::StrCat(key, age, job.uid());
}

}  // namespace ringmaster::coordinator
