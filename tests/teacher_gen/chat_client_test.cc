#include "teacher_gen/chat_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "tests/teacher_gen/fake_endpoint.h"

namespace retort {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

class ChatClientTest : public ::testing::Test {
 protected:
  ChatClientOptions Options(const FakeEndpoint& endpoint) {
    ChatClientOptions options;
    options.base_url = endpoint.base_url() + "/";
    options.model = "teacher";
    options.timeout = absl::Seconds(5);
    options.sleep = [this](absl::Duration wait) { waits_.push_back(wait); };
    options.random = [] { return 0.5; };
    return options;
  }
  static ChatRequest Request() { return {R"([{"role":"user","content":"2+2?"}])", 0.6, 0.95, 100, 42}; }

  std::vector<absl::Duration> waits_;
};

TEST_F(ChatClientTest, SendsWhatIsAskedAndReadsTheReply) {
  nlohmann::json seen;
  FakeEndpoint endpoint([&](const nlohmann::json& request, int, httplib::Response& response) {
    seen = request;
    FakeEndpoint::Answer(response, "4", {{"reasoning_content", "two and two"}}, "length");
  });
  ChatClientOptions options = Options(endpoint);
  options.api_key = "secret";
  ChatClient client(options);
  const auto reply = client.Complete(Request());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text, "4");
  EXPECT_EQ(reply->reasoning, "two and two");
  EXPECT_EQ(reply->finish_reason, "length");
  EXPECT_EQ(reply->prompt_tokens, 7);
  EXPECT_EQ(reply->completion_tokens, 5);
  EXPECT_EQ(endpoint.authorization(), "Bearer secret");
  EXPECT_EQ(seen["model"], "teacher");
  EXPECT_EQ(seen["messages"][0]["content"], "2+2?");
  EXPECT_EQ(seen["temperature"], 0.6);
  EXPECT_EQ(seen["top_p"], 0.95);
  EXPECT_EQ(seen["max_tokens"], 100);
  EXPECT_EQ(seen["seed"], 42);
  EXPECT_EQ(seen["n"], 1);
}

TEST_F(ChatClientTest, TriesAgainAfterEachPassingFailure) {
  FakeEndpoint endpoint([&](const nlohmann::json&, int number, httplib::Response& response) {
    switch (number) {
      case 1:
        return FakeEndpoint::Fail(response, 500, "oops");
      case 2:
        return FakeEndpoint::BreakOff(response, 1000, R"({"choices": [{"mess)");
      case 3:
        return FakeEndpoint::BreakOff(response, 1000, "");
      case 4:
        return response.set_content(R"({"choices": [{"message": )", "application/json");
      case 5:
        return response.set_content(R"({"choices": []})", "application/json");
      case 6:
        return FakeEndpoint::Fail(response, 503, "busy");
      default:
        return FakeEndpoint::Answer(response, "fine");
    }
  });
  ChatClient client(Options(endpoint));
  const auto reply = client.Complete(Request());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text, "fine");
  EXPECT_EQ(reply->attempts, 7);
  // Half way between half and whole of 0.5 s, doubled each time.
  EXPECT_THAT(waits_, ElementsAre(absl::Milliseconds(375), absl::Milliseconds(750), absl::Milliseconds(1500),
                                  absl::Seconds(3), absl::Seconds(6), absl::Seconds(12)));
}

TEST_F(ChatClientTest, WaitsAsLongAsTheServerAsks) {
  FakeEndpoint endpoint([&](const nlohmann::json&, int number, httplib::Response& response) {
    if (number > 2) return FakeEndpoint::Answer(response, "at last");
    response.set_header("Retry-After", number == 1 ? "17" : "100000");
    FakeEndpoint::Fail(response, 429, "slow down");
  });
  ChatClient client(Options(endpoint));
  ASSERT_TRUE(client.Complete(Request()).ok());
  EXPECT_THAT(waits_, ElementsAre(absl::Seconds(17), absl::Minutes(5)));
}

TEST_F(ChatClientTest, GivesUpWithTheCause) {
  FakeEndpoint endpoint([&](const nlohmann::json&, int, httplib::Response& response) {
    FakeEndpoint::Fail(response, 502, "no upstream");
  });
  ChatClientOptions options = Options(endpoint);
  options.max_attempts = 3;
  ChatClient client(options);
  const absl::Status status = client.Complete(Request()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(std::string(status.message()), "gave up after 3 attempts; the last: HTTP 502: no upstream");
  EXPECT_EQ(endpoint.requests(), 3);
}

TEST_F(ChatClientTest, TimesOutAndTriesAgain) {
  FakeEndpoint endpoint([&](const nlohmann::json&, int number, httplib::Response& response) {
    if (number == 1) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    FakeEndpoint::Answer(response, number == 1 ? "too late" : "in time");
  });
  ChatClientOptions options = Options(endpoint);
  options.timeout = absl::Milliseconds(150);
  ChatClient client(options);
  const auto reply = client.Complete(Request());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text, "in time");
  EXPECT_THAT(waits_, SizeIs(1));
}

TEST_F(ChatClientTest, DoesNotRepeatWhatIsRefusedForGood) {
  for (const int http_status : {400, 401, 403, 404}) {
    FakeEndpoint endpoint([&](const nlohmann::json&, int, httplib::Response& response) {
      FakeEndpoint::Fail(response, http_status, "no such model: teacher");
    });
    ChatClient client(Options(endpoint));
    const absl::Status status = client.Complete(Request()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("no such model: teacher"));
    EXPECT_EQ(endpoint.requests(), 1);
  }
}

TEST_F(ChatClientTest, TellsAPromptThatIsTooLongFromABadRequest) {
  FakeEndpoint endpoint([&](const nlohmann::json&, int, httplib::Response& response) {
    FakeEndpoint::Fail(response, 400, "This model's maximum context length is 4096 tokens.");
  });
  ChatClient client(Options(endpoint));
  EXPECT_EQ(client.Complete(Request()).status().code(), absl::StatusCode::kOutOfRange);
}

TEST_F(ChatClientTest, BoundsTheReply) {
  FakeEndpoint endpoint([&](const nlohmann::json&, int, httplib::Response& response) {
    FakeEndpoint::Answer(response, std::string(100'000, 'x'));
  });
  ChatClientOptions options = Options(endpoint);
  options.max_reply_bytes = 50'000;
  options.max_attempts = 2;
  ChatClient client(options);
  EXPECT_THAT(std::string(client.Complete(Request()).status().message()), HasSubstr("more than 50000 bytes"));
}

TEST_F(ChatClientTest, SaysThatNobodyListens) {
  ChatClientOptions options;
  options.base_url = "http://127.0.0.1:1/v1";
  options.max_attempts = 2;
  options.sleep = [](absl::Duration) {};
  ChatClient client(options);
  const absl::Status status = client.Complete(Request()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("http://127.0.0.1:1/v1/chat/completions"));
}

TEST(ParseRetryAfter, TakesSecondsAndDates) {
  const absl::Time now = absl::FromUnixSeconds(1'700'000'000);  // Tue, 14 Nov 2023 22:13:20 GMT
  EXPECT_EQ(internal::ParseRetryAfter("3", now), absl::Seconds(3));
  EXPECT_EQ(internal::ParseRetryAfter("0.5", now), absl::Milliseconds(500));
  EXPECT_EQ(internal::ParseRetryAfter("Tue, 14 Nov 2023 22:13:50 GMT", now), absl::Seconds(30));
  EXPECT_EQ(internal::ParseRetryAfter("Tue, 14 Nov 2023 22:00:00 GMT", now), absl::ZeroDuration());
  for (const char* bad : {"", "soon", "-1", "nan"})
    EXPECT_LT(internal::ParseRetryAfter(bad, now), absl::ZeroDuration()) << bad;
}

}  // namespace
}  // namespace retort
