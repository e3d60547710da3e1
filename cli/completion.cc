#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "cli/commands.h"

namespace ringmaster::cli {
namespace {

using Names = std::vector<std::string>;

Names FlagNames(const CLI::App& app) {
  Names names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

Names SubcommandNames(const CLI::App& app) {
  Names names;
  for (const CLI::App* command : app.get_subcommands(nullptr)) names.push_back(command->get_name());
  return names;
}

// Flags behind which a word is their value.
void AddValueFlags(const CLI::App& app, Names& names) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_items_expected_max() == 0) continue;
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  for (const CLI::App* command : app.get_subcommands(nullptr)) AddValueFlags(*command, names);
}

// What says where the coordinator is and may come from the environment too.
Names TargetFlags(const CLI::App& app) {
  Names names;
  for (const CLI::Option* option : app.get_options()) {
    if (!option->get_envname().empty()) names.push_back("--" + option->get_lnames().front());
  }
  return names;
}

bool Takes(const CLI::App& command, const std::string& what) {
  const auto positionals = command.get_options([](const auto* o) { return o->get_positional(); });
  return !positionals.empty() && positionals.front()->get_name(/*positional=*/true) == what;
}

// Of all commands, by their path ("checkpoints list").
struct Cases {
  // Without those that every command has.
  std::string flags;
  std::string verbs;
  Names take_job;
  Names take_worker;
};

void AddCases(const CLI::App& app, const std::string& path, Cases& cases) {
  for (const CLI::App* command : app.get_subcommands(nullptr)) {
    const std::string own = path + command->get_name();
    AddCases(*command, own + " ", cases);
    const Names verbs = SubcommandNames(*command);
    if (!verbs.empty()) {
      absl::StrAppend(&cases.verbs, "    '", own, "') words='", absl::StrJoin(verbs, " "),
                      "' ;;\n");
    }
    if (Takes(*command, "JOB")) cases.take_job.push_back("'" + own + "'");
    if (Takes(*command, "WORKER")) cases.take_worker.push_back("'" + own + "'");
    Names flags = FlagNames(*command);
    flags.erase(std::remove(flags.begin(), flags.end(), "--help"), flags.end());
    if (flags.empty()) continue;
    absl::StrAppend(&cases.flags, "    '", own, " '*) words='", absl::StrJoin(flags, " "),
                    "' ;;\n");
  }
}

constexpr char kBashScript[] =
    R"bash(# bash completion of ringctl; use it by: source <(ringctl completion bash)
_ringctl() {
  local current=${COMP_WORDS[COMP_CWORD]} path= words= i value
  local -a line=() target=()
  # COMP_WORDS is split at ':' and '=' too, which addresses have. The last word stays in `rest`.
  local rest=${COMP_LINE:0:COMP_POINT}
  local word="^[[:space:]]*((\"[^\"]*\"|'[^']*'|\\\\.|[^[:space:]\"'\\\\])+)[[:space:]]+"
  while [[ $rest =~ $word ]]; do
    line+=("${BASH_REMATCH[1]}")
    rest=${rest:${#BASH_REMATCH[0]}}
  done
  for ((i = 1; i < ${#line[@]}; i++)); do
    value=${line[i]#*=}
    case ${line[i]} in
    @TARGETS@) value=${line[i+1]-} ;;&
    @TARGETS@|@TARGETS_WITH_VALUE@)
      case $value in
      \"*\"|\'*\') value=${value:1:-1} ;;
      \~/*) value=~/${value:2} ;;
      esac
      # What a variable holds, only the shell knows: then the environment says whom to ask.
      [[ $value == *\$* ]] || target+=("${line[i]%%=*}=$value") ;;&
    @TARGETS_WITH_VALUE@) ;;
    @VALUE_FLAGS@) ((i++)) ;;
    -*) ;;
    *) path+=${path:+ }${line[i]} ;;
    esac
  done
  # A flag waits for its value: perhaps a file.
  if ((i > ${#line[@]})) || [[ $rest == -*=* ]]; then words=
  elif [[ $current == -* ]]; then
    case "$path " in
@FLAGS_OF_COMMANDS@    esac
    words+=' @GLOBAL_FLAGS@'
  else case $path in
    '') words='@VERBS@' ;;
@NESTED_VERBS@    @TAKE_JOB@)
      words=$(ringctl "${target[@]}" list -o name 2>/dev/null | sed 's|.*/||') ;;
    @TAKE_WORKER@)
      words=$(ringctl "${target[@]}" workers -o name 2>/dev/null | sed 's|.*/||') ;;
    'checkpoints get')
      if [[ $current == */checkpoints/* ]]; then
        words=$(ringctl "${target[@]}" checkpoints list "${current%%/checkpoints/*}" -o name 2>/dev/null)
      else
        words=$(ringctl "${target[@]}" list -o name 2>/dev/null | sed 's|$|/checkpoints/|')
        compopt -o nospace
      fi ;;
    esac
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
  if [ ${#COMPREPLY[@]} -eq 0 ]; then compopt -o default; fi
}
complete -F _ringctl ringctl
)bash";

// The script is made from the commands themselves, so it cannot lag behind them.
std::string BashScript(const CLI::App& app) {
  Cases cases;
  AddCases(app, "", cases);
  Names value_flags;
  AddValueFlags(app, value_flags);
  const Names targets = TargetFlags(app);
  return absl::StrReplaceAll(kBashScript,
                             {{"@TARGETS@", absl::StrJoin(targets, "|")},
                              {"@TARGETS_WITH_VALUE@", absl::StrJoin(targets, "=*|") + "=*"},
                              {"@VALUE_FLAGS@", absl::StrJoin(value_flags, "|")},
                              {"@FLAGS_OF_COMMANDS@", cases.flags},
                              {"@GLOBAL_FLAGS@", absl::StrJoin(FlagNames(app), " ")},
                              {"@VERBS@", absl::StrJoin(SubcommandNames(app), " ")},
                              {"@NESTED_VERBS@", cases.verbs},
                              {"@TAKE_JOB@", absl::StrJoin(cases.take_job, "|")},
                              {"@TAKE_WORKER@", absl::StrJoin(cases.take_worker, "|")}});
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
