#include "data/text/instructions.h"

#include "comm/crc32c.h"
#include "comm/error.h"
#include "data/rng.h"
#include "data/text/arithmetic.h"
#include "data/text/corpus.h"
#include "data/text/jsonl.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>

#include <ATen/core/Tensor.h>

namespace trireme {
namespace {

void check(const InstructionSpec& s) {
  const auto no = [](const std::string& key, const std::string& value, const std::string& cure) {
    throw UsageError("data." + key, value, cure);
  };
  if (s.length < 2) no("length", std::to_string(s.length), "choose at least 2 ids");
  if (!(s.validation_share > 0 && s.validation_share < 1))
    no("validation_share", std::to_string(s.validation_share), "choose a share between 0 and 1");
  if (s.test < 0) no("test", std::to_string(s.test), "choose 0 or more");
  if (!s.test_file.empty() && (s.test > 0 || s.data == "arithmetic"))
    no("test_file", s.test_file, "name it without test, beside a file of JSON lines");
  if (s.data != "arithmetic") return;
  if (s.level < 1 || s.level > 3) no("level", std::to_string(s.level), "choose 1, 2 or 3");
  if (s.train < 1 || s.held_out < 1)
    no("train",
       "of arithmetic, " + std::to_string(s.train) + " problems and " + std::to_string(s.held_out) + " held out",
       "choose at least one of each");
}

// JSON lines, whatever the file is called: they begin so, and prose does not.
bool holds_json(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  char first = ' ';
  while (in && (first == ' ' || first == '\t' || first == '\r' || first == '\n')) in.get(first);
  return in && first == '{';
}

bool is_text(const std::string& file) { return file.ends_with(".txt") && !holds_json(file); }

bool is_text(const InstructionSpec& s) { return !s.texts.empty() || is_text(s.data); }

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  return first == text.npos ? std::string_view() : text.substr(first, text.find_last_not_of(" \t\r\n") + 1 - first);
}

// By the ids themselves: template, tokenizer, length and mask are in them.
void identify(Instructions& out) {
  std::uint32_t sum = 0;
  const auto add = [&](const Example& e) {
    sum = crc32c(e.ids.data(), e.ids.size() * sizeof(e.ids[0]), sum);
    sum = crc32c(e.mask.data(), e.mask.size(), sum);
  };
  for (const auto* list : {&out.train, &out.validation})
    for (const Example& e : *list) add(e);
  for (const auto* list : {&out.train_pairs, &out.validation_pairs})
    for (const Pair& p : *list) add(p.chosen), add(p.rejected);
  out.identity = std::to_string(out.train.size() + out.train_pairs.size()) + " samples and " +
                 std::to_string(out.validation.size() + out.validation_pairs.size()) + " held out, ids " +
                 std::to_string(sum);
  if (out.test.empty()) return;
  sum = 0;
  for (const Question& q : out.test) {
    sum = crc32c(q.prompt.data(), q.prompt.size() * sizeof(q.prompt[0]), sum);
    sum = crc32c(q.answer.data(), q.answer.size() + 1, sum);
  }
  out.questions = std::to_string(out.test.size()) + " questions, ids " + std::to_string(sum);
}

Instructions packed_text(const InstructionSpec& s, const BytePairTokenizer& tokenizer) {
  CorpusSpec corpus;
  corpus.sources = s.texts.empty() ? std::vector<std::string>{s.data} : s.texts;
  auto files = corpus.sources;
  if (!s.validation.empty()) files.push_back(s.validation);
  for (const auto& file : files)
    if (!is_text(file)) throw UsageError("data", file + " is no .txt file of plain text", "give text files alone");
  if (s.chat_template != "auto")
    throw UsageError("template", "plain text has no turns, and " + corpus.sources[0] + " is such", "leave it out");
  if (s.pairs || s.test > 0 || !s.test_file.empty())
    throw UsageError("data", corpus.sources[0] + " is plain text, which has no answers",
                     s.pairs ? "choose the objective sft" : "leave out test");
  corpus.length = s.length, corpus.seed = s.seed;
  corpus.validation_share = s.validation.empty() ? s.validation_share : 0;
  Instructions out;
  const auto add = [&](const PackedText& text, std::int64_t first, std::int64_t last, std::vector<Example>& to) {
    for (std::int64_t i = first; i < last; ++i) {
      const at::Tensor ids = text.read(std::vector{i}, 0).columns.at("ids");
      const auto* id = ids.const_data_ptr<std::int64_t>();
      to.push_back({{id, id + s.length}, std::vector<std::uint8_t>(std::size_t(s.length), 1)});
    }
  };
  const PackedText text(corpus, tokenizer);
  add(text, 0, text.train(), out.train);
  add(text, text.train(), text.size(), out.validation);
  if (!s.validation.empty()) {
    corpus.sources = {s.validation};
    const PackedText other(corpus, tokenizer);
    add(other, 0, other.train(), out.validation);
  }
  identify(out);
  return out;
}

class Builder {
 public:
  Builder(const InstructionSpec& spec, const BytePairTokenizer& tokenizer)
      : spec_(spec), tokenizer_(tokenizer), format_(chat_template(spec.chat_template, tokenizer, tokenizer.name())) {
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
    if (out_.test.empty() && (spec_.test > 0 || !spec_.test_file.empty()))
      throw DataError(spec_.test_file.empty() ? spec_.data : spec_.test_file,
                      "no question has fewer than " + std::to_string(spec_.length) + " ids", "make the length larger");
    identify(out_);
    return std::move(out_);
  }

 private:
  void arithmetic() {
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
    const auto n = std::int64_t(all.size());
    auto held_out = std::int64_t(0);
    if (spec_.validation.empty()) {
      if (n < 2) throw DataError(spec_.data, "holds one conversation alone", "add more, or name a validation file");
      held_out = std::clamp<std::int64_t>(std::llround(double(n) * spec_.validation_share), 1, n - 1);
    }
    if (spec_.test >= n - held_out)
      throw DataError(spec_.data,
                      "holds " + std::to_string(n) + " conversations, of which " + std::to_string(held_out) +
                          " are held out and " + std::to_string(spec_.test) + " are questions",
                      "lower test, or name a test_file");
    enum class Use : std::uint8_t { train, validation, test };
    std::vector<Use> use(all.size(), Use::train);
    const auto order = permutation(n, Rng(spec_.seed, "held out"));
    for (std::int64_t i = 0; i < held_out + spec_.test; ++i)
      use[std::size_t(order[i])] = i < held_out ? Use::validation : Use::test;
    for (std::size_t i = 0; i < all.size(); ++i)
      use[i] == Use::test ? ask(all[i]) : add(all[i], use[i] == Use::validation);
    if (!spec_.validation.empty())
      for (const auto& c : read_conversations(spec_.validation, spec_.pairs)) add(c, true);
    if (!spec_.test_file.empty())
      for (const auto& c : read_conversations(spec_.test_file, spec_.pairs)) ask(c);
  }

  // The last answer is asked for, as the template writes it; of a pair the chosen one.
  void ask(const Conversation& c) {
    auto messages = c.messages;
    if (spec_.pairs) messages.push_back({"assistant", c.chosen, ""});
    while (messages.back().role != "assistant") messages.pop_back();
    const Example whole =
        encode_chat(messages, format_, tokenizer_, std::numeric_limits<std::int64_t>::max(), false, c.where);
    messages.pop_back();
    auto prompt = encode_prompt(messages, format_, tokenizer_, c.where);
    if (prompt.empty() || std::int64_t(prompt.size()) >= spec_.length) return void(++out_.questions_left_out);
    std::size_t end = whole.ids.size();
    while (end > 0 && whole.ids[end - 1] != out_.end) --end;
    std::size_t first = end;
    while (first > 0 && whole.mask[first - 1]) --first;
    const std::vector<std::int64_t> ids(whole.ids.begin() + std::ptrdiff_t(first),
                                        whole.ids.begin() + std::ptrdiff_t(std::max(end, first + 1) - 1));
    out_.test.push_back({std::move(prompt), std::string(trimmed(tokenizer_.decode(ids))), true});
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

bool answered(const Question& q, std::string_view generated) {
  return q.text ? trimmed(generated) == q.answer : answers_match(generated, q.answer);
}

Instructions read_instructions(const InstructionSpec& spec, const BytePairTokenizer& tokenizer) {
  check(spec);
  if (is_text(spec)) return packed_text(spec, tokenizer);
  return Builder(spec, tokenizer).build();
}

}  // namespace trireme
