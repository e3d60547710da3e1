#include "coordinator/core/job_filter.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "coordinator/core/job_field.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

constexpr size_t kFilterBytesMax = 4096;
// Parentheses within each other, so that nobody's request uses up the stack, and restrictions: each
// looks at every job, on the core's thread.
constexpr int kDepthMax = 50;
constexpr int kRestrictionsMax = 32;

enum class Operator { kEqual, kDiffers, kLess, kAtMost, kMore, kAtLeast, kHas };
// Longer ones first.
constexpr std::array<std::pair<absl::string_view, Operator>, 7> kOperators = {
    {{"!=", Operator::kDiffers},
     {"<=", Operator::kAtMost},
     {">=", Operator::kAtLeast},
     {"=", Operator::kEqual},
     {"<", Operator::kLess},
     {">", Operator::kMore},
     {":", Operator::kHas}}};

struct Word {
  std::string text;
  bool quoted = false;
};

bool IsFieldCharacter(char c) { return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == '-'; }
bool EndsWord(char c) { return absl::ascii_isspace(c) || c == '(' || c == ')' || c == '"'; }

// A word with a * at an end matches what ends or begins as the rest does.
JobPredicate MatchesPattern(JobField field, absl::string_view pattern, bool equal) {
  const bool any_begin = absl::ConsumePrefix(&pattern, "*");
  const bool any_end = absl::ConsumeSuffix(&pattern, "*");
  return [=, rest = std::string(pattern)](const v1::TrainingJob& job) {
    const JobFieldValue value = field.Of(job);
    const auto* text = std::get_if<std::string>(&value);
    if (text == nullptr) return false;
    const bool matches = any_begin && any_end ? absl::StrContains(*text, rest)
                         : any_begin          ? absl::EndsWith(*text, rest)
                         : any_end            ? absl::StartsWith(*text, rest)
                                              : *text == rest;
    return matches == equal;
  };
}

JobPredicate IsSet(JobField field) {
  return [field = std::move(field)](const v1::TrainingJob& job) {
    return !std::holds_alternative<std::monostate>(field.Of(job));
  };
}

JobPredicate Compares(JobField field, Operator how, JobFieldValue wanted) {
  return [field = std::move(field), how, wanted = std::move(wanted)](const v1::TrainingJob& job) {
    const JobFieldValue value = field.Of(job);
    if (std::holds_alternative<std::monostate>(value)) return false;
    switch (how) {
      case Operator::kEqual:
        return value == wanted;
      case Operator::kDiffers:
        return value != wanted;
      case Operator::kLess:
        return value < wanted;
      case Operator::kAtMost:
        return value <= wanted;
      case Operator::kMore:
        return value > wanted;
      case Operator::kAtLeast:
        return value >= wanted;
      case Operator::kHas:
        break;
    }
    return false;
  };
}

class Parser {
 public:
  explicit Parser(absl::string_view text) : text_(text) {}

  absl::StatusOr<JobPredicate> Parse() {
    SkipSpace();
    if (at_ == text_.size()) return JobPredicate([](const auto&) { return true; });
    ASSIGN_OR_RETURN(JobPredicate filter, Filter());
    if (at_ < text_.size()) return Wrong("AND, OR or the end is wanted");
    return filter;
  }

 private:
  absl::Status Wrong(absl::string_view what) const { return Wrong(at_, what); }
  absl::Status Wrong(size_t at, absl::string_view what) const {
    return InvalidField("filter", absl::StrCat("at character ", at + 1, ": ", what));
  }

  void SkipSpace() {
    while (at_ < text_.size() && absl::ascii_isspace(text_[at_])) ++at_;
  }

  // Whether this word comes next, and no longer one; it is behind then.
  bool Take(absl::string_view word) {
    const absl::string_view rest = text_.substr(at_);
    const bool taken =
        absl::StartsWith(rest, word) && (rest.size() == word.size() || EndsWord(rest[word.size()]));
    if (taken) {
      at_ += word.size();
      SkipSpace();
    }
    return taken;
  }
  bool Take(char c) {
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    SkipSpace();
    return true;
  }

  absl::StatusOr<JobPredicate> Filter() { return Chain("AND", &Parser::Factor, /*all=*/true); }
  absl::StatusOr<JobPredicate> Factor() { return Chain("OR", &Parser::Term, /*all=*/false); }

  // Parts with `word` between them, of which all or any must hold.
  absl::StatusOr<JobPredicate> Chain(absl::string_view word,
                                     absl::StatusOr<JobPredicate> (Parser::*part)(), bool all) {
    std::vector<JobPredicate> parts;
    do {
      ASSIGN_OR_RETURN(parts.emplace_back(), (this->*part)());
    } while (Take(word));
    if (parts.size() == 1) return std::move(parts.front());
    return JobPredicate([parts = std::move(parts), all](const v1::TrainingJob& job) {
      const auto holds = [&job](const JobPredicate& one) { return one(job); };
      return all ? std::all_of(parts.begin(), parts.end(), holds)
                 : std::any_of(parts.begin(), parts.end(), holds);
    });
  }

  absl::StatusOr<JobPredicate> Term() {
    const bool negated = Take("NOT") || Take('-');
    JobPredicate term;
    if (const size_t begin = at_; Take('(')) {
      if (++depth_ > kDepthMax) {
        return Wrong(begin, absl::StrCat("more than ", kDepthMax, " ( within each other"));
      }
      ASSIGN_OR_RETURN(term, Filter());
      if (!Take(')')) return Wrong("AND, OR or ) is wanted");
      --depth_;
    } else {
      ASSIGN_OR_RETURN(term, Restriction());
    }
    if (!negated) return term;
    return JobPredicate([term = std::move(term)](const auto& job) { return !term(job); });
  }

  absl::StatusOr<JobPredicate> Restriction() {
    const size_t begin = at_;
    if (++restrictions_ > kRestrictionsMax) {
      return Wrong(absl::StrCat("more than ", kRestrictionsMax, " restrictions"));
    }
    while (at_ < text_.size() && IsFieldCharacter(text_[at_])) ++at_;
    const absl::string_view path = text_.substr(begin, at_ - begin);
    if (path.empty()) return Wrong("a field's name is wanted, like state or labels.team");
    SkipSpace();
    ASSIGN_OR_RETURN(const Operator how, TakeOperator());
    const size_t value_begin = at_;
    ASSIGN_OR_RETURN(const Word value, TakeValue());
    if (how == Operator::kHas && path == "labels" && value.text != "*") {
      const absl::StatusOr<JobField> label = JobField::Find(absl::StrCat("labels.", value.text));
      if (!label.ok()) return Wrong(value_begin, label.status().message());
      return IsSet(*label);
    }
    const absl::StatusOr<JobField> field = JobField::Find(path);
    if (!field.ok()) return Wrong(begin, field.status().message());
    if (how == Operator::kHas) {
      if (value.text == "*" && !field->can_be_unset()) {
        return Wrong(begin, absl::StrCat("'", path, "' always has a value; compare it with one"));
      }
      if (value.text == "*") return IsSet(*field);
      return Wrong(value_begin, "only * is wanted after :, or a key after labels:");
    }
    if (how != Operator::kEqual && how != Operator::kDiffers && !field->ordered()) {
      return Wrong(begin, absl::StrCat("'", path, "' can be compared by = and != only"));
    }
    if (field->is_string() && !value.quoted) {
      return MatchesPattern(*field, value.text, how == Operator::kEqual);
    }
    absl::StatusOr<JobFieldValue> wanted = field->Parse(value.text);
    if (!wanted.ok()) return Wrong(value_begin, wanted.status().message());
    return Compares(*field, how, *std::move(wanted));
  }

  absl::StatusOr<Operator> TakeOperator() {
    for (const auto& [text, how] : kOperators) {
      if (absl::StartsWith(text_.substr(at_), text)) {
        at_ += text.size();
        SkipSpace();
        return how;
      }
    }
    return Wrong("one of = != < <= > >= : is wanted");
  }

  absl::StatusOr<Word> TakeValue() {
    Word word;
    if (at_ < text_.size() && text_[at_] == '"') {
      const size_t begin = at_++;
      word.quoted = true;
      for (; at_ < text_.size() && text_[at_] != '"'; ++at_) {
        if (text_[at_] == '\\' && at_ + 1 < text_.size()) ++at_;
        word.text.push_back(text_[at_]);
      }
      if (at_ == text_.size()) return Wrong(begin, "the quote does not end");
      ++at_;
    } else {
      while (at_ < text_.size() && !EndsWord(text_[at_])) word.text.push_back(text_[at_++]);
      if (word.text.empty()) return Wrong("a value is wanted");
    }
    SkipSpace();
    return word;
  }

  const absl::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
  int restrictions_ = 0;
};

}  // namespace

absl::StatusOr<JobPredicate> ParseJobFilter(absl::string_view text) {
  if (text.size() > kFilterBytesMax) {
    return InvalidField("filter",
                        absl::StrCat("has ", text.size(), " bytes, more than ", kFilterBytesMax));
  }
  return Parser(text).Parse();
}

}  // namespace ringmaster::coordinator
