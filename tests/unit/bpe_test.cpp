// The byte-level BPE and the chat templates against vectors of `tokenizers` and transformers
// (tests/reference/make_tokenizer_vectors.py).
#include "data/text/bpe.h"

#include "comm/error.h"
#include "data/text/chat.h"
#include "tests/needs.h"
#include "tests/unit/reference_files.h"

#include <filesystem>
#include <fstream>
#include <thread>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <unistd.h>

namespace trireme {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int64_t>;

json load(const std::string& path) { return json::parse(std::ifstream(path)); }
const json& layouts() {
  static const json all = load(test::reference_file("bpe_vectors.json"));
  return all;
}
const json& family(const std::string& name) {
  for (const json& l : layouts())
    if (l["family"] == name) return l;
  throw std::runtime_error(name);
}
BytePairTokenizer tokenizer_of(const json& layout) {
  return BytePairTokenizer::from_json(layout["tokenizer"].dump(), layout["config"].dump(), layout["family"]);
}

int compare(const json& all) {
  int compared = 0, wrong = 0;
  for (const json& layout : all) {
    const auto t = tokenizer_of(layout);
    for (const json& c : layout["cases"]) {
      const std::string text = c[0];
      const Ids ids = t.encode(text, true);
      ++compared;
      if ((ids != c[1].get<Ids>() || t.decode(ids, true) != c[2].get<std::string>() ||
           t.encode(text) != c[3].get<Ids>()) &&
          ++wrong <= 10)
        ADD_FAILURE() << layout["family"] << ": " << c << "\n got " << json(ids) << " " << t.decode(ids, true);
    }
  }
  EXPECT_EQ(wrong, 0);
  return compared;
}

std::string refusal(const json& tokenizer) {
  try {
    BytePairTokenizer::from_json(tokenizer.dump(), "", "t.json");
  } catch (const DataError& e) {
    return e.what();
  }
  return "accepted";
}
void expect_holds(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), text.npos) << text;
  EXPECT_EQ(text.find('\n'), text.npos) << text;
}

TEST(BytePair, EqualsTokenizers) {
  TRIREME_NEEDS("PCRE2");
  EXPECT_GE(compare(layouts()), 400);
}

TEST(BytePair, EqualsTokenizersOnManyCases) {
  const char* path = std::getenv("TRIREME_BPE_CASES");
  if (!path) GTEST_SKIP() << "TRIREME_BPE_CASES names no file; make_tokenizer_vectors.py --cases writes one";
  EXPECT_GE(compare(load(path)), 1000);
}

TEST(BytePair, OldMergesAndFoldersReadAlike) {
  TRIREME_NEEDS("PCRE2");
  json layout = family("qwen2");
  const auto folder = std::filesystem::temp_directory_path() / ("trireme_bpe_" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  tokenizer_of(layout).save(folder.string());
  const auto saved = BytePairTokenizer::read(folder.string());
  for (json& m : layout["tokenizer"]["model"]["merges"]) m = m[0].get<std::string>() + " " + m[1].get<std::string>();
  const auto old = tokenizer_of(layout);
  for (const json& c : layout["cases"]) {
    EXPECT_EQ(old.encode(c[0].get<std::string>()), c[3].get<Ids>());
    EXPECT_EQ(saved.encode(c[0].get<std::string>()), c[3].get<Ids>());
  }
  EXPECT_EQ(saved.eos(), saved.id("<|im_end|>"));
  EXPECT_FALSE(saved.bos());
  // transformers 5 keeps the chat template in a file of its own.
  std::ofstream(folder / "chat_template.jinja") << "{{ messages }}";
  EXPECT_THROW(chat_template("auto", BytePairTokenizer::read(folder.string()), "m"), DataError);
  // It does not make up for a config that is cut short.
  std::ofstream(folder / "tokenizer_config.json") << "{\"eos_token\": ";
  EXPECT_THROW(BytePairTokenizer::read(folder.string()), DataError);
  std::filesystem::remove_all(folder);
  EXPECT_THROW(BytePairTokenizer::read(folder.string()), DataError);
}

// Of transformers' classes of these models, as published GPT-2 needs it; a null is said.
TEST(BytePair, AModelsClassMarksTheEnd) {
  TRIREME_NEEDS("PCRE2");
  const auto folder = std::filesystem::temp_directory_path() / ("trireme_eos_" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "tokenizer.json") << family("gpt2")["tokenizer"].dump();
  const auto eos = [&](const char* model, const char* config) {
    std::ofstream(folder / "config.json") << json{{"model_type", model}};
    std::ofstream(folder / "tokenizer_config.json") << config;
    return BytePairTokenizer::read(folder.string()).eos();
  };
  const auto end = BytePairTokenizer::read(folder.string()).id("<|endoftext|>");
  ASSERT_TRUE(end);
  EXPECT_EQ(eos("gpt2", R"({"model_max_length": 1024})"), end);
  EXPECT_EQ(eos("qwen2", ""), end);
  EXPECT_FALSE(eos("gpt2", R"({"eos_token": null})"));
  EXPECT_FALSE(eos("llama", R"({"model_max_length": 1024})"));
  std::filesystem::remove_all(folder);
}

// As `tokenizers` does: "hel" is h, el, since he comes after el.
TEST(BytePair, ThePairsLastMergeCounts) {
  TRIREME_NEEDS("PCRE2");
  json t = family("gpt2")["tokenizer"];
  t["model"]["vocab"] = {{"h", 0}, {"e", 1}, {"l", 2}, {"he", 3}, {"el", 4}};
  t["added_tokens"] = json::array();
  t["model"]["merges"] = json::parse(R"([["h","e"],["e","l"]])");
  EXPECT_EQ(BytePairTokenizer::from_json(t.dump(), "", "t").encode("hel"), (Ids{3, 2}));
  t["model"]["merges"] = json::parse(R"([["h","e"],["e","l"],["h","e"]])");
  EXPECT_EQ(BytePairTokenizer::from_json(t.dump(), "", "t").encode("hel"), (Ids{0, 4}));
}

TEST(BytePair, SpansCoverTheText) {
  TRIREME_NEEDS("PCRE2");
  for (const char* name : {"gpt2", "gpt2_prefix", "qwen2", "llama3"}) {
    const auto t = tokenizer_of(family(name));
    const bool all_bytes = t.encode("\xF0\x9F\x98\x80").size() == 4;
    const std::string text = t.normalized(!all_bytes ? "two  words\n\n 12, don't"
                                                     : "  Grüße, cafe\u0301 <|im_end|>x\n\n 12 \xF0\x9F\x98\x80 don't");
    std::vector<TokenSpan> spans;
    const Ids ids = t.encode(text, false, &spans);
    ASSERT_EQ(ids.size(), spans.size());
    std::size_t at = 0;
    for (const TokenSpan& s : spans) {
      EXPECT_EQ(s.first, at) << name;
      at = s.last;
    }
    EXPECT_EQ(at, text.size()) << name;
  }
}

TEST(BytePair, BrokenTextAndIds) {
  TRIREME_NEEDS("PCRE2");
  const auto t = tokenizer_of(family("gpt2"));
  EXPECT_EQ(t.encode("a\xFF b\xC3"), t.encode("a\uFFFD b\uFFFD"));
  // A character cut in its middle is one mark, as in Python's bytes.decode(errors="replace").
  const Ids half = t.encode("\xF0\x9F\x98\x80");
  ASSERT_EQ(half.size(), 4u);
  EXPECT_EQ(t.decode(Ids(half.begin(), half.begin() + 3)), "\uFFFD");
  EXPECT_EQ(t.decode(Ids{half[0], half[0], half[1], half[2]}), "\uFFFD\uFFFD");
  for (const std::int64_t id : {std::int64_t(-1), t.vocab_size(), std::int64_t(1) << 40})
    EXPECT_EQ(t.decode(Ids{half[0], half[1], half[2], id, half[3]}), "\xF0\x9F\x98\x80");
  const std::string spaces(200000, ' '), letters(200000, 'a');  // neither is quadratic
  EXPECT_EQ(t.decode(t.encode(spaces)), spaces);
  EXPECT_EQ(t.decode(t.encode(letters)), letters);
}

TEST(BytePair, WhatIsNotOursIsRefusedByName) {
  TRIREME_NEEDS("PCRE2");
  const json good = family("llama3")["tokenizer"];
  const auto with = [&](const char* pointer, const json& value) {
    json t = good;
    t[json::json_pointer(pointer)] = value;
    return refusal(t);
  };
  expect_holds(with("/model/type", "Unigram"), "the model is Unigram");
  expect_holds(with("/model/byte_fallback", true), "byte_fallback");
  expect_holds(with("/model/end_of_word_suffix", "</w>"), "end_of_word_suffix");
  expect_holds(with("/normalizer", {{"type", "Lowercase"}}), "the normalizer is Lowercase");
  expect_holds(with("/pre_tokenizer", {{"type", "Metaspace"}}), "the pre-tokenizer is Metaspace");
  expect_holds(with("/pre_tokenizer", nullptr), "the pre-tokenizer");
  expect_holds(with("/pre_tokenizer/pretokenizers/0/behavior", "Removed"), "Split with Removed");
  expect_holds(with("/pre_tokenizer/pretokenizers/0/pattern/Regex", "(a"), "is refused");
  expect_holds(with("/decoder", {{"type", "WordPiece"}}), "the decoder is WordPiece");
  expect_holds(with("/post_processor", {{"type", "BertProcessing"}}), "the post-processor is BertProcessing");
  expect_holds(with("/added_tokens/0/single_word", true), "single_word");
}

TEST(BytePair, HostileFilesAreRefused) {
  TRIREME_NEEDS("PCRE2");
  const json good = family("gpt2")["tokenizer"];
  const auto with = [&](const char* pointer, const json& value) {
    json t = good;
    t[json::json_pointer(pointer)] = value;
    return refusal(t);
  };
  EXPECT_EQ(refusal(good), "accepted");
  expect_holds(with("/model/merges", json::array()), "no merges");
  expect_holds(with("/model/merges/3", json::array({"a"})), "merge 4 is no pair");
  expect_holds(with("/model/merges/3", json::array({"zzq", "e"})), "merge 4 names `zzq`");
  expect_holds(with("/model/merges/3", 7), "merge 4");
  for (const json& id : {json(-1), json(1 << 30), json(1e300), json("1"), json(nullptr), json(1.5)})
    expect_holds(with("/model/vocab/a", id), "has the id");
  expect_holds(with("/model/vocab/a", good["model"]["vocab"]["b"]), "belongs to two tokens");
  expect_holds(with("/added_tokens/0/id", 5), "belongs to two tokens");
  expect_holds(with("/model/vocab", json::object()), "no vocabulary");
  expect_holds(with("/model", 3), "no `model`");
  const json many(1000, {{"type", "Digits"}});  // a step each, of a recursion
  expect_holds(with("/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", many}}), "one of many steps");
  const std::string whole = good.dump();
  for (std::size_t cut = 0; cut < whole.size(); cut += whole.size() / 50)
    EXPECT_THROW(BytePairTokenizer::from_json(whole.substr(0, cut), "", "t.json"), DataError) << cut;
  EXPECT_THROW(BytePairTokenizer::from_json(std::string(100000, '['), "", "t.json"), DataError);
}

TEST(BytePair, ThreadsEncodeAlike) {
  TRIREME_NEEDS("PCRE2");
  const auto t = tokenizer_of(family("qwen2"));
  const auto& cases = family("qwen2")["cases"];
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (int k = 0; k < 4; ++k)
    threads.emplace_back([&, k] {
      for (int round = 0; round < 5; ++round)
        for (const json& c : cases) wrong[k] += t.encode(c[0].get<std::string>()) != c[3].get<Ids>();
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4));
}

// Textbook training, recounting everything for each merge.
TEST(BytePair, TrainingEqualsRecounting) {
  TRIREME_NEEDS("PCRE2");
  const std::vector<std::string> texts = {"low lower lowest low", "new newer newest 12 newest wide", "aaaa aaa aa"};
  const auto t = BytePairTokenizer::train(texts, 259 + 20);
  const json file = json::parse(t.json());
  std::vector<std::vector<std::string>> words;  // spelled as the file does; every word here is parted by one space
  for (const std::string& text : texts)
    for (const char c : text) {
      if (c == ' ' || words.empty() || &c == text.data() || std::isdigit(c)) words.emplace_back();
      words.back().push_back(c == ' ' ? "\u0120" : std::string(1, c));
    }
  const auto id = [&](const std::string& s) { return file["model"]["vocab"][s].get<int>(); };
  for (const json& merge : file["model"]["merges"]) {
    std::map<std::pair<std::string, std::string>, int> counts;
    for (const auto& w : words)
      for (std::size_t i = 0; i + 1 < w.size(); ++i) ++counts[{w[i], w[i + 1]}];
    const std::pair<std::string, std::string> pair = {merge[0], merge[1]};
    ASSERT_GE(counts[pair], 2);
    for (const auto& [other, n] : counts) {
      EXPECT_LE(n, counts[pair]) << other.first << "+" << other.second;
      const bool earlier = std::pair(id(pair.first), id(pair.second)) < std::pair(id(other.first), id(other.second));
      EXPECT_TRUE(n < counts[pair] || other == pair || earlier) << other.first << "+" << other.second;
    }
    for (auto& w : words)
      for (std::size_t i = 0; i + 1 < w.size(); ++i)
        if (w[i] == pair.first && w[i + 1] == pair.second) w[i] += w[i + 1], w.erase(w.begin() + i + 1);
  }
  EXPECT_GT(file["model"]["merges"].size(), 10u);
  EXPECT_EQ(t.json(), BytePairTokenizer::train(texts, 259 + 20).json());
  EXPECT_EQ(t.eos(), 0);
  EXPECT_EQ(t.decode(t.encode("lowest 12 \u00e9<|im_end|>")), "lowest 12 \u00e9<|im_end|>");
  EXPECT_EQ(name_of(chat_template("auto", t, "own")), "chatml");  // its own template is among the known
  EXPECT_THROW(BytePairTokenizer::train(texts, 258), UsageError);
}

TEST(Chat, EqualsApplyChatTemplate) {
  TRIREME_NEEDS("PCRE2");
  int compared = 0, masks = 0;
  for (const json& layout : layouts()) {
    const auto t = tokenizer_of(layout);
    for (const json& c : layout["chats"]) {
      std::vector<Message> talk;
      for (const json& m : c["messages"]) talk.push_back({m[0], m[1], ""});
      const ChatTemplate format = chat_template(c["template"], t, "m");
      const Example e = encode_chat(talk, format, t, 10000, false, "m");
      EXPECT_EQ(Ids(e.ids.begin(), e.ids.end()), c["ids"].get<Ids>()) << c;
      if (c["mask"].is_array()) {
        EXPECT_EQ(e.mask, c["mask"].get<std::vector<std::uint8_t>>()) << c;
        ++masks;
      }
      talk.pop_back();
      const auto prompt = encode_prompt(talk, format, t, "m");
      EXPECT_EQ(Ids(prompt.begin(), prompt.end()), c["prompt"].get<Ids>()) << c;
      ++compared;
    }
  }
  EXPECT_GE(compared, 20);
  EXPECT_GE(masks, 8);
}

TEST(Chat, PlainAndAlpacaAreTheText) {
  TRIREME_NEEDS("PCRE2");
  const auto t = tokenizer_of(family("gpt2"));
  const auto of = [&](const std::string& text) {
    const Ids ids = t.encode(text, true);
    return std::vector<std::int32_t>(ids.begin(), ids.end());
  };
  const std::vector<Message> talk = {{"user", "Add.", "1 and 2"}, {"assistant", "3", ""}};
  const std::string prompt =
      "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
      "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### "
      "Response:\n";
  const Example e = encode_chat(talk, ChatTemplate::alpaca, t, 1000, false, "m");
  EXPECT_EQ(e.ids, of(prompt + "3<|endoftext|>"));
  EXPECT_EQ(encode_prompt({talk[0]}, ChatTemplate::alpaca, t, "m"), of(prompt));
  std::size_t counted = 0;
  for (auto m : e.mask) counted += m;
  EXPECT_EQ(counted, 2u);  // "3" and eos
  EXPECT_EQ(e.mask.back(), 1);
  EXPECT_EQ(e.ids.back(), end_of_answer(ChatTemplate::alpaca, t));
  EXPECT_EQ(encode_chat(talk, ChatTemplate::plain, t, 1000, true, "m").ids, of("Add.\n1 and 2\n3<|endoftext|>"));
  EXPECT_EQ(encode_chat(talk, ChatTemplate::plain, t, 3, true, "m").mask, (std::vector<std::uint8_t>{1, 1, 1}));
}

TEST(Chat, TemplatesAreChosenOrRefused) {
  TRIREME_NEEDS("PCRE2");
  const auto qwen = tokenizer_of(family("qwen2")), gpt2 = tokenizer_of(family("gpt2")),
             llama = tokenizer_of(family("llama3"));
  EXPECT_EQ(chat_template("auto", qwen, "m"), ChatTemplate::chatml);
  EXPECT_EQ(chat_template("auto", llama, "m"), ChatTemplate::llama3);
  EXPECT_EQ(chat_template("auto", gpt2, "m"), ChatTemplate::alpaca);
  EXPECT_THROW(chat_template("chatml", gpt2, "m"), UsageError);
  EXPECT_THROW(chat_template("vicuna", gpt2, "m"), UsageError);
  EXPECT_THROW(chat_template("plain", tokenizer_of(family("gpt2_prefix")), "m"), UsageError);  // no eos
  json layout = family("qwen2");
  layout["config"]["chat_template"] = "{% for m in messages %}[INST]{{ m.content }}{% endfor %}";
  const auto other = tokenizer_of(layout);
  try {
    chat_template("auto", other, "models/x");
    ADD_FAILURE() << "accepted";
  } catch (const DataError& e) {
    expect_holds(e.what(), "models/x");
    expect_holds(e.what(), "[INST]");
  }
  EXPECT_EQ(chat_template("qwen3", other, "m"), ChatTemplate::qwen3);
  EXPECT_THROW(encode_chat({{"tool", "x", ""}}, ChatTemplate::chatml, qwen, 9, false, "f:3"), DataError);
}

}  // namespace
}  // namespace trireme
