#include "cli/worker_table.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "base/human_bytes.h"
#include "cli/output.h"

namespace ringmaster::cli {
namespace {

std::string CordonOf(const v1::Worker& worker) {
  if (!worker.has_cordon()) return "-";
  const char* how = worker.drained()          ? "drained"
                    : worker.cordon().drain() ? "draining"
                                              : "cordoned";
  const std::string& reason = worker.cordon().reason();
  return absl::StrCat(how, reason.empty() ? "" : ": ", reason);
}

std::vector<std::string> Row(const v1::Worker& worker) {
  const auto& hardware = worker.hardware();
  return {ShortName(worker.name()),
          LowerEnumName(v1::Worker::State_descriptor(), worker.state()),
          LowerEnumName(v1::Device_descriptor(), hardware.device()),
          hardware.device_name(),
          HumanBytes(static_cast<double>(hardware.memory_bytes())),
          hardware.host(),
          worker.training_job().empty()
              ? "-"
              : absl::StrCat(ShortName(worker.training_job()), " rank ", worker.rank()),
          HumanDuration(FromProto(worker.heartbeat_age())),
          CordonOf(worker)};
}

}  // namespace

void PrintWorkers(const CommandContext& context, const std::vector<const v1::Worker*>& workers) {
  if (context.options.output == OutputFormat::kName) {
    for (const auto* worker : workers) {
      *context.out << worker->name() << "\n";
    }
  } else if (context.options.output == OutputFormat::kTable) {
    std::vector<std::vector<std::string>> rows;
    for (const auto* worker : workers) {
      rows.push_back(Row(*worker));
    }
    PrintTable(*context.out,
               {"NAME", "STATE", "DEVICE", "MODEL", "MEMORY", "HOST", "JOB", "HEARTBEAT", "CORDON"},
               rows);
  } else {
    PrintMessages(*context.out, {workers.begin(), workers.end()}, context.options.output);
  }
}

}  // namespace ringmaster::cli
