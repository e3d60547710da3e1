#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// The distribution's Abseil (20220623) has no status macros; these two are the whole set.

// Returns from the enclosing function when `expr`, an absl::Status, is not OK.
#define RETURN_IF_ERROR(expr)                                                 \
  do {                                                                        \
    if (absl::Status ringmaster_status_ = (expr); !ringmaster_status_.ok()) { \
      return ringmaster_status_;                                              \
    }                                                                         \
  } while (false)

#define RINGMASTER_CONCAT_INNER_(a, b) a##b
#define RINGMASTER_CONCAT_(a, b) RINGMASTER_CONCAT_INNER_(a, b)

// ASSIGN_OR_RETURN(auto x, F()): assigns the value of an absl::StatusOr, or returns its status.
#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_IMPL_(RINGMASTER_CONCAT_(status_or_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_IMPL_(status_or, lhs, expr) \
  auto status_or = (expr);                           \
  if (!status_or.ok()) {                             \
    return status_or.status();                       \
  }                                                  \
  lhs = std::move(status_or).value()
