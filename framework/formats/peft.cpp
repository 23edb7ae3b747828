#include "framework/formats/peft.h"

#include "comm/error.h"
#include "data/file.h"
#include "framework/formats/safetensors.h"
#include "framework/io/file_io.h"

#include <cerrno>
#include <filesystem>
#include <map>
#include <system_error>

#include <ATen/ATen.h>

namespace trireme {
namespace {

constexpr std::string_view outer = "base_model.model.", a_end = ".lora_A.weight", b_end = ".lora_B.weight";
constexpr const char* config_name = "adapter_config.json";
constexpr const char* weights_name = "adapter_model.safetensors";

}  // namespace

PeftAdapter read_peft(const std::string& folder) {
  const std::string config = folder + "/" + config_name, path = folder + "/" + weights_name;
  if (!std::filesystem::is_directory(folder)) throw DataError(folder, "is no folder", "give an adapter folder of PEFT");
  const auto bytes = read_file(config, 1 << 24);
  PeftAdapter adapter{parse_peft_config({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, config), {}};
  const Safetensors file(path);
  std::map<std::string, PeftModule> modules;
  for (const auto& name : file.names()) {
    const auto bad = [&](const std::string& what) {
      return DataError(path, "tensor '" + name + "' " + what, "use an adapter of plain LoRA");
    };
    const bool a = name.ends_with(a_end), b = name.ends_with(b_end);
    if (!name.starts_with(outer) || (!a && !b) || name.size() <= outer.size() + a_end.size())
      throw bad("is no lora_A.weight or lora_B.weight of a module");
    const std::string module = name.substr(outer.size(), name.size() - outer.size() - a_end.size());
    const at::Tensor t = file.tensor(name);
    if (t.dim() != 2 || !at::isFloatingType(t.scalar_type())) throw bad("is no matrix of floating numbers");
    if (!at::isfinite(t).all().item<bool>()) throw bad("holds a number that is not finite");
    PeftModule& m = modules[module];
    m.name = module;
    (a ? m.a : m.b) = t;
  }
  for (const auto& [name, m] : modules) {
    const auto bad = [&](const std::string& what) {
      return DataError(path, "module '" + name + "' " + what, "fetch the file again");
    };
    if (!m.a.defined() || !m.b.defined()) throw bad(m.a.defined() ? "has no lora_B.weight" : "has no lora_A.weight");
    if (m.a.size(0) != m.b.size(1)) throw bad("has a lora_A and a lora_B of different ranks");
    adapter.modules.push_back(m);
  }
  if (adapter.modules.empty()) throw DataError(path, "holds no adapter", "fetch the file again");
  return adapter;
}

void write_peft(const std::string& folder, const PeftAdapter& adapter, const std::string& family) {
  FileIo& io = system_io();
  make_folder(io, folder);
  if (const int status = io.unlink(folder + "/" + config_name); status < 0 && status != -ENOENT)
    throw DataError(folder + "/" + config_name, "cannot be replaced: " + std::generic_category().message(-status),
                    "choose another folder");
  std::vector<NamedTensor> tensors;
  for (const auto& m : adapter.modules) {
    tensors.push_back({std::string(outer) + m.name + std::string(a_end), m.a.to(at::kFloat)});
    tensors.push_back({std::string(outer) + m.name + std::string(b_end), m.b.to(at::kFloat)});
  }
  write_safetensors(folder + "/" + weights_name, tensors, {{"format", "pt"}});
  replace_durably(io, folder + "/" + config_name, print_peft_config(adapter.config, family));
}

}  // namespace trireme
