// Data of finetuning and pretraining: arithmetic, JSON lines, documents, packed sequences.
#include "data/text/instructions.h"

#include "comm/error.h"
#include "data/rng.h"
#include "data/text/arithmetic.h"
#include "data/text/corpus.h"
#include "data/text/documents.h"
#include "data/text/jsonl.h"
#include "tests/needs.h"
#include "tests/unit/said.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <unistd.h>

namespace trireme {
namespace {

using test::said;

namespace fs = std::filesystem;

struct Folder {
  fs::path path = fs::temp_directory_path() / ("trireme_instructions_" + std::to_string(getpid()));
  Folder() {
    fs::create_directories(path);
    setenv("XDG_CACHE_HOME", (path / "cache").c_str(), 1);
  }
  ~Folder() { fs::remove_all(path); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path / name, std::ios::binary) << text;
    return (path / name).string();
  }
};

BytePairTokenizer small() { return BytePairTokenizer::train(arithmetic_documents(300, 1), 400); }

// The last value of a chain of "a op b = c" lines; checks each line, and that each goes on from the one before.
std::int64_t recompute(const std::string& answer, int* wrong_lines) {
  std::istringstream in(answer);
  std::int64_t value = 0;
  *wrong_lines = 0;
  bool first = true;
  for (std::string line; std::getline(in, line);) {
    long long a = 0, b = 0, c = 0;
    char op = 0;
    if (std::sscanf(line.c_str(), "%lld %c %lld = %lld", &a, &op, &b, &c) != 4) {
      EXPECT_EQ(line, "Answer: " + std::to_string(value));
      continue;
    }
    EXPECT_TRUE(first || a == value) << answer;
    first = false;
    const long long right = op == '+' ? a + b : op == '-' ? a - b : op == '*' ? a * b : a / b;
    *wrong_lines += right != c || (op == '/' && a % b != 0);
    value = c;
  }
  return value;
}

TEST(Arithmetic, AnswersAreRightAndWrongOnesWrong) {
  for (int level = 1; level <= 3; ++level)
    for (int i = 0; i < 2000; ++i) {
      const auto p = arithmetic_problem(level, 7, ArithmeticSplit::train, i);
      int slips = 0;
      EXPECT_EQ(std::to_string(recompute(p.answer, &slips)), p.result) << p.question;
      EXPECT_EQ(slips, 0) << p.answer;
      EXPECT_GE(std::stoll(p.result), 0);
      recompute(p.wrong, &slips);
      EXPECT_GE(slips, 1) << p.wrong;
      EXPECT_TRUE(answers_match(p.answer, p.result));
      EXPECT_FALSE(answers_match(p.wrong, p.result)) << p.wrong;
      const auto lines = std::count(p.answer.begin(), p.answer.end(), '\n');
      EXPECT_TRUE(level < 3 ? lines == level : lines == 3 || lines == 4) << p.answer;
      // Every number of the story stands in the question.
      EXPECT_NE(p.question.find(p.answer.substr(0, p.answer.find(' '))), p.question.npos);
      EXPECT_EQ(p.question.find('\n'), p.question.npos);
    }
}

TEST(Arithmetic, SplitsShareNoQuestionAndProblemsAreKeyed) {
  std::map<std::string, ArithmeticSplit> seen;
  std::set<std::string> train;
  for (const std::uint64_t seed : {1, 2})
    for (const auto split : {ArithmeticSplit::train, ArithmeticSplit::validation, ArithmeticSplit::test})
      for (int i = 0; i < 3000; ++i) {
        const auto p = arithmetic_problem(1, seed, split, i);
        const auto [it, fresh] = seen.emplace(p.question, split);
        EXPECT_EQ(it->second, split) << p.question;
        if (split == ArithmeticSplit::train && seed == 1) train.insert(p.question);
      }
  EXPECT_GT(train.size(), 2950u);  // few repeat
  EXPECT_EQ(arithmetic_problem(2, 1, ArithmeticSplit::test, 5).question,
            arithmetic_problem(2, 1, ArithmeticSplit::test, 5).question);
  EXPECT_NE(arithmetic_problem(2, 1, ArithmeticSplit::test, 5).question,
            arithmetic_problem(2, 2, ArithmeticSplit::test, 5).question);
  // The same everywhere and in later versions: runs name their data by (level, seed) alone.
  EXPECT_EQ(arithmetic_problem(1, 1, ArithmeticSplit::train, 0).question,
            "Iris has 46 stamps. She sells 2 of them. How many stamps does Iris have now?");
  EXPECT_THROW(arithmetic_problem(4, 1, ArithmeticSplit::train, 0), UsageError);
  EXPECT_THROW(arithmetic_problem(1, 1, ArithmeticSplit::train, -1), UsageError);
}

TEST(Arithmetic, FinalAnswer) {
  const std::vector<std::pair<std::string, std::string>> cases = {{"3 + 4 = 7\nAnswer: 7", "7"},
                                                                  {"Answer: 1,234 apples", "1234"},
                                                                  {"so 12.50", "12.5"},
                                                                  {"x = -3", "-3"},
                                                                  {"-0", "0"},
                                                                  {"007", "7"},
                                                                  {"Answer: 5\nAnswer:", "5"},
                                                                  {"12.", "12"},
                                                                  {"none", ""},
                                                                  {"Answer: -8.0", "-8"},
                                                                  {"", ""},
                                                                  {"5 - 3", "3"},
                                                                  {"Answer: 19 + 2", "19"}};
  for (const auto& [text, number] : cases) EXPECT_EQ(final_answer(text), number) << text;
  EXPECT_TRUE(answers_match("it is 1,000.", "1000"));
  EXPECT_FALSE(answers_match("no number", "no number"));
}

TEST(Instructions, ArithmeticExamplesPairsAndQuestions) {
  TRIREME_NEEDS("PCRE2");
  const auto t = small();
  InstructionSpec spec;
  spec.train = 50, spec.held_out = 20, spec.test = 10, spec.level = 2;
  const auto data = read_instructions(spec, t);
  ASSERT_EQ(data.train.size(), 50u);
  ASSERT_EQ(data.validation.size(), 20u);
  ASSERT_EQ(data.test.size(), 10u);
  const auto problem = arithmetic_problem(2, 1, ArithmeticSplit::train, 3);
  const Example& e = data.train[3];
  std::vector<std::int64_t> counted;
  for (std::size_t i = 0; i < e.ids.size(); ++i)
    if (e.mask[i]) counted.push_back(e.ids[i]);
  EXPECT_EQ(t.decode(counted), problem.answer + "<|im_end|>");
  EXPECT_EQ(counted.back(), data.end);
  const std::vector<std::int64_t> prompt(data.test[0].prompt.begin(), data.test[0].prompt.end());
  EXPECT_TRUE(t.decode(prompt).ends_with("<|im_start|>assistant\n"));
  EXPECT_EQ(data.test[0].answer, arithmetic_problem(2, 1, ArithmeticSplit::test, 0).result);
  spec.pairs = true;
  const auto pairs = read_instructions(spec, t);
  ASSERT_EQ(pairs.train_pairs.size(), 50u);
  EXPECT_TRUE(pairs.train.empty());
  EXPECT_EQ(pairs.train_pairs[3].chosen.ids, e.ids);
  EXPECT_NE(pairs.train_pairs[3].rejected.ids, e.ids);
  EXPECT_NE(pairs.identity, data.identity);
  EXPECT_EQ(read_instructions(spec, t).identity, pairs.identity);
  spec.seed = 2;
  EXPECT_NE(read_instructions(spec, t).identity, pairs.identity);
  spec.pairs = false, spec.length = 8;  // the questions alone fill it
  EXPECT_THROW(read_instructions(spec, t), DataError);
  spec.length = 1;
  EXPECT_THROW(read_instructions(spec, t), UsageError);
  spec.length = 64, spec.level = 0;
  EXPECT_THROW(read_instructions(spec, t), UsageError);
}

TEST(Instructions, JsonLinesOfThreeShapes) {
  TRIREME_NEEDS("PCRE2");
  const Folder folder;
  const auto t = small();
  InstructionSpec spec;
  spec.chat_template = "plain";
  spec.data = folder.write("a.jsonl",
                           "\xEF\xBB\xBF{\"instruction\":\"Add\",\"input\":\"1 2\",\"output\":\"3\"}\r\n\n"
                           "{\"instruction\":\"Say\",\"input\":\"\",\"output\":\"hi\"}\n");
  const auto alpaca = read_instructions(spec, t);
  EXPECT_EQ(alpaca.train.size() + alpaca.validation.size(), 2u);
  EXPECT_EQ(alpaca.validation.size(), 1u);
  spec.data = folder.write("array.json",
                           "[{\"instruction\":\"Add\",\"input\":\"1 2\",\"output\":\"3\"},"
                           "{\"instruction\":\"Say\",\"output\":\"hi\"}]");
  EXPECT_EQ(read_instructions(spec, t).train[0].ids, alpaca.train[0].ids);

  std::string rows;
  for (int i = 0; i < 100; ++i)
    rows += "{\"messages\":[{\"role\":\"user\",\"content\":\"n" + std::to_string(i) +
            "\"},{\"role\":\"assistant\",\"content\":\"" + std::string(i, 'x') + "y\"}]}\n";
  spec.data = folder.write("m.jsonl", rows), spec.length = 20, spec.validation_share = 0.25;
  const auto messages = read_instructions(spec, t);
  EXPECT_EQ(messages.train.size() + messages.validation.size(), 100u);
  EXPECT_EQ(messages.validation.size(), 25u);
  EXPECT_GT(messages.cut, 50);
  for (const auto& e : messages.train) EXPECT_LE(e.ids.size(), 20u);
  spec.seed = 2;
  EXPECT_NE(read_instructions(spec, t).validation[0].ids, messages.validation[0].ids);
  spec.validation = spec.data;
  EXPECT_EQ(read_instructions(spec, t).validation.size(), 100u);

  spec.validation.clear(), spec.pairs = true;
  spec.data = folder.write("p.jsonl",
                           "{\"prompt\":\"q\",\"chosen\":\"good\",\"rejected\":\"bad\"}\n"
                           "{\"prompt\":\"q\",\"chosen\":\"good\",\"rejected\":\"bad\"}\n");
  const auto texts = read_instructions(spec, t);
  spec.data = folder.write(
      "p.jsonl",
      "{\"prompt\":[{\"role\":\"user\",\"content\":\"q\"}],\"chosen\":[{\"role\":\"assistant\",\"content\":\"good\"}],"
      "\"rejected\":\"bad\"}\n{\"prompt\":[{\"role\":\"user\",\"content\":\"q\"}],\"chosen\":\"good\",\"rejected\":"
      "\"bad\"}\n");
  EXPECT_EQ(read_instructions(spec, t).train_pairs[0].chosen.ids, texts.train_pairs[0].chosen.ids);
}

// The last answer is what is asked for, as the template writes it; those held out are in no other split.
TEST(Instructions, QuestionsOfFiles) {
  TRIREME_NEEDS("PCRE2");
  const Folder folder;
  const auto t = small();
  std::string rows;
  for (int i = 0; i < 40; ++i)
    rows += R"({"messages":[{"role":"user","content":"first"},{"role":"assistant","content":"no"},)"
            R"({"role":"user","content":"n)" +
            std::to_string(i) + R"("},{"role":"assistant","content":" y)" + std::to_string(i) +
            R"( \n"},{"role":"user","content":"thanks"}]})" + "\n";
  InstructionSpec spec;
  spec.data = folder.write("m.jsonl", rows), spec.length = 512;
  for (const char* format : {"plain", "alpaca", "chatml"}) {
    spec.chat_template = format, spec.test = 0;
    const auto without = read_instructions(spec, t);
    EXPECT_TRUE(without.test.empty());
    spec.test = 7;
    const auto with = read_instructions(spec, t);
    ASSERT_EQ(with.test.size(), 7u) << format;
    EXPECT_EQ(with.train.size() + 7, without.train.size());
    ASSERT_EQ(with.validation.size(), without.validation.size());
    for (std::size_t i = 0; i < with.validation.size(); ++i)
      EXPECT_EQ(with.validation[i].ids, without.validation[i].ids);
    std::set<std::string> train;
    for (const auto& e : with.train) train.insert(t.decode(std::vector<std::int64_t>(e.ids.begin(), e.ids.end())));
    for (const auto& q : with.test) {
      const std::string prompt = t.decode(std::vector<std::int64_t>(q.prompt.begin(), q.prompt.end()));
      EXPECT_NE(prompt.find("first"), prompt.npos);
      EXPECT_NE(prompt.find("n" + q.answer.substr(1)), prompt.npos) << prompt << " | " << q.answer;
      EXPECT_TRUE(std::none_of(train.begin(), train.end(), [&](const auto& e) { return e.starts_with(prompt); }));
      EXPECT_TRUE(answered(q, q.answer + " "));
      EXPECT_FALSE(answered(q, q.answer + "0"));
      EXPECT_FALSE(answered(q, "it is " + q.answer));
    }
  }
  spec.test = 36;
  EXPECT_THROW(read_instructions(spec, t), DataError);
  spec.test = 3, spec.test_file = folder.write("t.jsonl", "{\"instruction\":\"a\",\"output\":\"b c\"}\n");
  EXPECT_THROW(read_instructions(spec, t), UsageError);
  spec.test = 0;
  const auto named = read_instructions(spec, t);
  ASSERT_EQ(named.test.size(), 1u);
  EXPECT_EQ(named.test[0].answer, "b c");
  EXPECT_TRUE(named.questions.starts_with("1 questions, ids ")) << named.questions;
  // Others are others, by question and by answer, and no other data; long ones are counted.
  const std::string long_one = "{\"instruction\":\"" + std::string(4000, 'w') + "\",\"output\":\"b c\"}\n";
  std::set<std::string> seen = {named.questions};
  for (const char* line :
       {"{\"instruction\":\"a\",\"output\":\"b d\"}\n", "{\"instruction\":\"c\",\"output\":\"b c\"}\n"}) {
    spec.test_file = folder.write("o.jsonl", line + long_one);
    const auto others = read_instructions(spec, t);
    EXPECT_TRUE(seen.insert(others.questions).second);
    EXPECT_EQ(others.identity, named.identity);
    EXPECT_EQ(others.questions_left_out, 1);
    EXPECT_EQ(others.left_out, named.left_out);
  }
  EXPECT_EQ(named.questions_left_out, 0);
  spec.length = 8, spec.chat_template = "alpaca";
  EXPECT_THROW(read_instructions(spec, t), DataError) << "no question is that short";
  EXPECT_TRUE(answered({{1}, "1000", false}, "Answer: 1,000"));
}

// As recipe causal_lm packs it: documents end with eos, every id counts.
TEST(Instructions, PlainTextIsPacked) {
  TRIREME_NEEDS("PCRE2");
  const Folder folder;
  const auto t = small();
  const auto text = [](const std::string& word) {
    std::string all;
    for (int i = 0; i < 60; ++i) all += word + " " + std::to_string(i) + "\nits second line\n\n";
    return all;
  };
  InstructionSpec spec;
  spec.data = folder.write("a.txt", text("a")), spec.length = 16;
  const auto one = read_instructions(spec, t);
  CorpusSpec corpus;
  corpus.sources = {spec.data}, corpus.length = 16, corpus.validation_share = 0.1;
  const PackedText packed(corpus, t);
  ASSERT_EQ(std::int64_t(one.train.size()), packed.train());
  ASSERT_EQ(std::int64_t(one.train.size() + one.validation.size()), packed.size());
  const auto row = packed.read(std::vector<std::int64_t>{3}, 0).columns.at("ids");
  std::string all;
  for (std::int64_t i = 0; i < 16; ++i)
    EXPECT_EQ(one.train[3].ids[std::size_t(i)], row.const_data_ptr<std::int64_t>()[i]);
  for (const auto& e : one.train) {
    EXPECT_EQ(e.mask, std::vector<std::uint8_t>(16, 1));
    all += t.decode(std::vector<std::int64_t>(e.ids.begin(), e.ids.end()));
  }
  EXPECT_NE(all.find("line<|endoftext|>a "), all.npos);
  EXPECT_FALSE(one.identity.empty());
  spec.texts = {spec.data, folder.write("b.txt", text("b"))};
  spec.validation = folder.write("v.txt", text("v"));
  const auto two = read_instructions(spec, t);
  EXPECT_GT(two.train.size(), 2 * one.train.size());
  EXPECT_LE(two.validation.size() - one.train.size() - one.validation.size(), 1u) << "one end is dropped, not two";
  spec.test = 1;
  EXPECT_THROW(read_instructions(spec, t), UsageError);
  spec.test = 0, spec.pairs = true;
  EXPECT_THROW(read_instructions(spec, t), UsageError);
  spec.pairs = false, spec.texts = {"a.txt", "b.jsonl"};
  EXPECT_THROW(read_instructions(spec, t), UsageError);
  spec.texts.clear();
  const auto says = [&](const std::string& part) { EXPECT_SAYS(said([&] { read_instructions(spec, t); }), part); };
  const std::string lines = "\n {\"instruction\":\"a\",\"output\":\"b\"}\n";
  spec.validation = folder.write("v.jsonl", lines);
  says("v.jsonl is no .txt file of plain text");
  spec.validation = folder.write("json.txt", lines);
  says("json.txt is no .txt file of plain text");
  spec.validation = "", spec.chat_template = "alpaca";
  says("plain text has no turns");
  spec.chat_template = "auto", spec.data = folder.write("one.txt", "a document\nof two lines\n");
  says("one.txt: is one document, of which none can be held out");
  // JSON lines are told by what they hold, not by their name.
  spec.data = folder.write("chats.txt", lines + lines.substr(1) + lines.substr(1)), spec.chat_template = "plain";
  spec.validation_share = 0.4, spec.length = 64;
  EXPECT_EQ(read_instructions(spec, t).train.size(), 2u);
}

TEST(Instructions, BadLinesAreNamed) {
  const Folder folder;
  const std::string good = "{\"instruction\":\"a\",\"output\":\"b\"}\n";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {good + "{\"instruction\":\"a\"}\n", ":2: has no `output`"},
      {good + good + "{\"instruction\":\"a\",\"outp", ":3: is no JSON object"},
      {"{\"instruction\":NaN,\"output\":\"b\"}\n", ":1: is no JSON object"},
      {"{\"instruction\":1,\"output\":\"b\"}\n", ":1: `instruction` is no text but number"},
      {good + "{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\"}]}\n", ":2: has another shape"},
      {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}\n", ":1: no message is the assistant's"},
      {"{\"messages\":[{\"role\":\"user\"}]}\n", ":1: has no `content`"},
      {"{\"messages\":3}\n", ":1: `messages` is no list"},
      {"{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"b\"}\n", ":1: holds a preference pair"},
      {"{\"text\":\"x\"}\n", ":1: has none of the known shapes"},
      {"{\"instruction\":\"\xFF\",\"output\":\"b\"}\n", ":1: is no JSON object"},
      {std::string(100000, '{') + "\n", ":1: is no JSON object"},
      {"[1]", "item 1: is no JSON object"},
      {"[{\"instruction\":", "is no JSON array"},
      {"\n \n", "holds no conversation"},
      {"", "holds no conversation"}};
  for (const auto& [text, message] : cases) {
    const std::string path = folder.write("bad.jsonl", text);
    try {
      read_conversations(path, false);
      ADD_FAILURE() << "accepted: " << text.substr(0, 80);
    } catch (const DataError& e) {
      EXPECT_NE(std::string(e.what()).find(message), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find(path), std::string::npos) << e.what();
    }
  }
  EXPECT_THROW(read_conversations(folder.write("bad.jsonl", good), true), DataError);
  EXPECT_THROW(read_conversations((folder.path / "none.jsonl").string(), false), DataError);
}

TEST(Documents, OfPackages) {
  const Folder folder;
  EXPECT_THROW(wordnet_documents(folder.path.string()), DataError);
  for (const char* kind : {"noun", "verb", "adv"}) folder.write(std::string("data.") + kind, "  1 licence\n");
  folder.write("data.adj",
               "  1 This software is licensed\n"
               "00001740 00 a 02 able(p) 0 well_read 1 005 = 05 n 0000 | having skill; \"able to swim\"  \n");
  EXPECT_THROW(wordnet_documents(folder.path.string()), DataError);  // no nouns
  for (const char* kind : {"noun", "verb", "adv"})
    folder.write(std::string("data.") + kind, "00000001 03 n 01 word 0 000 | a gloss\n");
  const auto words = wordnet_documents(folder.path.string());
  ASSERT_EQ(words.size(), 4u);
  EXPECT_EQ(words[2], "able, well read (adjective): having skill; \"able to swim\"");

  const std::string about = "00-database-info\n   of it\n",
                    entry =
                        "Benefit \\Ben\"e*fit\\, n. [OE. benefet.]\n   1. An act of {kindness};\n      a favor.\n"
                        "      [1913 Webster]\n\n   2. Advantage.\n";
  const auto number = [](std::size_t n) {  // below 64 * 64
    const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    return std::string{digits[n / 64], digits[n % 64]};
  };
  const std::string place = "\t" + number(about.size()) + "\t" + number(entry.size()) + "\n";
  const std::string dict = folder.write("g.dict", about + entry);
  folder.write("g.index", "00-database-info\tA\t" + number(about.size()) + "\nbenefit" + place + "benefits" + place);
  EXPECT_EQ(gcide_documents(dict),
            std::vector<std::string>{"Benefit, n. 1. An act of kindness; a favor.\n2. Advantage."});
  folder.write("g.index", "benefit\tA\t////////\n");
  EXPECT_THROW(gcide_documents(dict), DataError);
}

TEST(Documents, OfInstalledPackages) {
  if (!fs::exists(wordnet_root)) GTEST_SKIP() << "wordnet-base is not installed";
  const auto words = wordnet_documents();
  EXPECT_GT(words.size(), 100000u);
  EXPECT_EQ(words[0].substr(0, 15), "entity (noun): ");
}

TEST(PackedText, HoldsEveryDocumentOnceInASeededOrder) {
  TRIREME_NEEDS("PCRE2");
  const Folder folder;
  const auto t = small();
  std::string text;
  for (int i = 0; i < 400; ++i) text += "document " + std::to_string(i) + "\nits second line\n\n\n";
  CorpusSpec spec;
  spec.sources = {folder.write("own.txt", text)}, spec.length = 32, spec.validation_share = 0.1;
  const PackedText packed(spec, t);
  EXPECT_GT(packed.train(), 50);
  EXPECT_GT(packed.size(), packed.train());

  const auto stream = [&](const PackedText& p, std::int64_t first, std::int64_t last) {
    std::vector<std::int64_t> ids;
    for (std::int64_t s = first; s < last; ++s) {
      const auto row = p.read(std::vector<std::int64_t>{s}, 0).columns.at("ids");
      const auto* values = row.const_data_ptr<std::int64_t>();
      ids.insert(ids.end(), values, values + row.numel());
    }
    return ids;
  };
  std::set<std::string> seen[2];
  std::int64_t ids_seen = 0;
  for (int part = 0; part < 2; ++part) {
    const auto ids = stream(packed, part ? packed.train() : 0, part ? packed.size() : packed.train());
    ids_seen += std::int64_t(ids.size());
    std::string all = t.decode(ids);
    for (std::size_t end; (end = all.find("<|endoftext|>")) != all.npos; all.erase(0, end + 13)) {
      EXPECT_TRUE(all.starts_with("document ")) << all.substr(0, end);
      EXPECT_TRUE(all.substr(0, end).ends_with("\nits second line"));
      EXPECT_TRUE(seen[part].insert(all.substr(0, end)).second);
    }
  }
  for (const auto& d : seen[1]) EXPECT_FALSE(seen[0].contains(d));
  EXPECT_GE(seen[0].size() + seen[1].size(), 396u);  // at most the ends are dropped
  EXPECT_LE(packed.tokens() - ids_seen, 2 * spec.length);

  // Another mark is another text.
  auto marks = nlohmann::json::parse(t.config());
  marks["eos_token"] = "<|im_end|>";
  const auto marked = BytePairTokenizer::from_json(t.json(), marks.dump(), "marked");
  EXPECT_NE(t.decode(stream(PackedText(spec, marked), 0, 2)).find("<|im_end|>"), std::string::npos);

  const PackedText again(spec, t);  // from the cache
  EXPECT_EQ(stream(again, 0, again.size()), stream(packed, 0, packed.size()));
  EXPECT_EQ(again.identity(), packed.identity());
  const auto both = packed.read(std::vector<std::int64_t>{7, 3}, 1).columns.at("ids");
  EXPECT_EQ(both.size(0), 2);
  EXPECT_TRUE(both[1].equal(packed.read(std::vector<std::int64_t>{3}, 0).columns.at("ids")[0]));
  spec.seed = 2;
  const PackedText other(spec, t);
  EXPECT_NE(stream(other, 0, 5), stream(packed, 0, 5));
  EXPECT_THROW(packed.read(std::vector<std::int64_t>{packed.size()}, 0), DataError);
  spec.length = 1 << 20;
  EXPECT_THROW(PackedText(spec, t), DataError);
  spec.sources = {folder.write("bad.txt", std::string("a\0b", 3))};
  EXPECT_THROW(PackedText(spec, t), DataError);
  spec.sources.clear();
  EXPECT_THROW(PackedText(spec, t), UsageError);
  spec.sources = {"arithmetic"}, spec.length = 64, spec.arithmetic = 300;
  EXPECT_GT(PackedText(spec, t).train(), 100);
}

}  // namespace
}  // namespace trireme
