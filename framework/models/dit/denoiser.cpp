#include "framework/models/dit/denoiser.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/json.h"
#include "framework/base/drawn.h"
#include "framework/formats/hf_folder.h"
#include "framework/io/file_io.h"

#include <filesystem>
#include <set>

#include <ATen/ATen.h>

namespace trireme {
namespace {

using nlohmann::json;

constexpr const char* stem = "diffusion_pytorch_model";  // of diffusers' files

json object_of(const std::string& text, const std::string& file) {
  json value = parse_json(text);
  if (!value.is_object()) throw DataError(file, "is no JSON object", "fetch the file again");
  return value;
}

// Holds every tensor that `config` asks for as it is.
at::ScalarType common_type(const HfFolder& folder, const json& config) {
  std::optional<at::ScalarType> type;
  make_denoiser(config, [&](const DitWeight& w) {
    const at::ScalarType one = folder.tensor(w.name, w.shape).scalar_type();
    type = type ? at::promote_types(*type, one) : one;
    return at::empty(w.shape, at::TensorOptions(at::kMeta).dtype(at::kFloat));
  });
  return *type;
}

}  // namespace

at::Device Denoiser::device() const { return weights().front().second.device(); }

at::ScalarType Denoiser::dtype() const { return weights().front().second.scalar_type(); }

Grid Denoiser::grid(at::IntArrayRef latent) const {
  const DenoiserInfo& i = info();
  if (latent.size() != 5 || latent[2] % i.patch_frames || latent[3] % i.patch || latent[4] % i.patch)
    throw UsageError("denoiser", "the latent is not whole tokens",
                     "a token is " + std::to_string(i.patch) + " latent pixels a side");
  return {latent[2] / i.patch_frames, latent[3] / i.patch, latent[4] / i.patch};
}

std::unique_ptr<Denoiser> make_denoiser(const json& config, const DitWeights& source) {
  const auto name = config.find("_class_name");
  if (name == config.end() || !name->is_string())
    throw UsageError("model", "names no layout", "give _class_name, as diffusers' config.json");
  return DenoiserLayouts::create(name->get<std::string>(), config, source, "model");
}

std::unique_ptr<Denoiser> denoiser_from_folder(const std::string& path, at::Device device,
                                               std::optional<at::ScalarType> dtype, const std::function<void()>& each) {
  const HfFolder folder(path, stem);
  json config = object_of(folder.config(), folder.config_file());
  const std::string own = path + "/trireme.json";
  if (std::filesystem::exists(own)) {
    const auto bytes = read_file(own, 1 << 20);
    config["trireme"] = object_of({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, own);
  }
  const at::ScalarType type = dtype ? *dtype : common_type(folder, config);
  std::set<std::string> known;
  auto model = make_denoiser(config, [&](const DitWeight& w) {
    known.insert(w.name);
    // A copy, never the mapping itself: the file may change while the model is used.
    const at::Tensor value = folder.tensor(w.name, w.shape).to(device, type, false, true);
    if (each) each();
    return value;
  });
  for (const auto& name : folder.names())
    if (!known.contains(name))
      throw DataError(folder.file_of(name), "holds tensor '" + name + "', which config.json has no place for",
                      "the weights do not belong to this config.json");
  return model;
}

bool is_denoiser_folder(const std::string& path) {
  if (std::filesystem::exists(path + "/model_index.json"))
    throw DataError(path, "is a whole pipeline of diffusers",
                    "name the folder of its transformer: " + path + "/transformer");
  const std::string file = path + "/config.json";
  if (!std::filesystem::is_regular_file(file)) return false;
  const auto bytes = read_file(file, 1 << 24);
  return parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}).contains("_class_name");
}

std::unique_ptr<Denoiser> random_denoiser(const json& config, std::uint64_t seed, at::Device device,
                                          at::ScalarType dtype) {
  const auto options = at::TensorOptions().dtype(dtype).device(device);
  return make_denoiser(config, [&](const DitWeight& w) {
    if (w.kind == DitWeight::one) return at::ones(w.shape, options);
    if (w.kind == DitWeight::zero) return at::zeros(w.shape, options);
    return drawn_normal(w.shape, w.std, seed, w.name, options);
  });
}

void export_denoiser(const Denoiser& model, const std::string& folder, std::int64_t shard_bytes) {
  HfWriter writer(folder, shard_bytes, stem);
  for (const auto& [name, value] : model.weights()) writer.add({name, value});
  json config = model.config();
  json own = json::object();
  if (config.contains("trireme")) {
    own = config["trireme"];
    config.erase("trireme");
  }
  replace_durably(system_io(), folder + "/trireme.json", own.dump(1) + "\n");
  writer.finish(config.dump(1) + "\n");
}

}  // namespace trireme
