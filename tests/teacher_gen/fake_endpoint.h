// An OpenAI-compatible endpoint that misbehaves as it is told.
#pragma once

#include <httplib.h>

#include <atomic>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

namespace retort {

class FakeEndpoint {
 public:
  using Handler = std::function<void(const nlohmann::json& request, int number, httplib::Response& response)>;

  // `handler` gets each request, numbered from 1 in the order of arrival.
  explicit FakeEndpoint(Handler handler) : handler_(std::move(handler)) {
    server_.new_task_queue = [] { return new httplib::ThreadPool(32); };
    server_.Post("/v1/chat/completions", [this](const httplib::Request& request, httplib::Response& response) {
      authorization_ = request.get_header_value("Authorization");
      handler_(nlohmann::json::parse(request.body), ++requests_, response);
    });
    port_ = server_.bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    // Bound already: requests wait until it listens.
    while (!server_.is_running()) std::this_thread::yield();
  }
  ~FakeEndpoint() {
    server_.stop();
    thread_.join();
  }

  std::string base_url() const { return "http://127.0.0.1:" + std::to_string(port_) + "/v1"; }
  int requests() const { return requests_; }
  std::string authorization() const { return authorization_; }

  static void Answer(httplib::Response& response, const std::string& content,
                     const nlohmann::json& extra = nlohmann::json::object(), const char* finish_reason = "stop") {
    nlohmann::json message = {{"role", "assistant"}, {"content", content}};
    message.update(extra);
    const nlohmann::json body = {{"choices", {{{"index", 0}, {"message", message}, {"finish_reason", finish_reason}}}},
                                 {"usage", {{"prompt_tokens", 7}, {"completion_tokens", 5}}}};
    response.set_content(body.dump(), "application/json");
  }
  static void Fail(httplib::Response& response, int status, const std::string& message) {
    response.status = status;
    response.set_content(nlohmann::json{{"error", {{"message", message}}}}.dump(), "application/json");
  }
  // Promises `promised` bytes, sends `sent` and hangs up.
  static void BreakOff(httplib::Response& response, size_t promised, const std::string& sent) {
    response.set_content_provider(promised, "application/json", [sent](size_t offset, size_t, httplib::DataSink& sink) {
      if (offset > 0 || sent.empty()) return false;
      return sink.write(sent.data(), sent.size());
    });
  }

 private:
  const Handler handler_;
  httplib::Server server_;
  int port_ = 0;
  std::thread thread_;
  std::atomic<int> requests_{0};
  std::string authorization_;
};

}  // namespace retort
