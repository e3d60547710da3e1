#pragma once

#include "coordinator/services/call.h"
#include "ringmaster/v1/token_service.grpc.pb.h"

namespace ringmaster::coordinator {

// TokenService: answers come from the token book, not from the core.
class TokenService : public v1::TokenService::CallbackService {
 public:
  explicit TokenService(const ServiceContext& services) : services_(services) {}

  grpc::ServerUnaryReactor* CreateToken(grpc::CallbackServerContext* context,
                                        const v1::CreateTokenRequest* request,
                                        v1::CreateTokenResponse* response) override;
  grpc::ServerUnaryReactor* ListTokens(grpc::CallbackServerContext* context,
                                       const v1::ListTokensRequest* request,
                                       v1::ListTokensResponse* response) override;
  grpc::ServerUnaryReactor* RevokeToken(grpc::CallbackServerContext* context,
                                        const v1::RevokeTokenRequest* request,
                                        v1::Token* response) override;

 private:
  const ServiceContext services_;
};

}  // namespace ringmaster::coordinator
