// links: comm
// What communicator.h promises, on every registered backend and on several numbers of ranks.
#include "comm/backends.h"
#include "comm/device.h"
#include "comm/frozen_shares.h"
#include "comm/local/loopback.h"
#include "comm/wrappers/checked.h"
#include "comm/wrappers/shaped.h"
#include "comm/wrappers/traced.h"
#include "tests/contract/communicator_reference.h"
#include "tests/contract/through_device.h"
#include "tests/max_difference.h"
#include "tests/mpi_harness.h"

#include <algorithm>
#include <numeric>
#include <thread>

namespace trireme {

void PrintTo(const CommunicatorEntry& entry, std::ostream* out) { *out << entry.name; }

namespace test {
namespace {

using Clock = std::chrono::steady_clock;
std::size_t at(int r) { return static_cast<std::size_t>(r); }

// Below and above every threshold: nothing, one element, less than one a rank, one message, several rounds.
const std::vector<std::size_t> counts{0, 1, 3, 1001, 9001, 60001};

template <class F>
void for_all_dtypes(F&& f) {
  f(F64{});
  f(F32{});
  f(Half{});
  f(Brain{});
  f(I64{});
  f(I32{});
  f(U8{});
}

// What wrappers go around, and how their group is then called: a device communicator itself, with device
// buffers.
Communicator& unwrapped(Communicator& comm) {
  auto* device = dynamic_cast<ThroughDevice*>(&comm);
  return device ? device->inner() : comm;
}
void call_through(Communicator& comm, Communicator& wrapper, const std::function<void(Communicator&)>& f) {
  if (&unwrapped(comm) == &comm) return f(wrapper);
  ThroughDevice device(wrapper);
  f(device);
}

void all_reduce(Communicator& comm) {
  for_all_dtypes([&]<class E>(E) {
    for (Op op : {Op::sum, Op::min, Op::max})
      for (std::size_t count : counts) {
        auto v = elements<E>(comm.rank(), count);
        comm.all_reduce(buffer(v), op).wait();
        EXPECT_TRUE(same(v, reduced<E>(comm.size(), count, op)))
            << name(E::dtype) << " " << name(op) << " of " << count << " on rank " << comm.rank();
      }
  });
}

// Whatever the order of a sum: n ranks, at most n roundings of the element type.
template <class E>
void rounding_of(Communicator& comm, double epsilon) {
  const std::size_t count = 4001;
  const bool before = std::exchange(any_order, false);
  auto v = elements<E>(comm.rank(), count, 7);
  std::vector<double> exact(count), size(count);
  for (int r = 0; r < comm.size(); ++r)
    for (std::size_t i = 0; i < count; ++i) {
      const double x = static_cast<double>(element<E>(r, i, 7).wide());
      exact[i] += x;
      size[i] += std::fabs(x);
    }
  any_order = before;
  comm.all_reduce(buffer(v), Op::sum).wait();
  double worst = 0;  // of the bound
  for (std::size_t i = 0; i < count; ++i)
    worst = nan_max(worst, std::fabs(static_cast<double>(v[i].wide()) - exact[i]) / (comm.size() * epsilon * size[i]));
  EXPECT_LE(worst, 1) << name(E::dtype);
}

void rounding(Communicator& comm) {
  rounding_of<F32>(comm, std::ldexp(1, -24));
  rounding_of<Half>(comm, std::ldexp(1, -11));
  rounding_of<Brain>(comm, std::ldexp(1, -8));
}

template <class E>
void reduce_scatter_of(Communicator& comm, std::size_t count) {
  const std::size_t all = count * at(comm.size()), mine = count * at(comm.rank());
  const auto whole = reduced<E>(comm.size(), all, Op::sum);
  const std::vector<E> expected(whole.begin() + static_cast<std::ptrdiff_t>(mine),
                                whole.begin() + static_cast<std::ptrdiff_t>(mine + count));
  auto in = elements<E>(comm.rank(), all);
  std::vector<E> out(count);
  comm.reduce_scatter(buffer(in), buffer(out), Op::sum).wait();
  EXPECT_TRUE(same(out, expected)) << count << " " << name(E::dtype);
  EXPECT_TRUE(same(in, elements<E>(comm.rank(), all))) << "the input was written";
  auto block = in, front = in;
  comm.reduce_scatter(buffer(block), buffer(block.data() + mine, count), Op::sum).wait();
  EXPECT_TRUE(same(block.data() + mine, expected)) << "in place, own block, " << count;
  comm.reduce_scatter(buffer(front), buffer(front.data(), count), Op::sum).wait();
  EXPECT_TRUE(same(front.data(), expected)) << "in place, front, " << count;
}

void reduce_scatter(Communicator& comm) {
  for (std::size_t count : {0, 1, 77, 5000, 60001}) {
    reduce_scatter_of<F32>(comm, count);
    reduce_scatter_of<Brain>(comm, count);
  }
}

void all_gather(Communicator& comm) {
  for (std::size_t count : {0, 1, 77, 5000, 60001}) {
    std::vector<F32> expected;
    for (int r = 0; r < comm.size(); ++r) {
      const auto part = elements<F32>(r, count);
      expected.insert(expected.end(), part.begin(), part.end());
    }
    auto in = elements<F32>(comm.rank(), count);
    std::vector<F32> out(count * at(comm.size())), placed(out.size());
    comm.all_gather(buffer(in), buffer(out)).wait();
    EXPECT_TRUE(same(out, expected)) << count;
    F32* block = placed.data() + count * at(comm.rank());
    std::copy(in.begin(), in.end(), block);
    comm.all_gather(buffer(block, count), buffer(placed)).wait();
    EXPECT_TRUE(same(placed, expected)) << "in place, " << count;
  }
}

// Rank a sends share(a, b) elements to rank b; some pairs exchange nothing.
std::size_t share(int a, int b, std::size_t unit) { return (at(a) * 3 + at(b) * 5) % 4 * unit; }

void all_to_all(Communicator& comm) {
  const int n = comm.size(), me = comm.rank();
  for (std::size_t unit : {0, 1, 33, 4000, 50001}) {
    std::vector<std::size_t> send, recv;
    std::vector<I32> in, expected;
    for (int r = 0; r < n; ++r) {
      send.push_back(share(me, r, unit));
      recv.push_back(share(r, me, unit));
      for (std::size_t i = 0; i < send.back(); ++i) in.push_back(element<I32>(me, i, at(r) + 1));
      for (std::size_t i = 0; i < recv.back(); ++i) expected.push_back(element<I32>(r, i, at(me) + 1));
    }
    std::vector<I32> out(expected.size());
    comm.all_to_all(buffer(in), send, buffer(out), recv).wait();
    EXPECT_TRUE(same(out, expected)) << "unit " << unit << " on rank " << me;
    auto both = in;
    both.resize(std::max(in.size(), out.size()));
    comm.all_to_all(buffer(both), send, buffer(both), recv).wait();
    EXPECT_TRUE(same(both.data(), expected)) << "in place, unit " << unit;
  }
  // Point to point: rank 0 to the last rank.
  std::vector<std::size_t> send(at(n)), recv(at(n));
  const std::size_t count = 12345;
  if (me == 0) send[at(n - 1)] = count;
  if (me == n - 1) recv[0] = count;
  auto in = elements<U8>(0, count);
  std::vector<U8> out(count);
  comm.all_to_all(buffer(in), send, buffer(out), recv).wait();
  EXPECT_TRUE(me != n - 1 || same(out, in));
}

void broadcast(Communicator& comm) {
  for (int root = 0; root < comm.size(); ++root)
    for (std::size_t count : counts) {
      auto v = elements<F64>(comm.rank(), count);
      comm.broadcast(buffer(v), root).wait();
      EXPECT_TRUE(same(v, elements<F64>(root, count))) << "root " << root << ", " << count;
    }
}

void barrier(Communicator& comm) {
  std::this_thread::sleep_for(std::chrono::milliseconds(3 * comm.rank()));
  const std::int64_t entered = Clock::now().time_since_epoch().count();
  comm.barrier().wait();
  const std::int64_t left = Clock::now().time_since_epoch().count();
  std::vector<std::int64_t> all(at(comm.size()));
  comm.all_gather({&entered, 1, DType::i64}, {all.data(), all.size(), DType::i64}).wait();
  EXPECT_GE(left, *std::max_element(all.begin(), all.end())) << "a rank left the barrier before another entered";
}

void several_in_flight(Communicator& comm) {
  std::vector<std::vector<F32>> v;
  std::vector<Work> works;
  for (std::size_t i = 0; i < 12; ++i) v.push_back(elements<F32>(comm.rank(), i % 3 == 0 ? 60000 : 10 + i, i));
  for (auto& b : v) works.push_back(comm.all_reduce(buffer(b), Op::sum));
  for (std::size_t i = works.size(); i-- > 0;) works[i].wait();
  for (std::size_t i = 0; i < v.size(); ++i)
    EXPECT_TRUE(same(v[i], reduced<F32>(comm.size(), v[i].size(), Op::sum, i))) << i;
}

// Order holds within a communicator only: ranks may post on two of them in different order.
void communicators_in_flight(Communicator& comm) {
  if (comm.backend() == "nccl") return;  // wants one order across communicators, see nccl.h
  auto a = comm.split(0, comm.rank()), b = comm.split(0, comm.rank());
  for (std::size_t count : {5, 100000}) {
    auto x = elements<F32>(comm.rank(), count, 1), y = elements<F32>(comm.rank(), count, 2);
    const bool even = comm.rank() % 2 == 0;
    Work first = even ? a->all_reduce(buffer(x), Op::sum) : b->all_reduce(buffer(y), Op::sum);
    Work second = even ? b->all_reduce(buffer(y), Op::sum) : a->all_reduce(buffer(x), Op::sum);
    (even ? first : second).wait();
    (even ? second : first).wait();
    EXPECT_TRUE(same(x, reduced<F32>(comm.size(), count, Op::sum, 1)));
    EXPECT_TRUE(same(y, reduced<F32>(comm.size(), count, Op::sum, 2)));
  }
  // Two blocking collectives, posted the other way round, must not wait for each other's communicator.
  auto x = elements<F32>(comm.rank(), 70000, 1), y = elements<F32>(comm.rank(), 70000, 2);
  Work left = a->all_reduce(buffer(x), Op::sum);
  if (comm.rank() == 0) left.wait();
  b->all_reduce(buffer(y), Op::sum).wait();
  left.wait();
}

void split(Communicator& comm) {
  auto half = comm.split(comm.rank() % 2, -comm.rank());
  const int members = (comm.size() + 1 - comm.rank() % 2) / 2;
  ASSERT_EQ(half->size(), members);
  EXPECT_EQ(half->rank(), members - 1 - comm.rank() / 2) << "ordered by key";
  std::int64_t sum = comm.rank();
  half->all_reduce({&sum, 1, DType::i64}, Op::sum).wait();
  std::int64_t expected = 0;
  for (int r = comm.rank() % 2; r < comm.size(); r += 2) expected += r;
  EXPECT_EQ(sum, expected);
  auto alone = half->split(half->rank(), 0);
  EXPECT_EQ(alone->size(), 1);
  auto v = elements<F32>(comm.rank(), 100);
  EXPECT_TRUE(alone->all_reduce(buffer(v), Op::sum).done());
  EXPECT_TRUE(same(v, elements<F32>(comm.rank(), 100)));
}

void allocated_memory(Communicator& comm) {
  const std::size_t count = 90001, n = at(comm.size()), me = at(comm.rank());
  auto memory = comm.allocate(count * n * sizeof(float) + 1024);
  auto* base = static_cast<F32*>(memory.get());
  EXPECT_TRUE(std::all_of(base, base + count * n, [](F32 f) { return f.bits == 0; })) << "not zeroed";
  const auto fill = [&](std::size_t c, F32* p) {
    const auto v = elements<F32>(comm.rank(), c);
    std::copy(v.begin(), v.end(), p);
  };
  // The same offset on all ranks, then another one on each, then shared memory on some ranks only.
  std::vector<F32> heap(count);
  F32* places[] = {base, base + 16 * (me % 4), comm.rank() % 2 == 0 ? base : heap.data()};
  for (F32* place : places) {
    fill(count, place);
    comm.all_reduce(buffer(place, count), Op::sum).wait();
    EXPECT_TRUE(same(place, reduced<F32>(comm.size(), count, Op::sum)));
    comm.barrier().wait();
  }
  fill(count * n, base);
  std::vector<F32> out(count);
  comm.reduce_scatter(buffer(base, count * n), buffer(out), Op::sum).wait();
  const auto whole = reduced<F32>(comm.size(), count * n, Op::sum);
  EXPECT_TRUE(std::equal(out.begin(), out.end(), whole.begin() + static_cast<std::ptrdiff_t>(me * count),
                         [](F32 a, F32 b) { return a.bits == b.bits; }));
  fill(count, base + me * count);
  comm.all_gather(buffer(base + me * count, count), buffer(base, count * n)).wait();
  for (std::size_t r = 0; r < n; ++r) EXPECT_TRUE(same(base + r * count, elements<F32>(static_cast<int>(r), count)));
  std::vector<std::size_t> even(n, count);
  std::vector<F32> received(count * n);
  comm.all_to_all(buffer(base, count * n), even, buffer(received), even).wait();
  for (std::size_t r = 0; r < n; ++r) EXPECT_TRUE(same(received.data() + r * count, elements<F32>(comm.rank(), count)));
  comm.broadcast(buffer(base, count), comm.size() - 1).wait();
  EXPECT_TRUE(same(base, elements<F32>(0, count)));
  // Freed on some ranks earlier than on others; a second region takes its place.
  if (comm.rank() == 0) memory.reset();
  auto second = comm.allocate(count * sizeof(float));
  fill(count, static_cast<F32*>(second.get()));
  comm.all_reduce(buffer(static_cast<F32*>(second.get()), count), Op::sum).wait();
  EXPECT_TRUE(same(static_cast<F32*>(second.get()), reduced<F32>(comm.size(), count, Op::sum)));
}

// The result must not depend on how a message is cut.
void pieces_equal_whole(Communicator& comm) {
  const std::size_t count = 123457;
  auto whole = elements<F32>(comm.rank(), count), cut = whole;
  comm.all_reduce(buffer(whole), Op::sum).wait();
  std::vector<Work> works;
  for (std::size_t begin = 0, piece = 1; begin < count; begin += piece, piece = piece * 3 + 1)
    works.push_back(comm.all_reduce(buffer(cut.data() + begin, std::min(piece, count - begin)), Op::sum));
  for (auto& work : works) work.wait();
  EXPECT_TRUE(same(cut, whole));
}

void then_keeps_order(Communicator& comm) {
  const std::size_t count = 30000;
  auto a = elements<F32>(comm.rank(), count, 1), c = elements<F32>(comm.rank(), 10, 2);
  std::vector<F32> gathered(count * at(comm.size()));
  Work first = comm.all_reduce(buffer(a), Op::sum);
  Work second = first.then([&] { return comm.all_gather(buffer(a), buffer(gathered)); });
  bool third_ran = false;
  Work third = second.then([&] {
    third_ran = same(gathered.data(), a);
    return comm.all_reduce(buffer(a), Op::max);
  });
  Work last = comm.all_reduce(buffer(c), Op::sum);  // posted behind them on every rank
  last.wait();
  third.wait();
  EXPECT_TRUE(third_ran) << "the second continuation ran before the first one's collective was complete";
  EXPECT_TRUE(same(a, reduced<F32>(comm.size(), count, Op::sum, 1)));
  for (int r = 0; r < comm.size(); ++r) EXPECT_TRUE(same(gathered.data() + at(r) * count, a));
  EXPECT_TRUE(same(c, reduced<F32>(comm.size(), 10, Op::sum, 2)));
  // Behind something that is complete already.
  bool ran = false;
  first
      .then([&] {
        ran = true;
        return Work();
      })
      .wait();
  EXPECT_TRUE(ran);
}

// Pieces that lie apart, gathered in any order and several at once, from host memory or, where the group has devices,
// from theirs. Ranks that fetch by themselves need not call alike.
void frozen_shares(Communicator& comm) {
  const bool device = &unwrapped(comm) != &comm;
  const auto stream = device ? device_runtime()->stream() : nullptr;
  const Place place = device ? Place{device_runtime()->current(), stream.get()} : Place{};
  std::vector<std::shared_ptr<void>> memory;
  const auto room = [&](std::size_t bytes) {
    memory.push_back(device ? device_runtime()->memory(bytes + 1) : std::make_shared<std::vector<char>>(bytes + 1));
    return device ? memory.back().get()
                  : static_cast<void*>(static_cast<std::vector<char>*>(memory.back().get())->data());
  };
  const std::vector<std::size_t> sizes{4099, 0, 16, 300000, 1};
  const auto move = [&](void* to, const void* from, std::size_t bytes) {
    if (bytes > 0) device ? device_runtime()->copy(to, from, bytes, place) : void(std::memcpy(to, from, bytes));
  };
  std::vector<ConstBuffer> mine;
  for (std::size_t p = 0; p < sizes.size(); ++p) {
    const auto v = elements<U8>(comm.rank(), sizes[p], p);
    void* share = room(sizes[p]);
    move(share, v.data(), v.size());
    mine.push_back({share, sizes[p], DType::u8, place});
  }
  const auto shares = open_shares(unwrapped(comm), mine);
  const auto n = at(comm.size());
  for (const bool alike : {true, false}) {
    if (!alike && (!shares->fetched() || comm.rank() == 0)) continue;
    std::vector<Buffer> wholes;
    std::vector<Work> works;
    for (std::size_t p = sizes.size(); p-- > 0;) {
      wholes.push_back({room(n * sizes[p]), n * sizes[p], DType::u8, place});
      works.push_back(shares->gather(p, wholes.back()));
    }
    for (auto& work : works) work.wait();
    for (std::size_t w = 0; w < wholes.size(); ++w) {
      const std::size_t p = sizes.size() - 1 - w;
      std::vector<U8> found(wholes[w].count);
      move(found.data(), wholes[w].data, found.size());
      for (int r = 0; r < comm.size(); ++r)
        EXPECT_TRUE(same(found.data() + at(r) * sizes[p], elements<U8>(r, sizes[p], p))) << p << " of rank " << r;
    }
  }
}

void dropped_work_completes(Communicator& comm) {
  auto v = elements<F32>(comm.rank(), 50000);
  comm.all_reduce(buffer(v), Op::sum);
  comm.barrier().wait();  // behind it
  EXPECT_TRUE(same(v, reduced<F32>(comm.size(), v.size(), Op::sum)));
  auto polled = elements<F32>(comm.rank(), 50000);
  Work work = comm.all_reduce(buffer(polled), Op::sum);
  const auto end = Clock::now() + std::chrono::seconds(20);
  while (!work.done() && Clock::now() < end) std::this_thread::yield();
  EXPECT_TRUE(same(polled, v));
}

void refuses_bad_arguments(Communicator& comm) {
  std::vector<F32> v(10 * at(comm.size()) + 1), out(10);
  std::vector<F64> other(10 * at(comm.size()));
  std::vector<std::size_t> send(at(comm.size()), 100), short_list(at(comm.size()) + 1, 0);
  EXPECT_THROW(comm.reduce_scatter(buffer(v), buffer(out), Op::sum), CommError);
  EXPECT_THROW(comm.reduce_scatter(buffer(other), buffer(out), Op::sum), CommError);
  EXPECT_THROW(comm.all_gather(buffer(out), buffer(v)), CommError);
  EXPECT_THROW(comm.all_to_all(buffer(v), send, buffer(v), send), CommError);
  EXPECT_THROW(comm.all_to_all(buffer(v), short_list, buffer(v), short_list), CommError);
  EXPECT_THROW(comm.broadcast(buffer(v), comm.size()), CommError);
  EXPECT_THROW(comm.broadcast(buffer(v), -1), CommError);
  EXPECT_THROW(comm.all_reduce({nullptr, 3, DType::f32}, Op::sum), CommError);
  EXPECT_THROW(comm.all_reduce({v.data(), 3, DType::f32, {99, nullptr}}, Op::sum), CommError);
  comm.barrier().wait();  // nothing was posted
}

void waits_no_longer_than_told(Communicator& comm) {
  if (comm.size() == 1) return;
  // Rank 0 enters when the others have given up: who is held waits for ever. NCCL wants one order across communicators.
  const bool by_time = comm.backend() == "nccl";
  const auto gave_up = comm.split(0, comm.rank());
  comm.barrier().wait();
  const auto begin = Clock::now();
  if (comm.rank() == 0 && by_time) std::this_thread::sleep_for(std::chrono::milliseconds(800));
  if (comm.rank() == 0 && !by_time) gave_up->barrier().wait();
  Work work = comm.barrier();
  if (comm.rank() != 0) {
    EXPECT_THROW(work.wait_host(std::chrono::milliseconds(50)), CommError);
    if (by_time) {
      EXPECT_LT(Clock::now() - begin, std::chrono::milliseconds(790));
    } else {
      gave_up->barrier().wait();
    }
  }
  work.wait();  // still valid
}

void no_wait_inside_then(Communicator& comm) {
  if (comm.size() == 1) return;
  // There host buffers travel over another communicator, which may be waited for.
  if (comm.backend() == "nccl" && &unwrapped(comm) == &comm) return;
  auto own = comm.split(0, comm.rank());
  auto v = elements<F32>(comm.rank(), 10);
  Work work = own->barrier().then([&] {
    own->all_reduce(buffer(v), Op::sum).wait();
    return Work();
  });
  EXPECT_THROW(work.wait(), CommError);
}

void checked_names_what_differs(Communicator& comm) {
  if (comm.size() == 1) return;
  const auto expect = [&](const char* what, const std::function<Work(Communicator&)>& call) {
    Checked inner(unwrapped(comm));
    call_through(comm, inner, [&](Communicator& checked) {
      std::int64_t fine = 1;
      checked.all_reduce({&fine, 1, DType::i64}, Op::sum).wait();
      EXPECT_EQ(fine, comm.size());
      try {
        call(checked).wait();
        ADD_FAILURE() << "no error for a different " << what;
      } catch (const CommError& e) {
        const std::string text = e.what();
        EXPECT_NE(text.find(what), std::string::npos) << text;
        EXPECT_NE(text.find("rank 0 and rank 1"), std::string::npos) << text;
      }
    });
    comm.barrier().wait();  // the checked communicator itself is left untouched
  };
  const bool odd = comm.rank() == 1;
  std::vector<float> v(200);
  const std::size_t n = at(comm.size());
  expect("count", [&](Communicator& c) { return c.all_reduce({v.data(), odd ? 100u : 101u, DType::f32}, Op::sum); });
  expect("dtype", [&](Communicator& c) { return c.all_reduce({v.data(), 8, odd ? DType::f32 : DType::i32}, Op::sum); });
  expect("reduction", [&](Communicator& c) {
    return c.all_reduce({v.data(), 8, DType::f32}, odd ? Op::min : Op::sum);
  });
  expect("root", [&](Communicator& c) { return c.broadcast({v.data(), 8, DType::f32}, odd ? 1 : 0); });
  expect("operation", [&](Communicator& c) { return odd ? c.barrier() : c.broadcast({v.data(), 8, DType::f32}, 0); });
  std::vector<std::size_t> some(n, 2), more(n, 2);
  if (comm.rank() == 0) more[1] = 3;  // rank 1 expects 2
  expect("sends 3", [&](Communicator& c) {
    return c.all_to_all({v.data(), 100, DType::f32}, more, {v.data() + 100, 100, DType::f32}, some);
  });
}

void wrappers_keep_the_contract(Communicator& comm) {
  Traced traced(unwrapped(comm));
  Checked inner(traced);
  call_through(comm, inner, [](Communicator& checked) {
    all_gather(checked);
    several_in_flight(checked);
    then_keeps_order(checked);
    communicators_in_flight(checked);
    split(checked);
  });
  EXPECT_GT(traced.stats().calls, 0u);
}

void traced_counts_bytes(Communicator& comm) {
  const std::uint64_t n = at(comm.size());
  Traced traced(comm);
  std::vector<float> v(12 * n), out(12);
  auto bytes = [&, before = std::uint64_t{0}](const std::function<Work()>& call) mutable {
    call().wait();
    const std::uint64_t now = traced.stats().bytes, sent = now - before;
    before = now;
    return sent;
  };
  const Buffer whole{v.data(), v.size(), DType::f32}, part{out.data(), out.size(), DType::f32};
  EXPECT_EQ(bytes([&] { return traced.all_reduce(whole, Op::sum); }), 2 * (n - 1) * 48);
  EXPECT_EQ(bytes([&] { return traced.reduce_scatter(whole, part, Op::sum); }), (n - 1) * 48);
  EXPECT_EQ(bytes([&] { return traced.all_gather(part, whole); }), (n - 1) * 48);
  EXPECT_EQ(bytes([&] { return traced.broadcast(part, 0); }), n > 1 ? 48 : 0);
  std::vector<std::size_t> counts(n, 3);
  std::vector<float> received(12 * n);
  EXPECT_EQ(bytes([&] {
              return traced.all_to_all(whole, counts, {received.data(), received.size(), DType::f32}, counts);
            }),
            (n - 1) * 12);
  EXPECT_EQ(traced.stats().calls, 5u);
}

struct Check {
  const char* name;
  void (*run)(Communicator&);
};
#define TRIREME_CHECK(f) \
  { #f, f }
const Check checks[] = {TRIREME_CHECK(all_reduce),
                        TRIREME_CHECK(rounding),
                        TRIREME_CHECK(reduce_scatter),
                        TRIREME_CHECK(all_gather),
                        TRIREME_CHECK(all_to_all),
                        TRIREME_CHECK(broadcast),
                        TRIREME_CHECK(barrier),
                        TRIREME_CHECK(several_in_flight),
                        TRIREME_CHECK(communicators_in_flight),
                        TRIREME_CHECK(split),
                        TRIREME_CHECK(allocated_memory),
                        TRIREME_CHECK(pieces_equal_whole),
                        TRIREME_CHECK(then_keeps_order),
                        TRIREME_CHECK(frozen_shares),
                        TRIREME_CHECK(dropped_work_completes),
                        TRIREME_CHECK(refuses_bad_arguments),
                        TRIREME_CHECK(waits_no_longer_than_told),
                        TRIREME_CHECK(no_wait_inside_then),
                        TRIREME_CHECK(checked_names_what_differs),
                        TRIREME_CHECK(wrappers_keep_the_contract),
                        TRIREME_CHECK(traced_counts_bytes)};

void run_checks(Communicator& comm) {
  for (const Check& check : checks) {
    SCOPED_TRACE(std::string(check.name) + " on rank " + std::to_string(comm.rank()));
    check.run(comm);
    if (::testing::Test::HasFailure()) throw Error(ExitCode::bug, check.name, "an expectation failed");
  }
}

class Contract : public ::testing::TestWithParam<std::tuple<CommunicatorEntry, int>> {};

void run_entry(const CommunicatorEntry& entry, int n) {
  if (!entry.device) return entry.run(n, run_checks);
  entry.run(n, [](Communicator& inner) {
    run_checks(inner);  // host buffers
    any_order = inner.backend() == "nccl";
    ThroughDevice device(inner);
    run_checks(device);
  });
}

TEST_P(Contract, Holds) {
  const auto& [entry, n] = GetParam();
  const std::string missing = entry.missing ? entry.missing(n) : "";
  if (!missing.empty()) GTEST_SKIP() << missing;
  if (entry.ranks == Ranks::threads || is_rank()) {
    try {
      run_entry(entry, n);
    } catch (const std::exception& e) {
      ADD_FAILURE() << e.what();
    }
    return;
  }
  const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
  const std::string filter = std::string(info->test_suite_name()) + "." + info->name();
  const Outcome outcome = launch({n, filter, {}, std::chrono::seconds(entry.device ? 90 : 60)});
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  // The same with nothing read from a peer's memory, and with every message and every shared-memory piece cut small.
  std::vector<std::string> other;
  if (n == 2) other = {"TRIREME_MPI_TRANSPORT=staged"};
  if (n == 3) other = {"TRIREME_MPI_TRANSPORT=staged", "TRIREME_MPI_CHUNK=1000"};
  if (other.empty()) return;
  const Outcome again = launch({n, filter, other, std::chrono::seconds(180)});
  EXPECT_EQ(again.code, 0) << again.output;
}

// The modelled link must not change what a communicator does.
const Communicators::Entry shaped_entry({"loopback-shaped", Ranks::threads, [](int n, const auto& rank_main) {
                                           run_loopback(n, [&](Communicator& comm) {
                                             Shaped shaped(comm, {2e-6, 2e9});
                                             rank_main(shaped);
                                           });
                                         }});

INSTANTIATE_TEST_SUITE_P(Backends, Contract,
                         ::testing::Combine(::testing::ValuesIn(Communicators::values()),
                                            ::testing::Values(1, 2, 3, 4, 5)),
                         [](const auto& info) {
                           return case_name(std::get<0>(info.param).name, std::get<1>(info.param));
                         });

}  // namespace
}  // namespace test
}  // namespace trireme
