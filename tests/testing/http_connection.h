#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "absl/strings/numbers.h"
#include "gtest/gtest.h"

namespace ringmaster {

// A client's connection to "IPV4:PORT" that says exactly what it is told to.
class HttpConnection {
 public:
  // `from`: the client's own address, of loopback. `read_bytes`: what the kernel takes in for it
  // before it reads; 0 for as much as usual.
  explicit HttpConnection(const std::string& address, const std::string& from = "127.0.0.1",
                          int read_bytes = 0)
      : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    if (read_bytes > 0) {
      setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &read_bytes, sizeof(read_bytes));
    }
    sockaddr_in own = {};
    own.sin_family = AF_INET;
    inet_pton(AF_INET, from.c_str(), &own.sin_addr);
    EXPECT_EQ(bind(socket_, reinterpret_cast<sockaddr*>(&own), sizeof(own)), 0);
    const size_t colon = address.rfind(':');
    int port = 0;
    EXPECT_TRUE(absl::SimpleAtoi(address.substr(colon + 1), &port));
    sockaddr_in target = {};
    target.sin_family = AF_INET;
    target.sin_port = htons(static_cast<uint16_t>(port));
    inet_pton(AF_INET, address.substr(0, colon).c_str(), &target.sin_addr);
    EXPECT_EQ(connect(socket_, reinterpret_cast<sockaddr*>(&target), sizeof(target)), 0);
  }
  ~HttpConnection() { close(socket_); }
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  void Write(const std::string& text) {
    EXPECT_EQ(send(socket_, text.data(), text.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(text.size()));
  }
  // Everything until the server closes.
  std::string Read() {
    std::string answer;
    char block[4096];
    for (ssize_t count; (count = read(socket_, block, sizeof(block))) > 0;)
      answer.append(block, count);
    return answer;
  }
  bool IsOpen() const {
    char byte = 0;
    return recv(socket_, &byte, 1, MSG_DONTWAIT | MSG_PEEK) < 0 && errno == EAGAIN;
  }
  // Whether the server says something, or closes, within `wait_ms`.
  bool HasNews(int wait_ms) const {
    pollfd news = {.fd = socket_, .events = POLLIN, .revents = 0};
    return poll(&news, 1, wait_ms) > 0;
  }
  int socket() const { return socket_; }

 private:
  const int socket_;
};

// The whole answer to a GET. `authorization`: the header's value, empty for none. `host`: by what
// name the client has found the server.
inline std::string HttpGet(const std::string& address, const std::string& path,
                           const std::string& authorization = "",
                           const std::string& host = "localhost") {
  HttpConnection connection(address);
  const std::string header =
      authorization.empty() ? "" : "Authorization: " + authorization + "\r\n";
  connection.Write("GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\n" + header +
                   "Connection: close\r\n\r\n");
  return connection.Read();
}

}  // namespace ringmaster
