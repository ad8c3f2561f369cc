#include "curate/number.h"

#include <openssl/bn.h>
#include <re2/re2.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "common/check.h"

namespace retort::curate {
namespace {

constexpr size_t kMaxTextBytes = 4096;
constexpr size_t kMaxDigits = 1000;
constexpr int kMaxExponent = 1000;

struct BignumDeleter {
  void operator()(BIGNUM* number) const { BN_free(number); }
};
using Bignum = std::unique_ptr<BIGNUM, BignumDeleter>;

Bignum Multiply(const BIGNUM* a, const BIGNUM* b) {
  const std::unique_ptr<BN_CTX, void (*)(BN_CTX*)> context(BN_CTX_new(), BN_CTX_free);
  Bignum product(BN_new());
  RETORT_CHECK(BN_mul(product.get(), a, b, context.get()) == 1);
  return product;
}

Bignum FromDigits(const std::string& digits) {
  BIGNUM* number = nullptr;
  RETORT_CHECK(BN_dec2bn(&number, digits.empty() ? "0" : digits.c_str()) > 0 || digits.empty());
  return Bignum(number);
}

Bignum PowerOfTen(int exponent) { return FromDigits("1" + std::string(static_cast<size_t>(exponent), '0')); }

// numerator / denominator, the latter > 0.
struct Ratio {
  Bignum numerator;
  Bignum denominator;
};

// "1,234.50" with an exponent of ten.
std::optional<Ratio> FromDecimal(const std::string& text, int exponent) {
  static const RE2& kDecimal = *new RE2(R"((\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d*))?)");
  std::string whole, fraction;
  if (!RE2::FullMatch(text, kDecimal, &whole, &fraction)) return std::nullopt;
  whole = absl::StrReplaceAll(whole, {{",", ""}});
  const std::string digits = whole + fraction;
  if (digits.empty() || digits.size() > kMaxDigits || std::abs(exponent) > kMaxExponent) return std::nullopt;
  const int scale = exponent - static_cast<int>(fraction.size());
  Ratio ratio{FromDigits(digits), FromDigits("1")};
  if (scale > 0) ratio.numerator = Multiply(ratio.numerator.get(), PowerOfTen(scale).get());
  if (scale < 0) ratio.denominator = PowerOfTen(-scale);
  return ratio;
}

void Negate(Ratio* ratio) { BN_set_negative(ratio->numerator.get(), BN_is_negative(ratio->numerator.get()) == 0); }

std::optional<Ratio> Divide(std::optional<Ratio> a, std::optional<Ratio> b) {
  if (!a.has_value() || !b.has_value() || BN_is_zero(b->numerator.get())) return std::nullopt;
  Ratio quotient{Multiply(a->numerator.get(), b->denominator.get()),
                 Multiply(a->denominator.get(), b->numerator.get())};
  if (BN_is_negative(quotient.denominator.get())) {
    BN_set_negative(quotient.denominator.get(), 0);
    Negate(&quotient);
  }
  return quotient;
}

std::optional<Ratio> Add(std::optional<Ratio> a, std::optional<Ratio> b) {
  if (!a.has_value() || !b.has_value()) return std::nullopt;
  Bignum left = Multiply(a->numerator.get(), b->denominator.get());
  const Bignum right = Multiply(b->numerator.get(), a->denominator.get());
  RETORT_CHECK(BN_add(left.get(), left.get(), right.get()) == 1);
  return Ratio{std::move(left), Multiply(a->denominator.get(), b->denominator.get())};
}

std::optional<Ratio> FromDecimal(const std::string& text) { return FromDecimal(text, 0); }

std::optional<Ratio> FromSigned(absl::string_view text) {
  const bool negative = absl::ConsumePrefix(&text, "-");
  if (!negative) absl::ConsumePrefix(&text, "+");
  auto ratio = FromDecimal(std::string(absl::StripAsciiWhitespace(text)));
  if (ratio.has_value() && negative) Negate(&*ratio);
  return ratio;
}

// What is left when sign, wrappers and units are gone.
std::optional<Ratio> ParseUnsigned(const std::string& text) {
  static const RE2& kScientific = *new RE2(R"(([\d,.]+)[eE]([-+]?\d{1,4}))");
  static const RE2& kTimesTen =
      *new RE2(R"((?:([\d,.]+)\s*(?:\\times|\\cdot|×|\*)\s*)?10\s*\^\s*(?:\{\s*([-+]?\d{1,4})\s*\}|([-+]?\d{1,4})))");
  static const RE2& kSlash = *new RE2(R"((?:(\d+)\s+)?([\d,.]+)\s*/\s*([\d,.]+))");
  static const RE2& kFrac =
      *new RE2(R"((\d*)\s*\\[dt]?frac\s*(?:\{\s*([-+]?\s*[\d,.]+)\s*\}\s*\{\s*([-+]?\s*[\d,.]+)\s*\}|(\d)\s*(\d)))");
  std::string a, b, c, d, e;
  if (RE2::FullMatch(text, kScientific, &a, &b)) return FromDecimal(a, std::atoi(b.c_str()));
  if (RE2::FullMatch(text, kTimesTen, &a, &b, &c)) {
    return FromDecimal(a.empty() ? "1" : a, std::atoi((b.empty() ? c : b).c_str()));
  }
  if (RE2::FullMatch(text, kSlash, &a, &b, &c)) {
    auto fraction = Divide(FromDecimal(b), FromDecimal(c));
    return a.empty() ? std::move(fraction) : Add(FromDecimal(a), std::move(fraction));
  }
  if (RE2::FullMatch(text, kFrac, &a, &b, &c, &d, &e)) {
    auto fraction = Divide(FromSigned(b.empty() ? d : b), FromSigned(c.empty() ? e : c));
    if (!a.empty() && fraction.has_value() && BN_is_negative(fraction->numerator.get())) return std::nullopt;
    return a.empty() ? std::move(fraction) : Add(FromDecimal(a), std::move(fraction));
  }
  return FromDecimal(text);
}

void Trim(std::string* text) { *text = std::string(absl::StripAsciiWhitespace(*text)); }

bool Unwrap(std::string* text, absl::string_view open, absl::string_view close) {
  if (text->size() < open.size() + close.size() || !absl::StartsWith(*text, open) || !absl::EndsWith(*text, close))
    return false;
  const std::string inner = text->substr(open.size(), text->size() - open.size() - close.size());
  // "{1}{2}" is not wrapped in its outer braces.
  int depth = 0;
  for (const char c : inner) {
    depth += c == '{' ? 1 : c == '}' ? -1 : 0;
    if (depth < 0) return false;
  }
  if (open == "$" && absl::StrContains(inner, "$")) return false;
  *text = std::string(absl::StripAsciiWhitespace(inner));
  return true;
}

std::string StripWrappers(std::string text) {
  for (bool changed = true; changed;) {
    Trim(&text);
    changed = Unwrap(&text, "$$", "$$") || Unwrap(&text, "$", "$") || Unwrap(&text, "\\(", "\\)") ||
              Unwrap(&text, "\\[", "\\]") || Unwrap(&text, "\\boxed{", "}") || Unwrap(&text, "\\text{", "}") ||
              Unwrap(&text, "\\mathrm{", "}") || Unwrap(&text, "\\mathbf{", "}") || Unwrap(&text, "\\textbf{", "}") ||
              Unwrap(&text, "**", "**") || Unwrap(&text, "{", "}");
  }
  return text;
}

void StripUnit(std::string* text) {
  static const RE2& kUnit = *new RE2(
      R"(\s*(?:\\?%|°|\^\s*\\circ|\^\s*\{\s*\\circ\s*\}|\\(?:text|mathrm|mbox|textrm)\s*\{[^{}]*\}(?:\s*\^\s*(?:\d|\{\d\}))?|€|£|\\?\$)$)");
  static const RE2& kWords = *new RE2(R"(\s+((?:[A-Za-z]+)(?:\s+[A-Za-z]+){0,2})$)");
  static const RE2& kNumberWord = *new RE2(
      R"((?i)\b(?:hundreds?|thousands?|millions?|billions?|trillions?|dozens?|k|m|bn|half|halves|thirds?|quarters?|tenths?|hundredths?|thousandths?|or|and|to|by|times|e|x|pi)\b)");
  for (bool changed = true; changed;) {
    Trim(text);
    changed = absl::EndsWith(*text, ".") && text->size() > 1;
    if (changed) text->pop_back();
    changed = RE2::Replace(text, kUnit, "") || changed;
    std::string words;
    if (RE2::PartialMatch(*text, kWords, &words) && !RE2::PartialMatch(words, kNumberWord)) {
      RE2::Replace(text, kWords, "");
      changed = true;
    }
  }
}

}  // namespace

struct Number::Fraction {
  Bignum numerator;  // carries the sign
  Bignum denominator;
};

std::optional<Number> Number::Parse(absl::string_view raw) {
  if (raw.size() > kMaxTextBytes) return std::nullopt;
  std::string text = absl::StrReplaceAll(
      raw, {{"\xE2\x88\x92", "-"}, {"{,}", ","}, {"\\,", ""}, {"\\!", ""}, {"\\;", " "}, {"\\ ", " "}, {"~", " "}});
  text = StripWrappers(std::move(text));
  static const RE2& kAssignment = *new RE2(R"(^(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?)\s*=\s*)");
  RE2::Replace(&text, kAssignment, "");
  StripUnit(&text);
  text = StripWrappers(std::move(text));

  static const RE2& kLead = *new RE2(R"(^([-+])?\s*(?:\\?\$|€|£)?\s*([-+])?\s*)");
  std::string first_sign, second_sign;
  RE2::PartialMatch(text, kLead, &first_sign, &second_sign);
  if (!first_sign.empty() && !second_sign.empty()) return std::nullopt;
  RE2::Replace(&text, kLead, "");
  auto ratio = ParseUnsigned(text);
  if (!ratio.has_value()) return std::nullopt;
  if (first_sign == "-" || second_sign == "-") Negate(&*ratio);
  return Number(std::make_shared<const Fraction>(Fraction{std::move(ratio->numerator), std::move(ratio->denominator)}));
}

bool Number::operator==(const Number& other) const {
  const Bignum left = Multiply(fraction_->numerator.get(), other.fraction_->denominator.get());
  const Bignum right = Multiply(other.fraction_->numerator.get(), fraction_->denominator.get());
  return BN_cmp(left.get(), right.get()) == 0;
}

std::optional<std::string> FindLastNumber(absl::string_view text) {
  // Longer forms first: the first alternative that matches is taken.
  static const RE2& kNumber = *new RE2(absl::StrCat(
      "(",
      R"((?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)\s*(?:\\times|\\cdot|×|\*)\s*10\s*\^\s*(?:\{\s*[-+]?\d{1,4}\s*\}|[-+]?\d{1,4}))",
      R"(|\d+\s*\^\s*(?:\{\s*[-+]?\d{1,4}\s*\}|[-+]?\d{1,4}))",                                          // 10^3
      R"(|\d{1,3} \d{1,3}/\d{1,3}\b)",                                                                   // 3 1/2
      R"(|(?:\d+\s*)?\\[dt]?frac\s*(?:\{\s*[-+]?\s*[\d,.]+\s*\}\s*\{\s*[-+]?\s*[\d,.]+\s*\}|\d\s*\d))",  // 3\frac{1}{2}
      R"(|(?:\d{1,3}(?:,\d{3})+\b|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,4}\b)?(?:/\d+(?:\.\d+)?)?|\.\d+)", ")"));
  const std::string haystack = absl::StrReplaceAll(text, {{"\xE2\x88\x92", "-"}});
  re2::StringPiece rest(haystack);
  std::optional<std::string> last;
  std::string match;
  while (RE2::FindAndConsume(&rest, kNumber, &match)) {
    const auto begin = haystack.size() - rest.size() - match.size();
    const auto glued = [&](size_t at) {
      const char c = haystack[at];
      return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == ')' || c == ']' || c == '}' || c == '_';
    };
    // "x^2" and "10^{-3}": an exponent.
    size_t before = begin;
    while (before > 0 && (haystack[before - 1] == '-' || haystack[before - 1] == '{')) --before;
    if (before > 0 && haystack[before - 1] == '^') continue;
    // "x2" and "step_3" hold no number of their own.
    if (begin > 0 && match.front() != '\\' &&
        (absl::ascii_isalpha(static_cast<unsigned char>(haystack[begin - 1])) || haystack[begin - 1] == '_'))
      continue;
    const bool minus = begin > 0 && haystack[begin - 1] == '-' && (begin == 1 || !glued(begin - 2));
    last = absl::StrCat(minus ? "-" : "", match);
  }
  return last;
}

}  // namespace retort::curate
