#pragma once

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace ringmaster::coordinator {

// Markup. Text becomes markup by being escaped; only what is written in the program itself goes in
// as it is.
class Html {
 public:
  Html() = default;
  // Escape. Implicit, so that the easy way is the safe one.
  Html(absl::string_view text);
  Html(const std::string& text) : Html(absl::string_view(text)) {}
  Html(const char* text) : Html(absl::string_view(text)) {}

  // An element with attributes, whose values are escaped, and content.
  using Attributes = std::vector<std::pair<const char*, std::string>>;
  static Html Element(const char* name, const Attributes& attributes, const Html& content);
  // One that has neither content nor an end, such as <br>.
  static Html Void(const char* name, const Attributes& attributes = {});

  Html& operator+=(const Html& more);
  friend Html operator+(Html left, const Html& right) { return std::move(left += right); }

  bool empty() const { return markup_.empty(); }
  const std::string& markup() const { return markup_; }

 private:
  std::string markup_;
};

// Text with a class of page.css.
Html Marked(const char* css_class, const Html& content);
Html Link(const std::string& target, const Html& content);

// A table, a row for each Add().
class HtmlTable {
 public:
  // `headings` whose first character is '#' are of numbers, '?' of long texts.
  explicit HtmlTable(std::initializer_list<const char*> headings);

  // As many cells as headings.
  void Add(std::initializer_list<Html> cells);
  // "none" in place of a table without rows.
  Html Done() const;

 private:
  std::vector<const char*> classes_;
  Html head_;
  Html body_;
};

// A whole page: page.html with these parts.
std::string WholePage(const std::string& title, const Html& header, const Html& main);

}  // namespace ringmaster::coordinator
