#include "coordinator/services/token_service.h"

#include <utility>

namespace ringmaster::coordinator {
namespace {

// Runs `answer(request)`, an absl::StatusOr<Response>, on the thread that may change tokens.
template <typename Request, typename Response, typename Answer>
grpc::ServerUnaryReactor* Ask(const ServiceContext& services, const char* name,
                              grpc::CallbackServerContext* context, const Request* request,
                              Response* response, Answer answer) {
  const Method method = {.service = "TokenService", .name = name};
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  std::optional<CallRecord> call = BeginUnary(services, method, context, *request, reactor);
  if (!call.has_value()) return reactor;
  services.access->Post([=, call = *std::move(call)]() mutable {
    absl::StatusOr<Response> made = answer(*services.access, *request);
    if (made.ok()) *response = *std::move(made);
    if constexpr (requires { response->token(); }) call.resource = response->token().name();
    EndUnary(services, call, made.status());
    reactor->Finish(ToGrpc(made.status()));
  });
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* TokenService::CreateToken(grpc::CallbackServerContext* context,
                                                    const v1::CreateTokenRequest* request,
                                                    v1::CreateTokenResponse* response) {
  return Ask(
      services_, "CreateToken", context, request, response,
      [](Access& access, const v1::CreateTokenRequest& asked) { return access.Make(asked); });
}

grpc::ServerUnaryReactor* TokenService::ListTokens(grpc::CallbackServerContext* context,
                                                   const v1::ListTokensRequest* request,
                                                   v1::ListTokensResponse* response) {
  return Ask(
      services_, "ListTokens", context, request, response,
      [](Access& access, const v1::ListTokensRequest&) -> absl::StatusOr<v1::ListTokensResponse> {
        return access.book().List();
      });
}

grpc::ServerUnaryReactor* TokenService::RevokeToken(grpc::CallbackServerContext* context,
                                                    const v1::RevokeTokenRequest* request,
                                                    v1::Token* response) {
  return Ask(services_, "RevokeToken", context, request, response,
             [](Access& access, const v1::RevokeTokenRequest& asked) {
               absl::StatusOr<v1::Token> revoked = access.book().Revoke(asked.name());
               if (revoked.ok()) access.EndDead();
               return revoked;
             });
}

}  // namespace ringmaster::coordinator
