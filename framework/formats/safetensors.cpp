#include "framework/formats/safetensors.h"

#include "comm/error.h"
#include "framework/formats/safetensors_header.h"
#include "framework/io/file_io.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace trireme {
namespace {

struct Type {
  const char* name;
  at::ScalarType scalar;
};
// In the order of upstream's enumeration: its writer puts the last first, which aligns every tensor.
constexpr Type types[] = {{"BOOL", at::kBool},  {"U8", at::kByte},       {"I8", at::kChar}, {"I16", at::kShort},
                          {"F16", at::kHalf},   {"BF16", at::kBFloat16}, {"I32", at::kInt}, {"F32", at::kFloat},
                          {"F64", at::kDouble}, {"I64", at::kLong}};
constexpr std::size_t max_dims = 64;  // torch's operators take no more

[[noreturn]] void fail(const std::string& path, const char* doing, int error) {
  throw DataError(path, std::string("cannot ") + doing + ": " + std::generic_category().message(error));
}

// A private, writable view of a whole file: writes stay in this process.
class Mapping {
 public:
  explicit Mapping(const std::string& path) {
    // Without O_NONBLOCK a named pipe would wait for a writer for ever.
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) fail(path, "open", errno);
    struct stat info {};
    const bool known = ::fstat(fd, &info) == 0;
    const int stat_error = errno;
    if (known && S_ISREG(info.st_mode) && info.st_size > 0) {
      size_ = std::size_t(info.st_size);
      // No swap is reserved: a file larger than the memory can be mapped.
      data_ = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    }
    const int map_error = errno;
    ::close(fd);
    if (!known) fail(path, "stat", stat_error);
    if (!S_ISREG(info.st_mode)) throw DataError(path, "is not a regular file");
    if (data_ == MAP_FAILED) fail(path, "map", map_error);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (data_) ::munmap(data_, size_);
  }
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  std::span<const std::byte> bytes() const { return {data(), size_}; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

// torch counts elements and strides in int64, and a dimension of 0 does not stop strides from overflowing.
std::vector<std::int64_t> torch_shape(const std::vector<std::uint64_t>& shape, const std::string& path,
                                      const std::string& place) {
  if (shape.size() > max_dims)
    throw DataError(path, place + std::to_string(shape.size()) + " dimensions; at most " + std::to_string(max_dims));
  std::int64_t elements = 8;  // the widest element: bytes must fit too
  for (const std::uint64_t n : shape)
    if (__builtin_mul_overflow(elements, std::max<std::uint64_t>(n, 1), &elements))
      throw DataError(path, place + "its shape is beyond what a tensor can have");
  return {shape.begin(), shape.end()};
}

std::size_t type_index(const NamedTensor& t, const std::string& path) {
  const std::string place = "tensor " + safetensors_quoted(t.name) + ": ";
  if (!t.tensor.defined()) throw DataError(path, place + "is undefined");
  if (t.tensor.layout() != at::kStrided || t.tensor.is_meta())
    throw DataError(path, place + "is not a dense tensor with data");
  for (std::size_t i = 0; i < std::size(types); ++i)
    if (types[i].scalar == t.tensor.scalar_type()) return i;
  throw DataError(path, place + "cannot write dtype " + c10::toString(t.tensor.scalar_type()),
                  "convert it to a float, integer or bool type first");
}

struct Item {
  const NamedTensor* named;
  std::size_t type;
};

std::vector<Item> in_file_order(std::span<const NamedTensor> tensors, const std::string& path) {
  std::vector<Item> items;
  for (const auto& t : tensors) items.push_back({&t, type_index(t, path)});
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    return a.type != b.type ? a.type > b.type : a.named->name < b.named->name;
  });
  std::vector<std::string_view> names;
  for (const auto& t : tensors) names.push_back(t.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) throw DataError(path, "the name " + safetensors_quoted(*twice) + " is there twice");
  if (std::binary_search(names.begin(), names.end(), "__metadata__"))
    throw DataError(path, "no tensor may have the name __metadata__");
  return items;
}

// Length, JSON and the spaces that align the data to 8 bytes.
std::string header_of(const std::vector<Item>& items, const std::map<std::string, std::string>& metadata,
                      const std::string& path) {
  std::string text = "{";
  try {
    const auto quoted = [](const std::string& s) { return nlohmann::json(s).dump(); };
    if (!metadata.empty()) text += "\"__metadata__\":" + nlohmann::json(metadata).dump();
    std::uint64_t at = 0;
    for (const auto& [named, type] : items) {
      const auto& t = named->tensor;
      if (text.size() > 1) text += ',';
      text += quoted(named->name) + ":{\"dtype\":\"" + types[type].name + "\",\"shape\":[";
      for (std::int64_t d = 0; d < t.dim(); ++d) {
        if (d > 0) text += ',';
        text += std::to_string(t.size(d));
      }
      text += "],\"data_offsets\":[" + std::to_string(at) + ",";
      at += t.nbytes();
      text += std::to_string(at) + "]}";
    }
  } catch (const nlohmann::json::exception&) {
    throw DataError(path, "a tensor's name or the metadata is not UTF-8");
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = text.size();
  if (length > safetensors_max_header) throw DataError(path, "too many names: the header would exceed 100 MB");
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

}  // namespace

struct Safetensors::File {
  explicit File(const std::string& p) : path(p), mapping(p), header(parse_safetensors_header(p, mapping.bytes())) {}
  std::string path;
  Mapping mapping;
  SafetensorsHeader header;
};

Safetensors::Safetensors(const std::string& path) : file_(std::make_shared<const File>(path)) {}

std::vector<std::string> Safetensors::names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : file_->header.tensors) names.push_back(name);
  return names;
}

bool Safetensors::has(const std::string& name) const { return file_->header.tensors.contains(name); }

const std::map<std::string, std::string>& Safetensors::metadata() const { return file_->header.metadata; }

at::Tensor Safetensors::tensor(const std::string& name) const {
  const auto it = file_->header.tensors.find(name);
  if (it == file_->header.tensors.end()) throw DataError(file_->path, "has no tensor " + safetensors_quoted(name));
  const auto& entry = it->second;
  const std::string place = "tensor " + safetensors_quoted(name) + ": ";
  const auto type =
      std::find_if(std::begin(types), std::end(types), [&](const Type& t) { return t.name == entry.dtype; });
  if (type == std::end(types))
    throw DataError(file_->path, place + "cannot read dtype " + entry.dtype, "convert it to F32 or BF16 first");
  const auto shape = torch_shape(entry.shape, file_->path, place);

  std::byte* data = file_->mapping.data() + entry.begin;
  const std::size_t bytes = entry.end - entry.begin;
  // A C++ bool with another value is undefined behaviour in every kernel that reads it.
  if (type->scalar == at::kBool && std::any_of(data, data + bytes, [](std::byte b) { return b > std::byte{1}; }))
    throw DataError(file_->path, place + "BOOL bytes other than 0 and 1");
  const auto options = at::TensorOptions().dtype(type->scalar).device(at::kCPU);
  const bool aligned = reinterpret_cast<std::uintptr_t>(data) % c10::elementSize(type->scalar) == 0;
  if (bytes > 0 && aligned)
    return at::from_blob(
        data, shape, [file = file_](void*) {}, options);
  // Other writers pad less than upstream does.
  at::Tensor copy = at::empty(shape, options);
  if (bytes > 0) std::memcpy(copy.data_ptr(), data, bytes);
  return copy;
}

void write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  const auto items = in_file_order(tensors, path);
  const std::string header = header_of(items, metadata, path);
  static std::atomic<unsigned> counter{0};
  const std::string temporary = path + ".tmp-" + std::to_string(getpid()) + "-" + std::to_string(counter++);
  // Never into the file itself: it may be mapped, by us as the source of these very tensors.
  try {
    AppendFile file(temporary, O_TRUNC);
    file.write(header);
    for (const auto& item : items) {
      const at::Tensor host = item.named->tensor.detach().to(at::kCPU).resolve_neg().contiguous();
      file.write({static_cast<const char*>(host.const_data_ptr()), host.nbytes()});
    }
    file.sync();
    rename_path(system_io(), temporary, path);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  const auto slash = path.find_last_of('/');
  sync_folder(system_io(), slash == path.npos ? "." : path.substr(0, slash + 1));
}

}  // namespace trireme
