// An OpenAI-compatible endpoint that misbehaves as it is told.
#pragma once

#include <httplib.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

namespace retort {

class FakeEndpoint {
 public:
  using Handler = std::function<void(const nlohmann::json& request, int number, httplib::Response& response)>;

  // `handler` gets each request, numbered from 1 in the order of arrival. An endpoint that does not stream answers a
  // request for a stream with one document.
  explicit FakeEndpoint(Handler handler, bool streams = true) : handler_(std::move(handler)) {
    server_.new_task_queue = [] { return new httplib::ThreadPool(32); };
    server_.Post("/v1/chat/completions", [this, streams](const httplib::Request& request, httplib::Response& response) {
      authorization_ = request.get_header_value("Authorization");
      const nlohmann::json body = nlohmann::json::parse(request.body);
      {
        const std::lock_guard<std::mutex> lock(mu_);
        last_body_ = request.body;
      }
      handler_(body, ++requests_, response);
      if (streams && body.value("stream", false) && response.has_header(kAnswer)) Stream(body, response);
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
  std::string last_body() {
    const std::lock_guard<std::mutex> lock(mu_);
    return last_body_;
  }

  static void Answer(httplib::Response& response, const std::string& content,
                     const nlohmann::json& extra = nlohmann::json::object(), const char* finish_reason = "stop") {
    nlohmann::json message = {{"role", "assistant"}, {"content", content}};
    message.update(extra);
    const nlohmann::json body = {{"choices", {{{"index", 0}, {"message", message}, {"finish_reason", finish_reason}}}},
                                 {"usage", {{"prompt_tokens", 7}, {"completion_tokens", 5}}}};
    response.set_content(body.dump(), "application/json");
    response.set_header(kAnswer, "1");
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

  // Sends what stands in `pieces`, each after `pause`, and hangs up, or ends the stream as it should be.
  static void Send(httplib::Response& response, const std::vector<std::string>& pieces, bool hang_up,
                   std::chrono::milliseconds pause = std::chrono::milliseconds(0)) {
    response.set_chunked_content_provider("text/event-stream", [=](size_t, httplib::DataSink& sink) {
      for (const std::string& piece : pieces) {
        std::this_thread::sleep_for(pause);
        if (!sink.write(piece.data(), piece.size())) return false;
      }
      if (hang_up) return false;
      sink.done();
      return true;
    });
  }
  static std::string Event(const nlohmann::json& delta, const nlohmann::json& finish_reason = nullptr) {
    const nlohmann::json event = {{"choices", {{{"index", 0}, {"delta", delta}, {"finish_reason", finish_reason}}}}};
    return "data: " + event.dump() + "\n\n";
  }

 private:
  // An answer's body as a stream: a few characters an event, the usage only where it is asked for.
  static void Stream(const nlohmann::json& request, httplib::Response& response) {
    const nlohmann::json body = nlohmann::json::parse(response.body);
    const nlohmann::json& choice = body["choices"][0];
    std::vector<std::string> pieces = {Event({{"role", "assistant"}, {"content", ""}})};
    for (const char* field : {"reasoning_content", "reasoning", "content"}) {
      const std::string text = choice["message"].value(field, "");
      const size_t length = std::max<size_t>(3, text.size() / 100);
      for (size_t at = 0; at < text.size(); at += length) pieces.push_back(Event({{field, text.substr(at, length)}}));
    }
    pieces.push_back(Event(nlohmann::json::object(), choice["finish_reason"]));
    if (request.contains("stream_options"))
      pieces.push_back(
          "data: " + nlohmann::json{{"choices", nlohmann::json::array()}, {"usage", body["usage"]}}.dump() +
          "\r\n\r\n");
    pieces.push_back(": an endpoint may say anything here\n\ndata: [DONE]\n\n");
    response.body.clear();
    response.headers.erase("Content-Type");
    Send(response, pieces, false);
  }

  static constexpr const char* kAnswer = "X-Fake-Answer";
  const Handler handler_;
  httplib::Server server_;
  int port_ = 0;
  std::thread thread_;
  std::atomic<int> requests_{0};
  std::string authorization_;
  std::mutex mu_;
  std::string last_body_;
};

}  // namespace retort
