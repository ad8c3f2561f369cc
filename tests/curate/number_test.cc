#include "curate/number.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace retort::curate {
namespace {

bool Same(const std::string& a, const std::string& b) {
  const auto left = Number::Parse(a);
  const auto right = Number::Parse(b);
  EXPECT_TRUE(left.has_value()) << a;
  EXPECT_TRUE(right.has_value()) << b;
  return left.has_value() && right.has_value() && *left == *right;
}

TEST(Number, ReadsTheSameNumberInManySpellings) {
  for (const std::string text : {"1000",
                                 "1,000",
                                 "1e3",
                                 "1000.0",
                                 "+1000",
                                 " 1000 ",
                                 "$1000$",
                                 "\\$1,000",
                                 "\\boxed{1000}",
                                 "1{,}000",
                                 "1\\,000",
                                 "10^3",
                                 "1 \\times 10^{3}",
                                 "1E+3",
                                 "2000/2",
                                 "\\frac{2000}{2}",
                                 "x = 1000",
                                 "1000.",
                                 "1000\\%",
                                 "1000 cm",
                                 "1000\\text{ cm}^2",
                                 "1000^\\circ",
                                 "**1000**",
                                 "\\text{1000}",
                                 "\\(1000\\)",
                                 "1000 square metres",
                                 "0.1e4",
                                 "1000€",
                                 "{1000}"}) {
    EXPECT_TRUE(Same(text, "1000")) << text;
  }
  for (const std::string text : {"-3/4", "-0.75", "-.75", "-\\frac{3}{4}", "-\\frac34", "-\\dfrac{6}{8}",
                                 "\xE2\x88\x92"
                                 "0.750",
                                 "-75e-2", "- 0.75"}) {
    EXPECT_TRUE(Same(text, "-0.75")) << text;
  }
  EXPECT_TRUE(Same("3\\frac{1}{2}", "3.5"));
  EXPECT_TRUE(Same("3 1/2", "7/2"));
  for (const std::string text :
       {"\\frac{-1}{2}", "\\frac{1}{-2}", "-\\frac{1}{2}", "-\\frac{-1}{-2}", "\\dfrac{ - 1 }{2}"}) {
    EXPECT_TRUE(Same(text, "-0.5")) << text;
  }
  EXPECT_TRUE(Same("\\frac{-1}{-2}", "1/2"));
  EXPECT_TRUE(Same("-\\frac{-1}{2}", "+\\frac{1}{+2}"));
  EXPECT_TRUE(Same("-$5", "-5"));
  EXPECT_TRUE(Same("-0", "0"));
}

TEST(Number, TellsDifferentNumbersApart) {
  EXPECT_FALSE(Same("0.1", "0.10000000000000000000000000001"));
  EXPECT_FALSE(Same("12345678901234567890", "12345678901234567891"));
  EXPECT_FALSE(Same("1/3", "0.3333333333333333"));
  EXPECT_FALSE(Same("50%", "0.5"));
  EXPECT_FALSE(Same("5", "-5"));
  EXPECT_FALSE(Same("1e3", "1e-3"));
}

TEST(Number, RefusesWhatIsNoNumber) {
  for (const std::string text : {"",
                                 " ",
                                 "x",
                                 "1,00",
                                 "1,0000",
                                 "1.2.3",
                                 "(1, 2)",
                                 "1, 2",
                                 "[0, 1)",
                                 "\\sqrt{2}",
                                 "2\\pi",
                                 "12 million",
                                 "5 or 6",
                                 "1/0",
                                 "\\frac{1}{0}",
                                 "--5",
                                 "-$-5",
                                 ".",
                                 "-",
                                 "1e",
                                 "1e99999",
                                 "e5",
                                 "0x10",
                                 "1/2/3",
                                 "\\frac{1}{x}",
                                 "\\frac{--1}{2}",
                                 "3\\frac{-1}{2}",
                                 "\\frac{1}{-0}",
                                 "two",
                                 "1 000 000 000 3",
                                 "∞",
                                 "nan",
                                 "inf"}) {
    EXPECT_FALSE(Number::Parse(text).has_value()) << text;
  }
  EXPECT_FALSE(Number::Parse(std::string(5000, '9')).has_value());
}

TEST(Number, AgreesWithIntegerArithmetic) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    const int a = static_cast<int>(random() % 200) - 100, b = static_cast<int>(random() % 99) + 1;
    const int c = static_cast<int>(random() % 200) - 100, d = static_cast<int>(random() % 99) + 1;
    const std::string left = std::to_string(a) + "/" + std::to_string(b);
    const std::string right =
        (c < 0 ? "-\\frac{" : "\\frac{") + std::to_string(std::abs(c)) + "}{" + std::to_string(d) + "}";
    EXPECT_EQ(Same(left, right), a * d == c * b) << left << " " << right;
  }
}

TEST(Number, FindsTheLastNumberInText) {
  const auto last = [](const std::string& text) { return FindLastNumber(text).value_or("none"); };
  EXPECT_EQ(last("First 12, then 7. The answer is 1,234.5."), "1,234.5");
  EXPECT_EQ(last("so the result is -42"), "-42");
  EXPECT_EQ(last("7-3"), "3");
  EXPECT_EQ(last("f(x)-3"), "3");
  EXPECT_EQ(last("it is 3/4, done"), "3/4");
  EXPECT_EQ(last("a\\frac{1}{2}b"), "\\frac{1}{2}");
  EXPECT_EQ(last("1, 2, 3"), "3");
  EXPECT_EQ(last("x2 and step_3"), "none");
  EXPECT_EQ(last("2.5e-3 metres"), "2.5e-3");
  EXPECT_EQ(last("none here"), "none");
  EXPECT_EQ(last("there are 10^3 of them"), "10^3");
  EXPECT_EQ(last("5, so 10^{-3}"), "10^{-3}");
  EXPECT_EQ(last("about 1.5\\times 10^{3} m"), "1.5\\times 10^{3}");
  EXPECT_EQ(last("the speed is -3 * 10^8."), "-3 * 10^8");
  EXPECT_EQ(last("that is k * 10^3"), "10^3");
  EXPECT_EQ(last("it takes 3 1/2 hours"), "3 1/2");
  EXPECT_EQ(last("in 2020 1/3 of them"), "1/3");
  EXPECT_EQ(last("it takes 3\\frac{1}{2} hours"), "3\\frac{1}{2}");
  EXPECT_EQ(last("we get $\\frac{-1}{2}$"), "\\frac{-1}{2}");
  EXPECT_EQ(last("the area is 12 cm^2"), "12");
  EXPECT_EQ(last("7 has the square x^{-2}"), "7");
  EXPECT_TRUE(Same(last("10^3"), "1000"));
  EXPECT_TRUE(Same(last("3 1/2"), "7/2"));
}

}  // namespace
}  // namespace retort::curate
