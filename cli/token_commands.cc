#include <memory>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace ringmaster::cli {
namespace {

using Stub = v1::TokenService::Stub;

std::string StateOf(const v1::Token& token, absl::Time now) {
  if (token.has_revoke_time()) return "revoked";
  if (token.has_expire_time() && FromProto(token.expire_time()) <= now) return "expired";
  return "in force";
}

std::vector<std::string> Row(const v1::Token& token, absl::Time now) {
  return {
      ShortName(token.name()),
      token.display_name(),
      LowerEnumName(v1::Token::Scope_descriptor(), token.scope()),
      token.project().empty() ? "all" : ShortName(token.project()),
      "..." + token.last_four(),
      Age(token.create_time(), now),
      token.has_expire_time()
          ? absl::FormatTime(absl::RFC3339_sec, FromProto(token.expire_time()), absl::UTCTimeZone())
          : "never",
      StateOf(token, now)};
}

void Print(const CommandContext& context, const std::vector<const v1::Token*>& tokens) {
  if (context.options.output == OutputFormat::kName) {
    for (const auto* token : tokens) *context.out << token->name() << "\n";
  } else if (context.options.output == OutputFormat::kTable) {
    std::vector<std::vector<std::string>> rows;
    for (const auto* token : tokens) rows.push_back(Row(*token, absl::Now()));
    PrintTable(*context.out,
               {"NAME", "FOR", "SCOPE", "PROJECT", "ENDS IN", "AGE", "EXPIRES", "STATE"}, rows);
  } else {
    PrintMessages(*context.out, {tokens.begin(), tokens.end()}, context.options.output);
  }
}

struct CreateFlags {
  v1::CreateTokenRequest request;
  std::string scope;
  std::string project;
  std::string expires_in;
};

absl::StatusOr<v1::CreateTokenRequest> RequestFrom(const CreateFlags& flags) {
  v1::CreateTokenRequest request = flags.request;
  v1::Token::Scope scope = v1::Token::SCOPE_UNSPECIFIED;
  if (!v1::Token::Scope_Parse(absl::AsciiStrToUpper(flags.scope), &scope)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--scope: there is no \"", flags.scope,
                     "\"; there are viewer, submitter, operator, admin and worker"));
  }
  request.set_scope(scope);
  if (!flags.project.empty()) request.set_project("projects/" + flags.project);
  if (!flags.expires_in.empty()) {
    absl::Duration ttl;
    if (!absl::ParseDuration(flags.expires_in, &ttl) || ttl >= absl::Hours(1 << 20)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--expires-in: \"", flags.expires_in, "\" is not a duration; write 30m, 12h or 720h"));
    }
    request.mutable_ttl()->set_seconds(absl::IDivDuration(ttl, absl::Seconds(1), &ttl));
    request.mutable_ttl()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(ttl)));
  }
  return request;
}

// The token alone goes to standard output: into a file, or another program.
absl::StatusOr<int> Create(Client& client, CommandContext& context, const CreateFlags& flags) {
  ASSIGN_OR_RETURN(const v1::CreateTokenRequest request, RequestFrom(flags));
  v1::CreateTokenResponse made;
  RETURN_IF_ERROR(client.Call(&Stub::CreateToken, client.tokens(), request, &made));
  if (context.options.output == OutputFormat::kTable ||
      context.options.output == OutputFormat::kName) {
    *context.err << made.token().name() << ": keep it, it is not shown again\n";
    *context.out << made.secret() << "\n";
  } else {
    PrintMessage(*context.out, made, context.options.output);
  }
  return kExitOk;
}

absl::StatusOr<int> List(Client& client, CommandContext& context) {
  v1::ListTokensResponse reply;
  RETURN_IF_ERROR(client.Call(&Stub::ListTokens, client.tokens(), v1::ListTokensRequest(), &reply));
  std::vector<const v1::Token*> tokens;
  for (const v1::Token& token : reply.tokens()) tokens.push_back(&token);
  Print(context, tokens);
  return kExitOk;
}

absl::StatusOr<int> Revoke(Client& client, CommandContext& context, const std::string& token) {
  v1::RevokeTokenRequest request;
  request.set_name(absl::StrContains(token, '/') ? token : "tokens/" + token);
  v1::Token revoked;
  RETURN_IF_ERROR(client.Call(&Stub::RevokeToken, client.tokens(), request, &revoked));
  Print(context, {&revoked});
  return kExitOk;
}

void AddCreate(CLI::App& group, CommandContext& context) {
  auto flags = std::make_shared<CreateFlags>();
  CLI::App* create = group.add_subcommand("create", "Make a token and print it, this once");
  create
      ->add_option_function<std::string>(
          "FOR", [flags](const std::string& who) { flags->request.set_display_name(who); },
          "Who or what will use it")
      ->required();
  create->add_option("--scope", flags->scope, "viewer, submitter, operator, admin or worker")
      ->required();
  create->add_option("--only-project", flags->project,
                     "Project that it is good for; empty: all. Of viewer and submitter");
  create->add_option("--expires-in", flags->expires_in, "12h, 720h; empty: never");
  create->callback([&context, flags] {
    context.Run([&](Client& client) { return Create(client, context, *flags); });
  });
}

}  // namespace

void AddTokenCommands(CLI::App& app, CommandContext& context) {
  CLI::App* group = app.add_subcommand("tokens", "Make, list and revoke access tokens");
  group->require_subcommand(1);
  AddCreate(*group, context);
  group->add_subcommand("list", "List tokens")->callback([&context] {
    context.Run([&](Client& client) { return List(client, context); });
  });
  auto token = std::make_shared<std::string>();
  CLI::App* revoke = group->add_subcommand("revoke", "Make a token open nothing any more, at once");
  revoke->add_option("TOKEN", *token, "Its name, as the list has it")->required();
  revoke->callback([&context, token] {
    context.Run([&](Client& client) { return Revoke(client, context, *token); });
  });
}

}  // namespace ringmaster::cli
