// Data of finetuning: generated arithmetic or the user's JSON lines, as ids, loss masks and questions with known
// answers.
#pragma once
#include "data/text/chat.h"

#include <cstdint>
#include <string>
#include <vector>

namespace trireme {

struct InstructionSpec {
  std::string data = "arithmetic";     // arithmetic, or a file of JSON lines
  std::string validation;              // another such file; empty: validation_share of `data`
  double validation_share = 0.1;       // drawn by the seed and the line's number
  std::string chat_template = "auto";  // data/text/chat.h
  bool full_loss = false;              // every id counts, else the answers' alone
  std::int64_t length = 512;           // ids; longer samples are cut, those without an answer left then are left out
  bool pairs = false;                  // preference pairs instead of examples
  int level = 1;                       // of arithmetic: 1 to 3
  std::int64_t train = 2000, held_out = 200, test = 200;  // of arithmetic
  std::uint64_t seed = 1;
};

// For the exact-match metric.
struct Question {
  std::vector<std::int32_t> prompt;
  std::string answer;
};

struct Instructions {
  std::vector<Example> train, validation;           // of `pairs`: empty
  std::vector<Pair> train_pairs, validation_pairs;  // else: empty
  std::vector<Question> test;                       // arithmetic: `test` of them; JSON lines: none
  std::int64_t cut = 0, left_out = 0;  // samples longer than `length`, and those of them without an answer left
  std::int64_t end = -1;               // the id that ends an answer
  std::string identity;                // changes when the data does
};

// JSON lines have one of these shapes, one for the whole file:
//   {"instruction": , "input": (may be absent or empty), "output": }
//   {"messages": [{"role": , "content": }, ...]}
//   {"prompt": , "chosen": , "rejected": }         each a text or a list of messages; for `pairs`
// DataError FILE:LINE; UsageError for a spec that cannot be.
Instructions read_instructions(const InstructionSpec& spec, const BytePairTokenizer& tokenizer);

}  // namespace trireme
