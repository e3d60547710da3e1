#include "cli/explain.h"

#include "gmock/gmock.h"
#include "google/protobuf/descriptor.h"
#include "gtest/gtest.h"
#include "ringmaster/v1/job.pb.h"

namespace ringmaster::cli {
namespace {

using testing::HasSubstr;

TEST(ExplainTest, QuotesTheProtoComment) {
  const auto text = ExplainField("optimizer.clip_norm");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(*text, HasSubstr("optimizer.clip_norm (double)"));
  EXPECT_THAT(*text, HasSubstr("global norm at most; 0 switches it off. Unset: 2."));
}

TEST(ExplainTest, ListsAGroupsFieldsAndEnumValues) {
  EXPECT_THAT(*ExplainField("schedule"), HasSubstr("warmup_steps"));
  EXPECT_THAT(*ExplainField("schedule.decay"), HasSubstr("one of cosine, polynomial, constant"));
  EXPECT_THAT(*ExplainField(""), HasSubstr("activation_checkpointing"));
}

TEST(ExplainTest, SuggestsTheNearestField) {
  const auto text = ExplainField("optimizer.clip_nrom");
  EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(text.status().message()), HasSubstr("did you mean \"clip_norm\"?"));
  EXPECT_FALSE(ExplainField("steps.more").ok());
}

TEST(ExplainTest, KnowsWhatStandsBesideTheSpec) {
  EXPECT_THAT(ExplainField("name").value_or(""), HasSubstr("name (string)\n\nOPTIONAL. 4 to 63"));
  EXPECT_THAT(ExplainField("labels").value_or(""),
              HasSubstr("labels (map of text to text)\n\nOPT"));
  EXPECT_THAT(std::string(ExplainField("nmae").status().message()),
              HasSubstr("did you mean \"name\"?"));
  EXPECT_THAT(std::string(ExplainField("labels.team").status().message()),
              HasSubstr("labels has no fields of its own"));
  EXPECT_THAT(std::string(ExplainField("name.x").status().message()),
              HasSubstr("name.x: name has no fields of its own"));
  EXPECT_FALSE(ExplainField("model.name").ok());
}

// Every field a user can write has a comment.
void ExpectComments(const google::protobuf::Descriptor& type, const std::string& prefix) {
  for (int i = 0; i < type.field_count(); ++i) {
    const auto& field = *type.field(i);
    const auto text = ExplainField(prefix + field.name());
    ASSERT_TRUE(text.ok()) << text.status();
    // The field and its type, an empty line, the comment.
    EXPECT_NE((*text)[text->find("\n\n") + 2], '\n') << *text << "has no comment in the proto file";
    const bool own_message = field.message_type() != nullptr &&
                             field.message_type()->full_name().rfind("ringmaster.", 0) == 0;
    if (own_message && !field.is_repeated()) {
      ExpectComments(*field.message_type(), prefix + field.name() + ".");
    }
  }
}

TEST(ExplainTest, EveryJobFileFieldCanBeExplained) {
  ExpectComments(*v1::TrainingJobSpec::descriptor(), "");
}

}  // namespace
}  // namespace ringmaster::cli
