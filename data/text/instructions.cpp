#include "data/text/instructions.h"

#include "comm/crc32c.h"
#include "comm/error.h"
#include "data/file.h"
#include "data/rng.h"
#include "data/text/arithmetic.h"
#include "data/text/jsonl.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace trireme {
namespace {

void check(const InstructionSpec& s) {
  const auto no = [](const std::string& key, const std::string& value, const std::string& cure) {
    throw UsageError("data." + key, value, cure);
  };
  if (s.length < 2) no("length", std::to_string(s.length), "choose at least 2 ids");
  if (!(s.validation_share > 0 && s.validation_share < 1))
    no("validation_share", std::to_string(s.validation_share), "choose a share between 0 and 1");
  if (s.data != "arithmetic") return;
  if (s.level < 1 || s.level > 3) no("level", std::to_string(s.level), "choose 1, 2 or 3");
  if (s.train < 1 || s.held_out < 1 || s.test < 0)
    no("train",
       "of arithmetic, " + std::to_string(s.train) + " problems and " + std::to_string(s.held_out) + " held out",
       "choose at least one of each");
}

class Builder {
 public:
  Builder(const InstructionSpec& spec, const BytePairTokenizer& tokenizer)
      : spec_(spec),
        tokenizer_(tokenizer),
        format_(chat_template(spec.chat_template, tokenizer, "the model's folder")) {
    out_.end = end_of_answer(format_, tokenizer);
  }

  Instructions build() {
    if (spec_.data == "arithmetic")
      arithmetic();
    else
      files();
    if (out_.train.empty() && out_.train_pairs.empty())
      throw DataError(spec_.data, "no sample of at most " + std::to_string(spec_.length) + " ids keeps an answer",
                      "make the length larger");
    out_.identity += " template " + std::string(name_of(format_)) + " length " + std::to_string(spec_.length) +
                     (spec_.full_loss ? " full loss" : "") + (spec_.pairs ? " pairs" : "") + " seed " +
                     std::to_string(spec_.seed) + " tokenizer " + checksum(tokenizer_.json());
    return std::move(out_);
  }

 private:
  static std::string checksum(std::string_view bytes) { return std::to_string(crc32c(bytes.data(), bytes.size())); }

  void arithmetic() {
    out_.identity = "arithmetic level " + std::to_string(spec_.level) + ", " + std::to_string(spec_.train) + " and " +
                    std::to_string(spec_.held_out) + " held out";
    const auto make = [&](ArithmeticSplit split, std::int64_t i) {
      const auto p = arithmetic_problem(spec_.level, spec_.seed, split, i);
      Conversation c;
      c.where = "arithmetic";
      c.messages = {{"user", p.question, ""}};
      c.chosen = p.answer, c.rejected = p.wrong;
      if (!spec_.pairs) c.messages.push_back({"assistant", p.answer, ""});
      return c;
    };
    for (std::int64_t i = 0; i < spec_.train; ++i) add(make(ArithmeticSplit::train, i), false);
    for (std::int64_t i = 0; i < spec_.held_out; ++i) add(make(ArithmeticSplit::validation, i), true);
    for (std::int64_t i = 0; i < spec_.test; ++i) {
      const auto p = arithmetic_problem(spec_.level, spec_.seed, ArithmeticSplit::test, i);
      out_.test.push_back({encode_prompt({{"user", p.question, ""}}, format_, tokenizer_, "arithmetic"), p.result});
    }
  }

  void files() {
    const auto all = read_conversations(spec_.data, spec_.pairs);
    const auto bytes = read_file(spec_.data, std::numeric_limits<std::int64_t>::max());
    out_.identity = "data " + std::to_string(crc32c(bytes.data(), bytes.size()));
    if (!spec_.validation.empty()) {
      for (const auto& c : all) add(c, false);
      for (const auto& c : read_conversations(spec_.validation, spec_.pairs)) add(c, true);
      return;
    }
    const auto n = std::int64_t(all.size());
    if (n < 2) throw DataError(spec_.data, "holds one conversation alone", "add more, or name a validation file");
    const auto held_out = std::clamp<std::int64_t>(std::llround(double(n) * spec_.validation_share), 1, n - 1);
    std::vector<bool> held(n);
    const auto order = permutation(n, Rng(spec_.seed, "held out"));
    for (std::int64_t i = 0; i < held_out; ++i) held[order[i]] = true;
    for (std::int64_t i = 0; i < n; ++i) add(all[i], held[i]);
  }

  // False: nothing that counts is left.
  bool fit(Example& e) {
    if (std::int64_t(e.ids.size()) > spec_.length) {
      ++out_.cut;
      e.ids.resize(spec_.length), e.mask.resize(spec_.length);
    }
    return std::any_of(e.mask.begin() + std::min<std::size_t>(1, e.mask.size()), e.mask.end(),
                       [](auto m) { return m; });
  }

  Example encode(const std::vector<Message>& messages, const std::string& where) const {
    return encode_chat(messages, format_, tokenizer_, std::numeric_limits<std::int64_t>::max(), spec_.full_loss, where);
  }

  void add(const Conversation& c, bool held_out) {
    if (!spec_.pairs) {
      Example e = encode(c.messages, c.where);
      if (!fit(e)) return void(++out_.left_out);
      (held_out ? out_.validation : out_.train).push_back(std::move(e));
      return;
    }
    const auto with = [&](const std::string& answer) {
      auto messages = c.messages;
      messages.push_back({"assistant", answer, ""});
      return encode(messages, c.where);
    };
    Pair pair{with(c.chosen), with(c.rejected)};
    const bool both = fit(pair.chosen) & fit(pair.rejected);
    if (!both) return void(++out_.left_out);
    (held_out ? out_.validation_pairs : out_.train_pairs).push_back(std::move(pair));
  }

  const InstructionSpec& spec_;
  const BytePairTokenizer& tokenizer_;
  ChatTemplate format_;
  Instructions out_;
};

}  // namespace

Instructions read_instructions(const InstructionSpec& spec, const BytePairTokenizer& tokenizer) {
  check(spec);
  return Builder(spec, tokenizer).build();
}

}  // namespace trireme
