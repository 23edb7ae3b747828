// The header of a safetensors file, read and checked without torch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct SafetensorsHeader {
  struct Tensor {
    std::string dtype;                 // one of the format's names, "F32"
    std::vector<std::uint64_t> shape;  // [] is a scalar
    std::uint64_t begin = 0, end = 0;  // bytes from the start of the file
  };
  std::map<std::string, Tensor, std::less<>> tensors;
  std::map<std::string, std::string> metadata;
};

// The format writes the length of the header into the first 8 bytes; both sides refuse more than this.
inline constexpr std::uint64_t safetensors_max_header = 100'000'000;

// `file`: the whole file (mapped: only the header is touched). `path` is the place in messages.
// Throws DataError unless every rule of the format holds; then the tensors lie back to back from the header
// to the end of the file and each [begin, end) has exactly the size of its dtype and shape, which does not
// overflow. As upstream, tensors without elements may lie anywhere between two others, several at one place.
// Stricter than upstream where its reader is laxer than its specification: no space before '{', no key twice,
// entries and __metadata__ only as objects, fields of other names at most 4 levels deep.
SafetensorsHeader parse_safetensors_header(std::string_view path, std::span<const std::byte> file);

// A tensor name for a message: quoted, shortened, control characters and non-ASCII escaped.
std::string safetensors_quoted(std::string_view name);

}  // namespace trireme
