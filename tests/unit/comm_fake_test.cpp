// links: comm
#include "comm/error.h"
#include "comm/local/fake.h"

#include <numeric>
#include <vector>

#include <gtest/gtest.h>

namespace trireme {
namespace {

template <class T>
constexpr DType type = sizeof(T) == 4 ? DType::i32 : DType::i64;

template <class T>
Buffer buffer(std::vector<T>& v) {
  return {v.data(), v.size(), type<T>};
}

TEST(Fake, IsOneRankOfMany) {
  const auto world = make_fake(3, 1024);
  EXPECT_EQ(world->rank(), 3);
  EXPECT_EQ(world->size(), 1024);
  EXPECT_EQ(world->backend(), "fake");
  EXPECT_TRUE(world->barrier().done());
}

TEST(Fake, DataOfOthersIsMadeFromOwn) {
  const auto world = make_fake(1, 3);
  std::vector<std::int32_t> v{5, 6}, all(6), block{1, 2, 3, 4, 5, 6}, out(2);
  world->all_reduce(buffer(v), Op::sum).wait();
  EXPECT_EQ(v, (std::vector<std::int32_t>{5, 6}));
  world->broadcast(buffer(v), 2).wait();
  EXPECT_EQ(v, (std::vector<std::int32_t>{5, 6}));
  world->all_gather(buffer(v), buffer(all)).wait();
  EXPECT_EQ(all, (std::vector<std::int32_t>{5, 6, 5, 6, 5, 6}));
  world->reduce_scatter(buffer(block), buffer(out), Op::sum).wait();
  EXPECT_EQ(out, (std::vector<std::int32_t>{3, 4}));
  std::vector<std::int32_t> placed{0, 0, 7, 8, 0, 0};
  world->all_gather({placed.data() + 2, 2, DType::i32}, buffer(placed)).wait();
  EXPECT_EQ(placed, (std::vector<std::int32_t>{7, 8, 7, 8, 7, 8}));
  world->reduce_scatter(buffer(block), {block.data(), 2, DType::i32}, Op::sum).wait();
  EXPECT_EQ(block[0], 3);
  EXPECT_EQ(block[1], 4);
}

TEST(Fake, AllToAllRepeatsWhatIsForItself) {
  const auto world = make_fake(1, 3);
  std::vector<std::int64_t> in{1, 2, 3, 4, 5, 6}, out(7, -1);
  const std::vector<std::size_t> send{1, 2, 3}, recv{3, 2, 2};
  world->all_to_all(buffer(in), send, buffer(out), recv).wait();
  EXPECT_EQ(out, (std::vector<std::int64_t>{2, 3, 2, 2, 3, 2, 3}));
  const std::vector<std::size_t> others{1, 0, 1}, nothing{0, 0, 0}, from_others{3, 0, 2};
  out.resize(5);
  world->all_to_all(buffer(in), others, buffer(out), from_others).wait();
  EXPECT_EQ(out, (std::vector<std::int64_t>{1, 2, 1, 1, 2}));
  world->all_to_all(buffer(in), nothing, buffer(out), from_others).wait();
  EXPECT_EQ(out, std::vector<std::int64_t>(5, 0));
  // In place.
  world->all_to_all({in.data(), 6, DType::i64}, send, {in.data(), 6, DType::i64}, send).wait();
  EXPECT_EQ(in, (std::vector<std::int64_t>{2, 2, 3, 2, 3, 2}));
}

TEST(Fake, SplitOrdersByKey) {
  const auto world = make_fake(2, 5);
  EXPECT_EQ(world->split(0, 2)->rank(), 2);
  EXPECT_EQ(world->split(7, 0)->rank(), 1);  // behind rank 0, which has the same key and comes first
  EXPECT_EQ(world->split(0, -1)->rank(), 0);
  EXPECT_EQ(world->split(0, 100)->rank(), 4);
  EXPECT_EQ(world->split(0, 3)->rank(), 2);  // before rank 3
  EXPECT_EQ(world->split(0, 4)->rank(), 3);
  EXPECT_EQ(world->split(0, 2)->size(), 5);
}

TEST(Fake, RefusesWhatOthersRefuse) {
  const auto world = make_fake(0, 4);
  std::vector<std::int32_t> v(3), out(5);
  EXPECT_THROW(world->all_gather(buffer(v), buffer(out)), CommError);
  EXPECT_THROW(world->broadcast(buffer(v), 4), CommError);
}

TEST(Fake, MemoryIsZeroed) {
  const auto memory = make_fake(0, 8)->allocate(1000);
  const auto* bytes = static_cast<const unsigned char*>(memory.get());
  EXPECT_EQ(std::accumulate(bytes, bytes + 1000, 0), 0);
}

}  // namespace
}  // namespace trireme
