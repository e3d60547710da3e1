#pragma once

#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "attention/plan/options.h"

// The command lines of the benchmarks of attention.
namespace ringmaster::attention {

struct HeadShape {
  int heads = 16;
  int dim = 128;
};

// "16x128"; false for what is none.
inline bool ParseHeadShape(absl::string_view text, HeadShape* shape) {
  const std::vector<absl::string_view> sizes = absl::StrSplit(text, 'x');
  return sizes.size() == 2 && absl::SimpleAtoi(sizes[0], &shape->heads) &&
         absl::SimpleAtoi(sizes[1], &shape->dim);
}

// "A,B,...", each by parse(text, &value); false where one is none.
template <typename T, typename F>
bool ParseList(absl::string_view text, const F& parse, std::vector<T>* values) {
  values->clear();
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    if (!parse(part, &values->emplace_back())) return false;
  }
  return true;
}

// "2048:1,8192:4", lengths of segments and rates; false for what is none.
inline bool ParseBranches(absl::string_view text, std::vector<Branch>* branches) {
  const auto parse = [](absl::string_view part, Branch* branch) {
    const std::vector<absl::string_view> numbers = absl::StrSplit(part, ':');
    return numbers.size() == 2 && absl::SimpleAtoi(numbers[0], &branch->segment_length) &&
           absl::SimpleAtoi(numbers[1], &branch->dilation_rate);
  };
  return ParseList(text, parse, branches);
}

// Options by read(argument), all others as numbers of tokens. False, with how it is used on stderr,
// for what is neither, and without any tokens.
template <typename F>
bool ReadArguments(int argc, char** argv, const std::string& usage, const F& read,
                   std::vector<int64_t>* lengths) {
  bool understood = true;
  for (int i = 1; i < argc && understood; ++i) {
    const bool option = argv[i][0] == '-';
    understood = option
                     ? read(absl::string_view(argv[i]))
                     : absl::SimpleAtoi(argv[i], &lengths->emplace_back()) && lengths->back() > 0;
  }
  if (understood && !lengths->empty()) return true;
  std::fprintf(stderr, "usage: %s\n", usage.c_str());
  return false;
}

// main(): what is thrown ends on stderr.
inline int RunMain(int argc, char** argv, int (*run)(int argc, char** argv)) try {
  return run(argc, argv);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}

}  // namespace ringmaster::attention
