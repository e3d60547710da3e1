#include "coordinator/page/html.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "coordinator/page/page_files.h"

namespace ringmaster::coordinator {
namespace {

std::string Escaped(absl::string_view text) {
  return absl::StrReplaceAll(
      text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
}

}  // namespace

Html::Html(absl::string_view text) : markup_(Escaped(text)) {}

Html Html::Void(const char* name, const Attributes& attributes) {
  Html element;
  absl::StrAppend(&element.markup_, "<", name);
  for (const auto& [attribute, value] : attributes) {
    absl::StrAppend(&element.markup_, " ", attribute, "=\"", Escaped(value), "\"");
  }
  absl::StrAppend(&element.markup_, ">");
  return element;
}

Html Html::Element(const char* name, const Attributes& attributes, const Html& content) {
  Html element = Void(name, attributes);
  absl::StrAppend(&element.markup_, content.markup_, "</", name, ">");
  return element;
}

Html& Html::operator+=(const Html& more) {
  markup_ += more.markup_;
  return *this;
}

Html Marked(const char* css_class, const Html& content) {
  return Html::Element("span", {{"class", css_class}}, content);
}

Html Link(const std::string& target, const Html& content) {
  return Html::Element("a", {{"href", target}}, content);
}

HtmlTable::HtmlTable(std::initializer_list<const char*> headings) {
  for (const char* heading : headings) {
    const bool marked = *heading == '#' || *heading == '?';
    classes_.push_back(*heading == '#' ? "n" : *heading == '?' ? "why" : "");
    head_ += Html::Element("th", {{"class", classes_.back()}}, heading + (marked ? 1 : 0));
  }
}

void HtmlTable::Add(std::initializer_list<Html> cells) {
  Html row;
  size_t column = 0;
  for (const Html& cell : cells) row += Html::Element("td", {{"class", classes_[column++]}}, cell);
  body_ += Html::Element("tr", {}, row);
}

Html HtmlTable::Done() const {
  if (body_.empty()) return Html::Element("p", {{"class", "dim"}}, "none");
  const Html table = Html::Element("table", {},
                                   Html::Element("thead", {}, Html::Element("tr", {}, head_)) +
                                       Html::Element("tbody", {}, body_));
  return Html::Element("div", {{"class", "wide"}}, table);
}

std::string WholePage(const std::string& title, const Html& header, const Html& main) {
  // In one pass: what is filled in is not looked through.
  return absl::StrReplaceAll(kPageHtml, {{"{{title}}", Html(title).markup()},
                                         {"{{header}}", header.markup()},
                                         {"{{main}}", main.markup()}});
}

}  // namespace ringmaster::coordinator
