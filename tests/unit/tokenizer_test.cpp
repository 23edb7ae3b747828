#include "data/text/tokenizer.h"

#include "comm/error.h"
#include "data/text/text.h"
#include "data/text/unicode.h"
#include "tests/needs.h"
#include "tests/unit/reference_files.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace {

using namespace trireme;
namespace fs = std::filesystem;

const std::vector<std::string> captions = {"crow, animal, silhouette, bird",
                                           "crow nest, tree",
                                           "a red flag of france, flag, europe",
                                           "flag of spain, flag, europe",
                                           "birds and trees",
                                           "the red crow",
                                           "Crow's Nest",
                                           "naïve café, 3 cups, food"};

std::string temporary(const std::string& name) {
  return (fs::temp_directory_path() / ("trireme_tokenizer_" + std::to_string(getpid()) + "_" + name)).string();
}

// Compares with open_clip on every case of the file; returns the number compared.
int compare(const Tokenizer& tokenizer, std::istream& in) {
  int compared = 0, wrong = 0;
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line);
    const auto expected = json["ids"].get<std::vector<std::int64_t>>();
    const auto got = tokenizer.encode(json["text"].get<std::string>());
    ++compared;
    if (got != expected && ++wrong <= 10)
      ADD_FAILURE() << json["text"] << "\n got " << nlohmann::json(got) << "\n expected " << json["ids"];
  }
  EXPECT_EQ(wrong, 0);
  return compared;
}

TEST(Tokenizer, EqualsOpenClip) {
  const char* path = std::getenv("TRIREME_TOKENIZER_CASES");
  if (!path) GTEST_SKIP() << "TRIREME_TOKENIZER_CASES names no file; tests/reference/tokenizer_cases.py writes one";
  std::ifstream in(path);
  std::string first;
  ASSERT_TRUE(std::getline(in, first)) << path;
  const Tokenizer tokenizer = Tokenizer::load(nlohmann::json::parse(first)["merges"]);
  EXPECT_EQ(tokenizer.vocab_size(), 49408);
  EXPECT_EQ(tokenizer.sot(), 49406);
  EXPECT_EQ(tokenizer.eot(), 49407);
  EXPECT_GE(compare(tokenizer, in), 1000);
}

// The same comparison with a small merges file of our own, which the real tokenizer read when the cases were
// made.
TEST(Tokenizer, EqualsOpenClipOnCommittedCases) {
  TRIREME_NEEDS("PCRE2");
  const Tokenizer tokenizer = Tokenizer::load(trireme::test::reference_file("tokenizer_merges.txt"));
  std::ifstream in(trireme::test::reference_file("tokenizer_cases.jsonl"));
  std::string first;
  ASSERT_TRUE(std::getline(in, first));
  EXPECT_GE(compare(tokenizer, in), 50);
}

TEST(Tokenizer, TrainedRoundTrip) {
  TRIREME_NEEDS("PCRE2");
  const Tokenizer t = Tokenizer::train(captions, 600);
  EXPECT_GT(t.vocab_size(), 514);
  EXPECT_LE(t.vocab_size(), 600);
  for (const auto& c : captions) {
    const auto ids = t.encode(c);
    for (auto id : ids) EXPECT_LT(id, t.sot());
    EXPECT_EQ(t.encode(t.decode(ids)), ids) << c;  // decoding puts a space after each word
  }
  EXPECT_EQ(t.decode(t.encode("crow nest")), "crow nest ");
  EXPECT_EQ(t.encode("crow").size(), 1u);  // frequent words become one symbol
  EXPECT_EQ(t.decode(t.encode("ΑΒΓ 日本 \xF0\x9F\x98\x80")), "αβγ 日本 \xF0\x9F\x98\x80 ");
}

TEST(Tokenizer, TrainingIsDeterministicAndSaved) {
  TRIREME_NEEDS("PCRE2");
  const Tokenizer a = Tokenizer::train(captions, 580), b = Tokenizer::train(captions, 580);
  EXPECT_EQ(a.text(), b.text());
  auto reversed = captions;
  std::reverse(reversed.begin(), reversed.end());
  EXPECT_EQ(Tokenizer::train(reversed, 580).text(), a.text());
  const std::string path = temporary("merges.txt");
  a.save(path);
  const Tokenizer c = Tokenizer::load(path);
  fs::remove(path);
  EXPECT_EQ(c.text(), a.text());
  EXPECT_EQ(c.vocab_size(), a.vocab_size());
  for (const auto& caption : captions) EXPECT_EQ(c.encode(caption), a.encode(caption));
}

// Textbook training, recounting everything for each merge.
TEST(Tokenizer, TrainingEqualsRecounting) {
  TRIREME_NEEDS("PCRE2");
  const std::vector<std::string> text = {"aaa aaab ab abab", "aab ba bab", "abc abc abcd bcd"};
  const Tokenizer fast = Tokenizer::train(text, 514 + 12);
  std::vector<std::vector<std::string>> words;
  for (const std::string& t : text)
    for (std::size_t i = 0; i < t.size();) {
      const auto end = std::min(t.find(' ', i), t.size());
      std::vector<std::string> w;
      for (std::size_t k = i; k < end; ++k) w.emplace_back(1, t[k]);
      w.back() += "</w>";
      words.push_back(w);
      i = end + 1;
    }
  std::map<std::string, int> id;  // ids of the first 512 follow the byte, then the byte as a word's end
  for (char c : {'a', 'b', 'c', 'd'}) id[std::string(1, c)] = c - '!', id[std::string(1, c) + "</w>"] = 256 + c - '!';
  std::string expected;
  for (int m = 0; m < 12; ++m) {
    std::map<std::pair<int, int>, int> count;
    std::map<int, std::string> name;
    for (const auto& [s, i] : id) name[i] = s;
    for (const auto& w : words)
      for (std::size_t i = 0; i + 1 < w.size(); ++i) ++count[{id[w[i]], id[w[i + 1]]}];
    std::pair<int, int> best;
    int most = 1;
    for (const auto& [pair, n] : count)
      if (n > most && !id.contains(name[pair.first] + name[pair.second])) most = n, best = pair;
    if (most < 2) break;
    const std::string left = name[best.first], right = name[best.second];
    expected += left + " " + right + "\n";
    id[left + right] = 512 + m;
    for (auto& w : words) {
      std::vector<std::string> out;
      for (std::size_t i = 0; i < w.size(); ++i)
        if (i + 1 < w.size() && w[i] == left && w[i + 1] == right)
          out.push_back(left + right), ++i;
        else
          out.push_back(w[i]);
      w = out;
    }
  }
  const std::string text_form = fast.text();
  EXPECT_EQ(text_form.substr(text_form.find('\n') + 1), expected);
}

TEST(Tokenizer, BatchesAreCutAndPadded) {
  TRIREME_NEEDS("PCRE2");
  const Tokenizer t = Tokenizer::train(captions, 514);  // bytes only
  at::Tensor lengths;
  const std::vector<std::string> texts = {"ab", "abcdefgh", ""};
  const at::Tensor ids = t.encode_batch(texts, 6, &lengths);
  ASSERT_EQ(ids.sizes(), (std::vector<std::int64_t>{3, 6}));
  const auto a = ids.accessor<std::int64_t, 2>();
  const std::int64_t s = t.sot(), e = t.eot(), A = 'a' - '!', B = 'b' - '!';
  const std::int64_t expected[3][6] = {{s, A, 256 + B, e, 0, 0}, {s, A, A + 1, A + 2, A + 3, e}, {s, e, 0, 0, 0, 0}};
  for (int i = 0; i < 3; ++i)
    for (int k = 0; k < 6; ++k) EXPECT_EQ(a[i][k], expected[i][k]) << i << " " << k;
  const auto length = lengths.accessor<std::int64_t, 1>();
  EXPECT_EQ(length[0], 4);
  EXPECT_EQ(length[1], 6);
  EXPECT_EQ(length[2], 2);
  EXPECT_THROW(t.encode_batch(texts, 1), UsageError);
}

TEST(Tokenizer, HostileText) {
  TRIREME_NEEDS("PCRE2");
  const Tokenizer t = Tokenizer::train(captions, 600);
  t.encode(std::string("\xff\xfe\xc0\x80\xed\xa0\x80\xf4\x90\x80\x80", 11));
  t.encode(std::string("\0\0a\0", 4));
  EXPECT_EQ(t.encode(std::string(300000, 'a')).size(), 300000u);  // one word: must not take quadratic time
  EXPECT_THROW(t.decode(std::vector<std::int64_t>{t.vocab_size()}), DataError);
  EXPECT_THROW(t.decode(std::vector<std::int64_t>{-1}), DataError);
}

TEST(Tokenizer, MergeFileMistakes) {
  auto message = [](const std::string& text) -> std::string {
    try {
      Tokenizer::from_text(text, "m.txt");
    } catch (const DataError& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_NE(message("").find("m.txt:1"), std::string::npos);
  EXPECT_NE(message("a b\n").find("#version"), std::string::npos);
  EXPECT_NE(message("#version: 1\na b\nab\n").find("m.txt:3"), std::string::npos);
  EXPECT_NE(message("#version: 1\nab c\n").find("m.txt:2"), std::string::npos);
  EXPECT_NE(message("#version: 1\na b\na b\n").find("twice"), std::string::npos);
  EXPECT_NE(message("#version: 1\na</w> b\n").find("end a word"), std::string::npos);
  EXPECT_EQ(message("#version: 1\na b\nab c</w>\n"), "no error");
  EXPECT_THROW(Tokenizer::load("/no/such/merges.txt"), DataError);
  EXPECT_THROW(Tokenizer::train(captions, 100), UsageError);
  const std::string path = temporary("bad.gz");
  std::ofstream(path, std::ios::binary) << "\x1f\x8b\x08\x00 not really";
  EXPECT_THROW(Tokenizer::load(path), DataError);
  fs::remove(path);
}

// Nothing that a file holds is left out in silence.
TEST(Tokenizer, SurplusIsReadOrRefused) {
  std::string merges = "#version: trireme byte-level bpe 1\n";
  std::vector<std::string> letters;
  for (char c = 'a'; c <= 'z'; ++c) letters.push_back(std::string(1, c));
  int n = 0;
  const auto add = [&](const std::string& a, const std::string& b) {
    if (n < 48895) merges += a + " " + b + "\n", ++n;
  };
  for (const auto& a : letters)
    for (const auto& b : letters) add(a, b);
  for (const auto& a : letters)
    for (const auto& b : letters)
      for (const auto& c : letters) add(a + b, c);
  for (const auto& a : letters)
    for (const auto& b : letters)
      for (const auto& c : letters)
        for (const auto& d : letters) add(a + b + c, d);
  ASSERT_EQ(n, 48895);
  EXPECT_THROW(Tokenizer::from_text(merges, "ours"), DataError);  // one more than a vocabulary has
  EXPECT_EQ(Tokenizer::from_text(merges.substr(0, merges.rfind('\n', merges.size() - 2) + 1), "ours").vocab_size(),
            49408);
  merges.replace(0, merges.find('\n'), "\"bpe_simple_vocab_16e6.txt#version: 0.2");
  EXPECT_EQ(Tokenizer::from_text(merges, "CLIP's").vocab_size(), 49408);  // its file is longer than its vocabulary
}

TEST(Tokenizer, GzipOfSeveralMembers) {
  TRIREME_NEEDS("zlib");
  const auto zipped = [](const std::string& text) {  // stored, not compressed
    std::uint32_t crc = ~0u;
    for (const unsigned char c : text) {
      crc ^= c;
      for (int k = 0; k < 8; ++k) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    const auto little = [](std::uint32_t v, int n) {
      std::string s;
      for (int k = 0; k < n; ++k) s += char(v >> 8 * k);
      return s;
    };
    const auto n = std::uint32_t(text.size());
    return std::string("\x1f\x8b\x08\0\0\0\0\0\0\xff\x01", 11) + little(n, 2) + little(~n, 2) + text + little(~crc, 4) +
           little(n, 4);
  };
  const std::string path = temporary("two.gz");
  std::ofstream(path, std::ios::binary) << zipped("#version: 1\na b\n") << zipped("ab c</w>\n");
  EXPECT_EQ(Tokenizer::load(path).vocab_size(), 514 + 2);
  std::ofstream(path, std::ios::binary) << zipped("#version: 1\na b\n") << "surplus";
  EXPECT_THROW(Tokenizer::load(path), DataError);
  fs::remove(path);
}

TEST(Unicode, ComposesAndLowers) {
  EXPECT_EQ(nfc(U"e\u0323\u0302"), U"\u1ec7");
  EXPECT_EQ(nfc(U"e\u0302\u0323"), U"\u1ec7");       // marks are put in order first
  EXPECT_EQ(nfc(U"\u1112\u1161\u11ab"), U"\ud55c");  // Hangul
  EXPECT_EQ(nfc(U"\u0958"), U"\u0915\u093c");        // never composed again
  EXPECT_EQ(nfc(U"\u2126"), U"\u03a9");              // singleton
  EXPECT_EQ(lower(U"ΟΔΟΣ ΣΑΣ Σ"), U"οδος σας σ");
  EXPECT_EQ(lower(U"İ"), U"i\u0307");
}

TEST(Text, UnescapesOnce) {
  EXPECT_EQ(html_unescape("&lt;&amp;lt;&#65;&#x42;&eacute &eacuteX &notit; &bogus; & &#; &#x; &#0; &#128; &#55296;"),
            "<&lt;ABé éX ¬it; &bogus; & &#; &#x; \xEF\xBF\xBD € \xEF\xBF\xBD");
  EXPECT_EQ(html_unescape("&#99999999999999999999;"), "\xEF\xBF\xBD");
  EXPECT_EQ(fold_latin("Éß\u0142ó日"), "Esslo ");
  EXPECT_EQ(utf8_or_latin1("caf\xe9"), "café");
}

TEST(Text, TellsEncodingsApart) {
  const auto read = [](const std::string& bytes) {
    const auto d = decode_text(bytes);
    return d ? std::to_string(int(d->encoding)) + d->text : "no text";
  };
  EXPECT_EQ(read(""), "0");
  EXPECT_EQ(read("\xEF\xBB\xBF"
                 "café"),
            "0café");
  EXPECT_EQ(read("caf\xe9"), "2café");
  EXPECT_EQ(read(std::string("\xff\xfe\xe9\0\x3d\xd8\0\xde", 8)), "1é😀");
  EXPECT_EQ(read(std::string("\xfe\xff\0\xe9\xd8\x3d\xde\0", 8)), "1é😀");
  EXPECT_EQ(read("\xff\xfe"), "1");
  for (const auto& bytes : {std::string("a\0", 2),
                            std::string("\xff\xfe"
                                        "a",
                                        3),  // UTF-16 unmarked; cut
                            std::string("\xff\xfe\0\xde", 4), std::string("\xff\xfe\x3d\xd8", 4),  // half a character
                            std::string("\xff\xfe\0\0a\0\0\0", 8)})                                // UTF-32
    EXPECT_EQ(read(bytes), "no text");
}

}  // namespace
