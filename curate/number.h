// Numbers as people write them in answers, compared exactly.
//
// Read: 42, -7, +7, 1,000 (commas between groups of three; LaTeX's {,} and \, too), 3.50, .5, 1e3, 1.5\times 10^{3},
// 10^3, 3/4, \frac{3}{4} (also with a sign inside the braces), \frac34, \dfrac, \tfrac, mixed numbers (3\frac{1}{2}, 3
// 1/2). Around them are dropped: white space, $...$, \(...\), \[...\], \boxed{...}, \text{...}, **...**, "x =" before,
// a currency sign, a full stop, and a unit: %, a degree sign, \text{...} or \mathrm{...} with a power, or up to three
// plain words ("12 square metres", but not "12 million"). A percent sign is a unit: 50% equals 50, not 0.5. Everything
// else is no number: intervals, lists, radicals, pi, words, "1,00", more than 1,000 digits, exponents beyond 1,000.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace retort::curate {

// An exact fraction. Copies share what they hold; immutable.
class Number {
 public:
  // None when `text` is no number as above.
  static std::optional<Number> Parse(absl::string_view text);

  // Equal as fractions: 1/2 = 0.50 = 2/4.
  bool operator==(const Number& other) const;

 private:
  struct Fraction;
  explicit Number(std::shared_ptr<const Fraction> fraction) : fraction_(std::move(fraction)) {}
  std::shared_ptr<const Fraction> fraction_;
};

// The last number that stands in running text, as written there; none when there is none. It is taken whole: "10^3",
// "1.5\times 10^{3}", "3 1/2", "3\frac{1}{2}" are one number each, and an exponent is none of its own ("12 cm^2" holds
// 12). A minus belongs to it unless a letter, digit or closing bracket stands right before.
std::optional<std::string> FindLastNumber(absl::string_view text);

}  // namespace retort::curate
