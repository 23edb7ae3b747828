// Weights in and out of other tools: the safetensors format. Numbers and texts only; nothing in a file is
// ever executed.
#pragma once
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

// An open file. Any bytes give a valid object or DataError(path): see safetensors_header.h for the rules.
// The file is mapped, not read: it must not shrink while it is open (a writer that replaces it by rename, as
// write_safetensors does, is fine). Const members may be called from several threads.
class Safetensors {
 public:
  explicit Safetensors(const std::string& path);

  std::vector<std::string> names() const;  // sorted
  bool has(const std::string& name) const;
  // A host tensor of the file's dtype (F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL) and shape. It keeps the
  // mapping alive by itself; writing to it changes neither the file nor other processes' view, but later
  // calls for the same name see it. DataError with file and tensor: no such name, another dtype, a shape
  // beyond torch, BOOL bytes other than 0 and 1.
  at::Tensor tensor(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const;

 private:
  struct File;
  std::shared_ptr<const File> file_;
};

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

// Replaces `path` whole or not at all, durably. Any device and stride; one tensor at a time is copied to the
// host. Byte for byte what upstream's writer gives (with several metadata keys: sorted). Data is aligned to
// its dtype. DataError: a dtype that the format or we do not have, a name twice or not UTF-8, "__metadata__"
// as a name, I/O.
void write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace trireme
