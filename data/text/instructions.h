// Data of finetuning: generated arithmetic, the user's JSON lines or plain text, as ids, loss masks and questions with
// known answers.
#pragma once
#include "data/text/chat.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct InstructionSpec {
  std::string data = "arithmetic";     // or a file of JSON lines (data/text/jsonl.h), or .txt (data/text/documents.h)
  std::vector<std::string> texts;      // several .txt in place of `data`
  std::string validation;              // another such file; empty: a share of `data`, drawn by the seed
  double validation_share = 0.1;       // at least one sample
  std::string chat_template = "auto";  // data/text/chat.h
  bool full_loss = false;              // every id counts, else the answers alone
  std::int64_t length = 512;           // ids; longer samples are cut, and left out if no id that counts is left
  bool pairs = false;                  // preference pairs instead of examples
  int level = 1;                       // of arithmetic: 1 to 3
  std::int64_t train = 2000, held_out = 200;  // of arithmetic: how many
  std::int64_t test = 0;                      // questions; of JSON lines drawn by the seed, beside what is held out
  std::string test_file;                      // or those of another file of JSON lines
  std::uint64_t seed = 1;
};

// For the exact-match metric.
struct Question {
  std::vector<std::int32_t> prompt;
  std::string answer;
  bool text = false;  // the answer is this text, else this number (answers_match() of data/text/arithmetic.h)
};
bool answered(const Question& question, std::string_view generated);  // white space around texts aside

struct Instructions {
  std::vector<Example> train, validation;           // empty when `pairs`
  std::vector<Pair> train_pairs, validation_pairs;  // empty else
  std::vector<Question> test;                       // of conversations the last answer
  std::int64_t cut = 0, left_out = 0;               // samples longer than `length`; those of them that are not used
  std::int64_t end = -1;                            // the id that ends an answer
  std::int64_t questions_left_out = 0;              // of `length` ids or more
  std::string identity;                             // how many, and a checksum of all ids and masks
  std::string questions;                            // likewise of `test`; empty: none
};

// Everything in memory. Text is packed as PackedText does (data/text/corpus.h), and every id counts. DataError
// FILE:LINE; UsageError for a spec that cannot be.
Instructions read_instructions(const InstructionSpec& spec, const BytePairTokenizer& tokenizer);

}  // namespace trireme
