#include "coordinator/page/html.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kEvil[] = "<script>alert('\"&\")</script>";
constexpr char kHarmless[] = "&lt;script&gt;alert(&#39;&quot;&amp;&quot;)&lt;/script&gt;";

TEST(HtmlTest, TextIsEscapedWhereverItGoes) {
  EXPECT_EQ(Html(kEvil).markup(), kHarmless);
  EXPECT_EQ(Html(std::string(kEvil)).markup(), kHarmless);
  EXPECT_EQ((Html("a") + kEvil).markup(), std::string("a") + kHarmless);
  const Html link = Link(std::string("/jobs/\" onclick=\"x"), kEvil);
  EXPECT_EQ(link.markup(),
            std::string("<a href=\"/jobs/&quot; onclick=&quot;x\">") + kHarmless + "</a>");
  EXPECT_EQ(Marked("bad", kEvil).markup(),
            std::string("<span class=\"bad\">") + kHarmless + "</span>");
}

TEST(HtmlTest, TablesHaveAClassForEachColumn) {
  HtmlTable table({"name", "#count", "?why"});
  EXPECT_EQ(table.Done().markup(), "<p class=\"dim\">none</p>");
  table.Add({"a", "1", kEvil});
  const std::string markup = table.Done().markup();
  EXPECT_THAT(markup, HasSubstr("<th class=\"n\">count</th>"));
  EXPECT_THAT(markup, HasSubstr("<td class=\"n\">1</td><td class=\"why\">&lt;script"));
}

TEST(HtmlTest, WhatIsFilledInIsNotFilledInAgain) {
  const std::string page = WholePage("{{main}}<b>", "{{title}}", Html("{{header}}"));
  EXPECT_THAT(page, HasSubstr("<title>{{main}}&lt;b&gt;</title>"));
  EXPECT_THAT(page, HasSubstr("<header>{{title}}</header>"));
  EXPECT_THAT(page, HasSubstr("{{header}}\n</main>"));
  EXPECT_THAT(page, HasSubstr("href=\"/page.css\""));
  EXPECT_THAT(page, Not(HasSubstr("http://")));
  EXPECT_THAT(page, Not(HasSubstr("https://")));
}

}  // namespace
}  // namespace ringmaster::coordinator
