#include "coordinator/core/fair_order.h"

namespace ringmaster::coordinator {

bool FairOrder::Head::operator<(const Head& other) const {
  // As fractions, without dividing.
  const int64_t share = workers * other.weight;
  const int64_t others = other.workers * weight;
  return share != others ? share < others : place < other.place;
}

FairOrder::FairOrder(const State& state, const JobQueue& waiting)
    : state_(state), waiting_(waiting), rest_(waiting.begin()) {}

Job* FairOrder::Next() {
  if (last_ != nullptr && last_->next < last_->jobs.size()) Insert(*last_);
  if (heads_.empty()) TakePriority();
  if (heads_.empty()) return nullptr;
  last_ = heads_.begin()->line;
  heads_.erase(heads_.begin());
  return last_->jobs[last_->next++];
}

void FairOrder::TakePriority() {
  lines_.clear();
  last_ = nullptr;
  for (const auto first = rest_; rest_ != waiting_.end(); ++rest_) {
    if (rest_->first.first != first->first.first) break;
    const std::string& queue = rest_->second->spec().queue();
    Line& line = lines_[queue];
    line.queue = &state_.queues.at(queue);
    line.jobs.push_back(rest_->second);
  }
  for (auto& [queue, line] : lines_) Insert(line);
}

void FairOrder::Insert(Line& line) {
  heads_.insert({.workers = int64_t{line.queue->held} + line.queue->kept,
                 .weight = line.queue->record.queue().weight(),
                 .place = line.jobs[line.next]->queue_key(),
                 .line = &line});
}

}  // namespace ringmaster::coordinator
