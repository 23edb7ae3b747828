#include "bench/own_run.h"

#include "comm/error.h"
#include "framework/formats/safetensors.h"

namespace trireme::bench {

OwnSession::OwnSession(Experiment& run, Communicator& world, int batches)
    : run_(run), world_(world), session_(world, run.train, *run.recipe) {
  const auto ids = run.recipe->train_ids();
  const auto total = run.train.batch_size, rows = total / world.size();
  if (std::ssize(ids) / total < batches)
    throw UsageError("bench",
                     std::to_string(batches) + " batches of " + std::to_string(total) + " are more than the " +
                         std::to_string(ids.size()) + " samples",
                     "lower --problem");
  for (int k = 0; k < batches; ++k) {
    const std::span<const std::int64_t> global(ids.data() + k * total, std::size_t(total));
    const auto read = [&](std::span<const std::int64_t> part) {
      Batch b = run.recipe->train_data().read(part, 1);
      b.ids.assign(part.begin(), part.end());
      b.global_ids.assign(global.begin(), global.end());
      b.index = k;
      b.epoch = 1;  // epoch 0 of FastCLIP has gamma = 1, which hides the moving averages
      return b;
    };
    global_.push_back(read(global));
    mine_.push_back(world.size() == 1 ? global_.back()
                                      : read(global.subspan(std::size_t(rows * world.rank()), std::size_t(rows))));
  }
}

void OwnSession::write(const std::string& file, const std::map<std::string, std::string>& metadata) {
  if (world_.rank() != 0) return;
  std::vector<NamedTensor> tensors;
  for (const auto& p : session_.parameters()) tensors.push_back({p.name, p.value.detach().cpu()});
  for (std::size_t k = 0; k < global_.size(); ++k) {
    const std::string name = "batch." + std::to_string(k) + ".";
    for (const auto& [column, value] : global_[k].columns) tensors.push_back({name + column, value});
    tensors.push_back({name + "sample", at::tensor(global_[k].global_ids, at::kLong)});
  }
  write_safetensors(file, tensors, metadata);
}

void OwnSession::move_batches() {
  for (Batch& b : mine_)
    for (auto& [name, column] : b.columns) column = column.to(session_.context().device());
}

void OwnSession::advance() {
  session_.context().now.step = step_;
  session_.context().now.epoch = 1;
  session_.step(mine_[std::size_t(step_) % mine_.size()], &mine_[std::size_t(step_ + 1) % mine_.size()]);
  ++step_;
}

double OwnSession::step() {
  advance();
  return session_.loss();
}

}  // namespace trireme::bench
