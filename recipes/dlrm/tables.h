// The embedding tables of all ranks, each on one of them, and the way of ids, rows and gradients between tables and
// samples. Every call but the constructor and state() is collective.
#pragma once
#include "framework/context.h"
#include "framework/nn/embedding.h"
#include "recipes/dlrm/combine.h"
#include "recipes/dlrm/exchange.h"
#include "recipes/dlrm/planner.h"

#include <map>
#include <memory>
#include <optional>
#include <vector>

namespace trireme::dlrm {

class ShardedTables {
 public:
  static std::vector<std::string> communicators() { return {"exchange", "ids"}; }

  ShardedTables(const std::vector<Table>& tables, std::int64_t dim, kernels::SparseRule rule, Owners owners,
                Context& context);

  std::vector<Param> parameters() const;  // those of this rank's tables
  const Owners& owners() const { return owners_; }
  // Where the rows of each table lie in what finish_fetch() gives: i64, on the device.
  const at::Tensor& places() const { return places_; }
  // Numbers of this rank's tables, and the rows last looked up of each: [ranks, b, d], before they were coded.
  const std::vector<std::int64_t>& mine() const { return owners_.tables[std::size_t(rank_)]; }

  // Ids on their way to the owners of their tables.
  struct Ids {
    at::Tensor sent, received;  // i32; received: [ranks, b * this rank's width]
    at::Tensor sorted = {};     // of prepare_update()
    std::int64_t b = 0;
    Work work = {};
  };
  // ids i32 [b, width], in host memory: DataError where one is outside its table. Or on the device: then nobody looks.
  Ids send_ids(const at::Tensor& ids);
  void check(const at::Tensor& ids) const;  // what send_ids() does of it
  // The two halves of it: by owner, then by table, where the ids lie; and from the device, sent being read there.
  at::Tensor sorted(const at::Tensor& ids);
  Ids send_sorted(const at::Tensor& sent, std::int64_t b);
  // Looks the ids up, and starts the rows on their way.
  using CodingOf = std::function<Coding(const at::Tensor& rows)>;  // of [chunks, b, d], destination by destination
  void start_fetch(Ids ids, const CodingOf& coding);
  // After that: gradients of equal rows will be summed before they go back (combine.h). f32 alone.
  void combine_gradients();
  // These ids will be updated: on a GPU what needs no gradient for that begins now, on a stream of its own.
  void prepare_update();
  // [tables, b, d], the samples of this rank, a leaf. With Coding::in_room they count once settle_fetch() is called,
  // which puts others in their place and says so where some rank's room was too small.
  at::Tensor finish_fetch();
  bool settle_fetch();

  // The gradient of what finish_fetch() gave, back to the owners.
  void start_return(const at::Tensor& gradient, const CodingOf& coding);
  void finish_return();
  // Of a step that is recorded (Context::recorded), once the device has got as far: did it have what it needed? Then it
  // is counted. The same on all ranks.
  bool accept();
  // Are the gradients that went back last finite? Of this rank's samples; an f64 scalar, 0 or NaN.
  at::Tensor blame() const;
  void forget();

  // One update by all gradients that came back since the last. device_lr: f32 scalar in place of lr, or undefined.
  void update(double lr, const at::Tensor& skip, const at::Tensor& device_lr = {});

  RowExchange& forward() { return *forward_; }
  RowExchange& backward() { return *backward_; }
  bool stays() const { return forward_->stays() || backward_->stays(); }
  // Tables move with their state to whoever holds them on another number of ranks.
  void state(Archive& ar);
  // Of the room of both directions.
  void room_state(Archive& ar);

 private:
  struct Waiting {
    at::Tensor ids, gradient, sorted;  // [ranks, b * width], [ranks, tables, b, d], of prepare_update()
  };
  at::Tensor sort_on_host(const at::Tensor& ids) const;
  [[noreturn]] static void refuse(const Table& table, std::int64_t sample, std::int32_t id);
  at::Tensor sort_on_device(const at::Tensor& ids);
  void settle_return();
  void look_at_room();
  Coding coding_of(const CodingOf& coding, const at::Tensor& rows) const;
  [[noreturn]] void name_table(const BadChunk& e, const std::vector<std::int64_t>& sent) const;

  const std::vector<Table> all_;
  const std::int64_t dim_;
  const Owners owners_;
  Context& context_;
  const int rank_, ranks_;
  std::vector<std::int64_t> columns_;  // of each table in ids
  at::Tensor places_;
  // sort_on_device(): where the ids that are sent stand in the batch, i64, by how many there are. A step that is
  // recorded reads them for good.
  std::map<std::int64_t, at::Tensor> orders_;
  std::optional<nn::EmbeddingTables> held_;  // by this rank
  std::unique_ptr<Communicator> self_;
  std::optional<RowExchange> forward_, backward_;
  std::optional<SideStream> sorting_;  // of a device
  at::Tensor looked_up_, rows_, gradient_, returned_;
  Ids current_;
  bool returning_ = false;  // gradients that nobody has looked at yet
  bool combines_ = false;   // in this step
  std::int64_t room_changes_ = 0;
  std::optional<Grouping> grouping_, own_grouping_;  // of what this rank sends; of what it gets
  std::optional<Groups> received_groups_;
  Combiner combiner_;
  std::vector<Waiting> waiting_;
};

}  // namespace trireme::dlrm
