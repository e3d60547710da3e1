#include "tests/worker/comm/message_group.h"

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace ringmaster::worker {
namespace {

using Content = std::vector<unsigned char>;

Content Pattern(int from, int to, int sequence, size_t bytes) {
  Content content(bytes);
  uint32_t state = static_cast<uint32_t>(from * 1000003 + to * 10007 + sequence * 101 + 1);
  for (unsigned char& byte : content) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<unsigned char>(state >> 24);
  }
  return content;
}

}  // namespace

void Group::Send(int peer, int sequence, size_t bytes) {
  Buffer& buffer = buffers_.emplace_back(rank_, bytes);
  buffer.Write(Pattern(rank_.rank(), peer, sequence, bytes));
  sends_.push_back({.peer = peer, .data = buffer.data(), .bytes = bytes});
}

void Group::Receive(int peer, int sequence, size_t bytes) {
  Buffer& buffer = buffers_.emplace_back(rank_, bytes);
  receives_.push_back({.peer = peer, .data = buffer.data(), .bytes = bytes});
  expected_.push_back({buffer, Pattern(peer, rank_.rank(), sequence, bytes)});
}

absl::Status Group::Start(Communicator& ring) {
  ASSIGN_OR_RETURN(ticket_, ring.world().Start(sends_, receives_, nullptr));
  return absl::OkStatus();
}

absl::Status Group::Check() const {
  for (size_t index = 0; index < expected_.size(); ++index) {
    const auto& [buffer, content] = expected_[index];
    CHECK_OR_RETURN(buffer.Read() == content, "message ", index, " of ", content.size(),
                    " bytes is not what was sent");
  }
  return absl::OkStatus();
}

absl::Status Group::Run(Communicator& ring) {
  RETURN_IF_ERROR(Start(ring));
  RETURN_IF_ERROR(Wait(ring));
  RETURN_IF_ERROR(ring.Settle());
  return Check();
}

absl::Status AroundTheRing(Rank& rank, Communicator& ring, int sequence, size_t bytes) {
  Group group(rank);
  if (rank.size() > 1) {
    group.Send(rank.next(), sequence, bytes);
    group.Receive(rank.previous(), sequence, bytes);
  }
  return group.Run(ring);
}

absl::Status ExpectCode(const absl::Status& status, absl::StatusCode code) {
  CHECK_OR_RETURN(status.code() == code, "expected ", absl::StatusCodeToString(code), ", got ",
                  status.ToString());
  return absl::OkStatus();
}

absl::Status ExpectUseless(Communicator& ring, absl::StatusCode code) {
  RETURN_IF_ERROR(ExpectCode(ring.world().Start({}, {}, nullptr).status(), code));
  RETURN_IF_ERROR(ExpectCode(ring.Settle(), code));
  ring.Abort("again");
  RETURN_IF_ERROR(ExpectCode(ring.Settle(), code));
  RETURN_IF_ERROR(ExpectCode(ring.Close(), code));
  return ring.AwaitReleased(absl::Seconds(30));
}

}  // namespace ringmaster::worker
