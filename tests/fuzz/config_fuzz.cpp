// libFuzzer entry for the config parser, built by hand:
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz/config_fuzz.cpp \
//     framework/config*.cpp comm/error.cpp -lyaml-cpp -o config_fuzz && ./config_fuzz -max_len=4096 CORPUS
// Whatever the bytes: a usage error of one line, or a config whose printed form loads and prints the same.
// A first line "+key=value" is an override.
#include "comm/error.h"
#include "framework/config/config.h"

#include <cstdio>
#include <cstdlib>

namespace {

struct Group {
  double x = 1;
  std::vector<double> list = {0.5};
  void fields(trireme::Fields& f) {
    f("x", x, "", {.min = -10, .max = 10});
    f("list", list, "");
  }
};
struct Schema {
  std::int64_t a = 1;
  bool b = false;
  std::string s, word = "one";
  std::vector<std::string> texts;
  std::vector<std::int64_t> integers;
  Group g;
  void fields(trireme::Fields& f) {
    f("a", a, "");
    f("b", b, "");
    f("s", s, "");
    f.choice("word", word, {"one", "two"}, "");
    f("texts", texts, "");
    f("integers", integers, "");
    f.group("g", g, "");
  }
};

void check(bool ok, const char* what, const std::string& detail) {
  if (ok) return;
  std::fprintf(stderr, "%s\n%s\n", what, detail.c_str());
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> overrides;
  if (text.starts_with('+')) {
    overrides.emplace_back(text.substr(1, text.find('\n') - 1));
    text.remove_prefix(std::min(text.size(), overrides[0].size() + 2));
  }
  if (text.find("extends") != text.npos) return 0;  // reads other files
  const auto visit = [](trireme::Fields& f) { Schema().fields(f); };
  try {
    const auto config = trireme::Config::parse(text, "t.yaml", overrides);
    const std::string printed = config.print(visit, true);
    const auto again = trireme::Config::parse(printed, "t.yaml");
    check(trireme::differing_keys(config, again, visit).empty(), "the printed config differs", printed);
    check(trireme::config_hash(config, visit) == trireme::config_hash(again, visit), "the hash differs", printed);
  } catch (const trireme::Error& e) {
    const std::string what = e.what();
    check(e.code() == trireme::ExitCode::usage, "not a usage error", what);
    check(what.size() < 1000 && what.find('\n') == what.npos, "not one short line", what);
  }
  return 0;
}
