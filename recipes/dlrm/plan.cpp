#include "recipes/dlrm/plan.h"

#include "comm/device.h"
#include "framework/device_info.h"
#include "framework/nn/embedding.h"
#include "recipes/dlrm/coder.h"

#include <algorithm>
#include <cstdio>
#include <limits>

#include <unistd.h>

namespace trireme::dlrm {
namespace {

// Of this machine, where the same command would start its ranks. Infinite: not known here.
double planned_memory(at::Device device, int ranks) {
  const int gpus = device.is_cpu() || !device_runtime() ? 1 : std::max(1, device_runtime()->count());
  const double bytes = share_of_memory(device, (ranks + gpus - 1) / gpus);
  return bytes > 0 ? bytes : std::numeric_limits<double>::infinity();
}

at::Device planned_device(const TrainConfig& train) {
  const bool found = device_runtime() && device_runtime()->count() > 0;
  return train.device == "cuda" || (train.device == "auto" && found) ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
}

std::int64_t value_bytes(const TrainConfig& train) { return train.precision == "f64" ? 8 : 4; }

std::int64_t state_width(const DlrmConfig& c, std::int64_t dim) {
  return nn::EmbeddingTables::state_width(c.embedding.rule(), dim);
}

}  // namespace

double share_of_memory(at::Device device, int sharing) {
  const double bytes = device.is_cpu() ? double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE))
                                       : double(device_memory_bytes(device));
  return bytes / std::max(1, sharing);
}

// Ranks share a machine's memory, or a GPU, which each may see under a number of its own.
double memory_of_ranks(Context& c) {
  if (c.saved_text("recipe/data")) return std::numeric_limits<double>::infinity();  // what has run goes on
  Communicator& ranks = c.comm("control");
  const at::Device device = c.device();
  const std::string mine =
      device.is_cpu() ? std::to_string(this_machine()) : device_runtime()->identity(device.index());
  auto key = std::int64_t(std::hash<std::string>()(mine));
  std::vector<std::int64_t> all(std::size_t(c.size()));
  ranks.all_gather({&key, 1, DType::i64}, {all.data(), all.size(), DType::i64}).wait();
  double memory = share_of_memory(device, int(std::count(all.begin(), all.end(), key)));
  ranks.all_reduce({&memory, 1, DType::f64}, Op::min).wait();
  return memory;
}

Owners owners_of(const DlrmConfig& config, const TableData& data, std::int64_t dim, int ranks, const TrainConfig& train,
                 double memory) {
  const double given = config.planner.memory_gib * 1073741824, limit = given > 0 ? given : memory;
  std::string cure = "lower model.dim";
  cure += config.data.generated() ? ", raise data.scale"
                                  : ", prepare the data with fewer rows (trireme data criteo --max-ind-range)";
  if (config.embedding.rule() != kernels::SparseRule::sgd) cure += ", take embedding.optimizer: sgd";
  return plan_tables(
      data.tables(), double((dim + state_width(config, dim)) * value_bytes(train)), ranks, limit,
      cure + (given > 0 ? ", or raise planner.memory_gib"
                        : ", or say in planner.memory_gib what a rank has, if more than its share of this machine"));
}

void plan_dlrm(Plan& plan, const DlrmConfig& config, int ranks, const TrainConfig& train) {
  const auto data = open_data(config.data);
  const auto tables = std::int64_t(data->tables().size());
  const Shape shape = shape_of(config.model, config.data, data->dense(), tables);
  const at::Device device = planned_device(train);
  check_training(config.compression, train);
  Coder(config.compression, config.data, tables).check_device(device, false);
  nn::Parameters params = nn::Parameters::unset(at::kFloat, at::kMeta);
  const Model model(shape, params);
  plan.parameters = params.all();
  const Owners owners = owners_of(config, *data, shape.dim, ranks, train, planned_memory(device, ranks));
  const double size = double(value_bytes(train)), b = double(train.batch_size) / ranks / double(train.accumulate);
  const double micro = double(train.accumulate);
  for (int r = 0; r < ranks; ++r) {
    std::int64_t rows = 0;
    std::string names;
    for (const std::int64_t t : owners.tables[std::size_t(r)]) {
      rows += data->tables()[std::size_t(t)].rows;
      names += (names.empty() ? "" : " ") + data->tables()[std::size_t(t)].name;
    }
    const bool fullest = r == int(std::max_element(owners.bytes.begin(), owners.bytes.end()) - owners.bytes.begin());
    plan.memory.push_back({"tables of rank " + std::to_string(r), owners.bytes[std::size_t(r)],
                           std::to_string(rows) + " rows x (" + std::to_string(shape.dim) + " + " +
                               std::to_string(state_width(config, shape.dim)) + " of state): " + names,
                           fullest});
  }
  double most = 0;
  for (const auto& list : owners.tables) most = std::max(most, double(list.size()));
  const double row = b * double(shape.dim) * size * micro, others = ranks - 1;
  char formula[160];
  std::snprintf(formula, sizeof formula, "(K-1) b x %.0f tables x %lld x %.0f", most, static_cast<long long>(shape.dim),
                size);
  plan.sent.push_back({"rows, forward, uncompressed", others * row * most, formula});
  std::snprintf(formula, sizeof formula, "(K-1)/K b x %lld tables x %lld x %.0f", static_cast<long long>(tables),
                static_cast<long long>(shape.dim), size);
  plan.sent.push_back({"gradients of rows, uncompressed", others / ranks * row * double(tables), formula});
  std::snprintf(formula, sizeof formula, "(K-1)/K b x %lld ids x 4", static_cast<long long>(data->width()));
  plan.sent.push_back({"ids", others / ranks * b * micro * double(data->width()) * 4, formula});
}

}  // namespace trireme::dlrm
