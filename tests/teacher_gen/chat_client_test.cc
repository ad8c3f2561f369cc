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

ChatRequest Request() { return {R"([{"role":"user","content":"2+2?"}])", 0.6, 0.95, 100, 42}; }

// Against an endpoint that streams, and one that does not.
class ChatClientTest : public ::testing::TestWithParam<bool> {
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
  std::vector<absl::Duration> waits_;
};

INSTANTIATE_TEST_SUITE_P(Forms, ChatClientTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Stream" : "Document"; });

TEST_P(ChatClientTest, SendsWhatIsAskedAndReadsTheReply) {
  nlohmann::json seen;
  FakeEndpoint endpoint(
      [&](const nlohmann::json& request, int, httplib::Response& response) {
        seen = request;
        FakeEndpoint::Answer(response, "4", {{"reasoning_content", "two and two"}}, "length");
      },
      GetParam());
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
  EXPECT_EQ(seen["stream"], true);
}

TEST_P(ChatClientTest, DoesWithoutUsageWhereTheServerRefusesToTellIt) {
  FakeEndpoint endpoint(
      [&](const nlohmann::json& request, int, httplib::Response& response) {
        if (request.contains("stream_options"))
          return FakeEndpoint::Fail(response, 400, "Unrecognized request argument supplied: stream_options");
        FakeEndpoint::Answer(response, "4");
      },
      GetParam());
  ChatClient client(Options(endpoint));
  for (int i = 0; i < 2; ++i) {
    const auto reply = client.Complete(Request());
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->text, "4");
    EXPECT_EQ(reply->attempts, 1);
  }
  EXPECT_THAT(waits_, SizeIs(0));
  EXPECT_EQ(endpoint.requests(), 3);
}

TEST_P(ChatClientTest, KeepsTheOrderOfAMessagesKeys) {
  FakeEndpoint endpoint(
      [&](const nlohmann::json&, int, httplib::Response& response) { FakeEndpoint::Answer(response, "4"); },
      GetParam());
  ChatClient client(Options(endpoint));
  ASSERT_TRUE(client.Complete(Request()).ok());
  EXPECT_THAT(endpoint.last_body(), HasSubstr(R"("messages":[{"role":"user","content":"2+2?"}])"));
}

TEST_P(ChatClientTest, AFirstTokenIsEnoughWhereNoMoreIsWanted) {
  FakeEndpoint endpoint(
      [&](const nlohmann::json&, int, httplib::Response& response) {
        if (!GetParam()) return FakeEndpoint::Answer(response, "a long story");
        std::vector<std::string> pieces = {FakeEndpoint::Event({{"content", ""}}),
                                           FakeEndpoint::Event({{"content", "a"}})};
        for (int i = 0; i < 100; ++i) pieces.push_back(FakeEndpoint::Event({{"content", " long"}}));
        FakeEndpoint::Send(response, pieces, true, std::chrono::milliseconds(20));
      },
      GetParam());
  ChatRequest request = Request();
  request.first_token_only = true;
  ChatClient client(Options(endpoint));
  const auto reply = client.Complete(request);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text, GetParam() ? "a" : "a long story");
}

TEST_P(ChatClientTest, TriesAgainAfterEachPassingFailure) {
  FakeEndpoint endpoint(
      [&](const nlohmann::json&, int number, httplib::Response& response) {
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
      },
      GetParam());
  ChatClient client(Options(endpoint));
  const auto reply = client.Complete(Request());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text, "fine");
  EXPECT_EQ(reply->attempts, 7);
  // Half way between half and whole of 0.5 s, doubled each time.
  EXPECT_THAT(waits_, ElementsAre(absl::Milliseconds(375), absl::Milliseconds(750), absl::Milliseconds(1500),
                                  absl::Seconds(3), absl::Seconds(6), absl::Seconds(12)));
}

TEST_P(ChatClientTest, WaitsAsLongAsTheServerAsks) {
  FakeEndpoint endpoint(
      [&](const nlohmann::json&, int number, httplib::Response& response) {
        if (number > 2) return FakeEndpoint::Answer(response, "at last");
        response.set_header("Retry-After", number == 1 ? "17" : "100000");
        FakeEndpoint::Fail(response, 429, "slow down");
      },
      GetParam());
  ChatClient client(Options(endpoint));
  ASSERT_TRUE(client.Complete(Request()).ok());
  EXPECT_THAT(waits_, ElementsAre(absl::Seconds(17), absl::Minutes(5)));
}

TEST_P(ChatClientTest, GivesUpWithTheCause) {
  FakeEndpoint endpoint([&](const nlohmann::json&, int,
                            httplib::Response& response) { FakeEndpoint::Fail(response, 502, "no upstream"); },
                        GetParam());
  ChatClientOptions options = Options(endpoint);
  options.max_attempts = 3;
  ChatClient client(options);
  const absl::Status status = client.Complete(Request()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(std::string(status.message()), "gave up after 3 attempts; the last: HTTP 502: no upstream");
  EXPECT_EQ(endpoint.requests(), 3);
}

TEST_P(ChatClientTest, TimesOutAndTriesAgain) {
  FakeEndpoint endpoint(
      [&](const nlohmann::json&, int number, httplib::Response& response) {
        if (number == 1) std::this_thread::sleep_for(std::chrono::milliseconds(300));
        FakeEndpoint::Answer(response, number == 1 ? "too late" : "in time");
      },
      GetParam());
  ChatClientOptions options = Options(endpoint);
  options.timeout = absl::Milliseconds(150);
  ChatClient client(options);
  const auto reply = client.Complete(Request());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text, "in time");
  EXPECT_THAT(waits_, SizeIs(1));
}

TEST_P(ChatClientTest, DoesNotRepeatWhatIsRefusedForGood) {
  for (const int http_status : {400, 401, 403, 404, 422}) {
    FakeEndpoint endpoint(
        [&](const nlohmann::json&, int, httplib::Response& response) {
          FakeEndpoint::Fail(response, http_status, "no such model: teacher");
        },
        GetParam());
    ChatClient client(Options(endpoint));
    const absl::Status status = client.Complete(Request()).status();
    const bool of_this_request = http_status == 400 || http_status == 422;
    EXPECT_EQ(status.code(),
              of_this_request ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("no such model: teacher"));
    EXPECT_EQ(endpoint.requests(), 1);
  }
}

TEST_P(ChatClientTest, TellsAPromptThatIsTooLongFromABadRequest) {
  FakeEndpoint endpoint(
      [&](const nlohmann::json&, int, httplib::Response& response) {
        FakeEndpoint::Fail(response, 400, "This model's maximum context length is 4096 tokens.");
      },
      GetParam());
  ChatClient client(Options(endpoint));
  EXPECT_EQ(client.Complete(Request()).status().code(), absl::StatusCode::kOutOfRange);
}

TEST_P(ChatClientTest, BoundsTheReply) {
  FakeEndpoint endpoint([&](const nlohmann::json&, int,
                            httplib::Response& response) { FakeEndpoint::Answer(response, std::string(100'000, 'x')); },
                        GetParam());
  ChatClientOptions options = Options(endpoint);
  options.max_reply_bytes = 50'000;
  options.max_attempts = 2;
  ChatClient client(options);
  EXPECT_THAT(std::string(client.Complete(Request()).status().message()), HasSubstr("more than 50000 bytes"));
}

TEST(ChatStream, BrokenOffIsNoAnswer) {
  const std::vector<std::string> half = {FakeEndpoint::Event({{"content", "the answer is 1"}})};
  FakeEndpoint endpoint([&](const nlohmann::json&, int number, httplib::Response& response) {
    switch (number) {
      case 1:  // the connection breaks
        return FakeEndpoint::Send(response, half, true);
      case 2:  // it ends well, but nothing says that the answer does
        return FakeEndpoint::Send(response, half, false);
      case 3:
        return FakeEndpoint::Send(response, {half[0], "data: [DONE]\n\n"}, false);
      case 4:  // in the middle of an event
        return FakeEndpoint::Send(response, {half[0], "data: {\"choices\": [{\"finish_rea"}, false);
      case 5:
        return FakeEndpoint::Send(response, {half[0], "data: not JSON\n\n", FakeEndpoint::Event({}, "stop")}, false);
      case 6:
        return FakeEndpoint::Send(
            response, {half[0], "data: {\"error\": {\"message\": \"engine died\"}}\n\n", "data: [DONE]\n\n"}, false);
      case 7:
        return FakeEndpoint::Send(response, {half[0], FakeEndpoint::Event({}, "abort"), "data: [DONE]\n\n"}, false);
      default:
        return FakeEndpoint::Answer(response, "the answer is 17");
    }
  });
  ChatClientOptions options;
  options.base_url = endpoint.base_url();
  options.sleep = [](absl::Duration) {};
  options.max_attempts = 20;
  ChatClient client(options);
  const auto reply = client.Complete(Request());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text, "the answer is 17");
  EXPECT_EQ(reply->attempts, 8);
}

// llama-cpp-python's server ends a stream when another request comes; plain requests wait for one another there.
TEST(ChatStream, WhereStreamsBreakOffAPlainReplyIsAskedFor) {
  std::vector<bool> streamed;
  FakeEndpoint endpoint([&](const nlohmann::json& request, int, httplib::Response& response) {
    streamed.push_back(request["stream"]);
    EXPECT_EQ(request.contains("stream_options"), streamed.back());
    if (streamed.back()) return FakeEndpoint::Send(response, {FakeEndpoint::Event({{"content", "the ans"}})}, true);
    FakeEndpoint::Answer(response, "the answer is 17");
  });
  ChatClientOptions options;
  options.base_url = endpoint.base_url();
  options.sleep = [](absl::Duration) {};
  options.max_attempts = 2;
  ChatClient client(options);
  for (const int attempts : {2, 1, 1}) {
    const auto reply = client.Complete(Request());
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->text, "the answer is 17");
    EXPECT_EQ(reply->attempts, attempts);
  }
  EXPECT_THAT(streamed, ElementsAre(true, false, false, false));
}

TEST(ChatStream, WholeBeforeTheConnectionBreaksIsAnAnswer) {
  FakeEndpoint endpoint([&](const nlohmann::json&, int, httplib::Response& response) {
    FakeEndpoint::Send(response, {FakeEndpoint::Event({{"content", "4"}}), FakeEndpoint::Event({}, "stop")}, true);
  });
  ChatClientOptions options;
  options.base_url = endpoint.base_url();
  options.max_attempts = 1;
  ChatClient client(options);
  const auto reply = client.Complete(Request());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text, "4");
}

TEST(ChatStream, TheTimeOutIsOneOfSilence) {
  std::vector<std::string> slow;
  for (int i = 0; i < 12; ++i) slow.push_back(FakeEndpoint::Event({{"content", "x"}}));
  slow.push_back(FakeEndpoint::Event({}, "stop"));
  FakeEndpoint endpoint([&](const nlohmann::json&, int number, httplib::Response& response) {
    // The first falls silent in the middle.
    FakeEndpoint::Send(response, number == 1 ? std::vector<std::string>{slow[0], slow[1]} : slow, false,
                       std::chrono::milliseconds(number == 1 ? 400 : 50));
  });
  ChatClientOptions options;
  options.base_url = endpoint.base_url();
  options.timeout = absl::Milliseconds(250);
  options.sleep = [](absl::Duration) {};
  options.max_attempts = 2;
  ChatClient client(options);
  const auto reply = client.Complete(Request());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text, std::string(12, 'x'));
  EXPECT_EQ(reply->attempts, 2);
}

TEST(ChatReplyReader, BoundsAStreamThatSaysNothing) {
  ChatReplyReader reader(1000, false);
  int taken = 0;
  while (taken < 10'000 && reader.Append(": ping\n\n")) ++taken;
  EXPECT_GT(taken, 1'000);
  EXPECT_LT(taken, 3'000);
  EXPECT_FALSE(reader.whole());
  EXPECT_TRUE(reader.Judge(200).retry);
}

TEST(ChatReplyReader, TakesBytesHoweverTheyAreCut) {
  const std::string stream =
      ": hello\r\n\r\nevent: message\ndata: {\"choices\":\ndata: [{\"delta\": {\"content\": \"h\u00e9\"}}]}\n\n" +
      FakeEndpoint::Event({{"reasoning", "r"}, {"reasoning_content", "r"}}, "stop") +
      "data: {\"choices\": [], \"usage\": {\"completion_tokens\": 3}}";
  for (size_t length = 1; length <= stream.size(); ++length) {
    ChatReplyReader reader(10'000, false);
    for (size_t at = 0; at < stream.size(); at += length) ASSERT_TRUE(reader.Append(stream.substr(at, length)));
    const JudgedReply judged = reader.Judge(200);
    ASSERT_TRUE(judged.reply.ok()) << length << judged.reply.status();
    EXPECT_EQ(judged.reply->text, "h\u00e9");
    EXPECT_EQ(judged.reply->reasoning, "r");
    EXPECT_EQ(judged.reply->completion_tokens, 3);
  }
}

TEST(ChatClient, SaysThatNobodyListens) {
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
