#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/commands.h"

namespace ringmaster::cli {
namespace {

// Words after which a job's id is expected.
constexpr char kJobCommands[] = "get|describe|watch|logs|metrics|cancel|delete|generate";

std::string OptionNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      names.push_back("--" + name);
    }
  }
  return absl::StrJoin(names, " ");
}

// The script is made from the commands themselves, so it cannot lag behind them.
std::string BashScript(const CLI::App& app) {
  std::vector<std::string> verbs;
  std::string cases;
  for (const CLI::App* command : app.get_subcommands(nullptr)) {
    verbs.push_back(command->get_name());
    std::vector<std::string> nested;
    for (const CLI::App* inner : command->get_subcommands(nullptr)) {
      nested.push_back(inner->get_name());
    }
    absl::StrAppend(&cases, "    ", command->get_name(), ") words=\"", absl::StrJoin(nested, " "),
                    " ", OptionNames(*command), "\" ;;\n");
  }
  return absl::StrCat(
      "# bash completion of ringctl; use it by: source <(ringctl completion bash)\n"
      "_ringctl() {\n"
      "  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}\n"
      "  local verb=${COMP_WORDS[1]} words=\n"
      "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
      "    words=\"",
      absl::StrJoin(verbs, " "), " ", OptionNames(app),
      "\"\n"
      "  elif [[ $previous =~ ^(",
      kJobCommands,
      ")$ && $current != -* ]]; then\n"
      "    words=$(ringctl list -o name 2>/dev/null | sed 's|.*/||')\n"
      "  else case $verb in\n",
      cases,
      "  esac; fi\n"
      "  mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$current\")\n"
      "  if [ ${#COMPREPLY[@]} -eq 0 ]; then compopt -o default; fi\n"
      "}\n"
      "complete -F _ringctl ringctl\n");
}

}  // namespace

void AddCompletionCommand(CLI::App& app, CommandContext& context) {
  auto shell = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("completion", "Print a shell completion script");
  command->add_option("SHELL", *shell, "bash")->required();
  command->callback([&app, &context, shell] {
    context.RunLocal([&]() -> absl::StatusOr<int> {
      if (*shell != "bash") {
        return absl::InvalidArgumentError(
            absl::StrCat("no completion for \"", *shell, "\"; there is bash"));
      }
      *context.out << BashScript(app);
      return kExitOk;
    });
  });
}

}  // namespace ringmaster::cli
