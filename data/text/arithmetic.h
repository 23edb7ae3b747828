// Word problems of arithmetic with worked answers, made from templates. A problem is a function of (level, seed, split,
// its number): any rank makes any problem, and no question of one split occurs in another.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace trireme {

enum class ArithmeticSplit { train, validation, test };

struct ArithmeticProblem {
  std::string question;  // one line
  std::string answer;    // the steps and, after "Answer: ", the number
  std::string wrong;     // the same with one step gone wrong and carried on: for preference pairs
  std::string result;    // the number
};

// level 1: one step of sums or differences to 100; 2: two steps, with products; 3: three or four steps, with divisions
// that come out even. 0 <= index. Deterministic everywhere.
ArithmeticProblem arithmetic_problem(int level, std::uint64_t seed, ArithmeticSplit split, std::int64_t index);

// The number after the last "Answer:", without signs of thousands; where there is none, the last number of the text;
// empty: no number.
std::string final_answer(std::string_view text);

// Exact match: equal numbers.
bool answers_match(std::string_view generated, std::string_view expected);

}  // namespace trireme
