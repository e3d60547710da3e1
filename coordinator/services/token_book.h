#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "coordinator/store/token_store.h"
#include "ringmaster/store/tokens.pb.h"
#include "ringmaster/v1/token_service.pb.h"

namespace ringmaster::coordinator {

// Whether it looks like the name of a token: "tokens/{id}".
bool IsTokenName(absl::string_view name);

// All access tokens, in memory and in the store. A token's text is "rmt_{id}_{secret}" with 256
// random bits of secret; only its SHA-256 is kept. Thread-safe; what changes something blocks on
// the disk and is for one thread at a time.
class TokenBook {
 public:
  static constexpr size_t kTokensMax = 4096;

  // Reads the store. `now`: the clock that tokens expire by. Errors: DataLoss, and the store's.
  static absl::StatusOr<std::unique_ptr<TokenBook>> Open(std::unique_ptr<TokenStore> store,
                                                         std::function<absl::Time()> now,
                                                         size_t tokens_max = kTokensMax);

  // As TokenService says. `keep` gets the text before the token is stored; if it fails, there is no
  // token.
  absl::StatusOr<v1::CreateTokenResponse> Create(
      const v1::CreateTokenRequest& request,
      const std::function<absl::Status(const std::string& text)>& keep = nullptr);
  absl::StatusOr<v1::Token> Revoke(const std::string& name);
  v1::ListTokensResponse List() const;

  // The token in force that has this text. Unauthenticated otherwise: why is told only to who knows
  // the text.
  absl::StatusOr<v1::Token> Find(absl::string_view text) const;
  // Unauthenticated when the token of this name is in force no longer.
  absl::Status CheckInForce(const std::string& name) const;
  // When it ends by itself; InfiniteFuture: never, or it is not there.
  absl::Time ExpiryOf(const std::string& name) const;
  // Whether somebody may still make tokens.
  bool HasAdmin() const;

 private:
  TokenBook(std::unique_ptr<TokenStore> store, std::function<absl::Time()> now, size_t tokens_max)
      : store_(std::move(store)), now_(std::move(now)), tokens_max_(tokens_max) {}

  absl::Status Load();
  // Forgets the oldest token that is in force no longer when there is no place for one more.
  absl::Status MakeRoom();
  // Stores the record by `put`, then has it in memory.
  absl::Status Put(store::TokenRecord record,
                   absl::Status (TokenStore::*put)(const std::string&, const std::string&));

  const std::unique_ptr<TokenStore> store_;
  const std::function<absl::Time()> now_;
  const size_t tokens_max_;

  mutable std::mutex mutex_;
  // By name.
  std::map<std::string, store::TokenRecord, std::less<>> records_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster::coordinator
