#include "coordinator/services/server.h"

#include <algorithm>
#include <cstdlib>
#include <future>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/absolute_path.h"
#include "base/http/http_endpoint.h"
#include "base/loopback.h"
#include "base/status_macros.h"
#include "base/steady_now.h"
#include "base/version.h"
#include "coordinator/services/credentials.h"
#include "coordinator/services/http_service.h"
#include "coordinator/services/job_service.h"
#include "coordinator/services/small_services.h"
#include "coordinator/services/token_service.h"
#include "coordinator/store/sqlite_store.h"
#include "coordinator/store/sqlite_token_store.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "spdlog/spdlog.h"

namespace ringmaster::coordinator {
namespace {

// Of a request; replies stay below the 4 MiB that clients accept by default (see core/pages.h).
constexpr int kMessageBytesMax = 2 << 20;
constexpr int kDiskThreads = 4;
// How long calls may go on after the core has drained.
constexpr absl::Duration kShutdownGrace = absl::Milliseconds(500);

void DieWithoutStore(const absl::Status& status) {
  SPDLOG_CRITICAL("the store failed and nothing more may be promised, the process ends: {}",
                  status.ToString());
  spdlog::shutdown();
  std::_Exit(EXIT_FAILURE);
}

void SetChannelArguments(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(kMessageBytesMax);
  // Workers and watchers ping; without this gRPC would allow one ping in five minutes and answer
  // the third with too_many_pings, which closes the connection.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Finds watchers whose host is gone. Workers have leases.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  // A second coordinator at the same port is an error, not a partner.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
}

class CoordinatorServer : public Server {
 public:
  explicit CoordinatorServer(const ServerOptions& options) : options_(options) {}

  ~CoordinatorServer() override {
    http_.reset();
    if (grpc_ != nullptr) grpc_->Shutdown(absl::ToChronoTime(absl::Now()));
  }

  absl::Status Begin();
  const std::string& address() const override { return address_; }
  const std::string& http_address() const override { return http_address_; }
  void Drain() override;

 private:
  absl::Status BeginStoreAndLoop();
  absl::Status BeginAccess();
  // The first administrator's token, when there is none in force.
  void WriteAdminToken();
  absl::Status BeginGrpc();
  absl::Status BeginHttp();
  absl::Status WriteAddresses() const;

  const ServerOptions options_;
  std::string address_;
  std::string http_address_;

  // In the order of use: what is below is gone first.
  Metrics metrics_;
  std::shared_ptr<DataDirectory> directory_;
  std::unique_ptr<SqliteStore> store_;
  std::unique_ptr<AuditLog> audit_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<Access> access_;
  std::unique_ptr<DiskThreads> disk_;
  std::unique_ptr<DiskThreads> estimates_;
  std::unique_ptr<JobService> jobs_;
  std::unique_ptr<ClusterService> cluster_;
  std::unique_ptr<CheckpointService> checkpoints_;
  std::unique_ptr<QueueService> queues_;
  std::unique_ptr<WorkerService> workers_;
  std::unique_ptr<TokenService> tokens_;
  std::unique_ptr<grpc::Server> grpc_;
  std::unique_ptr<HttpService> pages_;
  std::unique_ptr<HttpEndpoint> http_;
};

absl::Status CoordinatorServer::Begin() {
  RETURN_IF_ERROR(CheckListenAddress("--listen", options_.listen, options_.tls,
                                     options_.insecure_i_understand));
  if (!options_.http_listen.empty()) {
    RETURN_IF_ERROR(CheckListenAddress("--http-listen", options_.http_listen, options_.tls,
                                       options_.insecure_i_understand));
  }
  metrics_.Set(Metric::kBuildInfo, 1, {Version(), Commit()});
  RETURN_IF_ERROR(BeginStoreAndLoop());
  RETURN_IF_ERROR(BeginAccess());
  RETURN_IF_ERROR(BeginGrpc());
  if (!options_.http_listen.empty()) RETURN_IF_ERROR(BeginHttp());
  return WriteAddresses();
}

absl::Status CoordinatorServer::BeginStoreAndLoop() {
  ASSIGN_OR_RETURN(directory_, DataDirectory::Open(options_.data_directory));
  ASSIGN_OR_RETURN(store_, SqliteStore::Open({.directory = directory_}));
  ASSIGN_OR_RETURN(const StoredState stored, store_->Load());
  CoreOptions core_options = options_.core;
  // Workers have working directories of their own.
  ASSIGN_OR_RETURN(core_options.shared_directory,
                   AbsolutePath(options_.shared_directory.empty() ? directory_->File("jobs")
                                                                  : options_.shared_directory));
  EventLoopOptions loop_options = {.now = options_.now ? options_.now : SteadyNow,
                                   .on_fatal = DieWithoutStore};
  std::random_device entropy;
  const uint64_t seed = (static_cast<uint64_t>(entropy()) << 32) | entropy();
  ASSIGN_OR_RETURN(auto core,
                   Core::Create(core_options, stored, store_->epoch(), loop_options.now(), seed));
  SPDLOG_INFO("epoch {}, {} stored records, data directory {}", store_->epoch(), stored.rows.size(),
              options_.data_directory);
  audit_ = std::make_unique<AuditLog>(directory_->File("audit"), loop_options.now);
  loop_ = std::make_unique<EventLoop>(std::move(core), store_.get(), &metrics_, loop_options);
  loop_->Start();
  return absl::OkStatus();
}

absl::Status CoordinatorServer::BeginAccess() {
  ASSIGN_OR_RETURN(const bool required, TokensRequired(options_));
  // A steady clock stands still while the machine is suspended, the wall clock may be set back:
  // tokens live no longer than by either.
  const auto now = [loop = loop_.get()] { return std::max(loop->Now(), absl::Now()); };
  ASSIGN_OR_RETURN(auto store, SqliteTokenStore::Open(*store_));
  ASSIGN_OR_RETURN(auto book, TokenBook::Open(std::move(store), now));
  access_ = std::make_unique<Access>(required, std::move(book), now);
  if (required && !access_->book().HasAdmin()) WriteAdminToken();
  return absl::OkStatus();
}

void CoordinatorServer::WriteAdminToken() {
  v1::CreateTokenRequest request;
  request.set_display_name("first administrator");
  request.set_scope(v1::Token::ADMIN);
  const std::string path = directory_->File("admin-token");
  // The text is on the disk before the token is: one whose text is lost would keep everybody out,
  // whereas a text without a token is replaced by the next start.
  const absl::StatusOr<v1::CreateTokenResponse> made =
      access_->book().Create(request, [&](const std::string& text) {
        RETURN_IF_ERROR(WriteFileAtomically(path, text + "\n", 0600));
        return directory_->Sync();
      });
  if (made.ok()) {
    SPDLOG_INFO("no administrator has a token: {} is in {}", made->token().name(), path);
    return;
  }
  // A coordinator that does not start helps nobody, and those who have tokens may go on.
  SPDLOG_ERROR("no administrator has a token, and none could be made: {}",
               made.status().ToString());
}

absl::Status CoordinatorServer::BeginGrpc() {
  disk_ = std::make_unique<DiskThreads>(kDiskThreads);
  estimates_ = std::make_unique<DiskThreads>(1);
  const ServiceContext services = {.loop = loop_.get(),
                                   .metrics = &metrics_,
                                   .access = access_.get(),
                                   .audit = audit_.get(),
                                   .disk = disk_.get(),
                                   .estimates = estimates_.get(),
                                   .watch_buffer = options_.watch_buffer};
  jobs_ = std::make_unique<JobService>(services);
  cluster_ = std::make_unique<ClusterService>(services);
  checkpoints_ = std::make_unique<CheckpointService>(services);
  queues_ = std::make_unique<QueueService>(services);
  workers_ = std::make_unique<WorkerService>(services);
  tokens_ = std::make_unique<TokenService>(services);
  ASSIGN_OR_RETURN(const bool tokens_required, TokensRequired(options_));
  pages_ = std::make_unique<HttpService>(
      services, /*local_names_only=*/!tokens_required && IsLoopback(options_.http_listen));

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  SetChannelArguments(builder);
  ASSIGN_OR_RETURN(auto credentials, ServerCredentials(options_.tls));
  int port = 0;
  builder.AddListeningPort(options_.listen, credentials, &port);
  builder.RegisterService(jobs_.get());
  builder.RegisterService(cluster_.get());
  builder.RegisterService(checkpoints_.get());
  builder.RegisterService(queues_.get());
  builder.RegisterService(workers_.get());
  builder.RegisterService(tokens_.get());
  grpc_ = builder.BuildAndStart();
  if (grpc_ == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen at ", options_.listen, ": the port is taken, or not ours"));
  }
  address_ = absl::StrCat(options_.listen.substr(0, options_.listen.rfind(':')), ":", port);
  return absl::OkStatus();
}

absl::Status CoordinatorServer::BeginHttp() {
  std::unique_ptr<ServerTls> tls;
  if (!options_.tls.certificate.empty()) {
    ASSIGN_OR_RETURN(tls, ServerTls::Load(options_.tls.certificate, options_.tls.key));
  }
  ASSIGN_OR_RETURN(
      http_,
      HttpEndpoint::Start(
          options_.http_listen,
          [this](const HttpRequest& request) { return pages_->Answer(request); }, std::move(tls)));
  http_address_ = http_->address();
  return absl::OkStatus();
}

absl::Status CoordinatorServer::WriteAddresses() const {
  const std::string text =
      absl::StrCat(address_, "\n", http_address_, http_address_.empty() ? "" : "\n");
  const std::string own = directory_->File("address");
  absl::Status written = WriteFileAtomically(own, text);
  if (absl::IsResourceExhausted(written) && store_->ReleaseReserve()) {
    written = WriteFileAtomically(own, text);
  }
  RETURN_IF_ERROR(written);
  if (options_.address_file.empty()) return absl::OkStatus();
  return WriteFileAtomically(options_.address_file, text);
}

void CoordinatorServer::Drain() {
  pages_->Drain();
  grpc_->GetHealthCheckService()->SetServingStatus(false);
  std::promise<void> drained;
  loop_->Drain([&drained] { drained.set_value(); });
  drained.get_future().wait();
  grpc_->Shutdown(absl::ToChronoTime(absl::Now() + kShutdownGrace));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options) {
  auto server = std::make_unique<CoordinatorServer>(options);
  RETURN_IF_ERROR(server->Begin());
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace ringmaster::coordinator
