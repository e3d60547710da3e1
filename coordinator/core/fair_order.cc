#include "coordinator/core/fair_order.h"

namespace ringmaster::coordinator {

JobQueue::const_iterator& FairOrder::Line::first() {
  if (next_recovering == recovering.end()) return next_waiting;
  const bool waiting_first =
      next_waiting != queue->waiting.end() && next_waiting->first < next_recovering->first;
  return waiting_first ? next_waiting : next_recovering;
}

bool FairOrder::Head::operator<(const Head& other) const {
  // What comes first in a place is the priority.
  if (place.first != other.place.first) return place.first < other.place.first;
  // As fractions, without dividing.
  const int64_t share = workers * other.weight;
  const int64_t others = other.workers * weight;
  return share != others ? share < others : place < other.place;
}

FairOrder::FairOrder(const State& state, const JobQueue& recovering) {
  for (const auto& [id, queue] : state.queues) lines_[id].queue = &queue;
  for (const auto& [place, job] : recovering)
    lines_.at(job->spec().queue()).recovering[place] = job;
  for (auto& [id, line] : lines_) {
    line.next_recovering = line.recovering.begin();
    line.next_waiting = line.queue->waiting.begin();
    if (!line.empty()) Insert(line);
  }
}

Job* FairOrder::Next() {
  if (last_ != nullptr && !last_->empty()) Insert(*last_);
  if (heads_.empty()) return nullptr;
  last_ = heads_.begin()->line;
  heads_.erase(heads_.begin());
  // Passed before it is handed out: it may leave the queue.
  return (last_->first()++)->second;
}

void FairOrder::Insert(Line& line) {
  heads_.insert({.place = line.first()->first,
                 .workers = int64_t{line.queue->held} + line.queue->kept,
                 .weight = line.queue->record.queue().weight(),
                 .line = &line});
}

}  // namespace ringmaster::coordinator
