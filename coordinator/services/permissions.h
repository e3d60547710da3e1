#pragma once

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "ringmaster/v1/token_service.pb.h"

namespace ringmaster::coordinator {

// Which method a call is, for its permission and for metrics.
struct Method {
  const char* service;
  const char* name;
};

// What a method is about: whether a token of one project may be enough for it.
enum class Reach {
  kProject,  // jobs, checkpoints and queues of the project that the request names
  kNothing,  // nothing that is stored
  kCluster,  // all that there is
};

// What calling a method takes. docs/security.md tells it to people.
struct Permission {
  Method method;
  v1::Token::Scope scope;
  Reach reach;
};

// One for each method of ringmaster.v1. gRPC's own services, health and reflection, are open: they
// tell nothing of jobs.
absl::Span<const Permission> Permissions();

// Null when there is no such method: then nobody may call it.
const Permission* FindPermission(const Method& method);

// Whether the bearer of `has` may do what takes `needed`.
bool Includes(v1::Token::Scope has, v1::Token::Scope needed);

}  // namespace ringmaster::coordinator
