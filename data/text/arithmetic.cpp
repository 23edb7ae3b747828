#include "data/text/arithmetic.h"

#include "comm/crc32c.h"
#include "comm/error.h"
#include "data/rng.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <vector>

namespace trireme {
namespace {

using Number = std::int64_t;

struct Person {
  const char *name, *pronoun;
};
constexpr std::array<Person, 16> people = {{{"Ada", "She"},
                                            {"Ben", "He"},
                                            {"Clara", "She"},
                                            {"David", "He"},
                                            {"Emma", "She"},
                                            {"Felix", "He"},
                                            {"Grace", "She"},
                                            {"Hugo", "He"},
                                            {"Iris", "She"},
                                            {"Jonas", "He"},
                                            {"Kira", "She"},
                                            {"Leo", "He"},
                                            {"Maria", "She"},
                                            {"Noah", "He"},
                                            {"Olga", "She"},
                                            {"Paul", "He"}}};
constexpr std::array<const char*, 14> things = {"apples", "books",   "coins", "stamps", "pencils", "marbles", "cards",
                                                "shells", "buttons", "eggs",  "plums",  "tickets", "stones",  "cakes"};
constexpr std::array<const char*, 6> holders = {"boxes", "bags", "baskets", "shelves", "crates", "jars"};
constexpr std::array<const char*, 5> gains = {"buys", "finds", "gets", "picks up", "receives"};
constexpr std::array<const char*, 5> losses = {"gives away", "sells", "loses", "hands out", "puts aside"};

struct Step {
  char sign;
  Number operand;
};

Number apply(Number value, const Step& step) {
  switch (step.sign) {
    case '+':
      return value + step.operand;
    case '-':
      return value - step.operand;
    case '*':
      return value * step.operand;
    default:
      return value / step.operand;
  }
}

// A story as its first number and what happens to it.
struct Story {
  Number first = 0;
  std::vector<Step> steps;
};

class Teller {
 public:
  Teller(int level, Rng rng) : level_(level), rng_(rng) {}

  ArithmeticProblem tell() {
    const Story story = plan();
    ArithmeticProblem p;
    p.question = question(story);
    const Number result = worked(story, story.steps.size(), 0, p.answer);
    p.result = std::to_string(result);
    p.wrong = wrong(story, result);
    return p;
  }

 private:
  Number between(Number low, Number high) { return low + Number(rng_.below(std::uint64_t(high - low + 1))); }
  template <class List>
  auto one_of(const List& list) {
    return list[rng_.below(list.size())];
  }

  // A gain, or a loss that leaves something.
  Step change(Number value, Number most) {
    if (value < 3 || rng_.below(2) == 0) return {'+', between(2, most)};
    return {'-', between(1, value - 1)};
  }

  Story plan() {
    Story s;
    if (level_ == 1) {
      s.first = between(3, 60);
      s.steps = {change(s.first, 40)};
      return s;
    }
    s.first = between(2, 12);
    s.steps = {{'*', between(2, level_ == 2 ? 9 : 12)}};
    Number value = apply(s.first, s.steps[0]);
    if (level_ == 2) {
      s.steps.push_back(change(value, 30));
      return s;
    }
    const Number shares = between(2, 9), each = between(2, std::max<Number>(2, value / shares + 3));
    const Number wanted = shares * each;  // what the division needs
    if (wanted == value)
      s.steps.push_back({'+', shares});
    else
      s.steps.push_back(wanted > value ? Step{'+', wanted - value} : Step{'-', value - wanted});
    s.steps.push_back({'/', shares});
    value = apply(apply(value, s.steps[1]), s.steps[2]);
    if (rng_.below(2) == 0) s.steps.push_back(change(value, 30));
    return s;
  }

  std::string question(const Story& s) {
    const Person who = one_of(people);
    const std::string what = one_of(things), pronoun = who.pronoun;
    std::string text = std::string(who.name) + " has ";
    std::size_t from = 0;
    if (s.steps[0].sign == '*') {
      text += std::to_string(s.first) + " " + one_of(holders) + " with " + std::to_string(s.steps[0].operand) + " " +
              what + " in each.";
      from = 1;
    } else {
      text += std::to_string(s.first) + " " + what + ".";
    }
    for (std::size_t i = from; i < s.steps.size(); ++i) {
      const std::string n = std::to_string(s.steps[i].operand);
      text += i > from && rng_.below(2) ? " Then " + lower(pronoun) : " " + pronoun;
      if (s.steps[i].sign == '+')
        text += " " + std::string(one_of(gains)) + " " + n + " more.";
      else if (s.steps[i].sign == '-')
        text += " " + std::string(one_of(losses)) + " " + n + " of them.";
      else
        text += " divides them evenly into " + n + " parts and keeps one part.";
    }
    constexpr std::array<const char*, 2> ends = {" have now?", " have in the end?"};
    return text + " How many " + what + " does " + who.name + one_of(ends);
  }
  static std::string lower(std::string word) {
    word[0] = char(std::tolower(static_cast<unsigned char>(word[0])));
    return word;
  }

  // The steps in figures; that of number `slip` comes out wrong by `by`, and all after it go on from there.
  static Number worked(const Story& s, std::size_t slip, Number by, std::string& text) {
    Number value = s.first;
    text.clear();
    for (std::size_t i = 0; i < s.steps.size(); ++i) {
      const Number next = apply(value, s.steps[i]) + (i == slip ? by : 0);
      text += std::to_string(value) + " " + s.steps[i].sign + " " + std::to_string(s.steps[i].operand) + " = " +
              std::to_string(next) + "\n";
      value = next;
    }
    text += "Answer: " + std::to_string(value);
    return value;
  }

  std::string wrong(const Story& s, Number right) {
    std::string text;
    constexpr std::array<Number, 8> slips = {-10, -2, -1, 1, 2, 3, 10, 20};
    for (int attempt = 0; attempt < 20; ++attempt) {
      const Number result = worked(s, rng_.below(s.steps.size()), one_of(slips), text);
      if (result != right && text.find("= -") == text.npos) return text;
    }
    worked(s, s.steps.size() - 1, 1, text);
    return text;
  }

  int level_;
  Rng rng_;
};

ArithmeticSplit split_of(const std::string& question) {
  const std::uint32_t part = crc32c(question.data(), question.size()) % 20;
  return part == 0 ? ArithmeticSplit::validation : part == 1 ? ArithmeticSplit::test : ArithmeticSplit::train;
}

bool digit(char c) { return c >= '0' && c <= '9'; }

// The number that begins at or after `from`, in one spelling; empty: none.
std::string number_from(std::string_view text, std::size_t from) {
  while (from < text.size() && !digit(text[from])) ++from;
  if (from == text.size()) return "";
  std::string whole, part;
  std::size_t i = from;
  for (; i < text.size() && (digit(text[i]) || (text[i] == ',' && i + 1 < text.size() && digit(text[i + 1]))); ++i)
    if (digit(text[i])) whole += text[i];
  if (i + 1 < text.size() && text[i] == '.' && digit(text[i + 1]))
    for (++i; i < text.size() && digit(text[i]); ++i) part += text[i];
  whole.erase(0, std::min(whole.find_first_not_of('0'), whole.size() - 1));
  while (part.ends_with('0')) part.pop_back();
  if (!part.empty()) whole += "." + part;
  return (from > 0 && text[from - 1] == '-' && whole != "0" ? "-" : "") + whole;
}

}  // namespace

ArithmeticProblem arithmetic_problem(int level, std::uint64_t seed, ArithmeticSplit split, std::int64_t index) {
  if (level < 1 || level > 3 || index < 0)
    throw UsageError("arithmetic", "level " + std::to_string(level) + ", problem " + std::to_string(index),
                     "levels are 1, 2 and 3, and problems count from 0");
  // The split is a function of the question, so a question has one split, whatever the seed.
  for (std::uint64_t attempt = 0;; ++attempt) {
    Rng rng(seed, "arithmetic", (std::uint64_t(level) << 8) | std::uint64_t(split),
            (attempt << 40) ^ std::uint64_t(index));
    ArithmeticProblem p = Teller(level, rng).tell();
    if (split_of(p.question) == split) return p;
  }
}

std::string final_answer(std::string_view text) {
  constexpr std::string_view mark = "Answer:";
  if (const std::size_t at = text.rfind(mark); at != text.npos)
    if (const std::string n = number_from(text, at + mark.size()); !n.empty()) return n;
  std::size_t end = text.size();
  while (end > 0 && !digit(text[end - 1])) --end;
  std::size_t first = end;
  while (first > 0 && (digit(text[first - 1]) ||
                       ((text[first - 1] == ',' || text[first - 1] == '.') && first > 1 && digit(text[first - 2]))))
    --first;
  return end == 0 ? "" : number_from(text.substr(0, end), first);
}

bool answers_match(std::string_view generated, std::string_view expected) {
  const std::string answer = final_answer(generated);
  return !answer.empty() && answer == final_answer(expected);
}

}  // namespace trireme
