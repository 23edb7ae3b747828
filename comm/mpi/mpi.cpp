#include "comm/mpi/mpi.h"

#include "comm/backends.h"
#include "comm/error.h"
#include "comm/local/self.h"
#include "comm/mpi/group.h"
#include "comm/mpi/messages.h"
#include "comm/mpi/peer_memory.h"
#include "comm/mpi/shm.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include <sched.h>
#include <unistd.h>

namespace trireme {
namespace {

[[noreturn]] void abort_job(MpiLink* link, int code, std::string_view why) noexcept {
  std::string text = "trireme: error: " + std::string(why) + "\n";
  std::replace(text.begin(), text.end() - 1, '\n', ' ');
  // One write, so that the lines of several ranks do not mix.
  if (::write(STDERR_FILENO, text.data(), text.size()) < 0) std::fputs(text.c_str(), stderr);
#ifndef OPEN_MPI
  // MPICH's mpiexec ends without reading what is left in its ranks' pipes.
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
#endif
  // MPI must not be entered by two threads; but a stuck one must not keep the job alive either.
  const auto end = [code] { MPI_Abort(MPI_COMM_WORLD, code); };
  if (!link || !link->engine || !link->engine->exclusively(std::chrono::milliseconds(500), end)) end();
  std::_Exit(code);
}

// The tag, claimed, becomes the communicator's.
std::unique_ptr<Communicator> make_communicator(const std::shared_ptr<MpiLink>& link, std::vector<int> ranks, int rank,
                                                int tag);

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(std::shared_ptr<MpiGroup> group) : g_(std::move(group)) { g_->link->engine->add(g_); }
  ~MpiCommunicator() override { g_->link->engine->retire(*g_); }

  int rank() const override { return g_->me.rank; }
  int size() const override { return g_->me.size; }
  Work all_reduce(Buffer inout, Op op) override {
    check_all_reduce(g_->me, inout);
    return g_->push(g_->shm ? shm::all_reduce(*g_, inout, op) : p2p::all_reduce(*g_, inout, op), inout.bytes());
  }
  Work reduce_scatter(ConstBuffer in, Buffer out, Op op) override {
    check_reduce_scatter(g_->me, in, out);
    return g_->push(g_->shm ? shm::reduce_scatter(*g_, in, out, op) : p2p::reduce_scatter(*g_, in, out, op),
                    in.bytes());
  }
  Work all_gather(ConstBuffer in, Buffer out) override {
    check_all_gather(g_->me, in, out);
    return g_->push(g_->shm ? shm::all_gather(*g_, in, out) : p2p::all_gather(*g_, in, out), out.bytes());
  }
  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override {
    check_all_to_all(g_->me, in, send, out, recv);
    return g_->push(g_->shm ? shm::all_to_all(*g_, in, send, out, recv) : p2p::all_to_all(*g_, in, send, out, recv),
                    in.bytes());
  }
  Work broadcast(Buffer inout, int root) override {
    check_broadcast(g_->me, inout, root);
    return g_->push(g_->shm ? shm::broadcast(*g_, inout, root) : p2p::broadcast(*g_, inout, root), inout.bytes());
  }
  Work barrier() override { return g_->push(g_->shm ? shm::barrier(*g_) : p2p::barrier(*g_), 0); }

  std::unique_ptr<Communicator> split(int color, int key) override;
  std::shared_ptr<void> allocate(std::size_t bytes) override;
  void abort(int code, std::string_view why) noexcept override { abort_job(g_->link.get(), code, why); }
  std::string_view backend() const override { return "mpi"; }

  std::string_view transport() const {
    return !g_->shm ? "messages" : g_->shm->processes.empty() ? "shared memory" : "shared memory, one copy";
  }
  void connect();

 private:
  std::vector<std::int64_t> gather(std::span<const std::int64_t> mine);
  SharedSegment share(std::size_t bytes);
  int draw_tag();
  std::vector<int> readable_processes();

  std::shared_ptr<MpiGroup> g_;
};

// Every rank's values, in rank order.
std::vector<std::int64_t> MpiCommunicator::gather(std::span<const std::int64_t> mine) {
  std::vector<std::int64_t> all(mine.size() * static_cast<std::size_t>(size()));
  all_gather({mine.data(), mine.size(), DType::i64}, {all.data(), all.size(), DType::i64}).wait();
  return all;
}

// A segment that all ranks have mapped, or an empty one on all of them. Its first word must hold the number
// that rank 0 drew: a path may mean another process's file in a container of its own.
SharedSegment MpiCommunicator::share(std::size_t bytes) {
  struct Invitation {
    char path[56] = {};
    std::uint64_t nonce = 0;
  } invitation;
  SharedSegment segment;
  if (rank() == 0) {
    segment = SharedSegment::create(bytes);
    if (segment) {
      std::random_device random;
      invitation.nonce = std::uint64_t{random()} << 32 | random() | 1;
      std::memcpy(segment.base(), &invitation.nonce, sizeof invitation.nonce);
      segment.path().copy(invitation.path, sizeof invitation.path - 1);
    }
  }
  broadcast({&invitation, sizeof invitation, DType::u8}, 0).wait();
  if (rank() != 0 && invitation.nonce != 0) segment = SharedSegment::open(invitation.path, bytes);
  const bool joined = segment && std::memcmp(segment.base(), &invitation.nonce, sizeof invitation.nonce) == 0;
  std::int32_t all_joined = joined && invitation.nonce != 0;
  all_reduce({&all_joined, 1, DType::i32}, Op::min).wait();
  segment.close_path();
  if (!all_joined) return {};
  // Everybody has compared the number; now the word can be cleared and the memory used.
  if (rank() == 0) std::memset(segment.base(), 0, sizeof invitation.nonce);
  barrier().wait();
  return segment;
}

void MpiCommunicator::connect() {
  const MpiLink& link = *g_->link;
  const int node = link.node_of[static_cast<std::size_t>(g_->world[0])];
  const bool one_node = std::all_of(g_->world.begin(), g_->world.end(),
                                    [&](int r) { return link.node_of[static_cast<std::size_t>(r)] == node; });
  constexpr int most_ranks = 1024;
  if (!link.options.shared_memory || !one_node || size() > most_ranks) return;
  SharedSegment segment = share(ShmChannel::segment_bytes(size(), link.options.chunk_limit));
  if (!segment) return;
  g_->shm = std::make_unique<ShmChannel>(std::move(segment), g_->me, link.options.chunk_limit);
  if (link.options.read_peers) g_->shm->processes = readable_processes();
}

// Of all ranks, if every one could read a number in the memory of every other; else none.
std::vector<int> MpiCommunicator::readable_processes() {
  allow_peers_to_read();
  std::random_device random;
  const std::int64_t number = std::int64_t{random()} << 31 | random();
  const std::int64_t mine[] = {getpid(), reinterpret_cast<std::intptr_t>(&number), number};
  const std::vector<std::int64_t> all = gather(mine);
  std::vector<int> processes;
  std::int32_t all_read = 1;
  for (std::size_t i = 0; i < all.size(); i += 3) {
    std::int64_t found = 0;
    processes.push_back(static_cast<int>(all[i]));
    try {
      read_peer(&found, {reinterpret_cast<const std::byte*>(all[i + 1]), processes.back()}, sizeof found);
    } catch (const CommError&) {  // not allowed here
    }
    all_read &= found == all[i + 2];
  }
  all_reduce({&all_read, 1, DType::i32}, Op::min).wait();
  if (!all_read) processes.clear();
  return processes;
}

// A tag that is free on all ranks; it is claimed on all of them.
int MpiCommunicator::draw_tag() {
  Tags& tags = *g_->link->tags;
  std::int64_t first = 0;
  for (int width = 1;; width = std::min(2 * width, Tags::most_width)) {
    Tags::Block mine;
    if (rank() == 0) mine = tags.claim_free(g_->world[0], first, width);
    first = mine.first;
    broadcast({&first, 1, DType::i64}, 0).wait();
    if (first < 0)
      throw CommError(place(g_->me), "more than " + std::to_string(tags.most()) + " communicators at once",
                      "make communicators once, not in every step");
    if (rank() != 0) mine = tags.claim(g_->world[0], first, width);
    const std::int64_t claimed[] = {static_cast<std::int64_t>(mine.claimed)};
    auto all = ~std::uint64_t{0};
    for (const std::int64_t theirs : gather(claimed)) all &= static_cast<std::uint64_t>(theirs);
    if (const int tag = tags.keep(mine, all); tag >= 0) return tag;
    first += width;
  }
}

std::unique_ptr<Communicator> MpiCommunicator::split(int color, int key) {
  const std::int64_t mine[] = {color, key};
  const std::vector<std::int64_t> all = gather(mine);
  std::vector<int> members;
  for (int r = 0; r < size(); ++r)
    if (all[static_cast<std::size_t>(r) * 2] == color) members.push_back(r);
  std::stable_sort(members.begin(), members.end(), [&](int a, int b) {
    return all[static_cast<std::size_t>(a) * 2 + 1] < all[static_cast<std::size_t>(b) * 2 + 1];
  });
  const int new_rank = static_cast<int>(std::find(members.begin(), members.end(), rank()) - members.begin());
  for (int& member : members) member = g_->world[static_cast<std::size_t>(member)];
  return make_communicator(g_->link, std::move(members), new_rank, draw_tag());
}

std::shared_ptr<void> MpiCommunicator::allocate(std::size_t bytes) {
  const std::int64_t mine[] = {static_cast<std::int64_t>(bytes)};
  const std::vector<std::int64_t> all = gather(mine);
  for (int r = 0; r < size(); ++r)
    if (all[static_cast<std::size_t>(r)] != mine[0])
      throw CommError(place(g_->me),
                      "allocate: " + std::to_string(bytes) + " bytes here but " +
                          std::to_string(all[static_cast<std::size_t>(r)]) + " on rank " + std::to_string(r),
                      "every rank must pass the same size");
  if (!g_->shm || bytes == 0) return allocate_private(bytes);
  constexpr std::size_t page = 4096;
  const std::size_t part = (bytes + page - 1) / page * page;
  SharedSegment segment = share(part * static_cast<std::size_t>(size()));
  const std::uint32_t id = g_->shm->next_region_id();
  if (!segment) return allocate_private(bytes);
  auto region = std::make_shared<SharedRegion>(std::move(segment), id, part, rank());
  g_->shm->add(region);
  return {region, region->part(rank())};
}

std::unique_ptr<Communicator> make_communicator(const std::shared_ptr<MpiLink>& link, std::vector<int> ranks, int rank,
                                                int tag) {
  if (ranks.size() == 1) {
    link->tags->give_back(tag);
    return make_self("mpi", [link](int code, std::string_view why) { abort_job(link.get(), code, why); });
  }
  auto communicator = std::make_unique<MpiCommunicator>(std::make_shared<MpiGroup>(link, std::move(ranks), rank, tag));
  communicator->connect();
  return communicator;
}

struct NodeCores {
  int usable = 1;  // by the ranks of a node together, whether each is bound to its own or not
  int home =
      -1;  // of this rank, where all may use the same ones and there are enough; spread: neighbours may be one core
};

NodeCores cores_of(MPI_Comm node, int rank, int size) {
  cpu_set_t any, all;
  CPU_ZERO(&any);
  sched_getaffinity(0, sizeof any, &any);
  MPI_Allreduce(&any, &all, sizeof all, MPI_BYTE, MPI_BAND, node);
  MPI_Allreduce(MPI_IN_PLACE, &any, sizeof any, MPI_BYTE, MPI_BOR, node);
  NodeCores cores{std::max(CPU_COUNT(&any), 1)};
  if (!CPU_EQUAL(&any, &all) || CPU_COUNT(&all) < size) return cores;
  cores.home = 0;
  for (int left = rank * CPU_COUNT(&all) / size; !CPU_ISSET(cores.home, &all) || left-- > 0;) ++cores.home;
  return cores;
}

}  // namespace

// From 1 to INT_MAX; `otherwise` where it is not set.
static int positive_of(const char* name, int otherwise) {
  const char* set = std::getenv(name);
  if (!set) return otherwise;
  const std::string_view text(set);
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1)
    throw UsageError(name, "'" + std::string(text) + "' is not a number from 1 to INT_MAX");
  return value;
}

MpiOptions MpiOptions::from_environment() {
  MpiOptions options;
  if (const char* transport = std::getenv("TRIREME_MPI_TRANSPORT")) {
    options.shared_memory = std::string_view(transport) != "p2p";
    options.read_peers = std::string_view(transport) != "staged";
  }
  options.chunk_limit = static_cast<std::size_t>(positive_of("TRIREME_MPI_CHUNK", INT_MAX));
  options.highest_tag = positive_of("TRIREME_MPI_TAGS", INT_MAX);
  return options;
}

struct MpiWorld::Impl {
  std::shared_ptr<MpiLink> link;
  std::unique_ptr<Communicator> world;
  int node_rank = 0, node_size = 1;
  bool finalized = false;
};

MpiWorld::MpiWorld(const MpiOptions& options) : impl_(std::make_unique<Impl>()) {
  // Open MPI's TCP by default moves large messages by "put", for which the receiver asks through the stream that its
  // own data fills: two ranks that send to each other then get half the bandwidth. The user's choice wins.
  setenv("OMPI_MCA_btl_tcp_flags", "send,inplace", 0);
  setenv("HWLOC_HIDE_ERRORS", "2", 0);  // where /sys is not mounted each rank would complain; it works without
  int provided = 0;
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS ||
      provided < MPI_THREAD_SERIALIZED)
    throw CommError("MPI", "cannot start with MPI_THREAD_SERIALIZED", "use an MPI built with thread support");
  auto link = std::make_shared<MpiLink>();
  link->options = options;
  MPI_Comm_dup(MPI_COMM_WORLD, &link->comm);
  MPI_Comm_set_errhandler(link->comm, MPI_ERRORS_RETURN);
  int rank = 0, size = 1;
  MPI_Comm_rank(link->comm, &rank);
  MPI_Comm_size(link->comm, &size);

  MPI_Comm node = MPI_COMM_NULL;
  MPI_Comm_split_type(link->comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node);
  MPI_Comm_rank(node, &impl_->node_rank);
  MPI_Comm_size(node, &impl_->node_size);
  int leader = rank;
  MPI_Bcast(&leader, 1, MPI_INT, 0, node);
  const NodeCores cores = cores_of(node, impl_->node_rank, impl_->node_size);
  MPI_Comm_free(&node);
  link->node_of.resize(static_cast<std::size_t>(size));
  MPI_Allgather(&leader, 1, MPI_INT, link->node_of.data(), 1, MPI_INT, link->comm);

  void* limit = nullptr;
  int found = 0;
  MPI_Comm_get_attr(link->comm, MPI_TAG_UB, &limit, &found);
  link->tags = std::make_unique<Tags>(std::min(options.highest_tag, found ? *static_cast<int*>(limit) : 32767), size);
  link->engine = std::make_shared<Engine>(Engine::Source::peers, impl_->node_size > cores.usable,
                                          impl_->node_size < size, cores.home);
  impl_->link = link;
  std::vector<int> ranks(static_cast<std::size_t>(size));
  for (int r = 0; r < size; ++r) ranks[static_cast<std::size_t>(r)] = r;
  impl_->world = make_communicator(link, std::move(ranks), rank, 0);
}

MpiWorld::~MpiWorld() { impl_->link->engine->stop(); }

Communicator& MpiWorld::world() { return *impl_->world; }
int MpiWorld::node_rank() const { return impl_->node_rank; }
int MpiWorld::node_size() const { return impl_->node_size; }

void MpiWorld::finalize() {
  if (impl_->finalized) return;
  Engine& engine = *impl_->link->engine;
  engine.drain();
  engine.stop();
  engine.exclusively(std::chrono::hours(1), [&] {
    MPI_Comm_free(&impl_->link->comm);
    MPI_Finalize();
  });
  impl_->finalized = true;
}

void MpiWorld::abort(int code, std::string_view why) noexcept { abort_job(impl_->link.get(), code, why); }

std::string_view mpi_transport(const Communicator& communicator) {
  const auto* mpi = dynamic_cast<const MpiCommunicator*>(&communicator);
  return mpi ? mpi->transport() : "none";
}

void run_mpi(const MpiOptions& options, int n, const std::function<void(Communicator&, int)>& rank_main) {
  MpiWorld mpi(options);
  try {
    if (mpi.world().size() != n)
      throw UsageError("mpi",
                       "started with " + std::to_string(mpi.world().size()) + " ranks, not " + std::to_string(n));
    rank_main(mpi.world(), mpi.node_rank());
    mpi.finalize();
  } catch (const Error& e) {
    mpi.abort(static_cast<int>(e.code()), e.what());
  } catch (const std::exception& e) {
    mpi.abort(static_cast<int>(ExitCode::bug), e.what());
  }
}

namespace {

const Communicators::Entry mpi_entry({"mpi", Ranks::processes, [](int n, const auto& rank_main) {
                                        run_mpi(MpiOptions::from_environment(), n,
                                                [&](Communicator& world, int) { rank_main(world); });
                                      }});
const Communicators::Entry messages_entry({"mpi-messages", Ranks::processes, [](int n, const auto& rank_main) {
                                             MpiOptions options = MpiOptions::from_environment();
                                             options.shared_memory = false;
                                             run_mpi(options, n, [&](Communicator& world, int) { rank_main(world); });
                                           }});

}  // namespace

}  // namespace trireme
