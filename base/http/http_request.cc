#include "base/http/http_request.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace ringmaster {
namespace {

absl::Status NoRequest(absl::string_view why) { return absl::InvalidArgumentError(why); }

// Letters, digits and what RFC 9110 lets a name have besides.
bool IsToken(absl::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
           absl::StrContains("!#$%&'*+-.^_`|~", c);
  });
}

absl::Status ReadRequestLine(absl::string_view line, HttpRequest& request) {
  const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
  if (words.size() != 3 || !IsToken(words[0]) ||
      (words[2] != "HTTP/1.1" && words[2] != "HTTP/1.0")) {
    return NoRequest("the first line is none of HTTP/1");
  }
  const absl::string_view target = words[1];
  if (!absl::StartsWith(target, "/") ||
      !std::all_of(target.begin(), target.end(),
                   [](unsigned char c) { return absl::ascii_isgraph(c); })) {
    return NoRequest("the path must begin with / and have printable characters only");
  }
  request.method = std::string(words[0]);
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(target, absl::MaxSplits('?', 1));
  request.path = std::string(parts.first);
  for (const absl::string_view part : absl::StrSplit(parts.second, '&', absl::SkipEmpty())) {
    const std::pair<std::string, std::string> parameter =
        absl::StrSplit(part, absl::MaxSplits('=', 1));
    request.parameters[parameter.first] = parameter.second;
  }
  return absl::OkStatus();
}

// By their names, those that are looked at.
using Headers = std::map<absl::string_view, std::optional<std::string>>;

absl::Status ReadHeader(absl::string_view line, Headers& headers) {
  const size_t colon = line.find(':');
  if (colon == absl::string_view::npos || !IsToken(line.substr(0, colon))) {
    return NoRequest("a header has no name");
  }
  const absl::string_view text = line.substr(colon + 1);
  if (std::any_of(text.begin(), text.end(),
                  [](unsigned char c) { return absl::ascii_iscntrl(c) && c != '\t'; })) {
    return NoRequest("a header has control characters");
  }
  for (auto& [name, value] : headers) {
    if (!absl::EqualsIgnoreCase(line.substr(0, colon), name)) continue;
    // One that is empty is one, too.
    if (value.has_value()) return NoRequest(absl::StrCat("there are two headers ", name));
    value = std::string(absl::StripAsciiWhitespace(text));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<HttpRequest> ParseHttpRequest(absl::string_view head) {
  HttpRequest request;
  Headers headers = {{"authorization", std::nullopt}, {"host", std::nullopt}};
  bool first = true;
  for (const absl::string_view line : absl::StrSplit(head, "\r\n", absl::SkipEmpty())) {
    const absl::Status read = first ? ReadRequestLine(line, request) : ReadHeader(line, headers);
    if (!read.ok()) return read;
    first = false;
  }
  if (first) return NoRequest("there is no first line");
  request.authorization = headers["authorization"].value_or("");
  request.host = headers["host"].value_or("");
  return request;
}

}  // namespace ringmaster
