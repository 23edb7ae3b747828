// libFuzzer entry for a checkpoint's manifest, built by hand:
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz/manifest_fuzz.cpp \
//     framework/io/manifest.cpp comm/crc32c.cpp comm/error.cpp comm/buffer.cpp -o manifest_fuzz &&
//     ./manifest_fuzz -max_len=8192 CORPUS      (start with a manifest.json without its last key, "manifest_crc32c")
// The checksum is made right for every input. Whatever the bytes: a data error of one line, or a manifest that prints
// and parses to itself. Whole checkpoints: checkpoint_test, MutatedOnesLoadOrAreRefused.
#include "comm/error.h"
#include "comm/crc32c.h"
#include "framework/io/manifest.h"

#include <cstdio>
#include <cstdlib>

namespace {

void check(bool ok, const char* what, const std::string& detail) {
  if (ok) return;
  std::fprintf(stderr, "%s\n%s\n", what, detail.c_str());
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string text(reinterpret_cast<const char*>(data), size);
  char seal[64];
  std::snprintf(seal, sizeof seal, ",\n \"manifest_crc32c\": \"%08x\"\n}\n", trireme::crc32c(data, size));
  try {
    const auto manifest = trireme::Manifest::parse(text + seal, "m");
    const std::string printed = manifest.print();
    check(trireme::Manifest::parse(printed, "m").print() == printed, "it does not print to itself", printed);
  } catch (const trireme::Error& e) {
    const std::string what = e.what();
    check(e.code() == trireme::ExitCode::data, "not a data error", what);
    check(what.size() < 10000 && what.find('\n') == what.npos, "not one line", what);
  }
  return 0;
}
